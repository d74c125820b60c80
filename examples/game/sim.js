// What the page shares with the server: how a ship moves (ship.rs), the messages (wire.rs), and how a
// snapshot is taken in (picture.rs). No page in here: the tests run this file under Node, beside the
// Rust it mirrors.
"use strict";

const VERSION = 1;
const UNIT = 1024; // steps to a unit; all places are in steps
const SIZE = 4096 * UNIT;
const RADIUS = 14 * UNIT;
const FULL = 127;
const THRUST = 230, DRAG = 24, DASH = 9000, TOP_SPEED = 20000, DASH_TICKS = 15, DASH_PAUSE = 75;
const STUNNED = 1, SHIELDED = 2, LOST = 4, DASHING = 8;
const COARSE = UNIT / 16; // steps to a unit of the wire

// ---- ship.rs -----------------------------------------------------------------------------------------

const clamp = (value, least, most) => Math.min(Math.max(value, least), most);

// One axis of a step: [place, speed].
function glide(at, speed) {
  speed = clamp(speed, -TOP_SPEED, TOP_SPEED);
  speed -= Math.trunc(speed / DRAG) + Math.sign(speed);
  const to = at + speed;
  const inside = clamp(to, RADIUS, SIZE - RADIUS);
  return [inside, to === inside ? speed : Math.trunc(-speed / 2)];
}

// One tick of a motion {x, y, vx, vy, dash, pause, stun}, in place.
function step(motion, input) {
  let { x, y, dash } = input;
  if (motion.stun > 0) {
    motion.stun--;
    x = y = 0;
    dash = false;
  }
  motion.dash = Math.max(motion.dash - 1, 0);
  motion.pause = Math.max(motion.pause - 1, 0);
  let push = THRUST;
  if (dash && motion.pause === 0 && (x !== 0 || y !== 0)) {
    push += DASH;
    motion.dash = DASH_TICKS;
    motion.pause = DASH_PAUSE;
  }
  [motion.x, motion.vx] = glide(motion.x, motion.vx + Math.trunc((x * push) / FULL));
  [motion.y, motion.vy] = glide(motion.y, motion.vy + Math.trunc((y * push) / FULL));
  return motion;
}

// The input closest to a vector whose full length is 1.
function toInput(x, y, dash) {
  const scale = FULL / Math.max(1, Math.hypot(x, y));
  return { x: Math.trunc(x * scale), y: Math.trunc(y * scale), dash };
}

// ---- wire.rs -----------------------------------------------------------------------------------------

class Reader {
  constructor(buffer) {
    this.view = new DataView(buffer);
    this.at = 0;
  }
  u8() { return this.view.getUint8(this.at++); }
  u16() { return this.view.getUint16((this.at += 2) - 2, true); }
  i16() { return this.view.getInt16((this.at += 2) - 2, true); }
  u32() { return this.view.getUint32((this.at += 4) - 4, true); }
  i32() { return this.view.getInt32((this.at += 4) - 4, true); }
  bytes(length) {
    const bytes = new Uint8Array(this.view.buffer, this.view.byteOffset + this.at, length);
    this.at += length;
    return bytes;
  }
  number() {
    let number = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = this.u8();
      number += (byte & 127) * scale;
      if (byte < 128) return number;
    }
  }
  signed() {
    const number = this.number();
    return (number >>> 1) ^ -(number & 1);
  }
  name() { return new TextDecoder().decode(this.bytes(this.number())); }
  get left() { return this.view.byteLength - this.at; }
  // The entries of one list of a snapshot: calls entry(id, bit).
  each(bit, entry) {
    let id = 0;
    for (let left = this.number(); left > 0; left--) {
      const number = this.number();
      id += bit ? number >>> 1 : number;
      entry(id, bit && (number & 1) === 1);
    }
  }
}

function hello(token, name) {
  const text = new TextEncoder().encode(name).slice(0, 64);
  const out = new Uint8Array(19 + text.length);
  out.set([1, VERSION]);
  if (token) out.set(token, 2);
  out[18] = text.length;
  out.set(text, 19);
  return out;
}

