//! The loops themselves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::job::{Job, Names, Outcome, Section, Share, Work};
use crate::meter::{Meter, Tally, monotonic_nanos, resident_bytes};
use crate::{System, ready, say};

/// What a probe gives a lock that may be stuck: less than the TTLs of the systems.
const PROBE: Duration = Duration::from_secs(3);

/// How many pairs go before those that are counted.
pub const COUNT_WARM_UP: u64 = 10;

pub(crate) async fn run<S: System>(job: &Job, system: S) -> Result<Outcome> {
    let system = Arc::new(system);
    let prefix = &job.prefix;
    match job.work {
        Work::Pairs { tasks, names, hold_ms, for_ms } => {
            let hold = Duration::from_millis(hold_ms);
            pairs(system, prefix, tasks, names, hold, Duration::from_millis(for_ms)).await
        }
        Work::Count { pairs } => count(system, prefix, pairs).await,
        Work::Hot { tasks, for_ms } => {
            hot(system, prefix, tasks, Duration::from_millis(for_ms)).await
        }
        Work::Crowd { holders, share, ttl_ms } => {
            crowd(system, prefix, holders, share, ttl_ms).await
        }
        Work::HandOver { for_ms } => hand_over(system, prefix, Duration::from_millis(for_ms)).await,
        Work::Sit { ttl_ms } => sit(system, prefix, ttl_ms).await,
        Work::Once { ttl_ms } => once(system, prefix, ttl_ms).await,
        Work::Hold { leases, ttl_ms, for_ms } => {
            hold(system, prefix, leases, ttl_ms, Duration::from_millis(for_ms)).await
        }
        Work::Wait { names, for_ms } => {
            wait(system, prefix, names, Duration::from_millis(for_ms)).await
        }
        Work::Renew { leases, times } => repeat(system.renewals(leases).await?, times).await,
        Work::Batch { leases, shares, times } => {
            repeat(system.batches(leases, shares).await?, times).await
        }
        Work::Allocations { .. } => bail!("a program of its own counts these"),
        Work::Abandon { names } => abandon(system, prefix, names).await,
        Work::Probe { names } => probe(system, prefix, names).await,
    }
}

async fn pairs<S: System>(
    system: Arc<S>,
    prefix: &str,
    tasks: usize,
    names: Names,
    hold: Duration,
    time: Duration,
) -> Result<Outcome> {
    let mut warming = JoinSet::new();
    for task in 0..tasks {
        let (system, name) = (Arc::clone(&system), format!("{prefix}-{task}"));
        warming.spawn(async move {
            for _ in 0..3 {
                let held = system.acquire(&name).await?;
                system.release(held).await?;
            }
            anyhow::Ok(())
        });
    }
    for warmed in warming.join_all().await {
        warmed?;
    }
    ready()?;
    let meter = Arc::new(Meter::start());
    let end = monotonic_nanos() + nanos(time);
    let mut working = JoinSet::new();
    for task in 0..tasks {
        let (system, meter) = (Arc::clone(&system), Arc::clone(&meter));
        let known = format!("{prefix}-{task}");
        working.spawn(async move {
            let mut tally = Tally::default();
            for turn in 0_u64.. {
                let fresh;
                let name = match names {
                    Names::Known => &known,
                    Names::Fresh => {
                        fresh = format!("{known}-{turn}");
                        &fresh
                    }
                };
                let asked = monotonic_nanos();
                if asked >= end {
                    break;
                }
                match pair(&*system, name, hold).await {
                    Ok(held) => tally.record((monotonic_nanos() - asked).saturating_sub(held)),
                    Err(error) => tally.failed(&error),
                }
            }
            meter.add(tally);
        });
    }
    working.join_all().await;
    finish(meter, BTreeMap::new())
}

/// One pair, and for how long the lock was held.
async fn pair<S: System>(system: &S, name: &str, hold: Duration) -> Result<u64> {
    let held = system.acquire(name).await?;
    let from = monotonic_nanos();
    if !hold.is_zero() {
        sleep(hold).await;
    }
    let to = monotonic_nanos();
    system.release(held).await?;
    Ok(to - from)
}

