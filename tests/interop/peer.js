// Node's `ws` as a peer. NODE_PATH has to name the folder that it is installed in.
//
//     node peer.js client URL [--can LIST] [--max-message BYTES] [--deflate] [--ca FILE] [--seconds N]
//     node peer.js server [--addr HOST:PORT] [--max-message BYTES] [--deflate [--window-bits N] [--no-context-takeover]]
//                         [--tls-cert FILE --tls-key FILE]
//
// As peer.py, where arguments, output and the server's commands are described.
'use strict';

const fs = require('fs');
const http = require('http');
const https = require('https');
const { parseArgs } = require('util');
const WebSocket = require('ws');
const { CHECKS, Link, SUBPROTOCOL, compressible, deflateTraffic, expect, noise, runChecks } = require('./checks.js');

const { positionals, values: args } = parseArgs({
    allowPositionals: true,
    options: {
        'can': { type: 'string', default: '' },
        'max-message': { type: 'string', default: String(1 << 20) },
        'deflate': { type: 'boolean', default: false },
        'ca': { type: 'string' },
        'seconds': { type: 'string', default: '120' },
        'addr': { type: 'string', default: '127.0.0.1:0' },
        'window-bits': { type: 'string' },
        'no-context-takeover': { type: 'boolean', default: false },
        'tls-cert': { type: 'string' },
        'tls-key': { type: 'string' },
    },
});

// --- the client ------------------------------------------------------------------------------------------------------

const env = {
    can: new Set(args.can.split(',')),
    maxMessage: Number(args['max-message']),
    deflate: args.deflate,
    silenceMs: 400,
    openingAtOnce: 100,

    /** An open Link. `offer` overrides what is offered of permessage-deflate. */
    connect(subprotocols = [], offer = args.deflate) {
        return new Link(this.socket(subprotocols, offer)).opened;
    },

    async refused(subprotocols) {
        const why = await this.connect(subprotocols).then(() => 'it was opened', error => error.message);
        expect('error', why, 'Server sent no subprotocol');
    },

    socket(subprotocols, offer) {
        return new WebSocket(positionals[1], subprotocols, {
            perMessageDeflate: offer,
            ca: args.ca && fs.readFileSync(args.ca),
            maxPayload: 0,
        });
    },
};

function event(emitter, name) {
    return new Promise(resolve => emitter.once(name, resolve));
}

// What a page can't do.
const NODE_CHECKS = [
    ['fragments', async env => {
        const link = await env.connect();
        const { socket } = link;
        // Cut inside characters, with control frames between.
        const bytes = Buffer.from('🦀é'.repeat(50));
        for (const binary of [false, true]) {
            for (let at = 0; at < bytes.length; at += 5) {
                socket.send(bytes.subarray(at, at + 5), { binary, fin: false });
                socket.ping(String(at));
            }
            socket.send('', { binary, fin: true });
            expect('echo of fragments', await link.next(), binary ? new Uint8Array(bytes) : bytes.toString());
        }
        await link.close();
    }],
    ['invalid-text', async env => {
        const link = await env.connect();
        link.socket.send(Buffer.from('caf\xe9', 'latin1'), { binary: false });
        await link.ends(1007);
    }],
    ['ping', async env => {
        const link = await env.connect();
        for (const payload of [Buffer.alloc(0), Buffer.from('payload'), Buffer.alloc(125, 7)]) {
            link.socket.ping(payload);
            const pong = await event(link.socket, 'pong');
            expect('pong', pong.toString('hex'), payload.toString('hex'));
        }
        await link.close();
    }],
    ['server-ping', async env => {
        const link = await env.connect();
        link.send('!ping are you there');
        expect('ping', String(await event(link.socket, 'ping')), 'are you there');
        await link.close();
    }, 'ping'],
    // A page gets nothing more once it has begun to close.
    ['drain', async env => {
        const link = await env.connect();
        const numbers = Array.from({ length: 50 }, (_, n) => String(n));
        numbers.forEach(n => link.send(n));
        link.socket.close(4000, 'last');
        await link.ends(4000);
        expect('messages before the end', link.messages.join(), numbers.join());
    }, 'drain'],
    ['close-codes', async env => {
        for (const code of [1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3999, 4000]) {
            const link = await env.connect();
            link.socket.close(code, 'with a reason');
            await link.ends(code);
        }
    }],
];

// --- compression -----------------------------------------------------------------------------------------------------

