//! A headless Chromium, told what to do over its DevTools protocol.
//!
//! ```ignore
//! let Some(browser) = browser::find("chat: two talk") else { return };
//! let mut page = browser.page();
//! page.open("http://127.0.0.1:9001/");
//! page.until("it is connected", "document.body.dataset.state == 'open'");
//! ```
//!
//! One browser serves all tests of a process. Each page has a context of its own, so it shares no
//! storage and no cookies with the others. A page counts as visible and focused, however many
//! there are. Every wait is bounded by [`WAIT`].

use std::collections::VecDeque;
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

use super::WAIT;
use super::needs::skipped;

/// Cargo's target directory, whatever it is called.
const TARGET: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/..");

/// Between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(10);

const FLAGS: &[&str] = &[
    "--headless",
    "--no-sandbox", // root has none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
    // Nothing but what the pages ask for.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    // A page that is not in front runs as one that is.
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--remote-debugging-port=0",
];

/// Runs a browser until its own standard input ends, also because the test process was killed. Then
/// all of it is told to end, and nothing is left of it: `cat` ends once none of its processes is there.
/// If it ends by itself before, there is a file that says so.
const TETHER: &str = r#"
("$@"; : >"$DIR/ended") 2>&1 | (trap '' TERM; exec cat >"$DIR/log") &
read -r _
trap : TERM
kill 0
wait
rm -rf "$DIR"
"#;

/// The browser; or `None` where there is none, with a word that `test` is skipped, unless
/// `FRAMEMILL_INTEROP` is `required`.
pub fn find(test: &str) -> Option<&'static Browser> {
    static BROWSER: OnceLock<Option<Browser>> = OnceLock::new();
    let browser = BROWSER.get_or_init(|| executable().map(|path| Browser::start(&path)));
    if browser.is_none() {
        skipped(format_args!(
            "{test}: no Chromium, see tests/interop/setup.sh"
        ));
    }
    browser.as_ref()
}

/// `$CHROMIUM`, what `tests/interop/setup.sh` found, or the first in `PATH` by one of its names.
fn executable() -> Option<PathBuf> {
    let named = std::env::var_os("CHROMIUM").map(PathBuf::from);
    let tools = fs::read_to_string(Path::new(TARGET).join("interop/tools")).unwrap_or_default();
    let found = tools
        .lines()
        .find_map(|line| line.strip_prefix("chromium "));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let names = [
        "chromium-headless-shell",
        "chromium",
        "chromium-browser",
        "google-chrome",
    ];
    let in_path = names
        .iter()
        .flat_map(|name| std::env::split_paths(&path).map(move |dir| dir.join(name)));
    named
        .into_iter()
        .chain(found.map(PathBuf::from))
        .chain(in_path)
        .find(|path| path.is_file())
}

/// A running browser.
pub struct Browser {
    addr: SocketAddr,
    /// To the browser itself, not to one of its pages.
    devtools: Mutex<DevTools>,
    /// Its standard input is the tether.
    _process: Child,
}

impl Browser {
    /// A browser crashes at times while it starts: that is not what is tested.
    fn start(executable: &Path) -> Self {
        let started = (0..3).find_map(|attempt| Self::try_start(executable, attempt));
        started.expect("the browser starts in one of three attempts")
    }

