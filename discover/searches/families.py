"""Families of objectives: the settings from which a search makes the objective of generation 0, whose leaves it searches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp

import learned_objectives as lo
from discover.agents.objectives import (
    as_arrays,
    as_tuples,
    checked,
    fingerprint,
    made_by,
    require_made,
    require_objective,
    resolve_objective,
    static_fields,
)
from discover.agents.setups import LossConfig
from discover.console import advise
from discover.names import OWN_BY_PATH, unknown
from discover.plugins import Registry, blame, is_ours, require_defaults
from discover.searches import imitation
from envs import plugs


@dataclass(frozen=True)
class ObjectiveConfig:
    """A family of objectives: the base of every one. A user's family subclasses it, and its fields are flags."""

    @classmethod
    def of_kind(cls, kind: str) -> type[ObjectiveConfig]:
        found = FAMILIES.require(kind)
        if not (isinstance(found, type) and issubclass(found, ObjectiveConfig)):
            raise ValueError(
                f"{kind} must be a subclass of discover.ObjectiveConfig, and is {found!r} ({plugs.where(found)})."
            )
        return found

    @classmethod
    def choice(cls, kind: str, before: ObjectiveConfig) -> type[ObjectiveConfig] | ObjectiveConfig:
        """What the key `kind` of a file names: a class of settings, or the settings of whatever else `--objective` takes."""
        found = FAMILIES.get(kind)
        if isinstance(found, type) and issubclass(found, ObjectiveConfig):
            return found
        return objective_config(kind, before)

    @property
    def kind(self) -> str:
        return FAMILIES.name_of(type(self))

    @property
    def keeps_copy(self) -> bool:
        """Whether a run must keep a copy of the template, because these settings alone may not make it again."""
        return False

    def template(self, key: jax.Array, loss: LossConfig) -> lo.Objective:
        """The objective of generation 0. `loss`: what belongs to the environment rather than to the objective."""
        raise NotImplementedError


@dataclass(frozen=True)
class LPOConfig(ObjectiveConfig):
    """A drift that is a small network: LPO, or TA-LPO if it is time-aware."""

    time_aware: bool = False  # whether n/N of the life is an input
    start: str = "ppo"  # generation 0: ppo, none, or the name or file of an earlier result
    epsilon: float = 0.2  # PPO's clip at generation 0, where the start is ppo
    width: int = 128  # of the hidden layer, where the start is ppo or none

    def __post_init__(self):
        if not isinstance(self.start, str) or not self.start:
            raise ValueError(
                f"objective.start must be 'ppo', 'none', or the name or file of an LPO, and is {self.start!r}."
            )
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"objective.epsilon must be positive and finite, and is {self.epsilon}.")
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
        if not isinstance(self.start, str) or not self.start:
            raise ValueError(
                f"objective.start must be 'random', 'a2c', or the name or file of an LPG, and is {self.start!r}."
            )
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
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"objective.epsilon must be positive and finite, and is {self.epsilon}.")

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
        if not isinstance(self.start, str) or not self.start:
            raise ValueError(
                f"objective.start must be 'ppo', or the name or file of a SoftClip, and is {self.start!r}."
            )
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"objective.epsilon must be positive and finite, and is {self.epsilon}.")

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
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"objective.epsilon must be positive and finite, and is {self.epsilon}.")

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


@dataclass(frozen=True)
class OwnObjective(ObjectiveConfig):
    """A user's objective or drift, by the import path of its class, or of a function `key -> objective`."""

    path: str  # package.module:Attribute
    static: Mapping[str, Any] = field(default_factory=dict, hash=False)  # static fields of the class
    leaves: str = ""  # fingerprint of the leaves at generation 0, where they are not those that the path makes
    instance: Any = field(default=None, repr=False, compare=False, metadata={"recorded": False})

    def __post_init__(self):
        if not plugs.is_path(self.path):
            raise ValueError(f"objective.path must have the form package.module:Attribute, and is {self.path!r}.")
        static = {name: as_tuples(value) for name, value in self.static.items()}
        object.__setattr__(self, "static", static)

    @property
    def keeps_copy(self) -> bool:
        return True

    def template(self, key: jax.Array, loss: LossConfig) -> lo.Objective:
        made, place = self.instance, None
        if made is None:
            found = plugs.resolve(self.path)
            made, place = made_by(found, self.path, key, self.static), plugs.where(found)
            if self.leaves and fingerprint(made) != self.leaves:
                raise ValueError(
                    f"this recipe began with an instance of {self.path} whose numbers are not the default ones. It does not hold "
                    "these numbers: give the instance, or continue the run in its own directory, which has a copy."
                )
        return finished(made, self.path, loss, place)


def finished(made: Any, name: str, loss: LossConfig, where: str | None = None) -> lo.Objective:
    """Check what a user's code made, and return it as the objective of generation 0. `where`: the place of that code."""
    return loss.on(as_arrays(resolve_objective(checked(made, name, where=where))))


