"""What every objective comes to beside PPO: `python -m benchmarks.returns`, again to go on where it stopped, there or here.

Same budget, agents, keys and settings for all objectives of a group; the settings are those of `usual_setup`, tuned for PPO
alone. Three groups: drifts on classic control, MinAtar and Brax; update rules of LPG's family on games that have discrete
actions, beside an A2C that takes one step per rollout as they do; and drifts in lives shorter and longer than the one that
ours were searched in. Writes benchmarks/results/returns.json and a figure for each group, and learned_objectives/tested.json,
from which cards are made.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import learned_objectives as lo
from benchmarks.record import ROOT, provenance
from discover import plots
from discover.agents.agent import AgentConfig
from discover.agents.objectives import fingerprint, resolve_objective
from discover.agents.setups import SHUFFLED_GRID, LossConfig, Setup, setup_of, usual_setup
from discover.evaluation.evaluate import Cells, evaluate, read_cells
from discover.evaluation.train import as_json
from discover.results import references, statistics
from discover.results.comparison import Comparison, Curve, Trial, finite
from discover.runs.store import write_text
from learned_objectives.cards import TESTED

Report = dict[str, Any]  # by group, as returns.json has it
Found = dict[tuple[Trial, str], Curve]

SEEDS = 10
SEED = 91_000  # far from the seeds of searches, references and validation
DRIFTS = tuple(
    name for name in ("ppo", "a2c", "dpo", "mdpo", "lpo_2026_11", "ta_lpo_2026_11") if name in lo.available()
)
UNSEARCHED = ("ppo", "a2c", "dpo", "mdpo")
SEEN = ("Breakout-MinAtar", "Freeway-MinAtar")  # what `lpo_2026_11` and `ta_lpo_2026_11` were searched on
MINATAR_STEPS = 262_144


@dataclass(frozen=True)
class Group:
    """One comparison."""

    about: str
    objectives: tuple[str, ...]
    baseline: str
    budgets: dict[str, tuple[int, ...]]  # environment -> environment steps of each agent
    seen: tuple[str, ...] = ()  # what objectives of the group were searched on
    agent: AgentConfig | None = None  # None: as usual for the environment
    loss: LossConfig | None = None
    cells: str | None = None  # the group whose cells it shares
    pairs: tuple[tuple[str, str], ...] = ()  # objectives set beside each other as well, not only beside the baseline


GROUPS = {
    "drifts": Group(
        "drifts, agents as usual for each environment",
        DRIFTS,
        "ppo",
        {
            "CartPole-v1": (131_072,),
            "Acrobot-v1": (131_072,),
            "Pendulum-v1": (262_144,),
            "brax/inverted_pendulum@spring": (262_144,),
            "brax/inverted_double_pendulum@spring": (262_144,),
            "brax/reacher@spring": (262_144,),
            "Breakout-MinAtar": (MINATAR_STEPS,),
            "Freeway-MinAtar": (327_680,),  # its episodes are 2,500 steps long: two of each environment
            "Asterix-MinAtar": (MINATAR_STEPS,),
            "SpaceInvaders-MinAtar": (MINATAR_STEPS,),
            "Seaquest-MinAtar": (MINATAR_STEPS,),
        },
        SEEN,
    ),
    # GROOVE's agents on MinAtar: one step of Adam at 5e-4 per rollout of 64 x 20, two layers of 64.
    "rules": Group(
        "update rules of LPG's family, one step per rollout of 64 x 20",
        ("a2c", "lpg", "groove", "ta_lpg"),
        "a2c",
        {
            name: (MINATAR_STEPS,)
            for name in ("CartPole-v1", "Breakout-MinAtar", "Asterix-MinAtar", "SpaceInvaders-MinAtar")
        },
        agent=SHUFFLED_GRID.agent,
        loss=SHUFFLED_GRID.loss,
        pairs=(("groove", "lpg"), ("ta_lpg", "lpg")),
    ),
    "horizons": Group(
        "drifts in lives of half, equal and twice the length they were searched in, agents as in that search",
        tuple(name for name in DRIFTS if name in ("ppo", "lpo_2026_11", "ta_lpo_2026_11")),
        "ppo",
        {
            name: (MINATAR_STEPS // 2, MINATAR_STEPS, 2 * MINATAR_STEPS)
            for name in ("Breakout-MinAtar", "Asterix-MinAtar")
        },
        SEEN,
        cells="drifts",  # whose agents and lengths of life are those of the search
        pairs=(("ta_lpo_2026_11", "lpo_2026_11"),),
    ),
}


def directory(cells: Path, group: str, env: str) -> Path:
    return cells / (GROUPS[group].cells or group) / env.replace("/", "_")


def family(group: str) -> list[str]:
    """The groups whose cells are one group's too."""
    return [name for name in GROUPS if (GROUPS[name].cells or name) == (GROUPS[group].cells or group)]


