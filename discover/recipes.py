"""What to search for, where, and how: each recipe a function that returns one, each field a flag."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import jax
import jax.numpy as jnp

import learned_objectives as lo
from discover.agent import AgentConfig
from discover.curriculum import CurriculumConfig
from discover.evolution import EvolutionConfig
from discover.metagrad import MetaGradConfig
from discover.names import unknown
from discover.setups import GRID, LossConfig
from discover.train import as_arrays

PURPOSES = ("template", "start", "ask", "tell", "life", "evaluation", "level", "birth", "antagonist")


def purpose_key(seed: int, purpose: str) -> jax.Array:
    """The root of all keys of one purpose. Far from 0, 1, 2, ..., which number a seed's agents in `discover.train`."""
    return jax.random.fold_in(jax.random.key(seed), 1_000_000_000 + PURPOSES.index(purpose))


@dataclass(frozen=True)
class LPGConfig:
    """The size of an LPG."""

    cell: Literal["lstm", "gru"] = "lstm"
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


@dataclass(frozen=True)
class Recipe:
    """One meta-training run, whole: the same recipe and seed give the same objective."""

    name: str = "custom"  # for the record
    method: Literal["evolution", "metagrad"] = "evolution"  # how its leaves are searched
    objective: Literal["lpo", "ta_lpo", "lpg", "ta_lpg", "ppo", "dpo", "mdpo"] = "lpo"  # whose leaves those are
    start: Literal["ppo", "none"] = "ppo"  # the drift of generation 0, for lpo and ta_lpo
    epsilon: float = 0.2  # PPO's clip at generation 0
    width: int = 128  # of the drift's hidden layer, for lpo and ta_lpo
    envs: tuple[str, ...] = ("CartPole-v1",)  # each trained in apart; their shaped fitness is averaged
    total_steps: int | None = 30_720  # environment steps in one life; None: as the distribution of worlds has it
    fitness_episodes: int | None = (
        None  # a life is judged by so many fresh ones; None: 64 if lifetimes vary, else as it trained
    )
    generations: int = 100  # steps of the search: generations, or meta-gradients
    evaluate_every: int = 10  # generations between evaluations of the mean
    evaluation_seeds: int = 16  # lives per evaluation and environment
    checkpoint_every: int = 10  # generations
    seed: int = 0
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
        if self.start not in ("ppo", "none"):
            raise ValueError(f"start must be 'ppo' or 'none', and is {self.start!r}.")
        if self.method not in ("evolution", "metagrad"):
            raise ValueError(f"method must be 'evolution' or 'metagrad', and is {self.method!r}.")
        if self.fitness_episodes is not None and self.fitness_episodes < 1:
            raise ValueError(f"fitness_episodes must be at least 1, or None, and is {self.fitness_episodes}.")
        if self.total_steps is not None:
            self.agent.num_updates(self.total_steps)

    def template(self) -> lo.Objective:
        """The objective of generation 0."""
        if self.objective in ("lpo", "ta_lpo"):
            drift = lo.LPO.create(
                purpose_key(self.seed, "template"),
                width=self.width,
                time_aware=self.objective == "ta_lpo",
                epsilon=self.epsilon if self.start == "ppo" else None,
            )
            return self.loss.on(lo.Mirror(drift=drift))
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


def quickstart() -> Recipe:
    """From no drift at all, in minutes on two cores.

    Eight epochs at a high learning rate are more than a policy gradient without a drift survives, and no trouble for PPO: there
    is something to discover, and a life of 40 updates shows it.
    """
    return Recipe(
        name="quickstart",
        start="none",
        width=32,
        envs=("CartPole-v1",),
        total_steps=20_480,
        generations=20,
        evaluate_every=4,
        evaluation_seeds=16,
        checkpoint_every=4,
        agent=AgentConfig(num_epochs=8, learning_rate=3e-3),
        evolution=EvolutionConfig(population=32, shared_keys="pair", sigma=0.15, learning_rate=0.05, chunk=4),
    )


def lpo_minatar() -> Recipe:
    """LPO on MinAtar, population 64, 800 generations, 1e7 steps a life: the scale of Goldie et al. 2025 (arXiv:2507.17668)."""
    return Recipe(
        name="lpo_minatar",
        envs=("Breakout-MinAtar", "Freeway-MinAtar"),
        total_steps=10_000_000,
        generations=800,
        learning_rates=(1e-2, 1e-3),
        agent=AgentConfig(num_envs=64, num_minibatches=8, activation="relu", network="mlp", adam_b2=0.99),
        loss=LossConfig(value_clip=0.2),
        evolution=EvolutionConfig(
            population=64,
            sigma=0.03,
            sigma_decay=0.99,
            sigma_floor=0.01,
            learning_rate=0.03,
            learning_rate_decay=0.99,
            learning_rate_floor=0.001,
        ),
    )


