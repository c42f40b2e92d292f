"""Symbolic regression of a drift: programs of few operations that have its values and its slopes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

import learned_objectives as lo
from discover.searches.fitting import Samples, error_of, halves, rounded, tuned
from discover.searches.program_archive import Archive, Entry
from discover.searches.program_checks import Checks
from discover.searches.proposers import nodes_of, text_of
from discover.searches.rewrites import folded, proposals, reductions
from learned_objectives.expressions import CONSTANT, OF_TIME, OPERATIONS
from learned_objectives.parsing import NODES, parse

ONE_SIZE = 4  # programs of one size in the population
TOURNAMENT = 2  # members that a parent is the best of
CHECKED = 10  # generations after which the laws of the front are checked
ENOUGH = 1e-6  # an error at which a distillation ends: that of rounding in float32
GAIN = 0.01  # see `front_of`
WORSE = 1e-3  # by how much rounding may raise the error of a formula, as a share of it


@dataclass(frozen=True)
class DistilConfig:
    """The settings of a distillation."""

    generations: int = 60  # most; fewer where the error is that of rounding
    children: int = 64  # proposals of a generation and a population, see `Distillation`
    operations: int = 24  # most of a formula
    seed: int = 0  # of all that is drawn

    def __post_init__(self):
        for name in ("generations", "children", "operations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, and is {getattr(self, name)}.")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, and is {self.seed}.")
        if self.operations > NODES // 2:
            raise ValueError(f"operations must be at most {NODES // 2}, and is {self.operations}.")


class Formula(NamedTuple):
    """A program and how far it is from the drift; errors are those of `discover.searches.fitting.error_of`."""

    text: str
    operations: int
    error: float  # at the samples that it was fitted to


class Generation(NamedTuple):
    number: int  # from 1
    proposed: int  # so far
    fitted: int  # so far, of another structure than every one before
    front: tuple[Formula, ...]  # so far


def front_of(formulas: Sequence[Formula]) -> tuple[Formula, ...]:
    """From the smallest on, those whose error is less than that of every smaller one by at least a share GAIN. Errors below
    ENOUGH count as equal."""
    front: list[Formula] = []
    for each in sorted(formulas, key=lambda f: (f.operations, f.error, f.text)):
        if not front or max(each.error, ENOUGH) < (1.0 - GAIN) * front[-1].error:
            front.append(each)
    return tuple(front)


class Population:
    """The ONE_SIZE best formulas of every number of operations, and what has been tried, for one set of samples."""

    def __init__(self, samples: Samples, operations: int):
        self.samples, self.operations = samples, operations
        self.by_size: dict[int, list[Formula]] = {}
        self.structures: set[str] = set()
        self.functions: dict[str, int] = {}  # operations of the smallest formula of each function

    @property
    def members(self) -> list[Formula]:
        return [each for size in sorted(self.by_size) for each in self.by_size[size]]

    def archive(self, generation: int, asked: int, rng: np.random.Generator) -> Archive:
        """What a proposer sees. The score of a formula is - log error."""
        entries = tuple(Entry(i, 0, "", f.text, score=-math.log(f.error + 1e-9)) for i, f in enumerate(self.members))
        return Archive(entries, generation, asked, len(entries), TOURNAMENT, self.samples.names, rng)

    def add(self, texts: Sequence[str], checks: Checks) -> None:
        """Fit the new ones among these texts, and keep those that keep the laws at the probe points and are good."""
        fitted = [each for text in texts if (each := self._fitted(text)) is not None]
        for formula, checked in zip(fitted, checks.quick([each.text for each in fitted]), strict=True):
            known = self.functions.get(checked.function or "", self.operations + 1)
            if checked.function is not None and formula.operations < known:
                self.functions[checked.function] = formula.operations
                self._keep(formula)

    def remove(self, formula: Formula) -> None:
        self.by_size[formula.operations].remove(formula)

    def _keep(self, formula: Formula) -> None:
        some = self.by_size.setdefault(formula.operations, [])
        some.append(formula)
        some.sort(key=lambda each: (each.error, each.text))
        del some[ONE_SIZE:]

    def _fitted(self, text: str) -> Formula | None:
        """The formula of a text, with its constants fitted. None for one that is too large, known, or worse than 0."""
        nodes = folded(nodes_of(text))
        count = sum(node in OPERATIONS for node in nodes)
        structure = text_of([0.0 if isinstance(node, float) else node for node in nodes])
        if count > self.operations or len(nodes) > NODES or structure in self.structures:
            return None
        self.structures.add(structure)
        code, constants = parse(text_of(nodes))
        found, error = tuned(code, np.array(constants), self.samples)
        if error > 1.0:
            return None
        found = rounded(code, found, self.samples, worse=WORSE)
        return Formula(_written(code, found), count, error_of(code, found, self.samples))


def _written(code: Sequence[str], constants: np.ndarray) -> str:
    numbers = iter(constants.tolist())
    return text_of([next(numbers) if node == CONSTANT else node for node in code])


class Distillation:
    """Evolution of programs whose constants are fitted, with the best few of every size as the population.

    There are three populations: of formulas for all samples, for those with A < 0, and for those with A > 0. A generation
    proposes as many texts for each. The constants of a text are fitted by least squares. A formula enters its population if it
    keeps the laws of a drift at the probe points, and if it is among the ONE_SIZE best of its number of operations. Parents are
    winners of tournaments by error. After every CHECKED generations the best of the last two are joined, one for each sign of A,
    into formulas for all samples.

    The front is of formulas for all samples that `verify_drift` accepts.
    """

    def __init__(
        self, samples: Samples, config: DistilConfig, propose: Callable[[Archive, int], list[str]] = proposals
    ):
        self.config, self.propose = config, propose
        timed = not OF_TIME.isdisjoint(samples.names)
        largest = lo.InterpretedProgram.of("A", length=config.operations, constants=config.operations + 1, timed=timed)
        self.checks = Checks(largest)
        self.rng = np.random.default_rng(config.seed)
        self.whole = Population(samples, config.operations)
        self.halves = [Population(part, config.operations) for part in halves(samples)]
        self.proposed = 0
        self._lawful: dict[str, bool] = {}

    def generations(self) -> Iterator[Generation]:
        """One item after every CHECKED generations, and after the last. Ends early where an error is below ENOUGH."""
        for number in range(1, self.config.generations + 1):
            for population in (self.whole, *self.halves):
                texts = self.propose(population.archive(number, self.proposed, self.rng), self.config.children)
                self.proposed += len(texts)
                population.add(texts, self.checks)
            if number % CHECKED and number < self.config.generations:
                continue
            self._join()
            front = self.front()
            is_last = number == self.config.generations or (bool(front) and front[-1].error < ENOUGH)
            front = self._reduced(front) if is_last else front
            yield Generation(
                number, self.proposed, sum(len(each.structures) for each in (self.whole, *self.halves)), front
            )
            if is_last:
                return

    def front(self) -> tuple[Formula, ...]:
        """The front of formulas that are drifts. Those that are none leave the population."""
        while True:
            front = front_of(self.whole.members)
            broken = [each for each in front if not self._is_drift(each.text)]
            if not broken:
                return front
            for each in broken:
                self.whole.remove(each)

    def _join(self) -> None:
        below, above = (front_of(each.members) for each in self.halves)
        self.whole.add([f"where(A < 0, {one.text}, {other.text})" for one in below for other in above], self.checks)

    def _reduced(self, front: tuple[Formula, ...]) -> tuple[Formula, ...]:
        """The front after all reductions of its members, and of what these add to it, have been fitted."""
        done: set[str] = set()
        while new := [each for each in front if each.text not in done]:
            done |= {each.text for each in new}
            self.whole.add([text_of(nodes) for each in new for nodes in reductions(nodes_of(each.text))], self.checks)
            front = self.front()
        return front

    def _is_drift(self, text: str) -> bool:
        if text not in self._lawful:
            program = self.checks.read(text).program
            self._lawful[text] = program is not None and self.checks.broken_law(program) is None
        return self._lawful[text]
