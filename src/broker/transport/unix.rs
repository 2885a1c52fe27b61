//! The file of a Unix socket: who may use it, and what is there before.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
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
        // Bound under another name, given its permissions, then moved: nobody can connect in between.
        let new = new_name(path);
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&new)?;
        let placed = fs::set_permissions(&new, Permissions::from_mode(mode)).and_then(|()| fs::rename(&new, path));
        if let Err(error) = placed {
            drop(fs::remove_file(&new));
            return Err(error);
        }
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

fn new_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
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