def lpo_brax() -> Recipe:
    """LPO on Ant, population 32, 1025 generations, 3e7 steps a life: the scale of Lu et al. 2022 (arXiv:2210.05639)."""
    return Recipe(
        name="lpo_brax",
        envs=("brax/ant",),
        total_steps=30_000_000,
        generations=1025,
        agent=AgentConfig(
            num_envs=2048,
            num_steps=10,
            num_starts=1,
            num_minibatches=32,
            learning_rate=3e-4,
            anneal=False,
            normalise_obs=True,
            normalise_reward=True,
        ),
        loss=LossConfig(gamma=0.97, entropy_coef=1e-2, value_coef=0.25),
        evolution=EvolutionConfig(
            population=32,
            shaping="z_score",
            sigma=0.04,
            sigma_decay=0.999,
            sigma_floor=0.01,
            learning_rate=0.01,
            learning_rate_decay=0.999,
            learning_rate_floor=0.001,
            adam_b1=0.99,
        ),
    )


def ta_lpo() -> Recipe:
    """TA-LPO on SpaceInvaders, as in Jackson et al. 2024 (arXiv:2402.05828).

    Its search settings are unpublished; these are those of `lpo_minatar`, by the same group.
    """
    base = lpo_minatar()
    return Recipe(
        name="ta_lpo",
        objective="ta_lpo",
        envs=("SpaceInvaders-MinAtar",),
        total_steps=base.total_steps,
        generations=base.generations,
        learning_rates=(7e-3,),
        agent=base.agent,
        evolution=base.evolution,
    )


GROOVE_LPG = LPGConfig(cell="gru", predictions=8, see_gamma=False)


def lpg() -> Recipe:
    """LPG by meta-gradient on the five tabular worlds, 960 lifetimes side by side, as in Oh et al. 2020 (arXiv:2007.08794)."""
    return Recipe(
        name="lpg",
        method="metagrad",
        objective="lpg",
        envs=("gridworld/tabular",),
        total_steps=None,
        generations=5000,
        evaluate_every=500,
        evaluation_seeds=64,
        checkpoint_every=50,
        agent=GRID.agent,
        loss=replace(GRID.loss, gamma=0.995),
        metagrad=MetaGradConfig(members=960, chunk=32, gamma=0.995, policy_target_coef=0.001),
    )


def groove() -> Recipe:
    """LPG with a curriculum of regret on random worlds, 512 lifetimes, as in Jackson et al. 2023 (arXiv:2310.02782)."""
    return replace(
        lpg(),
        name="groove",
        envs=("gridworld/all_shortlife",),
        loss=GRID.loss,
        lpg=GROOVE_LPG,
        metagrad=MetaGradConfig(members=512, chunk=32),
        curriculum=CurriculumConfig(kind="plr", chunk=16),
    )


def ta_lpg() -> Recipe:
    """TA-LPG by evolution on random worlds and lifetimes, population 1024, as in Jackson et al. 2024 (arXiv:2402.05828)."""
    return Recipe(
        name="ta_lpg",
        objective="ta_lpg",
        envs=("gridworld/all_vrandlife",),
        total_steps=None,
        generations=2500,
        evaluate_every=100,
        evaluation_seeds=64,
        checkpoint_every=10,
        agent=GRID.agent,
        loss=GRID.loss,
        lpg=GROOVE_LPG,
        evolution=EvolutionConfig(
            population=1024,
            shared_keys="pair",
            shaping="pairwise",
            sigma=0.1,
            learning_rate=1e-2,
            learning_rate_decay=0.999,
            learning_rate_floor=1e-5,
            adam_b1=0.99,
            chunk=32,
        ),
    )


def lpg_es() -> Recipe:
    """LPG by evolution, blind to time: `ta_lpg` without its two inputs, as Jackson et al. 2024 compare them."""
    return replace(ta_lpg(), name="lpg_es", objective="lpg")


def lpg_small() -> Recipe:
    """`lpg` for two cores: small random worlds, 32 lifetimes of 250 updates."""
    return replace(
        lpg(),
        name="lpg_small",
        envs=("gridworld/small",),
        generations=1000,
        evaluate_every=100,
        evaluation_seeds=16,
        loss=GRID.loss,
        lpg=LPGConfig(cell="gru", hidden=64, predictions=8),
        metagrad=MetaGradConfig(members=32, chunk=8, learning_rate=1e-3),
    )


def groove_small() -> Recipe:
    """`groove` for two cores: `lpg_small` with a curriculum of regret."""
    return replace(lpg_small(), name="groove_small", curriculum=CurriculumConfig(kind="plr", size=256))


def ta_lpg_small() -> Recipe:
    """`ta_lpg` for two cores: small random worlds, population 32, lifetimes of 10 to 250 updates."""
    base = ta_lpg()
    return replace(
        base,
        name="ta_lpg_small",
        envs=("gridworld/small_vrandlife",),
        generations=300,
        evaluate_every=30,
        evaluation_seeds=16,
        lpg=LPGConfig(cell="gru", hidden=64, predictions=8),
        evolution=replace(base.evolution, population=32, chunk=2),
    )


def lpg_es_small() -> Recipe:
    """`lpg_es` for two cores: `ta_lpg_small` without its two inputs."""
    return replace(ta_lpg_small(), name="lpg_es_small", objective="lpg")


RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe
    for recipe in (
        *(quickstart, lpo_minatar, lpo_brax, ta_lpo),
        *(lpg, groove, ta_lpg, lpg_es),
        *(lpg_small, groove_small, ta_lpg_small, lpg_es_small),
    )
}


def get(name: str) -> Recipe:
    """A recipe by name; ValueError with the nearest one if there is none."""
    if name in RECIPES:
        return RECIPES[name]()
    raise unknown("recipe", name, RECIPES)
