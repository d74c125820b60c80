//! The pages of the examples when things go wrong: a connection that dies without a word, a browser that
//! forbids storage, words that the server writes otherwise. Skipped, with a word about it, where there is no
//! Chromium.
#![cfg(unix)]

mod support;

use std::process::Command;

use serde_json::json;
use support::browser::{self, Browser, Page};
use support::example::Example;

const CONNECTED: &str = "document.body.dataset.state == 'open'";
const OFFLINE: &str = "document.body.dataset.state == 'offline'";

/// A process that hangs: for those who are connected to it the same as a link that is gone, as nothing tells
/// them.
struct Hung<'a>(&'a Example);

impl<'a> Hung<'a> {
    fn new(example: &'a Example) -> Self {
        Self::signal(example, "-STOP");
        // Each of its threads stops in its own time.
        #[cfg(target_os = "linux")]
        support::until("it has stopped", || {
            let tasks = std::fs::read_dir(format!("/proc/{}/task", example.id())).unwrap();
            tasks.flatten().all(|task| {
                let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                let state = stat
                    .rsplit_once(") ")
                    .map(|(_, rest)| rest.starts_with('T'));
                state.unwrap_or(true)
            })
        });
        Self(example)
    }

    fn signal(example: &Example, name: &str) {
        let mut kill = Command::new("kill");
        let status = kill.args([name, &example.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    fn go_on(self) {
        Self::signal(self.0, "-CONT");
    }
}

/// The page of the chat, with somebody in the lobby.
fn chatter(browser: &'static Browser, chat: &Example, name: &str) -> Page {
    let mut page = browser.page();
    page.open(&chat.url("/"));
    come_in(&mut page, name);
    page
}

fn come_in(page: &mut Page, name: &str) {
    page.click("#name");
    page.type_text(name);
    page.press("Enter");
    page.until("it is in the room", CONNECTED);
}

fn says(page: &mut Page, text: &str) {
    page.eval(&format!(
        "$('text').value = {text}; $('text').form.requestSubmit()"
    ));
}

/// A JavaScript condition: these and no others were said.
fn log(texts: &[&str]) -> String {
    let texts = json!(texts).to_string();
    format!(
        "JSON.stringify([...document.querySelectorAll('.said .text')].map(t => t.textContent)) == {texts:?}"
    )
}

// ---- connections that die without a word ----

#[test]
fn the_ticker_notices_that_nothing_comes() {
    let Some(browser) = browser::find("the ticker notices that nothing comes") else {
        return;
    };
    let ticker = Example::start("ticker", &["--keys", "80"]);
    let mut page = browser.page();
    page.open(&ticker.url("/"));
    let live = format!("{CONNECTED} && stocks.size == 80");
    page.until("it is live", &live);
    let hung = Hung::new(&ticker);
    page.until("it sees that nothing comes", OFFLINE);
    hung.go_on();
    page.until("it is live again", &live);
    assert_eq!(page.errors(), [""; 0]);
}

#[test]
fn the_dashboard_notices_that_nothing_comes() {
    let Some(browser) = browser::find("the dashboard notices that nothing comes") else {
        return;
    };
    let dashboard = Example::start("dashboard", &["--clients", "4"]);
    let mut page = browser.page();
    page.open(&dashboard.url("/dashboard"));
    page.until("it is live", CONNECTED);
    let hung = Hung::new(&dashboard);
    page.until("it sees that nothing comes", OFFLINE);
    hung.go_on();
    page.until("it is live again", CONNECTED);
    assert_eq!(page.errors(), [""; 0]);
}

#[test]
fn the_chat_notices_that_nobody_answers() {
    let Some(browser) = browser::find("the chat notices that nobody answers") else {
        return;
    };
    let chat = Example::start("chat", &[]);
    let mut ada = chatter(browser, &chat, "Ada");
    says(&mut ada, "'one'");
    ada.until("it is said", &log(&["one"]));
    // So that the room stays whatever happens.
    let _ben = chatter(browser, &chat, "Ben");
    ada.until("she has heard of him", "here.textContent.includes('Ben')");

    // What is said is answered, so there is no need to ask.
    let hung = Hung::new(&chat);
    says(&mut ada, "'two'");
    ada.until("she sees that nobody answers", OFFLINE);
    hung.go_on();
    ada.until("she is back", CONNECTED);
    // The server may have come to it before she was back, or not.
    ada.until(
        "it was said, or can be said again",
        "[...document.querySelectorAll('.said .text')].some(t => t.textContent == 'two') != ($('text').value == 'two')",
    );
    assert_eq!(ada.eval("unheard.length"), 0);

    // A page that is looked at again asks.
    let hung = Hung::new(&chat);
    ada.eval("document.dispatchEvent(new Event('visibilitychange'))");
    ada.until("she sees that nobody answers", OFFLINE);
    hung.go_on();
    ada.until("she is back again", CONNECTED);
    // Whoever is answered stays.
    assert_eq!(
        ada.eval(
            "new Promise(done => {
                const answered = on.pong, before = socket;
                on.pong = () => { on.pong = answered; done(silence == 0 && before === socket); };
                document.dispatchEvent(new Event('visibilitychange'));
            })"
        ),
        true
    );
    assert_eq!(ada.errors(), [""; 0]);
}

#[test]
fn the_chat_knows_at_once_that_it_is_offline() {
    let Some(browser) = browser::find("the chat knows at once that it is offline") else {
        return;
    };
    let chat = Example::start("chat", &[]);
    let mut ada = chatter(browser, &chat, "Ada");
    let hung = Hung::new(&chat);
    // The pause is of many seconds.
    let told = "tries = 10, dispatchEvent(new Event('offline')), document.body.dataset.state";
    assert_eq!(ada.eval(told), "offline");
    hung.go_on();
    // It is not waited for.
    let told = "dispatchEvent(new Event('online')), document.body.dataset.state";
    assert_eq!(ada.eval(told), "connecting");
    ada.until("she is back", CONNECTED);
}

#[test]
fn the_ticker_does_not_wait_when_the_link_is_back() {
    let Some(browser) = browser::find("the ticker does not wait when the link is back") else {
        return;
    };
    let ticker = Example::start("ticker", &["--keys", "8"]);
    let addr = ticker.addr.clone();
    let mut page = browser.page();
    page.open(&ticker.url("/"));
    page.until("it is live", CONNECTED);
    // The pause is of many seconds.
    page.eval("tries = 10");
    assert!(ticker.stop().success());
    page.until("it is lost", OFFLINE);
    let _again = Example::start_on("ticker", &addr, &["--keys", "8"]);
    let told = "dispatchEvent(new Event('online')), document.body.dataset.state";
    assert_eq!(page.eval(told), "connecting");
    page.until("it is live again", CONNECTED);
    // Once, not once more when the pause is over.
    page.eval("dispatchEvent(new Event('online'))");
    assert_eq!(page.eval("document.body.dataset.state"), "open");
}

/// The script that the cluster's page has from us.
#[test]
fn a_follower_notices_that_nobody_answers() {
    let Some(browser) = browser::find("a follower notices that nobody answers") else {
        return;
    };
    let cluster = Example::start("cluster", &[]);
    let mut page = browser.page();
    page.open(&cluster.url("/"));
    page.until("it is open", "state.textContent == 'open'");
    page.eval("text.value = 'one'; form.requestSubmit()");
    page.until("all is heard", "log.innerText.trim() == 'one'");
    let hung = Hung::new(&cluster);
    page.eval("dispatchEvent(new Event('online'))");
    page.until("it gives up", "state.textContent != 'open'");
    hung.go_on();
    page.until("it is open again", "state.textContent == 'open'");
    // No answer is shown.
    page.eval("dispatchEvent(new Event('online')); text.value = 'two'; form.requestSubmit()");
    page.until("it hears more", "log.children.length == 2");
    assert_eq!(page.eval("log.lastElementChild.textContent"), "two");
    assert_eq!(page.errors(), [""; 0]);
}

// ---- what is said ----

#[test]
fn what_the_server_writes_otherwise_was_said() {
    let Some(browser) = browser::find("what the server writes otherwise was said") else {
        return;
    };
    let chat = Example::start("chat", &[]);
    let mut ada = chatter(browser, &chat, "Ada");
    says(&mut ada, "'if x:\\n\\treturn'");
    says(&mut ada, r"'half a \uD83E'");
    says(&mut ada, "'the end'");
    ada.until(
        "all is said",
        &log(&["if x:\n return", "half a \u{FFFD}", "the end"]),
    );
    assert_eq!(ada.eval("unheard.length"), 0);
    // Nothing of it is given back.
    ada.eval("socket.close()");
    ada.until("it is lost", OFFLINE);
    ada.until("she is back", CONNECTED);
    assert_eq!(ada.eval("$('text').value"), "");
}

#[test]
fn what_a_node_does_not_take_can_be_said_again() {
    let Some(browser) = browser::find("what a node does not take can be said again") else {
        return;
    };
    let cluster = Example::start("cluster", &[]);
    let mut page = browser.page();
    page.open(&cluster.url("/"));
    page.until("it is open", "state.textContent == 'open'");
    let busy = "publish kept/page\nhello";
    page.eval(&format!("connection.onmessage('busy\\n' + {busy:?})"));
    assert_eq!(page.eval("text.value"), "hello");
    // The longest that can be typed is taken.
    page.eval("text.value = ''");
    page.click("#text");
    page.type_text(&"\u{4E00}".repeat(2000));
    page.press("Enter");
    page.until("it is said", "log.children.length == 1");
    assert_eq!(page.errors(), [""; 0]);
}

/// What was sent to a server that died before it read it: nobody has heard it.
#[test]
fn what_a_dead_server_was_told_can_be_said_again() {
    let Some(browser) = browser::find("what a dead server was told can be said again") else {
        return;
    };
    let chat = Example::start("chat", &[]);
    let cluster = Example::start("cluster", &[]);
    let mut ada = chatter(browser, &chat, "Ada");
    let mut page = browser.page();
    page.open(&cluster.url("/"));
    page.until("it is open", "state.textContent == 'open'");
    // Half a character, and what was heard, are not given back.
    page.eval(r"text.value = 'heard \uD83E'; form.requestSubmit()");
    page.until("it is heard", "log.children.length == 1");
    let addrs = [&chat, &cluster].map(|example| example.addr.clone());
    for (example, page) in [(chat, &mut ada), (cluster, &mut page)] {
        let _hung = Hung::new(&example);
        let form = "document.getElementById('text').form.requestSubmit()";
        for words in ["important", "words"] {
            let say = format!("document.getElementById('text').value = '{words}'; {form}");
            page.eval(&say);
        }
        assert_eq!(page.eval("document.getElementById('text').value"), "");
    }
    let _again = [("chat", &addrs[0]), ("cluster", &addrs[1])]
        .map(|(name, addr)| Example::start_on(name, addr, &[]));
    for page in [&mut ada, &mut page] {
        page.eval("dispatchEvent(new Event('online'))");
        page.until(
            "it can be said again",
            "/^important\\swords$/.test(document.getElementById('text').value)",
        );
    }
    page.eval("form.requestSubmit()");
    page.until(
        "it is heard",
        "log.lastElementChild.textContent == 'important words'",
    );
}

// ---- prices ----

/// An update that has taken the place of an older one may stand before the snapshot that it belongs behind.
#[test]
fn the_higher_number_wins() {
    let Some(browser) = browser::find("the higher number wins") else {
        return;
    };
    let ticker = Example::start("ticker", &["--keys", "8", "--rate", "1"]);
    let mut page = browser.page();
    page.open(&ticker.url("/"));
    page.until("it is live", &format!("{CONNECTED} && stocks.size == 8"));
    let hears = |page: &mut Page, messages: &str| {
        page.eval(&format!(
            "for (const message of {messages}) socket.onmessage({{data: JSON.stringify(message)}})"
        ));
        page.eval("[stocks.get(900).cents, stocks.get(900).n]")
    };
    let snapshot = "{sector: 'foods', stocks: [[900, 'TEST', 700, 7, 500, [1]]]}";
    let before = format!("[[900, 800, 8, 0], {snapshot}]");
    assert_eq!(hears(&mut page, &before), json!([800, 8]), "not known yet");
    let again = format!("[[900, 900, 9, 0], {snapshot}]");
    assert_eq!(hears(&mut page, &again), json!([900, 9]), "known");
    let newer = snapshot.replace("700, 7", "1000, 10");
    assert_eq!(hears(&mut page, &format!("[{newer}]")), json!([1000, 10]));
}

// ---- browsers and words that a page does not expect ----

#[test]
fn a_browser_without_storage() {
    let Some(browser) = browser::find("a browser without storage") else {
        return;
    };
    let chat = Example::start("chat", &[]);
    let mut ada = browser.page();
    let forbidden = "Object.defineProperty(window, 'sessionStorage', {
        get() { throw new DOMException('forbidden', 'SecurityError'); },
    })";
    ada.call(
        "Page.addScriptToEvaluateOnNewDocument",
        json!({ "source": forbidden }),
    );
    ada.open(&chat.url("/"));
    come_in(&mut ada, "Ada");
    says(&mut ada, "'hello'");
    ada.until("it is said", &log(&["hello"]));
    assert_eq!(ada.errors(), [""; 0]);
}

#[test]
fn a_token_that_can_not_be_one() {
    let Some(browser) = browser::find("a token that can not be one") else {
        return;
    };
    let auth = Example::start("auth", &[]);
    let mut page = browser.page();
    page.open(&auth.url("/"));
    page.eval("token.value = 'a b='; f.requestSubmit()");
    page.until(
        "it is told",
        "document.querySelector('#log').textContent.includes('can be no token')",
    );
    page.eval("token.value = 'xyzzy'; f.requestSubmit()");
    page.until(
        "it is let in",
        "document.querySelector('#log').textContent.includes('the adventurer')",
    );
    assert_eq!(page.errors(), [""; 0]);
}
