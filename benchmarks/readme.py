"""Fill the tables of README.md and docs/ from results: `python -m benchmarks.readme`; with --check, exit with 1 for stale ones.

A table stands between `<!-- name -->` and `<!-- /name -->`. Sources in benchmarks/results: protocol-test.json for
`tested` and `pooled`, replication.json for `drifts` and `claims`, returns.json for `horizons` and `networks`, worlds.json for
`worlds` and `methods`, protocol-test.json, worlds.json and elsewhere-rejax.json for `found`, elsewhere-rejax.json for
`elsewhere`; accelerators-compiled.json for docs/accelerators.md.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.protocol import read
from benchmarks.record import ROOT
from benchmarks.returns import GROUPS
from discover.results import references
from discover.results.statistics import Interval, interval, iqm_interval, probability_of_improvement

RESULTS = ROOT / "benchmarks/results"
NAMES = {
    "ppo": "PPO",
    "lpo": "LPO",
    "ta_lpo": "TA-LPO",
    "ta_ppo": "TA-PPO",
    "a2c": "no drift",
    "dpo": "DPO",
    "mdpo": "MDPO",
    "lpo_2026_11": "LPO (2026-11)",
    "ta_lpo_2026_11": "TA-LPO (2026-11)",
}
OF_RULES = {"a2c": "A2C", "lpg": "LPG", "groove": "GROOVE", "ta_lpg": "TA-LPG"}
RULES = {"lpg_small": "LPG", "groove_small": "GROOVE", "lpg_es_small": "LPG by evolution", "ta_lpg_small": "TA-LPG"}
MATTERS = 1e-3  # share of samples that PPO's clip cuts, below which a trial cannot tell drifts from one another

Row = dict[str, Any]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(line) + " |" for line in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def digits(values: Sequence[float]) -> str:
    largest = max(map(abs, values))
    return ".0f" if largest >= 100 else ".1f" if largest >= 10 else ".2f"


def final(row: Row) -> np.ndarray:
    return np.array([np.nan if x is None else x for x in row["final_returns"]], float)


def trials(group: dict[str, Any]) -> dict[tuple[str, int], dict[str, Row]]:
    """(environment, budget) -> objective -> row, with `cut` where it was recorded."""
    cut = {(r["env"], r["total_steps"], r["objective"]): r["cut"] for r in group.get("ratios", ())}
    out: dict[tuple[str, int], dict[str, Row]] = {}
    for row in group["rows"]:
        key = (row["env"], row["total_steps"])
        out.setdefault(key, {})[row["objective"]] = row | {"cut": cut.get((*key, row["objective"]))}
    return out


def better(mine: Row, baseline: Row) -> Interval:
    return interval(probability_of_improvement, final(mine), final(baseline))


def better_over(chosen: dict[tuple[str, int], dict[str, Row]], name: str) -> Interval:
    """P(better than PPO), pooled over trials."""
    sides = (np.stack([final(curves[which]) for curves in chosen.values()]) for which in (name, "ppo"))
    return interval(probability_of_improvement, *sides)


def unseen(group: dict[str, Any]) -> dict[tuple[str, int], dict[str, Row]]:
    """The trials on which nothing was searched."""
    return {key: curves for key, curves in trials(group).items() if key[0] not in GROUPS["drifts"].seen}


def share(row: Row | None) -> str:
    cut = None if row is None else row["cut"]
    return "not recorded" if cut is None else f"{100 * cut:.2g} %"


def matters(curves: dict[str, Row]) -> bool:
    return (curves["ppo"]["cut"] or 0) >= MATTERS


def label(env: str, seen: Sequence[str]) -> str:
    return env.replace("@", ", ") + (" (searched on)" if env in seen else "")


def returns_table(
    group: dict[str, Any], names: Sequence[str], compared: Sequence[str], seen: Sequence[str], *, cut: bool
) -> str:
    """Rows of IQM and interval by trial; `cut`: with the share of samples that PPO's clip cuts."""
    rows = []
    for (env, steps), curves in trials(group).items():
        found = {name: iqm_interval(final(curves[name])) for name in names if name in curves}
        spec = digits([x for each in found.values() for x in each])
        row = [label(env, seen), f"{steps:,}", *(f"{found[name]:{spec}}" if name in found else "-" for name in names)]
        row += [f"{better(curves[name], curves['ppo']):.2f}" if name in found else "-" for name in compared]
        rows.append([*row, share(curves["ppo"])] if cut else row)
    head = ["environment", "steps", *(NAMES[name] for name in names)]
    head += [f"P({NAMES[name]} better than PPO)" for name in compared]
    return table([*head, "cut by PPO's clip"] if cut else head, rows)


