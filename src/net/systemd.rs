//! systemd: sockets that it hands over, and telling it our state. On other systems, and when started by
//! hand, there are no sockets, and nothing is told.

use std::io;
use std::os::unix::net::UnixDatagram;

#[cfg(feature = "systemd")]
use super::Bound;
#[cfg(feature = "systemd")]
use super::listen::Listen;
#[cfg(feature = "systemd")]
use crate::error::{Error, Result};

/// All listening sockets that systemd has handed over (socket activation: `LISTEN_FDS`, `LISTEN_PID`),
/// in the order of the `.socket` unit; TCP and Unix stream sockets.
///
/// They can be taken once: the variables are removed, so that no child process takes the sockets too. Bind them
/// before other threads run, as the environment must not be changed while others read it.
///
/// ```no_run
/// use framemill::{Server, SystemdSockets};
///
/// // Started by hand, it opens its own.
/// let server = Server::bind(SystemdSockets).or_else(|_| Server::bind("127.0.0.1:9001"))?;
/// # drop(server);
/// # framemill::Result::Ok(())
/// ```
#[cfg(feature = "systemd")]
#[derive(Clone, Copy, Debug)]
pub struct SystemdSockets;

/// [`Error::Config`] if there are none, or one is not a listening stream socket.
#[cfg(feature = "systemd")]
impl Listen for SystemdSockets {
    fn listen(self) -> Result<Vec<Bound>> {
        let mut handed = listenfd::ListenFd::from_env();
        let mut bound = Vec::new();
        for n in 0..handed.len() {
            let wrong = || {
                let why = format!("socket {n} of systemd is not a listening stream socket");
                Error::Config(why)
            };
            let listening = if let Ok(Some(tcp)) = handed.take_tcp_listener(n) {
                tcp.listen()
            } else if let Ok(Some(unix)) = handed.take_unix_listener(n) {
                unix.listen()
            } else {
                return Err(wrong());
            };
            bound.extend(listening.map_err(|error| match error {
                Error::Config(_) => wrong(),
                other => other,
            })?);
        }
        match bound.is_empty() {
            true => Err(Error::Config("systemd has handed over no socket".into())),
            false => Ok(bound),
        }
    }
}

/// Tells the service manager something, if there is one (sd_notify(3)).
pub(crate) fn notify(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(socket.as_encoded_bytes(), state) {
        log::warn!("{state}: the service manager can't be told: {error}");
    }
}

fn send(socket: &[u8], state: &str) -> io::Result<()> {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    let from = UnixDatagram::unbound()?;
    let sent = match socket {
        #[cfg(target_os = "linux")]
        [b'@', name @ ..] => {
            use std::os::linux::net::SocketAddrExt;
            let addr = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            from.send_to_addr(state.as_bytes(), &addr)?
        }
        [b'/', ..] => from.send_to(state.as_bytes(), OsStr::from_bytes(socket))?,
        _ => return Err(io::ErrorKind::Unsupported.into()),
    };
    match sent == state.len() {
        true => Ok(()),
        false => Err(io::ErrorKind::WriteZero.into()),
    }
}
