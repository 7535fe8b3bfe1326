//! Random requests, asked of the backend and of core's [`Ledger`]: the answers must agree.

use std::collections::BTreeMap;
use std::time::Duration;

use database_locks_core::ledger::{Entry, Ledger, Until};
use database_locks_core::{
    Attempt, Busy, Claim, Data, Holder, LeaseId, LeaseInfo, LockName, Owner, Release, Released,
    Renewal, Renewed, Share, Token, Ttl, Verdict,
};

use crate::context::{Context, LONG, Since, brief_ttl, claim, list, ttl};
use crate::harness::{Client, Outcome};

/// How many walks there are, each on names of its own, and how many requests a walk has.
const WALKS: usize = 2;
const STEPS: usize = 60;
/// The most items of a batch: more than there are names, so that some are of one name.
const ITEMS: usize = 9;
/// How many names there are, and how many of these most requests are for.
const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
const FEW: usize = 3;

pub(crate) async fn random_batches_agree_with_the_ledger(context: Context) -> Outcome {
    let client = context.client().await?;
    let seed = std::env::var("DATABASE_LOCKS_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("DATABASE_LOCKS_TEST_SEED={seed} repeats this run");
    let mut random = fastrand::Rng::with_seed(seed);
    for walk in 0..WALKS {
        let names = NAMES.map(|name| context.name(&format!("{walk}/{name}")));
        let shares = client.capabilities().shares;
        let mut walk = Walk {
            client: &client,
            context: &context,
            names,
            shares,
            hands_over: client.capabilities().hands_over,
            ledgers: BTreeMap::new(),
            now: Duration::from_secs(1_000_000),
            grants: Vec::new(),
            trace: Vec::new(),
            is_over: false,
        };
        for _ in 0..STEPS {
            if !walk.is_over {
                walk.step(&mut random).await?;
            }
        }
    }
    Ok(())
}

/// A lease as the ledger knows it, and as the backend does: they have other tokens.
#[derive(Debug, Clone)]
struct Grant {
    /// What the backend was asked.
    claim: Claim,
    here: LeaseId,
    there: LeaseId,
}

struct Walk<'a> {
    client: &'a Client,
    context: &'a Context,
    names: [LockName; NAMES.len()],
    shares: bool,
    hands_over: bool,
    ledgers: BTreeMap<LockName, Ledger>,
    /// The ledgers' time. Only what is long and what is over is told apart.
    now: Duration,
    grants: Vec<Grant>,
    trace: Vec<String>,
    /// The machine stood still for so long that nobody knows what has expired.
    is_over: bool,
}

