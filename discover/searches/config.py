"""The settings of outer loops: their base class, and the registry of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from discover.devices.plan import Plan
from discover.plugins import Registry, blame, require_defaults
from envs import plugs

SEARCHES = Registry(
    "searches",
    "search",
    {
        "evolution": "discover.searches.evolution:EvolutionConfig",
        "rolling": "discover.searches.rolling_search:RollingConfig",
        "metagrad": "discover.searches.metagrad:MetaGradConfig",
        "whole_life": "discover.searches.whole_life:WholeLifeConfig",
        "programs": "discover.searches.programs:ProgramsConfig",
        "pbt": "discover.searches.pbt:PBTConfig",
        "map_elites": "discover.searches.map_elites:MapElitesConfig",
    },
    "a subclass of discover.SearchConfig",
    lambda plug: isinstance(plug, type) and issubclass(plug, SearchConfig),
)


@dataclass(frozen=True)
class SearchConfig:
    """The settings of an outer loop: the base of every one."""

    chunk: int | Literal["auto"] | None = "auto"  # items side by side on a device; None: all of its share

    unit: ClassVar[str] = "candidates"  # what the items of a chunk are called
    candidates_per_item: ClassVar[int] = 1
    whole_chunks: ClassVar[bool] = (
        False  # whether every chunk must be full, so that its size divides the items of a device
    )
    whole_lives: ClassVar[bool] = True  # whether a step trains each candidate for whole lives
    times_programs: ClassVar[bool] = False  # whether a dry run measures the programs of a step, and not single updates

    @classmethod
    def of_kind(cls, kind: str) -> type[SearchConfig]:
        """The class of a name or path. ValueError, in a sentence, for one that is no `SearchConfig`."""
        return SEARCHES.require(kind)

    @classmethod
    def choice(cls, kind: str, before: SearchConfig) -> type[SearchConfig] | SearchConfig:
        """What the key `kind` of a file names: a class of settings."""
        return cls.of_kind(kind)

    @property
    def kind(self) -> str:
        return SEARCHES.name_of(type(self))

    @property
    def items(self) -> int:
        """How many items a step trains, which chunks are made of: candidates, or pairs of them."""
        raise NotImplementedError

    @property
    def lives_per_item(self) -> int:
        """Agents that an item trains side by side, in one environment."""
        return self.candidates_per_item

    def build(self, problem: Any) -> Any:
        """The `Search` of these settings, for a `Problem`."""
        raise NotImplementedError

    def check_chunk(self) -> None:
        if self.chunk is not None and self.chunk != "auto" and (isinstance(self.chunk, str) or self.chunk < 1):
            raise ValueError(f"search.chunk must be at least 1, 'auto' or None, and is {self.chunk!r}.")

    def usual_chunk(self, plan: Plan, *, fills_cache: bool) -> int | None:
        """The chunk that "auto" stands for, without a look at memory; the same on any number of devices.

        On CPUs eight candidates, as measured, and one item where a single life fills a core's cache. On other devices all items
        of a device's share. Where chunks must be whole, the largest divisor that is not more.
        """
        if plan.chunk is None:
            return None
        most = 1 if fills_cache else 2 * plan.chunk // self.candidates_per_item
        return largest_divisor(self.items, most) if self.whole_chunks else min(most, self.items)

    def evaluation_chunk(self, plan: Plan) -> int | None:
        """Lives of the mean that a device trains side by side."""
        return None if self.chunk == "auto" else self.chunk


def search_config(spec: Any, before: SearchConfig | None = None) -> SearchConfig:
    """The settings of what a recipe is given as its search: settings, a class of them, or the name or path of one.

    `before`: the settings that are replaced; they stay where the class is the same. Raises ValueError, in a sentence
    with the file and the line of the user's class.
    """
    if isinstance(spec, str):
        spec = SearchConfig.of_kind(spec)
    if isinstance(spec, type) and issubclass(spec, SearchConfig):
        kind = spec
        if type(before) is kind:
            spec = before
        else:
            if dataclasses.is_dataclass(kind):
                require_defaults(kind)
            with blame(kind, "the settings"):
                spec = kind()
    if not isinstance(spec, SearchConfig):
        raise ValueError(
            f"search must be a discover.SearchConfig or the name of one, {', '.join(SEARCHES)} or package.module:Class, and is "
            f"{spec!r}."
        )
    if not dataclasses.is_dataclass(type(spec)) or "__dataclass_fields__" not in vars(type(spec)):
        raise ValueError(f"{type(spec).__name__} must be a frozen dataclass: decorate it ({plugs.where(spec)}).")
    missing = [name for name in ("items", "build") if getattr(type(spec), name) is getattr(SearchConfig, name)]
    if missing:
        raise ValueError(f"{type(spec).__name__} lacks {' and '.join(missing)} ({plugs.where(spec)}).")
    spec.check_chunk()
    with blame(type(spec), "items"):
        items = spec.items
    if not isinstance(items, int) or items < 1:
        raise ValueError(f"items of {type(spec).__name__} must be at least 1, and is {items!r} ({plugs.where(spec)}).")
    return spec


def largest_divisor(count: int, most: int) -> int:
    return next(n for n in range(min(count, most), 0, -1) if count % n == 0)
