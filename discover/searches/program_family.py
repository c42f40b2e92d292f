"""The family of drifts that are programs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import jax

import learned_objectives as lo
from discover.agents.objectives import resolve_objective
from discover.agents.setups import LossConfig
from discover.searches.family import ObjectiveConfig

PPO = "relu((r1 - max(min(r1, 0.2), -0.2)) * A)"


@dataclass(frozen=True)
class ProgramConfig(ObjectiveConfig):
    """A drift that is an expression. The search `programs` changes the expression; no other search of ours can."""

    start: str = "ppo"  # generation 0: ppo, a text, or the name or file of an earlier result
    time_aware: bool = False  # whether programs may read n/N and log10 N
    operations: int = 32  # most different ones of a program
    constants: int = 16  # most of a program

    def __post_init__(self):
        if not isinstance(self.start, str) or not self.start:
            raise ValueError(
                f"objective.start must be 'ppo', a text, or a program found before, and is {self.start!r}."
            )
        for name in ("operations", "constants"):
            if not 1 <= getattr(self, name) <= 200:
                raise ValueError(f"objective.{name} must be from 1 to 200, and is {getattr(self, name)}.")

    @property
    def keeps_copy(self) -> bool:
        return self.start != "ppo" and _read(self.start) is None

    def template(self, key: jax.Array, loss: LossConfig) -> lo.Objective:
        program = _read(PPO if self.start == "ppo" else self.start) or self._found()
        _require_drift(str(program))
        drift = lo.InterpretedProgram.of(
            program, length=self.operations, constants=self.constants, timed=self.time_aware
        )
        return loss.on(lo.Mirror(drift=drift))

    def _found(self) -> lo.Program:
        try:
            found = resolve_objective(self.start)
        except ValueError as error:
            raise ValueError(
                f"objective.start is neither 'ppo' nor a program ({_why_not(self.start)}) nor found before: {error}"
            ) from None
        drift = found.drift if isinstance(found, lo.Mirror) else None
        if isinstance(drift, lo.InterpretedProgram):
            return drift.program()
        if not isinstance(drift, lo.Program):
            raise ValueError(
                f"objective.start must be 'ppo', a text, or a program found before, and {self.start} holds something else."
            )
        return drift


def _read(text: str) -> lo.Program | None:
    """The program of a text; None for another."""
    try:
        return lo.Program.parse(text)
    except lo.ProgramError:
        return None


def _why_not(text: str) -> str:
    try:
        return str(lo.Program.parse(text))
    except lo.ProgramError as error:
        return str(error).removesuffix(".")


@cache
def _require_drift(text: str) -> None:
    """Once for each text: a search makes its template several times."""
    try:
        lo.verify_drift(lo.Program.parse(text))
    except lo.DriftLawError as error:
        raise ValueError(f"objective.start is a program, {text}, and no drift: {error}") from None
