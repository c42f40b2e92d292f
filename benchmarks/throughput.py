"""Environment steps a second, ours and theirs in turn: `python -m benchmarks.throughput`.

See benchmarks/README.md for what is compared, and why only ratios count.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import peer_env
from benchmarks.record import ROOT, commit, machine
from benchmarks.rows import ROWS, Row

QUICK = 16  # divisor of the steps
TIMEOUT = 3600  # seconds for one measurement


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0; 1 where a measurement failed; 2 where the request makes no sense."""
    args = parser().parse_args(argv)
    mistake = find_mistake(args)
    if mistake:
        print(mistake, file=sys.stderr)
        return 2
    rows = {name: ROWS[name].shortened(QUICK if args.quick else 1) for name in args.rows}
    pythons = find_pythons(rows)
    out = args.out or free_path(args.quick)
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "quick": args.quick,
        "repeats": args.repeats,
        "commit": commit(),
        "machine": machine(),
        "rows": {name: asdict(row) for name, row in rows.items()},
        "measurements": [],
    }
    for name, row in rows.items():
        measure_row(name, row, pythons, report, out)
    report["summary"] = summarise(rows, report["measurements"])
    save(report, out)
    print(table(report), f"\nSaved to {out}", sep="\n")
    return int(any("error" in m for m in report["measurements"]))


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    p.add_argument("--rows", nargs="+", default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    p.add_argument("--repeats", type=int, default=3, help="measurements of each side (3)")
    p.add_argument("--out", type=Path, help="a JSON file (benchmarks/results/throughput-<date>)")
    quick = f"1/{QUICK} of the steps, to see that it works; never to be quoted"
    p.add_argument("--quick", action="store_true", help=quick)
    return p


def find_mistake(args: argparse.Namespace) -> str | None:
    unknown = [name for name in args.rows if name not in ROWS]
    if unknown:
        return f"There is no row {unknown[0]!r}: the rows are {', '.join(ROWS)}."
    if args.repeats < 1:
        return f"--repeats must be at least 1, and is {args.repeats}."
    if args.out and not args.out.parent.is_dir():
        return f"--out is to be in {args.out.parent}, which is not a directory: make it first."
    return None


def find_pythons(rows: dict[str, Row]) -> dict[str, str]:
    """The interpreter of each side; without that of rejax, and with a sentence, where it is missing."""
    pythons = {"ours": sys.executable, "brax": sys.executable, "bare": sys.executable}
    needed = [name for name, row in rows.items() if "rejax" in row.peers]
    if needed:
        try:
            pythons["rejax"] = peer_env.python()
        except peer_env.PeerEnvError as error:
            print(
                f"rejax is skipped in {', '.join(needed)}, as its environment could not be built "
                f"(is there a network?): {error}."
            )
    return pythons


def free_path(quick: bool) -> Path:
    """In results/, after today; numbered where there is one already."""
    stem = f"throughput-{datetime.date.today()}{'-quick' if quick else ''}"
    names = [stem, *(f"{stem}-{i}" for i in range(2, 1000))]
    paths = (ROOT / "benchmarks" / "results" / f"{name}.json" for name in names)
    return next(path for path in paths if not path.exists())


def measure_row(name: str, row: Row, pythons: dict[str, str], report: dict, out: Path) -> None:
    """Ours, theirs, ours, theirs ...: each ratio is of neighbours, whatever else drifts."""
    sides = [side for side in ("ours", *row.peers) if side in pythons]
    for repeat in range(report["repeats"]):
        for side in sides:
            about = {"row": name, "side": side, "repeat": repeat, "load": os.getloadavg()[0]}
            measured = measure(pythons[side], side, row, seed=2 * repeat)
            report["measurements"].append({**about, **measured})
            save(report, out)
            turn = f"{name:17}{side:6}{repeat + 1}/{report['repeats']}"
            print(f"{turn}  {describe(measured)}", flush=True)


def measure(python: str, side: str, row: Row, *, seed: int) -> dict[str, Any]:
    """In a fresh process, in an empty directory (mujoco leaves a log where it is)."""
    spec = json.dumps({**asdict(row), "seed": seed})
    command = [python, "-m", "benchmarks.sides", side, spec]
    with tempfile.TemporaryDirectory() as directory:
        try:
            done = subprocess.run(
                command,
                cwd=directory,
                env=child_environment(),
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"no result after {TIMEOUT} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"error": f"exit status {done.returncode}: {last}".replace(str(Path.home()), "~")}
    measured = json.loads(lines[-1])
    if late := measured["compiled_in_run"]:
        measured["error"] = f"{late} programs were compiled while the run was timed"
    return measured


def child_environment() -> dict[str, str]:
    """The CPU, this checkout, and JAX as it comes: no flags and no compilation cache."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "PYTHON"))}
    return {**kept, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def describe(measured: dict[str, Any]) -> str:
    if "error" in measured:
        return f"failed, {measured['error']}"
    return (
        f"{measured['steps_per_s']:>9,.0f} steps/s, compile {measured['compile_s']:.1f} s, "
        f"run {measured['run_s']:.2f} s, {measured['peak_rss_mb']:,.0f} MB, "
        f"{measured['devices']} JAX device{'s' if measured['devices'] > 1 else ''}"
    )


def summarise(rows: dict[str, Row], measurements: list[dict]) -> list[dict[str, Any]]:
    """A line per row and peer, or of ours alone where no peer was measured."""
    lines = []
    for name, row in rows.items():
        found = {
            side: {m["repeat"]: m for m in measurements if (m["row"], m["side"]) == (name, side)}
            for side in ("ours", *row.peers)
        }
        peers = [peer for peer in row.peers if found[peer]] or [None]
        lines += [{"row": name, "peer": peer, **compare(found["ours"], found.get(peer, {}))} for peer in peers]
    return lines


def compare(ours: dict[int, dict], theirs: dict[int, dict]) -> dict[str, Any]:
    """Of measurements by repeat: medians, and the ratio of each pair in which neither failed."""
    ours, theirs = ({i: m for i, m in side.items() if "error" not in m} for side in (ours, theirs))
    pairs = sorted(ours.keys() & theirs.keys())
    ratios = [ours[i]["steps_per_s"] / theirs[i]["steps_per_s"] for i in pairs]
    line: dict[str, Any] = {"ratio": median(ratios) if ratios else None, "ratios": ratios}
    for field in ("steps_per_s", "compile_s", "peak_rss_mb"):
        line[field] = {
            name: median(m[field] for m in side.values()) if side else None
            for name, side in (("ours", ours), ("theirs", theirs))
        }
    return line


def table(report: dict[str, Any]) -> str:
    """In Markdown."""
    head = (
        "row | peer | ours, env steps/s | theirs | **ratio** [range] | compile s, ours / theirs | "
        "peak RSS MB, ours / theirs | purejaxrl, reference only"
    )
    lines = [head, " | ".join(["---"] * (head.count("|") + 1))]
    for line in report["summary"]:
        speed, theirs = (show(x, ",.0f") for x in line["steps_per_s"].values())
        seconds = " / ".join(show(x, ".1f") for x in line["compile_s"].values())
        memory = " / ".join(show(x, ",.0f") for x in line["peak_rss_mb"].values())
        reference = show(ROWS[line["row"]].purejaxrl, ",.0f")
        ratio = show_ratio(line)
        cells = (line["row"], line["peer"] or "none", speed, theirs, ratio, seconds, memory)
        lines.append(" | ".join([*cells, reference]))
    warning = "\nQUICK: shortened lives, not to be quoted.\n" if report["quick"] else ""
    return warning + "\n" + "\n".join(f"| {line} |" for line in lines)


def show(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def show_ratio(line: dict[str, Any]) -> str:
    if not line["ratios"]:
        return "-"
    digits = ".2f" if line["ratio"] > 0.1 else ".1g"
    ratio, least, most = (format(x, digits) for x in (line["ratio"], min(line["ratios"]), max(line["ratios"])))
    return f"**{ratio}** [{least}, {most}]"


def save(report: dict[str, Any], out: Path) -> None:
    """After every measurement, so that an interrupted run leaves what it had."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
