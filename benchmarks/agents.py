"""What does another setting of the agent do to PPO's returns? `python -m benchmarks.agents clip apart`.

PPO is trained with it wherever benchmarks/again.py looks, or in --envs, and held beside the usual PPO of results/returns.json,
which code as of today repeats (`python -m benchmarks.again`): the IQMs of ten seeds, and the probability that a seed with the
setting returns more. Settings that are other algorithms, or round otherwise:

    python -m benchmarks.agents clip apart           # gradients clipped by each network's norm; two cores then train one each
    python -m benchmarks.agents products bfloat16    # factors of dense layers rounded to bfloat16
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace

from benchmarks.again import CELLS, RESULTS, compare, describe, over_all
from benchmarks.record import provenance
from benchmarks.returns import SEED, SEEDS
from discover.agents.setups import usual_setup
from discover.results.statistics import Interval


def main() -> int:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.agents", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("setting", choices=("clip", "products"), help="a field of AgentConfig")
    p.add_argument("value")
    p.add_argument("--envs", nargs="+", choices=CELLS, default=list(CELLS))
    args = p.parse_args()
    recorded = json.loads((RESULTS / "returns.json").read_text())["groups"]["drifts"]
    before = {(row["env"], row["objective"]): row for row in recorded["rows"]}
    rows = []
    for env in args.envs:
        agent = replace(usual_setup(env).agent, **{args.setting: args.value})
        rows.append(compare(env, "ppo", before[env, "ppo"], agent))
        print(describe(rows[-1]), flush=True)
    together = over_all(rows)
    head = provenance() | {args.setting: args.value, "seeds": SEEDS, "seed": SEED, "recorded": recorded["trained_by"]}
    report = json.dumps(head | {"rows": rows, "over_all": together}, indent=1)
    (RESULTS / f"{args.setting}.json").write_text(report + "\n")
    print(
        f"over all cells: a seed with {args.setting}={args.value} returns more with probability {Interval(*together):.2f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