async fn count<S: System>(system: Arc<S>, prefix: &str, pairs: u64) -> Result<Outcome> {
    let name = format!("{prefix}-counted");
    for _ in 0..COUNT_WARM_UP {
        pair(&*system, &name, Duration::ZERO).await?;
    }
    ready()?;
    let meter = Meter::start();
    let mut tally = Tally::default();
    for _ in 0..pairs {
        let asked = monotonic_nanos();
        pair(&*system, &name, Duration::ZERO).await?;
        tally.record(monotonic_nanos() - asked);
    }
    meter.add(tally);
    Ok(meter.finish(BTreeMap::new()))
}

async fn hot<S: System>(
    system: Arc<S>,
    prefix: &str,
    tasks: usize,
    time: Duration,
) -> Result<Outcome> {
    let name: Arc<str> = format!("{prefix}-hot").into();
    pair(&*system, &name, Duration::ZERO).await?;
    ready()?;
    let meter = Arc::new(Meter::start());
    let end = monotonic_nanos() + nanos(time);
    let mut working = JoinSet::new();
    for _ in 0..tasks {
        let (system, meter, name) = (Arc::clone(&system), Arc::clone(&meter), Arc::clone(&name));
        working.spawn(async move {
            let (mut tally, mut sections) = (Tally::default(), Vec::new());
            loop {
                let asked = monotonic_nanos();
                if asked >= end {
                    break;
                }
                // Nobody waits much longer than the rest of them work.
                let held = match timeout(time * 2, system.acquire(&name)).await {
                    Ok(Ok(held)) => held,
                    Ok(Err(error)) => {
                        tally.failed(&error);
                        continue;
                    }
                    Err(_) => {
                        tally.failed(&anyhow::anyhow!("not acquired in {:?}", time * 2));
                        break;
                    }
                };
                let from = monotonic_nanos();
                tally.record(from - asked);
                // Somebody else could come in here.
                tokio::task::yield_now().await;
                let to = monotonic_nanos();
                sections.push(Section { asked, from, to });
                if let Err(error) = system.release(held).await {
                    tally.failed(&error);
                }
            }
            meter.add(tally);
            sections
        });
    }
    let mut all = Vec::new();
    let mut figures = BTreeMap::new();
    for (task, sections) in working.join_all().await.into_iter().enumerate() {
        figures.insert(format!("task_{task}"), sections.len() as f64);
        all.extend(sections);
    }
    let mut outcome = finish(meter, figures)?;
    outcome.sections = all;
    Ok(outcome)
}

async fn crowd<S: System>(
    system: Arc<S>,
    prefix: &str,
    holders: usize,
    share: Share,
    ttl_ms: u64,
) -> Result<Outcome> {
    let name: Arc<str> = format!("{prefix}-crowd").into();
    // The connections are there, and the name is known.
    let held = system.acquire_share(&name, share, ttl_ms).await?;
    system.release(held).await?;
    ready()?;
    let meter = Arc::new(Meter::start());
    let began = monotonic_nanos();
    let mut acquiring = JoinSet::new();
    for _ in 0..holders {
        let (system, meter, name) = (Arc::clone(&system), Arc::clone(&meter), Arc::clone(&name));
        acquiring.spawn(async move {
            let mut tally = Tally::default();
            let asked = monotonic_nanos();
            let held = system.acquire_share(&name, share, ttl_ms).await;
            match &held {
                Ok(_) => tally.record(monotonic_nanos() - asked),
                Err(error) => tally.failed(error),
            }
            meter.add(tally);
            held.ok()
        });
    }
    let held: Vec<S::Held> = acquiring.join_all().await.into_iter().flatten().collect();
    let acquired = monotonic_nanos() - began;
    sleep(Duration::from_millis(ttl_ms * 3)).await;
    let lost = held.iter().filter(|held| S::is_lost(held)).count();
    let began = monotonic_nanos();
    let mut releasing = JoinSet::new();
    for held in held {
        let (system, meter) = (Arc::clone(&system), Arc::clone(&meter));
        let was_lost = S::is_lost(&held);
        releasing.spawn(async move {
            let mut tally = Tally::default();
            if let Err(error) = system.release(held).await
                && !was_lost
            {
                tally.failed(&error);
            }
            meter.add(tally);
        });
    }
    releasing.join_all().await;
    let released = monotonic_nanos() - began;
    finish(
        meter,
        BTreeMap::from([
            ("acquired_all".into(), micros(acquired)),
            ("released_all".into(), micros(released)),
            ("lost".into(), lost as f64),
        ]),
    )
}

