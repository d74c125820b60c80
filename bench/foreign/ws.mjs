// The ws of Node as an echo server: node ws.mjs [--deflate] [--addr HOST:PORT]
//
// Compression is as in its documentation, but that messages of any length are compressed, each for
// itself.
import { parseArgs } from 'node:util';
import { WebSocketServer } from 'ws';

const { values } = parseArgs({
  options: {
    addr: { type: 'string', default: '127.0.0.1:0' },
    deflate: { type: 'boolean', default: false },
  },
});
const colon = values.addr.lastIndexOf(':');
const server = new WebSocketServer({
  host: values.addr.slice(0, colon),
  port: Number(values.addr.slice(colon + 1)),
  maxPayload: 32 * 1024 * 1024 + 1024,
  perMessageDeflate: values.deflate && {
    serverNoContextTakeover: true,
    clientNoContextTakeover: true,
    threshold: 0,
  },
});
server.on('connection', (socket) => {
  socket.on('message', (data, binary) => socket.send(data, { binary }));
  // The client is the one to tell that something is wrong.
  socket.on('error', () => {});
});
server.on('listening', () => {
  const { address, port } = server.address();
  console.log(`listening on ${address}:${port}`);
});
