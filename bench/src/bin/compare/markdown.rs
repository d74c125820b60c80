//! Rows as Markdown tables, and the document around them.

use std::fs;

use framemill_bench::stream::CIPHER;

use crate::{
    measure::Setting,
    outcome::{Doubt, Outcome, Row, Spread},
    scenario::{Mode, thousands},
    server::built,
};

const LOCK: &str = include_str!("../../../Cargo.lock");

/// The libraries whose version belongs to the result.
const LIBRARIES: [&str; 5] = [
    "tokio-tungstenite",
    "fastwebsockets",
    "tokio-websockets",
    "tungstenite",
    "tokio",
];

const READING: &str = "\
- **vs reference**: messages per second over those of the reference *in the same round*; the
  median of all rounds and, in brackets, the least and the most. The reference is `limit`, a server
  that parses nothing and so shows what the kernel alone costs; where it cannot take part, the
  first row.
- **CPU µs**: CPU time of the whole server process for each message; less is better. **CPU vs
  reference** is the ratio of these.
- **p50, p99**: from writing a message to reading its echo (broadcast and publish: to the last
  delivery), with one in flight. Under such a load most of it is waiting for the other connections'
  turn.
- **server busy, load busy**: how much of its core each of the two used.
- *load generator was the limit*: it had no time left and the server had, so the rate is that of
  the load generator. Compare the CPU time instead.
- *neither was busy*: other work took the cores, or the two waited for each other. The CPU time
  still holds, more or less: caches are shared too.
- **latency at N % load**: an open loop. Messages are due at random times that have nothing to do with
  the answers, at N % of the rate that the first server reached just before in the same round with
  one in flight on each connection; all servers get the same rate. Latency is from the time a message
  was due, so that a server that stalls has all of that time counted against it. **sent late by**
  (p99) is the load generator's own part in it. With a core each the load generator looks at the clock
  all the time; where server and load generator share both cores, it sleeps in between.

Client and server share one machine and its loopback interface: ratios carry over to other machines
better than rates do, and there is no network in any of this.
";

const DEFLATE: &str = "
Compression: permessage-deflate without context, both ways, the same JSON in every message. Servers
inflate it and compress it again, with the effort that is the default of each: framemill that of
level 1 of zlib, the others 6, so the last column says how far it was compressed.
";

pub(crate) fn document(outcomes: &[&Outcome<'_>], setting: &Setting) -> String {
    let mut text = String::from("# Benchmark results\n\nWritten by `compare`, see `bench/`.\n\n");
    text += &format!(
        "{}; one core for the server, one for the load generator. {} rounds of {} s each.\n",
        machine(),
        setting.rounds,
        setting.seconds.as_secs_f64(),
    );
    let mut versions: Vec<String> = LIBRARIES
        .iter()
        .filter_map(|name| Some(format!("{name} {}", version(name)?)))
        .collect();
    let foreign = fs::read_to_string(built("versions")).unwrap_or_default();
    versions.extend(foreign.lines().map(str::to_owned));
    text += &format!("Compared with: {}.\n\n{READING}", versions.join(", "));
    if outcomes.iter().any(|outcome| outcome.scenario.tls) {
        text += &format!(
            "\nTLS: 1.2 with {CIPHER} for all, since the load generator offers\n\
             nothing else (native-tls makes no server of TLS 1.3), and the same certificate (ECDSA,\n\
             P-256). `limit` is OpenSSL alone.\n"
        );
    }
    if outcomes.iter().any(|outcome| outcome.scenario.deflate) {
        text += DEFLATE;
    }
    for outcome in outcomes {
        let title = outcome.scenario.title();
        let mut letters = title.chars();
        let first = letters.next().map(|letter| letter.to_ascii_uppercase());
        let title: String = first.into_iter().chain(letters).collect();
        text += &format!("\n## {title}\n\n{}\n", table(outcome));
        text += &format!("![{title}]({})\n", outcome.chart_file());
    }
    text
}

pub(crate) fn table(outcome: &Outcome<'_>) -> String {
    let rows = outcome.rows();
    match outcome.scenario.mode {
        Mode::Idle => render(&idle_header(), &rows, idle_cells),
        Mode::OpenLoop => render(&open_loop_header(outcome), &rows, open_loop_cells),
        _ => render(&rate_header(outcome), &rows, rate_cells),
    }
}

/// Columns are padded: tables are read in terminals too.
fn render(header: &[String], rows: &[Row<'_>], cells: fn(&Row<'_>) -> Vec<String>) -> String {
    let body: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let mut line = vec![row.server.label.clone()];
            line.extend(cells(row));
            line.push(remark(row));
            line
        })
        .collect();
    let width = |column: usize| {
        let cells = body
            .iter()
            .map(|line| &line[column])
            .chain([&header[column]]);
        cells
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    // Names and remarks to the left, figures to the right.
    let left = |column: usize| column == 0 || column == header.len() - 1;
    let line = |cells: &[String]| {
        let padded = cells
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, &width))| {
                if left(column) {
                    format!("{cell:width$}")
                } else {
                    format!("{cell:>width$}")
                }
            });
        format!("| {} |\n", padded.collect::<Vec<_>>().join(" | "))
    };
    let rule = widths.iter().enumerate().map(|(column, &width)| {
        if left(column) {
            "-".repeat(width + 2)
        } else {
            "-".repeat(width + 1) + ":"
        }
    });
    let rule = format!("|{}|\n", rule.collect::<Vec<_>>().join("|"));
    line(header) + &rule + &body.iter().map(|cells| line(cells)).collect::<String>()
}

