"""A page in headless Chromium as a peer.

    browser.py URL --chromium PATH [--can LIST] [--max-message BYTES] [--deflate] [--ca FILE] [--page URL]
               [--refusing URL] [--seconds N]

Opens page.html, which holds the echo server at URL (ws:// or wss://) against the checks of checks.js; output and exit
status are those of `peer.py client`, and so are the arguments that both have. The page is served by this script, on a
port of its own, unless --page says where it is to be had. --refusing is a server that must not let the page in.

Without --ca, certificates are not looked at more than usual. With it, the server's certificate is verified here, and
the browser is then told to trust its key: it has no other way to be given a CA for one run.
"""

import argparse
import base64
import hashlib
import http.server
import os
import pathlib
import queue
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

HERE = pathlib.Path(__file__).parent
FILES = {"/page.html": "text/html", "/checks.js": "text/javascript"}


class GaveUp(Exception):
    """The page didn't come to its end."""


class Pages(http.server.BaseHTTPRequestHandler):
    """Serves the page, and takes its lines."""

    lines = queue.Queue()

    def do_GET(self):
        path = urllib.parse.urlsplit(self.path).path
        known = path in FILES
        body = HERE.joinpath(path[1:]).read_bytes() if known else b""
        self.send_response(200 if known else 404)
        self.send_header("Content-Type", FILES.get(path, "text/plain"))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.lines.put(body.decode())
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def key_of(url, ca):
    """The hash of the key of a server whose certificate `ca` vouches for, as Chromium wants it."""
    at = urllib.parse.urlsplit(url)
    certificate = ssl.get_server_certificate((at.hostname, at.port or 443), ca_certs=ca, timeout=10)
    run = lambda *words, given: subprocess.run(["openssl", *words], input=given, check=True, capture_output=True).stdout
    public = run("x509", "-pubkey", "-noout", given=certificate.encode())
    return base64.b64encode(hashlib.sha256(run("pkey", "-pubin", "-outform", "der", given=public)).digest()).decode()


def chromium(args, profile, page):
    command = [
        args.chromium,
        "--headless",
        "--no-sandbox",  # root has none
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--enable-logging=stderr",  # a page is not told why it has no connection, its console is
        # Nothing but what the page asks for.
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-proxy-server",
        f"--user-data-dir={profile}",
        # Keeps the browser running until it is told otherwise.
        "--remote-debugging-port=0",
    ]
    if args.ca:
        command.append(f"--ignore-certificate-errors-spki-list={key_of(args.url, args.ca)}")
    log = open(os.path.join(profile, "log"), "wb")
    # In a group of its own, so that its many processes can be ended together.
    return subprocess.Popen(
        [*command, page], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )


def end(browser):
    try:
        os.killpg(browser.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    browser.wait()


def results(browser, seconds):
    """Prints what the page says, and returns how many checks failed. Gives up with an exception."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            line = Pages.lines.get(timeout=0.5)
        except queue.Empty:
            if browser.poll() is not None:
                raise GaveUp(f"the browser ended with status {browser.returncode}")
            continue
        if line.startswith("done "):
            return int(line.removeprefix("done "))
        print(line, flush=True)
    raise GaveUp(f"not through after {seconds} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--chromium", required=True)
    parser.add_argument("--can", default="")
    parser.add_argument("--max-message", type=int, default=1 << 20)
    parser.add_argument("--deflate", action="store_true")
    parser.add_argument("--ca")
    parser.add_argument("--page")
    parser.add_argument("--refusing")
    parser.add_argument("--seconds", type=int, default=120, help="bound on everything")
    args = parser.parse_args()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    own = f"http://127.0.0.1:{server.server_port}"
    query = {"url": args.url, "can": args.can, "maxMessage": args.max_message, "report": f"{own}/report"}
    if args.deflate:
        query["deflate"] = "true"
    if args.refusing:
        query["refusing"] = args.refusing
    page = f"{args.page or own + '/page.html'}?{urllib.parse.urlencode(query)}"

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(98))  # by way of `finally`
    profile = tempfile.mkdtemp(prefix="framemill-chromium-")
    browser = chromium(args, profile, page)
    try:
        failures = results(browser, args.seconds)
        if failures:
            said = pathlib.Path(profile, "log").read_text(errors="replace").splitlines()
            print(*(f"# {line}" for line in said if "CONSOLE" in line), sep="\n", flush=True)
        return min(failures, 99)
    except GaveUp as why:
        print(f"FAILED everything: {why}; the end of what the browser said:", flush=True)
        sys.stdout.buffer.write(pathlib.Path(profile, "log").read_bytes()[-4000:])
        return 1
    finally:
        end(browser)
        shutil.rmtree(profile, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
