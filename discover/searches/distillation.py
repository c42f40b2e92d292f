"""Symbolic regression of a drift: programs of few operations that have its values and its slopes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

import learned_objectives as lo
from discover.searches.fitting import Samples, error_of, rounded, tuned
from discover.searches.program_archive import Archive, Entry
from discover.searches.program_checks import Checks
from discover.searches.proposers import Node, mutated_texts, nodes_of, random_texts, start_of, text_of
from learned_objectives.expressions import CONDITION, CONSTANT, OPERATIONS
from learned_objectives.parsing import NODES, parse

RANDOM = 0.1  # of the proposals of a generation; mutation gives the others
ONE_SIZE = 4  # programs of one size in the population
WORSE = 1e-3  # by how much rounding may raise the error of a formula, as a share of it


@dataclass(frozen=True)
class DistilConfig:
    """The settings of a distillation."""

    generations: int = 150
    children: int = 64  # proposals of a generation
    operations: int = 24  # most of a formula
    seed: int = 0

    def __post_init__(self):
        for name in ("generations", "children", "operations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, and is {getattr(self, name)}.")
        if self.operations > NODES // 2:
            raise ValueError(f"operations must be at most {NODES // 2}, and is {self.operations}.")


class Formula(NamedTuple):
    """A program and how far it is from the drift."""

    text: str
    operations: int
    error: float  # see `discover.searches.fitting.error_of`


class Generation(NamedTuple):
    number: int  # from 1
    proposed: int  # so far
    fitted: int  # so far, of another structure than every one before
    front: tuple[Formula, ...]  # so far


def operations_in(text: str) -> int:
    """How many operations a text has. A sign before a constant is none."""
    return sum(node in OPERATIONS for node in nodes_of(text))


def front_of(formulas: Sequence[Formula]) -> tuple[Formula, ...]:
    """Those that no other one equals or beats in both size and error, from the smallest on."""
    front: list[Formula] = []
    for each in sorted(formulas, key=lambda f: (f.operations, f.error, f.text)):
        if not front or each.error < front[-1].error:
            front.append(each)
    return tuple(front)


def folded(nodes: Sequence[Node]) -> list[Node]:
    """The same program, in which an operation on constants alone is a constant."""
    found: list[Node] = []
    for node in nodes:
        found.append(node)
        takes = OPERATIONS[node].takes if node in OPERATIONS else ()
        start = start_of(found, len(found) - 1) if takes else 0
        if takes and CONDITION not in (*takes, OPERATIONS[node].gives):
            if all(isinstance(each, float) for each in found[start:-1]):
                code = [CONSTANT if isinstance(each, float) else each for each in found[start:]]
                value = float(np.squeeze(_constant_value(tuple(code), [x for x in found[start:] if isinstance(x, float)])))
                if math.isfinite(value) and abs(value) <= 1e4:
                    found[start:] = [value]
    return found


def _constant_value(code: tuple[str, ...], constants: list[float]) -> np.ndarray:
    from discover.searches.numeric import evaluate

    return evaluate(code, np.array(constants), {}).value


class Distillation:
    """Evolution of programs whose constants are fitted, with the best few of every size as the population.

    A generation proposes texts: children of the population, and some random ones. The constants of a text are fitted by least
    squares. A formula enters the population if it keeps the laws of a drift at the probe points, and if it is among the ONE_SIZE
    best of its number of operations. Parents are winners of tournaments of two by error, so that small formulas have children
    too. The front is made of formulas whose laws `verify_drift` has checked.
    """

    def __init__(self, samples: Samples, config: DistilConfig, propose: Callable[[Archive, int], list[str]] | None = None):
        self.samples, self.config = samples, config
        self.propose = propose or _proposals
        timed = "t" in samples.names or "log_N" in samples.names
        largest = lo.InterpretedProgram.of("A", length=config.operations, constants=config.operations + 1, timed=timed)
        self.checks = Checks(largest)
        self.rng = np.random.default_rng(config.seed)
        self.population: dict[int, list[Formula]] = {}
        self.seen: set[str] = set()
        self.functions: set[str] = set()
        self.lawful: dict[str, bool] = {}
        self.proposed = 0

    def generations(self) -> Iterator[Generation]:
        for number in range(1, self.config.generations + 1):
            self._admit(self.propose(self._archive(number), self.config.children))
            yield Generation(number, self.proposed, len(self.seen), self.front())

    def front(self) -> tuple[Formula, ...]:
        """The front of formulas that are drifts."""
        formulas = [each for some in self.population.values() for each in some]
        while True:
            front = front_of(formulas)
            unlawful = [each for each in front if not self._is_drift(each.text)]
            if not unlawful:
                return front
            for each in unlawful:
                formulas.remove(each)
                self.population[each.operations].remove(each)

    def _is_drift(self, text: str) -> bool:
        if text not in self.lawful:
            self.lawful[text] = self.checks.broken_law(self.checks.read(text).program) is None
        return self.lawful[text]

    def _archive(self, generation: int) -> Archive:
        members = [each for size in sorted(self.population) for each in self.population[size]]
        entries = tuple(
            Entry(i, 0, "", each.text, score=-math.log(each.error + 1e-9)) for i, each in enumerate(members)
        )
        return Archive(entries, generation, self.proposed, len(members), 2, self.samples.names, self.rng)

    def _admit(self, texts: Sequence[str]) -> None:
        self.proposed += len(texts)
        fitted = [each for text in texts if (each := self._fitted(text)) is not None]
        for formula, checked in zip(fitted, self.checks.quick([each.text for each in fitted]), strict=True):
            if checked.refused is None and checked.function not in self.functions:
                self.functions.add(checked.function or "")
                self._keep(formula)

    def _keep(self, formula: Formula) -> None:
        some = self.population.setdefault(formula.operations, [])
        some.append(formula)
        some.sort(key=lambda each: (each.error, each.text))
        del some[ONE_SIZE:]

    def _fitted(self, text: str) -> Formula | None:
        """The formula of a text, with its constants fitted. None for one that is too large, known, or worse than 0."""
        nodes = folded(nodes_of(text))
        count = sum(node in OPERATIONS for node in nodes)
        if count > self.config.operations or len(nodes) > NODES:
            return None
        code, constants = parse(text_of(nodes))
        structure = text_of([0.0 if isinstance(node, float) else node for node in nodes])
        if structure in self.seen:
            return None
        self.seen.add(structure)
        found, error = tuned(code, np.array(constants), self.samples)
        if error > 1.0:
            return None
        found = rounded(code, found, self.samples, worse=WORSE)
        numbers = iter(found.tolist())
        text = text_of([next(numbers) if node == CONSTANT else node for node in code])
        return Formula(text, count, error_of(code, found, self.samples))


def _proposals(archive: Archive, n: int) -> list[str]:
    """Random texts, and children."""
    some = max(1, round(RANDOM * n))
    return random_texts(archive, some) + mutated_texts(archive, n - some)


__all__ = ["DistilConfig", "Distillation", "Formula", "Generation", "front_of", "operations_in", "partial"]
