"""The flags of the command line, read off the sources of the classes whose fields they are: nothing heavy is imported."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

COMMANDS = {  # the module and the class of each one's arguments
    "quickstart": ("commands/quickstart", "Quickstart"),
    "list": ("commands/list", "List"),
    "recipe": ("commands/recipe", "ShowRecipe"),
    "train": ("commands/train", "Train"),
    "meta-train": ("commands/meta_train", "MetaTrain"),
    "resume": ("commands/meta_train", "Resume"),
    "evaluate": ("commands/evaluate", "Evaluate"),
    "distil": ("commands/distil", "Distil"),
    "export": ("commands/export", "Export"),
    "plot": ("commands/plot", "Plot"),
    "completion": ("commands/completion", "Completion"),
}
SETTINGS = {  # classes whose fields are flags with a prefix, and their modules
    "AgentConfig": "agents/config",
    "CurriculumConfig": "searches/curriculum",
    "EvolutionConfig": "searches/evolution",
    "FormulaConfig": "searches/families",
    "LPGConfig": "searches/families",
    "LPOConfig": "searches/families",
    "LossConfig": "agents/setups",
    "MapElitesConfig": "searches/map_elites",
    "MetaGradConfig": "searches/metagrad",
    "ObjectiveConfig": "searches/family",
    "PBTConfig": "searches/pbt",
    "ProgramConfig": "searches/program_family",
    "ProgramsConfig": "searches/programs",
    "Recipe": "searches/recipe",
    "RollingConfig": "searches/rolling_search",
    "SearchConfig": "searches/config",
    "SoftClipConfig": "searches/families",
    "WholeLifeConfig": "searches/whole_life",
}
FAMILIES = {  # settings that may be of several classes; --search or --objective chooses the class, or names one of the user's
    "ObjectiveConfig": ("LPOConfig", "LPGConfig", "SoftClipConfig", "ProgramConfig", "FormulaConfig"),
    "SearchConfig": (
        *("EvolutionConfig", "RollingConfig", "MetaGradConfig", "ProgramsConfig"),
        *("WholeLifeConfig", "PBTConfig", "MapElitesConfig"),
    ),
}


@cache
def flags(command: str) -> dict[str, bool]:
    """The flags of a command, as they are spelled with hyphens, and whether each takes a value."""
    return {f"--{name}".replace("_", "-"): takes_value for name, takes_value in _fields(*COMMANDS[command])}


def unrecognised(command: str, words: list[str]) -> str | None:
    """The first flag among the words that the command does not have."""
    known = {*flags(command), "--help", "--"}
    given = (word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--"))
    return next((flag for flag in given if flag not in known and not flag.startswith(_of_plugs(words))), None)


def _of_plugs(words: list[str]) -> tuple[str, ...]:
    """The prefixes of flags that are fields of a user's class: those of --search and --objective where a path follows."""
    given = [part for word in words for part in word.split("=", 1)]
    return tuple(
        f"{flag}." for flag, value in itertools.pairwise(given) if flag in ("--search", "--objective") and ":" in value
    )


def renamed(flag: str) -> str | None:
    """The flag that has taken the place of one of version 0.1."""
    part, dot, field = flag.removeprefix("--").partition(".")
    if dot and part in ("evolution", "metagrad"):
        return f"--search.{ {'lateness': 'late-window-weight'}.get(field, field) }"
    if (dot and part == "lpg") or part in ("start", "epsilon", "width"):
        return f"--objective.{field or part}"
    return {"method": "--search", "evolution": "--search", "metagrad": "--search", "lpg": "--objective"}.get(part)


def _fields(module: str, name: str) -> Iterator[tuple[str, bool]]:
    """(field, whether it takes a value) of a class and of the settings within it."""
    definition = _class(module, name)
    for base in (ast.unparse(base) for base in definition.bases):
        if base in SETTINGS:
            yield from _fields(SETTINGS[base], base)
    for node in definition.body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        field, kind = node.target.id, ast.unparse(node.annotation)
        if kind.startswith("ClassVar"):
            continue
        settings = next((each for each in SETTINGS if re.search(rf"\b{each}\b", kind)), None)
        if settings is not None:
            prefix = "" if "name=''" in kind else f"{field}."
            if settings in FAMILIES:
                yield field, True
            for kind in FAMILIES.get(settings, (settings,)):
                for inner, takes_value in _fields(SETTINGS[kind], kind):
                    yield prefix + inner, takes_value
        elif kind == "bool":
            yield from ((field, False), (f"no-{field}", False))
        elif "Positional" not in kind:
            yield field, True


@cache
def _class(module: str, name: str) -> ast.ClassDef:
    tree = ast.parse((Path(__file__).parent / f"{module}.py").read_text())
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
