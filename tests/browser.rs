//! The pages of the examples in a real browser.
//!
//! Where there is no Chromium, the tests are skipped, with a word about it, unless
//! `FRAMEMILL_INTEROP` is `required`. What the pages look like is in `target/screenshots`.

#![cfg(unix)]

mod support;

use serde_json::{Value, json};
use support::browser::{self, Browser, Page};
use support::example::Example;

/// The kit itself.
#[test]
fn the_kit() {
    let Some(browser) = browser::find("the kit") else {
        return;
    };
    let mut page = browser.page();
    page.open("data:text/html,<title>t</title><input id=i><p id=p>");
    assert_eq!(page.eval("1 + 1"), 2);
    assert_eq!(
        page.eval("new Promise(done => setTimeout(done, 5, 'later'))"),
        "later"
    );
    page.eval("i.onkeydown = event => p.textContent += event.key + event.code");
    page.click("#i");
    page.type_text("hé");
    page.press("Enter");
    page.press("a");
    page.until(
        "the keys have arrived",
        "p.textContent == 'EnterEnteraKeyA'",
    );
    assert_eq!(page.eval("i.value"), "héa");
    assert!(page.errors().is_empty());
    page.eval("setTimeout(() => { throw new Error('on purpose') })");
    page.eval("new Promise(done => setTimeout(done, 1))");
    assert!(page.errors()[0].contains("on purpose"));
    page.phone();
    page.dark(true);
    assert_eq!(
        page.eval("[devicePixelRatio, navigator.maxTouchPoints]"),
        serde_json::json!([2, 5])
    );
    assert_eq!(
        page.eval("matchMedia('(prefers-color-scheme: dark)').matches"),
        true
    );
    // Another page shares nothing.
    let mut other = browser.page();
    other.open("data:text/html,<p>two");
    assert_eq!(
        other.eval("document.hasFocus() && document.visibilityState"),
        "visible"
    );
    assert_eq!(page.eval("document.visibilityState"), "visible");
    page.screenshot("kit");
}

/// The page of the chat, with somebody in a room.
fn chatter(browser: &'static Browser, chat: &Example, name: &str, room: &str) -> Page {
    let mut page = browser.page();
    page.open(&chat.url(&format!("/#{room}")));
    come_in(&mut page, name);
    page
}

fn come_in(page: &mut Page, name: &str) {
    page.eval("document.getElementById('name').value = ''");
    page.click("#name");
    page.type_text(name);
    page.press("Enter");
}

const CONNECTED: &str = "document.body.dataset.state == 'open'";

fn is_in(page: &mut Page) {
    page.until("it is in the room", CONNECTED);
}

fn says(page: &mut Page, text: &str) {
    page.click("#text");
    page.type_text(text);
    page.press("Enter");
}

/// A JavaScript condition: this was said by somebody, as the last.
fn last(name: &str, text: &str) -> String {
    format!(
        "(() => {{
            const said = [...document.querySelectorAll('.said')].pop();
            return said?.querySelector('bdi').textContent == {name:?}
                && said.querySelector('.text').textContent == {text:?};
        }})()"
    )
}