def drifts(group: dict[str, Any]) -> str:
    return returns_table(
        group,
        [n for n in NAMES if n in group["objectives"]],
        ["lpo_2026_11", "ta_lpo_2026_11"],
        GROUPS["drifts"].seen,
        cut=True,
    )


def horizons(group: dict[str, Any]) -> str:
    return returns_table(
        group,
        ["ppo", "lpo_2026_11", "ta_lpo_2026_11"],
        ["lpo_2026_11", "ta_lpo_2026_11"],
        GROUPS["horizons"].seen,
        cut=False,
    )


def networks(group: dict[str, Any]) -> str:
    """Update rules with neural networks in place of tables."""
    rows = []
    for (env, steps), curves in trials(group).items():
        found = [iqm_interval(final(curves[name])) for name in OF_RULES]
        spec = [digits(list(each)) for each in found]
        rows.append([env, f"{steps:,}", *(f"{each:{one}}" for each, one in zip(found, spec, strict=True))])
    return table(["environment", "steps", *OF_RULES.values()], rows)


def claims(group: dict[str, Any]) -> str:
    """By objective, over unseen trials: P(better than PPO), the same where the clip acts, and scores."""
    all_unseen = unseen(group)
    recorded = all(curves["ppo"]["cut"] is not None for curves in all_unseen.values())
    active = {key: curves for key, curves in all_unseen.items() if matters(curves)}
    scored = {key: curves for key, curves in all_unseen.items() if _reference_fits(*key)}

    def over(chosen: dict, name: str) -> str:
        if name == "ppo" or not chosen or not all(name in curves for curves in chosen.values()):
            return "-"
        return f"{better_over(chosen, name):.2f}"

    def score(name: str) -> str:
        if not all(name in curves for curves in scored.values()):
            return "-"
        scores = [references.normalise(env, final(curves[name])) for (env, _), curves in scored.items()]
        return f"{iqm_interval(np.stack(scores)):.2f}"

    rows = []
    for name in (n for n in NAMES if n in group["objectives"]):
        some = over(active, name) if recorded else "not recorded"
        rows.append([NAMES[name], over(all_unseen, name), some, score(name)])
    where = f"the {len(active)} of them where PPO's clip cuts 0.1 % or more" if recorded else "where PPO's clip acts"
    return table(
        [
            "objective",
            f"P(better than PPO), {len(all_unseen)} trials never searched on",
            f"the same, {where}",
            f"score, {len(scored)} such trials with a reference of the same budget",
        ],
        rows,
    )


def _reference_fits(env: str, steps: int) -> bool:
    row = references.of(env)
    return row is not None and row["total_steps"] == steps


def worlds(report: dict[str, Any]) -> str:
    found = {name: each for name, each in report["searches"].items() if name in RULES}
    names = list(report["a2c"]["iqm_by_world"])
    before = report["searches"]["lpg_small"]
    rows = [
        [
            name,
            *(
                f"{Interval(*cell):.2f}"
                for cell in (
                    report["a2c"]["iqm_by_world"][name],
                    before["began_iqm_by_world"][name],
                    *(each["iqm_by_world"][name] for each in found.values()),
                )
            ),
        ]
        for name in names
    ]
    over_all = (report["a2c"]["iqm"], before["began_iqm"], *(each["iqm"] for each in found.values()))
    rows.append(["all five", *(f"{Interval(*cell):.2f}" for cell in over_all)])
    rows.append(
        ["IQM by meta-seed", "", "", *(", ".join(f"{x:.2f}" for x in e["iqm_by_meta_seed"]) for e in found.values())]
    )
    rows.append(["million steps of each search", "", "", *(_millions(each["env_steps"]) for each in found.values())])
    return table(["world", "A2C", "before", *(RULES[name] for name in found)], rows)


def _millions(steps: Sequence[int]) -> str:
    return ", ".join(f"{x / 1e6:.0f}" for x in dict.fromkeys(steps))


def methods(report: dict[str, Any]) -> str:
    rows = []
    for pair, each in report["comparisons"].items():
        ours, theirs = pair.split(" over ")
        steps = (_millions(report["searches"][name]["env_steps"]) for name in (ours, theirs))
        rows.append(
            [f"{RULES[ours]} over {RULES[theirs]}", f"{Interval(*each['gain_in_iqm']):.2f}", " against ".join(steps)]
        )
    return table(["comparison", "gain in IQM", "million steps of a search"], rows)


