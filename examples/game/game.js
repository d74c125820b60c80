// The page: the connection, what is steered, what is predicted, and what is told to draw.js.
//
// One's own ship is ahead of the server: each input is carried out here at once, and kept. A snapshot says
// which input the server has carried out last, and where the ship was then; the inputs after it are carried
// out again from there. The others are behind: they are drawn as they were 100 ms ago, between two
// snapshots. Mines are drawn at the time in which one's own inputs will be carried out, as that is when
// they hit.
"use strict";

const TICK = 1000 / 60;
const BEHIND = 6; // ticks; 100 ms
const INPUTS = 3; // that travel together
const REACH = 30; // units within which a ship takes a spark
const PATIENCE = 5; // seconds without a word after which a connection is lost
const $ = id => document.getElementById(id);
const playing = () => wanted && me;

// ---- the connection ----------------------------------------------------------------------------------

let socket, retry, tries = 0, wanted = false;
let aboard = false; // a ship is ours, or waits for us
let silent = 0; // seconds since anything came, as far as they were seen to pass
let bytesIn = 0, bytesOut = 0, ping = null, lag = 0;

// Runs things in order, each a while after it was given: the artificial latency, one way of it.
function delayed() {
  let last = 0;
  return run => {
    const now = performance.now();
    last = Math.max(last, now + lag / 2);
    if (last <= now) run(); else setTimeout(run, last - now);
  };
}
const inbound = delayed(), outbound = delayed();