#[test]
fn two_talk() {
    let Some(browser) = browser::find("two talk") else {
        return;
    };
    let chat = Example::start("chat", &[]);
    let mut ada = chatter(browser, &chat, "Ada", "mill");
    is_in(&mut ada);
    assert_eq!(ada.eval("count.textContent"), "Only you are here");
    let mut ben = chatter(browser, &chat, "Ben", "mill");
    is_in(&mut ben);
    ada.until("Ada sees Ben", "here.textContent.includes('Ben')");
    ben.until("Ben sees Ada", "here.textContent.includes('Ada')");

    says(&mut ada, "good morning");
    ben.until("Ben reads it", &last("Ada", "good morning"));
    ada.until("so does Ada", &last("Ada", "good morning"));
    // Told apart: one's own and the other's.
    assert_eq!(
        ada.eval("document.querySelectorAll('.said.mine').length"),
        1
    );
    assert_eq!(
        ben.eval("document.querySelectorAll('.said.mine').length"),
        0
    );

    ben.click("#text");
    ben.type_text("hm");
    ada.until(
        "she sees him type",
        "$('typing').textContent == 'Ben is typing …'",
    );
    ben.press("Enter");
    ada.until("Ada reads it", &last("Ben", "hm"));
    assert_eq!(ada.eval("$('typing').textContent"), "");

    // Markup stays text, in what is said and in a name.
    let hostile =
        "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>";
    says(&mut ben, hostile);
    ada.until("Ada reads it", &last("Ben", hostile));
    let mut evil = chatter(browser, &chat, "<b onclick=x>Eve", "mill");
    is_in(&mut evil);
    ada.until(
        "Ada sees the name",
        "here.textContent.includes('<b onclick=x>Eve')",
    );
    for page in [&mut ada, &mut ben, &mut evil] {
        assert_eq!(
            page.eval("document.querySelectorAll('img, #log script, b').length"),
            0
        );
        assert_eq!(page.eval("document.title"), "mill");
    }

    // Who comes later reads what was said before; and leaves in one room only.
    let mut cleo = chatter(browser, &chat, "Cleo", "mill");
    is_in(&mut cleo);
    cleo.until("it has the history", &last("Ben", hostile));
    assert_eq!(cleo.eval("document.querySelectorAll('.said').length"), 3);
    cleo.click("#leave");
    ada.until("Cleo is gone", "!here.textContent.includes('Cleo')");
    let mut other = chatter(browser, &chat, "Ada", "another");
    is_in(&mut other);
    assert_eq!(other.eval("document.querySelectorAll('.said').length"), 0);
    for page in [&mut ada, &mut ben, &mut evil, &mut cleo, &mut other] {
        assert_eq!(page.errors(), [""; 0]);
    }
    assert!(chat.stop().success());
}

#[test]
fn a_name_is_taken_once() {
    let Some(browser) = browser::find("a name is taken once") else {
        return;
    };
    let chat = Example::start("chat", &[]);
    let mut ada = chatter(browser, &chat, "Ada", "lobby");
    is_in(&mut ada);
    let mut other = chatter(browser, &chat, "ada", "lobby");
    other.until(
        "it is refused",
        "why.textContent == 'Somebody called Ada is already here.'",
    );
    come_in(&mut other, "Adam");
    is_in(&mut other);
    // A letter and its accent are one name, in one piece or in two.
    let mut rene = chatter(browser, &chat, "Rene\u{301}", "lobby");
    is_in(&mut rene);
    let mut other = chatter(browser, &chat, "Ren\u{E9}", "lobby");
    other.until(
        "it is refused",
        "why.textContent == 'Somebody called Ren\u{E9} is already here.'",
    );
}

#[test]
fn too_fast() {
    let Some(browser) = browser::find("too fast") else {
        return;
    };
    let chat = Example::start("chat", &[]);
    let mut ada = chatter(browser, &chat, "Ada", "lobby");
    is_in(&mut ada);
    ada.eval(
        "for (let i = 0; i < 12; i++) {
            document.getElementById('text').value = 'line ' + i;
            document.getElementById('text').form.requestSubmit();
        }",
    );
    ada.until("she is told", "log.innerText.includes('Not so fast')");
    // What was not said can be said again, and nothing of it is lost.
    ada.until(
        "all lines are somewhere",
        "[...Array(12).keys()].every(i => [...document.querySelectorAll('.text')].some(t => t.textContent == 'line ' + i)
            != document.getElementById('text').value.split('\\n').includes('line ' + i))",
    );
    ada.until("she is still connected", CONNECTED);
}

