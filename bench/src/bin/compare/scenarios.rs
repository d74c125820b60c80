//! All scenarios.

use crate::scenario::{KIB, Mode, Scenario};

/// Binary messages, 100 connections, one in flight. The rest is said by each.
const ECHO: Scenario = Scenario {
    name: "",
    mode: Mode::Echo,
    size: 64,
    connections: 100,
    inflight: 1,
    text: false,
    tls: false,
    deflate: false,
    topics: 1,
    subscriptions: 1,
    percent: 0,
    shared_cores: false,
};

/// To 1,000 subscribers of one topic.
const PUBLISH: Scenario = Scenario {
    mode: Mode::Publish,
    connections: 1000,
    ..ECHO
};

/// One core each.
const OPEN_LOOP: Scenario = Scenario {
    mode: Mode::OpenLoop,
    percent: 50,
    ..ECHO
};

const OPEN_LOOP_SHARED: Scenario = Scenario {
    shared_cores: true,
    ..OPEN_LOOP
};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "echo-16b",
        size: 16,
        ..ECHO
    },
    Scenario {
        name: "echo-64b",
        ..ECHO
    },
    Scenario {
        name: "echo-1k",
        size: KIB,
        ..ECHO
    },
    Scenario {
        name: "echo-16k",
        size: 16 * KIB,
        ..ECHO
    },
    Scenario {
        name: "echo-64k",
        size: 64 * KIB,
        ..ECHO
    },
    Scenario {
        name: "echo-1m",
        size: 1024 * KIB,
        connections: 10,
        ..ECHO
    },
    Scenario {
        name: "echo-64b-32-inflight",
        inflight: 32,
        ..ECHO
    },
    Scenario {
        name: "echo-1k-16-inflight",
        size: KIB,
        inflight: 16,
        ..ECHO
    },
    Scenario {
        name: "echo-1k-16-inflight-text",
        size: KIB,
        inflight: 16,
        text: true,
        ..ECHO
    },
    Scenario {
        name: "echo-16k-4-inflight",
        size: 16 * KIB,
        inflight: 4,
        ..ECHO
    },
    Scenario {
        name: "echo-64b-10",
        connections: 10,
        ..ECHO
    },
    Scenario {
        name: "echo-64b-1000",
        connections: 1000,
        ..ECHO
    },
    Scenario {
        name: "echo-64b-10000",
        connections: 10_000,
        ..ECHO
    },
    Scenario {
        name: "broadcast-64b-to-1000",
        mode: Mode::Broadcast,
        connections: 1000,
        ..ECHO
    },
    Scenario {
        name: "broadcast-64b-to-100-16-inflight",
        mode: Mode::Broadcast,
        connections: 100,
        inflight: 16,
        ..ECHO
    },
    Scenario {
        name: "broadcast-64b-to-1000-16-inflight",
        mode: Mode::Broadcast,
        connections: 1000,
        inflight: 16,
        ..ECHO
    },
    Scenario {
        name: "broadcast-64b-to-10000-16-inflight",
        mode: Mode::Broadcast,
        connections: 10_000,
        inflight: 16,
        ..ECHO
    },
    Scenario {
        name: "publish-64b-to-100",
        connections: 100,
        ..PUBLISH
    },
    Scenario {
        name: "publish-64b-to-1000",
        ..PUBLISH
    },
    Scenario {
        name: "publish-64b-to-1000-16-inflight",
        inflight: 16,
        ..PUBLISH
    },
    Scenario {
        name: "publish-64b-to-10000",
        connections: 10_000,
        ..PUBLISH
    },
    // The same work for the kernel, a message to 10 sockets: once always the same 10, once any of
    // 1,000, in one topic each and in 100 each.
    Scenario {
        name: "publish-64b-1-topic-of-10",
        connections: 10,
        ..PUBLISH
    },
    Scenario {
        name: "publish-64b-100-topics-of-10",
        topics: 100,
        ..PUBLISH
    },
    Scenario {
        name: "publish-64b-10000-topics-of-10",
        topics: 10_000,
        subscriptions: 100,
        ..PUBLISH
    },
    Scenario {
        name: "publish-64b-100-topics-of-10-16-inflight",
        topics: 100,
        inflight: 16,
        ..PUBLISH
    },
    Scenario {
        name: "publish-64b-10000-topics-of-10-16-inflight",
        topics: 10_000,
        subscriptions: 100,
        inflight: 16,
        ..PUBLISH
    },
    Scenario {
        name: "open-loop-64b-25-percent",
        percent: 25,
        ..OPEN_LOOP
    },
    Scenario {
        name: "open-loop-64b-50-percent",
        ..OPEN_LOOP
    },
    Scenario {
        name: "open-loop-64b-75-percent",
        percent: 75,
        ..OPEN_LOOP
    },
    Scenario {
        name: "open-loop-64b-shared-cores-25-percent",
        percent: 25,
        ..OPEN_LOOP_SHARED
    },
    Scenario {
        name: "open-loop-64b-shared-cores-50-percent",
        ..OPEN_LOOP_SHARED
    },
    Scenario {
        name: "open-loop-64b-shared-cores-75-percent",
        percent: 75,
        ..OPEN_LOOP_SHARED
    },
    Scenario {
        name: "connect",
        mode: Mode::Connect,
        connections: 64,
        ..ECHO
    },
    Scenario {
        name: "idle-10000",
        mode: Mode::Idle,
        connections: 10_000,
        ..ECHO
    },
    Scenario {
        name: "tls-echo-64b",
        tls: true,
        ..ECHO
    },
    Scenario {
        name: "tls-echo-64b-32-inflight",
        inflight: 32,
        tls: true,
        ..ECHO
    },
    Scenario {
        name: "tls-connect",
        mode: Mode::Connect,
        connections: 64,
        tls: true,
        ..ECHO
    },
    Scenario {
        name: "tls-idle-1000",
        mode: Mode::Idle,
        connections: 1000,
        tls: true,
        ..ECHO
    },
    Scenario {
        name: "deflate-echo-1k",
        size: KIB,
        deflate: true,
        ..ECHO
    },
    Scenario {
        name: "deflate-echo-1k-16-inflight",
        size: KIB,
        inflight: 16,
        deflate: true,
        ..ECHO
    },
];
