//! Whose clock counts, and when it is read.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use database_locks_core::{Attempt, LeaseId, LockName, LossReason, Released, Renewed, Verdict};
use uuid::{NoContext, Timestamp, Uuid};

use crate::context::{
    Context, LONG, PATIENCE, ask, brief, brief_ttl, claim, free, keep, lease_of, list, miss,
    permits, refuse, release, renew, renew_for, take, ttl,
};
use crate::harness::{Client, ClientOption, ClockStep, Outcome};

pub(crate) async fn session_time_zone_changes_nothing(context: Context) -> Outcome {
    let plain = context.client().await?;
    for (i, zone) in ["Pacific/Kiritimati", "America/Los_Angeles"].into_iter().enumerate() {
        let option = ClientOption::TimeZone(zone.to_owned());
        let abroad = context.harness().client_with(&option).await?;
        agree_on_time(&context, &plain, &abroad, &format!("from here {i}")).await?;
        agree_on_time(&context, &abroad, &plain, &format!("from abroad {i}")).await?;
    }
    Ok(())
}

pub(crate) async fn daylight_saving_changes_nothing(context: Context) -> Outcome {
    let plain = context.client().await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    // Clocks are put forward, or back, within the life of the leases.
    let next = now + 60;
    let day = day_of_year(next / 86_400);
    let soon = format!("{day}/{}:{:02}:00", next % 86_400 / 3_600, next % 3_600 / 60);
    let far = format!("{}/2:00:00", (day + 100) % 365);
    for (i, rule) in
        [format!("AAA0BBB,{soon},{far}"), format!("AAA1BBB0,{far},{soon}")].into_iter().enumerate()
    {
        let abroad = context.harness().client_with(&ClientOption::TimeZone(rule)).await?;
        agree_on_time(&context, &plain, &abroad, &format!("from here {i}")).await?;
        agree_on_time(&context, &abroad, &plain, &format!("from abroad {i}")).await?;
    }
    Ok(())
}

pub(crate) async fn client_clock_an_hour_off_changes_nothing(context: Context) -> Outcome {
    let client = context.client().await?;
    // An attempt is the one thing that carries a client's clock over the trait.
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let attempt =
        |seconds| Attempt::from_uuid(Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, 0)));
    let name = context.name("one");
    let mut last = None;
    for seconds in [now + 3_600, now - 3_600, now, now - 3_600] {
        let lease = take(&client, &claim(&name).with_attempt(attempt(seconds))).await?;
        assert!(Some(lease.token) > last, "tokens must grow whatever a client's clock says");
        last = Some(lease.token);
        refuse(&client, &claim(&name).with_attempt(attempt(now + 7_200))).await?;
        keep(&client, &lease).await?;
        free(&client, &lease).await?;
    }
    for seconds in [now + 3_600, now - 3_600] {
        let name = context.name(&format!("expires {seconds}"));
        let short = brief(&client, &name).with_attempt(attempt(seconds));
        let dead = take(&client, &short).await?;
        context.outlive(brief_ttl(&client)).await?;
        miss(&client, &dead, &[LossReason::Expired]).await?;
        take(&client, &claim(&name)).await?;
    }
    Ok(())
}

pub(crate) async fn clients_whose_clocks_are_off_agree(context: Context) -> Outcome {
    let client = context.client().await?;
    if let Some(mine) = context.part() {
        return with_a_clock_of_its_own(&context, &client, mine).await;
    }
    let held = take(&client, &claim(&context.name("held"))).await?;
    for (round, step) in [ClockStep::Forward(HOUR), ClockStep::Back(HOUR), ClockStep::Forward(HOUR)]
        .into_iter()
        .enumerate()
    {
        let name = |text: &str| context.name(&format!("{text} {round}"));
        let dead = take(&client, &brief(&client, &name("dead"))).await?;
        context.outlive(brief_ttl(&client)).await?;
        let process = context.process(&round.to_string(), Some(step)).await?;
        process.told().await?;

        agree_that_it_lives(&client, &held.name).await?;
        keep(&client, &held).await?;
        for text in ["dead", "lasting", "renewed"] {
            let lease = agree_that_it_lives(&client, &name(text)).await?;
            assert!(text != "dead" || lease.token > dead.token, "tokens must grow");
            free(&client, &lease).await?;
            let next = take(&client, &claim(&lease.name)).await?;
            assert!(next.token > lease.token, "tokens must grow whatever a client's clock says");
        }
        context.outlive(brief_ttl(&client)).await?;
        take(&client, &claim(&name("brief"))).await?;
    }
    Ok(())
}

