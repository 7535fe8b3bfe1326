//! The host: its boot and its clocks, and whether a file on it can serve.

use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use database_locks_core::clock::time_since_boot;
use database_locks_core::{Error, ErrorKind, Result};
use uuid::Uuid;

/// A moment on the clocks of the host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    /// Whole microseconds since boot, as they are stored. Leases live by it.
    pub(crate) since_boot: Duration,
    /// Microseconds since 1970. Tokens grow by it.
    pub(crate) wall_micros: u64,
}

/// One boot of one host.
#[derive(Clone)]
pub(crate) struct Host {
    /// Times of another boot say nothing on this one.
    pub(crate) boot: Uuid,
    clock: Arc<dyn Fn() -> Moment + Send + Sync>,
}

impl Host {
    pub(crate) fn new(boot: Uuid, clock: impl Fn() -> Moment + Send + Sync + 'static) -> Self {
        Self { boot, clock: Arc::new(clock) }
    }

    /// The boot that this process runs in.
    pub(crate) fn this() -> Result<Self> {
        let boot = boot_id().map_err(|error| {
            Error::new(
                ErrorKind::Unsupported,
                format!("the id of this boot cannot be read, so leases could outlive it: {error}"),
            )
            .with_source(error)
        })?;
        Ok(Self::new(boot, || {
            let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            Moment {
                since_boot: whole_micros(time_since_boot()),
                wall_micros: wall.map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(0)),
            }
        }))
    }

    pub(crate) fn now(&self) -> Moment {
        (self.clock)()
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("boot", &self.boot).finish_non_exhaustive()
    }
}

fn whole_micros(duration: Duration) -> Duration {
    Duration::new(duration.as_secs(), duration.subsec_micros() * 1_000)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn boot_id() -> io::Result<Uuid> {
    parse_boot_id(&fs::read_to_string("/proc/sys/kernel/random/boot_id")?)
}

/// `sysctl` is asked by command, because asking the kernel takes code that is unsafe.
#[cfg(any(target_os = "macos", target_os = "freebsd"))]
fn boot_id() -> io::Result<Uuid> {
    let key = if cfg!(target_os = "macos") { "kern.bootsessionuuid" } else { "kern.boot_id" };
    let output = std::process::Command::new("/usr/sbin/sysctl").args(["-n", key]).output()?;
    parse_boot_id(&String::from_utf8_lossy(&output.stdout))
}

/// Elsewhere there is no boot id, or no clock that processes share.
#[cfg(not(any(
    target_os = "linux",
    target_os = "android",
    target_os = "macos",
    target_os = "freebsd"
)))]
fn boot_id() -> io::Result<Uuid> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "this system has none; use a database server"))
}

#[cfg(any(target_os = "linux", target_os = "android", target_os = "macos", target_os = "freebsd"))]
fn parse_boot_id(text: &str) -> io::Result<Uuid> {
    Uuid::parse_str(text.trim()).map_err(io::Error::other)
}

/// Which file is at a path: what tells that somebody has put another one there.
pub(crate) type Identity = (u64, u64);

/// Answers which file is at `path`, or `None` where there is none that can be looked at.
pub(crate) fn identity(path: &Path) -> Option<Identity> {
    fs::metadata(path).ok().map(|metadata| identity_of(&metadata))
}

/// Checks that a database at `path` can serve all processes of this host, and answers the path
/// without symbolic links.
///
/// # Errors
///
/// [`ErrorKind::InvalidOption`] for a folder that does not exist and a path that is a folder,
/// [`ErrorKind::Permission`] for what cannot be written, and [`ErrorKind::Unsupported`] for file
/// systems and mounts on which SQLite's shared memory would not be shared.
pub(crate) fn check_place(path: &Path) -> Result<PathBuf> {
    let invalid = |why: String| Err(Error::new(ErrorKind::InvalidOption, why));
    let path = std::path::absolute(path).map_err(|error| {
        Error::new(ErrorKind::InvalidOption, format!("{path:?} is no path: {error}"))
    })?;
    let path = fs::canonicalize(&path).unwrap_or(path);
    let (Some(folder), Some(file_name)) = (path.parent(), path.file_name()) else {
        return invalid(format!("{path:?} is a folder: name a file in it"));
    };
    let folder = match fs::canonicalize(folder) {
        Ok(folder) => folder,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return invalid(format!(
                "the folder {folder:?} does not exist: create it, or name a file in another one"
            ));
        }
        Err(error) => {
            return Err(Error::new(
                ErrorKind::Permission,
                format!("the folder {folder:?} cannot be entered: {error}"),
            )
            .with_source(error));
        }
    };
    let path = folder.join(file_name);
    let file = fs::metadata(&path).ok();
    if file.as_ref().is_some_and(Metadata::is_dir) {
        return invalid(format!("{path:?} is a folder: name a file in it"));
    }
    check_file_system(&folder)?;
    check_sharing(&path, file.as_ref(), &folder)?;
    check_rights(&path, file.is_some(), &folder)?;
    Ok(path)
}

