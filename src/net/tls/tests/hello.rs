//! Handshakes that don't come about.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

use mio::{Events, Poll, Token};
use native_tls::{Protocol, TlsConnector};

use super::super::{TlsError, TlsStream};
use super::rig::{Rig, tcp_pair, tls};
use crate::net::Stream;

/// What a server makes of a client that writes these, one after the other, and then no more.
fn server_says(parts: &[&[u8]]) -> (io::Error, TcpStream) {
    let (mut client, server) = tcp_pair();
    server.set_nonblocking(true).unwrap();
    let stream = Stream::Tcp(mio::net::TcpStream::from_std(server));
    let mut poll = Poll::new().unwrap();
    let mut server = TlsStream::server(stream, &tls());
    server.register(poll.registry(), Token(0)).unwrap();
    let mut events = Events::with_capacity(8);
    let mut parts = parts.iter();
    for _ in 0..1000 {
        match parts.next() {
            Some(part) => client.write_all(part).unwrap(),
            None => client.shutdown(Shutdown::Write).unwrap_or_default(),
        }
        poll.poll(&mut events, Some(std::time::Duration::from_secs(10)))
            .unwrap();
        assert!(!events.is_empty(), "no event will come any more");
        for event in &events {
            if event.is_readable() || event.is_read_closed() {
                server.socket_readable(event.is_read_closed());
            }
        }
        match server.handshake() {
            Ok(done) => assert!(!done),
            Err(error) => {
                let again = server.handshake();
                assert!(again.is_err(), "{again:?}");
                return (error, client);
            }
        }
    }
    panic!("no verdict");
}

#[test]
fn plain_http_is_recognised() {
    for request in [
        "GET / HTTP/1.1\r\n\r\n",
        "POST /x HTTP/1.1\r\n\r\n",
        "OPTIONS * ",
    ] {
        let (error, _) = server_says(&[request.as_bytes()]);
        assert!(
            matches!(TlsError::of(&error), Some(TlsError::PlainHttp)),
            "{request}: {error}"
        );
    }
    let (error, _) = server_says(&[b"G", b"E", b"T", b" "]);
    assert!(matches!(TlsError::of(&error), Some(TlsError::PlainHttp)));
}

#[test]
fn garbage_is_refused_without_openssl() {
    for garbage in [
        &b"\0"[..],
        b"SSH-2.0-OpenSSH\r\n",
        b"GETAWAY",
        b"\x80\x2e\x01",
        b"PUTT",
    ] {
        let (error, _) = server_says(&[garbage]);
        assert!(
            matches!(TlsError::of(&error), Some(TlsError::NotTls)),
            "{garbage:?}: {error}"
        );
    }
}

#[test]
fn garbage_in_a_record_is_refused() {
    let (error, _) = server_says(&[b"\x16\x03\x01\x00\x05hello"]);
    let of = TlsError::of(&error);
    assert!(matches!(of, Some(TlsError::Handshake(_))), "{error}");
    // Of no version that there is: the rest says nothing, least of all a length.
    for garbage in [&b"\x16\xff"[..], b"\x16\x16\x16\x16\x16"] {
        let (error, _) = server_says(&[garbage]);
        let of = TlsError::of(&error);
        assert!(matches!(of, Some(TlsError::NotTls)), "{error}");
    }
}

#[test]
fn a_client_that_leaves_is_an_end() {
    for start in [&b""[..], b"G", b"PU"] {
        let (error, _) = server_says(&[start]);
        let end = error.kind() == io::ErrorKind::UnexpectedEof;
        let not_tls = matches!(TlsError::of(&error), Some(TlsError::NotTls));
        assert!(end || not_tls, "{start:?}: {error}");
    }
    let (error, _) = server_says(&[b"\x16\x03\x01"]);
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

/// A ClientHello as clients of this version send it.
fn client_hello(version: [u8; 2]) -> Vec<u8> {
    let ciphers = [0xc0, 0x09, 0xc0, 0x0a, 0xc0, 0x13, 0xc0, 0x14, 0x00, 0x2f];
    let mut body = version.to_vec();
    body.extend([7; 32]);
    body.extend([0, 0, ciphers.len() as u8]);
    body.extend(ciphers);
    body.extend([1, 0]);
    let mut hello = vec![
        0x16,
        3,
        1,
        0,
        body.len() as u8 + 4,
        1,
        0,
        0,
        body.len() as u8,
    ];
    hello.extend(body);
    hello
}

#[test]
fn tls_1_1_is_refused_and_told_so() {
    for version in [[3, 1], [3, 2]] {
        let (error, mut client) = server_says(&[&client_hello(version)]);
        assert!(
            matches!(TlsError::of(&error), Some(TlsError::Handshake(_))),
            "{error}"
        );
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        // RFC 8446 §6: alert(21), two bytes: fatal(2), protocol_version(70).
        assert_eq!((answer[0], &answer[3..]), (21, &[0, 2, 2, 70][..]));
    }
}

#[test]
fn a_client_refuses_a_certificate_that_it_does_not_know() {
    let other = include_bytes!("../../../../tests/certs/rsa.pem");
    let mut rig = Rig::over(tcp_pair(), &tls(), other);
    rig.until(|rig| rig.client.failed.is_some() && rig.server.failed.is_some());
    let failed = rig.client.failed.unwrap();
    assert!(failed.to_string().contains("certificate"), "{failed}");
}

#[test]
fn a_client_that_asks_for_http_1_1_gets_it() {
    let rig = Rig::open();
    assert_eq!(rig.client.tls.alpn().as_deref(), Some(&b"http/1.1"[..]));
}

/// As the documentation of `Tls` says; when native-tls learns it, this fails and that has to change.
#[test]
#[cfg(target_os = "linux")]
fn servers_speak_no_tls_1_3() {
    let (client, server) = tcp_pair();
    let connector = TlsConnector::builder()
        .min_protocol_version(Some(Protocol::Tlsv13))
        .build()
        .unwrap();
    let acceptor = tls();
    let client = thread::spawn(move || connector.connect("localhost", client).map(|_| ()));
    assert!(acceptor.acceptor().accept(server).is_err());
    let failed = client.join().unwrap().unwrap_err().to_string();
    assert!(failed.contains("version"), "{failed}");
}
