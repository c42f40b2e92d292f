"""The families of objectives that we have: networks, update rules, soft clips, PPO's own settings, and closed forms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

import learned_objectives as lo
from discover.agents.objectives import as_arrays, resolve_objective
from discover.agents.setups import LossConfig
from discover.console import advise
from discover.searches import imitation
from discover.searches.family import ObjectiveConfig
from discover.searches.program_family import ProgramConfig


def _require_positive(epsilon: float) -> None:
    if not 0 < epsilon < math.inf:
        raise ValueError(f"objective.epsilon must be positive and finite, and is {epsilon}.")


def _require_start(start: Any, expected: str) -> None:
    if not isinstance(start, str) or not start:
        raise ValueError(f"objective.start must be {expected}, and is {start!r}.")


@dataclass(frozen=True)
class LPOConfig(ObjectiveConfig):
    """A drift that is a small network: LPO, or TA-LPO if it is time-aware."""

    time_aware: bool = False  # whether n/N of the life is an input
    start: str = "ppo"  # generation 0: ppo, none, or the name or file of an earlier result
    epsilon: float = 0.2  # PPO's clip at generation 0, where the start is ppo
    width: int = 128  # of the hidden layer, where the start is ppo or none

    def __post_init__(self):
        _require_start(self.start, "'ppo', 'none', or the name or file of an LPO")
        _require_positive(self.epsilon)
        if self.width < 1:
            raise ValueError(f"objective.width must be at least 1, and is {self.width}.")

    @property
    def keeps_copy(self) -> bool:
        return self.start not in ("ppo", "none")

    def template(self, key: jax.Array, loss: LossConfig) -> lo.Objective:
        return loss.on(lo.Mirror(drift=self._found() if self.keeps_copy else self._fresh(key)))

    def _fresh(self, key: jax.Array) -> lo.LPO:
        epsilon = self.epsilon if self.start == "ppo" else None
        return lo.LPO.create(key, width=self.width, time_aware=self.time_aware, epsilon=epsilon)

    def _found(self) -> lo.LPO:
        try:
            found = resolve_objective(self.start)
        except ValueError as error:
            raise ValueError(f"objective.start is neither 'ppo' nor 'none', and no LPO found before: {error}") from None
        drift = found.drift if isinstance(found, lo.Mirror) else None
        if not isinstance(drift, lo.LPO):
            raise ValueError(
                f"objective.start must be 'ppo', 'none', or an LPO found before, and {self.start} holds something else."
            )
        if drift.time_aware and not self.time_aware:
            raise ValueError(f"{self.start} is time-aware, and an lpo is not: search a ta_lpo from it.")
        return drift.timed() if self.time_aware else drift


@dataclass(frozen=True)
class LPGConfig(ObjectiveConfig):
    """An LPG, or a TA-LPG if it is time-aware."""

    time_aware: bool = False  # whether n/N and log N of the life are inputs
    cell: Literal["lstm", "gru"] = "lstm"  # of the recurrent network
    hidden: int = 256  # of the recurrent state
    predictions: int = 30  # M, symbols that agents predict
    see_gamma: bool = True  # whether the discount is an input; GROOVE has none
    prediction_coef: float = 0.5  # alpha_y, of the agent's prediction loss
    start: str = "random"  # generation 0: random, a2c (taught its targets), or the name or file of an earlier result

    def __post_init__(self):
        _require_start(self.start, "'random', 'a2c', or the name or file of an LPG")
        if self.cell not in ("lstm", "gru"):
            raise ValueError(f"objective.cell must be 'lstm' or 'gru', and is {self.cell!r}.")
        for name in ("hidden", "predictions"):
            if getattr(self, name) < 1:
                raise ValueError(f"objective.{name} must be at least 1, and is {getattr(self, name)}.")
        if self.start == "a2c" and self.predictions < imitation.FEWEST:
            raise ValueError(
                f"objective.predictions must be at least {imitation.FEWEST} for a start at A2C, whose values they "
                f"stand for, and is {self.predictions}."
            )
        if not math.isfinite(self.prediction_coef):
            raise ValueError(f"objective.prediction_coef must be finite, and is {self.prediction_coef}.")

    def template(self, key: jax.Array, loss: LossConfig) -> lo.Objective:
        sizes = {name: value for name, value in vars(self).items() if name != "start"}
        if self.start not in ("random", "a2c"):
            return self._found(sizes).replace(gamma=loss.gamma, prediction_coef=self.prediction_coef)
        if self.start == "a2c":
            return _taught(self, loss.gamma, key)
        return lo.LPG.create(key, gamma=loss.gamma, **sizes)

    @property
    def keeps_copy(self) -> bool:
        return self.start != "random"

    def _found(self, sizes: Mapping[str, Any]) -> lo.LPG:
        found = _earlier(self.start, "'random', 'a2c'", "LPG")
        if not isinstance(found, lo.LPG):
            raise ValueError(
                f"objective.start must be 'random', 'a2c', or an LPG found before, and {self.start} holds something else."
            )
        for name in ("cell", "hidden", "predictions", "see_gamma", "time_aware"):
            if getattr(found, name) != sizes[name]:
                raise ValueError(
                    f"{self.start} is an LPG with {name} {getattr(found, name)}, and objective.{name} is {sizes[name]}: give the "
                    "same."
                )
        return found


def _earlier(start: str, others: str, kind: str) -> lo.Objective:
    """An earlier result by its name or file; an unknown name is answered with what else a start may be."""
    try:
        return resolve_objective(start)
    except ValueError as error:
        raise ValueError(f"objective.start is neither {others}, nor an {kind} found before: {error}") from None


_lessons: dict[Any, lo.LPG] = {}  # a search makes its template several times, as for a dry run or to fit memory


def _taught(config: LPGConfig, gamma: float, key: jax.Array) -> lo.LPG:
    """An LPG of these sizes after supervised learning to A2C's targets."""
    known = config, gamma, jax.random.key_data(key).tobytes()
    if known not in _lessons:
        fresh_key, teach_key, test_key = jax.random.split(key, 3)
        sizes = {name: value for name, value in vars(config).items() if name != "start"}
        _lessons[known] = imitation.imitate_a2c(lo.LPG.create(fresh_key, gamma=gamma, **sizes), teach_key)
        share = float(imitation.explained(_lessons[known], test_key))
        if not share > imitation.CLOSE:
            advise(
                f"This LPG explains {share:.3f} of the variance of A2C's targets, less than {imitation.CLOSE}: it does not start "
                "as A2C. Give it more hidden units (--objective.hidden)."
            )
    return _lessons[known]


