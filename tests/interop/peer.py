"""Python's `websockets` as a peer.

    peer.py client URL [--can LIST] [--max-message BYTES] [--deflate] [--ca FILE] [--seconds N]
    peer.py server [--addr HOST:PORT] [--max-message BYTES] [--deflate [--window-bits N] [--no-context-takeover]]
                   [--tls-cert FILE --tls-key FILE]

The client holds an echo server against a list of checks and prints a line for each: `ok NAME`, `FAILED NAME: why`, or
`skipped NAME: why`. The exit status is the number of failures. `--can` names what the server understands besides echo,
separated by commas:

    subprotocol   of the subprotocols that are offered, it picks `framemill.test`
    close         a text `!close CODE REASON` makes it close so
    ping          a text `!ping PAYLOAD` is answered with that ping; `!latency` with a text, `latency none` until it has
                  seen a pong of a ping of its own
    drain         what came before a close frame is answered before that is
    fragments     a text `!fragments TEXT` is answered with TEXT in fragments

The server is an echo server that can do all of these but `drain`. It prints `listening on HOST:PORT` and runs until SIGTERM.
"""

import argparse
import asyncio
import platform
import random
import signal
import ssl
import sys

import websockets
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory as Offer,
    ServerPerMessageDeflateFactory as Acceptance,
)
from websockets.frames import Frame, Opcode

STEP_SECONDS = 20  # bound on one check
SUBPROTOCOL = "framemill.test"
LONGEST_REASON = "ü" * 61 + "."  # 123 bytes


class Wrong(Exception):
    """What a check did not expect."""


def expect(what, got, wanted):
    if got != wanted:
        raise Wrong(f"{what}: {short(got)} instead of {short(wanted)}")


def short(value):
    text = repr(value)
    return text if len(text) <= 90 else f"{text[:60]}… ({len(value)} long)"


# --- the client ------------------------------------------------------------------------------------------------------


