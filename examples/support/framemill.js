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
// What goes over the wire stands in the server's docs/scaling.md.

const FIRST = 250, LONGEST = 10_000; // milliseconds between attempts

export class Connection {
  onstate = () => {};
  onmessage = () => {};
  #url; #socket; #timer; #failures = 0; #closed = false;
  #topics = new Map(); // topic → { since, message, gap, live, refused }
  #decoder = new TextDecoder();

  constructor(url) {
    this.#url = url;
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
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#socket?.close(1000);
  }

  #connect() {
    this.onstate("connecting");
    const socket = this.#socket = new WebSocket(this.#url);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      this.#failures = 0;
      for (const [topic, { since }] of this.#topics) socket.send(`follow ${since} ${topic}`);
      this.onstate("open");
    };
    socket.onmessage = event => this.#take(event.data);
    socket.onclose = () => {
      if (this.#closed) return;
      // Half of it at random, so that clients which were lost together don't come back together.
      const pause = Math.min(LONGEST, FIRST * 2 ** this.#failures++) * (0.5 + Math.random() / 2);
      this.#timer = setTimeout(() => this.#connect(), pause);
      this.onstate("waiting");
    };
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
