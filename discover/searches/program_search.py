"""Regularised evolution over programs: proposals, checks before any training, lives beside PPO's, and an archive of it all."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import learned_objectives as lo
from discover.console import advise
from discover.formats import write_text
from discover.searches.evolution_search import summarise
from discover.searches.problem import Problem
from discover.searches.program_archive import LONGEST_REFUSED, Archive, Entry, decode, encode, lines
from discover.searches.program_checks import Checks
from discover.searches.program_family import PPO
from discover.searches.programs import ProgramsConfig
from discover.searches.proposers import PROPOSERS, Proposer, ask, proposer_of
from discover.searches.search import Search
from learned_objectives.expressions import OF_TIME, VARIABLES

PyTree = Any


REFERENCE = "reference"


class State(NamedTuple):
    """Arrays, from which a resumed run continues exactly."""

    archive: jax.Array  # u8[archive_bytes], JSON Lines
    used: jax.Array  # i32[], bytes of it
    count: jax.Array  # i32[], proposals so far
    asked: jax.Array  # i32[], those of the proposer
    best: lo.InterpretedProgram  # the program of the highest score


class ProgramSearch(Search):
    """Regularised evolution (Real et al. 2019, arXiv:1802.01548) over programs (Co-Reyes et al. 2021, arXiv:2101.03958).

    A generation asks its proposer for texts until there are `children` new drifts. A text is refused, in a sentence, where it
    cannot be read, does not fit, breaks a law of a drift, or equals an earlier one at the probe points. The new ones and PPO are
    trained in the same tasks. The score of a program is the mean over environments of

        (its return - PPO's) / max(|PPO's|, 1)

    so that scores of different generations, whose tasks differ, can be compared. Where there are several environments, programs
    that miss the hurdle in the first one, PPO's - (1 - hurdle) |PPO's|, are not trained in the others. The objective of the
    search is the program of the highest score.
    """

    def __init__(self, config: ProgramsConfig, problem: Problem):
        super().__init__(config, problem)
        drift = getattr(problem.template, "drift", None)
        if not isinstance(drift, lo.InterpretedProgram):
            raise ValueError(
                "a search for programs needs an objective that holds them: set objective to 'program' (--objective program), and "
                f"not {problem.recipe.objective.kind!r}."
            )
        self.checks = Checks(drift)
        self.proposer = proposer_of(config.proposer)
        self.reference = self.checks.quick([PPO])[0]
        if self.reference.program is None:
            raise ValueError(
                f"PPO, beside which programs are trained, does not fit this objective: {self.reference.refused}"
            )

    def init(self) -> State:
        zero = jnp.int32(0)
        data = jnp.zeros(self.config.archive_bytes, jnp.uint8)
        return State(data, zero, zero, zero, self.problem.template.drift)

    def mean(self, state: State) -> lo.Objective:
        return self.problem.template.replace(drift=state.best)

    def describe(self, state: State, generation: int) -> dict[str, Any]:
        best = self.archive(state, generation).best
        return {
            "program": str(jax.tree.map(np.asarray, state.best)),
            "program_score": None if best is None else best.score,
        }

    def archive(self, state: State, generation: int) -> Archive:
        c = self.config
        seed = jax.random.key_data(self.problem.key("step", generation))
        return Archive(
            entries=decode(np.asarray(state.archive), int(state.used)),
            generation=generation,
            asked=int(state.asked),
            size=c.population,
            tournament=c.tournament,
            variables=tuple(name for name in VARIABLES if self.checks.timed or name not in OF_TIME),
            rng=np.random.default_rng(np.asarray(seed).tolist()),
        )

    def step(self, state: State, generation: int) -> tuple[State, dict[str, Any]]:
        found = _Generation(self, self.archive(state, generation), int(state.count))
        found.collect()
        fitness = self._fitness(found.programs, generation)
        found.score(fitness)
        data, used = encode(found.entries, self.config.archive_bytes, self.config.population)
        best = found.archive.best
        if best is not None and best.generation == generation:
            state = state._replace(best=jax.tree.map(jnp.asarray, self.checks.read(best.program).program))
        state = state._replace(
            archive=jnp.asarray(data),
            used=jnp.int32(used),
            count=jnp.int32(found.count),
            asked=jnp.int32(found.asked),
        )
        if self.config.archive:
            path = Path(self.config.archive)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, lines(found.entries))
        return state, found.row(fitness)

    def _fitness(self, programs: list[lo.InterpretedProgram], generation: int) -> np.ndarray:
        """f64[children + 1, E] of the reference and the programs; NaN where one diverged, or was not trained."""
        key, width = self.problem.key("life", generation), self.config.items
        fitness = np.full((1 + len(programs), len(self.problem.settings)), np.nan)
        all_of = [self.reference.program, *programs]
        first, *others = range(fitness.shape[1])
        entered = range(len(all_of))
        fitness[:, first] = self._trained(all_of, key, width, [first])[:, 0]
        if others:
            entered = [i for i in entered if i == 0 or self._passes(fitness[i, first], fitness[0, first])]
            smallest = 1 << (len(entered) - 1).bit_length()  # few sizes, each of which is compiled
            found = self._trained([all_of[i] for i in entered], key, min(smallest, width), others)
            fitness[np.ix_(entered, others)] = found
        return fitness

    def _passes(self, value: float, reference: float) -> bool:
        """Whether a program enters the other environments. NaN, which diverged, does not."""
        if self.config.hurdle == 0 or np.isnan(reference):
            return not np.isnan(value)
        return value >= reference - (1.0 - self.config.hurdle) * abs(reference)

    def _trained(self, programs: list, key: jax.Array, width: int, environments: list[int]) -> np.ndarray:
        """f64[len(programs), len(environments)]. Groups of one, filled up to `width` with the first program."""
        drifts = [*programs, *programs[:1] * (width - len(programs))]
        objectives = [self.problem.template.replace(drift=drift) for drift in drifts]
        candidates = jax.tree.map(lambda *xs: jnp.stack(xs)[:, None], *objectives)
        found = self.problem.fitness(candidates, key, lives=self.config.lives, environments=environments)
        return np.asarray(found, np.float64)[: len(programs), 0]

    def loop_seconds(self, state: State) -> float:
        """As in `Search`, but without lives: the seconds in which a generation's programs are proposed and checked."""
        for _ in range(2):
            began = time.monotonic()
            _Generation(self, self.archive(state, 0), 0).collect()
            own = time.monotonic() - began
        return own


class _Generation:
    """One generation: the programs that it trains, and the archive with its entries."""

    def __init__(self, search: ProgramSearch, archive: Archive, count: int):
        self.search, self.config, self.checks = search, search.config, search.checks
        self.archive, self.count, self.asked = archive, count, archive.asked
        self.known = {e.function: e.number for e in archive.entries if e.function is not None}
        self.programs: list[lo.InterpretedProgram] = []
        self.trained: list[Entry] = []
        self.failures: list[str] = []
        self.before = len(archive.entries)

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
