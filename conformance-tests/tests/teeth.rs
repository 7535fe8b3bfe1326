//! The suite has teeth: each of these backends has one fault, and fails the case named for it.
//!
//! Without a fault the same backend passes, so that it is the fault that fails.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use database_locks_conformance::{
    Case, Client, ClockStep, Harness, Outcome, Report, RowLock, ServerEnd, ShiftedBy, Stop,
    async_trait, cases,
};
use database_locks_core::clock::time_since_boot;
use database_locks_core::ledger::{Entry, Ledger, Mark, Until};
use database_locks_core::{
    Attempt, Busy, Capabilities, Claim, Error, ErrorKind, How, LeaseId, LeaseInfo, ListQuery,
    LockBackend, LockName, LossReason, Owner, Release, Released, Releaser, Renewal, Renewed,
    Result, Share, Standing, Token, Ttl, Verdict, Wakeup, Wakeups,
};
use futures_util::{StreamExt as _, stream};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Fault {
    #[default]
    None,
    GrantsOneTooMany,
    TokenFalls,
    TokenRepeats,
    TokenOfTheRowAlone,
    TokenMovesOnRenewal,
    RenewsTheDead,
    RevivesTheReleased,
    NeverExpires,
    InfiniteExpires,
    ReleaseIgnoresTheAttempt,
    ReleaseIgnoresTheOwner,
    RenewalIgnoresTheToken,
    ReplayIsGrantedTwice,
    DeadReplayIsGranted,
    BusyIsAnError,
    BusyNamesNobody,
    IgnoresCase,
    TrimsNames,
    FoldsAccents,
    PrefixIsAPattern,
    ListExtends,
    PagesOverlap,
    CleanUpRemovesTheHeld,
    CleanUpRemovesTheRecent,
    IgnoresTheCapacity,
    StarvesWriters,
    MarksLastForEver,
    IgnoresGrace,
    IgnoresSupersession,
    LabelsSupersede,
    NameTwiceIsGrantedTwice,
    ForgetsDeletedRows,
    TrustsTheClientsClock,
    RaisesDeadShares,
    TokenIsTheClock,
    CleanUpRemovesWhatWasIdle,
    OwnerSupersedesAll,
    IgnoresGraceOfShares,
    CutsLargeBatches,
    MixesLargeBatches,
    RenewalAddsToTheOldExpiry,
    ReleaseIgnoresTheToken,
    DecidesOneShareOfABatch,
    KeepsNothing,
    KeepsForEver,
    KeepsForTheTtl,
    AgeIsSinceTheRenewal,
    RevocationFrees,
    RevokesNothing,
    RenewsTheRevoked,
    OwnerSupersedesTheKept,
    ForgetsData,
    HandsOverBesides,
    HandsOverWhatHasEnded,
    HandsOverShares,
    LeavesAnswersBehind,
    DecidesByTheClientsClock,
    ForgetsOtherProcesses,
    DecidesWithoutALock,
    LosesTheLastAnswerInACrash,
    RaisesWhatWasGivenAway,
    SkipsAllBesideALockedShare,
    TakesAllHintsForItsOwn,
    MarksDisplaceEachOther,
    MarksAreWrittenOnce,
    MarksAreNotListed,
    HoldsAThousandShares,
    HintsNeverEnd,
}