function connect() {
  clearTimeout(retry);
  state("connecting", tries ? "connecting again …" : "connecting …");
  const mine = new WebSocket(location.href.replace(/^http/, "ws").replace(/[?#].*/, ""));
  socket = mine;
  silent = 0;
  mine.binaryType = "arraybuffer";
  mine.onopen = () => {
    begin();
    send(hello(token(), $("name").value.trim()));
  };
  mine.onmessage = ({ data }) => {
    bytesIn += data.byteLength + (data.byteLength < 126 ? 2 : 4);
    if (mine === socket) word();
    inbound(() => mine === socket && heard(data));
  };
  mine.onclose = ({ code, reason }) => inbound(() => mine === socket && closed(code, reason));
}

function send(bytes) {
  bytesOut += bytes.byteLength + 6;
  const to = socket;
  outbound(() => to.readyState === WebSocket.OPEN && to.send(bytes));
}

// A link that dies need not say so, and TCP waits for minutes; but the server says something each second.
// Seconds are counted here, as the clock also runs while the page stands still and could not hear; and not
// while nobody sees it, when the browser may hold everything up.
function listen() {
  if (!socket || document.hidden) return;
  silent++;
  if (silent > 2 && isOpen()) state("open", "no answer …");
  if (silent <= PATIENCE) return;
  // Its own end may take a minute. Nobody waits for that.
  socket.close();
  closed(1006, "");
}

// Something has come.
function word() {
  silent = 0;
  if (isOpen() && !$("state").hidden) state("open", "");
}

function closed(code, reason) {
  socket = null;
  if (!wanted) return;
  // The game's own codes mean that it would end the same way again.
  if (code >= 4000 && code < 4005) return leave(reason);
  const pause = Math.min(8000, 300 * 2 ** tries++) * (0.6 + 0.8 * Math.random());
  // Try again later: the server says why.
  const why = code === 1013 && reason || (aboard ? "connection lost, your ship waits" : "no connection");
  state("offline", `${why} …`);
  retry = setTimeout(connect, pause);
}

function leave(why = "") {
  wanted = aboard = false;
  clearTimeout(retry);
  state("idle", "");
  $("hud").hidden = true;
  $("door").hidden = false;
  $("why").hidden = !why;
  $("why").textContent = why;
}

const isOpen = () => document.body.dataset.state === "open";
function state(name, text) {
  document.body.dataset.state = name;
  $("state").hidden = !text;
  $("state").textContent = text;
}

// The ship belongs to whoever has its token: this tab, also after it was loaded again.
function token() {
  const hex = recall("sessionStorage", "token");
  return hex && Uint8Array.from(hex.match(/../g), byte => parseInt(byte, 16));
}

// What the browser keeps for the page. Where it keeps nothing, even a word of it throws: then it is known for
// as long as the page is.
const kept = {};
function keep(storage, key, value) {
  kept[key] = value;
  try { window[storage].setItem(key, value); } catch { /* as said */ }
}
function recall(storage, key) {
  try { return window[storage].getItem(key) ?? kept[key]; } catch { return kept[key]; }
}

addEventListener("online", () => {
  tries = 0;
  if (wanted && !socket) connect();
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  silent = 0;
  if (wanted && !socket) connect();
});

// ---- the game ----------------------------------------------------------------------------------------

let me, id, flags, score;   // one's own ship, where it is predicted to be
let before;                 // the same, a tick ago
let error;                  // what is shown off the prediction, while a correction fades away
let pending, unsent, count; // inputs: not confirmed, not sent, how many so far
let picture, tracks;        // what the server has told; where the others were lately
let clock, tick;            // server time less page time, in ms; tick of the last snapshot
let pace;                   // of this page's ticks: a little slower if too many inputs wait, or faster
let best = [], players = 0, particles = [], confirmed = 0, hits = 0;

function begin() {
  me = null;
  pending = [];
  unsent = [];
  count = 0;
  picture = new Picture();
  tracks = new Map();
  clock = null;
  error = { x: 0, y: 0 };
  pace = 1;
}

function heard(data) {
  const message = decode(data, picture);
  switch (message.kind) {
    case "welcome":
      tries = 0;
      aboard = true;
      id = message.ship;
      keep("sessionStorage", "token", Array.from(message.token, b => b.toString(16).padStart(2, "0")).join(""));
      state("open", "");
      $("door").hidden = true;
      $("hud").hidden = false;
      $("name").blur();
      break;
    case "snapshot":
      snapshot(message);
      break;
    case "board":
      ({ best, players } = message);
      board();
      break;
    case "pong":
      ping = performance.now() - message.time;
      break;
  }
}

function snapshot(told) {
  const now = performance.now();
  // The quickest snapshots tell the time best; that a way has become longer is believed slowly.
  const offset = told.tick * TICK - now;
  clock = clock === null || offset > clock ? offset : clock + (offset - clock) * 0.05;
  tick = told.tick;

  const seen = me && { x: me.x + error.x * UNIT, y: me.y + error.y * UNIT };
  const stun = me ? me.stun : 0;
  while (pending.length && pending[0].number <= told.done) pending.shift();
  me = told.motion;
  before = { ...me };
  for (const { input } of pending) {
    before = { ...me };
    step(me, input);
  }
  if (seen) {
    error = { x: (seen.x - me.x) / UNIT, y: (seen.y - me.y) / UNIT };
    if (Math.hypot(error.x, error.y) > 250) error = { x: 0, y: 0 };
  }
  // Three to six inputs wait at the server if all is well: enough for the next ticks, and not stale.
  pace = told.waiting > 6 ? 0.97 : told.waiting < 2 ? 1.02 : 1;

  if (me.stun > stun + 5) {
    hits++;
    burst(me.x / UNIT, me.y / UNIT, 22, "#f0938a");
  }
  for (const gone of picture.gone) {
    const [x, y] = [gone.x / 16, gone.y / 16];
    if (Math.hypot(x - me.x / UNIT, y - me.y / UNIT) < 160) burst(x, y, gone.gold ? 9 : 5, gone.gold ? "#ffd98f" : "#a8efe0");
  }
  if (told.score !== confirmed) {
    const gain = told.score - confirmed;
    if (me && now - shown > 300) particles.push({ x: me.x / UNIT, y: me.y / UNIT, vx: 0, vy: 0, age: 0, life: 900,
      text: gain > 0 ? `+${gain}` : `${gain}`, color: gain > 0 ? "#d6f4ec" : "#f0938a" });
    confirmed = told.score;
    $("points").textContent = confirmed;
  }
  ({ flags, score } = told);

  for (const ship of picture.ships.values()) {
    let track = tracks.get(ship.id);
    if (!track || track.ship !== ship) tracks.set(ship.id, (track = { ship, places: [], wake: [], angle: 0 }));
    track.places.push({ tick, x: ship.x / 16, y: ship.y / 16 });
    if (track.places.length > 20) track.places.shift();
  }
  for (const key of tracks.keys()) if (!picture.ships.has(key)) tracks.delete(key);
}
let shown = 0; // when the arena came to be seen

// Where a ship was at a time: between two snapshots, or a little beyond the last.
function place({ places }, at) {
  let n = places.length - 1;
  while (n > 0 && places[n].tick > at) n--;
  const a = places[n], b = places[n + 1] ?? a;
  if (a !== b) {
    const part = Math.min(1, Math.max(0, (at - a.tick) / (b.tick - a.tick)));
    return { x: a.x + (b.x - a.x) * part, y: a.y + (b.y - a.y) * part };
  }
  const last = places[n - 1];
  const beyond = last && at > a.tick ? Math.min(at - a.tick, BEHIND) / (a.tick - last.tick) : 0;
  return beyond ? { x: a.x + (a.x - last.x) * beyond, y: a.y + (a.y - last.y) * beyond } : { x: a.x, y: a.y };
}

// One tick of one's own ship: carried out here and now, and told.
function play() {
  // Nothing comes back any more: no use in going on alone.
  if (pending.length > 120) return;
  const input = steer(me);
  before = { ...me };
  step(me, input);
  pending.push({ number: ++count, input });
  unsent.push(input);
  if (unsent.length >= INPUTS || input.dash) {
    send(inputs(count - unsent.length + 1, unsent));
    unsent = [];
  }
}

function burst(x, y, many, color) {
  for (let n = 0; n < many; n++) {
    const [angle, speed] = [Math.random() * 7, 30 + Math.random() * 120];
    particles.push({ x, y, vx: Math.cos(angle) * speed, vy: Math.sin(angle) * speed, age: 0, life: 350 + Math.random() * 350, color });
  }
}

// ---- the door ----------------------------------------------------------------------------------------

$("lag").oninput = () => {
  lag = Number($("lag").value);
  $("lagged").textContent = `${lag} ms`;
};
$("lag").onchange = () => $("lag").blur();

document.querySelector("#door form").onsubmit = event => {
  event.preventDefault();
  keep("localStorage", "name", $("name").value.trim());
  wanted = true;
  tries = 0;
  $("why").hidden = true;
  connect();
};
$("name").value = recall("localStorage", "name") ?? "";

// ---- what is shown -----------------------------------------------------------------------------------

const camera = { x: ARENA / 2, y: ARENA / 2 };
const own = { wake: [], angle: heading };
let last = performance.now(), debt = 0, lead = 0;

// Turns an angle towards another, the short way.
const turn = (from, to, part) => from + Math.atan2(Math.sin(to - from), Math.cos(to - from)) * part;

// Adds to the way that a ship came, of which the last part is seen.
function trail(wake, x, y, now) {
  wake.push({ x, y, at: now });
  while (wake[0].at < now - 420) wake.shift();
}

function frame(now) {
  requestAnimationFrame(frame);
  const passed = Math.min(now - last, 250); // after a long sleep the rest is let go
  last = now;
  particles = particles.filter(one => (one.age += passed / one.life) < 1);
  for (const one of particles) {
    one.x += (one.vx * passed) / 1000;
    one.y += (one.vy * passed) / 1000;
  }
  if (!playing()) {
    camera.x += passed * 0.03;
    return draw({ camera, playing: false }, now);
  }
  if (isOpen()) debt += passed * pace;
  for (; debt >= TICK; debt -= TICK) play();
  draw(scene(now, passed), now);
}

function scene(now, passed) {
  const part = debt / TICK;
  const fade = Math.exp(-passed / 90);
  error = { x: error.x * fade, y: error.y * fade };
  const x = (before.x + (me.x - before.x) * part) / UNIT + error.x;
  const y = (before.y + (me.y - before.y) * part) / UNIT + error.y;
  if (!shown || Math.hypot(x - camera.x, y - camera.y) > 400) own.wake = [];
  shown ||= now;
  [camera.x, camera.y] = [x, y];
  trail(own.wake, x, y, now);
  const moving = Math.hypot(me.vx, me.vy) > 200;
  own.angle = turn(own.angle, moving ? Math.atan2(me.vy, me.vx) : heading, 1 - Math.exp(-passed / 60));

  const past = (now + clock) / TICK - BEHIND;
  const ships = [...tracks.values()].map(track => {
    const at = place(track, past);
    const back = track.wake[track.wake.length - 1];
    if (back && Math.hypot(at.x - back.x, at.y - back.y) > 0.4) {
      track.angle = turn(track.angle, Math.atan2(at.y - back.y, at.x - back.x), 1 - Math.exp(-passed / 60));
    }
    trail(track.wake, at.x, at.y, now);
    return { ...track.ship, ...at, wake: track.wake, angle: track.angle };
  });
  const mask = me.stun ? flags | STUNNED : flags & ~STUNNED;
  ships.push({ id, x, y, name: "", score, flags: me.dash ? mask | DASHING : mask & ~DASHING,
    wake: own.wake, angle: own.angle, mine: true, recharge: me.pause / DASH_PAUSE });

  // When one's own inputs of now will be carried out, seen from the server's time as it is known here.
  lead += (tick + pending.length - (now + clock) / TICK - lead) * 0.05;
  const ahead = (now + clock) / TICK + lead;
  const mines = [...picture.mines.values()].map(mine => ({ id: mine.id,
    x: (mine.x + mine.vx * (ahead - mine.since)) / UNIT, y: (mine.y + mine.vy * (ahead - mine.since)) / UNIT }));

  const sparks = [];
  for (const spark of picture.sparks.values()) {
    const at = { id: spark.id, gold: spark.gold, x: spark.x / 16, y: spark.y / 16 };
    // What the ship is about to take is gone at once; unless the server says nothing of the kind.
    if (Math.hypot(at.x - x, at.y - y) < REACH - 4) spark.taken ??= now;
    if (!(now - spark.taken < 1000)) sparks.push(at);
  }
  return { camera, ships, mines, sparks, particles, best, me: id, stick: thumb, playing: true };
}

function board() {
  $("board").replaceChildren(...best.map(one => {
    const row = document.createElement("li"), dot = document.createElement("i"), name = document.createElement("bdi");
    dot.style.background = one.ship === id ? "#eefaf6" : color(one.ship);
    name.textContent = one.name;
    row.className = one.ship === id ? "mine" : "";
    row.append(dot, name, `${one.score}`);
    return row;
  }));
  const rank = best.findIndex(one => one.ship === id) + 1;
  $("rank").textContent = `${rank ? `${rank}. of ` : ""}${players} ${players === 1 ? "player" : "players"}`;
}

function second() {
  listen();
  if (isOpen()) send(pingMessage(performance.now()));
  $("ping").textContent = ping === null ? "–" : Math.round(ping);
  $("down").textContent = (bytesIn / 1000).toFixed(1);
  $("up").textContent = (bytesOut / 1000).toFixed(1);
  bytesIn = bytesOut = 0;
}
setInterval(second, 1000);

// For the console, and for tests: what this page knows, in units.
window.game = {
  get me() { return me ? { id, x: me.x / UNIT, y: me.y / UNIT, score, pending: pending.length } : null; },
  get ships() { return picture ? [...picture.ships.values()].map(s => ({ id: s.id, name: s.name, flags: s.flags, x: s.x / 16, y: s.y / 16 })) : []; },
  get sparks() { return picture ? picture.sparks.size : 0; },
  get error() { return error ? Math.hypot(error.x, error.y) : 0; },
  get ping() { return ping; },
  get hits() { return hits; },
  drop() { socket?.close(); },
};
requestAnimationFrame(frame);