PAIRS = (("lpo", "ppo"), ("ta_lpo", "ppo"), ("ta_ppo", "ppo"), ("ta_lpo", "lpo"), ("ta_ppo", "ta_lpo"))
LENGTHS = (131_072, 262_144, 1_048_576, 4_194_304)  # of lives in the test


def tested(report: dict[str, Any]) -> str:
    """The test set, trial by trial."""
    names = [name for name in ("lpo", "ta_lpo", "ta_ppo") if name in report["objectives"]]
    return returns_table(report, ["ppo", *names], names, read().train, cut=False)


def pooled(report: dict[str, Any]) -> str:
    """P(a seed of one returns more than one of the other) over the test set, by length of life."""
    there = report["objectives"]
    pairs = [(one, other) for one, other in PAIRS if one in there and other in there]
    parts = [*(f"{n:,} steps" for n in LENGTHS), "all"]
    rows = []
    for one, other in pairs:
        over = (
            report["better than ppo"][one]
            if other == "ppo"
            else report["better than one another"][f"{one} over {other}"]
        )
        beyond = f"{outside(report, one, other):.2f}"
        rows.append([f"{NAMES[one]} over {NAMES[other]}", *(f"{Interval(*over[part]):.2f}" for part in parts), beyond])
    return table(["probability that a seed returns more", *parts, "environments not searched on"], rows)


def elsewhere(report: dict[str, Any]) -> str:
    """Our drifts in the agent of others, game by game, and over the games of every length."""
    names = [name for name in ("lpo", "ta_lpo", "ta_ppo") if name in report["objectives"]]
    rows = []
    for (env, steps), curves in trials(report).items():
        found = [iqm_interval(final(curves[name])) for name in ("ppo", *names)]
        spec = digits([x for each in found for x in each])
        beyond = [f"{better(curves[name], curves['ppo']):.2f}" for name in names]
        rows.append([env, f"{steps:,}", *(f"{each:{spec}}" for each in found), *beyond])
    lengths = report["better than ppo"][names[0]]
    for part in lengths:
        games, over = part.split(", ")[-1], [Interval(*report["better than ppo"][name][part]) for name in names]
        steps = part.removesuffix(f", {games}").removesuffix(" steps")
        rows.append([f"all {games}", steps, *["" for _ in ("ppo", *names)], *(f"{each:.2f}" for each in over)])
    head = [*(NAMES[name] for name in ("ppo", *names)), *(f"P({NAMES[name]} better than PPO)" for name in names)]
    return table(["environment", "steps", *head], rows)


def outside(report: dict[str, Any], one: str, other: str) -> Interval:
    """P(a seed of one returns more than one of the other) over trials of environments that the search has not met."""
    train = read().train
    rows = {
        name: [row for row in report["rows"] if row["objective"] == name and row["env"] not in train]
        for name in (one, other)
    }
    ours, theirs = (np.stack([final(row) for row in rows[name]]) for name in (one, other))
    return interval(probability_of_improvement, ours, theirs)


def found(test: dict[str, Any], report: dict[str, Any], rejax: dict[str, Any]) -> str:
    """One row for each claim about a discovered objective, with the value that it is compared with."""
    counts = {n: len({row["env"] for row in test["rows"] if row["total_steps"] == n}) for n in LENGTHS}
    parts = {"all": f"all {sum(counts.values())} trials"} | {
        f"{n:,} steps": f"{counts[n]} trials of {n:,} steps" for n in LENGTHS[1:]
    }
    pairs = {("LPO", "PPO"): test["better than ppo"]["lpo"], ("TA-LPO", "PPO"): test["better than ppo"]["ta_lpo"]}
    pairs["TA-LPO", "LPO"] = test["better than one another"]["ta_lpo over lpo"]
    if "ta_ppo" in test["objectives"]:
        pairs["TA-PPO", "TA-LPO"] = test["better than one another"]["ta_ppo over ta_lpo"]
    keys = {NAMES[name]: name for name in ("ppo", "lpo", "ta_lpo", "ta_ppo")}
    rows = []
    for (ours, theirs), better in pairs.items():
        values = {where: Interval(*better[part]) for part, where in parts.items()}
        values["environments not searched on"] = outside(test, keys[ours], keys[theirs])
        rows += [
            [ours, f"test set, {where}, {test['seeds']} seeds", f"P(better than {theirs})", f"{value:.2f}", "0.5"]
            for where, value in values.items()
        ]
    for name, better in rejax["better than ppo"].items():
        rows += [
            [
                NAMES[name],
                f"PPO of rejax, {part}, {rejax['seeds']} seeds",
                "P(better than PPO)",
                f"{Interval(*value):.2f}",
                "0.5",
            ]
            for part, value in better.items()
            if name in NAMES
        ]
    a2c = f"{Interval(*report['a2c']['iqm']):.2f} (A2C)"
    rows += [
        [RULES[name], "five kinds of grid worlds, tabular agents", "IQM, A2C's mean = 1", iqm, a2c]
        for name, iqm in ((n, f"{Interval(*each['iqm']):.2f}") for n, each in report["searches"].items() if n in RULES)
    ]
    return table(["objective", "tested in", "measure", "result", "reference"], rows)


