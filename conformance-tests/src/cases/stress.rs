//! Many clients on few names for a while: what their holders believe is never more than the capacity.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use database_locks_core::clock::time_since_boot;
use database_locks_core::{
    Attempt, Claim, LeaseId, Release, Renewal, Renewed, Result, Share, Token, Ttl, Verdict,
};
use futures_util::future::try_join_all;
use uuid::Uuid;

use crate::context::{Context, ask, claim, permits, ttl};
use crate::harness::{Client, Outcome, Stop};
use crate::process::tell;

/// How long it goes on, in seconds, where somebody wants to know it more exactly.
const SECONDS: &str = "DATABASE_LOCKS_TEST_STRESS_SECONDS";
const CLIENTS: usize = 8;
/// How many processes these clients are in, where other processes can reach the store.
const PROCESSES: usize = 4;
/// How many at once ask by one client.
const USERS: usize = 2;
/// Fewer grants tell nothing. A machine that is too busy for them gets longer.
const LEAST: usize = 21;
const PATIENCE: Duration = Duration::from_secs(60);
/// Batches of up to so many, since a store may treat few otherwise than many.
const LARGEST: usize = 24;

pub(crate) async fn clients_that_overhold_and_repeat_never_overlap(context: Context) -> Outcome {
    if context.part().is_some() {
        let beliefs = hunt(&context, CLIENTS / PROCESSES, LEAST.div_ceil(PROCESSES)).await?;
        beliefs.iter().for_each(|belief| tell(&belief.to_string()));
        return Ok(());
    }
    let somebody_else = tokio::spawn(lock_rows(context.clone(), Instant::now() + duration()));
    let beliefs = match hunt_in_processes(&context).await {
        Err(Stop::Skipped(_)) => hunt(&context, CLIENTS, LEAST).await?,
        beliefs => beliefs?,
    };
    somebody_else.await?;
    println!("{} grants", beliefs.len());
    assert!(beliefs.len() >= LEAST, "contention starved everybody: {beliefs:?}");
    check(beliefs);
    Ok(())
}

/// How long it goes on.
pub(crate) fn duration() -> Duration {
    let seconds = std::env::var(SECONDS).ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(5))
}

async fn hunt_in_processes(context: &Context) -> Outcome<Vec<Belief>> {
    let mut processes = Vec::new();
    for _ in 0..PROCESSES {
        processes.push(context.process("hunt", None).await?);
    }
    let told = try_join_all(processes.into_iter().map(|process| process.told())).await?;
    let told = told.iter().flatten();
    told.map(|line| {
        Belief::parse(line).ok_or_else(|| Stop::failed(format!("that is no belief: {line}")))
    })
    .collect()
}

/// Lets so many clients of this process ask, and answers what their users believed.
async fn hunt(context: &Context, clients: usize, least: usize) -> Outcome<Vec<Belief>> {
    let beliefs = Arc::new(Mutex::new(Vec::new()));
    let clients = context.clients(clients).await?;
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
                let has_too_few =
                    || start.elapsed() < PATIENCE && lock(&user.beliefs).len() < least;
                while Instant::now() < end || has_too_few() {
                    user.once().await?;
                }
                Ok::<_, Stop>(())
            }));
        }
    }
    for user in try_join_all(users).await? {
        user?;
    }
    Ok(std::mem::take(&mut *lock(&beliefs)))
}

/// What a holder believed: that it held this from one moment on and until another.
///
/// Moments are of the machine's boot clock, which all processes share, in µs.
#[derive(Debug, Clone)]
struct Belief {
    token: Token,
    attempt: Attempt,
    share: Share,
    from: u128,
    until: u128,
    /// Without the prefix of the case.
    name: String,
}

impl Belief {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.splitn(7, ' ');
        let mut number = || words.next()?.parse::<u128>().ok();
        let token = Token::new(u64::try_from(number()?).ok()?);
        let attempt = Attempt::from_uuid(Uuid::from_u128(number()?));
        let (weight, capacity) = (u32::try_from(number()?), u32::try_from(number()?));
        let share = Share::new(weight.ok()?, capacity.ok()?).ok()?;
        let (from, until) = (number()?, number()?);
        Some(Self { token, attempt, share, from, until, name: words.next()?.to_owned() })
    }
}

impl fmt::Display for Belief {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { token, attempt, share, from, until, name } = self;
        let (token, attempt) = (token.get(), attempt.as_uuid().as_u128());
        write!(f, "{token} {attempt} {} {} ", share.weight(), share.capacity())?;
        write!(f, "{from} {until} {name}")
    }
}

/// Of all that was believed at any moment nothing exceeds the capacity, and who held a lock alone had a higher token
/// than all before.
fn check(mut beliefs: Vec<Belief>) {
    // What came too late to be of use was not believed.
    beliefs.retain(|belief| belief.from < belief.until);
    beliefs.sort_by_key(|belief| belief.from);
    let mut holders: BTreeMap<&str, Vec<&Belief>> = BTreeMap::new();
    let mut last: BTreeMap<&str, (Token, Attempt)> = BTreeMap::new();
    for belief in &beliefs {
        let beside = holders.entry(&belief.name).or_default();
        beside.retain(|other| other.until > belief.from);
        beside.push(belief);
        let taken: u64 = beside.iter().map(|belief| u64::from(belief.share.weight())).sum();
        assert!(taken <= u64::from(belief.share.capacity()), "held by too many: {beside:?}");

        let mine = (belief.token, belief.attempt);
        let last = last.entry(&belief.name).or_insert(mine);
        assert!(
            *last == mine || last.0 < mine.0 || !belief.share.is_exclusive(),
            "{belief:?} was granted after {last:?}"
        );
        *last = mine.max(*last);
    }
}

