"""What does clipping the gradients of actor and critic apart do to returns? `python -m benchmarks.clip`.

`AgentConfig(clip="apart")` lets two cores train a network each, and is another algorithm than the usual one, whose norm is of
both networks together. So PPO is trained with it wherever benchmarks/again.py looks, and held beside the usual PPO of
results/returns.json, which code as of today repeats (`python -m benchmarks.again`): the IQMs of ten seeds, and the probability
that a seed clipped apart returns more.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

from benchmarks.again import CELLS, RESULTS, compare, describe, over_all
from benchmarks.record import provenance
from benchmarks.returns import SEED, SEEDS
from discover.setups import usual_setup
from discover.statistics import Interval


def main() -> int:
    recorded = json.loads((RESULTS / "returns.json").read_text())["groups"]["drifts"]
    before = {(row["env"], row["objective"]): row for row in recorded["rows"]}
    rows = []
    for env in CELLS:
        agent = replace(usual_setup(env).agent, clip="apart")
        rows.append(compare(env, "ppo", before[env, "ppo"], agent))
        print(describe(rows[-1]), flush=True)
    together = over_all(rows)
    head = provenance() | {"clip": "apart", "seeds": SEEDS, "seed": SEED, "recorded": recorded["trained_by"]}
    (RESULTS / "clip.json").write_text(json.dumps(head | {"rows": rows, "over_all": together}, indent=1) + "\n")
    print(f"over all cells: a seed clipped apart returns more with probability {Interval(*together):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
