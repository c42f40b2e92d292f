"""A recipe: what to search for, where, and how, as one frozen and serialisable value."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax

import learned_objectives as lo
from discover.agents.arguments import directory_of
from discover.agents.config import AgentConfig
from discover.agents.setups import LossConfig
from discover.console import advise
from discover.searches.config import SEARCHES, SearchConfig, search_config
from discover.searches.curriculum import CurriculumConfig
from discover.searches.families import LPGConfig, LPOConfig
from discover.searches.family import ObjectiveConfig
from discover.searches.family_of import objective_config, template_of
from discover.searches.versions import migrated
from discover.settings import as_dict, rebuild

PURPOSES = ("template", "start", "ask", "tell", "life", "evaluation", "level", "birth", "antagonist", "step")


def purpose_key(seed: int, purpose: str) -> jax.Array:
    """The root of all keys of one purpose. Far from 0, 1, 2, ..., which number a seed's agents in `discover.train`."""
    return jax.random.fold_in(jax.random.key(seed), 1_000_000_000 + PURPOSES.index(purpose))


@dataclass(frozen=True)
class Recipe:
    """One meta-training run, whole: the same recipe and seed give the same objective."""

    name: str = "custom"  # for the record
    objective: ObjectiveConfig = field(default_factory=LPOConfig)  # the family whose leaves are searched
    search: SearchConfig = field(default_factory=lambda: SEARCHES["evolution"]())  # the outer loop, with its settings
    envs: tuple[str, ...] = ("CartPole-v1",)  # each trained in separately; their shaped fitness is averaged
    total_steps: int | None = 30_720  # environment steps in one life; None: as the distribution of worlds has it
    longest_steps: int | None = None  # lives are log-uniform from total_steps to this; None: all have total_steps
    fitness_episodes: int | None = None  # fresh ones that judge a life; None: training return, or 64 if no total_steps
    generations: int = 100  # steps of the search: generations, or meta-gradients
    evaluate_every: int = 10  # generations between evaluations of the mean
    evaluation_seeds: int = 16  # lives per evaluation and environment
    checkpoint_every: int = 10  # generations
    exported: Literal["best", "last"] = "best"  # the evaluated generation whose mean a run exports
    seed: int = 0  # all keys of the run derive from it
    agent: AgentConfig = field(default_factory=AgentConfig)
    learning_rates: tuple[float, ...] = ()  # of the agent, one per environment; empty: agent.learning_rate
    rate_spread: float = 1.0  # a life's learning rate is log-uniform within this factor of its environment's
    constant_rates: float = 0.0  # share of lives with a constant learning rate; the others follow agent.anneal
    loss: LossConfig = field(default_factory=LossConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)

    def __post_init__(self):
        object.__setattr__(self, "objective", objective_config(self.objective))
        object.__setattr__(self, "search", search_config(self.search))
        for name in ("generations", "evaluate_every", "evaluation_seeds", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, and is {getattr(self, name)}.")
        if isinstance(self.envs, str) or any(not isinstance(name, str) for name in self.envs):
            raise ValueError(
                f"envs must be a tuple of names, and is {self.envs!r}: register an environment of your own "
                "(`envs.register(name, env)`) and give its name."
            )
        if not self.envs:
            raise ValueError("envs must name at least one environment: `discover list` shows them.")
        if twice := [name for name in dict.fromkeys(self.envs) if self.envs.count(name) > 1]:
            raise ValueError(
                f"envs must name each environment once, and has {twice[0]} {self.envs.count(twice[0])} times."
            )
        if self.learning_rates and len(self.learning_rates) != len(self.envs):
            raise ValueError(
                f"learning_rates must be empty or one per environment ({len(self.envs)}), and there are "
                f"{len(self.learning_rates)}."
            )
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be in [0, 2^31), and is {self.seed}.")
        if any(not 0 < rate < math.inf for rate in self.learning_rates):
            raise ValueError(f"learning_rates must be positive and finite, and are {self.learning_rates}.")
        if self.exported not in ("best", "last"):
            raise ValueError(f"exported must be 'best' or 'last', and is {self.exported!r}.")
        if not 1 <= self.rate_spread < math.inf:
            raise ValueError(f"rate_spread must be at least 1 and finite, and is {self.rate_spread}.")
        if not 0 <= self.constant_rates <= 1:
            raise ValueError(f"constant_rates must be in [0, 1], and is {self.constant_rates}.")
        if self.fitness_episodes is not None and self.fitness_episodes < 1:
            raise ValueError(f"fitness_episodes must be at least 1, or None, and is {self.fitness_episodes}.")
        for name in ("total_steps", "longest_steps"):
            if (steps := getattr(self, name)) is not None:
                self.agent.num_updates(steps, name)

    def template(self) -> lo.Objective:
        """The objective of generation 0."""
        if isinstance(self.objective, LPGConfig) and self.objective.start == "a2c" and not self.agent.normalise_reward:
            advise(
                "An LPG that starts at A2C reads values up to 10 deviations of the discounted return: set agent.normalise_reward "
                "(--agent.normalise-reward)."
            )
        return template_of(self.objective, purpose_key(self.seed, "template"), self.loss)

    def as_dict(self) -> dict[str, Any]:
        """The recipe as JSON has it. `recipe_of` is the inverse."""
        return as_dict(self)


def recipe_of(record: Mapping[str, Any]) -> Recipe:
    """The recipe in the record of an objective (`learned_objectives.record`): run again, it makes that objective.

    Raises ValueError for a record without a recipe, or with the fields of another version.
    """
    if not isinstance(record, Mapping) or not isinstance(record.get("recipe"), Mapping):
        raise ValueError("this record holds no recipe: its objective was not made by `discover meta-train`.")
    try:
        return rebuild(Recipe, migrated(record["recipe"]))
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"the recipe in this record does not fit this version of discover ({error}).") from None


def recipe_in(out: str | Path) -> Recipe:
    """The recipe of the run in a directory. Raises ValueError without a run, or for one of another version."""
    path = directory_of(out) / "recipe.json"
    try:
        recipe = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        raise ValueError(f"{out} holds no run: there is no readable {path.name} in it.") from None
    try:
        return recipe_of({"recipe": recipe})
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from None
