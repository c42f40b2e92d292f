"""A recipe: what to search for, where, and how, as one frozen and serialisable value."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

import learned_objectives as lo
from discover.arguments import directory_of
from discover.config import AgentConfig
from discover.curriculum import CurriculumConfig
from discover.evolution import EvolutionConfig
from discover.metagrad import MetaGradConfig
from discover.settings import rebuild
from discover.setups import LossConfig
from discover.train import as_arrays, resolve_objective

PURPOSES = ("template", "start", "ask", "tell", "life", "evaluation", "level", "birth", "antagonist")


def purpose_key(seed: int, purpose: str) -> jax.Array:
    """The root of all keys of one purpose. Far from 0, 1, 2, ..., which number a seed's agents in `discover.train`."""
    return jax.random.fold_in(jax.random.key(seed), 1_000_000_000 + PURPOSES.index(purpose))


@dataclass(frozen=True)
class LPGConfig:
    """The size of an LPG."""

    cell: Literal["lstm", "gru"] = "lstm"  # of the recurrent network
    hidden: int = 256  # of the recurrent state
    predictions: int = 30  # M, symbols that agents predict
    see_gamma: bool = True  # whether the discount is an input; GROOVE has none
    prediction_coef: float = 0.5  # alpha_y, of the agent's prediction loss

    def __post_init__(self):
        if self.cell not in ("lstm", "gru"):
            raise ValueError(f"lpg.cell must be 'lstm' or 'gru', and is {self.cell!r}.")
        for name in ("hidden", "predictions"):
            if getattr(self, name) < 1:
                raise ValueError(f"lpg.{name} must be at least 1, and is {getattr(self, name)}.")
        if not math.isfinite(self.prediction_coef):
            raise ValueError(f"lpg.prediction_coef must be finite, and is {self.prediction_coef}.")


