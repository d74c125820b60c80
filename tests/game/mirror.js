// Runs sim.js beside the Rust that it mirrors: a line in, a line out.
//   step X Y VX VY DASH PAUSE STUN  x y dash …   -> the motion after all inputs
//   new                                          -> forgets the picture
//   apply HEX                                    -> the picture
//   hello HEXTOKEN NAME | inputs FIRST x y dash … -> the message in hex
"use strict";
const sim = require(process.argv[2]);
const hex = view => Buffer.from(view.buffer, view.byteOffset, view.byteLength).toString("hex");
let picture = new sim.Picture();

function answer([verb, ...words]) {
  const numbers = words.map(Number);
  const list = from => {
    const all = [];
    for (let i = from; i < numbers.length; i += 3) {
      all.push({ x: numbers[i], y: numbers[i + 1], dash: numbers[i + 2] === 1 });
    }
    return all;
  };
  switch (verb) {
    case "step": {
      const [x, y, vx, vy, dash, pause, stun] = numbers;
      const motion = { x, y, vx, vy, dash, pause, stun };
      for (const input of list(7)) sim.step(motion, input);
      // Negative zero is zero.
      return Object.values(motion).map(value => value + 0).join(" ");
    }
    case "new":
      picture = new sim.Picture();
      return "ok";
    case "apply": {
      const bytes = Uint8Array.from(Buffer.from(words[0], "hex"));
      const own = sim.decode(bytes.buffer, picture);
      const sorted = map => [...map.values()].sort((a, b) => a.id - b.id);
      const { motion } = own;
      return [
        [own.tick, own.done, own.waiting, ...Object.values(motion), own.flags, own.score].join(" "),
        ...sorted(picture.ships).map(s => ["s", s.id, s.x, s.y, s.dx, s.dy, s.flags, s.score, s.name].join(" ")),
        ...sorted(picture.mines).map(m => ["m", m.id, m.since, m.x, m.y, m.vx, m.vy].join(" ")),
        ...sorted(picture.sparks).map(s => ["*", s.id, s.x, s.y, s.gold].join(" ")),
      ].join("|");
    }
    case "hello":
      return hex(sim.hello(Buffer.from(words[0], "hex"), words.slice(1).join(" ")));
    case "inputs":
      return hex(sim.inputs(numbers[0], list(1)));
    case "toInput": {
      const input = sim.toInput(numbers[0], numbers[1], false);
      return `${input.x + 0} ${input.y + 0}`;
    }
  }
}

require("readline").createInterface({ input: process.stdin })
  .on("line", line => console.log(answer(line.split(" "))));
