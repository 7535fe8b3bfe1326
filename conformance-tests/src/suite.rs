//! The list of cases, once, and what runs them.

use std::any::Any;
use std::fmt;
use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::cases::stress;
use crate::context::Context;
use crate::harness::{Harness, Outcome, Stop};
use crate::process::{Elsewhere, Part};

/// How long a case may take before it counts as stuck. The slowest restart a cluster several times.
const LIMIT: Duration = Duration::from_mins(5);

/// Hands the list of all cases to the macro `$callback`, after `$arguments`.
#[doc(hidden)]
#[macro_export]
macro_rules! __for_all_cases {
    ($callback:ident $(, $arguments:tt)*) => {
        $crate::$callback! {
            $($arguments)*
            exclusive {
                second_claim_is_busy_and_names_the_holder_and_what_is_left,
                other_names_are_independent,
                lock_is_free_right_after_release_ten_times,
                hundred_tasks_never_overlap,
                eight_workers_lose_no_update_of_two_counters,
                first_creation_race_has_one_winner_and_no_error,
                many_clients_never_hold_it_at_once,
                try_never_waits_behind_a_row_lock,
                row_lock_stalls_no_other_name_of_a_batch,
                empty_batch_is_answered_with_nothing,
                largest_batch_is_answered_item_by_item,
                name_twice_in_a_batch_is_granted_once,
            }
            shared_and_permits {
                many_readers_exclude_a_writer,
                writer_waits_for_readers_and_readers_for_the_writer,
                permits_are_granted_up_to_the_capacity,
                weights_above_one_count,
                shares_of_one_name_in_a_batch_are_decided_one_after_the_other,
                many_shares_of_one_name_are_held_at_once,
                locked_row_of_a_share_stalls_no_other_name,
                holders_stay_within_the_capacity_under_contention,
                another_capacity_is_refused_while_held,
                capacity_changes_when_nothing_is_held,
                expired_reader_does_not_hold_back_a_writer,
                grace_holds_back_expired_shares_and_claims_of_shares,
                waiting_writer_is_not_starved_by_readers,
                mark_of_a_writer_that_gave_up_runs_out,
                whole_semaphores_stand_back_for_a_writer,
                lighter_mark_does_not_replace_a_heavier_one,
            }
            waiting {
                timeout_is_bounded_below_and_above,
                released_lock_wakes_a_waiter_promptly,
                hints_tell_of_what_was_freed_or_kept,
                mark_is_written_again_before_it_runs_out,
                waiting_survives_hints_that_never_come,
                waiters_are_served_first_come_first_served,
                cancelled_waiter_holds_nothing,
                already_cancelled_request_asks_for_nothing,
                dropped_acquire_leaks_nothing_at_any_await_point,
            }
            lease {
                expires_when_not_renewed,
                dead_holders_lock_is_taken_by_a_plain_try,
                renewal_keeps_it_past_several_ttls,
                renewal_is_refused_after_expiry,
                renewal_is_refused_after_release,
                renewal_of_a_share_is_refused_after_its_end,
                renewal_gives_the_time_that_it_asks_for,
                renewal_is_refused_when_somebody_else_holds_it,
                renewal_is_refused_with_an_old_token,
                infinite_ttl_never_expires_and_can_be_released,
                ttl_bounds_are_checked,
                expired_row_from_before_is_taken,
                grace_holds_an_expired_lease_back,
                holder_learns_that_its_row_was_deleted,
            }
            release {
                second_release_is_a_no_op,
                release_after_expiry_reports_the_loss,
                stale_holder_cannot_release_its_successor,
                same_owner_text_with_another_attempt_is_refused,
                another_token_with_the_same_attempt_is_refused,
                another_owner_with_the_same_attempt_is_refused,
                dropped_guard_frees_the_lock,
                panic_frees_the_lock,
                error_frees_the_lock,
                early_return_frees_the_lock,
                cancelled_work_frees_the_lock,
            }
            owner {
                tasks_without_an_explicit_owner_exclude_each_other,
                explicit_owner_joins_in_process_and_frees_with_the_last_guard,
                explicit_owner_supersedes_none_but_its_own_shares,
                superseded_guard_learns_it,
                claims_without_an_explicit_owner_exclude_each_other,
                explicit_owner_supersedes_from_another_client,
                explicit_owner_does_not_supersede_a_label_of_the_same_text,
                labels_are_plain_text_alone_and_in_batches,
            }
            kept_and_revoked {
                kept_lease_is_its_holders_no_more_and_holds_others_back,
                revoked_lease_is_its_holders_no_more_and_holds_others_back,
                kept_lease_frees_its_name_at_its_age,
                kept_lease_outlives_its_ttl,
                age_is_counted_from_the_grant,
                lease_that_is_old_enough_is_not_kept,
                revoked_lease_frees_its_name_at_its_expiry,
                explicit_owner_supersedes_no_kept_or_revoked_lease,
                several_ends_in_a_batch_are_each_as_asked,
                revoked_holder_stops_and_makes_way,
                unheard_grant_that_is_revoked_is_given_back,
            }
            hand_over {
                claim_takes_the_place_of_a_lease_that_is_given_back,
                hand_over_is_replayed_with_the_same_token,
                nothing_takes_the_place_of_a_lease_that_is_not_its_holders,
                share_is_not_handed_over,
                several_hand_overs_in_a_batch_are_each_decided,
                tasks_of_one_process_hand_over_without_an_overlap,
                lost_answer_to_a_hand_over_loses_neither_lease_nor_waiter,
            }
            loss {
                taken_lease_raises_the_signal,
                forced_lease_raises_the_signal,
                deleted_row_raises_the_signal,
                expired_lease_raises_the_signal,
                normal_release_raises_no_signal,
                late_subscriber_sees_the_signal,
                transient_error_is_survived,
                hung_renewal_still_signals_before_expiry,
                no_renewal_after_release,
                lost_lease_is_never_acquired_again_silently,
                run_drops_the_work,
                callback_runs_once,
            }
            fencing {
                tokens_grow_over_release,
                tokens_grow_over_expiry,
                tokens_grow_over_force,
                tokens_grow_over_clean_up,
                tokens_grow_over_a_restart,
                token_is_stable_during_renewal,
                replay_of_a_live_attempt_returns_the_same_token,
                replay_of_a_released_attempt_is_refused,
                replay_of_an_expired_attempt_is_refused,
                claims_of_one_owner_in_a_batch_get_growing_tokens,
                lost_answer_costs_no_second_lease,
            }
            names {
                case_makes_different_locks,
                accents_make_different_locks,
                trailing_space_makes_different_locks,
                nfc_and_nfd_are_different_locks,
                longest_name_works_and_one_byte_more_is_invalid,
                empty_nul_and_control_characters_are_invalid,
                quotes_percent_backslash_and_emoji_are_plain_text,
                names_that_look_like_sql_are_plain_text,
            }
            time {
                session_time_zone_changes_nothing,
                daylight_saving_changes_nothing,
                client_clock_an_hour_off_changes_nothing,
                clients_whose_clocks_are_off_agree,
                row_locked_past_the_ttl_then_rolled_back,
                row_locked_past_the_ttl_then_committed,
                clock_set_back_raises_no_lease_whose_place_was_given_away,
                clock_set_forward_ends_leases_and_tokens_go_on_growing,
            }
            store {
                migrate_is_idempotent,
                ten_clients_migrate_at_once,
                custom_table_and_schema_work,
                missing_table_is_not_migrated_and_works_once_created,
                default_isolation_read_committed_changes_nothing,
                default_isolation_repeatable_read_changes_nothing,
                default_isolation_serializable_changes_nothing,
                autocommit_off_by_default_changes_nothing,
                deadlocks_and_serialization_failures_are_retried_inside,
                crossing_batches_end_without_an_error,
            }
            model {
                random_batches_agree_with_the_ledger,
            }
            stress {
                clients_that_overhold_and_repeat_never_overlap,
            }
            connections {
                sixty_four_waiters_share_a_pool_of_one,
                hundred_cycles_leak_no_connection,
                killed_connection_is_replaced,
                hints_end_with_their_connection,
                dropped_call_answers_no_other,
                session_settings_do_not_leak_to_the_next_user,
                leases_survive_a_server_restart,
                grants_survive_a_crash_of_the_server,
                renewals_survive_a_crash_of_the_server,
                shares_survive_a_crash_of_the_server,
            }
            inspection {
                list_finds_by_prefix,
                list_tells_what_is_waited_for,
                list_comes_in_pages,
                list_changes_nothing,
                data_is_shown_to_whoever_lists_or_waits,
                forced_release_ends_the_holders_lease,
                forced_release_cannot_hit_the_next_holder,
                clean_up_removes_only_what_was_idle_for_the_retention,
                clean_up_beside_claims_removes_nothing_that_is_held,
                clean_up_never_removes_what_is_held,
            }
        }
    };
}