@dataclass(frozen=True)
class FormulaConfig(ObjectiveConfig):
    """A closed form, whose few numbers are searched."""

    name: Literal["ppo", "dpo", "mdpo"] = "ppo"  # which
    epsilon: float = 0.2  # PPO's clip at generation 0

    def __post_init__(self):
        if self.name not in ("ppo", "dpo", "mdpo"):
            raise ValueError(f"objective.name must be ppo, dpo or mdpo, and is {self.name!r}.")
        _require_positive(self.epsilon)

    def template(self, key: jax.Array, loss: LossConfig) -> lo.Objective:
        if self.name == "ppo":
            return loss.on(lo.Mirror(drift=lo.Clip(jnp.float32(self.epsilon))))
        return as_arrays(loss.on(lo.load(self.name)))


@dataclass(frozen=True)
class SoftClipConfig(ObjectiveConfig):
    """A drift of twelve numbers that begins as PPO: widths, slopes and softness of a clip for each sign of the advantage."""

    time_aware: bool = False  # whether each number also depends on n/N and log10 N
    sees_statistics: bool = False  # and on KL, entropy, explained variance and clipped share of the agent's last update
    schedules: bool = False  # search four more numbers: entropy and value weights, lambda and the value clip
    start: str = "ppo"  # generation 0: ppo, or the name or file of an earlier result
    epsilon: float = 0.2  # PPO's clip at generation 0, where the start is ppo

    def __post_init__(self):
        _require_start(self.start, "'ppo', or the name or file of a SoftClip")
        _require_positive(self.epsilon)

    @property
    def keeps_copy(self) -> bool:
        return self.start != "ppo"

    def template(self, key: jax.Array, loss: LossConfig) -> lo.Objective:
        drift = self._found() if self.keeps_copy else self._fresh()
        return loss.on(scheduled(drift, self, loss) if self.schedules else lo.Mirror(drift=drift))

    def _fresh(self) -> lo.SoftClip:
        return lo.SoftClip.create(
            time_aware=self.time_aware, sees_statistics=self.sees_statistics, epsilon=self.epsilon
        )

    def _found(self) -> lo.SoftClip:
        found = _earlier(self.start, "'ppo'", "SoftClip")
        drift = found.drift if isinstance(found, lo.Mirror) else None
        if isinstance(found, lo.ScheduledMirror):
            raise ValueError(
                f"{self.start} holds a drift with schedules, and a search starts from a drift alone: save its drift "
                "(learned_objectives.save(objective.drift, path)) and start from that."
            )
        if not isinstance(drift, lo.SoftClip):
            raise ValueError(
                f"objective.start must be 'ppo' or a SoftClip found before, and {self.start} holds something else."
            )
        for name in ("time_aware", "sees_statistics"):
            if getattr(drift, name) and not getattr(self, name):
                raise ValueError(f"{self.start} is a SoftClip with {name}: give objective.{name} as well.")
        return drift.extended(time_aware=self.time_aware, sees_statistics=self.sees_statistics)