    /// `None`: it ended at once.
    fn try_start(executable: &Path, attempt: u32) -> Option<Self> {
        let name = format!("tmp/chromium-{}-{attempt}", std::process::id());
        let dir = Path::new(TARGET).join(name);
        // Of another process that had this number.
        let _ = fs::remove_dir_all(&dir);
        let profile = dir.join("profile");
        fs::create_dir_all(&profile).unwrap();
        let mut process = Command::new("sh")
            .args(["-c", TETHER, "sh"])
            .arg(executable)
            .args(FLAGS)
            .arg(format!("--user-data-dir={}", profile.display()))
            .env("DIR", &dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A group of its own, to be ended together.
            .process_group(0)
            .spawn()
            .unwrap();
        let address = profile.join("DevToolsActivePort");
        let started = Instant::now();
        let address = loop {
            let text = fs::read_to_string(&address).unwrap_or_default();
            if let Some((port, path)) = text.split_once('\n').filter(|(_, path)| !path.is_empty()) {
                break (port.parse().unwrap(), path.trim().to_owned());
            }
            let log = || fs::read_to_string(dir.join("log")).unwrap_or_default();
            if dir.join("ended").exists() {
                eprintln!("{} ended at once: {}", executable.display(), log());
                drop(process.stdin.take());
                process.wait().unwrap();
                return None;
            }
            if started.elapsed() > WAIT {
                panic!("{} does not start: {}", executable.display(), log());
            }
            std::thread::sleep(PAUSE);
        };
        let addr = SocketAddr::from(([127, 0, 0, 1], address.0));
        Some(Self {
            addr,
            devtools: Mutex::new(DevTools::connect(addr, &address.1)),
            _process: process,
        })
    }

    fn call(&self, method: &str, params: Value) -> Value {
        let mut devtools = self.devtools.lock().unwrap_or_else(PoisonError::into_inner);
        devtools.call(method, params)
    }

    /// A new page with storage and cookies of its own, 1280 × 800. It is closed when it is dropped.
    pub fn page(&'static self) -> Page {
        let context = self.call("Target.createBrowserContext", json!({}));
        let context = context["browserContextId"].as_str().unwrap().to_owned();
        let params = json!({"url": "about:blank", "browserContextId": context, "newWindow": true});
        let target = self.call("Target.createTarget", params);
        let target = target["targetId"].as_str().unwrap();
        let mut devtools = DevTools::connect(self.addr, &format!("/devtools/page/{target}"));
        for domain in ["Page", "Runtime", "Log"] {
            devtools.call(&format!("{domain}.enable"), json!({}));
        }
        devtools.call(
            "Emulation.setFocusEmulationEnabled",
            json!({"enabled": true}),
        );
        let mut page = Page {
            browser: self,
            context,
            devtools,
        };
        page.screen(1280, 800, 1.0, false);
        page
    }
}

/// A page in a tab of its own.
pub struct Page {
    browser: &'static Browser,
    context: String,
    devtools: DevTools,
}

impl Page {
    /// Goes to `url`, and waits until it is loaded.
    pub fn open(&mut self, url: &str) {
        self.devtools.forget("Page.loadEventFired");
        let answer = self.call("Page.navigate", json!({ "url": url }));
        assert_eq!(answer.get("errorText"), None, "{url}");
        self.devtools.event("Page.loadEventFired");
    }

    /// The value of a JavaScript expression; of a promise, what it comes to. Throws what it throws.
    pub fn eval(&mut self, expression: &str) -> Value {
        let params = json!({
            "expression": expression,
            "awaitPromise": true,
            "returnByValue": true,
            "userGesture": true,
        });
        let mut answer = self.call("Runtime.evaluate", params);
        let thrown = &answer["exceptionDetails"];
        assert!(thrown.is_null(), "{expression}: {}", exception(thrown));
        answer["result"]["value"].take()
    }