_BASES = (ObjectiveConfig, lo.Drift, lo.Objective)
FAMILIES = Registry(
    "objectives",
    "objective",
    {
        "lpo": LPOConfig,
        "lpg": LPGConfig,
        "soft_clip": SoftClipConfig,
        "tuned_ppo": TunedPPOConfig,
        "formula": FormulaConfig,
        "own": OwnObjective,
    },
    "a drift, an objective, a discover.ObjectiveConfig, or a function of a key",
    lambda plug: issubclass(plug, _BASES) if isinstance(plug, type) else isinstance(plug, _BASES) or callable(plug),
)
OBJECTIVES: dict[str, ObjectiveConfig] = {
    "lpo": LPOConfig(),
    "ta_lpo": LPOConfig(time_aware=True),
    "lpg": LPGConfig(),
    "ta_lpg": LPGConfig(time_aware=True),
    "soft_clip": SoftClipConfig(),
    "ta_soft_clip": SoftClipConfig(time_aware=True),
    "tuned_ppo": TunedPPOConfig(),
    **{name: FormulaConfig(name) for name in ("ppo", "dpo", "mdpo")},
}


def template_of(config: ObjectiveConfig, key: jax.Array, loss: LossConfig) -> lo.Objective:
    """The objective of generation 0. One from a user's family is checked."""
    if is_ours(type(config)):
        return config.template(key, loss)
    with blame(type(config), "template"):
        made = config.template(key, loss)
    require_made(made, config.kind, plugs.where(config))
    return finished(made, f"what {config.kind} makes", loss)


def objective_config(spec: Any, before: ObjectiveConfig | None = None) -> ObjectiveConfig:
    """The family of what a recipe is given as its objective.

    Args:
      spec: a family; one of `OBJECTIVES`; the path, registered or announced name of a family, class or function; an objective or
        a drift, or a class of them; or a function `key -> objective`.
      before: the family that is replaced. Its settings are kept where the new one has the same.

    Raises ValueError or TypeError, in a sentence with the file and the line of the user's class.
    """
    if isinstance(spec, str):
        return _named(spec, before)
    if isinstance(spec, ObjectiveConfig) or (isinstance(spec, type) and issubclass(spec, ObjectiveConfig)):
        return _family(spec, before)
    if isinstance(spec, lo.Mirror):
        return _own_instance(_drift_alone(spec))
    if isinstance(spec, lo.Drift | lo.Objective):
        return _own_instance(spec)
    if callable(spec):
        return OwnObjective(path=plugs.path_of(spec))
    raise TypeError(
        f"objective must be the name of a family ({', '.join(OBJECTIVES)}), a path package.module:Attribute, an objective or a "
        f"drift, or a function of a key that makes one, and is {spec!r}."
    )


def _named(name: str, before: ObjectiveConfig | None) -> ObjectiveConfig:
    if name in OBJECTIVES:
        wanted = OBJECTIVES[name]
        if type(before) is type(wanted) and isinstance(wanted, LPOConfig | LPGConfig | SoftClipConfig):
            return dataclasses.replace(before, time_aware=wanted.time_aware)
        return before if isinstance(before, TunedPPOConfig) and isinstance(wanted, TunedPPOConfig) else wanted
    if name not in FAMILIES or name in ("formula", "own"):
        own = (other for other in FAMILIES if other not in ("formula", "own"))
        raise unknown("objective", name, dict.fromkeys((*OBJECTIVES, *own)), OWN_BY_PATH)
    found = FAMILIES.require(name)
    if isinstance(found, ObjectiveConfig) or (isinstance(found, type) and issubclass(found, ObjectiveConfig)):
        return _family(found, before)
    path = name if plugs.is_path(name) else plugs.path_of(found)
    if isinstance(found, type) and issubclass(found, lo.Drift | lo.Objective):
        return OwnObjective(path=path, static=static_fields(made_by(found, path, jax.random.key(0), {})))
    return OwnObjective(path=path)


def _family(spec: Any, before: ObjectiveConfig | None) -> ObjectiveConfig:
    """A config, or one of this class with its defaults."""
    kind = spec if isinstance(spec, type) else type(spec)
    if "__dataclass_fields__" not in vars(kind):
        raise ValueError(f"{kind.__name__} must be a frozen dataclass: decorate it ({plugs.where(kind)}).")
    if kind.template is ObjectiveConfig.template:
        raise ValueError(f"{kind.__name__} lacks template ({plugs.where(kind)}).")
    if not isinstance(spec, type):
        return spec
    if before is not None and type(before) is kind:
        return before
    require_defaults(kind)
    with blame(kind, "the settings"):
        return kind()


def _own_instance(made: Any) -> OwnObjective:
    """The family of an instance, whose leaves are those of generation 0."""
    path, static = plugs.path_of(made), static_fields(checked(made, type(made).__name__))
    try:
        default = fingerprint(made_by(type(made), path, jax.random.key(0), static))
    except ValueError:  # its class needs more than the static fields
        default = None
    leaves = fingerprint(made)
    return OwnObjective(path, static, "" if leaves == default else leaves, made)


def _drift_alone(objective: lo.Mirror) -> lo.Drift:
    """The drift of a Mirror. `Recipe.loss` has the rest, so a Mirror with other settings than the defaults is refused."""
    require_objective(objective)
    if isinstance(objective, lo.ScheduledMirror):
        raise ValueError(
            "a search does not start from a ScheduledMirror: give the family 'tuned_ppo', or its drift and objective.schedules."
        )
    plain = lo.Mirror(drift=objective.drift)
    for name in (f.name for f in dataclasses.fields(plain) if f.name != "drift"):
        if getattr(objective, name) != getattr(plain, name):
            raise ValueError(
                f"the {name} of a search is that of Recipe.loss, and this Mirror has {getattr(objective, name)}: give the drift "
                f"alone, and loss=LossConfig({name}=...)."
            )
    return objective.drift
