//! The example `game` in a real browser: two players see each other move, and one who loses the
//! connection finds the ship again. Skipped, with a word about it, where there is no Chromium.

mod support;

use support::browser::{self, Page};
use support::example::Example;
use support::until;

/// Opens the page and begins to play.
fn play(page: &mut Page, game: &Example, name: &str) {
    page.open(&game.url("/"));
    page.eval(&format!("document.getElementById('name').value = {name:?}"));
    page.click("#door button");
    page.until(&format!("{name} plays"), "game.me !== null");
}

/// How far a condition holds about the one ship of another that this page sees.
fn other(name: &str, what: &str) -> String {
    format!("game.ships.some(ship => ship.name === {name:?} && {what})")
}

#[test]
fn a_player_moves_and_another_sees_it() {
    let Some(browser) = browser::find("game: a player moves and another sees it") else {
        return;
    };
    let game = Example::start("game", &["--bots", "3"]);
    let (mut ada, mut bob) = (browser.page(), browser.page());
    play(&mut ada, &game, "Ada <b>");
    play(&mut bob, &game, "Bob");
    // Names are text: nothing that they hold becomes markup.
    bob.until("Bob sees Ada", &other("Ada <b>", "true"));
    bob.until(
        "both are on the board",
        "document.getElementById('board').innerText.includes('Ada <b>')",
    );

    // Towards Bob, so that she stays in sight.
    let find = "game.ships.find(ship => ship.name === 'Ada <b>')";
    let right = bob.eval(&format!("window.was = {find}, was.x < game.me.x")) == true;
    let key = if right { "ArrowRight" } else { "ArrowLeft" };
    ada.key(key, true);
    let flown = format!("{find} && Math.abs({find}.x - was.x) > 60");
    bob.until("Bob sees her fly", &flown);
    ada.key(key, false);

    // Once she rests, both pages know the same place, to the raster of the wire.
    let place = format!("[{find}.x, {find}.y]");
    until("both know where she is", || {
        let pair = [ada.eval("[game.me.x, game.me.y]"), bob.eval(&place)];
        let number = |page: usize, n: usize| pair[page][n].as_f64().unwrap();
        (0..2).all(|n| (number(0, n) - number(1, n)).abs() <= 1.0 / 16.0)
    });
    for page in [&mut ada, &mut bob] {
        assert!(page.errors().is_empty(), "{:?}", page.errors());
    }
}

#[test]
fn a_lost_connection_finds_its_ship_again() {
    let Some(browser) = browser::find("game: a lost connection finds its ship again") else {
        return;
    };
    let game = Example::start("game", &["--bots", "0"]);
    let (mut ada, mut bob) = (browser.page(), browser.page());
    play(&mut ada, &game, "Ada");
    play(&mut bob, &game, "Bob");
    bob.until("Bob sees Ada", &other("Ada", "true"));
    let before = ada.eval("game.me.id");
    // Not yet again: it is to be seen that she is lost.
    ada.eval("const later = setTimeout; window.setTimeout = (f, ms) => later(f, Math.max(ms, 1500)); game.drop()");
    bob.until("she is marked", &other("Ada", "(ship.flags & 4) !== 0"));
    ada.until(
        "she is back",
        "document.body.dataset.state === 'open' && game.me !== null",
    );
    bob.until("the mark is gone", &other("Ada", "(ship.flags & 4) === 0"));
    assert_eq!(ada.eval("game.me.id"), before);
    // The page loaded anew is still hers.
    ada.open(&game.url("/"));
    ada.click("#door button");
    ada.until("she plays", "game.me !== null");
    assert_eq!(ada.eval("game.me.id"), before);
}

