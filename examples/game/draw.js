// What is seen. Everything is drawn on one canvas, in units of the arena; `scene` says what is where.
"use strict";

const VIEW = 896; // units along the longer side of the screen; the server shows at least as much
const ARENA = SIZE / UNIT;
const INK = "#0b0f15";

const canvas = document.getElementById("arena");
const pen = canvas.getContext("2d", { alpha: false });
let width, height, scale; // of the screen in CSS pixels, and pixels to a unit

function fit() {
  const dense = Math.min(devicePixelRatio || 1, 2);
  [width, height] = [innerWidth, innerHeight];
  [canvas.width, canvas.height] = [width * dense, height * dense];
  scale = Math.max(width, height) / VIEW;
  pen.setTransform(dense, 0, 0, dense, 0, 0);
}
addEventListener("resize", fit);
fit();

// A soft disc of light, drawn once and copied from then on: far cheaper than a shadow.
function glow(radius, ...stops) {
  const sprite = document.createElement("canvas");
  sprite.width = sprite.height = radius * 2;
  const brush = sprite.getContext("2d");
  const light = brush.createRadialGradient(radius, radius, 0, radius, radius, radius);
  stops.forEach(([at, color]) => light.addColorStop(at, color));
  brush.fillStyle = light;
  brush.fillRect(0, 0, radius * 2, radius * 2);
  return sprite;
}
const SPARK = glow(32, [0, "#f2fffb"], [0.12, "#b5f5e6"], [0.2, "#6fd8c480"], [1, "#6fd8c400"]);
const GOLD = glow(48, [0, "#fffaf0"], [0.16, "#ffe3a3"], [0.26, "#f4b85e80"], [1, "#f4b85e00"]);
const MINE = glow(96, [0, "#d95d5566"], [0.4, "#d95d5522"], [1, "#d95d5500"]);
const MISTS = [glow(64, [0, "#2f8f8a"], [1, "#2f8f8a00"]), glow(64, [0, "#5a4aa0"], [1, "#5a4aa000"])];
const STAR = glow(8, [0, "#ffffff"], [1, "#ffffff00"]);

// Ships keep a colour each; neighbours in number are far apart in hue.
const hue = id => (id * 137.5 + 200) % 360;
const color = (id, alpha = 1, light = 70) => `hsl(${hue(id)} 62% ${light}% / ${alpha})`;

const hash = (x, y) => {
  let n = Math.imul(x, 374761393) + Math.imul(y, 668265263);
  n = Math.imul(n ^ (n >>> 13), 1274126177);
  return (n ^ (n >>> 16)) >>> 0;
};

// Mist, far away, so that one place does not look like the other. It has no edges, so it is painted small
// and stretched.
const MIST = document.createElement("canvas");
const mist = MIST.getContext("2d", { alpha: false });

function mists(camera) {
  const [small, depth] = [12, 0.16];
  [MIST.width, MIST.height] = [Math.ceil(width / small), Math.ceil(height / small)];
  mist.fillStyle = INK;
  mist.fillRect(0, 0, MIST.width, MIST.height);
  mist.globalAlpha = 0.16;
  for (let n = 0; n < 10; n++) {
    const place = (seed, at, middle) => ((hash(n, seed) % ARENA) - at) * depth * scale + middle;
    const [x, y] = [place(7, camera.x, width / 2) / small, place(8, camera.y, height / 2) / small];
    const size = (260 + (hash(n, 9) % 220)) / small;
    mist.drawImage(MISTS[n % 2], x - size, y - size, size * 2, size * 2);
  }
  pen.drawImage(MIST, 0, 0, width, height);
}

// Three layers of stars that move by less than the arena does.
function sky(camera) {
  mists(camera);
  for (const [depth, cell, size, alpha] of [[0.25, 90, 1.6, 0.3], [0.45, 130, 2.2, 0.4], [0.7, 210, 3, 0.5]]) {
    const [left, top] = [camera.x * depth * scale - width / 2, camera.y * depth * scale - height / 2];
    for (let row = Math.floor(top / cell); row * cell < top + height; row++) {
      for (let column = Math.floor(left / cell); column * cell < left + width; column++) {
        const seed = hash(column, row);
        const x = (column + (seed & 255) / 256) * cell - left;
        const y = (row + ((seed >> 8) & 255) / 256) * cell - top;
        pen.globalAlpha = alpha * (0.3 + ((seed >> 16) & 255) / 365);
        pen.drawImage(STAR, x - size, y - size, size * 2, size * 2);
      }
    }
  }
  pen.globalAlpha = 1;
}