class Spied(ClientConnection):
    """A connection that remembers what the library keeps to itself."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.pings = asyncio.Queue()
        self.received = 0  # bytes, as they came over the wire

    def data_received(self, data):
        self.received += len(data)
        super().data_received(data)

    def process_event(self, event):
        if isinstance(event, Frame) and event.opcode is Opcode.PING:
            self.pings.put_nowait(bytes(event.data))
        super().process_event(event)


class Client:
    """How to connect, from the command line."""

    def __init__(self, args):
        self.args = args
        self.can = set(filter(None, args.can.split(",")))
        self.tls = ssl.create_default_context(cafile=args.ca) if args.url.startswith("wss:") else None

    def connect(self, *, offers=(), **settings):
        """`offers` of None are none at all; by default it depends on --deflate."""
        if offers == () and self.args.deflate:
            offers = [Offer()]
        return connect(
            self.args.url,
            compression=None,
            extensions=offers or None,
            max_size=None,
            max_queue=None,  # or a check that fails halfway waits for the close frame behind what it didn't read
            ping_interval=None,
            open_timeout=STEP_SECONDS,
            close_timeout=STEP_SECONDS,
            ssl=self.tls,
            proxy=None,
            create_connection=Spied,
            **settings,
        )


CHECKS = []  # (name, function, what the server has to be able to)


def check(name, needs=None):
    def add(function):
        CHECKS.append((name, function, needs))
        return function

    return add


async def echo(ws, *messages):
    for message in messages:
        await ws.send(message)
        expect("echo", await ws.recv(), message)


async def ended(ws, code, reason=None):
    """Waits for the end and looks at the close frame that came."""
    await ws.wait_closed()
    came = ws.protocol.close_rcvd
    if came is None:
        raise Wrong(f"no close frame came, wanted {code}")
    expect("close code", came.code, code)
    if reason is not None:
        expect("reason", came.reason, reason)


@check("text")
async def text(client):
    async with client.connect() as ws:
        await echo(ws, "Hello", "x" * 125, "x" * 126, "x" * 65535, "x" * 65536)


@check("binary")
async def binary(client):
    async with client.connect() as ws:
        await echo(ws, bytes(range(256)), b"\0", random.randbytes(70_000))


@check("empty")
async def empty(client):
    async with client.connect() as ws:
        await echo(ws, "", b"", "")


@check("unicode")
async def unicode(client):
    async with client.connect() as ws:
        await echo(ws, "κόσμε", "\0", "\U0010ffff", "🦀" * 5000, "".join(map(chr, range(0x80, 0x2000))))


@check("fragments")
async def fragments(client):
    async def with_pings(ws):
        for part in parts:
            yield part
            await (await ws.ping())  # a control frame between the fragments

    # Cut inside characters.
    encoded = ("🦀é" * 50).encode()
    parts = [encoded[at : at + 5] for at in range(0, len(encoded), 5)]
    async with client.connect() as ws:
        await ws.send(parts, text=True)
        expect("echo of fragments", await ws.recv(), encoded.decode())
        await ws.send(with_pings(ws))
        expect("echo of fragments with pings between", await ws.recv(), encoded)
        await ws.send(["", "", "end", ""])
        expect("echo of empty fragments", await ws.recv(), "end")


@check("large")
async def large(client):
    async with client.connect() as ws:
        limit = client.args.max_message
        # Bytes that don't compress grow a little, and servers may hold that against the limit, too.
        await echo(ws, random.randbytes(limit - limit // 64 if client.args.deflate else limit), "ab" * (limit // 2))


@check("too-big")
async def too_big(client):
    # Zeros: where compression is on, few bytes inflate to too many.
    async with client.connect() as ws:
        try:
            await ws.send(bytes(client.args.max_message + 1))
        except ConnectionClosed:
            pass  # told so while still sending
        await ended(ws, 1009)


@check("invalid-text")
async def invalid_text(client):
    async with client.connect() as ws:
        await ws.send(b"caf\xe9", text=True)
        await ended(ws, 1007)


@check("ping")
async def ping(client):
    async with client.connect() as ws:
        for payload in [b"", b"payload", bytes(125)]:
            await (await ws.ping(payload))
        await echo(ws, "after pings")


@check("server-ping", needs="ping")
async def server_ping(client):
    async with client.connect() as ws:
        await ws.send("!ping are you there")
        expect("ping", await ws.pings.get(), b"are you there")


@check("server-gets-pong", needs="ping")
async def server_gets_pong(client):
    async with client.connect() as ws:
        while True:
            await ws.send("!latency")
            if await ws.recv() != "latency none":
                return
            await ws.pings.get()  # the next answer comes behind our pong


@check("close")
async def close(client):
    for code in [1000, 1001, 1011, 3000, 4999]:
        for reason in ["", "gone fishing", LONGEST_REASON]:
            async with client.connect() as ws:
                await ws.close(code, reason)
                await ended(ws, code)


@check("drain", needs="drain")
async def drain(client):
    async with client.connect() as ws:
        for n in range(50):
            await ws.send(str(n))
        reader = asyncio.create_task(read_all(ws))
        await ws.close(1000, "last")
        expect("messages before the end", await reader, [str(n) for n in range(50)])
        await ended(ws, 1000)


async def read_all(ws):
    return [message async for message in ws]


@check("server-close", needs="close")
async def server_close(client):
    for code, reason in [(1000, ""), (1001, "restart"), (3000, "registered"), (4999, LONGEST_REASON)]:
        async with client.connect() as ws:
            await ws.send(f"!close {code} {reason}")
            await ended(ws, code, reason)


@check("server-fragments", needs="fragments")
async def server_fragments(client):
    async with client.connect() as ws:
        await ws.send("!fragments one two three")
        expect("message", await ws.recv(), "one two three")


@check("subprotocol")
async def subprotocol(client):
    async with client.connect() as ws:
        expect("not offered", ws.subprotocol, None)
    chosen = SUBPROTOCOL if "subprotocol" in client.can else None
    async with client.connect(subprotocols=["other", SUBPROTOCOL, "another"]) as ws:
        expect("offered", ws.subprotocol, chosen)
        await echo(ws, "with a subprotocol")


@check("in-flight")
async def in_flight(client):
    """Many messages under way, answered in order."""
    messages = [f"{n} " + "." * (n * 37 % 2000) for n in range(3000)]

    async def send_all(ws):
        for message in messages:
            await ws.send(message)

    async with client.connect() as ws, asyncio.TaskGroup() as group:
        group.create_task(send_all(ws))
        for message in messages:
            expect("order", await ws.recv(), message)


@check("connections")
async def connections(client):
    """A hundred at once, and nobody gets what is another's."""
    ready = asyncio.Semaphore(0)
    go = asyncio.Event()

    async def one(n):
        async with client.connect() as ws:
            ready.release()
            await go.wait()
            await echo(ws, *(f"{n}: {i}" for i in range(10)))

    async with asyncio.TaskGroup() as group:
        for n in range(100):
            group.create_task(one(n))
        for _ in range(100):
            await ready.acquire()
        go.set()


# --- compression -----------------------------------------------------------------------------------------------------


def compressible():
    """100 KiB of text whose repetitions lie farther apart than a small window reaches."""
    words = ["mill", "frame", "wheel", "stone", "grain", "water", "sluice", "flour"]
    seeded = random.Random(7692)
    block = "".join(f"{seeded.choice(words)}{seeded.randrange(100)} " for _ in range(4000))[: 20 << 10]
    return block * 5


async def compressed_traffic(client, *offers):
    long, noise = compressible(), random.randbytes(50_000)
    async with client.connect(offers=offers) as ws:
        expect("extensions", [e.name for e in ws.protocol.extensions], ["permessage-deflate"])
        before = ws.received
        await echo(ws, long)
        came = ws.received - before
        if came > len(long) * 2 // 3:
            raise Wrong(f"{len(long)} compressible bytes came back as {came}")
        # Again, for the context; small ones between, and bytes that don't compress.
        await echo(ws, "small", noise, long, "", "small", "small", b"", noise, long)
        await ws.send([long[:1000], long[1000:50_000], "", long[50_000:]])
        expect("echo of compressed fragments", await ws.recv(), long)
        return ws.response.headers["Sec-WebSocket-Extensions"]


