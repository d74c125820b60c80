//! How streams end.

use std::io;
use std::net::Shutdown;

use super::rig::{CERT, Rig, tcp_pair, tls};

#[test]
fn close_notify_is_a_clean_end_and_the_other_half_goes_on() {
    let mut rig = Rig::open();
    rig.server.to_send = b"goodbye".to_vec();
    rig.server.step();
    rig.server.tls.shutdown_write().unwrap();
    rig.server.tls.shutdown_write().unwrap();
    let refused = rig.server.tls.write(b"more").unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::BrokenPipe);
    rig.until(|rig| rig.client.eof);
    assert_eq!(rig.client.got, b"goodbye");
    assert!(!rig.client.tls.has_buffered(), "the end is told once");
    assert_eq!(rig.client.tls.read(&mut [0; 9]).unwrap(), 0);

    rig.client.to_send = vec![7; 100_000];
    rig.client.step();
    rig.until(|rig| rig.server.got.len() == 100_000);
    rig.client.tls.shutdown_write().unwrap();
    rig.until(|rig| rig.server.eof);
    assert!(rig.client.failed.is_none() && rig.server.failed.is_none());
}

#[test]
fn the_end_waits_for_what_is_pending() {
    let mut rig = Rig::open();
    rig.client.reads = false;
    rig.server.to_send = vec![9; 32 << 20];
    rig.server.step();
    assert!(rig.server.tls.has_pending());
    let sent = rig.server.sent;
    rig.server.to_send.truncate(sent);
    rig.server.tls.shutdown_write().unwrap();
    assert!(rig.server.tls.has_pending(), "this must not block");
    rig.client.reads = true;
    rig.client.step();
    rig.until(|rig| rig.client.eof);
    assert_eq!(rig.client.got.len(), sent);
}

#[test]
fn a_stream_without_close_notify_ends_too() {
    let (one, other) = tcp_pair();
    let behind = other.try_clone().unwrap();
    let mut rig = Rig::over((one, other), &tls(), CERT);
    rig.shake_hands();
    rig.server.to_send = b"last".to_vec();
    rig.server.step();
    behind.shutdown(Shutdown::Write).unwrap();
    rig.until(|rig| rig.client.eof);
    assert_eq!(rig.client.got, b"last");
    assert!(rig.client.failed.is_none(), "{:?}", rig.client.failed);
}

#[test]
fn a_forged_record_fails_the_connection() {
    use std::io::Write;
    let (one, other) = tcp_pair();
    let mut behind = one.try_clone().unwrap();
    let mut rig = Rig::over((one, other), &tls(), CERT);
    rig.shake_hands();
    behind.write_all(&[0x17, 3, 3, 0, 40]).unwrap();
    behind.write_all(&[0x55; 40]).unwrap();
    rig.until(|rig| rig.server.failed.is_some());
    assert!(!rig.server.tls.has_buffered());
    assert!(rig.server.tls.read(&mut [0; 9]).is_err());
    // It is told why, by an alert.
    rig.until(|rig| rig.client.failed.is_some());
}

#[test]
fn a_reset_is_an_error() {
    let (one, other) = tcp_pair();
    let behind = one.try_clone().unwrap();
    let mut rig = Rig::over((one, other), &tls(), CERT);
    rig.shake_hands();
    socket2::SockRef::from(&behind)
        .set_linger(Some(std::time::Duration::ZERO))
        .unwrap();
    let Rig { client, .. } = &mut rig;
    client.tls.hang_up();
    drop(behind);
    rig.until(|rig| rig.server.failed.is_some());
    let failed = rig.server.failed.unwrap();
    assert_eq!(failed.kind(), io::ErrorKind::ConnectionReset);
}
