"""Drifts and policy losses as programs: expressions of a small language, which a search, or a reader, can write."""

from __future__ import annotations

import math
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from learned_objectives.core import Progress, require, same_shape
from learned_objectives.drifts import MAX_LOG_RATIO, Drift
from learned_objectives.expressions import CONSTANT, LIMIT, OF_TIME, evaluate, write
from learned_objectives.parsing import ProgramError, parse, parse_structure

__all__ = ["Program", "ProgramError", "SurrogateProgram"]


def variables(
    log_ratio: jax.Array, advantage: jax.Array, progress: Progress | None, *, timed: bool, owner: str
) -> dict[str, jax.Array]:
    """The variables by name: log_r, r1 and A, f32[...]; and if `timed`, t and log_N, of the shape of `progress`.

    |log r| is limited to 27.6, where r is 1e12. ValueError, in a sentence that names the `owner`, without a progress.
    """
    log_ratio = jnp.clip(log_ratio, -math.log(LIMIT), math.log(LIMIT))
    found = {"log_r": log_ratio, "r1": jnp.expm1(log_ratio), "A": advantage}
    if timed:
        moment = require(progress, owner)
        found |= {"t": moment.fraction, "log_N": moment.log_lifetime / math.log(10.0) - 5.5}
    return found


class _Written(Drift, eq=False):
    """A structure and its constants: what both kinds of program are."""

    structure: str = struct.field(pytree_node=False)  # the text, with `#` for each constant
    constants: jax.Array  # f32[K], from left to right

    @classmethod
    def parse(cls, text: str) -> Self:
        """The program of a text. Raises ProgramError, a ValueError, for any text that is none."""
        code, constants = parse(text)
        return cls(write(code), jnp.asarray(constants, jnp.float32))

    @property
    def needs_progress(self) -> bool:  # type: ignore[override]
        return not OF_TIME.isdisjoint(parse_structure(self.structure))

    def value(self, log_ratio: jax.Array, advantage: jax.Array, progress: Progress | None = None) -> jax.Array:
        """The value of the expression: f32[...], f32[...] -> f32[...]."""
        same_shape(log_ratio, advantage)
        owner = f"the {type(self).__name__} {self.structure}"
        inputs = variables(log_ratio, advantage, progress, timed=self.needs_progress, owner=owner)
        found = evaluate(parse_structure(self.structure), jnp.asarray(self.constants), inputs)
        return jnp.broadcast_to(found, jnp.shape(log_ratio))

    def __str__(self) -> str:
        """The text; `parse` is the inverse. Traced constants, and those of a population, are `#`."""
        if isinstance(self.constants, jax.core.Tracer) or jnp.ndim(self.constants) != 1:
            return self.structure
        return write(parse_structure(self.structure), np.asarray(self.constants).tolist())

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.structure == other.structure and np.array_equal(self.constants, other.constants)

    def __hash__(self) -> int:
        return hash((type(self), self.structure))

    def validate(self) -> None:
        """Raise ValueError with a sentence if the fields do not fit together, as in a file made by hand."""
        count = parse_structure(self.structure).count(CONSTANT)
        if jnp.shape(self.constants) != (count,):
            raise ProgramError(
                f"this {type(self).__name__} must have constants of shape {(count,)}, one for each '#' of its structure, and has "
                f"{jnp.shape(self.constants)}."
            )
        if not np.isfinite(self.constants).all():
            raise ProgramError(f"the constants of this {type(self).__name__} must be finite, and are {self.constants}.")


class Program(_Written, eq=False):
    """A drift that is an expression: D(r, A) is the value of its text. Its constants are what a search can move.

        lo.Program.parse("where(A < 0, relu(log_r * A - 0.6 * tanh(log_r * A / 0.6)), relu(r1 * A - 2 * tanh(r1 * A / 2)))")

    is `DPO()`, and `relu((r1 - max(min(r1, 0.2), -0.2)) * A)` is `Clip(0.2)`. The grammar:

        number    = number ("+" | "-" | "*" | "/") number | "-" number | "(" number ")" | constant | variable
                  | ("min" | "max") "(" number "," number ")"
                  | ("square" | "abs" | "tanh" | "exp" | "log" | "relu") "(" number ")"
                  | "where" "(" condition "," number "," number ")"
        condition = number ("<" | ">") number | "(" condition ")"
        constant  = 2, 0.5, 1e-3, ...
        variable  = "log_r" | "r1" | "A" | "t" | "log_N"

    Operators bind as in Python. r1 is r - 1, t is n/N, and log_N is log10 N - 5.5, N in environment steps. A program that reads
    neither t nor log_N needs no progress. `str(program)` is the text with the fewest parentheses, and `parse` its inverse.

    A divisor has a size of at least 1e-6 and keeps its sign; `log` is log(max(x, 1e-6)). Values are limited to 1e12 in size, and
    derivatives to 1e12 (along log r to 1e24), so both are finite at finite inputs. Constants are float32. `jax.jvp` does not go
    through a program.

    Limits of a text: 4,000 characters, 200 variables, constants and operations, 32 levels of nesting, constants of at most 1e6. A
    constant that a search moved beyond that counts as 1e6, with its sign, in values and in texts.

    An expression need not be a drift: `verify_drift` checks one. `surrogate` is r A - D, and where both are large, beyond
    log r = 5, it has lost its digits, also of a clip; `SurrogateProgram` has not.

    Raises ProgramError for a text that is none, and ValueError if it reads the time and is called without a progress.
    Reference: Co-Reyes et al. 2021, arXiv:2101.03958, which searches loss functions as programs.
    """

    def __call__(self, log_ratio, advantage, progress=None):
        return self.value(log_ratio, advantage, progress)


class SurrogateProgram(_Written, eq=False):
    """A policy loss that is an expression: the surrogate, to be maximised, is the value of its text. The language is that of
    `Program`.

        lo.SurrogateProgram.parse("min((r1 + 1) * A, (max(min(r1, 0.2), -0.2) + 1) * A)")

    is PPO's. As a drift it is D(r, A) = r A - surrogate, which keeps the laws of mirror learning for some texts only. Beyond
    |log r| = 20 the surrogate is constant in log r.
    """

    def surrogate(self, log_ratio, advantage, progress=None):
        return self.value(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO), advantage, progress)

    def __call__(self, log_ratio, advantage, progress=None):
        return jnp.exp(log_ratio) * advantage - self.value(log_ratio, advantage, progress)