    /// Waits until a JavaScript condition holds.
    pub fn until(&mut self, what: &str, condition: &str) {
        let started = Instant::now();
        while self.eval(&format!("!!({condition})")) != true {
            if started.elapsed() > WAIT {
                let shown = self.eval("document.body.innerText.slice(0, 2000)");
                let errors = self.errors();
                panic!("waited in vain until {what}: {condition}\n{shown}\n{errors:?}");
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// The exceptions that nothing caught, and what was written to `console.error`, so far.
    pub fn errors(&mut self) -> Vec<String> {
        // Whatever has happened by now is told before this is answered.
        self.call("Runtime.evaluate", json!({"expression": "0"}));
        let events = self.devtools.events.iter();
        events
            .filter_map(|event| match event["method"].as_str()? {
                "Log.entryAdded" if event["params"]["entry"]["level"] == "error" => {
                    Some(event["params"]["entry"].to_string())
                }
                "Runtime.exceptionThrown" => Some(exception(&event["params"]["exceptionDetails"])),
                "Runtime.consoleAPICalled" if event["params"]["type"] == "error" => {
                    Some(event["params"]["args"].to_string())
                }
                _ => None,
            })
            .collect()
    }

    /// The size of the viewport in CSS pixels; `scale` device pixels each. `phone`: touch, and the
    /// page's own viewport settings.
    pub fn screen(&mut self, width: u32, height: u32, scale: f64, phone: bool) {
        let params = json!({
            "width": width, "height": height, "deviceScaleFactor": scale, "mobile": phone,
        });
        self.call("Emulation.setDeviceMetricsOverride", params);
        let mut touch = json!({ "enabled": phone });
        if phone {
            touch["maxTouchPoints"] = 5.into();
        }
        self.call("Emulation.setTouchEmulationEnabled", touch);
    }

    /// An ordinary phone, upright.
    pub fn phone(&mut self) {
        self.screen(390, 844, 2.0, true);
    }

    /// Whether the user likes dark pages.
    pub fn dark(&mut self, dark: bool) {
        let value = if dark { "dark" } else { "light" };
        let features = json!([{"name": "prefers-color-scheme", "value": value}]);
        self.call(
            "Emulation.setEmulatedMedia",
            json!({ "features": features }),
        );
    }

    /// Types a text into what has the focus, all at once.
    pub fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", json!({ "text": text }));
    }

    /// Presses a key and lets go: see [`key`](Self::key).
    pub fn press(&mut self, key: &str) {
        self.key(key, true);
        self.key(key, false);
    }

    /// A key goes down or up, by its name in `KeyboardEvent.key`: `a`, `7`, `Enter`, `ArrowLeft`.
    pub fn key(&mut self, key: &str, down: bool) {
        let (code, number, text) = match key {
            "Enter" => (key.to_owned(), 13, "\r"),
            "Tab" => (key.to_owned(), 9, ""),
            "Escape" => (key.to_owned(), 27, ""),
            "Shift" => ("ShiftLeft".into(), 16, ""),
            " " => ("Space".into(), 32, " "),
            "ArrowLeft" => (key.to_owned(), 37, ""),
            "ArrowUp" => (key.to_owned(), 38, ""),
            "ArrowRight" => (key.to_owned(), 39, ""),
            "ArrowDown" => (key.to_owned(), 40, ""),
            _ => {
                let upper = key.to_ascii_uppercase();
                let number = upper.as_bytes()[0];
                let kind = if number.is_ascii_digit() {
                    "Digit"
                } else {
                    "Key"
                };
                (format!("{kind}{upper}"), number.into(), key)
            }
        };
        let mut params = json!({
            "type": if down { "keyDown" } else { "keyUp" },
            "key": key, "code": code, "windowsVirtualKeyCode": number,
        });
        if down && !text.is_empty() {
            params["text"] = text.into();
        }
        self.call("Input.dispatchKeyEvent", params);
    }

    /// Clicks into the middle of the first element that `selector` finds.
    pub fn click(&mut self, selector: &str) {
        let (x, y) = self.middle(selector);
        self.mouse("mouseMoved", x, y);
        self.mouse("mousePressed", x, y);
        self.mouse("mouseReleased", x, y);
    }

    /// `mouseMoved`, `mousePressed` or `mouseReleased`, in CSS pixels, with the left button.
    pub fn mouse(&mut self, kind: &str, x: f64, y: f64) {
        let button = if kind == "mouseMoved" { "none" } else { "left" };
        let params = json!({"type": kind, "x": x, "y": y, "button": button, "clickCount": 1});
        self.call("Input.dispatchMouseEvent", params);
    }

    /// Taps with a finger on the middle of an element.
    pub fn tap(&mut self, selector: &str) {
        let at = self.middle(selector);
        self.touch("touchStart", &[at]);
        self.touch("touchEnd", &[]);
    }

    /// `touchStart`, `touchMove` or `touchEnd`, with all fingers that are down after it.
    pub fn touch(&mut self, kind: &str, fingers: &[(f64, f64)]) {
        let points = fingers.iter().enumerate();
        let points: Vec<_> = points
            .map(|(id, (x, y))| json!({"x": x, "y": y, "id": id}))
            .collect();
        self.call(
            "Input.dispatchTouchEvent",
            json!({"type": kind, "touchPoints": points}),
        );
    }

    fn middle(&mut self, selector: &str) -> (f64, f64) {
        let at = self.eval(&format!(
            "(() => {{
                const element = document.querySelector({selector:?});
                element.scrollIntoView({{block: 'nearest'}});
                const box = element.getBoundingClientRect();
                return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"
        ));
        (at[0].as_f64().unwrap(), at[1].as_f64().unwrap())
    }

    /// What the page looks like, into `screenshots/NAME.png` of cargo's target directory.
    pub fn screenshot(&mut self, name: &str) {
        let answer = self.call("Page.captureScreenshot", json!({"format": "png"}));
        let png = base64(answer["data"].as_str().unwrap());
        assert!(png.starts_with(b"\x89PNG"));
        let dir = Path::new(TARGET).join("screenshots");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("{name}.png")), png).unwrap();
    }

