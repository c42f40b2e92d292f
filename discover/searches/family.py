"""A family of objectives: the settings from which a search makes the objective of generation 0, whose leaves it searches."""

from __future__ import annotations

from dataclasses import dataclass

import jax

import learned_objectives as lo
from discover.agents.setups import LossConfig
from discover.plugins import Registry
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
        return plugs.resolve("discover.searches.family_of:objective_config")(kind, before)

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


_BASES = (ObjectiveConfig, lo.Drift, lo.Objective)
FAMILIES = Registry(
    "objectives",
    "objective",
    {
        "lpo": "discover.searches.families:LPOConfig",
        "lpg": "discover.searches.families:LPGConfig",
        "soft_clip": "discover.searches.families:SoftClipConfig",
        "tuned_ppo": "discover.searches.families:TunedPPOConfig",
        "program": "discover.searches.program_family:ProgramConfig",
        "formula": "discover.searches.families:FormulaConfig",
        "own": "discover.searches.family_of:OwnObjective",
    },
    "a drift, an objective, a discover.ObjectiveConfig, or a function of a key",
    lambda plug: issubclass(plug, _BASES) if isinstance(plug, type) else isinstance(plug, _BASES) or callable(plug),
)