def setups(group: str) -> dict[str, Setup]:
    """Environment -> how its agents learn."""
    asked, usual = GROUPS[group], {env: usual_setup(env) for env in GROUPS[group].budgets}
    return {env: Setup(asked.agent or setup.agent, asked.loss or setup.loss) for env, setup in usual.items()}


def recorded(group: str, report: Report) -> Found:
    """Those cells that a report contains, of objectives, agents and seeds as they are now."""
    asked, settings, out = GROUPS[group], setups(group), {}
    now = {name: fingerprint(resolve_objective(name)) for name in asked.objectives}
    for told in (report[name] for name in family(group) if name in report):
        if (told["seeds"], told["seed"]) != (SEEDS, SEED):
            continue
        for row in told["rows"]:
            env, name, steps = row["env"], row["objective"], row["total_steps"]
            same_objective = told["objectives"].get(name) == now.get(name)
            agents = told.get("setups", {}).get(env)
            same_agents = agents is not None and setup_of(agents) == settings.get(env)
            if same_objective and same_agents and steps in asked.budgets.get(env, ()):
                final = np.asarray([np.nan if x is None else x for x in row["final_returns"]], np.float32)
                out[Trial(env, steps), name] = Curve(final[:, None], np.asarray([steps], np.int64))
    return out


def measure(group: str, cells: Path, known: Found) -> dict[tuple[str, str], str]:
    """Train every cell of a group that is neither known nor there yet; returns what did not fit, and why."""
    asked, misfits = GROUPS[group], {}
    for env, budgets in asked.budgets.items():
        missing = [name for name in asked.objectives if any((Trial(env, n), name) not in known for n in budgets)]
        if missing:
            misfits |= evaluate(
                missing,
                [env],
                total_steps=budgets,
                num_seeds=SEEDS,
                seed=SEED,
                agent=asked.agent,
                loss=asked.loss,
                out=directory(cells, group, env),
                progress=lambda line: print(line, flush=True),
            ).misfits
    return misfits


def there(group: str, cells: Path) -> Iterator[tuple[dict[str, Any], Cells]]:
    """(settings, cells) of those environments of a group that have any."""
    for env in GROUPS[group].budgets:
        file = directory(cells, group, env) / "evaluation.json"
        if file.exists():
            settings, done = read_cells(file)
            same = (settings["num_seeds"], settings["seed"]) == (SEEDS, SEED)
            if not same or setup_of(settings["setups"][env]) != setups(group)[env]:
                raise ValueError(
                    f"{file} holds results of other agents or seeds: choose another directory, or remove it."
                )
            yield settings, done


def found(group: str, cells: Path, known: Found) -> Comparison:
    """What is known and what is there, of objectives as they are now, in the order that the group asks in."""
    asked, all_of_them = GROUPS[group], dict(known)
    now = {name: fingerprint(resolve_objective(name)) for name in asked.objectives}
    for settings, done in there(group, cells):
        all_of_them |= {
            (trial, name): cell.curve
            for (trial, name), cell in done.items()
            if settings["objectives"][name] == now.get(name)
        }
    curves: dict[Trial, dict[str, Curve]] = {}
    for trial in (Trial(env, n) for env, budgets in asked.budgets.items() for n in budgets):
        if here := {name: all_of_them[trial, name] for name in asked.objectives if (trial, name) in all_of_them}:
            curves[trial] = here
    return Comparison(curves, {})


def commits(group: str, cells: Path, report: Report, known: Found) -> list[str | None]:
    """Of the code that trained a group's cells."""
    before = {commit for name in family(group) if known and name in report for commit in report[name]["trained_by"]}
    here = {cell.made_with["commit"] for _, done in there(group, cells) for cell in done.values()}
    return sorted(before | here, key=str)