function inputs(first, list) {
  const out = new DataView(new ArrayBuffer(5 + 3 * list.length));
  out.setUint8(0, 2);
  out.setUint32(1, first, true);
  list.forEach((input, n) => {
    out.setInt8(5 + 3 * n, input.x);
    out.setInt8(6 + 3 * n, input.y);
    out.setUint8(7 + 3 * n, input.dash ? 1 : 0);
  });
  return out;
}

function pingMessage(time) {
  const out = new DataView(new ArrayBuffer(9));
  out.setUint8(0, 3);
  out.setFloat64(1, time, true);
  return out;
}

// What the server says: {kind, …}.
function decode(buffer, picture) {
  const reader = new Reader(buffer);
  switch (reader.u8()) {
    case 1:
      return { kind: "welcome", ship: reader.u16(), resumed: reader.u8() === 1,
        token: reader.bytes(16).slice(), rate: reader.u8() };
    case 2:
      return { kind: "snapshot", ...picture.apply(reader) };
    case 3: {
      const board = { kind: "board", players: reader.number(), best: [] };
      while (reader.left > 0) {
        board.best.push({ ship: reader.u16(), score: reader.number(),
          x: (reader.u8() / 256) * SIZE, y: (reader.u8() / 256) * SIZE, name: reader.name() });
      }
      return board;
    }
    case 4:
      return { kind: "pong", time: reader.view.getFloat64(1, true) };
    default:
      throw new Error("a message of another version");
  }
}

// ---- picture.rs --------------------------------------------------------------------------------------

// What is known of the world around the ship. Places of ships and sparks are in units of the wire.
class Picture {
  constructor() {
    this.ships = new Map();
    this.mines = new Map();
    this.sparks = new Map();
    this.gone = []; // sparks that the last snapshot took away
  }

  apply(reader) {
    const tick = reader.u32(), done = reader.u32(), waiting = reader.u8();
    const motion = { x: reader.i32(), y: reader.i32(), vx: reader.i16(), vy: reader.i16(),
      dash: reader.u8(), pause: reader.u8(), stun: reader.u8() };
    const flags = reader.u8(), score = reader.number();

    for (const ship of this.ships.values()) {
      ship.x = (ship.x + ship.dx) & 0xffff;
      ship.y = (ship.y + ship.dy) & 0xffff;
    }
    reader.each(false, id => this.ships.delete(id));
    reader.each(false, id => this.ships.set(id, { id, x: reader.u16(), y: reader.u16(), dx: 0, dy: 0,
      flags: reader.u8(), score: reader.number(), name: reader.name() }));
    reader.each(true, (id, more) => {
      const ship = this.ships.get(id), x = reader.signed(), y = reader.signed();
      ship.x = (ship.x + x) & 0xffff;
      ship.y = (ship.y + y) & 0xffff;
      ship.dx = (ship.dx + x) & 0xffff;
      ship.dy = (ship.dy + y) & 0xffff;
      if (more) {
        ship.flags = reader.u8();
        ship.score = reader.number();
      }
    });
    reader.each(false, id => this.mines.delete(id));
    reader.each(false, id => this.mines.set(id, { id, since: tick - reader.number(),
      x: reader.u16() * COARSE, y: reader.u16() * COARSE, vx: reader.i16(), vy: reader.i16() }));
    this.gone = [];
    reader.each(false, id => {
      this.gone.push(this.sparks.get(id));
      this.sparks.delete(id);
    });
    reader.each(true, (id, gold) => this.sparks.set(id, { id, x: reader.u16(), y: reader.u16(), gold }));
    if (reader.left !== 0) throw new Error("a snapshot with something behind it");
    return { tick, done, waiting, motion, flags, score };
  }
}

if (typeof module !== "undefined") {
  module.exports = { step, toInput, hello, inputs, pingMessage, decode, Picture, Reader };
}
