"""The settings of a search for programs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from discover.searches.config import SearchConfig
from envs import plugs

BYTES_PER_MEMBER = 2**13  # more than the line of the longest program


@dataclass(frozen=True)
class ProgramsConfig(SearchConfig):
    """Regularised evolution over programs, each judged by whole lives beside PPO's."""

    children: int = 15  # programs that a generation trains; PPO is trained beside them in the same tasks
    population: int = 32  # newest programs with a score, among which parents are drawn; the oldest leaves
    tournament: int = 4  # members that a parent is the best of
    lives: int = 1  # agents trained per program and environment, each from another key
    hurdle: float = (
        0.5  # share of PPO's return in the first environment that a program needs to enter the others; 0: none
    )
    proposer: str = "mutation"  # who writes programs: mutation, random, replay:FILE, or yours as module:function
    asks: int = 40  # most calls of the proposer in a generation, until there are enough programs
    variants: int = 0  # other constants that are tried for the best programs of a generation; 0: none
    varied: int = 4  # programs of a generation whose constants are varied, the best ones first
    spread: float = 0.3  # standard deviation of the log of what constants are multiplied by
    patience: float = 60.0  # seconds that a call of the proposer may take
    archive: str = ""  # a file of JSON Lines that is written after each generation; empty: none
    archive_bytes: int = 2**21  # of the archive in a checkpoint

    unit: ClassVar[str] = "programs"

    def __post_init__(self):
        for name in ("children", "population", "tournament", "lives", "varied", "asks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, and is {getattr(self, name)}.")
        if not 0 <= self.hurdle <= 1:
            raise ValueError(f"hurdle must be in [0, 1], and is {self.hurdle}.")
        if self.variants < 0:
            raise ValueError(f"variants must be at least 0, and is {self.variants}.")
        if not 0 < self.spread < math.inf:
            raise ValueError(f"spread must be positive and finite, and is {self.spread}.")
        if not 0 < self.patience < math.inf:
            raise ValueError(f"patience must be positive and finite, in seconds, and is {self.patience}.")
        if self.archive_bytes < (least := BYTES_PER_MEMBER * (self.population + 1)):
            raise ValueError(
                f"archive_bytes must be at least {least} for a population of {self.population}, and is {self.archive_bytes}."
            )
        self.check_chunk()
        plugs.resolve("discover.searches.proposers:require_proposer")(self.proposer)

    @property
    def items(self) -> int:
        return self.children + 1

    @property
    def lives_per_item(self) -> int:
        return self.lives

    def build(self, problem):
        return plugs.resolve("discover.searches.program_search:ProgramSearch")(self, problem)
