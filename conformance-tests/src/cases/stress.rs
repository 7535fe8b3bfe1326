//! Many clients on few names for a while: what their holders believe is never more than the capacity.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use database_locks_core::{
    Attempt, Claim, Release, Renewal, Renewed, Result, Share, Token, Ttl, Verdict,
};
use futures_util::future::try_join_all;

use crate::context::{Context, ask, claim, lease_of, permits, ttl};
use crate::harness::{Client, Outcome, Stop};

/// How long it goes on, in seconds, where somebody wants to know it more exactly.
const SECONDS: &str = "DATABASE_LOCKS_TEST_STRESS_SECONDS";
const CLIENTS: usize = 8;
/// How many at once ask by one client.
const USERS: usize = 2;
/// Fewer grants tell nothing. A machine that is too busy for them gets longer.
const LEAST: u32 = 21;
const PATIENCE: Duration = Duration::from_secs(60);
/// Batches of up to so many, since a store may treat few otherwise than many.
const LARGEST: usize = 24;

/// What the holders believe: who holds how much of each name, and until when at the latest.
#[derive(Default)]
struct Beliefs {
    holders: HashMap<(String, Attempt), (Share, Instant)>,
    last_token: HashMap<String, Token>,
    grants: u32,
}

impl Beliefs {
    fn granted(&mut self, claim: &Claim, token: Token, deadline: Instant) {
        let name = claim.name.as_str().to_owned();
        let now = Instant::now();
        let beside: Vec<_> = self
            .holders
            .iter()
            .filter(|((n, a), (_, until))| *n == name && *a != claim.attempt && *until > now)
            .collect();
        let taken: u64 = beside.iter().map(|(_, (share, _))| u64::from(share.weight())).sum();
        assert!(
            taken + u64::from(claim.share.weight()) <= u64::from(claim.share.capacity())
                || deadline <= now,
            "{name} is held by too many: {claim:?} under {token} beside {beside:?}"
        );
        let last = self.last_token.entry(name.clone()).or_insert(Token::new(0));
        // Answers of shares may arrive out of order; exclusive ones cannot while they are of use.
        assert!(
            *last < token || !claim.share.is_exclusive() || deadline <= now,
            "{name}: {token} was granted after {last}"
        );
        *last = token.max(*last);
        self.holders.insert((name, claim.attempt), (claim.share, deadline));
        self.grants += 1;
    }

    fn ended(&mut self, claim: &Claim) {
        self.holders.remove(&(claim.name.as_str().to_owned(), claim.attempt));
    }
}

/// One user of a client.
struct User {
    context: Context,
    client: Client,
    ttl: Ttl,
    beliefs: Arc<Mutex<Beliefs>>,
}

pub(crate) async fn clients_that_overhold_and_repeat_never_overlap(context: Context) -> Outcome {
    let beliefs = Arc::new(Mutex::new(Beliefs::default()));
    let clients = context.clients(CLIENTS).await?;
    let start = Instant::now();
    let end = start + duration();
    let mut users = Vec::new();
    for client in clients {
        for _ in 0..USERS {
            let ttl = ttl(client.capabilities().min_ttl);
            let user = User {
                context: context.clone(),
                client: Arc::clone(&client),
                ttl,
                beliefs: Arc::clone(&beliefs),
            };
            users.push(tokio::spawn(async move {
                while Instant::now() < end || user.waits_for_grants(start) {
                    user.once().await?;
                }
                Ok::<_, Stop>(())
            }));
        }
    }
    let somebody_else = tokio::spawn(lock_rows(context, end));
    for user in try_join_all(users).await? {
        user?;
    }
    somebody_else.await?;
    let grants = lock(&beliefs).grants;
    println!("{grants} grants");
    assert!(grants >= LEAST, "only {grants} grants: contention starved everybody");
    Ok(())
}

/// How long it goes on.
pub(crate) fn duration() -> Duration {
    let seconds = std::env::var(SECONDS).ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(5))
}

impl User {
    /// Whether there were too few grants to tell anything, and there is still time for more.
    fn waits_for_grants(&self, start: Instant) -> bool {
        start.elapsed() < PATIENCE && lock(&self.beliefs).grants < LEAST
    }

