"""One generation of the search for programs: what is proposed, refused, trained and scored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import learned_objectives as lo
from discover.console import advise
from discover.searches.evolution_search import summarise
from discover.searches.program_archive import LONGEST_REFUSED, Archive, Entry
from discover.searches.program_checks import Checked
from discover.searches.program_family import PPO
from discover.searches.proposers import PROPOSERS, Proposer, ask

REFERENCE, CONSTANTS = "reference", "constants"  # who proposed an entry, if no proposer


class Generation:
    """One generation: the programs that it trains, and the archive with its entries."""

    def __init__(self, search: Any, archive: Archive, count: int):
        self.search, self.config, self.checks = search, search.config, search.checks
        self.archive, self.count, self.asked = archive, count, archive.asked
        self.known = {e.function: e.number for e in archive.entries if e.function is not None}
        self.programs: list[lo.InterpretedProgram] = []
        self.varied: list[lo.InterpretedProgram] = []  # with other constants
        self.trained: list[Entry] = []
        self.failures: list[str] = []
        self.before = len(archive.entries)

    def best(self, count: int, passed: Callable[[Entry], bool]) -> list[Entry]:
        """Of the programs that this generation trained, that have a score, and that passed: those of the highest score."""
        numbers = {entry.number for entry in self.trained if entry.by != REFERENCE}
        scored = [e for e in self.entries if e.number in numbers and e.is_scored and passed(e)]
        return sorted(scored, key=lambda e: -(e.score or 0.0))[:count]

    def admit_constants(self, chosen: list[Checked]) -> None:
        """Add entries for those that are new and keep the laws. They are the next that `score` is for."""
        self.trained = []
        for checked in chosen:
            if checked.function in self.known or self.checks.broken_law(checked.program) is not None:
                continue
            entry = self._entry(CONSTANTS, str(checked.program), function=checked.function)
            self.known[checked.function] = entry.number
            self._append(entry)
            self.trained.append(entry)
            self.varied.append(checked.program)

    @property
    def entries(self) -> tuple[Entry, ...]:
        return self.archive.entries

    def collect(self) -> None:
        """Ask for programs until there are enough: the proposer, and mutation where it fails or its calls are used up."""
        if not self.entries:
            self._add_start()
        c = self.config
        self._ask_often(c.proposer, self.search.proposer)
        if self.search.proposer is not PROPOSERS["mutation"]:
            self._ask_often("mutation", PROPOSERS["mutation"])

    def _add_start(self) -> None:
        """PPO as entry 0, and the program that the search starts from as the first child."""
        reference = self.search.reference
        self._append(Entry(0, self.archive.generation, REFERENCE, PPO, function=reference.function))
        self.trained.append(self.entries[-1])
        self.known[reference.function] = 0
        if (start := str(self.search.problem.template.drift)) != PPO:
            self._admit("start", [start])

    def _ask_often(self, name: str, proposer: Proposer) -> None:
        is_main = proposer is self.search.proposer
        for _ in range(self.config.asks):
            wanted = self.config.children - len(self.programs)
            if wanted == 0:
                return
            texts, failure = ask(proposer, self.archive, wanted, self.config.patience)
            if is_main:
                self.asked += len(texts)
                self.archive = self._with(asked=self.asked)
            if failure is not None:
                self.failures.append(failure)
                advise(f"{failure} Generation {self.archive.generation} takes programs from mutation instead.")
                self._append(self._entry(name, "", refused=failure))
            if not texts:
                return
            self._admit(name, texts)

    def _admit(self, name: str, texts: list[Any]) -> None:
        """Check texts; those that pass are trained, and the others are recorded with the reason."""
        for text, checked in zip(texts, self.checks.quick(texts), strict=True):
            why = checked.refused
            if why is None and checked.function in self.known:
                why = f"This program equals program {self.known[checked.function]} at the probe points."
            if why is None:
                why = self.checks.broken_law(checked.program)
            if why is not None:
                self._append(self._entry(name, _kept(text), refused=why))
                continue
            entry = self._entry(name, str(checked.program), function=checked.function)
            self.known[checked.function] = entry.number
            self._append(entry)
            self.programs.append(checked.program)
            self.trained.append(entry)

    def _entry(self, by: str, program: str, **fields: Any) -> Entry:
        return Entry(self.count, self.archive.generation, by, program, **fields)

    def _append(self, entry: Entry) -> None:
        self.count += 1
        self.archive = self._with(entries=(*self.entries, entry))

    def _with(self, **changes: Any) -> Archive:
        return Archive(**{**vars(self.archive), **changes})

    def score(self, fitness: np.ndarray) -> None:
        """Put what was found into the entries. `fitness` f64[1 + n, E], of PPO first."""
        reference, found = fitness[0], {}
        rows = fitness if self.trained[:1] and self.trained[0].by == REFERENCE else fitness[1:]
        for entry, own in zip(self.trained, rows, strict=True):
            value, why = self._score_of(own, reference)
            numbers = tuple(float(x) if np.isfinite(x) else None for x in own)
            found[entry.number] = entry._replace(fitness=numbers, score=value, refused=why)
        self.archive = self._with(entries=tuple(found.get(e.number, e) for e in self.entries))

    def _score_of(self, own: np.ndarray, reference: np.ndarray) -> tuple[float | None, str | None]:
        known = np.isfinite(reference)
        if known.any() and np.isfinite(own[known]).all():
            gain = (own[known] - reference[known]) / np.maximum(np.abs(reference[known]), 1.0)
            return float(gain.mean()), None
        if not known.any():
            return None, "PPO's agents diverged in this generation, so that there is nothing to compare with."
        if np.isfinite(own[0]) and known[0] and not self.search._passes(own[0], reference[0]):
            return None, f"Its agents reached {own[0]:.4g} in the first environment, and PPO's {reference[0]:.4g}."
        return None, "Its agents diverged."

    def row(self, fitness: np.ndarray) -> dict[str, Any]:
        """What a generation logs."""
        new = self.entries[self.before :]
        names = self.search.problem.recipe.envs
        return summarise(fitness[1:] if self.programs else fitness, names) | {
            "reference": {
                name: float(x) if np.isfinite(x) else None for name, x in zip(names, fitness[0], strict=True)
            },
            "diverged": float(np.mean([e.refused == "Its agents diverged." for e in new if e.function] or [0.0])),
            "proposed": len(new),
            "refused": sum(e.function is None for e in new),
            "trained": len(self.programs),
            "proposer_failures": len(self.failures),
        }


def _kept(text: Any) -> str:
    """What the archive keeps of a refused proposal."""
    return text[:LONGEST_REFUSED] if isinstance(text, str) else f"({type(text).__name__})"