// A faint grid that moves with the arena, and the edge of it.
function ground(camera) {
  const step = 128;
  const [halfX, halfY] = [width / 2 / scale, height / 2 / scale];
  pen.strokeStyle = "#8fb3d00d";
  pen.lineWidth = 1 / scale;
  pen.beginPath();
  const from = at => Math.max(0, Math.ceil(at / step) * step);
  for (let x = from(camera.x - halfX); x <= Math.min(ARENA, camera.x + halfX); x += step) {
    pen.moveTo(x, Math.max(0, camera.y - halfY));
    pen.lineTo(x, Math.min(ARENA, camera.y + halfY));
  }
  for (let y = from(camera.y - halfY); y <= Math.min(ARENA, camera.y + halfY); y += step) {
    pen.moveTo(Math.max(0, camera.x - halfX), y);
    pen.lineTo(Math.min(ARENA, camera.x + halfX), y);
  }
  pen.stroke();
  for (const [wide, alpha] of [[14, 0.05], [6, 0.09], [1.5, 0.5]]) {
    pen.lineWidth = wide;
    pen.strokeStyle = `rgb(143 224 207 / ${alpha})`;
    pen.strokeRect(0, 0, ARENA, ARENA);
  }
}

function spark({ x, y, gold, id }, now) {
  const pulse = 1 + 0.14 * Math.sin(now / 380 + id * 1.7);
  const size = (gold ? 25 : 15) * pulse;
  pen.drawImage(gold ? GOLD : SPARK, x - size, y - size, size * 2, size * 2);
}

function mine({ x, y, id }, now) {
  pen.save();
  pen.translate(x, y);
  pen.drawImage(MINE, -58, -58, 116, 116);
  pen.rotate(now / 2600 * (id % 2 ? 1 : -1) + id);
  pen.beginPath();
  for (let n = 0; n < 16; n++) {
    const [reach, angle] = [n % 2 ? 16.5 : 24, (n * Math.PI) / 8];
    pen.lineTo(reach * Math.cos(angle), reach * Math.sin(angle));
  }
  pen.closePath();
  pen.fillStyle = "#2a1518";
  pen.strokeStyle = "#e0736a";
  pen.lineWidth = 1.6;
  pen.lineJoin = "round";
  pen.fill();
  pen.stroke();
  pen.beginPath();
  pen.arc(0, 0, 5.5 + Math.sin(now / 420 + id), 0, 7);
  pen.fillStyle = "#f0938a";
  pen.fill();
  pen.restore();
}

// The way that a ship came, thinner and fainter the longer ago.
function wake({ wake, id, mine: own, flags }) {
  if (wake.length < 2) return;
  pen.lineCap = "butt"; // round ends would show where they overlap
  const strong = flags & DASHING ? 0.8 : 0.4;
  for (let n = 1; n < wake.length; n++) {
    const part = n / wake.length;
    pen.strokeStyle = own ? `rgb(214 244 236 / ${part * strong})` : color(id, part * strong);
    pen.lineWidth = 1 + part * (flags & DASHING ? 9 : 5);
    pen.beginPath();
    pen.moveTo(wake[n - 1].x, wake[n - 1].y);
    pen.lineTo(wake[n].x, wake[n].y);
    pen.stroke();
  }
}

