use super::*;

/// A socket that has these, one `recv` each, and takes nothing.
struct Script(Vec<Vec<u8>>);

impl Socket for Script {
    fn recv(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.0.is_empty() {
            true => Err(io::ErrorKind::WouldBlock.into()),
            false => self.0.remove(0).as_slice().read(buf),
        }
    }

    fn send(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn end(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const RECORD: &[u8] = &[0x17, 3, 3, 0, 3, b'a', b'b', b'c'];

#[test]
fn records_are_shown_whole_wherever_they_were_split() {
    let two = [RECORD, RECORD].concat();
    for split in 1..two.len() {
        let (one, other) = two.split_at(split);
        let mut wire = Wire::new(Script(vec![one.into(), other.into()]));
        let mut got = Vec::new();
        let mut buf = [0; 64];
        for _ in 0..2 {
            wire.socket_readable(false);
            while wire.may_read() {
                match wire.read(&mut buf) {
                    Ok(n) => got.extend_from_slice(&buf[..n]),
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
                wire.settle().unwrap();
            }
            let whole = got.len() % RECORD.len() == 0;
            assert!(whole, "split at {split}: {got:?}");
        }
        assert_eq!(got, two, "split at {split}");
        assert_eq!(wire.kept.bytes.capacity(), 0, "nothing is kept");
    }
}

#[test]
fn a_claimed_length_takes_no_more_than_what_came() {
    let mut wire = Wire::new(Script(vec![vec![0x17, 3, 3, 0x40, 0], vec![7; 100]]));
    for _ in 0..2 {
        wire.socket_readable(false);
        let blocked = wire.read(&mut [0; 64]).unwrap_err();
        assert_eq!(blocked.kind(), io::ErrorKind::WouldBlock);
        wire.settle().unwrap();
        assert!(!wire.may_read());
    }
    assert!(wire.kept.bytes.capacity() <= 105);
}

#[test]
fn answers_that_nobody_reads_are_limited() {
    let mut wire = Wire::new(Script(Vec::new()));
    let mut settled = 0;
    for _ in 0..1000 {
        wire.write_all(&[0; 1 << 10]).unwrap();
        if wire.settle().is_err() {
            break;
        }
        settled += 1;
    }
    assert_eq!(settled, 256);
    assert!(wire.has_pending());
}

/// An alert is flushed at once, and whether that came to anything OpenSSL does not want to know.
#[test]
fn alerts_that_nobody_reads_end_the_connection() {
    let mut wire = Wire::new(Script(vec![RECORD.into()]));
    let mut alerts = 0;
    loop {
        wire.write_all(&[0; 1 << 10]).unwrap();
        if wire.flush().is_err() {
            break;
        }
        alerts += 1;
        assert!(alerts <= 256);
    }
    // Something is lost by now, so nothing may follow.
    let read = wire.read(&mut [0; 64]).unwrap_err();
    assert_ne!(read.kind(), io::ErrorKind::WouldBlock);
    assert!(wire.flush_pending().is_err());
    assert!(wire.settle().is_err());
    assert!(wire.settle().is_err(), "for good");
}

/// A socket whose peer sends records of this type, faster than they are read, and takes everything.
struct Torrent(u8);

impl Socket for Torrent {
    fn recv(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        // They fit exactly.
        for record in buf.chunks_mut(64) {
            record.fill(0);
            record[..HEAD].copy_from_slice(&[self.0, 3, 3, 0, 64 - HEAD as u8]);
        }
        Ok(buf.len())
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn end(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads as native-tls does in one call, of records that bring nothing, until it is told to stop.
fn reads_in_vain(wire: &mut Wire<Torrent>, answers: bool) -> (usize, io::Error) {
    for records in 0..100_000 {
        let whole = wire
            .read(&mut [0; HEAD])
            .and_then(|_| wire.read(&mut [0; 64 - HEAD]));
        if let Err(error) = whole {
            return (records, error);
        }
        if answers {
            wire.write_all(&[0x15; 31]).unwrap();
            // It doesn't look.
            let _ = wire.flush();
        }
    }
    panic!("no end");
}

#[test]
fn records_that_bring_nothing_leave_time_for_others() {
    let mut wire = Wire::new(Torrent(0x16));
    for shaking in [true, false] {
        wire.shaking = shaking;
        for _ in 0..3 {
            let (records, error) = reads_in_vain(&mut wire, shaking);
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            assert_eq!(records, 4 * INPUT / 64);
            wire.settle().unwrap();
            assert!(wire.may_read(), "no event will announce the rest");
        }
    }
}

/// Refused renegotiations: a few are answered.
#[test]
fn who_provokes_answers_without_end_is_not_read_from() {
    let mut wire = Wire::new(Torrent(0x16));
    wire.shaking = false;
    let (records, error) = reads_in_vain(&mut wire, true);
    assert_eq!(error.kind(), io::ErrorKind::Other, "{error}");
    assert!((4..20).contains(&records), "{records}");
    assert!(wire.settle().is_err());
}

/// Key updates of TLS 1.3: whoever sends gigabytes may ask for some now and then.
/// Of a peer that only reads, as many answers as it began with, and then one more for what it was sent.
#[test]
fn what_is_sent_pays_for_answers_too() {
    let mut wire = Wire::new(Torrent(0x17));
    wire.shaking = false;
    let answer = |wire: &mut Wire<Torrent>| {
        let _ = wire.read(&mut [0; HEAD]);
        wire.write_all(&[0x17; 27]).unwrap();
        wire.flush().and_then(|()| wire.settle())
    };
    for _ in 0..CREDIT / ANSWER {
        answer(&mut wire).unwrap();
    }
    for _ in 0..ANSWER as usize * SENT / (16 << 10) {
        wire.write_all(&[0x17; 16 << 10]).unwrap();
        wire.settle().unwrap();
    }
    answer(&mut wire).unwrap();
    assert!(answer(&mut wire).is_err());
}

#[test]
fn what_is_received_pays_for_answers() {
    let mut wire = Wire::new(Torrent(0x17));
    wire.shaking = false;
    let mut buf = vec![0; INPUT];
    for _ in 0..40 {
        let mut received = 0;
        while received < 1 << 20 {
            match wire.read(&mut buf) {
                Ok(n) => received += n,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            if wire.recvs > 1 {
                wire.settle().unwrap();
            }
        }
        wire.write_all(&[0x17; 27]).unwrap();
        wire.flush().unwrap();
        wire.settle().unwrap();
    }
}