async fn hand_over<S: System>(system: Arc<S>, prefix: &str, time: Duration) -> Result<Outcome> {
    let name = format!("{prefix}-handed");
    pair(&*system, &name, Duration::ZERO).await?;
    ready()?;
    let meter = Meter::start();
    let end = monotonic_nanos() + nanos(time);
    let (mut tally, mut sections) = (Tally::default(), Vec::new());
    while monotonic_nanos() < end {
        let asked = monotonic_nanos();
        let held = match timeout(time, system.acquire(&name)).await {
            Ok(Ok(held)) => held,
            Ok(Err(error)) => {
                tally.failed(&error);
                continue;
            }
            Err(_) => break,
        };
        let from = monotonic_nanos();
        // Long enough that the other one waits, and at no fixed phase of its polls.
        sleep(Duration::from_micros(fastrand::u64(10_000..30_000))).await;
        let to = monotonic_nanos();
        system.release(held).await?;
        sections.push(Section { asked, from, to });
        // Now it is the other one's.
        sleep(Duration::from_millis(5)).await;
    }
    meter.add(tally);
    let mut outcome = meter.finish(BTreeMap::new());
    outcome.sections = sections;
    Ok(outcome)
}

async fn sit<S: System>(system: Arc<S>, prefix: &str, ttl_ms: u64) -> Result<Outcome> {
    let name = format!("{prefix}-once");
    let held = system.acquire_share(&name, Share::All, ttl_ms).await?;
    ready()?;
    // Until it is killed, or a minute after it should have been.
    sleep(Duration::from_secs(60)).await;
    system.release(held).await?;
    Ok(Outcome::default())
}

async fn once<S: System>(system: Arc<S>, prefix: &str, ttl_ms: u64) -> Result<Outcome> {
    let name = format!("{prefix}-once");
    // The connections are there.
    let held = system.acquire_share(&format!("{name}-other"), Share::All, ttl_ms).await?;
    system.release(held).await?;
    ready()?;
    let asked = monotonic_nanos();
    let held = system.acquire_share(&name, Share::All, ttl_ms).await?;
    let from = monotonic_nanos();
    system.release(held).await?;
    let sections = vec![Section { asked, from, to: from }];
    Ok(Outcome { sections, ..Outcome::default() })
}

/// How many of the leases that are to be held are acquired at once.
const AT_ONCE: usize = 500;

async fn hold<S: System>(
    system: Arc<S>,
    prefix: &str,
    leases: usize,
    ttl_ms: u64,
    time: Duration,
) -> Result<Outcome> {
    let held = system.acquire_share(&format!("{prefix}-first"), Share::All, ttl_ms).await?;
    let before = resident_bytes();
    let mut acquiring = JoinSet::new();
    let mut all = Vec::with_capacity(leases + 1);
    all.push(held);
    for lease in 0..leases {
        // All at once, they would leave more memory behind than leases need.
        if acquiring.len() == AT_ONCE
            && let Some(acquired) = acquiring.join_next().await
        {
            all.push(acquired??);
        }
        let (system, name) = (Arc::clone(&system), format!("{prefix}-{lease}"));
        acquiring.spawn(async move { system.acquire_share(&name, Share::All, ttl_ms).await });
    }
    while let Some(acquired) = acquiring.join_next().await {
        all.push(acquired??);
    }
    drop(acquiring);
    let grown = resident_bytes().saturating_sub(before);
    ready()?;
    let meter = Meter::start();
    sleep(time).await;
    let lost = all.iter().filter(|held| S::is_lost(held)).count();
    let figures = BTreeMap::from([
        ("lost".into(), lost as f64),
        ("bytes_per_lease".into(), grown as f64 / leases as f64),
    ]);
    Ok(meter.finish(figures))
}