/// The link does not end, but nothing comes any more: no page is told of that.
#[test]
fn a_silent_link_is_noticed() {
    let Some(browser) = browser::find("game: a silent link is noticed") else {
        return;
    };
    let game = Example::start("game", &["--bots", "0"]);
    let mut page = browser.page();
    play(&mut page, &game, "Ada");
    let before = page.eval("game.me.id");
    let pause = |signal: &str| {
        let id = game.id().to_string();
        let kill = std::process::Command::new("kill")
            .args([signal, &id])
            .status();
        assert!(kill.unwrap().success());
    };
    // Not long enough to be lost.
    page.eval("window.first = socket");
    pause("-STOP");
    page.until(
        "it says so",
        "document.getElementById('state').innerText.includes('no answer')",
    );
    pause("-CONT");
    page.until("it says no more", "document.getElementById('state').hidden");
    assert_eq!(page.eval("socket === first"), true);

    pause("-STOP");
    page.eval("window.began = performance.now()");
    page.until("it is noticed", "document.body.dataset.state !== 'open'");
    let took = page.eval("performance.now() - began").as_f64().unwrap();
    assert!((3000.0..10_000.0).contains(&took), "after {took} ms");
    // An attempt that leads nowhere ends, too.
    page.until("it has tried twice", "tries >= 2");
    pause("-CONT");
    page.until(
        "she is back",
        "document.body.dataset.state === 'open' && game.me !== null",
    );
    assert_eq!(page.eval("game.me.id"), before);
    assert!(page.errors().is_empty(), "{:?}", page.errors());
}

/// Only who has a ship is told that it waits.
#[test]
fn who_has_no_ship_is_told_why() {
    let Some(browser) = browser::find("game: who has no ship is told why") else {
        return;
    };
    let told = "document.getElementById('state').textContent";
    let game = Example::start("game", &["--bots", "0"]);
    let mut page = browser.page();
    page.open(&game.url("/"));
    let addr = game.addr.clone();
    assert!(game.stop().success());
    page.click("#door button");
    page.until("it has tried", "tries > 1");
    page.until("it says so", &format!("{told} === 'no connection …'"));
    page.phone();
    page.screenshot("game-down-phone");
    page.screen(1280, 800, 1.0, false);
    page.screenshot("game-down");

    let game = Example::start_on("game", &addr, &["--bots", "0"]);
    page.eval("dispatchEvent(new Event('online'))");
    page.until("it plays", "document.body.dataset.state === 'open'");
    // Not a thousand players, but what they would be told.
    let full = "socket.onclose({ code: 1013, reason: 'the arena is full' })";
    assert_eq!(page.eval(&format!("{full}; {told}")), "the arena is full …");
    page.until("it is in again", "document.body.dataset.state === 'open'");
    assert!(game.stop().success());
    page.until("it waits", &format!("{told}.includes('your ship waits')"));
}

/// Nothing comes while the page is not seen: it waits, as what is in the background may be held up.
#[test]
fn a_page_that_is_not_seen_is_patient() {
    let Some(browser) = browser::find("game: a page that is not seen is patient") else {
        return;
    };
    let game = Example::start("game", &["--bots", "0"]);
    let mut page = browser.page();
    play(&mut page, &game, "Ada");
    // Seconds pass faster, and no message is heard.
    page.eval("Object.defineProperty(document, 'hidden', { value: true, configurable: true })");
    page.eval("for (let n = 0; n < 30; n++) second()");
    assert_eq!(page.eval("document.body.dataset.state"), "open");
    page.eval("delete document.hidden, document.dispatchEvent(new Event('visibilitychange'))");
    page.eval("for (let n = 0; n < 30; n++) second()");
    assert_ne!(page.eval("document.body.dataset.state"), "open");
}

/// What came to nothing while the link was gone says nothing of how it is now.
#[test]
fn a_link_that_is_back_is_tried_anew() {
    let Some(browser) = browser::find("game: a link that is back is tried anew") else {
        return;
    };
    let game = Example::start("game", &["--bots", "0"]);
    let mut page = browser.page();
    play(&mut page, &game, "Ada");
    assert!(game.stop().success());
    page.until("it is lost", "document.body.dataset.state !== 'open'");
    page.eval(
        "window.pauses = [], window.later = setTimeout,
        window.setTimeout = (what, pause) => (pauses.push(pause), later(what, pause)),
        tries = 20, dispatchEvent(new Event('online'))",
    );
    page.until("it has tried in vain", "pauses.length > 0");
    let pause = page.eval("pauses[0]").as_f64().unwrap();
    assert!(pause < 1000.0, "the next time after {pause} ms");
}

/// Where the browser keeps nothing for pages, it throws at a word of it.
#[test]
fn storage_may_be_forbidden() {
    let Some(browser) = browser::find("game: storage may be forbidden") else {
        return;
    };
    let game = Example::start("game", &["--bots", "0"]);
    let mut page = browser.page();
    let forbid = "for (const name of ['sessionStorage', 'localStorage'])
        Object.defineProperty(window, name, { get() { throw new DOMException('no', 'SecurityError'); } });";
    page.call(
        "Page.addScriptToEvaluateOnNewDocument",
        serde_json::json!({ "source": forbid }),
    );
    play(&mut page, &game, "Ada");
    let before = page.eval("game.me.id");
    page.eval("game.drop()");
    page.until("she is lost", "document.body.dataset.state !== 'open'");
    page.until(
        "she is back",
        "document.body.dataset.state === 'open' && game.me !== null",
    );
    assert_eq!(page.eval("game.me.id"), before);
    assert!(page.errors().is_empty(), "{:?}", page.errors());
}