#[test]
fn it_comes_back_by_itself() {
    let Some(browser) = browser::find("it comes back by itself") else {
        return;
    };
    let chat = Example::start("chat", &[]);
    let addr = chat.addr.clone();
    let (mut ada, mut ben) = (
        chatter(browser, &chat, "Ada", "lobby"),
        chatter(browser, &chat, "Ben", "lobby"),
    );
    is_in(&mut ada);
    is_in(&mut ben);
    says(&mut ada, "before");
    ben.until("Ben reads it", &last("Ada", "before"));
    assert!(chat.stop().success());
    ada.until(
        "she sees it",
        "document.body.dataset.state != 'open' && $('send').disabled",
    );
    ada.screenshot("chat-offline");
    let again = Example::start_on("chat", &addr, &[]);
    is_in(&mut ada);
    is_in(&mut ben);
    ada.until("Ben is there", "here.textContent.includes('Ben')");
    says(&mut ben, "after");
    ada.until("Ada reads it", &last("Ben", "after"));
    assert!(
        ada.eval("log.innerText")
            .as_str()
            .unwrap()
            .contains("before")
    );

    // The same page on another connection takes the place of the old one, and nobody hears of it.
    ada.eval("socket.onclose = null; socket = null; connect()");
    is_in(&mut ada);
    says(&mut ada, "still Ada");
    ben.until("Ben reads it", &last("Ada", "still Ada"));
    assert_eq!(ben.eval("count.textContent"), "2 people here");
    drop(again);
}

const TICKING: &str = "document.body.dataset.state == 'open' && stocks.size > 0";

/// What the server says of itself.
fn figures(ticker: &Example) -> Value {
    let (status, body) = support::get(&*ticker.addr, "/figures");
    assert_eq!(status, 200);
    serde_json::from_str(&body).unwrap()
}

#[test]
fn prices_move() {
    let Some(browser) = browser::find("prices move") else {
        return;
    };
    let ticker = Example::start(
        "ticker",
        &["--keys", "400", "--rate", "2000", "--slow-client=2048"],
    );
    let mut page = browser.page();
    page.open(&ticker.url("/"));
    page.until(
        "it has all of them",
        &format!("{TICKING} && stocks.size == 400"),
    );
    assert_eq!(
        page.eval("document.querySelectorAll('#rows tr:not([hidden])').length"),
        50
    );
    let before = page.eval(
        "[...document.querySelectorAll('#rows td:nth-child(3)')].map(t => t.textContent).join()",
    );
    page.until(
        "prices in the table have changed",
        &format!("[...document.querySelectorAll('#rows td:nth-child(3)')].map(t => t.textContent).join() != {before}"),
    );
    page.until(
        "the rate is shown",
        "parseInt(rate.textContent.replace(',', '')) > 100",
    );
    page.until("there is a large chart", "line.points.length > 3");
    page.until(
        "there are small charts",
        "document.querySelector('#rows polyline').points.length > 2",
    );
    page.until(
        "the slow client is shown",
        "slow.innerText.includes('skipped')",
    );

    // One sector, one stock, and all again.
    page.click("[data-name=metals]");
    page.until(
        "only metals are left",
        "stocks.size == 50 && [...stocks.values()].every(s => s.sector == 'metals')",
    );
    page.click("#rows tr td");
    page.until(
        "it is in the large chart",
        "what.textContent == rows[0].stock.symbol",
    );
    let symbol = page.eval("what.textContent");
    page.click("#find");
    page.type_text(symbol.as_str().unwrap());
    page.until(
        "it is the only one",
        "document.querySelectorAll('#rows tr:not([hidden])').length == 1",
    );
    page.click("[data-name=all]");
    page.until("all are back", "stocks.size == 400");
    assert_eq!(page.errors(), [""; 0]);

    let addr = ticker.addr.clone();
    assert!(ticker.stop().success());
    page.until(
        "it sees that nobody is there",
        "document.body.dataset.state != 'open'",
    );
    // The server counts anew, and no rate is below zero for that.
    page.eval(
        "window.rates = [], new MutationObserver(() => rates.push($('published').textContent))
            .observe($('published'), {childList: true})",
    );
    let again = Example::start_on("ticker", &addr, &["--keys", "80"]);
    page.until("it is back", &format!("{TICKING} && stocks.size == 80"));
    page.until("rates are told", "rates.length > 1");
    assert_eq!(
        page.eval("rates.filter(rate => !/^[0-9,]+$/.test(rate))"),
        json!([])
    );
    assert_eq!(figures(&again)["clients"], 1);
}