/// Writes one `#[test]` for each case.
#[doc(hidden)]
#[macro_export]
macro_rules! __tests {
    ([$harness:ty] $($group:ident { $($case:ident,)* })*) => {
        type HarnessOfSuite = $harness;
        $(
            mod $group {
                $(
                    #[test]
                    fn $case() {
                        $crate::test::<super::HarnessOfSuite>(
                            concat!(module_path!(), "::", stringify!($case)),
                            stringify!($group),
                            stringify!($case),
                        );
                    }
                )*
            }
        )*
    };
}

/// Writes the table of cases.
#[doc(hidden)]
#[macro_export]
macro_rules! __table {
    ($($group:ident { $($case:ident,)* })*) => {
        &[$($(Case {
            group: stringify!($group),
            name: stringify!($case),
            run: |context| $crate::cases::$group::$case(context).boxed(),
        },)*)*]
    };
}

static CASES: &[Case] = __for_all_cases!(__table);

/// Every case, group by group.
#[must_use]
pub fn cases() -> &'static [Case] {
    CASES
}

/// Runs one case against a fresh `H` and panics when it fails: what the tests that
/// [`suite!`](crate::suite!) writes consist of.
///
/// A case that does not apply says so on standard error, past the capture of the test runner.
/// `test` is the path of the test that calls this, from its crate on: a case may start it again in other processes, to
/// do a part of it there.
///
/// # Panics
///
/// When the case fails, or there is none of this name.
pub fn test<H: Harness>(test: &str, group: &str, name: &str) {
    let case = cases().iter().find(|case| case.group == group && case.name == name);
    let Some(case) = case else { panic!("there is no case {group}::{name}") };
    let part = Part::of_this_process();
    let is_part = part.is_some();
    let report = match part {
        Some(part) => on_own_runtime(async {
            let harness = Arc::new(Elsewhere::<H>::new(part.address.clone()));
            case.run_in(Context::of_part(harness, part)).await
        }),
        None => case.run_fresh::<H>(test.split_once("::").map(|(_, name)| name)),
    };
    match report {
        Report::Passed => {}
        Report::Skipped(why) if is_part => panic!("a part of {case} cannot be skipped: {why}"),
        Report::Skipped(why) => {
            // Nobody reads standard error where this fails.
            let _ = writeln!(std::io::stderr(), "skipped {case}: {why}");
        }
        Report::Failed(why) => panic!("{case}: {why}"),
    }
}

