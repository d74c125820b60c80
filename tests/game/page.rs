//! The page's half against the server's: `sim.js` under Node beside the Rust that it mirrors. Skipped,
//! with a word about it, where there is no Node, unless `FRAMEMILL_INTEROP` is `required`.

use std::fmt::Write as _;
use std::io::Write;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::Receiver;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::snapshots::{Scene, act};
use super::support::needs::installed;
use crate::picture::{Own, Picture};
use crate::ship::{FULL, Input, Motion, RADIUS, SIZE};
use crate::support::WAIT;
use crate::support::example::lines;
use crate::wire::ToServer;

/// `mirror.js`, which answers each line with a line.
struct Mirror {
    child: Child,
    to: ChildStdin,
    from: Receiver<String>,
}

impl Mirror {
    fn start() -> Option<Self> {
        let here = env!("CARGO_MANIFEST_DIR");
        let mut child = Command::new(installed("node")?)
            .arg(format!("{here}/tests/game/mirror.js"))
            .arg(format!("{here}/examples/game/sim.js"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Some(Self {
            to: child.stdin.take().unwrap(),
            from: lines(child.stdout.take().unwrap()),
            child,
        })
    }

    fn ask(&mut self, line: &str) -> String {
        writeln!(self.to, "{line}").unwrap();
        match self.from.recv_timeout(WAIT) {
            Ok(answer) => answer.trim_end().into(),
            Err(error) => panic!("{error} after: {line}"),
        }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn cases<S: Strategy>(cases: u32, strategy: S, mut test: impl FnMut(S::Value)) {
    // The runner wants `Fn`; one thread runs it.
    let test = std::cell::RefCell::new(&mut test);
    let config = Config {
        cases,
        ..Config::default()
    };
    let run = |value| {
        (test.borrow_mut())(value);
        Ok(())
    };
    TestRunner::new(config).run(&strategy, run).unwrap();
}

fn words(motion: &Motion) -> String {
    let Motion {
        x,
        y,
        vx,
        vy,
        dash,
        pause,
        stun,
    } = motion;
    format!("{x} {y} {vx} {vy} {dash} {pause} {stun}")
}

fn input() -> impl Strategy<Value = Input> {
    let vector = (-FULL..=FULL, -FULL..=FULL)
        .prop_filter("too much thrust", |(x, y)| x * x + y * y <= FULL * FULL);
    (vector, any::<bool>()).prop_map(|((x, y), dash)| Input {
        x: x as i8,
        y: y as i8,
        dash,
    })
}

fn motion() -> impl Strategy<Value = Motion> {
    let place = RADIUS..=SIZE - RADIUS;
    let speed = -20_000..=20_000;
    (
        place.clone(),
        place,
        speed.clone(),
        speed,
        0..20u8,
        0..80u8,
        0..50u8,
    )
        .prop_map(|(x, y, vx, vy, dash, pause, stun)| Motion {
            x,
            y,
            vx,
            vy,
            dash,
            pause,
            stun,
        })
}

#[test]
fn both_sides_move_ships_alike() {
    let Some(mut mirror) = Mirror::start() else {
        return;
    };
    let strategy = (motion(), prop::collection::vec(input(), 0..300));
    cases(200, strategy, |(start, inputs)| {
        let mut line = format!("step {}", words(&start));
        let mut here = start;
        for input in inputs {
            write!(line, " {} {} {}", input.x, input.y, u8::from(input.dash)).unwrap();
            here.step(input);
        }
        assert_eq!(mirror.ask(&line), words(&here));
    });
}

#[test]
fn both_sides_read_snapshots_alike() {
    let Some(mut mirror) = Mirror::start() else {
        return;
    };
    let strategy = (any::<u64>(), prop::collection::vec(act(), 1..60));
    cases(30, strategy, |(seed, acts)| {
        mirror.ask("new");
        let mut scene = Scene::new(seed);
        let mut picture = Picture::default();
        for act in acts {
            let Some(bytes) = scene.act(act) else {
                continue;
            };
            let own = picture.apply(&bytes).unwrap();
            assert_eq!(
                mirror.ask(&format!("apply {}", hex(&bytes))),
                told(&own, &picture)
            );
        }
    });
}

#[test]
fn the_page_says_what_the_server_hears() {
    let Some(mut mirror) = Mirror::start() else {
        return;
    };
    let token: [u8; 16] = std::array::from_fn(|n| n as u8 + 1);
    let said = mirror.ask(&format!("hello {} Ada é", hex(&token)));
    let hello = ToServer::Hello {
        token: Some(token),
        name: "Ada é".into(),
    };
    assert_eq!(ToServer::decode(&unhex(&said)), Ok(hello));
    let strategy = (1..u32::MAX, prop::collection::vec(input(), 1..=16));
    cases(50, strategy, |(first, inputs)| {
        let mut line = format!("inputs {first}");
        for input in &inputs {
            write!(line, " {} {} {}", input.x, input.y, u8::from(input.dash)).unwrap();
        }
        let heard = ToServer::decode(&unhex(&mirror.ask(&line)));
        assert_eq!(heard, Ok(ToServer::Input { first, inputs }));
    });
    // Whatever a pointer or a stick says, it is a thrust that a ship has.
    cases(200, (-3.0..3.0f64, -3.0..3.0f64), |(x, y)| {
        let answer = mirror.ask(&format!("toInput {x} {y}"));
        let (x, y) = answer.split_once(' ').unwrap();
        let input = Input {
            x: x.parse().unwrap(),
            y: y.parse().unwrap(),
            dash: false,
        };
        assert!(input.is_sound(), "{input:?}");
    });
}

/// As `mirror.js` tells it.
fn told(own: &Own, picture: &Picture) -> String {
    let Own {
        tick,
        done,
        waiting,
        flags,
        score,
        ..
    } = own;
    let mut told = format!(
        "{tick} {done} {waiting} {} {flags} {score}",
        words(&own.motion)
    );
    for s in &picture.ships {
        let (id, x, y, dx, dy) = (s.id, s.x, s.y, s.dx, s.dy);
        write!(
            told,
            "|s {id} {x} {y} {dx} {dy} {} {} {}",
            s.flags, s.score, s.name
        )
        .unwrap();
    }
    for m in &picture.mines {
        let ((x, y), (vx, vy)) = (m.mine.from, m.mine.speed);
        write!(told, "|m {} {} {x} {y} {vx} {vy}", m.id, m.mine.since).unwrap();
    }
    for s in &picture.sparks {
        write!(told, "|* {} {} {} {}", s.id, s.x, s.y, s.gold).unwrap();
    }
    told
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .map(|c| c.to_digit(16).unwrap() as u8)
        .collect();
    digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}
