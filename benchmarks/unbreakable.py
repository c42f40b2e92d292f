"""Kill a run many times over, resume it each time, and compare what it exports with an uninterrupted run's:
`python -m benchmarks.unbreakable --kills 50`.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests import crash

STRIDE = 3  # generations, at most, from one kill to the next


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0; 1 where the killed run came to something else."""
    args = parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as directory:
        calm, killed = Path(directory, "calm"), Path(directory, "killed")
        generations = STRIDE * args.kills + 4
        crash.finish(calm, generations=generations)
        print(f"uninterrupted: {generations} generations", flush=True)
        kill_often(killed, args.kills, random.Random(args.seed), generations)
        print(crash.finish(killed, generations=generations).splitlines()[-1])
        return report(calm, killed)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m benchmarks.unbreakable", description=__doc__)
    p.add_argument("--kills", type=int, default=50)
    p.add_argument("--seed", type=int, default=0, help="of the moments")
    return p


def kill_often(out: Path, kills: int, chance: random.Random, generations: int) -> None:
    for i in range(kills):
        moment = crash.random_moment(chance, out, stride=STRIDE)
        died = crash.kill(out, moment, generations=generations)
        state = f"after generation {crash.last_generation(out)}" if died else "missed: it had ended"
        caught = ", a checkpoint half written" if crash.is_writing(out) else ""
        print(f"kill {i + 1:>3}/{kills}  {state}{caught}", flush=True)


def report(calm: Path, killed: Path) -> int:
    same = {
        "objective.safetensors": crash.exported(calm) == crash.exported(killed),
        "metrics.jsonl": crash.logged(calm) == crash.logged(killed),
    }
    for name, equal in same.items():
        print(f"{name}: {'the same' if equal else 'DIFFERENT'}")
    return int(not all(same.values()))


if __name__ == "__main__":
    sys.exit(main())
