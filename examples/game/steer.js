// What is steered: keys, mouse and thumbs, made into one input for each tick.
"use strict";

const keys = new Set();
let pointer = null;        // the mouse, if it was the last that was used
let thumb = null;          // {id, from, to}
let dash = 0;              // ticks for which the wish to dash is kept
const PUSH = { ArrowLeft: [-1, 0], KeyA: [-1, 0], ArrowRight: [1, 0], KeyD: [1, 0],
  ArrowUp: [0, -1], KeyW: [0, -1], ArrowDown: [0, 1], KeyS: [0, 1] };

// The input of this tick, for a ship in this motion.
function steer(motion) {
  let x = 0, y = 0;
  if (keys.size) {
    for (const key of keys) {
      x += PUSH[key][0];
      y += PUSH[key][1];
    }
  } else if (thumb) {
    x = (thumb.to.x - thumb.from.x) / STICK;
    y = (thumb.to.y - thumb.from.y) / STICK;
  } else if (pointer) {
    // Close to the ship it slows down, and stops.
    x = (pointer.x - width / 2) / 110;
    y = (pointer.y - height / 2) / 110;
    if (Math.hypot(x, y) < 0.2) x = y = 0;
  }
  let wish = dash > 0;
  if (wish && !x && !y) [x, y] = [Math.cos(heading), Math.sin(heading)];
  wish &&= motion.pause <= 1 && !motion.stun;
  dash = wish ? 0 : Math.max(0, dash - 1);
  const input = toInput(x, y, wish);
  if (input.x || input.y) heading = Math.atan2(input.y, input.x);
  return input;
}
let heading = -Math.PI / 2;
const wishDash = () => { dash = 10; };

addEventListener("keydown", event => {
  if (!playing() || event.target.tagName === "INPUT") return;
  if (event.code === "Space" || event.code === "ShiftLeft") wishDash();
  else if (PUSH[event.code]) {
    keys.add(event.code);
    pointer = null;
  } else return;
  event.preventDefault();
});
addEventListener("keyup", event => keys.delete(event.code));
addEventListener("blur", () => keys.clear());
canvas.addEventListener("pointermove", event => {
  if (event.pointerType === "mouse") pointer = { x: event.clientX, y: event.clientY };
  else if (event.pointerId === thumb?.id) thumb.to = { x: event.clientX, y: event.clientY };
});
canvas.addEventListener("pointerdown", event => {
  const at = { x: event.clientX, y: event.clientY };
  if (event.pointerType === "mouse" || thumb || at.x > innerWidth / 2) return wishDash();
  pointer = null;
  thumb = { id: event.pointerId, from: at, to: at };
  canvas.setPointerCapture(event.pointerId);
});
for (const end of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(end, event => { if (event.pointerId === thumb?.id) thumb = null; });
}
canvas.addEventListener("contextmenu", event => event.preventDefault());
