// Checks of an echo server through the WebSocket API of the WHATWG: for the browser (page.html) and, since the `ws`
// package has the same API, for Node (peer.js).
'use strict';

const SUBPROTOCOL = 'framemill.test';
const LONGEST_REASON = 'ü'.repeat(61) + '.'; // 123 bytes
const STEP_MS = 20_000; // bound on one check

/** A WebSocket whose messages and end are waited for. */
class Link {
    constructor(socket) {
        this.socket = socket;
        this.messages = [];
        this.waiting = null; // who waits for the next message
        socket.binaryType = 'arraybuffer';
        this.opened = new Promise((resolve, reject) => {
            socket.addEventListener('open', () => resolve(this));
            socket.addEventListener('error', event => reject(new Error(event.message || 'no connection')));
        });
        this.opened.catch(() => {}); // an error later on is told by `ended`
        this.ended = new Promise(resolve => socket.addEventListener('close', resolve));
        this.ended.then(() => this.wake());
        socket.addEventListener('message', event => {
            this.messages.push(event.data);
            this.wake();
        });
    }

    wake() {
        if (this.waiting) this.waiting();
        this.waiting = null;
    }

    /** The next message: a string or an ArrayBuffer. */
    async next() {
        while (this.messages.length === 0) {
            if (this.socket.readyState === 3) {
                const { code, reason } = await this.ended;
                throw new Error(`closed with ${code} '${reason}' instead of a message`);
            }
            await new Promise(resolve => (this.waiting = resolve));
        }
        return this.messages.shift();
    }

    send(message) {
        this.socket.send(message);
    }

    async echo(...messages) {
        for (const message of messages) {
            this.send(message);
            expect('echo', await this.next(), message);
        }
    }

    /** Closes as told, or waits for the other side to, and looks at the close frame that came. */
    async ends(code, reason) {
        const event = await this.ended;
        expect('close code', event.code, code);
        expect('wasClean', event.wasClean, true);
        if (reason !== undefined) expect('reason', event.reason, reason);
    }

    async close(...how) {
        this.socket.close(...how);
        await this.ended;
    }
}

function expect(what, got, wanted) {
    if (same(got, wanted)) return;
    throw new Error(`${what}: ${short(got)} instead of ${short(wanted)}`);
}

function same(a, b) {
    if (a === b) return true;
    if (!(a instanceof ArrayBuffer) || !(b instanceof Uint8Array)) return false;
    const bytes = new Uint8Array(a);
    return bytes.length === b.length && bytes.every((byte, at) => byte === b[at]);
}

function short(value) {
    if (value instanceof ArrayBuffer) value = new Uint8Array(value);
    const text = value instanceof Uint8Array ? `bytes ${value.slice(0, 20)}` : JSON.stringify(value);
    return text === undefined || text.length <= 90 ? text : `${text.slice(0, 60)}… (${value.length} long)`;
}

// --- what is sent ----------------------------------------------------------------------------------------------------

/** Numbers from 0 to 2^32, the same in each run. */
function* numbers(seed) {
    for (let x = seed; ; ) {
        x ^= x << 13;
        x ^= x >>> 17;
        x ^= x << 5;
        yield x >>> 0;
    }
}

function noise(length) {
    const source = numbers(length + 1);
    return Uint8Array.from({ length }, () => source.next().value >>> 8);
}

/** 100 KiB of text whose repetitions lie farther apart than a small window reaches. */
function compressible() {
    const words = ['mill', 'frame', 'wheel', 'stone', 'grain', 'water', 'sluice', 'flour'];
    let block = '';
    for (const n of numbers(7692)) {
        block += `${words[n % 8]}${(n >>> 8) % 100} `;
        if (block.length >= 20 << 10) return block.slice(0, 20 << 10).repeat(5);
    }
}

function longUnicode() {
    let text = '';
    for (let code = 0x80; code < 0x2000; code++) text += String.fromCodePoint(code);
    return text;
}

// --- the checks ------------------------------------------------------------------------------------------------------

