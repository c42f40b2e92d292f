"""What numbers of an objective may depend on: a constant, the time in a life, and statistics of the agent's last update."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from learned_objectives.core import Progress, require, require_statistics

TIME = ("n/N", "log10 N - 5.5")
STATISTICS = ("kl / 0.01", "entropy", "explained variance", "clipped / 0.1")
MOST = 5.0  # of |an input| that is a statistic


def names(time_aware: bool, sees_statistics: bool) -> tuple[str, ...]:
    """The names of the R inputs, in order: "1", those of `TIME` and those of `STATISTICS`."""
    return ("1", *(TIME if time_aware else ()), *(STATISTICS if sees_statistics else ()))


def formula(column: jax.Array, names: tuple[str, ...]) -> str:
    """sum_i x_i column_i with numbers, "0.31 + 0.29 n/N": for readers. "0" where every number rounds to 0.00."""
    terms = [(round(float(value), 2), name) for value, name in zip(column, names, strict=True)]
    text = ""
    for value, name in terms:
        if value:
            sign = ("-" if value < 0 else "") if not text else (" - " if value < 0 else " + ")
            text += sign + f"{abs(value):.2f}" + ("" if name == "1" else f" ({name})" if " " in name else f" {name}")
    return text or "0"


def combine(
    rows: jax.Array, progress: Progress | None, *, time_aware: bool, sees_statistics: bool, owner: str
) -> jax.Array:
    """sum_i x_i rows_i at a moment of a life: rows f32[R, ...] -> f32[P..., ...], where P is the shape of `progress`;
    f32[...] where the constant is the only input.

    x is 1; with `time_aware` also n/N and log10 N - 5.5, N in environment steps; and with `sees_statistics` also KL / 0.01,
    entropy, explained variance and clipped / 0.1 (`Statistics`), each clipped to [-5, 5].

    `progress` is not read unless it is an input. ValueError, in a sentence that names the `owner`, where it lacks what is read.
    """
    if not (time_aware or sees_statistics):
        return rows[0]
    x = values(progress, time_aware=time_aware, sees_statistics=sees_statistics, owner=owner)
    x = jnp.stack(jnp.broadcast_arrays(*x), -1)
    return (x.reshape(*x.shape, *(1,) * (rows.ndim - 1)) * rows).sum(x.ndim - 1)


def values(
    progress: Progress | None, *, time_aware: bool, sees_statistics: bool, owner: str = "reader"
) -> list[jax.Array]:
    """The R inputs at a moment of a life, in the order of `names`. Raises as `combine` does."""
    x = []
    if time_aware:
        moment = require(progress, f"a time-aware {owner}")
        x += [moment.fraction, moment.log_lifetime / jnp.log(10.0) - 5.5]
    if sees_statistics:
        s = require_statistics(progress, f"a {owner} that sees statistics")
        x += [jnp.clip(y, -MOST, MOST) for y in (s.kl / 0.01, s.entropy, s.explained_variance, s.clipped / 0.1)]
    return [jnp.ones_like(x[0]) if x else jnp.ones(()), *x]
