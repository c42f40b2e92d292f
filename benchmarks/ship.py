"""Put a discovered objective into `learned_objectives/weights`.

    python -m benchmarks.ship lpg runs/a,runs/b,runs/c       # meta-seeds of one search
    python -m benchmarks.ship ta_lpo --lives 1+2             # read off a response surface (benchmarks/surface.py)

Of several meta-seeds the one is shipped that is best in validation: in worlds or games that are neither those it was searched
in nor those its card reports. For update rules of LPG's family that is one of the worlds in benchmarks/results/worlds.json,
from which their cards are made. For drifts that are networks it is games of gymnax beside PPO, and `python -m benchmarks.returns`
comes after. For objectives read off a response surface, `python -m benchmarks.protocol test` comes after.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np

import learned_objectives as lo
from benchmarks import surface
from benchmarks.record import ROOT
from discover.agents.objectives import identity
from discover.evaluation.evaluate import evaluate
from discover.results import statistics
from discover.runs.store import read_rows, write_text
from discover.searches.recipe import recipe_of
from learned_objectives.cards import TESTED
from learned_objectives.library import WEIGHTS

VALIDATION = "gridworld/medium"  # of update rules
GAMES = ("FourRooms-misc", "FrozenLake-misc")  # of drifts
SEEDS = 16
SEED = 63_000  # far from the seeds of searches, references and comparisons

SUMMARIES = {
    "lpo": (
        "PPO with six searched constants: a width of the clip for each sign of the advantage, the weights of entropy and value, "
        "lambda and the value clip.",
        "Lu et al. 2022, arXiv:2210.05639 (discovery); Box and Wilson 1951 (search)",
    ),
    "ta_lpo": (
        "PPO with constants that change over a life and with its length: those of `lpo`, each with multiples of n/N and log10 N.",
        "Jackson et al. 2024, arXiv:2402.05828 (time-aware objectives); Box and Wilson 1951 (search)",
    ),
    "lpo_2026_11": (
        "A drift, found by evolution on Breakout and Freeway of MinAtar: PPO's clip and what a small network adds to it.",
        "Lu et al. 2022, arXiv:2210.05639",
    ),
    "ta_lpo_2026_11": (
        "A time-aware drift, found by evolution on Breakout and Freeway of MinAtar: `lpo_2026_11` with the time in a life as an "
        "input.",
        "Jackson et al. 2024, arXiv:2402.05828",
    ),
    "lpg": (
        "A learned policy gradient, found by meta-gradient on small random grid worlds: what to predict, and what to do.",
        "Oh et al. 2020, arXiv:2007.08794",
    ),
    "groove": (
        "A learned policy gradient, found by meta-gradient on small random grid worlds, where lives are replayed in those worlds "
        "in which it falls furthest behind A2C.",
        "Jackson et al. 2023, arXiv:2310.02782",
    ),
    "ta_lpg": (
        "A time-aware learned policy gradient, found by evolution on small random grid worlds and lives of different length: it "
        "is shown how far its agent's life has come, and how long that life is.",
        "Jackson et al. 2024, arXiv:2402.05828",
    ),
}


SURFACE = {
    "lpo": "tuned_ppo",
    "ta_lpo": "ta_tuned_ppo",
}  # the family of an objective that was read off a response surface


def choose(worlds: dict[str, Any], search: str) -> int:
    """Which meta-seed is best on the validation world."""
    names = list(worlds["a2c"]["iqm_by_world"])
    scores = [statistics.iqm(np.asarray(x)[[names.index(VALIDATION)]]) for x in worlds["searches"][search]["scores"]]
    return int(np.argmax(scores))


def tested(worlds: dict[str, Any], search: str, which: int) -> list[dict[str, str]]:
    """Rows of the card: this one meta-seed on every world but the one it was chosen on."""
    found = worlds["searches"][search]
    rows = []
    for i, (world, a2c) in enumerate(worlds["a2c"]["iqm_by_world"].items()):
        if world != VALIDATION:
            mine = statistics.iqm_interval(np.asarray(found["scores"][which])[i])
            began = statistics.iqm_interval(np.asarray(found["began_scores"][which])[i])
            rows.append(
                {
                    "held-out levels of": world,
                    "this rule": f"{mine:.2f}",
                    "A2C": f"{statistics.Interval(*a2c):.2f}",
                    "before its search": f"{began:.2f}",
                }
            )
    return rows


# How a rule was searched. Where it is behind is read off the tables when the card is made.
SEARCHED = (
    "It was searched for minutes on one core, in worlds of at most six by six cells, for tabular agents trained by gradient "
    "descent at a rate of 40."
)


def drift_card(runs: list[str]) -> tuple[int, dict[str, Any]]:
    """(which run is best beside PPO in validation, what its card says)."""
    recipe = recipe_of(lo.record(Path(runs[0]) / "objective.safetensors"))
    comparison = evaluate(
        {"ppo": "ppo"} | {run: run for run in runs},
        GAMES,
        total_steps=recipe.total_steps,
        num_seeds=SEEDS,
        seed=SEED,
        agent=recipe.agent,
        loss=recipe.loss,
        progress=lambda line: print(line, flush=True),
    )

    def final(which: str) -> np.ndarray:
        return np.stack([curves[which].final for curves in comparison.curves.values()])

    better = [statistics.interval(statistics.probability_of_improvement, final(run), final("ppo")) for run in runs]
    which = int(np.argmax([x.value for x in better]))
    games = " and ".join(GAMES)
    count = f"the best of {len(runs)} meta-seeds" if len(runs) > 1 else "of one meta-seed"
    return which, {
        "chosen": (
            f"{count} on {games} ({SEEDS} seeds of {recipe.total_steps:,} steps each, where it is better than PPO with "
            f"probability {better[which]:.2f}); within a search, the best evaluated mean"
        ),
        "loses": (
            f"Searched with agents of two layers of {recipe.agent.hidden[0]}, in lives of {recipe.total_steps:,} steps, at one "
            f"learning rate, with a population of {recipe.search.population}: published searches took lives of ten million "
            "steps and populations of 64."
        ),
    }


def rule_card(search: str, runs: list[str], results: Path) -> tuple[int, dict[str, Any]]:
    """The same of an update rule, from the results of `benchmarks.worlds`."""
    worlds = json.loads(results.read_text())
    which = choose(worlds, search)
    if lo.record(Path(runs[which]) / "objective.safetensors") != worlds["searches"][search]["records"][which]:
        raise SystemExit(f"{runs[which]} is not what {results} judged: name the runs in the same order.")
    rows = tested(worlds, search, which)
    return which, {
        "chosen": f"the best of {len(runs)} meta-seeds on 16 held-out levels of {VALIDATION}; within it, the best evaluated mean",
        "score": "IQM of final returns over 16 levels and agents, in units of A2C's mean, with its 95% bootstrap interval",
        "tested": rows,
        "loses": SEARCHED,
    }


def held_out(family: str, lives: str) -> dict[str, Any]:
    """A table of the card: environments that no life of the search contains (`benchmarks.surface_returns`)."""
    report = json.loads((ROOT / f"benchmarks/results/surface-returns-{lives}.json").read_text())["groups"]["held out"]
    shipped = identity(lo.load(ROOT / f"benchmarks/searches/surface-{lives}/{family}.safetensors"))
    if report["objectives"].get(family) != shipped:
        raise SystemExit(
            f"surface-returns-{lives}.json measured another {family}: run `python -m benchmarks.surface_returns` again."
        )
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for row in report["rows"]:
        rows.setdefault((row["env"], row["total_steps"]), {})[row["objective"]] = row
    iqm = {
        key: {each: statistics.Interval(*found[each]["iqm"]) for each in (family, "ppo")} for key, found in rows.items()
    }
    return {
        "score": (
            f"Validation: IQM of final returns over {report['seeds']} seeds, with its 95% bootstrap interval; and the "
            "probability that a seed returns more than one of ppo's, with Newcombe's score interval"
        ),
        "tested": [
            {
                "environment": env,
                "steps": f"{steps:,}",
                "return": f"{iqm[env, steps][family]:.1f}",
                "ppo": f"{iqm[env, steps]['ppo']:.1f}",
                "better than ppo": f"{statistics.Interval(*found[family]['better than ppo']):.2f}",
            }
            for (env, steps), found in rows.items()
        ],
    }


def surface_objective(name: str, lives: str) -> tuple[lo.Objective, dict[str, Any]]:
    """(the objective read off these sets of lives, its record)."""
    report = json.loads((ROOT / "benchmarks/results/surface.json").read_text())
    sets = [surface.SETS[each] for each in lives.split("+")]
    family = SURFACE[name]
    cells = [cell for each in sets for cell in each.cells]
    envs = dict.fromkeys(env for cell in cells for env in cell.envs)
    steps = sum(cell.steps * sum(cell.parts) * len(cell.envs) for cell in cells)
    lengths = sorted({cell.steps for cell in cells})
    search = {
        "method": f"a response surface (`python -m benchmarks.surface`), family `{family}`",
        "trained on": ", ".join(envs),
        "lives": f"{', '.join(f'{n:,}' for n in lengths)} environment steps",
        "sets of lives": f"{len(sets)}, seeds {', '.join(str(each.seed) for each in sets)}",
        "environment steps in all": f"{steps:.3g}",
        "made with": ", ".join(f"{k} {v}" for k, v in report["versions"].items() if v),
        "commit": report["commit"],
    }
    objective = lo.load(ROOT / f"benchmarks/searches/surface-{lives}/{family}.safetensors")
    loses = (
        "Lives of the search are at most 1,048,576 steps long. The weights of entropy and value, lambda and the value clip were "
        "searched together with the clip: an agent that takes the clip alone has another objective."
    )
    made = {
        "commit": report["commit"],
        "versions": report["versions"] | {"discover-rl": importlib.metadata.version("discover-rl")},
    }
    return objective, made | {"search": search, "env_steps": steps, "card": {"loses": loses} | held_out(family, lives)}


def run_objective(name: str, runs: list[str], search: str | None, worlds: Path) -> tuple[lo.Objective, dict[str, Any]]:
    """(the best of several meta-seeds, its record)."""
    if name in ("lpo_2026_11", "ta_lpo_2026_11"):
        which, said = drift_card(runs)
    else:
        which, said = rule_card(search or f"{name}_small", runs, worlds)
    source = Path(runs[which]) / "objective.safetensors"
    log = read_rows(Path(runs[which]) / "metrics.jsonl")
    spent = {"wall_seconds": round(sum(row["seconds"] for row in log))} if log else {}
    return lo.load(source), lo.record(source) | spent | {"card": said}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SUMMARIES, help="to ship it under")
    parser.add_argument(
        "runs",
        nargs="?",
        help="run,run,...: meta-seeds of one search, an update rule's as its results were made with",
    )
    parser.add_argument("--lives", help="in place of runs: the sets of lives of a response surface, 1+2 for two")
    parser.add_argument("--search", help="an update rule's name in the results (default: NAME_small)")
    parser.add_argument("--worlds", type=Path, default=ROOT / "benchmarks/results/worlds.json")
    args = parser.parse_args()
    if (args.runs is None) == (args.lives is None):
        parser.error("give runs, or --lives.")
    if (args.lives is not None) != (args.name in SURFACE):
        parser.error(f"--lives is for {' and '.join(SURFACE)}, and runs are for the others.")
    if args.lives and not set(args.lives.split("+")) <= set(surface.SETS):
        parser.error(f"--lives must be of {', '.join(surface.SETS)}, joined by +, and is {args.lives}.")
    needed = ("benchmarks/searches/surface-{}", "benchmarks/results/surface-returns-{}.json") if args.lives else ()
    if lacking := [path for each in needed if not (ROOT / (path := each.format(args.lives))).exists()]:
        parser.error(f"there is no {lacking[0]}: run benchmarks.surface and benchmarks.surface_returns first.")
    if args.lives:
        objective, record = surface_objective(args.name, args.lives)
    else:
        objective, record = run_objective(args.name, args.runs.split(","), args.search, args.worlds)
    summary, reference = SUMMARIES[args.name]
    card = {"summary": summary, "reference": reference} | record["card"]
    WEIGHTS.mkdir(exist_ok=True)
    lo.save(objective, WEIGHTS / f"{args.name}.safetensors", record | {"card": card, "probe": lo.probe(objective)})
    if TESTED.exists():  # what was measured was another one
        known = json.loads(TESTED.read_text())
        known.pop(args.name, None)
        write_text(TESTED, json.dumps(known, indent=1) + "\n")
    print(lo.card(args.name))


if __name__ == "__main__":
    main()