/// Nothing sticks out at the side, on a phone as on a desktop, by day and by night; and pictures of it.
fn fits(page: &mut Page, name: &str) {
    for (dark, tone) in [(false, ""), (true, "-dark")] {
        page.dark(dark);
        page.screen(960, 600, 1.0, false);
        narrow_enough(page);
        page.screenshot(&format!("{name}{tone}"));
        page.phone();
        narrow_enough(page);
        page.screenshot(&format!("{name}-phone{tone}"));
    }
}

fn narrow_enough(page: &mut Page) {
    page.until(
        "nothing sticks out",
        "document.documentElement.scrollWidth <= innerWidth",
    );
}

#[test]
fn the_chat_fits() {
    let Some(browser) = browser::find("the chat fits") else {
        return;
    };
    let chat = Example::start("chat", &[]);
    let mut ada = chatter(browser, &chat, "Ada", "mill");
    is_in(&mut ada);
    let names = ["Ben", "Cleo", "Dmitri", "Esra"];
    let mut others = names.map(|name| chatter(browser, &chat, name, "mill"));
    others.iter_mut().for_each(is_in);
    let [ben, cleo, dmitri, esra] = &mut others;
    let long = "https://example.org/the-mill-by-the-river/below-the-old-bridge";
    says(esra, long);
    ben.until("Esra was heard", &last("Esra", long));
    says(
        ben,
        "The wheel turns again. New bearings, and not a squeak.",
    );
    ada.until(
        "Ben was heard",
        &last(
            "Ben",
            "The wheel turns again. New bearings, and not a squeak.",
        ),
    );
    says(ben, "Come and see!");
    cleo.until("Ben was heard", &last("Ben", "Come and see!"));
    says(cleo, "Wonderful! How much can it grind now?");
    dmitri.until(
        "Cleo was heard",
        &last("Cleo", "Wonderful! How much can it grind now?"),
    );
    says(
        dmitri,
        "About two million frames a second, if the water is high.\nLess in August.",
    );
    ada.until(
        "Dmitri was heard",
        "document.querySelectorAll('.said').length == 5",
    );
    says(&mut ada, "I'll bring the grain, then. Half past six?");
    esra.until(
        "Ada was heard",
        &last("Ada", "I'll bring the grain, then. Half past six?"),
    );
    esra.click("#text");
    esra.type_text("Half past s");
    ada.until("Esra types", "$('typing').textContent != ''");
    fits(&mut ada, "chat");
    ada.tap("#people");
    ada.until("the list is open", "here.checkVisibility()");
    ada.screenshot("chat-phone-people");

    let mut door = browser.page();
    door.open(&chat.url("/"));
    door.until("rooms are listed", "$('open').innerText.includes('mill')");
    fits(&mut door, "chat-door");
}

