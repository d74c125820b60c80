//! For tests of the client: what it is told, and a server that writes what it is told, right or wrong.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use crossbeam_channel::{Receiver, unbounded};
use framemill::{Client, ClientEvent, CloseReason, Error, Message};

use super::{Addr, WAIT, close_code};

pub fn client(addr: impl Into<Addr>) -> Client {
    let addr = addr.into().tcp();
    Client::new(format!("ws://{addr}/")).unwrap()
}

/// The next message; nothing else but `Writable` may come before it.
pub fn message(events: &Receiver<ClientEvent>) -> Message {
    loop {
        match events.recv_timeout(WAIT).expect("an event") {
            ClientEvent::Message(message) => return message,
            ClientEvent::Writable => {}
            other => panic!("{other:?} instead of a message"),
        }
    }
}

/// How the connection ends, after whatever messages.
pub fn end(events: &Receiver<ClientEvent>) -> CloseReason {
    loop {
        match events.recv_timeout(WAIT).expect("an event") {
            ClientEvent::Close(reason) => return reason,
            ClientEvent::Message(_) | ClientEvent::Writable => {}
            other => panic!("{other:?} instead of the end"),
        }
    }
}

/// Why there is no connection.
pub fn refusal(client: Client) -> Error {
    match client.connect() {
        Err(error) => error,
        Ok(_) => panic!("it was let in"),
    }
}

/// A server that does `act` with each connection, one after the other.
///
/// Nobody sees it panic: what `act` finds is sent to the test, which looks at it.
pub fn each_connection(mut act: impl FnMut(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            stream.set_read_timeout(Some(WAIT)).unwrap();
            stream.set_write_timeout(Some(WAIT)).unwrap();
            act(stream);
        }
    });
    addr
}

/// A server that answers each request with what `answer` makes of it, and gives the request and the
/// connection to the test.
pub fn answering(
    answer: impl Fn(&str) -> Vec<u8> + Send + 'static,
) -> (SocketAddr, Receiver<(String, Remote)>) {
    let (answered, remotes) = unbounded();
    let addr = each_connection(move |mut stream| {
        let request = head(&mut stream);
        // The client may have had enough before the end.
        let _ = stream.write_all(&answer(&request));
        let _ = answered.send((request, Remote(stream)));
    });
    (addr, remotes)
}

/// The same for one that opens the WebSocket with `more` headers, and sends `bytes` behind.
pub fn opening(more: &str, bytes: Vec<u8>) -> (SocketAddr, Receiver<(String, Remote)>) {
    let more = more.to_owned();
    answering(move |request| {
        let mut answer = switching(request, &more);
        answer.extend(&bytes);
        answer
    })
}

/// Reads a head, byte by byte, so that what follows stays.
pub fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) > 0 {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// A correct answer, with more headers.
pub fn switching(request: &str, more: &str) -> Vec<u8> {
    let key = request
        .lines()
        .find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "))
        .unwrap();
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\n{more}\r\n",
        tungstenite::handshake::derive_accept_key(key.as_bytes())
    )
    .into_bytes()
}

/// One frame as a server writes it; `first` is the first byte.
pub fn unmasked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        len @ 0..=125 => out.push(len as u8),
        len @ 126..=0xFFFF => {
            out.push(126);
            out.extend((len as u16).to_be_bytes());
        }
        len => {
            out.push(127);
            out.extend((len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
    out
}

/// The server's end of an open WebSocket.
pub struct Remote(pub TcpStream);

impl Remote {
    pub fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// `None` at the end of the stream, or of TCP without one.
    fn fill(&mut self, bytes: &mut [u8]) -> Option<()> {
        match self.0.read_exact(bytes) {
            Ok(()) => Some(()),
            Err(error) => match error.kind() {
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => None,
                _ => panic!("nothing came: {error}"),
            },
        }
    }

    /// The client's next frame, unmasked: first byte and payload. `None` at the end of the stream.
    pub fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut start = [0; 2];
        self.fill(&mut start)?;
        assert!(start[1] & 0x80 != 0, "a client must mask");
        let mut length = [0; 8];
        let len = match start[1] & 0x7F {
            126 => {
                self.fill(&mut length[6..])?;
                u64::from_be_bytes(length)
            }
            127 => {
                self.fill(&mut length)?;
                u64::from_be_bytes(length)
            }
            len => len.into(),
        };
        let mut key = [0; 4];
        self.fill(&mut key)?;
        let mut payload = vec![0; len as usize];
        self.fill(&mut payload)?;
        let keys = key.iter().cycle();
        payload.iter_mut().zip(keys).for_each(|(b, k)| *b ^= k);
        Some((start[0], payload))
    }

    /// The code of the close frame that comes next, after whatever else.
    pub fn close_code(&mut self) -> Option<u16> {
        close_code(|| self.frame())
    }
}
