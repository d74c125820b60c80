#!/usr/bin/env python3
"""Compares what Autobahn reported with what is expected, case by case.

    report.py --expected FILE --cases "PATTERN ..." LABEL=DIR ...

Each DIR holds the reports of one run of the suite (`index.json`, and one file a case), and a file `problems` with
a line for whatever went wrong around it. A case passes when both its verdicts, on behavior and on the closing of the
connection, are the expected one. A case without a verdict has failed, and so has one that the expected file does not
know and each problem. Exit status: 0 when nothing failed.
"""

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path

SECTIONS = {
    "1": "framing",
    "2": "pings and pongs",
    "3": "reserved bits",
    "4": "opcodes",
    "5": "fragmentation",
    "6": "UTF-8",
    "7": "closing",
    "9": "limits and performance",
    "10": "auto-fragmentation",
    "12": "compression, payloads",
    "13": "compression, parameters",
}


def section(case):
    return case.split(".")[0]


def by_number(case):
    return [int(part) for part in case.split(".")]


def matcher(patterns):
    """What the suite makes of its patterns: one with a star is a prefix, any other names a case."""
    expressions = [
        re.compile(re.escape(p).replace(r"\*", ".*") + ("" if "*" in p else "$")) for p in patterns
    ]
    return lambda case: any(e.match(case) for e in expressions)


class Run:
    """One run of the suite, compared."""

    def __init__(self, label, folder, expected):
        self.label = label
        self.passed, self.asked = Counter(), Counter()  # by section
        self.differences, self.missing = [], []
        self.problems = read_lines(folder / "problems")
        results = read_results(folder / "index.json")
        for case in sorted(expected.keys() | results.keys(), key=by_number):
            self.asked[section(case)] += 1
            result = results.get(case)
            if result is None:
                self.missing.append(case)
                continue
            wanted = expected.get(case)
            if result["behavior"] == result["behaviorClose"] == wanted:
                self.passed[section(case)] += 1
            else:
                self.differences.append((case, describe(wanted, result, folder)))
        if not self.asked:
            self.problems.append("no case was asked for")

    def passes(self):
        return self.passed.total()

    def failures(self):
        return len(self.differences) + len(self.missing) + len(self.problems)

    def print_differences(self):
        for problem in self.problems:
            print(f"{self.label}: {problem}")
        if self.missing:
            print(f"{self.label}: {len(self.missing)} without a result: {shortened_list(self.missing)}")
        for case, text in self.differences:
            print(f"{self.label}: {case} {text}")


def read_lines(path):
    return path.read_text().splitlines() if path.exists() else []


def read_results(path):
    """The suite's index has one entry for each agent: here the one server."""
    try:
        agents = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {case: result for cases in agents.values() for case, result in cases.items()}


def describe(wanted, result, folder):
    got, got_close = result["behavior"], result["behaviorClose"]
    text = f"expected {wanted}" if wanted else "is not in the expected file"
    text += f", got {got}"
    if got_close != got:
        text += f" with closing {got_close}"
    if result.get("remoteCloseCode") is not None:
        text += f" (close code {result['remoteCloseCode']})"
    try:
        detail = json.loads((folder / result["reportfile"]).read_text())
    except (KeyError, OSError, ValueError):
        return text
    if got != wanted:
        text += f"\n    {detail['result']}"
        for verdict, events in sorted(detail["expected"].items()):
            text += f"\n    events for {verdict}: {shortened_text(events)}"
        text += f"\n    events seen: {shortened_text(detail['received'])}"
    if got_close != (wanted or "OK"):
        text += f"\n    closing: {detail['resultClose']}"
    return text


def shortened_text(events, most=200):
    text = json.dumps(events)
    return text if len(text) <= most else text[:most] + " ..."


def shortened_list(cases, most=12):
    more = len(cases) - most
    return " ".join(cases[:most]) + (f" and {more} more" if more > 0 else "")


def print_table(runs):
    """Passed and asked for, a line for each section and a column for each run."""
    width = max(12, *(len(run.label) + 2 for run in runs))

    def line(name, cells):
        print(f"{name:<30}" + "".join(f"{cell:>{width}}" for cell in cells))

    line("section", (run.label for run in runs))
    for number in sorted({number for run in runs for number in run.asked}, key=int):
        name = f"{number:>2}  {SECTIONS.get(number, '')}"
        line(name, (f"{run.passed[number]}/{run.asked[number]}" for run in runs))
    line("    all", (f"{run.passes()}/{run.asked.total()}" for run in runs))


def labelled_folder(text):
    label, separator, folder = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"'{text}' is not LABEL=DIR")
    return label, Path(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--expected", type=Path, required=True)
    parser.add_argument("--cases", required=True)
    parser.add_argument("runs", type=labelled_folder, nargs="+", metavar="LABEL=DIR")
    args = parser.parse_args()

    asked_for = matcher(args.cases.split())
    expected = json.loads(args.expected.read_text())
    expected = {case: verdict for case, verdict in expected.items() if asked_for(case)}
    runs = [Run(label, folder, expected) for label, folder in args.runs]

    print_table(runs)
    for run in runs:
        run.print_differences()
    failed = sum(run.failures() for run in runs)
    print(f"{sum(run.passes() for run in runs)} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