/// What a client does whose clock is off.
async fn with_a_clock_of_its_own(context: &Context, client: &Client, mine: &str) -> Outcome {
    agree_that_it_lives(client, &context.name("held")).await?;
    let name = |text: &str| context.name(&format!("{text} {mine}"));
    take(client, &claim(&name("dead"))).await?;
    take(client, &claim(&name("lasting"))).await?;
    let renewed = take(client, &claim(&name("renewed")).with_ttl(ttl(PATIENCE))).await?;
    keep(client, &renewed).await?;
    take(client, &brief(client, &name("brief"))).await?;
    Ok(())
}

/// The lease of this name, which was given [`LONG`] a short while ago.
async fn agree_that_it_lives(client: &Client, name: &LockName) -> Outcome<LeaseId> {
    let Verdict::Busy(busy) = ask(client, &claim(name)).await? else {
        panic!("{name} is held, whatever a client's clock says")
    };
    let listed = list(client, name.as_str()).await?.into_iter().next();
    let Some(info) = listed else { panic!("{name} is held, and is not listed") };
    for left in [busy.holder.and_then(|holder| holder.remaining), info.remaining] {
        assert!(
            left.is_some_and(|left| left <= LONG && left > LONG - PATIENCE * 8),
            "of {LONG:?}, {left:?} cannot be left already of {name}"
        );
    }
    Ok(info.lease)
}

pub(crate) async fn row_locked_past_the_ttl_then_rolled_back(context: Context) -> Outcome {
    row_locked_past_the_ttl(context, Ending::RollBack).await
}

pub(crate) async fn row_locked_past_the_ttl_then_committed(context: Context) -> Outcome {
    row_locked_past_the_ttl(context, Ending::Commit).await
}

#[derive(Clone, Copy)]
enum Ending {
    RollBack,
    Commit,
}

/// Neither waits for the row by contract; a backend that waits all the same must judge afterwards.
async fn row_locked_past_the_ttl(context: Context, ending: Ending) -> Outcome {
    let (here, there) = (context.client().await?, context.client().await?);
    let name = context.name("locked");
    let short = brief_ttl(&here) * 4;
    let lease = take(&here, &claim(&name).with_ttl(ttl(short))).await?;
    let row = context.harness().lock_row(&name).await?;

    let renewal = {
        let (here, lease) = (Arc::clone(&here), lease.clone());
        tokio::spawn(async move { renew_for(&here, &lease, ttl(short)).await })
    };
    let waiting = claim(&name);
    let acquisition = {
        let (there, waiting) = (Arc::clone(&there), waiting.clone());
        tokio::spawn(async move { ask(&there, &waiting).await })
    };
    context.outlive(short).await?;
    match ending {
        Ending::RollBack => row.roll_back().await?,
        Ending::Commit => row.commit().await?,
    }

    let renewed = tokio::time::timeout(PATIENCE, renewal).await???;
    assert!(
        matches!(renewed, Renewed::Skipped | Renewed::Lost(_)),
        "a lease that died while its row was locked must not be renewed, but is {renewed:?}"
    );
    let verdict = match tokio::time::timeout(PATIENCE, acquisition).await??? {
        Verdict::Busy(_) | Verdict::Skipped => ask(&there, &waiting).await?,
        verdict => verdict,
    };
    let taken = lease_of(&waiting, &verdict);
    let left = list(&there, name.as_str()).await?.into_iter().next().and_then(|l| l.remaining);
    let whole = waiting.ttl.duration().unwrap_or_default();
    assert!(
        left.is_some_and(|left| left > whole - PATIENCE && left <= whole),
        "a lease must be granted for its whole TTL after a wait: {left:?} is left of {whole:?}"
    );
    miss(&here, &lease, &[LossReason::Taken]).await?;
    let released = release(&here, &lease).await?;
    assert!(matches!(released, Released::Lost(_)), "it is not its lease to free: {released:?}");
    keep(&there, &taken).await?;
    Ok(())
}

