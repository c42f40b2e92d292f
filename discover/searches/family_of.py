"""The family of whatever a recipe is given as its objective: a name, a path, a class, an instance, or a function."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

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
from discover.names import OWN_BY_PATH, unknown
from discover.plugins import blame, is_ours, require_defaults
from discover.searches.families import OBJECTIVES, LPGConfig, LPOConfig, SoftClipConfig, TunedPPOConfig
from discover.searches.family import FAMILIES, ObjectiveConfig
from envs import plugs


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
    if type(spec) is lo.Mirror or isinstance(spec, lo.ScheduledMirror):
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