async fn wait<S: System>(
    system: Arc<S>,
    prefix: &str,
    names: usize,
    time: Duration,
) -> Result<Outcome> {
    let held = system.acquire(&format!("{prefix}-another")).await?;
    system.release(held).await?;
    let mut waiting = JoinSet::new();
    for name in 0..names {
        let (system, name) = (Arc::clone(&system), format!("{prefix}-{name}"));
        waiting.spawn(async move { system.acquire(&name).await.map(drop) });
    }
    // Until they ask at the pace that they keep.
    sleep(Duration::from_secs(3)).await;
    ready()?;
    let meter = Meter::start();
    sleep(time).await;
    let mut tally = Tally::default();
    while let Some(waited) = waiting.try_join_next() {
        match waited? {
            Ok(()) => tally.failed(&anyhow::anyhow!("a lock was granted that is held")),
            Err(error) => tally.failed(&error),
        }
    }
    meter.add(tally);
    Ok(meter.finish(BTreeMap::new()))
}

async fn repeat(mut work: impl AsyncFnMut() -> Result<()>, times: usize) -> Result<Outcome> {
    work().await?;
    ready()?;
    let meter = Meter::start();
    let mut tally = Tally::default();
    for _ in 0..times {
        let asked = monotonic_nanos();
        work().await?;
        tally.record(monotonic_nanos() - asked);
    }
    meter.add(tally);
    Ok(meter.finish(BTreeMap::new()))
}

async fn abandon<S: System>(system: Arc<S>, prefix: &str, names: usize) -> Result<Outcome> {
    pair(&*system, &format!("{prefix}-another"), Duration::ZERO).await?;
    ready()?;
    let (mut abandoned, mut tally, meter) = (0, Tally::default(), Meter::start());
    for name in 0..names {
        let time = Duration::from_micros(fastrand::u64(50..3_000));
        match timeout(time, pair(&*system, &format!("{prefix}-{name}"), Duration::ZERO)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tally.failed(&error),
            Err(_) => abandoned += 1,
        }
    }
    meter.add(tally);
    let outcome = meter.finish(BTreeMap::from([("abandoned".into(), f64::from(abandoned))]));
    // This process lives on while somebody else looks what it has left behind.
    say(&serde_json::to_string(&outcome)?)?;
    ready()?;
    Ok(outcome)
}

async fn probe<S: System>(system: Arc<S>, prefix: &str, names: usize) -> Result<Outcome> {
    ready()?;
    let mut probing = JoinSet::new();
    let mut stuck = 0;
    let mut next = 0;
    loop {
        // Some at a time, so that a pool's connections do not all wait for what is stuck.
        while next < names && probing.len() < 8 {
            let (system, name) = (Arc::clone(&system), format!("{prefix}-{next}"));
            probing.spawn(async move {
                match timeout(PROBE, system.acquire(&name)).await {
                    Ok(held) => system.release(held?).await.map(|()| false),
                    Err(_) => Ok(true),
                }
            });
            next += 1;
        }
        let Some(probed) = probing.join_next().await else { break };
        stuck += u32::from(probed??);
    }
    let figures = BTreeMap::from([("stuck".into(), f64::from(stuck))]);
    Ok(Outcome { figures, ..Outcome::default() })
}

fn finish(meter: Arc<Meter>, figures: BTreeMap<String, f64>) -> Result<Outcome> {
    let meter = Arc::into_inner(meter);
    ensure!(meter.is_some(), "a task is still at work");
    Ok(meter.map(|meter| meter.finish(figures)).unwrap_or_default())
}

fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
