"""`discover recipe`."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from discover import config
from discover.console import print_line
from discover.runs.recipes import RECIPES, get
from discover.searches.recipe import Recipe


@dataclass(frozen=True)
class ShowRecipe:
    """Print a recipe as TOML, a file for `discover meta-train --config FILE`.

    Example: discover recipe lpo_small > mine.toml
    """

    name: tyro.conf.Positional[str]  # of a recipe (`discover list recipes`)


def run(args: ShowRecipe) -> None:
    print_line(as_toml(args.name))


def as_toml(name: str) -> str:
    """The recipe of a name, for a file that meta-train reads without a name."""
    summary = (RECIPES[name].__doc__ or "").splitlines()[0] if name in RECIPES else ""
    head = f"{name}: {summary}\nRun it with: discover meta-train --config FILE --out DIRECTORY"
    return config.to_toml(get(name), Recipe(), head).rstrip("\n")