/// One holds, the other sees for how long, and takes over when it has expired and not before.
async fn agree_on_time(context: &Context, one: &Client, other: &Client, name: &str) -> Outcome {
    let name = context.name(name);
    let hours = Duration::from_hours(3);
    let lease = take(one, &claim(&name).with_ttl(ttl(hours))).await?;
    let Verdict::Busy(busy) = ask(other, &claim(&name)).await? else {
        panic!("a live lease must exclude a client in another time zone")
    };
    let listed = list(other, name.as_str()).await?;
    let left = listed.first().and_then(|info| info.remaining);
    for left in [busy.holder.and_then(|holder| holder.remaining), busy.retry_after, left] {
        assert!(
            left.is_some_and(|left| left <= hours && left > hours - PATIENCE * 4),
            "of three hours, {left:?} cannot be left already"
        );
    }
    keep(one, &lease).await?;
    free(other, &lease).await?;
    let dead = take(one, &brief(one, &name)).await?;
    context.outlive(brief_ttl(one)).await?;
    miss(other, &dead, &[LossReason::Expired]).await?;
    let taken = take(other, &claim(&name)).await?;
    free(one, &taken).await?;
    Ok(())
}

/// Counted from zero, leap days included, as POSIX rules do.
fn day_of_year(mut days_since_1970: u64) -> u64 {
    for year in 1970_u64.. {
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let length = if leap { 366 } else { 365 };
        if days_since_1970 < length {
            break;
        }
        days_since_1970 -= length;
    }
    days_since_1970
}

/// Longer than any lease of the suite lives.
const HOUR: Duration = Duration::from_hours(1);

pub(crate) async fn clock_set_back_raises_no_lease_whose_place_was_given_away(
    context: Context,
) -> Outcome {
    let harness = context.harness().steppable().await?;
    let client = harness.client().await?;
    let (alone, shared) = (context.name("alone"), context.name("shared"));
    let shares = client.capabilities().shares;
    let permit = |brief_one: bool| {
        let ttl = if brief_one { brief(&client, &shared).ttl } else { claim(&shared).ttl };
        permits(&shared, 1, 2).with_ttl(ttl)
    };
    let dead = take(&client, &brief(&client, &alone)).await?;
    let dead_permit = if shares { Some(take(&client, &permit(true)).await?) } else { None };
    let living_permit = if shares { Some(take(&client, &permit(false)).await?) } else { None };
    harness.pass(brief_ttl(&client) + Duration::from_millis(50)).await?;
    let next = take(&client, &claim(&alone)).await?;
    let next_permit = if shares { Some(take(&client, &permit(false)).await?) } else { None };

    for back in [Duration::from_millis(300), Duration::from_secs(2), HOUR] {
        harness.step_clock(ClockStep::Back(back)).await?;
        let lost = renew(&client, &dead).await?;
        assert!(matches!(lost, Renewed::Lost(_)), "a dead lease is {lost:?} after a step back");
        refuse(&client, &claim(&alone)).await?;
        keep(&client, &next).await?;
        if let (Some(dead), Some(living), Some(next)) = (&dead_permit, &living_permit, &next_permit)
        {
            let lost = renew(&client, dead).await?;
            assert!(
                matches!(lost, Renewed::Lost(_)),
                "a dead permit is {lost:?} after a step back"
            );
            refuse(&client, &permit(false)).await?;
            keep(&client, living).await?;
            keep(&client, next).await?;
            assert_eq!(list(&client, shared.as_str()).await?.len(), 2, "two permits are held");
        }
    }
    free(&client, &next).await?;
    let after = take(&client, &claim(&alone)).await?;
    assert!(after.token > next.token, "tokens must grow though the clock was set back");
    harness.close().await;
    Ok(())
}

pub(crate) async fn clock_set_forward_ends_leases_and_tokens_go_on_growing(
    context: Context,
) -> Outcome {
    let harness = context.harness().steppable().await?;
    let client = harness.client().await?;
    let name = context.name("one");
    let first = take(&client, &claim(&name)).await?;
    harness.step_clock(ClockStep::Forward(HOUR)).await?;
    miss(&client, &first, &[LossReason::Expired]).await?;
    let second = take(&client, &claim(&name)).await?;
    assert!(second.token > first.token, "tokens must grow");
    harness.step_clock(ClockStep::Back(HOUR)).await?;
    keep(&client, &second).await?;
    let lost = renew(&client, &first).await?;
    assert!(matches!(lost, Renewed::Lost(_)), "a superseded lease is {lost:?}");
    free(&client, &second).await?;
    let third = take(&client, &claim(&name)).await?;
    assert!(third.token > second.token, "tokens must grow though the clock was set back");
    harness.close().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::day_of_year;

    #[test]
    fn days_of_leap_years_are_counted() {
        for (days, expected) in [(0, 0), (364, 364), (365, 0), (789, 59), (1_096, 0), (19_782, 59)]
        {
            assert_eq!(day_of_year(days), expected, "{days}");
        }
    }
}