function ship(one, now) {
  const { x, y, id, flags, angle, name, score, mine: own } = one;
  pen.save();
  pen.translate(x, y);
  pen.globalAlpha = flags & LOST ? 0.35 : 1;
  if (flags & SHIELDED && !(flags & LOST)) {
    pen.strokeStyle = `rgb(190 230 255 / ${0.28 + 0.14 * Math.sin(now / 130)})`;
    pen.lineWidth = 1.5;
    pen.beginPath();
    pen.arc(0, 0, 21, 0, 7);
    pen.stroke();
  }
  if (own && one.recharge > 0) {
    pen.strokeStyle = "rgb(143 224 207 / .55)";
    pen.lineWidth = 2;
    pen.beginPath();
    pen.arc(0, 0, 25, -Math.PI / 2, -Math.PI / 2 + 2 * Math.PI * (1 - one.recharge));
    pen.stroke();
  }
  pen.save();
  pen.rotate(flags & STUNNED ? angle + now / 60 : angle);
  pen.beginPath();
  pen.moveTo(17, 0);
  pen.quadraticCurveTo(2, 5, -12, 11);
  pen.quadraticCurveTo(-6, 0, -12, -11);
  pen.quadraticCurveTo(2, -5, 17, 0);
  pen.closePath();
  pen.fillStyle = own ? "#eefaf6" : color(id, 1, flags & STUNNED ? 50 : 70);
  pen.strokeStyle = own ? "#8fe0cf" : color(id, 0.9, 45);
  pen.lineWidth = 1.5;
  pen.lineJoin = "round";
  pen.fill();
  pen.stroke();
  pen.restore();
  if (!own) {
    pen.font = "11px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.fillStyle = "#c3ced8";
    pen.globalAlpha *= 0.85;
    pen.fillText(flags & LOST ? `${name} …` : `${name}  ${score}`, 0, 34);
  }
  pen.restore();
}

function particle({ x, y, age, text, color }) {
  pen.globalAlpha = Math.max(0, 1 - age);
  pen.fillStyle = color;
  if (text) {
    pen.font = "600 13px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.fillText(text, x, y - 18 - 26 * age);
  } else {
    pen.beginPath();
    pen.arc(x, y, 2.2 * (1 - age), 0, 7);
    pen.fill();
  }
  pen.globalAlpha = 1;
}

// Where one is, and where the best are.
function map({ camera, best, me }) {
  const size = Math.min(116, width / 3.6);
  const [left, top] = [width - size - 20, height - size - 18];
  pen.fillStyle = "#111720b0";
  pen.strokeStyle = "#2a3542";
  pen.lineWidth = 1;
  pen.beginPath();
  pen.roundRect(left, top, size, size, 8);
  pen.fill();
  pen.stroke();
  const at = (x, y, radius) => {
    pen.beginPath();
    pen.arc(left + (x / ARENA) * size, top + (y / ARENA) * size, radius, 0, 7);
  };
  const [w, h] = [(width / scale / ARENA) * size, (height / scale / ARENA) * size];
  pen.strokeStyle = "#8fe0cf40";
  pen.save();
  pen.clip();
  pen.strokeRect(left + (camera.x / ARENA) * size - w / 2, top + (camera.y / ARENA) * size - h / 2, w, h);
  pen.restore();
  for (const one of best) {
    if (one.ship === me) continue;
    pen.fillStyle = color(one.ship);
    at(one.x / UNIT, one.y / UNIT, 2.2);
    pen.fill();
  }
  pen.fillStyle = "#eefaf6";
  at(camera.x, camera.y, 2.8);
  pen.fill();
}

function stick({ from, to }) {
  pen.lineWidth = 1.5;
  pen.strokeStyle = "#dfe6ec40";
  pen.fillStyle = "#dfe6ec30";
  pen.beginPath();
  pen.arc(from.x, from.y, STICK, 0, 7);
  pen.stroke();
  const far = Math.hypot(to.x - from.x, to.y - from.y);
  const part = Math.min(1, STICK / Math.max(far, 1));
  pen.beginPath();
  pen.arc(from.x + (to.x - from.x) * part, from.y + (to.y - from.y) * part, 22, 0, 7);
  pen.fill();
}
const STICK = 56; // pixels that a thumb moves for full thrust

function draw(scene, now) {
  const { camera } = scene;
  sky(camera);
  if (!scene.playing) return;
  pen.save();
  pen.translate(width / 2, height / 2);
  pen.scale(scale, scale);
  pen.translate(-camera.x, -camera.y);
  ground(camera);
  pen.globalCompositeOperation = "lighter";
  scene.sparks.forEach(one => spark(one, now));
  pen.globalCompositeOperation = "source-over";
  scene.mines.forEach(one => mine(one, now));
  scene.ships.forEach(wake);
  scene.ships.forEach(one => ship(one, now));
  scene.particles.forEach(particle);
  pen.restore();
  map(scene);
  if (scene.stick) stick(scene.stick);
}
