"""What is asked of a program before any agent is trained with it: that it fits, that it is a drift, and that it is new."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import learned_objectives as lo
from learned_objectives import laws
from learned_objectives.survey import Surveyor

BATCH = 64  # programs that are evaluated at once
LOG_RATIOS = (0.0, 1e-3, -1e-3, 0.1, -0.1, 0.25, -0.25, 0.7, -0.7, 2.0, -2.0, 6.0, -6.0)
ADVANTAGES = (0.02, -0.02, 0.3, -0.3, 1.0, -1.0, 3.0, -3.0)
DIGITS = 4  # significant ones by which functions are compared


class Points(NamedTuple):
    """The probe points, the same in every run: f32[n] each."""

    log_ratio: np.ndarray
    advantage: np.ndarray
    step: np.ndarray
    lifetime: np.ndarray


def probe_points() -> Points:
    """The products of LOG_RATIOS and ADVANTAGES, each at a moment of its own."""
    x, a = np.array(list(itertools.product(LOG_RATIOS, ADVANTAGES)), np.float32).T
    number = np.arange(len(x))
    lifetime = (10.0 ** (4.0 + number % 5)).astype(np.float32)
    return Points(x, a, (lifetime * (number * 0.381966 % 1.0)).astype(np.float32), lifetime)


class Checked(NamedTuple):
    """A program that may be trained, or why it may not."""

    program: lo.InterpretedProgram | None
    function: str | None = None
    refused: str | None = None


class Checks:
    """The checks of one search. One compiled function evaluates all programs at the probe points."""

    def __init__(self, template: lo.InterpretedProgram):
        self.length, self.constants, self.timed = len(template.opcodes), len(template.constants), template.timed
        self.points = probe_points()
        self._surveyor = Surveyor(template)

    @cached_property
    def _values_and_slopes(self):
        points = self.points
        progress = lo.Progress(jnp.asarray(points.step), jnp.asarray(points.lifetime))

        def one(drift):
            value, pullback = jax.vjp(lambda x: drift(x, points.advantage, progress), jnp.asarray(points.log_ratio))
            return value, pullback(jnp.ones_like(value))[0]

        return jax.jit(jax.vmap(one))

    def at_points(self, programs: Sequence[lo.InterpretedProgram]) -> tuple[np.ndarray, np.ndarray]:
        """D and dD / d log r at the probe points: f32[k, n] each."""
        values, slopes = [], []
        for start in range(0, len(programs), BATCH):
            some = list(programs[start : start + BATCH])
            stacked = jax.tree.map(lambda *xs: np.stack(xs), *some, *some[-1:] * (BATCH - len(some)))
            for found, all_of in zip(self._values_and_slopes(stacked), (values, slopes), strict=True):
                all_of.append(np.asarray(found)[: len(some)])
        return np.concatenate(values), np.concatenate(slopes)

    def read(self, text: object) -> Checked:
        """A text as arrays, or the sentence of its refusal."""
        try:
            program = lo.Program.parse(text)
            return Checked(
                lo.InterpretedProgram.of(program, length=self.length, constants=self.constants, timed=self.timed)
            )
        except lo.ProgramError as error:
            return Checked(None, refused=str(error))

    def quick(self, texts: Sequence[object]) -> list[Checked]:
        """`read`, and the laws at the probe points alone."""
        found = [self.read(text) for text in texts]
        readable = [each.program for each in found if each.program is not None]
        results = iter(zip(*self.at_points(readable), strict=True) if readable else ())
        return [each if each.program is None else self._judged(each.program, *next(results)) for each in found]

    def broken_law(self, program: lo.InterpretedProgram) -> str | None:
        """The sentence of the law that `verify_drift` finds broken; None for a drift. A third of a second, after the first."""
        try:
            laws.judge(self._surveyor.of(program))
        except lo.DriftLawError as error:
            return " ".join(str(error).split())
        return None

    def _judged(self, program: lo.InterpretedProgram, value: np.ndarray, slope: np.ndarray) -> Checked:
        points = self.points
        at_one = points.log_ratio == 0
        rounding = 1e-6 * np.maximum(1.0, np.abs(points.advantage)) * np.maximum(1.0, np.exp(points.log_ratio))
        asked = (
            ("be non-negative", value >= -rounding, value),
            ("be zero at ratio 1", ~at_one | (np.abs(value) <= rounding), value),
            ("have derivative zero at ratio 1", ~at_one | (np.abs(slope) <= 1e-5), slope),
        )
        for law, holds, given in asked:
            if not holds.all():
                i = int(np.argmin(holds))
                return Checked(
                    None,
                    refused=f"A drift must {law}, and here it gives {given[i]:.4g} at log ratio {points.log_ratio[i]:.4g}, "
                    f"advantage {points.advantage[i]:.4g}.",
                )
        return Checked(program, function_of(value))


def function_of(value: np.ndarray) -> str:
    """A digest of values at the probe points, rounded to 4 significant digits: equal functions have the same."""
    rounded = " ".join(f"{0.0 if abs(x) < 1e-6 else x:.{DIGITS - 1}e}" for x in value.tolist())
    return hashlib.sha256(rounded.encode()).hexdigest()[:16]