/// A fault, and the case that it must fail.
const TEETH: &[(Fault, &str)] = &[
    (Fault::GrantsOneTooMany, "shared_and_permits::permits_are_granted_up_to_the_capacity"),
    (Fault::GrantsOneTooMany, "shared_and_permits::weights_above_one_count"),
    (Fault::TokenFalls, "fencing::tokens_grow_over_release"),
    (Fault::TokenRepeats, "fencing::tokens_grow_over_release"),
    (Fault::TokenRepeats, "fencing::tokens_grow_over_expiry"),
    (Fault::TokenRepeats, "fencing::tokens_grow_over_force"),
    (Fault::TokenOfTheRowAlone, "fencing::tokens_grow_over_clean_up"),
    (Fault::TokenMovesOnRenewal, "fencing::token_is_stable_during_renewal"),
    (Fault::RenewsTheDead, "lease::renewal_is_refused_after_expiry"),
    (Fault::RevivesTheReleased, "lease::renewal_is_refused_after_release"),
    (Fault::NeverExpires, "lease::expires_when_not_renewed"),
    (Fault::NeverExpires, "lease::dead_holders_lock_is_taken_by_a_plain_try"),
    (Fault::NeverExpires, "lease::expired_row_from_before_is_taken"),
    (Fault::NeverExpires, "shared_and_permits::expired_reader_does_not_hold_back_a_writer"),
    (Fault::InfiniteExpires, "lease::infinite_ttl_never_expires_and_can_be_released"),
    (Fault::ReleaseIgnoresTheAttempt, "release::stale_holder_cannot_release_its_successor"),
    (Fault::ReleaseIgnoresTheAttempt, "release::same_owner_text_with_another_attempt_is_refused"),
    (Fault::ReleaseIgnoresTheAttempt, "inspection::forced_release_cannot_hit_the_next_holder"),
    (Fault::ReleaseIgnoresTheAttempt, "release::second_release_is_a_no_op"),
    (Fault::ReleaseIgnoresTheOwner, "release::another_owner_with_the_same_attempt_is_refused"),
    (Fault::RenewalIgnoresTheToken, "lease::renewal_is_refused_with_an_old_token"),
    (Fault::ReplayIsGrantedTwice, "fencing::replay_of_a_live_attempt_returns_the_same_token"),
    (Fault::ReplayIsGrantedTwice, "fencing::lost_answer_costs_no_second_lease"),
    (Fault::DeadReplayIsGranted, "fencing::replay_of_a_released_attempt_is_refused"),
    (Fault::DeadReplayIsGranted, "fencing::replay_of_an_expired_attempt_is_refused"),
    (Fault::BusyIsAnError, "exclusive::first_creation_race_has_one_winner_and_no_error"),
    (
        Fault::BusyNamesNobody,
        "exclusive::second_claim_is_busy_and_names_the_holder_and_what_is_left",
    ),
    (Fault::IgnoresCase, "names::case_makes_different_locks"),
    (Fault::TrimsNames, "names::trailing_space_makes_different_locks"),
    (Fault::FoldsAccents, "names::nfc_and_nfd_are_different_locks"),
    (Fault::FoldsAccents, "names::accents_make_different_locks"),
    (Fault::PrefixIsAPattern, "names::quotes_percent_backslash_and_emoji_are_plain_text"),
    (Fault::ListExtends, "inspection::list_changes_nothing"),
    (Fault::PagesOverlap, "inspection::list_comes_in_pages"),
    (Fault::CleanUpRemovesTheHeld, "inspection::clean_up_never_removes_what_is_held"),
    (
        Fault::CleanUpRemovesTheRecent,
        "inspection::clean_up_removes_only_what_was_idle_for_the_retention",
    ),
    (Fault::IgnoresTheCapacity, "shared_and_permits::another_capacity_is_refused_while_held"),
    (Fault::StarvesWriters, "shared_and_permits::waiting_writer_is_not_starved_by_readers"),
    (Fault::MarksLastForEver, "shared_and_permits::mark_of_a_writer_that_gave_up_runs_out"),
    (Fault::IgnoresGrace, "lease::grace_holds_an_expired_lease_back"),
    (Fault::IgnoresSupersession, "owner::explicit_owner_supersedes_from_another_client"),
    (Fault::LabelsSupersede, "owner::claims_without_an_explicit_owner_exclude_each_other"),
    (Fault::LabelsSupersede, "exclusive::many_clients_never_hold_it_at_once"),
    (Fault::NameTwiceIsGrantedTwice, "exclusive::name_twice_in_a_batch_is_granted_once"),
    (Fault::ForgetsDeletedRows, "lease::holder_learns_that_its_row_was_deleted"),
    (Fault::TrustsTheClientsClock, "time::client_clock_an_hour_off_changes_nothing"),
    (Fault::RaisesDeadShares, "lease::renewal_of_a_share_is_refused_after_its_end"),
    (Fault::TokenIsTheClock, "fencing::claims_of_one_owner_in_a_batch_get_growing_tokens"),
    (
        Fault::CleanUpRemovesWhatWasIdle,
        "inspection::clean_up_beside_claims_removes_nothing_that_is_held",
    ),
    (Fault::OwnerSupersedesAll, "owner::explicit_owner_supersedes_none_but_its_own_shares"),
    (
        Fault::IgnoresGraceOfShares,
        "shared_and_permits::grace_holds_back_expired_shares_and_claims_of_shares",
    ),
    (Fault::CutsLargeBatches, "exclusive::largest_batch_is_answered_item_by_item"),
    (Fault::MixesLargeBatches, "exclusive::largest_batch_is_answered_item_by_item"),
    (Fault::RenewalAddsToTheOldExpiry, "lease::renewal_gives_the_time_that_it_asks_for"),
    (Fault::ReleaseIgnoresTheToken, "release::another_token_with_the_same_attempt_is_refused"),
    (
        Fault::DecidesOneShareOfABatch,
        "shared_and_permits::shares_of_one_name_in_a_batch_are_decided_one_after_the_other",
    ),
    (
        Fault::DecidesOneShareOfABatch,
        "shared_and_permits::many_shares_of_one_name_are_held_at_once",
    ),
    (
        Fault::KeepsNothing,
        "kept_and_revoked::kept_lease_is_its_holders_no_more_and_holds_others_back",
    ),
    (Fault::KeepsForEver, "kept_and_revoked::kept_lease_frees_its_name_at_its_age"),
    (Fault::KeepsForEver, "kept_and_revoked::lease_that_is_old_enough_is_not_kept"),
    (Fault::KeepsForTheTtl, "kept_and_revoked::kept_lease_outlives_its_ttl"),
    (Fault::AgeIsSinceTheRenewal, "kept_and_revoked::age_is_counted_from_the_grant"),
    (
        Fault::RevocationFrees,
        "kept_and_revoked::revoked_lease_is_its_holders_no_more_and_holds_others_back",
    ),
    (Fault::RevocationFrees, "kept_and_revoked::several_ends_in_a_batch_are_each_as_asked"),
    (Fault::RevokesNothing, "kept_and_revoked::revoked_holder_stops_and_makes_way"),
    (
        Fault::RenewsTheRevoked,
        "kept_and_revoked::revoked_lease_is_its_holders_no_more_and_holds_others_back",
    ),
    (
        Fault::OwnerSupersedesTheKept,
        "kept_and_revoked::explicit_owner_supersedes_no_kept_or_revoked_lease",
    ),
    (Fault::NeverExpires, "kept_and_revoked::revoked_lease_frees_its_name_at_its_expiry"),
    (Fault::HandsOverBesides, "hand_over::claim_takes_the_place_of_a_lease_that_is_given_back"),
    (
        Fault::HandsOverWhatHasEnded,
        "hand_over::nothing_takes_the_place_of_a_lease_that_is_not_its_holders",
    ),
    (Fault::HandsOverWhatHasEnded, "hand_over::several_hand_overs_in_a_batch_are_each_decided"),
    (Fault::HandsOverShares, "hand_over::share_is_not_handed_over"),
    (Fault::ReplayIsGrantedTwice, "hand_over::hand_over_is_replayed_with_the_same_token"),
    (Fault::LeavesAnswersBehind, "connections::dropped_call_answers_no_other"),
    (Fault::OwnerSupersedesAll, "model::random_batches_agree_with_the_ledger"),
    (Fault::ReleaseIgnoresTheToken, "model::random_batches_agree_with_the_ledger"),
    (Fault::DecidesWithoutALock, "stress::clients_that_overhold_and_repeat_never_overlap"),
    (Fault::LosesTheLastAnswerInACrash, "connections::grants_survive_a_crash_of_the_server"),
    (Fault::LosesTheLastAnswerInACrash, "connections::renewals_survive_a_crash_of_the_server"),
    (Fault::LosesTheLastAnswerInACrash, "connections::shares_survive_a_crash_of_the_server"),
    (
        Fault::RaisesWhatWasGivenAway,
        "time::clock_set_back_raises_no_lease_whose_place_was_given_away",
    ),
    (Fault::TokenIsTheClock, "time::clock_set_forward_ends_leases_and_tokens_go_on_growing"),
    (Fault::HintsNeverEnd, "connections::hints_end_with_their_connection"),
    (Fault::TakesAllHintsForItsOwn, "waiting::hints_tell_of_what_was_freed_or_kept"),
    (
        Fault::MarksDisplaceEachOther,
        "shared_and_permits::lighter_mark_does_not_replace_a_heavier_one",
    ),
    (Fault::MarksAreWrittenOnce, "waiting::mark_is_written_again_before_it_runs_out"),
    (Fault::MarksAreNotListed, "inspection::list_tells_what_is_waited_for"),
    (Fault::HoldsAThousandShares, "shared_and_permits::many_shares_of_one_name_are_held_at_once"),
    (
        Fault::SkipsAllBesideALockedShare,
        "shared_and_permits::locked_row_of_a_share_stalls_no_other_name",
    ),
    (Fault::ForgetsData, "inspection::data_is_shown_to_whoever_lists_or_waits"),
];

