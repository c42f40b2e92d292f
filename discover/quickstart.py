"""The first five minutes: discover a drift from nothing, compare it, draw it, import it."""

from __future__ import annotations

from pathlib import Path

from discover.console import print_line
from discover.evaluation.evaluate import evaluate
from discover.plots import draw_run
from discover.progress import bar
from discover.results.comparison import Comparison
from discover.runs import recipes
from discover.runs.loop import meta_train
from discover.runs.store import open_run

UNSEEN = "Acrobot-v1"
SEEDS = 16


def quickstart(out: Path) -> int:
    """Run all steps and return the exit status. A second call continues where the first stopped."""
    recipe = recipes.quickstart()
    with open_run(out, recipe):  # refused before a word is said
        pass
    print_line(f"1. Discover a drift on {' and '.join(recipe.envs)}, starting from no drift at all.\n")
    with bar("generation"):
        result = meta_train(recipe, out)
    if result.stopped is not None:
        return 128 + result.stopped
    print_line(
        f"\n2. Train {SEEDS} fresh agents with each objective, there and on {UNSEEN}, which the search never saw.\n"
    )
    with bar("cell"):
        comparison = compare(recipe, result.out)
    print_line("\nIQM of the final return over seeds, with its 95% interval")
    print_line(comparison.table())
    figures = [
        *draw_run(out, out),
        *(out / f"{trial.env.replace('/', '_')}.png" for trial in comparison.curves),
    ]
    print_line("\n3. See it: " + ", ".join(str(path) for path in figures))
    print_line("\n4. Use it in your own agent:\n")
    print_line(f'   import learned_objectives as lo; drift = lo.load("{result.out / "objective.safetensors"}")')
    print_line("   policy_loss = -drift.surrogate(log_ratio, advantage).mean()")
    return 0


def compare(recipe: recipes.Recipe, out: Path) -> Comparison:
    """Nothing, PPO and what was found, on keys the search never used; written into `out`."""
    return evaluate(
        {"no drift": "a2c", "PPO": "ppo", "discovered": out},
        [*recipe.envs, UNSEEN],
        total_steps=recipe.total_steps,
        num_seeds=SEEDS,
        seed=recipe.seed + 1000,
        agent=recipe.agent,
        loss=recipe.loss,
        out=out,
        progress=print_line,
    )