const OFFERS = {
    'plain-offer': { clientMaxWindowBits: false },
    'default-offer': {},
    'server-no-context-takeover': { serverNoContextTakeover: true },
    'client-no-context-takeover': { clientNoContextTakeover: true },
    'no-context-takeover': { serverNoContextTakeover: true, clientNoContextTakeover: true },
    'compresses-everything': { threshold: 0 },
};
for (let bits = 9; bits <= 15; bits++) {
    OFFERS[`server-window-${bits}`] = { serverMaxWindowBits: bits };
    OFFERS[`client-window-${bits}`] = { clientMaxWindowBits: bits };
    OFFERS[`both-windows-${bits}`] = { serverMaxWindowBits: bits, clientMaxWindowBits: bits };
}

async function compressedTraffic(env, offer) {
    const link = await env.connect([], offer);
    const { socket } = link;
    expect('extension', socket.extensions.split(';')[0], 'permessage-deflate');
    const text = compressible();
    const before = socket._socket.bytesRead; // as they came over the wire
    await link.echo(text);
    const came = socket._socket.bytesRead - before;
    if (came > (text.length * 2) / 3) throw new Error(`${text.length} compressible bytes came back as ${came}`);
    await deflateTraffic(link);
    for (const [from, to] of [[0, 1000], [1000, 50_000], [50_000, 50_000], [50_000, text.length]]) {
        socket.send(text.slice(from, to), { fin: to === text.length });
    }
    expect('echo of compressed fragments', await link.next(), text);
    // One that is compressed and one that is not, whatever the threshold.
    socket.send('not compressed', { compress: false });
    expect('echo', await link.next(), 'not compressed');
    await link.echo(noise(10));
    await link.close();
}

for (const [name, offer] of Object.entries(OFFERS)) {
    NODE_CHECKS.push([`deflate-${name}`, env => compressedTraffic(env, offer), 'deflate']);
}
NODE_CHECKS.push(['deflate-not-offered', async env => {
    const link = await env.connect([], false);
    expect('extensions', link.socket.extensions, '');
    await link.echo(compressible());
    await link.close();
}, 'deflate']);

async function runClient() {
    setTimeout(() => {
        console.log(`FAILED everything: not through after ${args.seconds} s`);
        process.exit(99);
    }, args.seconds * 1000).unref();
    const { version } = JSON.parse(fs.readFileSync(require.resolve('ws/package.json')));
    console.log(`# Node ${process.version}, ws ${version}`);
    const failures = await runChecks([...CHECKS, ...NODE_CHECKS], env, line => console.log(line));
    process.exit(Math.min(failures, 99));
}

// --- the server ------------------------------------------------------------------------------------------------------

function answer(socket, message, binary) {
    const [command, rest] = binary ? [] : /^(\S*) ?(.*)$/s.exec(message.toString()).slice(1);
    if (command === '!close') {
        const [, code, reason] = /^(\d+) ?(.*)$/s.exec(rest);
        socket.close(Number(code), reason);
    } else if (command === '!ping') {
        socket.ping(rest);
    } else if (command === '!latency') {
        const sent = process.hrtime.bigint();
        socket.ping();
        socket.once('pong', () => socket.send(`latency ${process.hrtime.bigint() - sent} ns`));
    } else if (command === '!fragments') {
        for (const part of rest.match(/.{1,3}/gs) ?? []) socket.send(part, { fin: false });
        socket.send('', { fin: true });
    } else {
        socket.send(message, { binary });
    }
}

function runServer() {
    const bits = args['window-bits'] && Number(args['window-bits']);
    const fresh = args['no-context-takeover'] || undefined;
    const deflate = {
        serverNoContextTakeover: fresh,
        clientNoContextTakeover: fresh,
        serverMaxWindowBits: bits,
        clientMaxWindowBits: bits,
    };
    const [cert, key] = ['tls-cert', 'tls-key'].map(name => args[name] && fs.readFileSync(args[name]));
    const server = cert ? https.createServer({ cert, key }) : http.createServer();
    const sockets = new WebSocket.Server({
        server,
        maxPayload: Number(args['max-message']),
        perMessageDeflate: args.deflate && deflate,
        handleProtocols: offered => (offered.has(SUBPROTOCOL) ? SUBPROTOCOL : false),
    });
    sockets.on('connection', socket => {
        socket.on('error', () => {}); // told by the close event
        socket.on('message', (message, binary) => answer(socket, message, binary));
    });
    const [, host, port] = /^(.*):(\d+)$/.exec(args.addr);
    server.listen(Number(port), host.replace(/[[\]]/g, ''), () => {
        const { address, port } = server.address();
        console.log(`listening on ${address}:${port}`);
    });
    process.on('SIGTERM', () => process.exit(0));
}

if (positionals[0] === 'client' && positionals.length === 2) {
    runClient();
} else if (positionals[0] === 'server' && positionals.length === 1) {
    runServer();
} else {
    console.error('usage: node peer.js client URL [...] | server [...]');
    process.exit(100);
}
