"""Adapters of other suites of environments. Each is a module that is imported when one of its names is first made.

The module of a suite has one function,

    build(task: str, **options) -> environment

where `task` is the name without the prefix. The environment must pass `envs.check`; capabilities that it lacks get their defaults
(`envs.interface`). A suite of your own needs one call:

    envs.suites.register(
        envs.suites.Suite("kites/", "kites.adapter", tasks=("light", "heavy"), install="kites-rl")
    )
    env, params = envs.make("kites/light")
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from envs.interface import Capabilities, Named
from envs.spelling import did_you_mean

__all__ = ["Suite", "names", "of", "register"]


@dataclass(frozen=True)
class Suite:
    """Where the environments of one prefix come from."""

    prefix: str  # of its names, with the slash: "brax/"
    module: str  # the adapter
    tasks: tuple[str, ...]  # names without the prefix
    install: str  # what pip installs for it: a package, or an extra such as "discover-rl[brax]"
    option: str = ""  # an option that a name may end in, after "@": "backend"
    values: tuple[str, ...] = ()  # those that it may have; the first is the default
    left_out: Mapping[str, str] = field(default_factory=dict)  # name -> why it is not among `tasks`

    def __post_init__(self):
        if not self.prefix.endswith("/") or len(self.prefix) < 2:
            raise ValueError(
                f"the prefix of a suite must be a word and a slash, such as 'brax/', and is {self.prefix!r}."
            )
        if bool(self.option) != bool(self.values):
            raise ValueError(f"suite {self.prefix!r} must have both an option and its values, or neither.")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.prefix + task for task in self.tasks)

    def base(self, name: str) -> str:
        """The name without the value of its option: "brax/ant"."""
        return name.partition("@")[0] if self.option else name

    def full_name(self, name: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The name with the value of its option, "brax/ant@spring", and the options that are left."""
        options = dict(options)
        if not self.option:
            return name, options
        base, suffix = self.base(name), name.partition("@")[2]
        value = options.pop(self.option, None)
        if suffix and value and suffix != value:
            raise ValueError(f"{name!r} and {self.option}={value!r} ask for two different {self.option}s.")
        value = suffix or value or self.values[0]
        if value not in self.values:
            raise ValueError(
                f"Unknown {self.option} {value!r} for {base!r}{did_you_mean(value, self.values)} "
                f"The {self.option}s are {', '.join(self.values)}."
            )
        return f"{base}@{value}", options

    def build(self, name: str, options: Mapping[str, Any]) -> Any:
        """The environment of a full name. Raises ValueError where a package that its adapter imports is missing."""
        task, _, value = name.removeprefix(self.prefix).partition("@")
        chosen = {self.option: value} if self.option else {}
        try:
            env = importlib.import_module(self.module).build(task, **chosen, **options)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"{name!r} needs the package {error.name}, which is not installed: pip install '{self.install}'."
            ) from error
        return env if isinstance(env, Capabilities) and env.name == name else Named(env, name)


_suites: dict[str, Suite] = {}  # by prefix


def register(suite: Suite) -> None:
    """Let `envs.make` know the names of a suite. Raises ValueError where another suite has its prefix."""
    if _suites.get(suite.prefix, suite) != suite or suite.prefix in ("gridworld/", "probe/"):
        raise ValueError(f"the prefix {suite.prefix!r} is taken: choose another.")
    _suites[suite.prefix] = suite


def of(name: str) -> Suite | None:
    """The suite that a name belongs to by its prefix."""
    return _suites.get(f"{name.partition('/')[0]}/") if "/" in name else None


def names() -> tuple[str, ...]:
    """Of all suites."""
    return tuple(name for suite in _suites.values() for name in suite.names)


def left_out() -> dict[str, str]:
    """Names of the suites that `envs.make` refuses, and why."""
    return {name: why for suite in _suites.values() for name, why in suite.left_out.items()}


XLAND = {
    1: (9, 11, 13, 15, 17),
    2: (9, 11, 13, 15, 17),
    4: (9, 11, 13, 15, 17),
    6: (13, 17, 19),
    9: (16, 19, 25),
}  # sizes by rooms

