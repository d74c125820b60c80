//! A scenario as two sets of bars: how much, and at what price.
//!
//! Plain SVG with its colours in a style sheet, so that it follows a dark page.

use std::fmt::Write;

use crate::{
    markdown::{megabytes, micros, ratio},
    outcome::{Doubt, Outcome, Row},
    scenario::{Mode, thousands},
    server::Program,
};

/// Left edge and room of the bars, in pixels: names, first bars, second bars.
const NAMES: u32 = 16;
const FIRST: Panel = Panel {
    left: 196,
    width: 200,
};
const SECOND: Panel = Panel {
    left: 616,
    width: 130,
};
const WIDTH: u32 = 860;

const TOP: u32 = 72;
const LINE: u32 = 26;
const BAR: u32 = 16;

const STYLE: &str = "\
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-size: 15px; font-weight: 600 }
.quiet { fill: #59636e }
.framemill { fill: #cf6a1f }
.other { fill: #4c86c6 }
.limit { fill: #9aa4ae }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .quiet { fill: #9198a1 }
  .framemill { fill: #e98a3f }
  .other { fill: #5b93cf }
  .limit { fill: #6e7781 }
}";

struct Panel {
    left: u32,
    width: u32,
}

pub(crate) fn draw(outcome: &Outcome<'_>) -> String {
    let rows = outcome.rows();
    let bottom = TOP + rows.len() as u32 * LINE;
    let note = outcome.scenario.mode != Mode::Publish && rows.iter().any(load_limited);
    let height = bottom + if note { 32 } else { 8 };
    let title = outcome.scenario.title();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title}\">\n\
         <style>\n{STYLE}\n</style>\n"
    );
    text(&mut svg, NAMES, 24, "title", &title);
    for (index, row) in rows.iter().enumerate() {
        text(&mut svg, NAMES, baseline(index), "", &row.server.label);
    }
    if outcome.scenario.mode == Mode::OpenLoop {
        let reference = &outcome.servers[outcome.reference()].label;
        let first = format!("p99 in µs (less is better), ratio to {reference}");
        bars(&mut svg, &rows, &FIRST, &first, |row| {
            let ratio = row.ratio.map(ratio).unwrap_or_default();
            row.p99_us
                .map(|p99| (p99, format!("{} · {ratio}", micros(p99))))
        });
        let second = "p99.9 in µs (less is better)";
        bars(&mut svg, &rows, &SECOND, second, |row| {
            row.p999_us.map(|p999| (p999, micros(p999)))
        });
    } else if outcome.scenario.mode == Mode::Idle {
        let bytes = |row: &Row<'_>| row.bytes.map(|bytes| bytes.median);
        bars(
            &mut svg,
            &rows,
            &FIRST,
            "bytes per connection (less is better)",
            |row| bytes(row).map(|bytes| (bytes, thousands(bytes))),
        );
        bars(
            &mut svg,
            &rows,
            &SECOND,
            "resident at start (less is better)",
            |row| row.resident_at_start.map(|bytes| (bytes, megabytes(bytes))),
        );
    } else if outcome.scenario.mode == Mode::Publish {
        // Few messages under way, so that the rate is mostly one of waking up.
        let reference = &outcome.servers[outcome.reference()].label;
        let first = format!("CPU µs per delivery (less is better), ratio to {reference}");
        bars(&mut svg, &rows, &FIRST, &first, |row| {
            let ratio = row.cpu_ratio.unwrap_or_default();
            row.cpu_us
                .map(|cpu| (cpu, format!("{} · {ratio:.2}", micros(cpu))))
        });
        bars(&mut svg, &rows, &SECOND, "deliveries per second", |row| {
            row.rate.map(|rate| (rate, thousands(rate)))
        });
    } else {
        let reference = &outcome.servers[outcome.reference()].label;
        let first = format!(
            "{} per second, ratio to {reference}",
            outcome.scenario.units()
        );
        bars(&mut svg, &rows, &FIRST, &first, |row| {
            let star = if load_limited(row) { " *" } else { "" };
            let ratio = row.ratio.map(ratio).unwrap_or_default();
            row.rate
                .map(|rate| (rate, format!("{} · {ratio}{star}", thousands(rate))))
        });
        let second = format!("CPU µs per {} (less is better)", outcome.scenario.unit());
        bars(&mut svg, &rows, &SECOND, &second, |row| {
            row.cpu_us.map(|cpu| (cpu, micros(cpu)))
        });
    }
    if note {
        let note = "* the load generator was the limit: compare the CPU time";
        text(&mut svg, NAMES, bottom + 18, "quiet", note);
    }
    svg + "</svg>\n"
}

fn load_limited(row: &Row<'_>) -> bool {
    row.doubt == Some(Doubt::LoadGenerator)
}

/// `figure` gives the length of a bar and what is written beside it.
fn bars(
    svg: &mut String,
    rows: &[Row<'_>],
    panel: &Panel,
    title: &str,
    figure: impl Fn(&Row<'_>) -> Option<(f64, String)>,
) {
    text(svg, panel.left, TOP - 14, "quiet", title);
    let figures: Vec<_> = rows.iter().map(figure).collect();
    let longest = figures
        .iter()
        .flatten()
        .map(|(value, _)| *value)
        .fold(0.0, f64::max);
    for (index, (row, figure)) in rows.iter().zip(figures).enumerate() {
        let Some((value, label)) = figure else {
            text(svg, panel.left, baseline(index), "quiet", "–");
            continue;
        };
        let class = match row.server.program {
            Program::Limit => "limit",
            Program::Framemill { .. } => "framemill",
            _ => "other",
        };
        // Never so short that nothing is seen, also where noise made the figure negative.
        let length = (value / longest * f64::from(panel.width)).max(1.0);
        let top = TOP + index as u32 * LINE;
        let _ = writeln!(
            svg,
            "<rect class=\"{class}\" x=\"{}\" y=\"{top}\" width=\"{length:.1}\" \
             height=\"{BAR}\" rx=\"2\"/>",
            panel.left
        );
        text(
            svg,
            panel.left + length as u32 + 6,
            baseline(index),
            "",
            &label,
        );
    }
}

fn baseline(index: usize) -> u32 {
    TOP + index as u32 * LINE + BAR - 4
}

fn text(svg: &mut String, x: u32, y: u32, class: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        svg,
        "<text class=\"{class}\" x=\"{x}\" y=\"{y}\">{words}</text>"
    );
}
