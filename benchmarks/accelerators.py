"""Speed and correctness on a machine with an accelerator, in one command of a few minutes: `python -m benchmarks.accelerators`.

Each stage runs in a process of its own under a limit of seconds. It prints JSON lines, which are kept even where the stage fails
or runs out of time. The report is written after every stage, so an interrupted run keeps what it measured. A stage that does not
fit into the remaining time is skipped and listed as such.

The parent process does not import JAX, so that a stage has the whole device memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.record import ROOT, commit, machine
from benchmarks.rows import BREAKOUT, CARTPOLE, Row

# Updates that are timed, by the number of agents: enough for a second or more on a card.
UPDATES = {1: 40, 64: 40, 1024: 20, 4096: 8}
TINY = 32  # divisor of the number of agents and members in a dry run


class Stage(NamedTuple):
    """One process: the arguments of `benchmarks.accelerator_stages` or `benchmarks.sides`, and its limit in seconds."""

    name: str
    module: str
    arguments: tuple[str, ...]
    limit: int
    peer: bool = False  # runs with the packages of the peer


def stages(tiny: bool) -> list[Stage]:
    """All stages, the most wanted first."""
    small = ("--tiny",) if tiny else ()
    ours = "benchmarks.accelerator_stages"
    rows = [life(CARTPOLE, n, tiny) for n in (1, 64, 1024)] + [life(BREAKOUT, n, tiny) for n in (1, 64, 1024)]
    largest = [life(CARTPOLE, 4096, tiny), life(BREAKOUT, 4096, tiny)]
    return [
        Stage("device", ours, ("device", *small), 45),
        Stage("updates", ours, ("updates", *small), 90),
        Stage("probes", ours, ("probes", *small), 60),
        *(throughput(side, row) for row in rows for side in ("ours", "rejax")),
        Stage("lpo_minatar", ours, ("search", "lpo_minatar", *small), 120),
        Stage("ta_lpg", ours, ("search", "ta_lpg", *small), 90),
        Stage("lpg", ours, ("search", "lpg", *small), 90),
        Stage("groove", ours, ("search", "groove", *small), 90),
        *(throughput("bare", row) for row in (rows[2], rows[5])),
        Stage("profile", ours, ("profile", *small), 60),
        *(throughput(side, row) for row in largest for side in ("ours", "rejax")),
        Stage("lpo_brax", ours, ("search", "lpo_brax", *small), 150),
    ]


def life(row: Row, agents: int, tiny: bool) -> Row:
    """The row with so many agents, for so many updates as are timed."""
    updates = 2 if tiny else UPDATES[agents]
    agents = max(1, agents // TINY) if tiny else agents
    return replace(row, num_seeds=agents, total_steps=updates * row.steps_per_update)


def throughput(side: str, row: Row) -> Stage:
    name = f"{row.env} x {row.num_seeds}, {side}"
    return Stage(name, "benchmarks.sides", (side, json.dumps(asdict(row) | {"seed": 0})), 60, peer=side == "rejax")


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0; 1 where a stage failed, ran out of time or was skipped."""
    args = parser().parse_args(argv)
    began = time.monotonic()
    report: dict[str, Any] = {"commit": args.commit or commit(), "machine": machine(), "tiny": args.tiny, "stages": []}
    args.out.mkdir(parents=True, exist_ok=True)
    chosen = [s for s in stages(args.tiny) if not args.only or any(word in s.name for word in args.only)]
    for stage in chosen:
        left = args.seconds - (time.monotonic() - began)
        found = (
            run(stage, min(stage.limit, left), args.peer_path) if left > 10 else {"error": "skipped: no time was left"}
        )
        report["stages"].append({"stage": stage.name, **found})
        (args.out / "accelerators.json").write_text(json.dumps(report, indent=1) + "\n")
        print(f"{time.monotonic() - began:6.0f} s  {stage.name}: {describe(found)}", flush=True)
    return int(any("error" in stage for stage in report["stages"]))


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m benchmarks.accelerators", description=__doc__)
    p.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="a directory (benchmarks/results)")
    p.add_argument("--seconds", type=float, default=540, help="for all stages together (540)")
    p.add_argument("--only", nargs="+", metavar="WORD", help="the stages whose names contain one of these")
    p.add_argument("--tiny", action="store_true", help="small sizes, to see that every stage works; never to be quoted")
    p.add_argument("--peer-path", help="PYTHONPATH that has rejax and its gymnax; without it rejax is skipped")
    p.add_argument("--commit", help="of this code, where it is not a checkout")
    return p


def run(stage: Stage, limit: float, peer_path: str | None) -> dict[str, Any]:
    """The rows that the stage printed and its seconds, and `error` where it did not end well."""
    if stage.peer and not peer_path:
        return {"error": "skipped: --peer-path was not given"}
    path = [str(ROOT), peer_path if stage.peer else os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in path if p)}
    command = [sys.executable, "-m", stage.module, *stage.arguments]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        child = subprocess.Popen(
            command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            out, err = child.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            child.kill()
            out, err = child.communicate()
            err += f"\nno end after {limit:.0f} s"
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    found: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1), "rows": rows}
    if child.returncode:
        found["error"] = " | ".join(err.strip().splitlines()[-3:])[-600:]
    return found


def describe(found: dict[str, Any]) -> str:
    rows = [json.dumps(row) for row in found.get("rows", [])]
    return "; ".join(rows + ([f"FAILED, {found['error']}"] if "error" in found else []))


if __name__ == "__main__":
    sys.exit(main())