    /// Any method of the protocol: its result.
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.devtools.call(method, params)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // A failed test is not to fail twice.
        if !std::thread::panicking() {
            let params = json!({"browserContextId": self.context});
            self.browser.call("Target.disposeBrowserContext", params);
        }
    }
}

fn exception(details: &Value) -> String {
    let description = details["exception"]["description"].as_str();
    description.map_or_else(|| details.to_string(), str::to_owned)
}

/// A connection that speaks the protocol.
struct DevTools {
    socket: WebSocket<TcpStream>,
    last_id: u64,
    /// What happened while something else was waited for.
    events: VecDeque<Value>,
}

impl DevTools {
    fn connect(addr: SocketAddr, path: &str) -> Self {
        let stream = TcpStream::connect_timeout(&addr, WAIT).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        stream.set_nodelay(true).unwrap();
        let (socket, _) = tungstenite::client::client(format!("ws://{addr}{path}"), stream)
            .unwrap_or_else(|error| panic!("{path}: {error}"));
        Self {
            socket,
            last_id: 0,
            events: VecDeque::new(),
        }
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let call = json!({"id": self.last_id, "method": method, "params": params});
        self.socket.send(Message::text(call.to_string())).unwrap();
        loop {
            let mut message = self.read();
            if message.get("id").is_none() {
                self.events.push_back(message);
                continue;
            }
            assert_eq!(message["id"], self.last_id);
            let error = &message["error"];
            assert!(error.is_null(), "{method}: {error}");
            return message["result"].take();
        }
    }

    /// Waits for an event, unless it has come already.
    fn event(&mut self, method: &str) {
        let came = self.events.iter().any(|event| event["method"] == method);
        if !came {
            while self.read()["method"] != method {}
        }
    }

    fn forget(&mut self, method: &str) {
        self.events.retain(|event| event["method"] != method);
    }

    fn read(&mut self) -> Value {
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => return serde_json::from_str(&text).unwrap(),
                Ok(_) => {}
                Err(error) => panic!("the browser says nothing: {error}"),
            }
        }
    }
}

fn base64(text: &str) -> Vec<u8> {
    let (mut bytes, mut bits, mut have) = (Vec::with_capacity(text.len() / 4 * 3), 0u32, 0);
    for digit in text.bytes().take_while(|digit| *digit != b'=') {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            _ => 63,
        };
        bits = bits << 6 | u32::from(value);
        have += 6;
        if have >= 8 {
            have -= 8;
            bytes.push((bits >> have) as u8);
        }
    }
    bytes
}