/// The same of cases whose parts are in processes of their own.
const TEETH_OF_PROCESSES: &[(Fault, &str)] = &[
    (Fault::DecidesByTheClientsClock, "time::clients_whose_clocks_are_off_agree"),
    (Fault::ForgetsOtherProcesses, "stress::clients_that_overhold_and_repeat_never_overlap"),
];

#[test]
fn each_fault_fails_the_case_that_is_named_for_it() {
    fails(TEETH, run);
}

#[test]
fn without_a_fault_the_same_cases_pass() {
    for (_, case) in TEETH {
        assert_eq!(run(Fault::None, case), Report::Passed, "{case}");
    }
}

#[test]
fn each_fault_between_processes_fails_the_case_that_is_named_for_it() {
    fails(TEETH_OF_PROCESSES, run_with_parts);
}

#[test]
fn without_a_fault_the_same_cases_of_processes_pass() {
    for (_, case) in TEETH_OF_PROCESSES {
        assert_eq!(run_with_parts(Fault::None, case), Report::Passed, "{case}");
    }
}

/// How many cases run at once.
const AT_ONCE: usize = 4;

fn fails(teeth: &'static [(Fault, &str)], run: fn(Fault, &str) -> Report) {
    let fail = |(fault, case): &(Fault, &str)| match run(*fault, case) {
        Report::Failed(why) => {
            println!("{fault:?} fails {case}: {why}");
            None
        }
        report => Some(format!("{fault:?} should fail {case}: {report:?}")),
    };
    // Some of them wait for what never comes.
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let start = |some: &'static [(Fault, &str)]| {
            scope.spawn(move || some.iter().filter_map(fail).collect::<Vec<_>>())
        };
        let threads: Vec<_> = teeth.chunks(teeth.len().div_ceil(AT_ONCE)).map(start).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn run(fault: Fault, name: &str) -> Report {
    let sabotaged = Sabotaged { fault, ..Sabotaged::default() };
    on_runtime(case(name).run_on(Arc::new(sabotaged)))
}

