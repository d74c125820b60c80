//! The pages of the examples in a real browser.
//!
//! Where there is no Chromium, the tests are skipped, with a word about it, unless
//! `FRAMEMILL_INTEROP` is `required`. What the pages look like is in `target/screenshots`.

mod support;

use support::browser;

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
