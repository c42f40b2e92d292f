"""The lineage of a population: who copied whom, with which leaves, as a run logs it and as it is read again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

PyTree = Any

MOST_LEAVES = 64  # numbers of an objective that the log has one by one; of a larger one it has the norm


class Lineage(NamedTuple):
    """`G` steps of a population of `P` members. Step g trains the members, and then some of them copy others."""

    source: np.ndarray  # i64[G, P], the member of step g from which each member of step g + 1 continues
    score: np.ndarray  # f64[G, P], mean rank over environments; NaN where the member diverged
    returns: dict[str, np.ndarray]  # by environment f64[G, P], mean return in the step; NaN where the member diverged
    rates: np.ndarray  # f64[G, P], factor of the learning rate
    leaves: dict[str, np.ndarray]  # f64[G, P], numbers of the objective by name; of a large one its "norm" alone


def logged_population(
    objectives: PyTree,
    rates: jax.Array,
    *,
    returned: jax.Array,
    score: jax.Array,
    source: jax.Array,
    names: Sequence[str],
) -> dict[str, Any]:
    """What a step logs of its members: JSON, from which `lineage_of` reads it. Arrays as in `Lineage`, of one step."""
    return {
        "source": np.asarray(source).tolist(),
        "score": _finite(score),
        "returns": {name: _finite(found) for name, found in zip(names, np.asarray(returned).T, strict=True)},
        "rates": _finite(rates),
        "leaves": {name: _finite(values) for name, values in numbers_of(objectives).items()},
    }


def numbers_of(objectives: PyTree) -> dict[str, np.ndarray]:
    """f[P] by name, of objectives with leaves [P, ...]: {".numbers[0, 2]": ...}, or {"norm": ...} of more than MOST_LEAVES."""
    found = [(path, np.asarray(x)) for path, x in jax.tree_util.tree_leaves_with_path(objectives)]
    if sum(x[0].size for _, x in found) > MOST_LEAVES:
        flat = np.concatenate([x.reshape(len(x), -1) for _, x in found], axis=1, dtype=np.float64)
        return {"norm": np.linalg.norm(flat, axis=1)}
    named = {}
    for path, x in found:
        for index in np.ndindex(x.shape[1:]):
            place = f"[{', '.join(map(str, index))}]" if index else ""
            named[jax.tree_util.keystr(path).lstrip(".") + place] = x[(slice(None), *index)]
    return named


def _finite(values: Any) -> list[float | None]:
    return [float(x) if np.isfinite(x) else None for x in np.asarray(values)]


def lineage_of(rows: Sequence[Mapping[str, Any]]) -> Lineage:
    """The lineage in the rows of a run (`metrics.jsonl`). ValueError where they have none, or lack a step."""
    logged = [(row["generation"], row["population"]) for row in rows if "population" in row]
    if not logged:
        raise ValueError("these rows hold no lineage: give those of a run of population-based training (--search pbt).")
    generations = [generation for generation, _ in logged]
    if generations != list(range(1, len(logged) + 1)):
        raise ValueError(f"a lineage needs the rows of all generations from 1 on, and these are {generations}.")
    steps = [population for _, population in logged]
    return Lineage(
        source=np.asarray([step["source"] for step in steps]),
        score=_stacked([step["score"] for step in steps]),
        returns={name: _stacked([step["returns"][name] for step in steps]) for name in steps[0]["returns"]},
        rates=_stacked([step["rates"] for step in steps]),
        leaves={name: _stacked([step["leaves"][name] for step in steps]) for name in steps[0]["leaves"]},
    )


def _stacked(steps: Sequence[Sequence[float | None]]) -> np.ndarray:
    return np.asarray(steps, np.float64)


def ancestors(lineage: Lineage, member: int | None = None) -> np.ndarray:
    """i64[G]: the member of each step from which a member of the last one (default: that of the highest score) descends."""
    if member is None:
        member = int(np.nanargmax(lineage.score[-1])) if np.isfinite(lineage.score[-1]).any() else 0
    line = [member]
    for source in lineage.source[-2::-1]:
        line.append(int(source[line[-1]]))
    return np.asarray(line[::-1])