fn run_with_parts(fault: Fault, name: &str) -> Report {
    let file = tempfile::NamedTempFile::new().unwrap();
    let file_of_all = Some(file.path().to_owned());
    let sabotaged = Sabotaged { fault, file: file_of_all, ..Sabotaged::default() };
    let case = case(name);
    let test = format!("parts::{}", case.name());
    on_runtime(case.run_on_with_parts(Arc::new(sabotaged), &test))
}

fn case(name: &str) -> Case {
    *cases().iter().find(|case| case.to_string() == name).expect("a case of that name")
}

fn on_runtime<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(future)
}

/// What other processes run of these cases, by the names of the cases. Started by hand, they test a store without a fault.
mod parts {
    use database_locks_conformance::test;

    use super::Sabotaged;

    #[test]
    fn clients_whose_clocks_are_off_agree() {
        test::<Sabotaged>(module_path!(), "time", "clients_whose_clocks_are_off_agree");
    }

    #[test]
    fn clients_that_overhold_and_repeat_never_overlap() {
        test::<Sabotaged>(
            module_path!(),
            "stress",
            "clients_that_overhold_and_repeat_never_overlap",
        );
    }
}

/// The state of all names by the one rule, and a clock that runs and can be stepped.
#[derive(Debug)]
struct Store {
    names: BTreeMap<LockName, Ledger>,
    /// How far the clock is ahead of the machine's: so much that it can be set back.
    ahead: Duration,
    /// What there was before the last call that wrote.
    before: BTreeMap<LockName, Ledger>,
    locked_share: Option<Attempt>,
    /// Which name was released, and which client did it.
    hints: Vec<(LockName, usize)>,
    /// How often all connections were cut.
    cuts: usize,
}

const DAY: Duration = Duration::from_hours(24);

impl Default for Store {
    fn default() -> Self {
        let (names, before, hints) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        Self { names, ahead: DAY, before, locked_share: None, hints, cuts: 0 }
    }
}

#[derive(Debug, Clone, Default)]
struct Sabotaged {
    fault: Fault,
    store: Arc<Mutex<Store>>,
    /// Where the names are instead, for other processes to find them.
    file: Option<PathBuf>,
    /// A client's one connection: the answers that came and were not read.
    unread: Arc<Unread>,
}

#[derive(Debug, Default)]
struct Unread {
    verdicts: Mutex<VecDeque<Vec<Verdict>>>,
    renewed: Mutex<VecDeque<Vec<Renewed>>>,
    released: Mutex<VecDeque<Vec<Released>>>,
}

/// How far the wall clock of a process is off, in µs.
const CLOCK_IS_OFF: &str = "TEETH_CLOCK_IS_OFF";

#[async_trait]
impl Harness for Sabotaged {
    async fn fresh() -> Outcome<Self> {
        Ok(Self::default())
    }

    async fn client(&self) -> Outcome<Client> {
        Ok(Arc::new(Self { unread: Arc::default(), ..self.clone() }))
    }

    async fn pass(&self, time: Duration) -> Outcome {
        match self.file {
            // Other processes have no part in a clock that is set here.
            Some(_) => tokio::time::sleep(time).await,
            None => self.lock().ahead += time,
        }
        Ok(())
    }

    async fn steppable(&self) -> Outcome<Arc<dyn Harness>> {
        Ok(Arc::new(self.clone()))
    }

    async fn step_clock(&self, step: ClockStep) -> Outcome {
        let mut store = self.lock();
        match step {
            ClockStep::Forward(by) => store.ahead += by,
            ClockStep::Back(by) => store.ahead -= by,
        }
        Ok(())
    }

    async fn break_connections(&self) -> Outcome {
        self.lock().cuts += 1;
        Ok(())
    }

    async fn restartable(&self) -> Outcome<Arc<dyn Harness>> {
        Ok(Arc::new(self.clone()))
    }

    async fn restart(&self, end: ServerEnd) -> Outcome {
        let mut store = self.lock();
        if self.fault == Fault::LosesTheLastAnswerInACrash && end == ServerEnd::Crash {
            store.names = store.before.clone();
        }
        Ok(())
    }

    async fn lock_share(&self, lease: &LeaseId) -> Outcome<Box<dyn RowLock>> {
        self.lock().locked_share = Some(lease.attempt);
        Ok(Box::new(self.clone()))
    }

    async fn address(&self) -> Outcome<String> {
        match &self.file {
            Some(file) => Ok(format!("{:?} {}", self.fault, file.display())),
            None => Err(Stop::lacks("address")),
        }
    }