#[cfg(unix)]
fn identity_of(metadata: &Metadata) -> Identity {
    use std::os::unix::fs::MetadataExt;
    (metadata.dev(), metadata.ino())
}

#[cfg(not(unix))]
fn identity_of(_: &Metadata) -> Identity {
    (0, 0)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn check_file_system(folder: &Path) -> Result<()> {
    let Ok(file_system) = rustix::fs::statfs(folder) else {
        return Ok(());
    };
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "magic numbers have 32 bits, whatever the width of the field on this machine"
    )]
    let magic = file_system.f_type as u32;
    match shared_file_system(magic) {
        None => Ok(()),
        Some(name) => Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "{folder:?} is on {name}, where SQLite's shared memory does not hold between \
                 hosts: use a folder on a local disk, or a database server"
            ),
        )),
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn check_file_system(_: &Path) -> Result<()> {
    Ok(())
}

/// The name of a file system that other hosts may share, by the magic number that Linux' statfs
/// tells (`linux/magic.h`, and the sources of those that are not in it).
#[cfg(any(target_os = "linux", target_os = "android"))]
fn shared_file_system(magic: u32) -> Option<&'static str> {
    Some(match magic {
        0x0000_6969 => "NFS",
        0x0000_517b | 0xff53_4d42 | 0xfe53_4d42 => "SMB (CIFS)",
        0x0102_1997 => "9p",
        0x6573_5546 => "FUSE (such as sshfs or a host's shared folder)",
        0x5346_414f | 0x6b41_4653 => "AFS",
        0x00c3_6400 => "Ceph",
        0x0bd0_0bd0 => "Lustre",
        0x7375_7245 => "Coda",
        0x0116_1970 => "GFS2",
        0x7461_636f => "OCFS2",
        0x4750_4653 => "GPFS",
        0x1983_0326 => "BeeGFS",
        0xbacb_acbc => "a VMware shared folder",
        0x786f_4256 => "a VirtualBox shared folder",
        _ => return None,
    })
}

/// SQLite finds the write-ahead log by the file's path. Two paths of one file have two logs, and
/// so neither sees the other's leases.
#[cfg(unix)]
fn check_sharing(path: &Path, file: Option<&Metadata>, folder: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let unsupported =
        |why: &str| Err(Error::new(ErrorKind::Unsupported, format!("{path:?} {why}")));
    let Some(file) = file else { return Ok(()) };
    if file.nlink() > 1 {
        return unsupported("has several hard links: keep one of them, and use symbolic links");
    }
    if fs::metadata(folder).is_ok_and(|folder| folder.dev() != file.dev()) {
        return unsupported("is mounted by itself: mount the folder that it is in");
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_sharing(_: &Path, _: Option<&Metadata>, _: &Path) -> Result<()> {
    Ok(())
}

/// SQLite creates two more files beside the database, so the folder has to be writable too.
#[cfg(unix)]
fn check_rights(path: &Path, exists: bool, folder: &Path) -> Result<()> {
    use rustix::fs::{Access, access};
    let refused = |what: &Path, advice: &str, error: rustix::io::Errno| {
        Error::new(ErrorKind::Permission, format!("{what:?} cannot be written ({error}): {advice}"))
            .with_source(error)
    };
    access(folder, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| {
        let advice = "SQLite keeps `-wal` and `-shm` files beside the database; make the folder \
                      writable for this user, or name a file in another one";
        refused(folder, advice, error)
    })?;
    if exists {
        access(path, Access::READ_OK | Access::WRITE_OK).map_err(|error| {
            refused(path, "give this user read and write access to the file", error)
        })?;
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_rights(_: &Path, _: bool, _: &Path) -> Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_id_stays_and_the_clock_counts_whole_microseconds() {
        let (a, b) = (Host::this().unwrap(), Host::this().unwrap());
        assert_eq!(a.boot, b.boot);
        assert!(!a.boot.is_nil());
        let (first, second) = (a.now(), b.now());
        assert!(second.since_boot >= first.since_boot);
        assert_eq!(first.since_boot.subsec_nanos() % 1_000, 0);
        // 2020-01-01; a token of an earlier year would mean that the unit is wrong.
        assert!(first.wall_micros > 1_577_836_800_000_000);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn file_systems_that_hosts_share_are_known_by_their_magic_numbers() {
        for (magic, word) in [
            (0x6969, "NFS"),
            (0xff53_4d42, "SMB"),
            (0xfe53_4d42, "SMB"),
            (0x517b, "SMB"),
            (0x0102_1997, "9p"),
            (0x6573_5546, "FUSE"),
            (0x00c3_6400, "Ceph"),
        ] {
            assert!(shared_file_system(magic).unwrap().contains(word), "{magic:#x}");
        }
        // ext4, XFS, Btrfs, tmpfs, overlayfs, ZFS, F2FS
        for magic in
            [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630, 0x2fc1_2fc1, 0xf2f5_2010]
        {
            assert_eq!(shared_file_system(magic), None, "{magic:#x}");
        }
    }
}
