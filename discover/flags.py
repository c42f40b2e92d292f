"""The flags of the command line, read off the sources of the classes whose fields they are: nothing heavy is imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

COMMANDS = {  # and their classes in cli.py
    "quickstart": "Quickstart",
    "list": "List",
    "train": "Train",
    "meta-train": "MetaTrain",
    "resume": "Resume",
    "evaluate": "Evaluate",
    "export": "Export",
    "plot": "Plot",
}
SETTINGS = {  # classes whose fields are flags with a prefix, and their modules
    "AgentConfig": "config",
    "CurriculumConfig": "curriculum",
    "EvolutionConfig": "evolution",
    "LPGConfig": "recipe",
    "LossConfig": "setups",
    "MetaGradConfig": "metagrad",
    "Recipe": "recipe",
}


@cache
def flags(command: str) -> dict[str, bool]:
    """The flags of a command, as they are spelled with hyphens, and whether each takes a value."""
    return {f"--{name}".replace("_", "-"): takes_value for name, takes_value in _fields("cli", COMMANDS[command])}


def unrecognised(command: str, words: list[str]) -> str | None:
    """The first flag among the words that the command does not have."""
    known = {*flags(command), "--help", "--"}
    given = (word.partition("=")[0] for word in words if word.startswith("--"))
    return next((flag for flag in given if flag.replace("_", "-") not in known), None)


def _fields(module: str, name: str) -> Iterator[tuple[str, bool]]:
    """(field, whether it takes a value) of a class and of the settings within it."""
    for node in _class(module, name).body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        field, kind = node.target.id, ast.unparse(node.annotation)
        settings = next((each for each in SETTINGS if re.search(rf"\b{each}\b", kind)), None)
        if settings is not None:
            prefix = "" if "name=''" in kind else f"{field}."
            for inner, takes_value in _fields(SETTINGS[settings], settings):
                yield prefix + inner, takes_value
        elif kind == "bool":
            yield from ((field, False), (f"no-{field}", False))
        elif "Positional" not in kind:
            yield field, True


@cache
def _class(module: str, name: str) -> ast.ClassDef:
    tree = ast.parse((Path(__file__).parent / f"{module}.py").read_text())
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