def compiled(report: dict[str, Any]) -> str:
    """What was compiled, by recipe and topology."""
    rows = [
        [
            row["recipe"],
            row["topology"],
            *(
                [
                    str(row["chunk"]),
                    f"{row['memory'] / 1e9:.2f} GB",
                    f"{row['flops_a_turn'] / 1e9:.3g} GFLOP, {row['bytes_a_turn'] / 1e9:.3g} GB"
                    if row["bytes_a_turn"]
                    else "-",
                    f"{row['flops_per_byte']:.2g}" if row["bytes_a_turn"] else "-",
                    f"{sum(x['count'] for x in row['collectives'].values()):.0f}",
                    f"{row['results']:,}",
                    f"{row['estimated_s']:.3g} s ({row['estimated_env_steps_per_s'] / 1e6:.3g}M)"
                    if "estimated_s" in row
                    else "-",
                    f"{row['peak_s']:.2g} s",
                    f"{row['compile_s']:.0f} s",
                ]
                if "error" not in row
                else [row["error"]]
            ),
        ]
        for row in report["recipes"]
    ]
    head = ["recipe", "for", "chunk", "memory a chip", "one turn", "FLOP/byte", "collectives", "bytes of results"]
    return table([*head, "a step, estimated (env steps/s)", "at the peak rate", "compiled in"], rows)


def scaling(report: dict[str, Any]) -> str:
    rows = [
        [
            f"{row['devices']}",
            f"{row['flops_a_turn']:.6g}",
            f"{row['bytes_a_turn']:.6g}",
            f"{row['memory'] / 1e9:.3f} GB",
            f"{row['results']:,}",
        ]
        for row in report["weak_scaling"]
    ]
    return table(
        ["chips", "FLOP a turn and chip", "bytes a turn and chip", "memory a chip", "bytes of fitness in all"], rows
    )


def stored(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def parts_of_found() -> dict[str, str]:
    return {"found": found(stored("protocol-test"), stored("worlds"), stored("elsewhere-rejax"))}


def parts_of_drifts() -> dict[str, str]:
    replication, test = stored("replication"), stored("protocol-test")
    return {
        "tested": tested(test),
        "pooled": pooled(test),
        "elsewhere": elsewhere(stored("elsewhere-rejax")),
        "drifts": drifts(replication),
        "claims": claims(replication),
        "horizons": horizons(stored("returns")["groups"]["horizons"]),
    }


def parts_of_rules() -> dict[str, str]:
    report = stored("worlds")
    return {
        "worlds": worlds(report),
        "methods": methods(report),
        "networks": networks(stored("returns")["groups"]["rules"]),
    }


def parts_of_accelerators() -> dict[str, str]:
    report = stored("accelerators-compiled")
    return {"compiled": compiled(report), "scaling": scaling(report)}


PAGES: dict[Path, Callable[[], dict[str, str]]] = {
    ROOT / "README.md": parts_of_found,
    ROOT / "docs/results.md": parts_of_found,
    ROOT / "docs/results/drifts.md": parts_of_drifts,
    ROOT / "docs/results/rules.md": parts_of_rules,
    ROOT / "docs/accelerators.md": parts_of_accelerators,
}


def filled(text: str, made: dict[str, str]) -> str:
    """A page with every part in its place. Raises ValueError for a part without a place."""
    for name, part in made.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text, count = place.subn(lambda found, part=part: f"{found[1]}{part}\n{found[2]}", text)
        if count != 1:
            raise ValueError(
                f"the page must have <!-- {name} --> and <!-- /{name} --> once, and has {count} such pairs."
            )
    return text


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is not up to date")
    args = parser.parse_args()
    stale = 0
    for page, make in PAGES.items():
        before = page.read_text()
        after = filled(before, make())
        stale += before != after
        if not args.check:
            page.write_text(after)
    return int(args.check and stale > 0)


if __name__ == "__main__":
    raise SystemExit(main())
