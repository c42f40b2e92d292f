"""The agent and loss settings an environment is usually learned with, tuned for PPO alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import envs
from discover.agents.config import AgentConfig, migrated_agent
from discover.console import advise
from discover.settings import rebuild
from learned_objectives import LPG, Disco, Mirror, Objective


@dataclass(frozen=True)
class LossConfig:
    """Loss settings that depend on the environment and not on the drift."""

    gamma: float = 0.99  # discount per step
    gae_lambda: float = 0.95  # of generalised advantages
    entropy_coef: float = 0.01  # weight of the entropy bonus
    value_coef: float = 0.5  # weight of the value loss
    value_clip: float | None = None  # of the value's change within an update; None: plain squares

    def __post_init__(self):
        for name in ("entropy_coef", "value_coef"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, and is {getattr(self, name)}.")
        if self.value_clip is not None and not self.value_clip > 0:
            raise ValueError(f"value_clip must be positive, or None, and is {self.value_clip}.")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], and is {getattr(self, name)}.")

    def on(self, objective: Objective) -> Objective:
        """The objective with these settings, if it has them. Objectives are compared under the same settings."""
        return objective.replace(**vars(self)) if isinstance(objective, Mirror) else objective


@dataclass(frozen=True)
class Setup:
    """How one environment is learned."""

    agent: AgentConfig = field(default_factory=AgentConfig)
    loss: LossConfig = field(default_factory=LossConfig)


def setup_of(record: Mapping[str, Any]) -> Setup:
    """The setup that `dataclasses.asdict` and JSON made this of, in this version or an earlier one."""
    return rebuild(Setup, dict(record) | {"agent": migrated_agent(record["agent"])})


def usual_setup(env: Any) -> Setup:
    """The setup for an environment by its name, and for one we do not know that of CartPole.

    An object of an environment that has a setup, "Pendulum-v1 (2)" by name, has the same.
    """
    env_name = re.sub(r" \(\d+\)$", "", envs.name_of(env))
    if env_name.startswith("brax/"):
        return BRAX_EASY if env_name.split("@")[0] in EASY else BRAX
    if env_name.startswith("gridworld/"):
        return SHUFFLED_GRID if env_name.startswith("gridworld/rand_") else GRID
    if env_name.endswith("-MinAtar"):
        return MINATAR
    return CONTINUOUS if env_name in CONTINUOUS_NAMES else CLASSIC


CONTINUOUS_NAMES = ("Pendulum-v1", "MountainCarContinuous-v0", "Reacher-misc", "Swimmer-misc", "PointRobot-misc")


# purejaxrl's, value clip included: without it two of eight CartPole agents end below the top.
CLASSIC = Setup(loss=LossConfig(value_clip=0.2))

# The sizes and rates at which purejaxrl's public numbers were made. An MLP, not a CNN, as in every published comparison of
# learned objectives on MinAtar.
MINATAR = Setup(
    AgentConfig(num_envs=64, num_minibatches=8, learning_rate=5e-3, activation="relu", network="mlp"),
    LossConfig(value_clip=0.2),
)

CONTINUOUS = Setup(
    AgentConfig(
        num_envs=16,
        num_steps=128,
        num_epochs=10,
        num_minibatches=8,
        learning_rate=1e-3,
        normalise_obs=True,
        normalise_reward=True,
    ),
    LossConfig(gamma=0.95, entropy_coef=0.0),
)

BRAX = Setup(
    AgentConfig(
        num_envs=256,
        num_steps=32,
        num_starts=1,  # a Brax reset costs more than a step, and its episodes outlast a rollout
        num_minibatches=8,
        learning_rate=3e-4,
        normalise_obs=True,
        normalise_reward=True,
    ),
    LossConfig(entropy_coef=0.0),
)

EASY = ("brax/inverted_pendulum", "brax/inverted_double_pendulum")
BRAX_EASY = Setup(
    AgentConfig(
        num_envs=64,
        num_steps=64,
        num_starts=4,  # an untrained pole falls several times a rollout
        num_minibatches=8,
        learning_rate=1e-3,
        normalise_obs=True,
        normalise_reward=True,
    ),
    LossConfig(entropy_coef=0.0),
)

# GROOVE's tabular agents: plain gradient descent at rates that only a table stands, one step per rollout. Its critic's rate is
# a tenth of the actor's.
GRID = Setup(
    AgentConfig(
        num_envs=64,
        num_steps=20,
        num_epochs=1,
        num_minibatches=1,
        optimizer="sgd",
        learning_rate=40.0,
        anneal=False,
    ),
    LossConfig(value_coef=0.1),
)

# Objects that move between cells have too many states for a table.
SHUFFLED_GRID = Setup(
    AgentConfig(
        num_envs=64,
        num_steps=20,
        num_epochs=1,
        num_minibatches=1,
        learning_rate=5e-4,
        anneal=False,
        activation="relu",
        network="mlp",
    )
)

# Learning rates at which update rules of LPG's family were searched (tables) and tried (networks).
LPG_RATES = {"sgd": GRID.agent.learning_rate, "adam": SHUFFLED_GRID.agent.learning_rate}


def warn_if_far(objective: Objective, config: AgentConfig) -> None:
    """Warn where an LPG has settings far from those of its family: more than one gradient step per rollout, or a learning rate
    over ten times as large or as small. A Disco takes one step per rollout too, with Adam."""
    if isinstance(objective, Disco):
        _warn_if_far_from_disco(config)
    if not isinstance(objective, LPG):
        return
    steps, rate, usual = (
        config.num_epochs * config.num_minibatches,
        config.learning_rate,
        LPG_RATES.get(config.optimizer),
    )
    far = []
    if steps > 1:
        far.append(
            f"it takes one gradient step per rollout, and these agents take {steps} (num_epochs, num_minibatches)"
        )
    if usual is None:
        far.append(f"its family was used with {' and '.join(LPG_RATES)}, and optimizer is {config.optimizer}")
    elif not 0.1 <= rate / usual <= 10.0:
        far.append(f"its family was used with {config.optimizer} at about {usual:g}, and learning_rate is {rate:g}")
    if far:
        advise(
            f"This LPG may not learn with these settings: {'; '.join(far)}. learned_objectives.card names the settings of its "
            "search."
        )


def _warn_if_far_from_disco(config: AgentConfig) -> None:
    steps = config.num_epochs * config.num_minibatches
    far = [f"it takes one gradient step per rollout, and these agents take {steps} (num_epochs, num_minibatches)"]
    far = (far if steps > 1 else []) + (["it was searched with adam"] if config.optimizer == "sgd" else [])
    if far:
        advise(f"This Disco may not learn with these settings: {'; '.join(far)}.")