/// However long a name is, it stays in the list, and who one is in one line.
#[test]
fn long_names_fit_into_the_list() {
    let Some(browser) = browser::find("long names fit into the list") else {
        return;
    };
    let chat = Example::start("chat", &[]);
    let mut wide = chatter(browser, &chat, &"W".repeat(24), "mill");
    is_in(&mut wide);
    let mut words = chatter(browser, &chat, "ab cd ef gh ij kl mn op", "mill");
    is_in(&mut words);
    let fits = "(() => {
        const list = here.getBoundingClientRect(), you = here.querySelector('small').getBoundingClientRect();
        const line = parseFloat(getComputedStyle(here.querySelector('small')).lineHeight);
        return you.height < 1.5 * line && [...here.querySelectorAll('li > *')].every(e => {
            const box = e.getBoundingClientRect();
            return box.left >= list.left && box.right <= list.right;
        });
    })()";
    for page in [&mut wide, &mut words] {
        page.until("both are here", "here.childElementCount == 2");
        page.until("they fit", fits);
        page.screenshot("chat-names");
        page.phone();
        page.tap("#people");
        page.until("they fit on a phone", fits);
        page.screenshot("chat-names-phone");
    }
}

#[test]
fn the_ticker_fits() {
    let Some(browser) = browser::find("the ticker fits") else {
        return;
    };
    let ticker = Example::start("ticker", &["--slow-client"]);
    let mut page = browser.page();
    page.open(&ticker.url("/"));
    page.until(
        "there is something to see",
        &format!("{TICKING} && line.points.length > 16"),
    );
    fits(&mut page, "ticker");
}

/// The page of auth is so small that it stands in the program.
#[test]
fn the_hall_fits() {
    let Some(browser) = browser::find("the hall fits") else {
        return;
    };
    let auth = Example::start_as("auth", &["127.0.0.1:0"]);
    let mut page = browser.page();
    page.open(&auth.url("/"));
    page.click("button");
    page.until(
        "it is open",
        "document.getElementById('log').textContent.includes('Ali Baba')",
    );
    fits(&mut page, "auth");
    // As a phone shows it: not a desktop's page made small.
    assert_eq!(page.eval("innerWidth"), 390);
    page.dark(true);
    let text = "getComputedStyle(document.body).color";
    assert_eq!(page.eval(text), "rgb(255, 255, 255)");
}

// ---- the dashboard ----

#[test]
fn the_dashboard_shows_what_happens() {
    let Some(browser) = browser::find("the dashboard shows what happens") else {
        return;
    };
    let example = Example::start("dashboard", &["--clients", "40"]);
    let mut page = browser.page();
    page.screen(1280, 860, 1.0, false);
    page.open(&example.url("/dashboard"));
    page.until("it is connected", CONNECTED);
    page.until("clients are there", "frames.at(-1)?.connections > 20");
    page.until("they say something", "frames.at(-1).in > 10");
    page.until(
        "times are shown",
        "/s$/.test($('tiles').children[4].lastChild.textContent)",
    );
    page.until("some have left", "frames.at(-1).causes.handshake > 0");
    page.until(
        "and why",
        "[...document.querySelectorAll('#causes .row')].some(row => row.textContent.startsWith('handshake'))",
    );
    // Two loops, four workers; all of them have had something to do.
    page.until(
        "loops and workers are shown",
        "$('loops').children.length == 2 && $('workers').children.length == 4",
    );
    // News go on, and something is drawn.
    page.until("more comes", "frames.length > 8");
    let drawn = "CHARTS.filter(chart => !chart.card.hidden).every(chart => {
        const {width, height} = chart.canvas;
        const all = chart.canvas.getContext('2d').getImageData(0, 0, width, height).data;
        return all.some(value => value);
    })";
    page.until("the charts are drawn", drawn);
    page.screenshot("dashboard");
    page.dark(true);
    page.screenshot("dashboard-dark");
    page.phone();
    page.until(
        "it fits a phone",
        "document.documentElement.scrollWidth <= innerWidth",
    );
    page.screenshot("dashboard-phone");
    assert_eq!(page.errors(), [""; 0]);
    // Whoever comes later sees the past at once.
    let mut other = browser.page();
    other.open(&example.url("/dashboard"));
    other.until("it has the past", "frames.length > 8");
    assert!(example.stop().success());
    page.until(
        "it says that the server is gone",
        "document.body.dataset.state == 'offline'",
    );
}
