// A connection to a framemill server that comes back, and gets what it missed of the topics it follows.
//
//   import { Connection } from "/framemill.js";
//   const connection = new Connection("wss://example.com/live");
//   connection.follow("news", {
//     message: (data, offset) => …,  // a string, or an ArrayBuffer if it was published as binary
//     gap: offset => …,              // messages are missing that are kept no longer: load the rest anew
//     live: offset => …,             // all that was missed has come
//     refused: () => …,              // this page does not get it: it follows too many, or may not have it
//   });
//   connection.onstate = state => …; // "connecting", "open" or "waiting"
//   connection.onmessage = data => …; // what belongs to no topic
//
// A connection can die without a word, and a page does not see the server's pings. Where the server answers some
// message, with whatever it likes, `new Connection(url, { ping: "that message" })` says it after 20 s of silence, and
// when the page is looked at again or the link is back; and connects anew if nothing comes within 5 s. Without `ping`
// nothing is asked.
//
// What goes over the wire stands in the server's docs/scaling.md. All that begins like a message of a followed topic
// is taken for one: where other users' words are passed on outside of topics, put something of your own in front.

const FIRST = 250, LONGEST = 10_000; // milliseconds between attempts
const QUIET = 20, PATIENCE = 5; // seconds without a word until it is asked, and then until it is given up

export class Connection {
  onstate = () => {};
  onmessage = () => {};
  #url; #ping; #socket; #timer; #failures = 0;
  #silence = 0; // seconds since something was heard
  #end = new AbortController();
  #topics = new Map(); // topic → { since, message, gap, live, refused }
  #decoder = new TextDecoder();

  constructor(url, { ping } = {}) {
    this.#url = url;
    this.#ping = ping;
    const { signal } = this.#end;
    const clock = setInterval(() => this.#second(), 1000);
    signal.onabort = () => clearInterval(clock);
    globalThis.addEventListener?.("online", () => this.#look(), { signal });
    // A worker has none.
    globalThis.document?.addEventListener("visibilitychange", () => document.hidden || this.#look(), { signal });
    this.#connect();
  }

  // From `since` on: "now", "start", or an offset that was given before.
  follow(topic, { since = "now", message = () => {}, gap = () => {}, live = () => {}, refused = () => {} }) {
    this.#topics.set(topic, { since, message, gap, live, refused });
    this.send(`follow ${since} ${topic}`);
  }

  // The server has to be told in words of your own.
  forget(topic) {
    this.#topics.delete(topic);
  }

  // How far a topic has come: for `since`, when the page is loaded anew.
  offset(topic) {
    return this.#topics.get(topic)?.since;
  }

  // Whether it could be sent: only while the connection is open.
  send(data) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(data);
    return true;
  }

  close() {
    this.#end.abort();
    clearTimeout(this.#timer);
    this.#socket?.close(1000);
  }

  #connect() {
    clearTimeout(this.#timer);
    this.onstate("connecting");
    const socket = this.#socket = new WebSocket(this.#url);
    socket.binaryType = "arraybuffer";
    this.#silence = QUIET - PATIENCE; // so that it is given up after ten seconds
    socket.onopen = () => {
      this.#failures = this.#silence = 0;
      for (const [topic, { since }] of this.#topics) socket.send(`follow ${since} ${topic}`);
      this.onstate("open");
    };
    socket.onmessage = event => {
      this.#silence = 0;
      this.#take(event.data);
    };
    socket.onclose = () => this.#wait();
  }

  #wait() {
    this.#socket = null;
    if (this.#end.signal.aborted) return;
    // Half of it at random, so that clients which were lost together don't come back together.
    const pause = Math.min(LONGEST, FIRST * 2 ** this.#failures++) * (0.5 + Math.random() / 2);
    this.#timer = setTimeout(() => this.#connect(), pause);
    this.onstate("waiting");
  }

  // Seconds are counted, not measured: while the page sleeps, none passes.
  #second() {
    const socket = this.#socket;
    if (!socket || socket.readyState === WebSocket.OPEN && this.#ping === undefined) return;
    if (++this.#silence === QUIET) this.send(this.#ping);
    if (this.#silence <= QUIET + PATIENCE) return;
    // The browser would wait for an answer to its close frame.
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
    this.#wait();
  }

  // The link is back, or somebody looks at the page again.
  #look() {
    if (!this.#socket) return this.#connect();
    if (this.#ping === undefined || !this.send(this.#ping)) return;
    this.#silence = Math.max(this.#silence, QUIET);
  }

  #take(data) {
    const isText = typeof data === "string";
    const bytes = isText ? null : new Uint8Array(data);
    const end = isText ? data.indexOf("\n") : bytes.indexOf(10);
    const line = end < 0 ? "" : isText ? data.slice(0, end) : this.#decoder.decode(bytes.subarray(0, end));
    const [, kind, offset, name] = line.match(/^(msg|gap|live|refused) (now|start|\d+-\d+(?:-\d+)?) (.*)$/s) ?? [];
    const topic = this.#topics.get(name);
    if (!topic) return this.onmessage(data);
    if (kind === "refused") return topic.refused();
    topic.since = offset;
    if (kind === "msg") topic.message(data.slice(end + 1), offset);
    else topic[kind](offset);
  }
}