impl Walk<'_> {
    async fn step(&mut self, random: &mut fastrand::Rng) -> Outcome {
        self.now += Duration::from_millis(1);
        match random.u8(..10) {
            0..=4 => self.acquire(random).await,
            5 | 6 => self.renew(random).await,
            7 | 8 => self.release(random).await,
            _ => self.list().await,
        }
    }

    async fn acquire(&mut self, random: &mut fastrand::Rng) -> Outcome {
        // What is brief is over before anything else is asked, whatever the machine's speed.
        let is_brief = random.u8(..8) == 0;
        let brief = brief_ttl(self.client).max(Duration::from_millis(500));
        let ttl = match random.u8(..4) {
            _ if is_brief => ttl(brief),
            0 => Ttl::Infinite,
            _ => ttl(LONG),
        };
        let since = Since::now();
        // What a claim replaces has another token here.
        let (here, claims): (Vec<Claim>, Vec<Claim>) = self
            .some_names(random)
            .into_iter()
            .map(|(name, is_wide)| {
                let of_name = self.late(&name);
                let again = random.choice(&of_name).filter(|_| random.u8(..4) == 0);
                let claim = match again {
                    Some(grant) => grant.claim.clone().with_replaces(None),
                    None => self.new_claim(name, is_wide, random),
                };
                let claim = claim.with_ttl(ttl);
                let replaced = random.choice(of_name);
                let replaced = replaced.filter(|_| self.hands_over && random.u8(..4) == 0);
                match replaced.and_then(|grant| spoiled(grant, random)) {
                    Some((here, there)) => {
                        (claim.clone().with_replaces(here), claim.with_replaces(there))
                    }
                    None => (claim.clone(), claim),
                }
            })
            .unzip();
        let verdicts = self.client.acquire(&claims).await?;
        self.trace.push(format!("acquire {claims:#?}\n-> {verdicts:#?}"));
        if is_brief && !since.within(brief) {
            self.is_over = true;
            return Ok(());
        }
        assert_eq!(verdicts.len(), claims.len(), "{}", self.story());
        for ((asked, claim), there) in here.into_iter().zip(claims).zip(verdicts) {
            if there == Verdict::Skipped && asked.replaces.is_none() {
                continue;
            }
            self.now += Duration::from_millis(1);
            let (now, micros) = (self.now, u64::try_from(self.now.as_micros()).unwrap_or(u64::MAX));
            let ledger = self.ledgers.entry(claim.name.clone()).or_default();
            if there == Verdict::Skipped && ledger.clone().acquire(&asked, now, micros) != there {
                // Somebody has locked the row.
                continue;
            }
            match (ledger.acquire(&asked, now, micros), there) {
                (Verdict::Granted(here), Verdict::Granted(there)) => {
                    self.granted(claim, here, there);
                }
                (Verdict::Busy(here), Verdict::Busy(there)) => {
                    // Which of several that were granted or renewed at the same time is up to the clock.
                    let counts = |e: &&Entry| match e.until {
                        Until::Forever => true,
                        Until::Expiry(at) => at.saturating_add(claim.grace) > now,
                        Until::Released(_) => false,
                    };
                    let holds = |h: &Holder| {
                        let mut counting = ledger.entries.iter().filter(counts);
                        counting.any(|e| {
                            (&e.owner, e.standing, &e.data) == (&h.owner, h.standing, &h.data)
                        })
                    };
                    assert!(
                        there.holder.as_ref().is_none_or(holds),
                        "who is not a holder is named: {}",
                        self.story()
                    );
                    let ends = |busy: &Busy| busy.holder.as_ref().map(|h| h.remaining.is_some());
                    assert_eq!(ends(&here), ends(&there), "{}", self.story());
                    let here = here.retry_after.is_some();
                    assert_eq!(here, there.retry_after.is_some(), "{}", self.story());
                }
                (Verdict::Revoked(here), Verdict::Revoked(there)) => {
                    let known = (claim.lease(here), claim.lease(there));
                    let is_known =
                        self.grants.iter().any(|g| (&g.here, &g.there) == (&known.0, &known.1));
                    assert!(is_known, "a token that was never granted: {}", self.story());
                }
                (here, there) => assert_eq!(here, there, "{}", self.story()),
            }
        }
        if is_brief {
            self.context.outlive(brief).await?;
            self.now += brief + Duration::from_millis(50);
        }
        Ok(())
    }

    fn granted(&mut self, claim: Claim, here: Token, there: Token) {
        let (here, there) = (claim.lease(here), claim.lease(there));
        let of_name = || self.grants.iter().rev().filter(|grant| grant.claim.name == claim.name);
        let is_known = of_name().find(|g| g.here.attempt == here.attempt && g.here == here);
        match is_known {
            Some(known) => assert_eq!(known.there, there, "a replay: {}", self.story()),
            None => {
                let last = of_name().map(|grant| grant.there.token).max();
                assert!(last < Some(there.token), "a token fell: {}", self.story());
                self.grants.push(Grant { claim, here, there });
            }
        }
    }

    async fn renew(&mut self, random: &mut fastrand::Rng) -> Outcome {
        let leases = self.some_leases(random);
        let ttl = if random.u8(..4) == 0 { Ttl::Infinite } else { ttl(LONG) };
        let renewal = |lease: &LeaseId| Renewal::new(lease.clone(), ttl);
        let renewals: Vec<Renewal> = leases.iter().map(|(_, there)| renewal(there)).collect();
        let answers = self.client.renew(&renewals).await?;
        self.trace.push(format!("renew {renewals:#?}\n-> {answers:#?}"));
        assert_eq!(answers.len(), leases.len(), "{}", self.story());
        for ((here, _), there) in leases.iter().zip(answers) {
            if there != Renewed::Skipped {
                let ledger = self.ledgers.entry(here.name.clone()).or_default();
                assert_eq!(ledger.renew(&renewal(here), self.now), there, "{}", self.story());
            }
        }
        Ok(())
    }

    async fn release(&mut self, random: &mut fastrand::Rng) -> Outcome {
        let leases = self.some_leases(random);
        let mut some_release = |lease: &(LeaseId, LeaseId)| {
            let kind = random.u8(..8);
            let release = |lease: &LeaseId| match kind {
                0 => Release::keep(lease.clone(), Duration::ZERO),
                1 => Release::keep(lease.clone(), LONG * 2),
                2 => Release::revoke(lease.clone()),
                _ => Release::free(lease.clone()),
            };
            (release(&lease.0), release(&lease.1))
        };
        let (here, asked): (Vec<_>, Vec<_>) = leases.iter().map(&mut some_release).unzip();
        let answers = self.client.release(&asked).await?;
        self.trace.push(format!("release {asked:#?}\n-> {answers:#?}"));
        assert_eq!(answers.len(), here.len(), "{}", self.story());
        for (here, there) in here.iter().zip(answers) {
            if there != Released::Skipped {
                let ledger = self.ledgers.entry(here.lease.name.clone()).or_default();
                assert_eq!(ledger.release(here, self.now).0, there, "{}", self.story());
            }
        }
        Ok(())
    }

    async fn list(&mut self) -> Outcome {
        for name in &self.names {
            let there = list(self.client, name.as_str()).await?;
            let ledger = self.ledgers.get(name).cloned().unwrap_or_default();
            let here = ledger.list(name, self.now);
            let told = |leases: Vec<LeaseInfo>| -> Vec<_> {
                let one = |info: LeaseInfo| {
                    let LeaseId { attempt, owner, share, .. } = info.lease;
                    let (ends, data) = (info.remaining.is_some(), info.data);
                    (attempt, owner, share, ends, info.waited_for, info.standing, data)
                };
                leases.into_iter().map(one).collect()
            };
            assert_eq!(told(here), told(there), "the list of {name}: {}", self.story());
        }
        Ok(())
    }

    /// Names to ask for, all of them or some again and again, and whether each is of many different ones.
    fn some_names(&self, random: &mut fastrand::Rng) -> Vec<(LockName, bool)> {
        if random.u8(..3) > 0 {
            let some = (0..random.usize(1..=ITEMS)).map(|_| random.usize(..FEW));
            return some.map(|name| (self.names[name].clone(), false)).collect();
        }
        let mut names = self.names.clone();
        random.shuffle(&mut names);
        names.into_iter().take(random.usize(FEW..=NAMES.len())).map(|name| (name, true)).collect()
    }

    /// What was granted of late of this name, and may live.
    fn late(&self, name: &LockName) -> Vec<&Grant> {
        let late = &self.grants[self.grants.len().saturating_sub(24)..];
        late.iter().filter(|grant| grant.claim.name == *name).collect()
    }

    /// Leases that were granted once, some of them with something wrong about them.
    fn some_leases(&self, random: &mut fastrand::Rng) -> Vec<(LeaseId, LeaseId)> {
        let names = self.some_names(random);
        names
            .into_iter()
            .filter_map(|(name, is_wide)| {
                let of_name = self.late(&name);
                // Mostly those that live, where many names are asked for at once.
                let last = of_name.last().copied().filter(|_| is_wide && random.u8(..8) > 0);
                spoiled(last.or_else(|| random.choice(of_name))?, random)
            })
            .collect()
    }

    fn new_claim(&self, name: LockName, is_wide: bool, random: &mut fastrand::Rng) -> Claim {
        let permits = |weight| Share::new(weight, 5).unwrap_or(Share::ALL);
        let shares = [
            Share::ALL,
            Share::ALL,
            Share::ONE,
            Share::ONE,
            Share::ONE,
            permits(1),
            permits(2),
            permits(5),
        ];
        let owners = ["alice", "bob", "host.1"].map(|label| {
            let explicit = label != "host.1" && random.bool();
            let owner = if explicit { Owner::explicit(label) } else { Owner::label_only(label) };
            owner.unwrap_or_else(|_| Owner::of_this_process())
        });
        let whole = [Share::ALL, Share::ALL, permits(5)];
        let shares = if is_wide && random.u8(..8) > 0 { &whole[..] } else { &shares[..] };
        claim(&name)
            .with_share(match self.shares {
                true => *random.choice(shares).unwrap_or(&Share::ALL),
                false => Share::ALL,
            })
            .with_owner(random.choice(owners).unwrap_or_else(Owner::of_this_process))
            .with_grace(if random.u8(..4) == 0 { LONG } else { Duration::ZERO })
            .with_mark((random.u8(..4) == 0).then_some(LONG))
            .with_data(
                random
                    .choice(["-", "", "10.0.0.1:80", "🦀\n'\\"])
                    .filter(|text| *text != "-")
                    .and_then(|text| Data::new(text).ok()),
            )
    }

    fn story(&self) -> String {
        let last = &self.trace[self.trace.len().saturating_sub(12)..];
        format!("the backend and the ledger disagree after\n{}", last.join("\n"))
    }
}

/// A lease as it was granted, or with something wrong about it.
fn spoiled(grant: &Grant, random: &mut fastrand::Rng) -> Option<(LeaseId, LeaseId)> {
    let Grant { mut here, mut there, .. } = grant.clone();
    let wrong = random.u8(..16);
    for lease in [&mut here, &mut there] {
        match wrong {
            0 => lease.token = Token::new(lease.token.get() - 1),
            1 => lease.token = Token::new(1),
            2 => lease.owner = Owner::label_only("somebody else").ok()?,
            3 => lease.attempt = Attempt::from_uuid(uuid::Uuid::from_u128(7)),
            _ => {}
        }
    }
    Some((here, there))
}
