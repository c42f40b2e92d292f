"""Kill runs many times over, resume them each time, and compare what each exports with an uninterrupted one:
`python -m benchmarks.unbreakable --kills 50`. Saved in benchmarks/results/unbreakable.json.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.record import ROOT, provenance
from tests import crash

STRIDE = 3  # generations, at most, from one kill to the next
LAST = crash.TINY["generations"]


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0; 1 where a killed run has another result."""
    args = parser().parse_args(argv)
    chance, runs = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as directory:
        calm = Path(directory, "calm")
        crash.finish(calm)
        while (done := sum(len(run["kills"]) for run in runs)) < args.kills:
            runs.append(killed_run(Path(directory, str(len(runs))), calm, args.kills - done, chance))
            print(f"{done + len(runs[-1]['kills'])}/{args.kills}  {runs[-1]}", flush=True)
    report = provenance() | summary(runs) | {"seed": args.seed, "runs": runs}
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(summary(runs))
    return int(not all(same(run) for run in runs))


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m benchmarks.unbreakable", description=__doc__)
    p.add_argument("--kills", type=int, default=50)
    p.add_argument("--seed", type=int, default=0, help="of the moments")
    p.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/unbreakable.json")
    return p


def killed_run(out: Path, calm: Path, kills: int, chance: random.Random) -> dict:
    """A run that is killed until it dies in its last generation, or `kills` times, the last of them there; then it ends."""
    found: list[str] = []
    while len(found) < kills and (before := crash.last_generation(out)) < LAST:
        near = before + STRIDE >= LAST or len(found) == kills - 1
        moment = crash.last_moment(chance, LAST) if near else crash.random_moment(chance, out, stride=STRIDE)
        if not crash.kill(out, moment):
            break  # it had ended: a kill that came too late is none
        found.append(what_died(out, before))
    crash.finish(out)
    return {
        "kills": found,
        "same objective": crash.exported(calm) == crash.exported(out),
        "same log": crash.logged(calm) == crash.logged(out),
    }


def what_died(out: Path, before: int) -> str:
    """By what a killed run has left, whose log was `before`."""
    after = crash.last_generation(out)
    if after <= before:
        return "starting"
    generation = "the last generation" if after >= LAST else "a generation"
    return f"{generation}, writing a checkpoint" if crash.is_writing(out) else generation


def same(run: dict) -> bool:
    return run["same objective"] and run["same log"]


def summary(runs: list[dict]) -> dict:
    return {
        "kills": sum(len(run["kills"]) for run in runs),
        "of them in runs with the same result": sum(len(run["kills"]) for run in runs if same(run)),
        "moments": dict(Counter(kind for run in runs for kind in run["kills"])),
    }


if __name__ == "__main__":
    sys.exit(main())