/// One user of a client.
struct User {
    context: Context,
    client: Client,
    ttl: Ttl,
    beliefs: Arc<Mutex<Vec<Belief>>>,
}

/// What a user has been granted, and until when at the latest it believes so.
struct Held {
    claim: Claim,
    token: Token,
    from: Duration,
    deadline: Duration,
}

impl User {
    async fn once(&self) -> Outcome {
        let claims: Vec<Claim> = match fastrand::u8(..4) {
            0 => (0..fastrand::usize(2..=LARGEST)).map(|_| self.some_claim()).collect(),
            1 => self.whole_locks(),
            _ => vec![self.some_claim()],
        };
        let sent = time_since_boot();
        let Some(verdicts) = heard(self.client.acquire(&claims).await)? else { return Ok(()) };
        let (from, deadline) = (time_since_boot(), self.deadline(sent));
        let mut held = Vec::new();
        for (claim, verdict) in claims.into_iter().zip(verdicts) {
            if let Verdict::Granted(token) = verdict {
                held.push(Held { claim, token, from, deadline });
            }
        }
        match fastrand::u8(..6) {
            0 => self.ask_again(&mut held).await?,
            1 => self.renew(&mut held).await?,
            // They hold for too long, and release what they have lost.
            2 => {
                let late = Duration::from_millis(fastrand::u64(..30));
                tokio::time::sleep(self.ttl.duration().unwrap_or_default() + late).await;
            }
            _ => {}
        }
        held.iter().for_each(|held| self.believed(held));
        let leases: Vec<_> = held.iter().map(Held::lease).collect();
        heard(self.client.release(&Release::free_all(&leases)).await)?;
        Ok(())
    }

    /// Writes down until when it was believed: no longer than until now.
    fn believed(&self, held: &Held) {
        let name = held.claim.name.as_str();
        lock(&self.beliefs).push(Belief {
            token: held.token,
            attempt: held.claim.attempt,
            share: held.claim.share,
            from: held.from.as_micros(),
            until: held.deadline.min(time_since_boot()).as_micros(),
            name: name.strip_prefix(&self.context.prefix()).unwrap_or(name).to_owned(),
        });
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
    async fn ask_again(&self, held: &mut [Held]) -> Outcome {
        for held in held {
            let sent = time_since_boot();
            let Some(verdict) = heard(ask(&self.client, &held.claim).await)? else { continue };
            match verdict {
                Verdict::Granted(again) if again == held.token => {}
                // Others may have had the lock since the lease expired, and then it is forgotten.
                Verdict::Granted(again) => {
                    let is_late = held.deadline < time_since_boot();
                    assert!(again > held.token && is_late, "a replay got another token");
                    self.believed(held);
                    (held.token, held.from) = (again, time_since_boot());
                    held.deadline = self.deadline(sent);
                }
                Verdict::Ended | Verdict::Busy(_) | Verdict::Skipped => {}
                other => panic!("a replay must not be {other:?}"),
            }
        }
        Ok(())
    }

    async fn renew(&self, held: &mut [Held]) -> Outcome {
        let renewals: Vec<_> =
            held.iter().map(|held| Renewal::new(held.lease(), self.ttl)).collect();
        let sent = time_since_boot();
        let renewed = heard(self.client.renew(&renewals).await)?.unwrap_or_default();
        for (held, renewed) in held.iter_mut().zip(renewed) {
            if renewed == Renewed::Alive {
                self.believed(held);
                (held.from, held.deadline) = (time_since_boot(), self.deadline(sent));
            }
        }
        Ok(())
    }

    fn deadline(&self, sent: Duration) -> Duration {
        sent + self.ttl.duration().unwrap_or_default()
    }
}

impl Held {
    fn lease(&self) -> LeaseId {
        self.claim.lease(self.token)
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

fn lock(beliefs: &Mutex<Vec<Belief>>) -> MutexGuard<'_, Vec<Belief>> {
    beliefs.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn belief(token: u64, weight: u32, from: u128, until: u128) -> Belief {
        let (attempt, share) = (Attempt::new(), Share::new(weight, 2).unwrap());
        Belief { token: Token::new(token), attempt, share, from, until, name: "a name".into() }
    }

    #[test]
    fn a_belief_is_told_as_it_was() {
        let told = belief(7, 2, 11, 12);
        assert_eq!(format!("{:?}", Belief::parse(&told.to_string()).unwrap()), format!("{told:?}"));
    }

    #[test]
    fn what_fits_passes() {
        check(vec![belief(3, 2, 30, 40), belief(2, 1, 15, 30), belief(1, 1, 10, 20)]);
    }

    #[test]
    #[should_panic(expected = "held by too many")]
    fn an_overlap_is_seen() {
        check(vec![belief(2, 2, 19, 40), belief(1, 1, 10, 20)]);
    }

    #[test]
    #[should_panic(expected = "was granted after")]
    fn a_token_that_fell_is_seen() {
        check(vec![belief(1, 2, 30, 40), belief(2, 2, 10, 20)]);
    }
}