/// Far from the server, one's own ship still obeys at once, and what is predicted comes true.
#[test]
fn what_is_predicted_comes_true() {
    let Some(browser) = browser::find("game: what is predicted comes true") else {
        return;
    };
    let game = Example::start("game", &["--bots", "0"]);
    let mut page = browser.page();
    play(&mut page, &game, "Ada");
    page.eval("lag = 300");
    page.until("the way is long", "game.ping > 250");
    page.eval("window.worst = 0; setInterval(() => worst = Math.max(worst, game.error), 10)");
    // A mine can't be predicted, nor can a machine that holds the page up; not each time.
    let mut flights = Vec::new();
    for key in [
        "ArrowLeft",
        "ArrowUp",
        "ArrowRight",
        "ArrowDown",
        "ArrowLeft",
    ] {
        page.eval("window.from = game.me, worst = 0");
        let began = "window.began = performance.now(), window.moved = null";
        page.eval(&format!("{began}, window.watch = setInterval(() => {{ if (!moved && flown() > 1) moved = performance.now() - began; }}, 1), window.flown = () => Math.hypot(game.me.x - from.x, game.me.y - from.y)"));
        page.key(key, true);
        page.until(
            "it has flown",
            "flown() > 200 || began < performance.now() - 3000",
        );
        page.key(key, false);
        let flight = page.eval("clearInterval(watch), [moved, worst]");
        let (moved, worst) = (flight[0].as_f64(), flight[1].as_f64().unwrap());
        // The way takes 300 ms.
        if moved.is_some_and(|ms| ms < 250.0) && worst < 40.0 {
            return;
        }
        flights.push(flight);
        page.until(
            "it rests",
            "(from = game.me, new Promise(done => setTimeout(() => done(flown() < 1), 200)))",
        );
    }
    panic!("when the ship obeyed (ms), and by how much it was corrected: {flights:?}");
}

/// On a phone: steered with a thumb.
#[test]
fn a_thumb_steers() {
    let Some(browser) = browser::find("game: a thumb steers") else {
        return;
    };
    let game = Example::start("game", &["--bots", "8"]);
    let mut page = browser.page();
    page.phone();
    page.open(&game.url("/"));
    page.screenshot("game-door-phone");
    page.tap("#door button");
    page.until("it plays", "game.me !== null");
    page.eval("window.from = game.me.y");
    page.touch("touchStart", &[(100.0, 600.0)]);
    page.touch("touchMove", &[(100.0, 660.0)]);
    page.until("the ship flies down", "game.me.y > from + 100");
    page.screenshot("game-phone");
    page.touch("touchEnd", &[]);
    // Also where a hand that holds the phone has its thumb: down in the corner.
    page.eval("window.from = game.me.y");
    page.touch("touchStart", &[(110.0, 815.0)]);
    page.touch("touchMove", &[(110.0, 755.0)]);
    page.until("the ship flies up", "game.me.y < from - 100");
    page.touch("touchEnd", &[]);
    page.tap("#lag");
    page.until("it can be slowed down there, too", "lag > 0");
    assert!(page.errors().is_empty(), "{:?}", page.errors());
}

/// What it looks like; look at it.
#[test]
fn screenshots() {
    let Some(browser) = browser::find("game: screenshots") else {
        return;
    };
    let game = Example::start("game", &["--bots", "160"]);
    let mut page = browser.page();
    page.screen(1280, 720, 1.0, false);
    page.open(&game.url("/"));
    page.screenshot("game-door");
    play(&mut page, &game, "Ada");
    page.key("ArrowRight", true);
    page.until(
        "something was collected or much time has passed",
        "game.me.score > 2 || performance.now() > 9000",
    );
    page.key("ArrowUp", true);
    page.until(
        "it turned",
        "game.me.score > 5 || performance.now() > 11000",
    );
    page.screenshot("game");
    assert!(page.errors().is_empty(), "{:?}", page.errors());
}
