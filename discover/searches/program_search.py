"""Regularised evolution over programs: proposals, checks before any training, lives beside PPO's, and an archive of it all."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import learned_objectives as lo
from discover.formats import write_text
from discover.searches.inner_constants import INNER, varied
from discover.searches.problem import Problem
from discover.searches.program_archive import Archive, Entry, decode, encode, lines
from discover.searches.program_checks import Checked, Checks
from discover.searches.program_family import PPO
from discover.searches.program_generation import Generation
from discover.searches.programs import ProgramsConfig
from discover.searches.proposers import proposer_of
from discover.searches.search import Search
from learned_objectives.expressions import OF_TIME, VARIABLES

PyTree = Any


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

    With `variants`, the best `varied` programs that passed the hurdle then have other constants tried: each variant, and the
    program itself, is trained in the first environment in tasks of its own. Where a variant returns most there, it is scored like
    any other program of the generation, in the same tasks, and enters the archive by the name "constants".
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
        found = Generation(self, self.archive(state, generation), int(state.count))
        found.collect()
        fitness = self._fitness(found.programs, generation)
        found.score(fitness)
        inner = self._vary(found, generation, fitness[0, 0]) if self.config.variants else {}
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
        return state, found.row(fitness) | inner

    def _vary(self, found: Generation, generation: int, reference: float) -> dict[str, Any]:
        """Try other constants of the best programs of a generation, and score those that return more. Returns what to log."""
        before, c = self.problem.updates, self.config
        seed = np.asarray(jax.random.key_data(self.problem.key("step", generation))).tolist()
        rng = np.random.default_rng([*seed, INNER])
        passed = lambda entry: self._passes(entry.fitness[0], reference)
        groups = [self._variants(entry, rng) for entry in found.best(c.varied, passed)]
        groups = [group for group in groups if len(group) > 1]
        programs = [each.program for group in groups for each in group]
        key = jax.random.fold_in(self.problem.key("life", generation), INNER)
        parts = [programs[i : i + c.items] for i in range(0, len(programs), c.items)]
        values = iter(np.concatenate([self._trained(part, key, c.items, [0])[:, 0] for part in parts]) if parts else ())
        found.admit_constants([group[_argmax([next(values) for _ in group])] for group in groups])
        if found.varied:
            found.score(self._fitness(found.varied, generation))
        steps = (self.problem.updates - before) * self.problem.recipe.agent.steps_per_update
        return {"varied": len(groups), "improved": len(found.varied), "inner_env_steps": steps}

    def _variants(self, entry: Entry, rng: np.random.Generator) -> list[Checked]:
        """The program of an entry, and its variants that are drifts at the probe points."""
        texts = [entry.program, *varied(entry.program, rng, self.config.variants, self.config.spread)]
        found = {each.function: each for each in self.checks.quick(texts) if each.function is not None}
        return list(found.values())

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

    @property
    def updates_per_step(self) -> float:
        """As in `Search`; where constants are varied, the most that this takes."""
        c, per_life = self.config, self.problem.mean_lengths
        if not c.variants:
            return super().updates_per_step
        groups = -(-c.varied * (1 + c.variants) // c.items)
        return 2.0 * super().updates_per_step + groups * c.items * c.lives * per_life[0]

    def loop_seconds(self, state: State) -> float:
        """As in `Search`, but without lives: the seconds in which a generation's programs are proposed and checked."""
        for _ in range(2):
            began = time.monotonic()
            Generation(self, self.archive(state, 0), 0).collect()
            own = time.monotonic() - began
        return own


def _argmax(values: list[float]) -> int:
    """The place of the largest value, the first of equal ones. NaN, which diverged, counts as the smallest."""
    return int(np.argmax(np.nan_to_num(values, nan=-np.inf)))
