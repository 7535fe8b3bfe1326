//! The list of cases in the documentation is the list of cases, and says what each of them needs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use database_locks_conformance::{Case, Client, Harness, Outcome, Report, async_trait, cases};
use database_locks_core::{
    Capabilities, Claim, LeaseInfo, ListQuery, LockBackend, Release, Released, Renewal, Renewed,
    Result, Verdict, Wakeups,
};
use database_locks_memory::MemoryBackend;

/// With this variable set the list is written instead of compared.
const WRITE: &str = "WRITE_CASES";
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/cases.md");

/// A store that can do what every store can.
struct Plain(MemoryBackend);

#[async_trait]
impl Harness for Plain {
    async fn fresh() -> Outcome<Self> {
        Ok(Self(MemoryBackend::new()))
    }

    async fn client(&self) -> Outcome<Client> {
        Ok(Arc::new(self.0.clone()))
    }
}

/// The same, of a backend that knows exclusive locks alone.
struct Exclusive(MemoryBackend);

#[async_trait]
impl Harness for Exclusive {
    async fn fresh() -> Outcome<Self> {
        Ok(Self(MemoryBackend::new()))
    }

    async fn client(&self) -> Outcome<Client> {
        Ok(Arc::new(WithoutShares(self.0.clone())))
    }
}

#[derive(Debug)]
struct WithoutShares(MemoryBackend);

#[async_trait]
impl LockBackend for WithoutShares {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities().with_shares(false)
    }

    async fn acquire(&self, claims: &[Claim]) -> Result<Vec<Verdict>> {
        self.0.acquire(claims).await
    }

    async fn renew(&self, renewals: &[Renewal]) -> Result<Vec<Renewed>> {
        self.0.renew(renewals).await
    }

    async fn release(&self, releases: &[Release]) -> Result<Vec<Released>> {
        self.0.release(releases).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<LeaseInfo>> {
        self.0.list(query).await
    }

    async fn clean_up(&self, idle: Duration) -> Result<u64> {
        self.0.clean_up(idle).await
    }

    async fn wakeups(&self) -> Result<Option<Wakeups>> {
        self.0.wakeups().await
    }
}

/// Most cases wait rather than work.
const AT_ONCE: usize = 16;

#[test]
fn cases_are_listed_with_what_they_need() {
    let needs: Mutex<BTreeMap<usize, String>> = Mutex::default();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases().get(place) else { break };
                    let needed = needs_of(*case);
                    needs.lock().unwrap().insert(place, needed);
                }
            });
        }
    });
    let needs = needs.into_inner().unwrap();
    let mut list = String::new();
    let mut group = "";
    for (case, needs) in cases().iter().zip(needs.values()) {
        if group != case.group() {
            group = case.group();
            let _ = writeln!(list, "\n## `{group}`\n");
        }
        let _ = writeln!(list, "- {}{needs}", case.name().replace('_', " "));
    }
    let list = list.trim_start();
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(FILE, list).unwrap();
    }
    let listed = std::fs::read_to_string(FILE).unwrap_or_default();
    assert_eq!(listed, list, "run this test with {WRITE}=1, which writes the list");
}

fn needs_of(case: Case) -> String {
    match (case.run::<Plain>(), case.run::<Exclusive>()) {
        (Report::Failed(why), _) | (_, Report::Failed(why)) => panic!("{case}: {why}"),
        (Report::Skipped(why), _) => match why.split('`').nth(1) {
            Some(faculty) => format!(", with [`{faculty}`](Harness::{faculty})"),
            None => panic!("{case} does not say what it needs: {why}"),
        },
        (_, Report::Skipped(_)) => ", where there are shares".to_owned(),
        (Report::Passed, Report::Passed) => String::new(),
    }
}