// Each is a name and a function of `env`; a third part names what the server has to be able to (see peer.py).
// `env` has: connect(subprotocols) for an open Link, refused(subprotocols) for the error of one that can't be opened,
// can, maxMessage, deflate, silenceMs (longer than the server waits with a ping), openingAtOnce.
const CHECKS = [
    ['text', async env => {
        const link = await env.connect();
        await link.echo('Hello', ...[125, 126, 65535, 65536].map(length => 'x'.repeat(length)));
        await link.close();
    }],
    ['binary', async env => {
        const link = await env.connect();
        await link.echo(Uint8Array.from({ length: 256 }, (_, at) => at), new Uint8Array(1), noise(70_000));
        await link.close();
    }],
    ['empty', async env => {
        const link = await env.connect();
        await link.echo('', new Uint8Array(0), '');
        await link.close();
    }],
    ['unicode', async env => {
        const link = await env.connect();
        await link.echo('κόσμε', '\0', '\u{10ffff}', '🦀'.repeat(5000), longUnicode());
        await link.close();
    }],
    ['large', async env => {
        const link = await env.connect();
        // Bytes that don't compress grow a little, and servers may hold that against the limit, too.
        const bytes = env.deflate ? env.maxMessage - (env.maxMessage >> 6) : env.maxMessage;
        await link.echo(noise(bytes), 'ab'.repeat(env.maxMessage / 2));
        await link.close();
    }],
    ['too-big', async env => {
        const link = await env.connect();
        // Zeros: where compression is on, few bytes inflate to too many.
        link.send(new Uint8Array(env.maxMessage + 1));
        const { code } = await link.ended; // not `wasClean` for every client, as it was still sending
        expect('close code', code, 1009);
    }],
    ['close', async env => {
        for (const code of [1000, 3000, 4999]) {
            for (const reason of ['', 'gone fishing', LONGEST_REASON]) {
                const link = await env.connect();
                link.socket.close(code, reason);
                await link.ends(code);
            }
        }
    }],
    ['close-without-code', async env => {
        const link = await env.connect();
        link.socket.close();
        await link.ends(1005, '');
    }],
    ['server-close', async env => {
        for (const [code, reason] of [[1000, ''], [1001, 'restart'], [3000, 'registered'], [4999, LONGEST_REASON]]) {
            const link = await env.connect();
            link.send(`!close ${code} ${reason}`);
            await link.ends(code, reason);
        }
    }, 'close'],
    ['server-gets-pong', async env => {
        const link = await env.connect();
        for (;;) {
            link.send('!latency');
            if ((await link.next()) !== 'latency none') return link.close();
            // The server pings when it has heard nothing for a while, so it has to hear nothing.
            await new Promise(resolve => setTimeout(resolve, env.silenceMs));
        }
    }, 'ping'],
    ['server-fragments', async env => {
        const link = await env.connect();
        link.send('!fragments one two three');
        expect('message', await link.next(), 'one two three');
        await link.close();
    }, 'fragments'],
    ['subprotocol', async env => {
        const without = await env.connect();
        expect('not offered', without.socket.protocol, '');
        await without.close();
        const offered = ['other', SUBPROTOCOL, 'another'];
        if (!env.can.has('subprotocol')) {
            // No choice is correct of the server, and these clients give up on it, as the standard has them do.
            await env.refused(offered);
            return;
        }
        const link = await env.connect(offered);
        expect('offered', link.socket.protocol, SUBPROTOCOL);
        await link.echo('with a subprotocol');
        await link.close();
    }],
    ['in-flight', async env => {
        const link = await env.connect();
        const messages = Array.from({ length: 3000 }, (_, n) => `${n} ` + '.'.repeat((n * 37) % 2000));
        messages.forEach(message => link.send(message));
        for (const message of messages) expect('order', await link.next(), message);
        await link.close();
    }],
    ['connections', async env => {
        const links = [];
        while (links.length < 100) {
            const opening = Array.from({ length: env.openingAtOnce }, () => env.connect());
            links.push(...(await Promise.all(opening)));
        }
        const tens = Array.from({ length: 10 }, (_, i) => i);
        await Promise.all(links.map((link, n) => link.echo(...tens.map(i => `${n}: ${i}`))));
        await Promise.all(links.map(link => link.close()));
    }],
    ['deflate', async env => {
        const link = await env.connect();
        expect('extension', link.socket.extensions.split(';')[0].trim(), 'permessage-deflate');
        await deflateTraffic(link);
        await link.close();
    }, 'deflate'],
];

/** Large and small ones, that compress and that don't, and again for the context. */
async function deflateTraffic(link) {
    const [text, bytes] = [compressible(), noise(50_000)];
    await link.echo(text, 'small', bytes, text, '', 'small', 'small', new Uint8Array(0), bytes, text);
}

/** Runs the checks one after the other, a line for each, and returns how many failed. */
async function runChecks(checks, env, say) {
    let failures = 0;
    for (const [name, check, needs] of checks) {
        if (needs === 'deflate' && !env.deflate) continue;
        if (needs && needs !== 'deflate' && !env.can.has(needs)) {
            await say(`skipped ${name}: the server can't '${needs}'`);
            continue;
        }
        const why = await Promise.race([check(env).then(() => null, error => String(error.message || error)), late()]);
        if (why !== null) failures++;
        await say(why === null ? `ok ${name}` : `FAILED ${name}: ${why.replaceAll('\n', ' ')}`);
    }
    return failures;
}

function late() {
    return new Promise(resolve => {
        const timer = setTimeout(resolve, STEP_MS, `nothing came of it in ${STEP_MS / 1000} s`);
        if (timer.unref) timer.unref();
    });
}

if (typeof module !== 'undefined') {
    module.exports = { CHECKS, LONGEST_REASON, Link, SUBPROTOCOL, compressible, deflateTraffic, expect, noise, runChecks };
}