def check_offer(name, *offers):
    @check(f"deflate-{name}", needs="deflate")
    async def run(client):
        return await compressed_traffic(client, *offers)


check_offer("plain-offer", Offer(client_max_window_bits=None))
check_offer("default-offer", Offer())
check_offer("server-no-context-takeover", Offer(server_no_context_takeover=True))
check_offer("client-no-context-takeover", Offer(client_no_context_takeover=True))
check_offer("no-context-takeover", Offer(server_no_context_takeover=True, client_no_context_takeover=True))
for bits in range(9, 16):
    check_offer(f"server-window-{bits}", Offer(server_max_window_bits=bits))
    check_offer(f"client-window-{bits}", Offer(client_max_window_bits=bits))
    check_offer(f"both-windows-{bits}", Offer(server_max_window_bits=bits, client_max_window_bits=bits))
check_offer("everything", Offer(True, True, 10, 11))


@check("deflate-not-offered", needs="deflate")
async def deflate_not_offered(client):
    async with client.connect(offers=None) as ws:
        expect("extensions", ws.protocol.extensions, [])
        await echo(ws, compressible())


# --- running the checks ----------------------------------------------------------------------------------------------


async def run_checks(args):
    client = Client(args)
    if args.deflate:
        client.can.add("deflate")
    failures = 0
    for name, function, needs in CHECKS:
        if needs == "deflate" and not args.deflate:
            continue
        if needs and needs not in client.can:
            print(f"skipped {name}: the server can't '{needs}'", flush=True)
            continue
        why = await run_check(function, client)
        failures += why is not None
        print(f"FAILED {name}: {why}" if why else f"ok {name}", flush=True)
    return failures


async def run_check(function, client):
    """What is wrong, or None."""
    try:
        async with asyncio.timeout(STEP_SECONDS):
            await function(client)
    except TimeoutError:
        return f"nothing came of it in {STEP_SECONDS} s"
    except Exception as error:  # whatever it is, the other checks go on
        if isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        return str(error) if isinstance(error, Wrong) else f"{type(error).__name__}: {error}"


# --- the server ------------------------------------------------------------------------------------------------------


async def serve_one(ws):
    try:
        async for message in ws:
            await answer(ws, message)
    except ConnectionClosed:
        pass  # with a code that is not 1000 or 1001


async def answer(ws, message):
    command, _, rest = message.partition(" ") if isinstance(message, str) else ("", "", "")
    if command == "!close":
        code, _, reason = rest.partition(" ")
        await ws.close(int(code), reason)
    elif command == "!ping":
        await ws.ping(rest)
    elif command == "!latency":
        await ws.send(f"latency {await (await ws.ping()):.6f}")
    elif command == "!fragments":
        await ws.send([rest[at : at + 3] for at in range(0, len(rest), 3)])
    else:
        await ws.send(message)


async def run_server(args):
    host, _, port = args.addr.rpartition(":")
    extensions, tls = None, None
    if args.deflate:
        fresh, bits = args.no_context_takeover, args.window_bits
        extensions = [Acceptance(fresh, fresh, bits, bits)]
    if args.tls_cert:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(args.tls_cert, args.tls_key)
    stop = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set_result, None)
    server = serve(
        serve_one,
        host.strip("[]"),
        int(port),
        compression=None,
        extensions=extensions,
        select_subprotocol=lambda _, offered: SUBPROTOCOL if SUBPROTOCOL in offered else None,
        max_size=args.max_message,
        ssl=tls,
    )
    async with server as server:
        host, port = server.sockets[0].getsockname()[:2]
        print(f"listening on {host}:{port}", flush=True)
        await stop
    return 0


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    client, server = modes.add_parser("client"), modes.add_parser("server")
    for mode in client, server:
        mode.add_argument("--max-message", type=int, default=1 << 20)
        mode.add_argument("--deflate", action="store_true")
    client.add_argument("url")
    client.add_argument("--can", default="")
    client.add_argument("--ca")
    client.add_argument("--seconds", type=int, default=120, help="bound on everything")
    server.add_argument("--addr", default="127.0.0.1:0")
    server.add_argument("--window-bits", type=int)
    server.add_argument("--no-context-takeover", action="store_true")
    server.add_argument("--tls-cert")
    server.add_argument("--tls-key")
    return parser.parse_args()


def main():
    args = arguments()
    if args.mode == "server":
        return asyncio.run(run_server(args))
    signal.alarm(args.seconds)  # ends the process, whatever hangs
    print(f"# Python {platform.python_version()}, websockets {websockets.__version__}", flush=True)
    return min(asyncio.run(run_checks(args)), 99)


if __name__ == "__main__":
    sys.exit(main())