/// One case of the suite.
#[derive(Clone, Copy)]
pub struct Case {
    group: &'static str,
    name: &'static str,
    run: fn(Context) -> BoxFuture<'static, Outcome>,
}

/// What became of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a case that failed is told only here"]
pub enum Report {
    /// The backend did as its contract says.
    Passed,
    /// The case does not apply, for this reason.
    Skipped(String),
    /// The backend broke its contract, or a call did not work that should have.
    Failed(String),
}

impl Case {
    /// The group that it belongs to, for example `exclusive`.
    #[must_use]
    pub const fn group(&self) -> &'static str {
        self.group
    }

    /// Its name in the group: a sentence that says what must hold.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Runs it against a fresh `H` on a runtime of its own. Blocks; not for async code.
    pub fn run<H: Harness>(&self) -> Report {
        self.run_fresh::<H>(None)
    }

    fn run_fresh<H: Harness>(&self, test: Option<&str>) -> Report {
        on_own_runtime(async {
            match H::fresh().await {
                Ok(harness) => self.run_in(Context::new(Arc::new(harness), test)).await,
                Err(Stop::Skipped(why)) => {
                    Report::Failed(format!("a fresh store cannot be skipped: {why}"))
                }
                Err(Stop::Failed(error)) => Report::Failed(format!("no fresh store: {error}")),
            }
        })
    }

    /// Runs it against this harness, which must be fresh, and closes that afterwards.
    ///
    /// To be called on a multi-threaded tokio runtime with all drivers enabled.
    pub async fn run_on(&self, harness: Arc<dyn Harness>) -> Report {
        self.run_in(Context::new(harness, None)).await
    }

    /// As [`run_on`](Self::run_on), with parts in other processes: each of them runs the test of this name (as the test
    /// runner calls it), which has to call [`test()`].
    pub async fn run_on_with_parts(&self, harness: Arc<dyn Harness>, test: &str) -> Report {
        self.run_in(Context::new(harness, Some(test))).await
    }

    async fn run_in(&self, context: Context) -> Report {
        let harness = context.shared_harness();
        let case = AssertUnwindSafe((self.run)(context)).catch_unwind();
        // One of them goes on for as long as it is told to.
        let limit = LIMIT + stress::duration();
        let report = match tokio::time::timeout(limit, case).await {
            Ok(Ok(Ok(()))) => Report::Passed,
            Ok(Ok(Err(Stop::Skipped(why)))) => Report::Skipped(why),
            Ok(Ok(Err(Stop::Failed(error)))) => Report::Failed(error.to_string()),
            Ok(Err(panic)) => Report::Failed(text_of(panic.as_ref())),
            Err(_) => Report::Failed(format!("it was still running after {limit:?}")),
        };
        harness.close().await;
        report
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}::{}", self.group, self.name)
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn on_own_runtime(case: impl Future<Output = Report>) -> Report {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("conformance")
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => {
            let report = runtime.block_on(case);
            // A call that a case left hanging must not hold up the end of the test.
            runtime.shutdown_background();
            report
        }
        Err(error) => Report::Failed(format!("no tokio runtime: {error}")),
    }
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "it panicked without a message".to_owned())
}
