//! The status file, as a supervisor sees it: what it shows on every way into and out of a lock, and
//! what becomes of the file itself.

#![cfg(unix)]

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use database_locks::{
    Capabilities, Claim, Error, ErrorKind, LeaseInfo, ListQuery, LockBackend, Locks, LocksBuilder,
    LossReason, Release, Released, Renewal, Renewed, Result, StatusFile, Verdict, Wakeups,
    async_trait, memory::MemoryBackend,
};
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// A store, and a folder with a status file.
struct Place {
    folder: TempDir,
    store: MemoryBackend,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder"), store: MemoryBackend::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Locks with a status file.
    fn locks(&self) -> Locks {
        self.locks_at(self.path("status"))
    }

    fn locks_at(&self, path: impl Into<PathBuf>) -> Locks {
        self.build(at(path))
    }

    /// Locks of somebody else.
    fn others(&self) -> Locks {
        self.build(Locks::builder())
    }

    fn build(&self, options: LocksBuilder) -> Locks {
        options.build(Arc::new(self.store.clone())).expect("locks")
    }

    async fn shows(&self, digit: &str) {
        shows(&self.path("status"), digit).await;
    }
}

/// Options with a status file.
fn at(path: impl Into<PathBuf>) -> LocksBuilder {
    Locks::builder().observer(StatusFile::open(path).expect("a file"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Waits with a bound that only a broken program, or a machine that stands still, exceeds.
async fn shows(path: &Path, digit: &str) {
    let waited = timeout(Duration::from_secs(30), async {
        while read(path) != digit {
            sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(waited.await.is_ok(), "shows {:?} and not {digit:?}", read(path));
}

/// All that is logged in this process.
fn log() -> String {
    static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());
    static LISTEN: Once = Once::new();
    struct Writer;
    impl io::Write for Writer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            LOG.lock().expect("nobody panics").extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    LISTEN.call_once(|| {
        tracing_subscriber::fmt().with_writer(|| Writer).with_ansi(false).init();
    });
    String::from_utf8_lossy(&LOG.lock().expect("nobody panics")).into_owned()
}

/// A store whose claims wait for a permit each.
#[derive(Debug)]
struct Gated {
    store: MemoryBackend,
    gate: Arc<Semaphore>,
}

#[async_trait]
impl LockBackend for Gated {
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }
    async fn acquire(&self, claims: &[Claim]) -> Result<Vec<Verdict>> {
        self.gate.acquire().await.expect("open").forget();
        self.store.acquire(claims).await
    }
    async fn renew(&self, renewals: &[Renewal]) -> Result<Vec<Renewed>> {
        self.store.renew(renewals).await
    }
    async fn release(&self, releases: &[Release]) -> Result<Vec<Released>> {
        self.store.release(releases).await
    }
    async fn list(&self, query: &ListQuery) -> Result<Vec<LeaseInfo>> {
        self.store.list(query).await
    }
    async fn clean_up(&self, idle: Duration) -> Result<u64> {
        self.store.clean_up(idle).await
    }
    async fn wakeups(&self) -> Result<Option<Wakeups>> {
        self.store.wakeups().await
    }
}

#[tokio::test]
async fn it_shows_idle_waiting_held_and_idle_again() {
    let place = Place::new();
    let locks = place.locks();
    place.shows("0").await;
    let others = place.others().lock("x").acquire().await.unwrap();
    let acquiring = tokio::spawn(locks.lock("x").acquire());
    place.shows("1").await;
    others.release().await.unwrap();
    let guard = acquiring.await.unwrap().unwrap();
    place.shows("2").await;
    guard.release().await.unwrap();
    place.shows("0").await;
}

#[tokio::test]
async fn every_wait_that_ends_without_a_lock_is_over() {
    let place = Place::new();
    let locks = place.locks();
    let _held = place.others().lock("x").acquire().await.unwrap();

    let timed = tokio::spawn(locks.lock("x").timeout(Duration::from_secs(2)).acquire());
    place.shows("1").await;
    assert_eq!(timed.await.unwrap().unwrap_err().kind(), ErrorKind::Timeout);
    place.shows("0").await;

    let cancelled = tokio::spawn(locks.lock("x").acquire());
    place.shows("1").await;
    cancelled.abort();
    place.shows("0").await;

    let _of_three = place.others().semaphore("y", 3).permits(3).acquire().await.unwrap();
    let head = tokio::spawn(locks.semaphore("y", 3).permits(1).acquire());
    place.shows("1").await;
    let refused = locks.semaphore("y", 4).permits(1).try_acquire().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::CapacityMismatch);
    head.abort();
    place.shows("0").await;

    let shut_down = tokio::spawn(locks.lock("x").acquire());
    place.shows("1").await;
    locks.shutdown().await;
    assert_eq!(read(&place.path("status")), "0");
    assert!(shut_down.await.unwrap().is_err());
    assert!(locks.lock("x").acquire().await.is_err());
    place.shows("0").await;
}

#[tokio::test]
async fn whoever_asks_once_waits_for_the_answer() {
    let place = Place::new();
    let gate = Arc::new(Semaphore::new(0));
    let backend = Gated { store: place.store.clone(), gate: Arc::clone(&gate) };
    let options = at(place.path("status"));
    let locks = options.build(Arc::new(backend)).unwrap();
    let _held = place.others().lock("x").acquire().await.unwrap();
    let asking = tokio::spawn(locks.lock("x").try_acquire());
    place.shows("1").await;
    gate.add_permits(1);
    assert!(asking.await.unwrap().unwrap().is_none());
    place.shows("0").await;

    let cancelled = tokio::spawn(locks.lock("free").acquire());
    place.shows("1").await;
    cancelled.abort();
    place.shows("0").await;
}

#[tokio::test]
async fn every_end_of_a_hold_is_seen() {
    let place = Place::new();
    let locks = place.locks();
    let dropped = locks.lock("x").acquire().await.unwrap();
    place.shows("2").await;
    drop(dropped);
    place.shows("0").await;

    let work = locks.lock("x").run(async |_| {
        place.shows("2").await;
        Err::<(), _>("the work's error")
    });
    work.await.unwrap().unwrap_err();
    place.shows("0").await;

    let panicking = tokio::spawn(locks.lock("x").run(async |_| panic!("the work's panic")));
    assert!(panicking.await.unwrap_err().is_panic());
    place.shows("0").await;

    let short = locks.lock("x").ttl(Duration::from_millis(300));
    let expiring = short.auto_renew(false).acquire().await.unwrap();
    assert_eq!(expiring.lost().await, LossReason::Expired);
    place.shows("0").await;
    drop(expiring);

    // Renewed often enough to learn of it soon.
    let forced = locks.lock("x").ttl(Duration::from_secs(3)).acquire().await.unwrap();
    place.shows("2").await;
    assert!(place.others().force_release(forced.lease().id()).await.unwrap());
    assert_eq!(forced.lost().await, LossReason::Forced);
    place.shows("0").await;
    drop(forced);

    let shut_down = locks.lock("x").acquire().await.unwrap();
    place.shows("2").await;
    locks.shutdown().await;
    assert_eq!(read(&place.path("status")), "0");
    assert_eq!(shut_down.lost().await, LossReason::Shutdown);
}

#[tokio::test]
async fn guards_that_share_a_lease_count_until_the_last() {
    let place = Place::new();
    let locks = place.locks();
    let outer = locks.lock("x").owner("me").acquire().await.unwrap();
    let inner = locks.lock("x").owner("me").acquire().await.unwrap();
    assert_eq!(outer.token(), inner.token());
    place.shows("2").await;
    inner.release().await.unwrap();
    let waiting = place.others().lock("y").acquire().await.unwrap();
    let waiter = tokio::spawn(locks.lock("y").acquire());
    drop(waiting);
    drop(waiter.await.unwrap().unwrap());
    sleep(Duration::from_millis(50)).await;
    assert_eq!(read(&place.path("status")), "2");
    outer.release().await.unwrap();
    place.shows("0").await;
}

#[test]
fn an_engine_whose_runtime_ends_leaves_nothing_behind() {
    let place = Place::new();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = runtime();
    let (guard, locks) = first.block_on(async {
        let _others = place.others().lock("y").acquire().await.unwrap();
        let locks = place.build(at(place.path("status")).on_current_runtime());
        let guard = locks.lock("x").acquire().await.unwrap();
        tokio::spawn(locks.lock("y").acquire());
        place.shows("2").await;
        (guard, locks)
    });
    drop(first);
    runtime().block_on(place.shows("0"));
    assert_eq!(guard.check().unwrap_err().loss(), Some(LossReason::Shutdown));
    drop(locks);
}

#[tokio::test]
async fn the_furthest_of_all_locks_of_the_process_is_shown() {
    let place = Place::new();
    fs::create_dir(place.path("real")).unwrap();
    symlink(place.path("real"), place.path("linked")).unwrap();
    symlink("real/status", place.path("link")).unwrap();
    let status = place.path("real/status");
    let spellings = ["real/status", "real/../real/./status", "linked/status", "link"];
    let all: Vec<Locks> = spellings.iter().map(|path| place.locks_at(place.path(path))).collect();
    for (number, holder) in all.iter().enumerate() {
        let guard = holder.lock("x").acquire().await.unwrap();
        shows(&status, "2").await;
        let waiter = tokio::spawn(all[(number + 1) % all.len()].lock("x").acquire());
        sleep(Duration::from_millis(50)).await;
        assert_eq!(read(&status), "2", "{number}");
        guard.release().await.unwrap();
        drop(waiter.await.unwrap().unwrap());
        shows(&status, "0").await;
    }
    let [first, second, ..] = &all[..] else { unreachable!() };
    let _held = second.lock("x").acquire().await.unwrap();
    first.shutdown().await;
    assert_eq!(read(&status), "2", "only one of them was shut down");
}

#[tokio::test]
async fn shutdown_waits_for_the_file() {
    for _ in 0..20 {
        let place = Place::new();
        let locks = place.locks();
        let _guard = locks.lock("x").acquire().await.unwrap();
        place.shows("2").await;
        locks.shutdown().await;
        assert_eq!(read(&place.path("status")), "0");
    }
}

#[tokio::test]
async fn what_shutdown_has_written_is_the_last_word() {
    let place = Place::new();
    let locks = place.locks();
    locks.shutdown().await;
    fs::remove_file(place.path("status")).unwrap();
    assert!(locks.lock("x").acquire().await.is_err());
    assert!(locks.lock("x").try_acquire().await.is_err());
    // Much longer than a change takes to be written.
    sleep(Duration::from_millis(100)).await;
    assert!(!place.path("status").exists(), "a refused request is no wait");
}

#[tokio::test]
async fn what_a_crash_left_behind_is_overwritten_at_the_start() {
    let place = Place::new();
    fs::write(place.path("status"), "2 and more\n").unwrap();
    let _locks = place.locks();
    place.shows("0").await;

    for _ in 0..20 {
        // Right after a write, so that nothing but waiting for the next one can help.
        let _others = place.locks();
        place.shows("0").await;
        fs::write(place.path("status"), "2").unwrap();
        let away = async { Err(Error::new(ErrorKind::Unavailable, "the database is away")) };
        let opened = at(place.path("status")).open(away).await;
        assert_eq!(opened.unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(read(&place.path("status")), "0");
    }
}

#[tokio::test]
async fn it_behaves_as_if_locks_worked_where_they_are_switched_off() {
    let place = Place::new();
    let locks = place.build(at(place.path("status")).disabled(true));
    place.shows("0").await;
    let (one, other) = tokio::join!(locks.lock("x").acquire(), locks.lock("x").acquire());
    place.shows("2").await;
    drop(one.unwrap());
    sleep(Duration::from_millis(50)).await;
    assert_eq!(read(&place.path("status")), "2");
    other.unwrap().release().await.unwrap();
    place.shows("0").await;
}

#[tokio::test]
async fn a_reader_finds_one_digit_at_any_time() {
    let place = Place::new();
    let locks = place.locks();
    place.shows("0").await;
    let done = Arc::new(AtomicBool::new(false));
    let (path, stop) = (place.path("status"), Arc::clone(&done));
    let reader = std::thread::spawn(move || {
        let (mut reads, mut idle, mut held) = (0, 0, 0);
        while !stop.load(Ordering::Relaxed) {
            match fs::read_to_string(&path).expect("it is there").as_str() {
                "0" => idle += 1,
                "2" => held += 1,
                other => assert_eq!(other, "1"),
            }
            reads += 1;
        }
        (reads, idle, held)
    });
    for _ in 0..40 {
        let guard = locks.lock("x").acquire().await.unwrap();
        place.shows("2").await;
        guard.release().await.unwrap();
        place.shows("0").await;
    }
    done.store(true, Ordering::Relaxed);
    let (reads, idle, held) = reader.join().expect("only digits were read");
    assert!(reads > 100 && idle > 0 && held > 0, "{reads} {idle} {held}");
    let left: Vec<_> = fs::read_dir(place.folder.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "no temporary file is left: {left:?}");
}

#[tokio::test]
async fn a_folder_that_goes_and_comes_again_breaks_nothing() {
    log();
    let place = Place::new();
    let (folder, status) = (place.path("run"), place.path("run/status"));
    let locks = place.locks_at(&status);
    let warnings =
        || log().lines().filter(|line| line.contains(&*status.to_string_lossy())).count();
    for _ in 0..3 {
        locks.lock("x").acquire().await.unwrap().release().await.unwrap();
        // Lets each state be tried.
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(warnings(), 1, "{}", log());
    fs::create_dir(&folder).unwrap();
    let guard = locks.lock("x").acquire().await.unwrap();
    shows(&status, "2").await;
    fs::remove_dir_all(&folder).unwrap();
    guard.release().await.unwrap();
    timeout(Duration::from_secs(30), async {
        while warnings() < 2 {
            sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .expect("a new failure is told");
    fs::create_dir(&folder).unwrap();
    let _guard = locks.lock("x").acquire().await.unwrap();
    shows(&status, "2").await;
}

#[tokio::test]
async fn links_are_followed_and_stay() {
    let place = Place::new();
    fs::create_dir(place.path("run")).unwrap();
    symlink("second", place.path("first")).unwrap();
    symlink(place.path("run/status"), place.path("second")).unwrap();
    let locks = place.locks_at(place.path("first"));
    for _ in 0..2 {
        shows(&place.path("run/status"), "0").await;
        let guard = locks.lock("x").acquire().await.unwrap();
        shows(&place.path("run/status"), "2").await;
        guard.release().await.unwrap();
    }
    shows(&place.path("first"), "0").await;
    for link in ["first", "second"] {
        assert!(fs::symlink_metadata(place.path(link)).unwrap().is_symlink(), "{link}");
    }
}

#[tokio::test]
async fn what_is_no_plain_file_stays_what_it_is() {
    log();
    let place = Place::new();
    let path = place.path("status");
    let _socket = UnixListener::bind(&path).unwrap();
    let locks = place.locks();
    locks.lock("x").acquire().await.unwrap().release().await.unwrap();
    locks.shutdown().await;
    assert!(!fs::symlink_metadata(&path).unwrap().is_file());
    assert!(log().contains("not a regular file"), "{}", log());

    symlink("circle", place.path("circle")).unwrap();
    let locks = place.locks_at(place.path("circle"));
    locks.lock("x").acquire().await.unwrap().release().await.unwrap();
    locks.shutdown().await;
    assert!(fs::symlink_metadata(place.path("circle")).unwrap().is_symlink());
}

#[tokio::test]
async fn a_new_file_has_the_permissions_of_any_new_file() {
    let place = Place::new();
    let _locks = place.locks();
    place.shows("0").await;
    File::create(place.path("any")).unwrap();
    let mode = |file: &str| fs::metadata(place.path(file)).unwrap().permissions().mode();
    assert_eq!(mode("status"), mode("any"));
}

#[tokio::test]
async fn a_file_that_is_there_keeps_who_may_read_it() {
    let place = Place::new();
    let path = place.path("status");
    for mode in [0o604, 0o666, 0o640] {
        fs::write(&path, "?").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let group = another_group();
        std::os::unix::fs::chown(&path, None, Some(group)).unwrap();
        let locks = place.locks();
        place.shows("0").await;
        let _guard = locks.lock("x").acquire().await.unwrap();
        place.shows("2").await;
        let there = fs::metadata(&path).unwrap();
        assert_eq!((there.mode() & 0o7777, there.gid()), (mode, group));
        locks.shutdown().await;
    }
}

/// A group that this user may give files to, if possible not the one that they have anyway.
fn another_group() -> u32 {
    let ask = |option: &str| {
        let output = Command::new("id").arg(option).output().expect("id runs");
        String::from_utf8(output.stdout).expect("numbers")
    };
    if ask("-u").trim() == "0" {
        return 4_242;
    }
    let own = ask("-g");
    let all = ask("-G");
    let other = all.split_whitespace().find(|group| *group != own.trim());
    other.unwrap_or(own.trim()).parse().expect("a number")
}

#[tokio::test]
async fn a_path_that_is_none_is_refused() {
    let error = StatusFile::open("").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
    assert!(error.to_string().contains("status_file"), "{error}");
}
