//! Data, in all sizes and pieces.

use std::io::{self, IoSlice};

use socket2::SockRef;

use super::rig::{CERT, Rig, Sizes, relayed_pair, tcp_pair, tls};

fn pattern(len: usize) -> Vec<u8> {
    let mut x = len as u32 | 1;
    let next = |_| {
        x = x.wrapping_mul(1664525).wrapping_add(1013904223);
        (x >> 24) as u8
    };
    (0..len).map(next).collect()
}

fn exchange(rig: &mut Rig, up: usize, down: usize) {
    for (end, len) in [(&mut rig.client, up), (&mut rig.server, down)] {
        (end.to_send, end.sent) = (pattern(len), 0);
        end.got.clear();
    }
    rig.client.step();
    rig.server.step();
    rig.until(|rig| rig.client.got.len() >= down && rig.server.got.len() >= up);
    assert!(
        rig.client.got == pattern(down),
        "{down} bytes to the client"
    );
    assert!(rig.server.got == pattern(up), "{up} bytes to the server");
}

#[test]
fn all_sizes_both_ways() {
    let mut rig = Rig::open();
    let mut sizes = Sizes::up_to(1 << 20);
    for (up, down) in [
        (1, 0),
        (0, 1),
        (16 << 10, (16 << 10) + 1),
        (1 << 20, 1 << 20),
    ] {
        exchange(&mut rig, up, down);
    }
    for _ in 0..30 {
        let (up, down) = (sizes.next(), sizes.next());
        exchange(&mut rig, up, down);
    }
}

#[test]
fn through_a_relay_byte_by_byte() {
    let mut rig = Rig::over(relayed_pair(|_| 1), &tls(), CERT);
    rig.shake_hands();
    exchange(&mut rig, 3000, 2000);
}

#[test]
fn through_a_relay_in_pieces() {
    for most in [2, 3, 5, 7, 64, 1000] {
        let mut rig = Rig::over(relayed_pair(move |n| 1 + n * 7 % most), &tls(), CERT);
        rig.shake_hands();
        exchange(&mut rig, 20_000, 50_000);
    }
}

#[test]
fn data_that_comes_with_the_end_of_the_handshake_needs_no_event() {
    let mut rig = Rig::new();
    rig.client.to_send = pattern(70_000);
    rig.until(|rig| rig.server.got.len() >= 70_000);
    assert!(rig.server.got == pattern(70_000));
}

#[test]
fn a_full_kernel_is_not_forgotten() {
    let (one, other) = tcp_pair();
    for socket in [&one, &other] {
        SockRef::from(socket).set_send_buffer_size(20_000).unwrap();
        SockRef::from(socket).set_recv_buffer_size(20_000).unwrap();
    }
    let mut rig = Rig::over((one, other), &tls(), CERT);
    rig.shake_hands();
    rig.client.reads = false;
    rig.server.to_send = pattern(4 << 20);
    rig.server.step();
    assert!(rig.server.tls.has_pending());
    let sent = rig.server.sent;
    assert!(sent < 2 << 20, "{sent} bytes were taken");
    for _ in 0..3 {
        let refused = rig.server.tls.write(b"more").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    }
    rig.client.reads = true;
    rig.client.step();
    rig.until(|rig| rig.client.got.len() >= 4 << 20);
    assert!(rig.client.got == pattern(4 << 20));
}

#[test]
fn what_a_small_buffer_left_needs_no_event() {
    let mut rig = Rig::open();
    rig.server.reads = false;
    rig.client.to_send = pattern(5000);
    rig.client.step();
    rig.until(|rig| rig.server.tls.has_buffered());
    let mut got = Vec::new();
    let mut buf = [0; 7];
    while rig.server.tls.has_buffered() {
        match rig.server.tls.read(&mut buf) {
            Ok(n) => got.extend_from_slice(&buf[..n]),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
    }
    rig.server.reads = true;
    rig.server.got = got;
    rig.until(|rig| rig.server.got.len() >= 5000);
    assert!(rig.server.got == pattern(5000));
}

#[test]
fn one_system_call_a_message() {
    let mut rig = Rig::open();
    exchange(&mut rig, 1, 1);
    let counts = |rig: &Rig| {
        let (client, server) = (rig.client.tls.socket(), rig.server.tls.socket());
        (client.sends, server.recvs, server.sends)
    };
    let before = counts(&rig);
    for n in 1..=10 {
        assert_eq!(rig.client.tls.write(&pattern(100)).unwrap(), 100);
        rig.until(|rig| rig.server.got.len() == 1 + n * 100);
    }
    let after = counts(&rig);
    assert_eq!(after.0 - before.0, 10, "client sends");
    assert_eq!(after.1 - before.1, 10, "server recvs");
    // Four records, one send.
    let taken = rig.server.tls.write(&pattern(1 << 20)).unwrap();
    assert_eq!(taken, 64 << 10);
    assert_eq!(counts(&rig).2 - after.2, 1, "server sends");
}

#[test]
fn small_slices_share_a_record() {
    let mut rig = Rig::open();
    let parts: Vec<Vec<u8>> = (0..500).map(|n| pattern(n % 90)).collect();
    let slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let whole = parts.concat();
    assert_eq!(rig.server.tls.write_vectored(&slices).unwrap(), whole.len());
    let one_by_one = rig.client.tls.socket().recvs;
    rig.until(|rig| rig.client.got.len() >= whole.len());
    assert!(rig.client.got == whole);
    assert!(rig.client.tls.socket().recvs - one_by_one <= 3);

    let large = [pattern(10), pattern(40_000), pattern(9), pattern(60_000)];
    let slices = large.each_ref().map(|part| IoSlice::new(part));
    rig.client.got.clear();
    assert_eq!(rig.server.tls.write_vectored(&slices).unwrap(), 64 << 10);
    rig.until(|rig| rig.client.got.len() >= 64 << 10);
    assert!(rig.client.got == large.concat()[..64 << 10]);
}