@dataclass(frozen=True)
class Recipe:
    """One meta-training run, whole: the same recipe and seed give the same objective."""

    name: str = "custom"  # for the record
    method: Literal["evolution", "metagrad"] = "evolution"  # how its leaves are searched
    objective: Literal["lpo", "ta_lpo", "lpg", "ta_lpg", "ppo", "dpo", "mdpo"] = "lpo"  # whose leaves those are
    start: str = "ppo"  # generation 0 of lpo and ta_lpo: ppo, none, or the name or file of an earlier result
    epsilon: float = 0.2  # PPO's clip at generation 0, where the start is ppo
    width: int = 128  # of the drift's hidden layer, for lpo and ta_lpo that start at ppo or none
    envs: tuple[str, ...] = ("CartPole-v1",)  # each trained in apart; their shaped fitness is averaged
    total_steps: int | None = 30_720  # environment steps in one life; None: as the distribution of worlds has it
    fitness_episodes: int | None = None  # fresh ones that judge a life; None: 64 if lifetimes vary, else as it trained
    generations: int = 100  # steps of the search: generations, or meta-gradients
    evaluate_every: int = 10  # generations between evaluations of the mean
    evaluation_seeds: int = 16  # lives per evaluation and environment
    checkpoint_every: int = 10  # generations
    seed: int = 0  # all keys of the run derive from it
    agent: AgentConfig = field(default_factory=AgentConfig)
    learning_rates: tuple[float, ...] = ()  # of the agent, one per environment; empty: agent.learning_rate
    loss: LossConfig = field(default_factory=LossConfig)
    lpg: LPGConfig = field(default_factory=LPGConfig)
    evolution: EvolutionConfig = field(default_factory=EvolutionConfig)
    metagrad: MetaGradConfig = field(default_factory=MetaGradConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)

    def __post_init__(self):
        for name in (
            "width",
            "generations",
            "evaluate_every",
            "evaluation_seeds",
            "checkpoint_every",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, and is {getattr(self, name)}.")
        if not isinstance(self.start, str) or not self.start:
            raise ValueError(f"start must be 'ppo', 'none', or the name or file of an LPO, and is {self.start!r}.")
        if self.start != "ppo" and self.objective not in ("lpo", "ta_lpo"):
            raise ValueError(f"start is for lpo and ta_lpo, and the objective of this recipe is {self.objective}.")
        if isinstance(self.envs, str) or any(not isinstance(name, str) for name in self.envs):
            raise ValueError(
                f"envs must be a tuple of names, and is {self.envs!r}: register an environment of your own "
                "(`envs.register(name, env)`) and give its name."
            )
        if not self.envs:
            raise ValueError("envs must name at least one environment: `discover list` shows them.")
        if self.learning_rates and len(self.learning_rates) != len(self.envs):
            raise ValueError(
                f"learning_rates must be empty or one per environment ({len(self.envs)}), and there are "
                f"{len(self.learning_rates)}."
            )
        if not self.epsilon > 0:
            raise ValueError(f"epsilon must be positive, and is {self.epsilon}.")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be in [0, 2^31), and is {self.seed}.")
        if any(not 0 < rate < math.inf for rate in self.learning_rates):
            raise ValueError(f"learning_rates must be positive and finite, and are {self.learning_rates}.")
        if self.method not in ("evolution", "metagrad"):
            raise ValueError(f"method must be 'evolution' or 'metagrad', and is {self.method!r}.")
        if self.fitness_episodes is not None and self.fitness_episodes < 1:
            raise ValueError(f"fitness_episodes must be at least 1, or None, and is {self.fitness_episodes}.")
        if self.total_steps is not None:
            self.agent.num_updates(self.total_steps)

    def template(self) -> lo.Objective:
        """The objective of generation 0."""
        if self.objective in ("lpo", "ta_lpo"):
            return self.loss.on(lo.Mirror(drift=self._drift(time_aware=self.objective == "ta_lpo")))
        if self.objective in ("lpg", "ta_lpg"):
            return lo.LPG.create(
                purpose_key(self.seed, "template"),
                time_aware=self.objective == "ta_lpg",
                gamma=self.loss.gamma,
                **vars(self.lpg),
            )
        if self.objective == "ppo":
            return self.loss.on(lo.Mirror(drift=lo.Clip(jnp.float32(self.epsilon))))
        return as_arrays(self.loss.on(lo.load(self.objective)))

    @property
    def rolls(self) -> bool:
        """Whether lives go on from one generation to the next, in a search by evolution."""
        return self.method == "evolution" and self.evolution.window is not None

    @property
    def starts_elsewhere(self) -> bool:
        """Whether generation 0 is what another search found."""
        return self.start not in ("ppo", "none")

    def _drift(self, time_aware: bool) -> lo.LPO:
        if not self.starts_elsewhere:
            epsilon = self.epsilon if self.start == "ppo" else None
            key = purpose_key(self.seed, "template")
            return lo.LPO.create(key, width=self.width, time_aware=time_aware, epsilon=epsilon)
        try:
            found = resolve_objective(self.start)
        except ValueError as error:
            raise ValueError(f"start is neither 'ppo' nor 'none', and no LPO found before: {error}") from None
        drift = found.drift if isinstance(found, lo.Mirror) else None
        if not isinstance(drift, lo.LPO):
            raise ValueError(
                f"start must be 'ppo', 'none', or an LPO found before, and {self.start} holds something else."
            )
        if drift.time_aware and not time_aware:
            raise ValueError(f"{self.start} is time-aware, and an lpo is not: search a ta_lpo from it.")
        return drift.timed() if time_aware else drift


def recipe_of(record: Mapping[str, Any]) -> Recipe:
    """The recipe in the record of an objective (`learned_objectives.record`): run again, it makes that objective.

    Raises ValueError if there is none, or one of another version's fields.
    """
    if not isinstance(record, Mapping) or not isinstance(record.get("recipe"), Mapping):
        raise ValueError("this record holds no recipe: its objective was not made by `discover meta-train`.")
    try:
        return rebuild(Recipe, record["recipe"])
    except (TypeError, AttributeError) as error:
        raise ValueError(f"the recipe in this record does not fit this version of discover ({error}).") from None


def recipe_in(out: str | Path) -> Recipe:
    """The recipe of the run in a directory. Raises ValueError if there is none, or one of another version."""
    path = directory_of(out) / "recipe.json"
    try:
        recipe = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        raise ValueError(f"{out} holds no run: there is no readable {path.name} in it.") from None
    try:
        return recipe_of({"recipe": recipe})
    except ValueError as error:
        raise ValueError(f"{path} is no recipe of this version: {error}") from None
