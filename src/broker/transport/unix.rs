//! The file of a Unix socket: who may use it, and what is there before.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// A socket's file. It goes when this is dropped, unless another has taken its place.
#[derive(Debug)]
pub(in crate::broker) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    id: (u64, u64),
}

impl SocketFile {
    /// Binds `path` with the permissions `mode`. A file left over from a gateway that was killed is replaced; one that a live
    /// process answers, and what is no socket, is not. Call it within a tokio runtime.
    pub(super) fn bind(path: &Path, mode: u32) -> io::Result<(UnixListener, Self)> {
        remove_stale(path)?;
        let private = Private::beside(path)?;
        let (listener, new) = private.bind()?;
        fs::set_permissions(&new, Permissions::from_mode(mode))?;
        fs::rename(&new, path)?;
        let id = id_of(path)?;
        Ok((listener, Self { path: path.to_owned(), id }))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // A file that stays is harmless: the next start replaces it.
        if id_of(&self.path).is_ok_and(|id| id == self.id) {
            drop(fs::remove_file(&self.path));
        }
    }
}

/// A folder that only we may enter. The system gives a new socket the permissions of the umask: there it is bound, given its own, and
/// moved out, and nobody can connect in between. It goes when this is dropped.
#[derive(Debug)]
struct Private(PathBuf);

impl Private {
    /// What a gateway left that was killed meanwhile is taken away; what else is there under that name is an error.
    fn beside(path: &Path) -> io::Result<Self> {
        let mut name = path.as_os_str().to_owned();
        name.push(".t");
        let folder = Self(name.into());
        folder.remove();
        DirBuilder::new().mode(0o700).create(&folder.0)?;
        Ok(folder)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("s")
    }

    fn bind(&self) -> io::Result<(UnixListener, PathBuf)> {
        let new = self.socket();
        Ok((UnixListener::bind(&new)?, new))
    }

    /// What cannot be removed is found by the next one.
    fn remove(&self) {
        drop(fs::remove_file(self.socket()));
        drop(fs::remove_dir(&self.0));
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        self.remove();
    }
}

fn id_of(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is there already"));
        }
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process serves this socket")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_file_has_its_mode_and_goes_with_the_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mqtt.sock");
        for mode in [0o600, 0o660, 0o666] {
            let (listener, file) = SocketFile::bind(&path, mode).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
            drop((listener, file));
            assert!(!path.exists());
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn until_the_socket_has_its_permissions_nobody_else_gets_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mqtt.sock");
        // Left by one that was killed.
        fs::create_dir(folder.path().join("mqtt.sock.t")).unwrap();
        drop(std::os::unix::net::UnixListener::bind(folder.path().join("mqtt.sock.t/s")).unwrap());
        let private = Private::beside(&path).unwrap();
        let (listener, new) = private.bind().unwrap();
        let around = new.parent().unwrap();
        assert_ne!(around, folder.path());
        assert_eq!(fs::metadata(around).unwrap().permissions().mode() & 0o777, 0o700);
        drop((listener, private));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        fs::create_dir(folder.path().join("mqtt.sock.t")).unwrap();
        fs::write(folder.path().join("mqtt.sock.t/other"), "precious").unwrap();
        assert_eq!(SocketFile::bind(&path, 0o660).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    #[tokio::test]
    async fn a_socket_left_by_a_killed_gateway_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mqtt.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let _live = SocketFile::bind(&path, 0o660).unwrap();
        assert_eq!(SocketFile::bind(&path, 0o660).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        std::os::unix::net::UnixStream::connect(&path).unwrap();
    }

    #[tokio::test]
    async fn what_is_no_socket_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mqtt.sock");
        fs::write(&path, "precious").unwrap();
        assert_eq!(SocketFile::bind(&path, 0o660).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn a_file_that_took_its_place_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mqtt.sock");
        let bound = SocketFile::bind(&path, 0o660).unwrap();
        fs::remove_file(&path).unwrap();
        let _other = SocketFile::bind(&path, 0o660).unwrap();
        drop(bound);
        assert!(path.exists());
    }
}
