"""Does evolution find PPO's clip by itself? `python -m benchmarks.epsilon`: from far too tight, and from far too loose."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np

import discover
from benchmarks.record import provenance
from discover.results.statistics import iqm_interval
from discover.searches.evolution import EvolutionConfig
from discover.searches.families import FormulaConfig
from learned_objectives import Clip, Mirror

STARTS = (1e-3, 2.0)


def search(start: float, out: Path) -> dict:
    recipe = dataclasses.replace(
        discover.recipes.quickstart(),
        name="epsilon",
        objective=FormulaConfig("ppo", epsilon=start),
        generations=24,
        search=EvolutionConfig(
            population=32,
            shared_keys="pair",
            sigma=0.5,  # wide enough to feel, from 2, that a tighter clip exists
            sigma_decay=0.95,
            learning_rate=0.2,
            learning_rate_decay=0.95,
        ),
    )
    found = discover.meta_train(recipe, out).objective
    row = {"start": start, "found": float(found.drift.epsilon)}
    for name, epsilon in (("start", start), ("found", row["found"]), ("usual", 0.2)):
        objective = recipe.loss.on(Mirror(drift=Clip(epsilon)))
        result = discover.train(
            objective,
            recipe.envs[0],
            total_steps=recipe.total_steps,
            num_seeds=16,
            seed=1000,
            agent=recipe.agent,
        )
        final = result.returns[:, -1]
        row[f"return_{name}"] = round(float(final.mean()), 1)
        row[f"iqm_{name}"] = np.round(iqm_interval(final), 1).tolist()
    return row


def main() -> None:
    rows = []
    for start in STARTS:
        with tempfile.TemporaryDirectory() as out:
            rows.append(search(start, Path(out) / "run"))
        print(json.dumps(rows[-1]), flush=True)
    Path("benchmarks/results/epsilon.json").write_text(json.dumps({**provenance(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