    async fn once(&self) -> Outcome {
        let claims: Vec<Claim> = match fastrand::u8(..4) {
            0 => (0..fastrand::usize(2..=LARGEST)).map(|_| self.some_claim()).collect(),
            1 => self.whole_locks(),
            _ => vec![self.some_claim()],
        };
        let sent = Instant::now();
        let Some(verdicts) = heard(self.client.acquire(&claims).await)? else { return Ok(()) };
        let deadline = self.deadline(sent);
        let mut held = Vec::new();
        for (claim, verdict) in claims.into_iter().zip(verdicts) {
            if let Verdict::Granted(token) = verdict {
                lock(&self.beliefs).granted(&claim, token, deadline);
                held.push((claim, token));
            }
        }
        match fastrand::u8(..6) {
            0 => self.ask_again(&mut held, deadline).await?,
            1 => self.renew(&held).await?,
            // They hold for too long, and release what they have lost.
            2 => {
                let late = Duration::from_millis(fastrand::u64(..30));
                tokio::time::sleep(self.ttl.duration().unwrap_or_default() + late).await;
            }
            _ => {}
        }
        for (claim, _) in &held {
            lock(&self.beliefs).ended(claim);
        }
        let leases: Vec<_> =
            held.iter().map(|(claim, token)| lease_of(claim, &Verdict::Granted(*token))).collect();
        heard(self.client.release(&Release::free_all(&leases)).await)?;
        Ok(())
    }

    /// As many different ones as a store may decide all at once.
    fn whole_locks(&self) -> Vec<Claim> {
        let mut names: Vec<usize> = (0..LARGEST).collect();
        fastrand::shuffle(&mut names);
        names.truncate(fastrand::usize(2..=LARGEST));
        let whole = |name| claim(&self.context.name(&format!("whole {name}"))).with_ttl(self.ttl);
        names.into_iter().map(whole).collect()
    }

    fn some_claim(&self) -> Claim {
        let name = |text| self.context.name(text);
        let shares = self.client.capabilities().shares;
        let claim = match fastrand::u8(..6) {
            2 if shares => permits(&name("readers"), Share::FULL, Share::FULL),
            3 if shares => permits(&name("readers"), 1, Share::FULL),
            4 | 5 if shares => permits(&name("permits"), fastrand::u32(1..=3), 4),
            _ => claim(&name(["one", "two"][fastrand::usize(..2)])),
        };
        claim.with_ttl(self.ttl)
    }

    /// As if the answers had been lost.
    async fn ask_again(&self, held: &mut [(Claim, Token)], deadline: Instant) -> Outcome {
        for (claim, token) in held {
            let sent = Instant::now();
            let Some(verdict) = heard(ask(&self.client, claim).await)? else { continue };
            match verdict {
                Verdict::Granted(again) if again == *token => {}
                // Others may have had the lock since the lease expired, and then it is forgotten.
                Verdict::Granted(again) => {
                    let is_late = deadline < Instant::now();
                    assert!(again > *token && is_late, "a replay got another token");
                    lock(&self.beliefs).granted(claim, again, self.deadline(sent));
                    *token = again;
                }
                Verdict::Ended | Verdict::Busy(_) | Verdict::Skipped => {}
                other => panic!("a replay must not be {other:?}"),
            }
        }
        Ok(())
    }

    async fn renew(&self, held: &[(Claim, Token)]) -> Outcome {
        let renewal = |(claim, token): &(Claim, Token)| {
            Renewal::new(lease_of(claim, &Verdict::Granted(*token)), self.ttl)
        };
        let renewals: Vec<_> = held.iter().map(renewal).collect();
        let sent = Instant::now();
        let renewed = heard(self.client.renew(&renewals).await)?.unwrap_or_default();
        for ((claim, _), renewed) in held.iter().zip(renewed) {
            if renewed == Renewed::Alive {
                let key = (claim.name.as_str().to_owned(), claim.attempt);
                let deadline = self.deadline(sent);
                lock(&self.beliefs).holders.insert(key, (claim.share, deadline));
            }
        }
        Ok(())
    }

    fn deadline(&self, sent: Instant) -> Instant {
        sent + self.ttl.duration().unwrap_or_default()
    }
}

/// Locks one of the rows now and then for about as long as a lease lives, where the store has row locks.
async fn lock_rows(context: Context, end: Instant) {
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(..400))).await;
        let name = context.name(["one", "two", "permits"][fastrand::usize(..3)]);
        match context.harness().lock_row(&name).await {
            Ok(row) => {
                tokio::time::sleep(Duration::from_millis(fastrand::u64(..150))).await;
                // A node of a cluster takes such locks away, and says so then.
                let _ = row.roll_back().await;
            }
            Err(Stop::Skipped(_)) => break,
            Err(Stop::Failed(_)) => {}
        }
    }
}

/// `None` where nobody can say what became of a request, which the engine would repeat: a machine may stand still for
/// longer than a store waits for its rows or its file.
fn heard<T>(answer: Result<T>) -> Result<Option<T>> {
    match answer {
        Err(error) if error.is_retryable() => Ok(None),
        answer => answer.map(Some),
    }
}

fn lock(beliefs: &Mutex<Beliefs>) -> MutexGuard<'_, Beliefs> {
    beliefs.lock().unwrap_or_else(PoisonError::into_inner)
}