def unseen(comparison: Comparison, asked: Group) -> Comparison:
    """Without what the group's objectives were searched on."""
    return comparison._replace(curves={t: c for t, c in comparison.curves.items() if t.env not in asked.seen})


def better(comparison: Comparison, trial: Trial, name: str, baseline: str) -> statistics.Interval:
    """The probability that a seed of one returns more than a seed of the other."""
    curves = comparison.curves[trial]
    return statistics.interval(statistics.probability_of_improvement, curves[name].final, curves[baseline].final)


def better_over_all(comparison: Comparison, name: str, baseline: str) -> statistics.Interval | None:
    """The same, averaged over the trials that both took part in. It asks for no scores: only the order of returns enters."""
    shared = [curves for curves in comparison.curves.values() if name in curves and baseline in curves]
    if not shared or name == baseline:
        return None
    ours, theirs = (np.stack([curves[which].final for curves in shared]) for which in (name, baseline))
    return statistics.interval(statistics.probability_of_improvement, ours, theirs)


def by_length(comparison: Comparison, name: str, baseline: str) -> dict[str, statistics.Interval | None]:
    """The same over all trials, and over those of each length of life: {"all": ..., "262,144 steps": ...}."""
    parts = {"all": comparison} | {
        f"{n:,} steps": comparison._replace(curves={t: c for t, c in comparison.curves.items() if t.total_steps == n})
        for n in sorted({trial.total_steps for trial in comparison.curves})
    }
    return {part: better_over_all(of, name, baseline) for part, of in parts.items()}


def beside(comparison: Comparison, pairs: tuple[tuple[str, str], ...]) -> dict[str, dict[str, statistics.Interval]]:
    """Of each pair, P(a seed of the first returns more than one of the second): over all trials, and in each."""
    out = {}
    for one, other in pairs:
        if over_all := better_over_all(comparison, one, other):
            each = {
                str(trial): better(comparison, trial, one, other)
                for trial, curves in comparison.curves.items()
                if one in curves and other in curves
            }
            out[f"{one} better than {other}"] = {"all": over_all} | each
    return out


def rows(comparison: Comparison, baseline: str) -> list[dict[str, Any]]:
    return [
        {
            "env": trial.env,
            "total_steps": trial.total_steps,
            "objective": name,
            "iqm": finite(statistics.iqm_interval(curve.final)),
            f"better than {baseline}": None
            if name == baseline or baseline not in curves
            else better(comparison, trial, name, baseline),
            "final_returns": as_json(curve.final.round(3)),
        }
        for trial, curves in comparison.curves.items()
        for name, curve in curves.items()
    ]


def summary_of(comparison: Comparison, baseline: str) -> dict[str, Any]:
    return {
        name: {statistic: finite(interval) for statistic, interval in each.items()}
        for name, each in comparison.summary(baseline).items()
    }


def longest(comparison: Comparison) -> Comparison:
    """The trials of the longest life alone, where an environment has several; empty where none has."""
    lives: dict[str, list[int]] = {}
    for trial in comparison.curves:
        lives.setdefault(trial.env, []).append(trial.total_steps)
    return comparison._replace(
        curves={
            t: c for t, c in comparison.curves.items() if len(lives[t.env]) > 1 and t.total_steps == max(lives[t.env])
        }
    )


def card(comparison: Comparison, name: str, asked: Group, seeds: int = SEEDS) -> dict[str, Any]:
    """What a card says of an objective in a group."""
    table, behind = [], []
    for trial, curves in comparison.curves.items():
        if name not in curves or asked.baseline not in curves:
            continue
        mine, theirs = (statistics.iqm_interval(curves[which].final) for which in (name, asked.baseline))
        digits = ".1f" if max(map(abs, (*mine, *theirs))) >= 10 else ".2f"
        row = {
            "environment": trial.env + (" (searched on)" if trial.env in asked.seen and name not in UNSEARCHED else ""),
            "steps": f"{trial.total_steps:,}",
            "return": f"{mine:{digits}}",
        }
        if name != asked.baseline:
            row[asked.baseline] = f"{theirs:{digits}}"
            row[f"better than {asked.baseline}"] = f"{better(comparison, trial, name, asked.baseline):.2f}"
            if mine.value < theirs.value:
                behind.append(f"{trial.env} at {trial.total_steps:,} steps")
        table.append(row)
    score = f"{asked.about}: IQM of final returns over {seeds} seeds, with its 95% bootstrap interval"
    score += (
        ""
        if name == asked.baseline
        else f"; and the probability that a seed returns more than one of {asked.baseline}'s, with Newcombe's score interval"
    )
    loses = [f"Behind {asked.baseline}, by IQM, on {', '.join(behind)}."] if behind else []
    pooled = better_over_all(longest(comparison), name, asked.baseline)
    if pooled and pooled.value < 0.5:
        loses.append(
            f"In the longest lives of this comparison, pooled over its environments, it is behind {asked.baseline}: a seed "
            f"returns more with probability {pooled:.2f}."
        )
    return {"score": score[0].upper() + score[1:], "rows": table, "loses": " ".join(loses)}