    async fn client_at(address: &str) -> Outcome<Client> {
        let (fault, file) = address.split_once(' ').unwrap();
        let named = |known: &Fault| format!("{known:?}") == fault;
        let fault = TEETH_OF_PROCESSES.iter().map(|(fault, _)| *fault).find(named);
        let (fault, file) = (fault.unwrap_or_default(), Some(file.into()));
        static STORE: LazyLock<Arc<Mutex<Store>>> = LazyLock::new(Arc::default);
        Ok(Arc::new(Self { fault, file, store: Arc::clone(&STORE), unread: Arc::default() }))
    }

    async fn shift_clock(&self, program: &mut Command, by: ClockStep) -> Outcome<ShiftedBy> {
        let micros = match by {
            ClockStep::Forward(by) => i64::try_from(by.as_micros())?,
            ClockStep::Back(by) => -i64::try_from(by.as_micros())?,
        };
        program.env(CLOCK_IS_OFF, micros.to_string());
        Ok(Box::new(()))
    }

    async fn delete_row(&self, name: &LockName) -> Outcome {
        self.lock().names.remove(name);
        Ok(())
    }
}

#[async_trait]
impl RowLock for Sabotaged {
    async fn roll_back(self: Box<Self>) -> Outcome {
        self.lock().locked_share = None;
        Ok(())
    }

    async fn commit(self: Box<Self>) -> Outcome {
        self.roll_back().await
    }
}

