//! Replacing a file as a whole, so that no reader finds it empty, or not at all.

use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// One path for all that lead to the same file, as far as can be told before the file exists.
pub(super) fn real(path: &Path) -> PathBuf {
    let Ok(path) = follow_links(path) else { return path.to_owned() };
    let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
    match (folder, path.file_name()) {
        (Some(folder), Some(name)) => folder.join(name),
        _ => path,
    }
}

/// Puts `text` in the place of the file's content. A file that is there keeps who may read it; a new
/// one can be read by whomever the process lets read its files.
pub(super) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let path = follow_links(path)?;
    let old = match fs::metadata(&path) {
        Ok(old) if old.is_file() => Some(old),
        // Such as /dev/null, which others need as it is.
        Ok(_) => return Err(io::Error::other("it is not a regular file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let folder = path.parent().ok_or(io::ErrorKind::InvalidFilename)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(".database-locks-status-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // Less what the umask takes away.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let mut new = builder.tempfile_in(folder)?;
    new.write_all(text.as_bytes())?;
    if let Some(old) = old {
        keep_access(new.as_file(), &old)?;
    }
    new.persist(&path)?;
    Ok(())
}

/// Lets the same people read a new file as the old one.
fn keep_access(new: &File, old: &Metadata) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
        // Only root may give a file away, and others to groups of their own: as far as we may.
        let _ = fchown(new, Some(old.uid()), Some(old.gid()))
            .or_else(|_| fchown(new, None, Some(old.gid())));
        new.set_permissions(fs::Permissions::from_mode(old.mode() & 0o777))
    }
    #[cfg(not(unix))]
    new.set_permissions(old.permissions())
}

/// Where symbolic links lead to, also if nothing is there yet: they are not to be replaced.
fn follow_links(path: &Path) -> io::Result<PathBuf> {
    const MOST: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MOST {
        match (fs::read_link(&path), path.parent()) {
            (Ok(target), Some(folder)) => path = folder.join(target),
            _ => return Ok(path),
        }
    }
    Err(io::Error::other("its symbolic links lead in a circle"))
}
