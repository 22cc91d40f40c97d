//! The token that HTTP clients need: a random secret for each start, in a file that only its user can read.

use rustix::{
    fs::{FlockOperation, flock},
    process::geteuid,
};
use std::{
    fmt, fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};
use subtle::ConstantTimeEq;

/// 256 bits can't be guessed.
const TOKEN_BYTES: usize = 32;

/// 256 random bits, as hexadecimal text.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    pub fn new() -> io::Result<Self> {
        let mut bytes = [0; TOKEN_BYTES];
        getrandom::fill(&mut bytes).map_err(io::Error::other)?;
        Ok(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// The secret as text, for the token file and the printed address.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Compares in constant time.
    pub fn matches(&self, offered: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(offered).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    #[error("{path}: {cause}", path = path.display())]
    Io { path: PathBuf, cause: io::Error },
    #[error("{path} is accessible to other users", path = path.display())]
    NotPrivate { path: PathBuf },
}

/// The token in a file that only its owner can read; removed when dropped.
///
/// The file is locked while its server runs, so that the next server can recognize and remove the file of a killed one.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    _locked: fs::File,
}

impl TokenFile {
    /// Writes the file for the server on `port`, in the user's runtime directory.
    ///
    /// # Errors
    ///
    /// The file can't be written, or other users have access to its directory.
    pub fn create(token: &Token, port: u16) -> Result<Self, TokenFileError> {
        Self::create_in(&directory(), token, port)
    }

    pub fn create_in(directory: &Path, token: &Token, port: u16) -> Result<Self, TokenFileError> {
        let failed = |cause| TokenFileError::Io { path: directory.to_owned(), cause };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let found = fs::symlink_metadata(directory).map_err(failed)?;
        // In a shared directory such as /tmp, another user may have created it.
        if !found.is_dir() || found.uid() != geteuid().as_raw() || found.mode() & 0o077 != 0 {
            return Err(TokenFileError::NotPrivate { path: directory.to_owned() });
        }
        // One server at a time, or it could take another's new file, which is not locked yet, for a stale one.
        let directory_lock = fs::File::open(directory).map_err(failed)?;
        flock(&directory_lock, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        remove_stale(directory).map_err(failed)?;
        let path = directory.join(format!("{port}.token"));
        let failed = |cause| TokenFileError::Io { path: path.clone(), cause };
        // A server that is still shutting down may have left its file, but no longer has the port.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            Ok(()) | Err(_) => {}
        }
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
        // From here on, an error (such as a full disk) drops this and removes the file.
        let token_file = Self { path: path.clone(), _locked: file };
        let mut file = &token_file._locked;
        flock(file, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        writeln!(file, "{}", token.reveal()).and_then(|()| file.sync_all()).map_err(failed)?;
        Ok(token_file)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TokenFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes token files without a lock: their servers were killed.
fn remove_stale(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let is_stale = path.extension().is_some_and(|extension| extension == "token")
            && fs::File::open(&path).is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok());
        if is_stale {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// `$XDG_RUNTIME_DIR/souffleur`, which is removed at logout; else `~/.cache/souffleur/run`; else in the temporary directory.
fn directory() -> PathBuf {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute() && path.is_dir());
    if let Some(run) = absolute("XDG_RUNTIME_DIR") {
        return run.join("souffleur");
    }
    if let Some(home) = absolute("HOME") {
        return home.join(".cache/souffleur/run");
    }
    std::env::temp_dir().join(format!("souffleur-{}", geteuid().as_raw()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_long_random_and_not_in_debug_output() {
        let [first, second] = [(); 2].map(|()| Token::new().unwrap());
        assert_eq!(first.reveal().len(), 64);
        assert!(!first.matches(second.reveal().as_bytes()));
        assert!(first.matches(first.reveal().as_bytes()));
        assert!(!first.matches(&first.reveal().as_bytes()[..63]) && !first.matches(b""));
        assert!(!format!("{first:?}").contains(first.reveal()));
    }

    #[test]
    fn the_file_is_private_and_removed_with_the_server() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("run");
        let token = Token::new().unwrap();
        let file = TokenFile::create_in(&directory, &token, 7).unwrap();
        assert_eq!(fs::metadata(file.path()).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::read_to_string(file.path()).unwrap().trim(), token.reveal());
        let again = TokenFile::create_in(&directory, &token, 7).unwrap();
        let path = again.path().to_owned();
        drop(again);
        assert!(!path.exists());
    }

    #[test]
    fn only_token_files_of_killed_servers_are_removed() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("run");
        let token = Token::new().unwrap();
        let living = TokenFile::create_in(&directory, &token, 7).unwrap();
        for name in ["8.token", "notes.txt"] {
            fs::write(directory.join(name), "left").unwrap();
        }
        let started = TokenFile::create_in(&directory, &token, 9).unwrap();
        assert!(living.path().exists() && started.path().exists() && directory.join("notes.txt").exists());
        assert!(!directory.join("8.token").exists());
    }

    #[test]
    fn a_directory_with_access_for_others_is_refused() {
        let shared = tempfile::tempdir().unwrap();
        let directory = shared.path().join("run");
        fs::DirBuilder::new().mode(0o755).create(&directory).unwrap();
        let refused = TokenFile::create_in(&directory, &Token::new().unwrap(), 7).unwrap_err();
        assert!(matches!(refused, TokenFileError::NotPrivate { .. }), "{refused}");
    }
}