#[async_trait]
impl LockBackend for Sabotaged {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new("sabotaged").with_hand_over(true)
    }

    async fn acquire(&self, claims: &[Claim]) -> Result<Vec<Verdict>> {
        self.begin_to_write();
        if self.fault == Fault::DecidesWithoutALock {
            let stale = self.with_store(|store, _, _| store.names.clone());
            tokio::time::sleep(Duration::from_millis(1)).await;
            self.with_store(|store, _, _| {
                for name in claims.iter().map(|claim| &claim.name) {
                    store.names.insert(name.clone(), stale.get(name).cloned().unwrap_or_default());
                }
            });
        }
        let mut earlier: Vec<&LockName> = Vec::new();
        let micros = self.with_store(|_, _, micros| micros);
        let verdicts = claims.iter().map(|claim| {
            let twice = earlier.contains(&&claim.name);
            earlier.push(&claim.name);
            if twice && self.fault == Fault::DecidesOneShareOfABatch {
                return Ok(Verdict::Skipped);
            }
            self.decide(claim, twice, micros)
        });
        let mut verdicts: Vec<Verdict> = verdicts.collect::<Result<_>>()?;
        match self.fault {
            Fault::CutsLargeBatches => verdicts.truncate(100),
            Fault::MixesLargeBatches if verdicts.len() > 100 => verdicts.rotate_left(1),
            _ => {}
        }
        Ok(self.read(&self.unread.verdicts, verdicts).await)
    }

    async fn renew(&self, renewals: &[Renewal]) -> Result<Vec<Renewed>> {
        self.begin_to_write();
        let locked = self.locked(renewals.iter().map(|renewal| &renewal.lease));
        let renewed = self.with_store(|store, now, _| {
            let renewals = renewals.iter().zip(locked);
            renewals
                .map(|(renewal, is_locked)| match is_locked {
                    true => Renewed::Skipped,
                    false => self.extend(store, renewal, now),
                })
                .collect()
        });
        Ok(self.read(&self.unread.renewed, renewed).await)
    }

    async fn release(&self, releases: &[Release]) -> Result<Vec<Released>> {
        let locked = self.locked(releases.iter().map(|release| &release.lease));
        let released = self.with_store(|store, now, _| {
            releases
                .iter()
                .zip(locked)
                .map(|(release, is_locked)| {
                    if is_locked {
                        return Released::Skipped;
                    }
                    let ledger = store.names.entry(self.key(&release.lease.name)).or_default();
                    let mut release = release.clone();
                    let lease = &mut release.lease;
                    match (self.fault, ledger.entries.last()) {
                        (Fault::ReleaseIgnoresTheAttempt, Some(e)) => {
                            (lease.attempt, lease.token) = (e.attempt, e.token);
                        }
                        (Fault::ReleaseIgnoresTheToken, Some(e)) => lease.token = e.token,
                        (Fault::ReleaseIgnoresTheOwner, Some(e)) => lease.owner = e.owner.clone(),
                        _ => {}
                    }
                    match (self.fault, release.how) {
                        (Fault::KeepsNothing, How::Keep { .. })
                        | (Fault::RevocationFrees, How::Revoke) => release.how = How::Free,
                        (Fault::KeepsForEver, How::Keep { .. }) => {
                            release.how = How::Keep { until_age: Duration::MAX };
                        }
                        (Fault::KeepsForTheTtl, How::Keep { .. }) => release.how = How::Revoke,
                        (Fault::RevokesNothing, How::Revoke) => return Released::Done,
                        _ => {}
                    }
                    let (released, hint) = ledger.release(&release, now);
                    if hint {
                        store.hints.push((release.lease.name, self.number()));
                    }
                    released
                })
                .collect()
        });
        Ok(self.read(&self.unread.released, released).await)
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<LeaseInfo>> {
        Ok(self.with_store(|store, now, _| {
            if self.fault == Fault::ListExtends {
                for entry in store.names.values_mut().flat_map(|ledger| &mut ledger.entries) {
                    if let Until::Expiry(at) = &mut entry.until {
                        *at += Duration::from_secs(1);
                    }
                }
            }
            let matches = |name: &LockName| match self.fault {
                Fault::PrefixIsAPattern => {
                    name.as_str().starts_with(query.prefix.trim_end_matches(['%', '_']))
                }
                _ => name.as_str().starts_with(&query.prefix),
            };
            let after = |info: &LeaseInfo| {
                let at = (&info.lease.name, info.lease.attempt);
                query.after.as_ref().is_none_or(|(name, attempt)| match self.fault {
                    Fault::PagesOverlap => at >= (name, *attempt),
                    _ => at > (name, *attempt),
                })
            };
            let listed = store.names.iter().filter(|(name, _)| matches(name));
            let told = self.fault != Fault::MarksAreNotListed;
            listed
                .flat_map(|(name, ledger)| ledger.list(name, now))
                .map(|info| {
                    let is_told = info.waited_for && told;
                    info.with_waited_for(is_told)
                })
                .filter(after)
                .take(query.limit as usize)
                .collect()
        }))
    }

    async fn wakeups(&self) -> Result<Option<Wakeups>> {
        let (told, cuts) = self.with_store(|store, _, _| (store.hints.len(), store.cuts));
        let client = self.clone();
        let released = stream::unfold((client, told), move |(client, told)| async move {
            loop {
                let is_cut = client.lock().cuts != cuts;
                if is_cut && client.fault == Fault::HintsNeverEnd {
                    std::future::pending::<()>().await;
                }
                if is_cut {
                    return None;
                }
                let next = client.lock().hints.get(told).cloned();
                if let Some((name, by)) = next {
                    let is_own = by == client.number();
                    let by = match client.fault {
                        Fault::TakesAllHintsForItsOwn => Releaser::Own,
                        _ if is_own => Releaser::Own,
                        _ => Releaser::Other(by as u64),
                    };
                    return Some((Wakeup::Released { name, by }, (client, told + 1)));
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        Ok(Some(Wakeups::new(stream::iter([Wakeup::Listening]).chain(released))))
    }

    async fn clean_up(&self, idle: Duration) -> Result<u64> {
        if self.fault == Fault::CleanUpRemovesWhatWasIdle {
            let found: Vec<LockName> = self.with_store(|store, now, micros| {
                let is_idle = |ledger: &Ledger| ledger.is_idle(idle, now, micros);
                store.names.iter().filter(|(_, l)| is_idle(l)).map(|(n, _)| n.clone()).collect()
            });
            tokio::time::sleep(Duration::from_millis(1)).await;
            return Ok(self.with_store(|store, _, _| {
                found.iter().filter(|name| store.names.remove(*name).is_some()).count() as u64
            }));
        }
        Ok(self.with_store(|store, now, micros| {
            let before = store.names.len();
            store.names.retain(|name, ledger| match self.fault {
                Fault::CleanUpRemovesTheHeld => now.saturating_sub(ledger.touched) < idle,
                Fault::CleanUpRemovesTheRecent => !ledger.list(name, now).is_empty(),
                Fault::TokenOfTheRowAlone => !ledger.is_idle(idle, now, u64::MAX),
                _ => !ledger.is_idle(idle, now, micros),
            });
            (before - store.names.len()) as u64
        }))
    }
}

impl Sabotaged {
    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_store<T>(&self, work: impl FnOnce(&mut Store, Duration, u64) -> T) -> T {
        let mut store = self.lock();
        let file = self.file.as_ref().filter(|_| self.fault != Fault::ForgetsOtherProcesses);
        let mut file = file.map(|file| File::options().read(true).write(true).open(file).unwrap());
        if let Some(file) = &mut file {
            file.lock().unwrap();
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            let names: Vec<(String, Ledger)> = serde_json::from_str(&text).unwrap_or_default();
            let names = names.into_iter().map(|(name, ledger)| (LockName::new(name), ledger));
            store.names = names.map(|(name, ledger)| (name.unwrap(), ledger)).collect();
        }
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + store.ahead - DAY;
        let now = match self.fault {
            Fault::DecidesByTheClientsClock => off(wall),
            _ => time_since_boot() + store.ahead,
        };
        let result = work(&mut store, now, u64::try_from(wall.as_micros()).unwrap());
        if let Some(file) = &mut file {
            let names: Vec<_> = store.names.iter().map(|(n, l)| (n.as_str(), l)).collect();
            let text = serde_json::to_string(&names).unwrap();
            file.set_len(0).unwrap();
            file.rewind().unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }
        result
    }

    /// Remembers what there is, as a server that has not written the next answer when it crashes.
    fn begin_to_write(&self) {
        let mut store = self.lock();
        store.before = store.names.clone();
    }

    /// Which of these have a row that somebody has locked.
    fn locked<'l>(&self, leases: impl Iterator<Item = &'l LeaseId>) -> Vec<bool> {
        let locked = self.lock().locked_share;
        let is_locked = |lease: &LeaseId| Some(lease.attempt) == locked;
        let mut are_locked: Vec<bool> = leases.map(is_locked).collect();
        if self.fault == Fault::SkipsAllBesideALockedShare && are_locked.contains(&true) {
            are_locked.fill(true);
        }
        are_locked
    }

    /// A number that no other client has.
    fn number(&self) -> usize {
        Arc::as_ptr(&self.unread).addr()
    }

    /// Reads from its connection what is to be answered.
    async fn read<T>(&self, unread: &Mutex<VecDeque<T>>, answer: T) -> T {
        if self.fault != Fault::LeavesAnswersBehind {
            return answer;
        }
        unread.lock().unwrap().push_back(answer);
        tokio::task::yield_now().await;
        unread.lock().unwrap().pop_front().unwrap()
    }

    fn key(&self, name: &LockName) -> LockName {
        let text = name.as_str();
        let folded = match self.fault {
            Fault::IgnoresCase => text.to_lowercase(),
            Fault::TrimsNames => text.trim_end().to_owned(),
            Fault::FoldsAccents => text.replace(['\u{e9}', 'é'], "e").replace('\u{301}', ""),
            _ => return name.clone(),
        };
        LockName::new(folded).unwrap()
    }

    fn decide(&self, claim: &Claim, twice: bool, batch_micros: u64) -> Result<Verdict> {
        let mut claim = claim.clone();
        let claimed = claim.name.clone();
        claim.name = self.key(&claimed);
        let verdict = self.with_store(|store, now, micros| {
            let ledger = store.names.entry(claim.name.clone()).or_default();
            let before = ledger.clone();
            self.spoil_claim(&mut claim, ledger, twice, now);
            let micros = if self.fault == Fault::TokenOfTheRowAlone { 1 } else { micros };
            let mut verdict = ledger.acquire(&claim, now, micros);
            if let (Fault::MarksDisplaceEachOther, Verdict::Busy(_), Some(length)) =
                (self.fault, &verdict, claim.mark)
            {
                ledger.mark = Some(Mark::new(now + length, claim.share.weight()));
            }
            if let Verdict::Granted(token) = &mut verdict {
                let wrong = match self.fault {
                    Fault::TokenFalls => Some(u64::MAX / 4 - token.get()),
                    Fault::TokenRepeats if before.token > 0 => Some(before.token),
                    Fault::TokenIsTheClock => Some(batch_micros),
                    _ => None,
                };
                if let (Some(wrong), Some(entry)) = (wrong, ledger.entries.last_mut()) {
                    *token = Token::new(wrong);
                    entry.token = *token;
                    ledger.token = wrong.min(ledger.token);
                }
                if self.fault == Fault::RaisesWhatWasGivenAway {
                    ledger.entries.retain(|e| !matches!(e.until, Until::ENDED));
                    let is_dead = |e: &Entry| matches!(e.until, Until::Expiry(at) if at <= now);
                    ledger.entries.extend(before.entries.iter().filter(|e| is_dead(e)).cloned());
                }
                if self.fault == Fault::HoldsAThousandShares {
                    ledger.entries.truncate(1_000);
                }
                if self.fault == Fault::HandsOverBesides && claim.replaces.is_some() {
                    ledger.entries.extend(before.entries);
                }
                if self.fault == Fault::InfiniteExpires
                    && let Some(entry) = ledger.entries.last_mut()
                    && entry.until == Until::Forever
                {
                    entry.until = Until::Expiry(now + Duration::from_millis(100));
                }
            }
            verdict
        });
        match verdict {
            Verdict::Busy(_) if self.fault == Fault::BusyIsAnError => {
                Err(Error::new(ErrorKind::Backend, "duplicate key value"))
            }
            Verdict::Busy(_) if self.fault == Fault::BusyNamesNobody => {
                Ok(Verdict::Busy(Busy::default()))
            }
            verdict => Ok(verdict),
        }
    }

    fn spoil_claim(&self, claim: &mut Claim, ledger: &mut Ledger, twice: bool, now: Duration) {
        let same = |e: &Entry| e.attempt == claim.attempt;
        match self.fault {
            Fault::GrantsOneTooMany if claim.share.capacity() < Share::FULL => {
                for entry in &mut ledger.entries {
                    let less = entry.share.weight().saturating_sub(1).max(1);
                    entry.share = Share::new(less, claim.share.capacity() + 1).unwrap();
                }
                claim.share = Share::new(claim.share.weight(), claim.share.capacity() + 1).unwrap();
            }
            Fault::NeverExpires => {
                for entry in &mut ledger.entries {
                    if let Until::Expiry(_) = entry.until {
                        entry.until = Until::Forever;
                    }
                }
            }
            Fault::ReplayIsGrantedTwice if ledger.entries.iter().any(same) => {
                claim.attempt = Attempt::new();
                claim.owner = Owner::explicit("twice").unwrap();
                for entry in &mut ledger.entries {
                    entry.owner = claim.owner.clone();
                }
            }
            Fault::DeadReplayIsGranted => {
                ledger.entries.retain(|e| !matches!(e.until, Until::Released(_)));
                ledger.entries.retain(|e| !matches!(e.until, Until::Expiry(at) if at <= now));
            }
            Fault::IgnoresTheCapacity => {
                for entry in &mut ledger.entries {
                    let weight = entry.share.weight().min(claim.share.capacity());
                    entry.share = Share::new(weight, claim.share.capacity()).unwrap();
                }
            }
            Fault::MarksAreWrittenOnce if ledger.mark.is_some_and(|mark| mark.until > now) => {
                claim.mark = None;
            }
            Fault::StarvesWriters => claim.mark = None,
            Fault::MarksLastForEver => claim.mark = claim.mark.map(|_| Duration::MAX),
            Fault::IgnoresGrace => claim.grace = Duration::ZERO,
            Fault::ForgetsData => claim.data = None,
            Fault::HandsOverWhatHasEnded if claim.replaces.take().is_some() => {
                ledger.entries.clear();
            }
            Fault::HandsOverShares
                if claim.replaces.as_ref().is_some_and(|l| !l.share.is_exclusive()) =>
            {
                claim.replaces = None;
                ledger.entries.clear();
            }
            Fault::OwnerSupersedesTheKept => {
                for entry in &mut ledger.entries {
                    entry.standing = Standing::Held;
                }
            }
            Fault::IgnoresGraceOfShares if !claim.share.is_exclusive() => {
                claim.grace = Duration::ZERO;
            }
            Fault::OwnerSupersedesAll if claim.owner.is_explicit() => {
                for entry in &mut ledger.entries {
                    entry.owner = claim.owner.clone();
                }
            }
            Fault::IgnoresSupersession => {
                claim.owner = Owner::label_only(claim.owner.label()).unwrap();
            }
            Fault::LabelsSupersede => {
                claim.owner = Owner::explicit(claim.owner.label()).unwrap();
            }
            Fault::NameTwiceIsGrantedTwice if twice => ledger.entries.clear(),
            Fault::TrustsTheClientsClock => {
                // The time in a UUID v7 stands for a client's word about the hour.
                if let Some(stamp) = claim.attempt.as_uuid().get_timestamp() {
                    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
                    if stamp.to_unix().0 > wall + 60 {
                        ledger.entries.clear();
                    }
                }
            }
            _ => {}
        }
    }

    fn extend(&self, store: &mut Store, renewal: &Renewal, now: Duration) -> Renewed {
        let ledger = store.names.entry(self.key(&renewal.lease.name)).or_default();
        let mut renewal = renewal.clone();
        match self.fault {
            Fault::RenewsTheDead | Fault::RevivesTheReleased => {
                let dead = |until: Until| match until {
                    Until::Expiry(at) => self.fault == Fault::RenewsTheDead && at <= now,
                    Until::Released(_) => self.fault == Fault::RevivesTheReleased,
                    Until::Forever => false,
                };
                for entry in ledger.entries.iter_mut().filter(|e| dead(e.until)) {
                    entry.until = Until::Expiry(now + Duration::from_micros(1));
                }
            }
            Fault::AgeIsSinceTheRenewal => {
                for entry in &mut ledger.entries {
                    entry.granted_at = now;
                }
            }
            Fault::RenewsTheRevoked => {
                for entry in &mut ledger.entries {
                    entry.standing = Standing::Held;
                }
            }
            Fault::RaisesDeadShares => {
                let shares = ledger.entries.iter_mut().filter(|e| !e.share.is_exclusive());
                for entry in shares.filter(|e| e.attempt == renewal.lease.attempt) {
                    entry.until = Until::Expiry(now + Duration::from_micros(1));
                }
            }
            Fault::RenewalAddsToTheOldExpiry => {
                let entry = ledger.entries.iter().find(|e| e.attempt == renewal.lease.attempt);
                if let (Some(entry), Ttl::Finite(ttl)) = (entry, renewal.ttl)
                    && let Until::Expiry(at) = entry.until
                {
                    let longer = ttl.get() + at.saturating_sub(now);
                    renewal.ttl = Ttl::new(longer).unwrap_or(renewal.ttl);
                }
            }
            Fault::RenewalIgnoresTheToken => {
                if let Some(entry) = ledger.entries.last() {
                    renewal.lease.token = entry.token;
                }
            }
            Fault::TokenMovesOnRenewal => {
                for entry in &mut ledger.entries {
                    entry.token = Token::new(entry.token.get() + 1);
                    renewal.lease.token = entry.token;
                }
            }
            Fault::ForgetsDeletedRows if ledger.token == 0 => {
                return Renewed::Lost(LossReason::Forced);
            }
            _ => {}
        }
        ledger.renew(&renewal, now)
    }
}

/// The time as this process believes it is.
fn off(wall: Duration) -> Duration {
    let by = std::env::var(CLOCK_IS_OFF).ok().and_then(|by| by.parse::<i64>().ok()).unwrap_or(0);
    let by_micros = Duration::from_micros(by.unsigned_abs());
    if by < 0 { wall - by_micros } else { wall + by_micros }
}