@dataclass(frozen=True)
class TunedPPOConfig(ObjectiveConfig):
    """PPO whose settings are searched: the width of the clip for each sign of the advantage, the weights of entropy and value,
    lambda, and the value clip. Six numbers. A drift is compared with it after searches of equal cost."""

    time_aware: bool = False  # whether the last four also depend on n/N and log10 N
    sees_statistics: bool = False  # and on KL, entropy, explained variance and clipped share of the agent's last update
    epsilon: float = 0.2  # PPO's clip at generation 0

    def __post_init__(self):
        _require_positive(self.epsilon)

    def template(self, key: jax.Array, loss: LossConfig) -> lo.Objective:
        return loss.on(as_arrays(scheduled(lo.AsymmetricClip(epsilon=self.epsilon), self, loss)))


def scheduled(drift: lo.Drift, config: SoftClipConfig | TunedPPOConfig, loss: LossConfig) -> lo.ScheduledMirror:
    """The ScheduledMirror of a drift, with the inputs that a family has. It advises where a number has no effect."""
    idle = {
        "entropy_coef": loss.entropy_coef == 0,
        "value_coef": loss.value_coef == 0,
        "gae_lambda": loss.gae_lambda == 1,
        "value_clip": loss.value_clip is None,
    }
    if any(idle.values()):
        names = " and ".join(f"loss.{name}" for name in idle if idle[name])
        advise(
            f"The search cannot move {names}, which it multiplies: {'they are' if sum(idle.values()) > 1 else 'it is'} off."
        )
    return lo.ScheduledMirror.create(drift, time_aware=config.time_aware, sees_statistics=config.sees_statistics)


OBJECTIVES: dict[str, ObjectiveConfig] = {
    "lpo": LPOConfig(),
    "ta_lpo": LPOConfig(time_aware=True),
    "lpg": LPGConfig(),
    "ta_lpg": LPGConfig(time_aware=True),
    "soft_clip": SoftClipConfig(),
    "ta_soft_clip": SoftClipConfig(time_aware=True),
    "tuned_ppo": TunedPPOConfig(),
    "program": ProgramConfig(),
    **{name: FormulaConfig(name) for name in ("ppo", "dpo", "mdpo")},
}
