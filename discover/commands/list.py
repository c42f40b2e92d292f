"""`discover list`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro

from discover.console import print_line
from discover.runs.recipes import RECIPES


@dataclass(frozen=True)
class List:
    """What there is: objectives, environments and recipes.

    Example: discover list envs
    """

    what: tyro.conf.Positional[Literal["all", "objectives", "envs", "recipes"]] = "all"  # one kind, a name on each line


def run(args: List) -> None:
    if args.what == "all":
        _everything()
    else:
        for line in {"objectives": _objectives, "envs": _environments, "recipes": _recipes}[args.what]():
            print_line(line)


def _everything() -> None:
    print_line("objectives\n  " + "  ".join(_objectives()))
    print_line("recipes")
    for line in _recipes():
        print_line(f"  {line}")
    print_line("environments")
    groups: dict[str, list[str]] = {}
    for name in _environments():
        groups.setdefault(name.split("/")[0] if "/" in name else name.rsplit("-", 1)[-1], []).append(name)
    for names in groups.values():
        print_line("  " + "  ".join(names))


def _objectives() -> list[str]:
    import learned_objectives as lo

    return list(lo.available())


def _environments() -> list[str]:
    import envs

    return list(envs.available())


def _recipes() -> list[str]:
    return [f"{name:<12} {(recipe.__doc__ or '').splitlines()[0]}" for name, recipe in RECIPES.items()]