register(
    Suite(
        prefix="brax/",
        module="envs.suites.brax",
        tasks=(
            "ant",
            "halfcheetah",
            "hopper",
            "humanoid",
            "humanoidstandup",
            "inverted_pendulum",
            "inverted_double_pendulum",
            "pusher",
            "reacher",
            "walker2d",
        ),
        install="brax>=0.14.1,<0.15",
        option="backend",
        values=("spring", "generalized", "positional", "mjx"),
        left_out={
            "brax/swimmer": (
                "brax 0.14 gives it the generalized and mjx backends only, and calls "
                "jnp.clip(a_min=...), which jax 0.10 removed"
            ),
            "brax/fast": "it is a stand-in for brax's own tests, without physics",
        },
    )
)

register(
    Suite(
        prefix="craftax/",
        module="envs.suites.craftax",
        tasks=("Classic-Symbolic", "Symbolic"),
        install="discover-rl[craftax]",
        left_out={
            f"craftax/{name}": "the adapter has symbolic observations only" for name in ("Classic-Pixels", "Pixels")
        },
    )
)

register(
    Suite(
        prefix="jumanji/",
        module="envs.suites.jumanji",
        tasks=(
            *("Game2048", "GraphColoring", "Minesweeper", "RubiksCube", "RubiksCube-partly-scrambled"),
            *(
                "SlidingTilePuzzle",
                "Sudoku",
                "Sudoku-very-easy",
                "BinPack",
                "FlatPack",
                "JobShop",
                "Knapsack",
                "Tetris",
            ),
            *("Cleaner", "CVRP", "Maze", "MMST", "Snake", "TSP"),
        ),
        install="discover-rl[jumanji]",
        left_out={
            "jumanji/Sokoban": "it downloads its levels when it is built",
            "jumanji/PacMan": "its observation has integers without bounds",
            "jumanji/RobotWarehouse": "its observation has integers without bounds",
            "jumanji/Connector": "it rewards each of its agents apart",
            "jumanji/LevelBasedForaging": "it rewards each of its agents apart",
            "jumanji/SearchAndRescue": "it rewards each of its agents apart",
            "jumanji/MultiCVRP": "its actions are bounded integers that are not a choice among options",
        },
    )
)

register(
    Suite(
        prefix="xminigrid/",
        module="envs.suites.xminigrid",
        tasks=(
            *(f"Empty{start}-{size}x{size}" for start in ("", "Random") for size in (5, 6, 8, 16)),
            *(f"DoorKey-{size}x{size}" for size in (5, 6, 8, 16)),
            *(f"MemoryS{size}" for size in (8, 16, 32, 64, 128)),
            *("FourRooms", "LockedRoom", "Playground", "Unlock", "UnlockPickUp", "BlockedUnlockPickUp"),
        ),
        install="discover-rl[xminigrid]",
        left_out={
            f"xminigrid/XLand-R{rules}-{size}x{size}": "it has no goal without rulesets, which xminigrid downloads"
            for rules, sizes in XLAND.items()
            for size in sizes
        },
    )
)

register(
    Suite(
        prefix="navix/",
        module="envs.suites.navix",
        tasks=(
            *(
                f"{room}{start}-{n}x{n}"
                for room in ("Empty", "DoorKey")
                for start in ("", "-Random")
                for n in (5, 6, 8, 16)
            ),
            *(f"KeyCorridorS{size}" for size in ("3R1", "3R2", "3R3", "4R3", "5R3", "6R3")),
            *(f"LavaGapS{size}" for size in (5, 6, 7)),
            *(f"SimpleCrossingS{size}" for size in ("9N1", "9N2", "9N3", "11N5")),
            *(f"Dynamic-Obstacles-{size}" for size in ("5x5", "5x5-Random", "6x6", "6x6-Random", "8x8", "16x16")),
            *(f"GoToDoor-{size}x{size}" for size in (5, 6, 8)),
            *("FourRooms", "DistShift1", "DistShift2"),
        ),
        install="discover-rl[navix]",
    )
)