fn rate_header(outcome: &Outcome<'_>) -> Vec<String> {
    let reference = &outcome.servers[outcome.reference()].label;
    let mut header = vec![
        "server".to_owned(),
        format!("vs {reference}"),
        format!("{}/s", outcome.scenario.units()),
        format!("CPU µs/{}", outcome.scenario.unit()),
        format!("CPU vs {reference}"),
    ];
    header.extend(["p50 µs", "p99 µs", "server busy", "load busy", ""].map(str::to_owned));
    header
}

fn rate_cells(row: &Row<'_>) -> Vec<String> {
    vec![
        shown(row.ratio, ratio),
        shown(row.rate, thousands),
        shown(row.cpu_us, micros),
        shown(row.cpu_ratio, |ratio| format!("{ratio:.2}")),
        shown(row.p50_us, thousands),
        shown(row.p99_us, thousands),
        shown(row.server_busy, percent),
        shown(row.load_busy, percent),
    ]
}

fn open_loop_header(outcome: &Outcome<'_>) -> Vec<String> {
    let reference = &outcome.servers[outcome.reference()].label;
    let mut header = vec![
        "server".to_owned(),
        format!("p99 vs {reference}"),
        "messages/s".to_owned(),
    ];
    let rest = [
        "p50 µs",
        "p99 µs",
        "p99.9 µs",
        "CPU µs/message",
        "server busy",
        "sent late by µs",
        "",
    ];
    header.extend(rest.map(str::to_owned));
    header
}

fn open_loop_cells(row: &Row<'_>) -> Vec<String> {
    vec![
        shown(row.ratio, ratio),
        shown(row.rate, thousands),
        shown(row.p50_us, micros),
        shown(row.p99_us, micros),
        shown(row.p999_us, micros),
        shown(row.cpu_us, micros),
        shown(row.server_busy, percent),
        shown(row.late_us, micros),
    ]
}

fn idle_header() -> Vec<String> {
    [
        "server",
        "bytes/connection",
        "least–most",
        "resident at start",
        "",
    ]
    .map(str::to_owned)
    .into()
}

fn idle_cells(row: &Row<'_>) -> Vec<String> {
    let range = |s: Spread| format!("{}–{}", thousands(s.min), thousands(s.max));
    vec![
        shown(row.bytes, |bytes| thousands(bytes.median)),
        shown(row.bytes, range),
        shown(row.resident_at_start, megabytes),
    ]
}

fn remark(row: &Row<'_>) -> String {
    if let Some(error) = row.error {
        return format!("failed: {error}");
    }
    let doubt = row.doubt.map(|doubt| match doubt {
        Doubt::LoadGenerator => "load generator was the limit".to_owned(),
        Doubt::FellBehind => {
            let kept_up = row.kept_up.unwrap_or_default();
            format!("did not keep up: {} answered in time", percent(kept_up))
        }
        Doubt::SentLate => "the load generator was late itself".to_owned(),
        Doubt::NeitherBusy => "neither was busy".to_owned(),
    });
    let compressed = row
        .compressed
        .map(|bytes| format!("compressed to {} B", thousands(bytes)));
    let remarks: Vec<String> = compressed.into_iter().chain(doubt).collect();
    remarks.join("; ")
}

fn shown<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "–".to_owned(), show)
}

pub(crate) fn ratio(Spread { median, min, max }: Spread) -> String {
    format!("{median:.2} ({min:.2}–{max:.2})")
}

pub(crate) fn micros(micros: f64) -> String {
    match micros {
        100.0.. => thousands(micros),
        10.0.. => format!("{micros:.1}"),
        1.0.. => format!("{micros:.2}"),
        _ => format!("{micros:.3}"),
    }
}

pub(crate) fn megabytes(bytes: f64) -> String {
    format!("{:.1} MB", bytes / 1e6)
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

/// Processor and kernel, as far as they matter to a result.
fn machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel: Vec<&str> = kernel.split('.').take(2).collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let model = model.map_or("unknown processor", |(_, model)| model);
    format!("{model}, {cores} cores, Linux {}", kernel.join("."))
}

/// The newest version of a crate in the lock file.
fn version(name: &str) -> Option<&'static str> {
    let entry = format!("name = \"{name}\"\nversion = \"");
    let (_, rest) = LOCK.rsplit_once(&entry)?;
    Some(rest.split_once('"')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_known() {
        for library in LIBRARIES {
            assert!(version(library).is_some(), "{library}");
        }
    }
}