def draw(
    group: str, comparison: Comparison, parts: dict[str, Comparison], directory: Path, stem: str | None = None
) -> None:
    """Write the figures of a group: STEM.png (`returns-GROUP` by default), and STEM-budgets.png for several budgets."""
    stem = stem or f"returns-{group}"
    baseline = GROUPS[group].baseline
    panels = {
        name: {
            f"P(better than {baseline})" + ("" if which == "all" else f"\n{which}"): interval
            for which, part in parts.items()
            if (interval := better_over_all(part, name, baseline))
        }
        for name in comparison.objectives
        if name != baseline
    }
    trials = f"{len(comparison.curves)} trials (one environment at one budget each)"
    figure = plots.intervals(panels, title=trials, label="probability that a seed returns more")
    figure.savefig(directory / f"{stem}.png", dpi=150)
    if len(comparison.curves) > len({trial.env for trial in comparison.curves}):
        plots.budgets(comparison).savefig(directory / f"{stem}-budgets.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument(
        "--cells", type=Path, default=ROOT / "runs/returns", help="what is done already is not done again"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/returns.json")
    parser.add_argument("--as-is", action="store_true", help="report the cells that are there, and train nothing")
    args = parser.parse_args()
    report = json.loads(args.out.read_text()).get("groups", {}) if args.out.exists() else {}
    tested = json.loads(TESTED.read_text()) if TESTED.exists() else {}
    for group in args.groups:
        asked = GROUPS[group]
        known = recorded(group, report)
        try:
            misfits = {} if args.as_is else measure(group, args.cells, known)
            comparison = found(group, args.cells, known)._replace(misfits=misfits)
        except ValueError as error:
            raise SystemExit(f"{error} (Here that is --cells.)") from None
        if asked.baseline not in comparison.objectives:
            raise SystemExit(
                f"{args.cells} holds no cell of {asked.baseline} in {group}: leave --as-is out, to train them."
            )
        parts = {"all": comparison, "never seen": unseen(comparison, asked)}
        if not {"lpo_2026_11", "ta_lpo_2026_11"} & set(comparison.objectives) or not parts["never seen"].curves:
            del parts["never seen"]
        report[group] = provenance() | {
            "about": asked.about,
            "trained_by": commits(group, args.cells, report, known),
            "seeds": SEEDS,
            "seed": SEED,
            "setups": {env: asdict(setup) for env, setup in setups(group).items()},
            "objectives": {name: fingerprint(resolve_objective(name)) for name in comparison.objectives},
            "rows": rows(comparison, asked.baseline),
            f"better than {asked.baseline}": {
                which: {name: better_over_all(part, name, asked.baseline) for name in part.objectives}
                for which, part in parts.items()
            },
            "pairs": beside(comparison, asked.pairs),
            "summary": {which: summary_of(part, asked.baseline) for which, part in parts.items()},
            "references": {t.env: references.of(t.env) for t in comparison.common()},
            "misfits": [{"objective": n, "env": env, "why": why} for (n, env), why in comparison.misfits.items()],
        }
        write_text(args.out, json.dumps({"groups": report}, indent=1, allow_nan=False) + "\n")
        for name in comparison.objectives:
            tested.setdefault(name, {})[group] = card(comparison, name, asked)
        write_text(TESTED, json.dumps(tested, indent=1) + "\n")
        print(comparison.table())
        draw(group, comparison, parts, args.out.parent)


if __name__ == "__main__":
    main()
