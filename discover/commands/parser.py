"""tyro's parser, with one sentence for each mistake."""

from __future__ import annotations

import contextlib
import io
import itertools
import operator
import re
from typing import Any

import numpy as np
import tyro

from discover.settings import flatten
from envs import plugs


def parse(arguments: type, name: str, words: list[str], default: Any = None, usage: str | None = None) -> Any:
    """The arguments of a command. ValueError with one sentence where tyro prints a box of many lines.

    `usage`: the command as the help shows it, if that is not its name.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(arguments, prog=f"discover {usage or name}", args=words, default=default)
    except SystemExit as stop:
        if not stop.code:
            raise
        lines = [line.strip("│╭╮╰╯─ ") for line in said.getvalue().splitlines()[1:]]
        lines = ["" if set(line) == {"-"} else line for line in lines]  # the box, where output is not UTF-8
        sentence = " ".join(itertools.takewhile(bool, itertools.dropwhile(operator.not_, lines))).removesuffix(".")
        near = [line.split()[0] for line in _after("Perhaps you meant:", lines) if line.startswith("--")]
        hint = f" Perhaps you meant {' or '.join(near[:3])}." if near else ""
        raise ValueError(f"{_by_flag(sentence, default)}.{hint} {see(name)}") from None
    except Exception as error:
        if not plugs.is_raised_by_user(error):
            raise
        raise ValueError(f"the settings failed: {plugs.raised(error)}.") from error


def see(name: str) -> str:
    return f"See `discover {name} --help`."


def _by_flag(sentence: str, default: Any) -> str:
    """tyro names the part of the settings that refused one of its fields ("Error parsing agent: num_envs must"): the flag
    instead, where the sentence begins with a field."""
    found = re.match(r"Error parsing (\w+): (?:\1\.)?(\w+)(.*)", sentence)
    if found is None:
        return sentence
    part, name, rest = found.groups()
    is_field = hasattr(getattr(default, part, None), name)
    return f"--{part}.{name}".replace("_", "-") + rest if is_field else name + rest


def _after(mark: str, lines: list[str]) -> list[str]:
    """The lines of tyro's box after this one."""
    return lines[lines.index(mark) + 1 :] if mark in lines else []


def refuse_absurd(values: dict[str, Any]) -> None:
    """Numbers that no array can be sized or filled with. Steps and seeds say themselves what they may be."""
    for path, value in flatten(values).items():
        name = path.removeprefix("recipe.")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and number >= 2**31 and name not in ("total_steps", "seed"):
                raise ValueError(f"{name} must be less than 2^31, and is {number}.")
            if isinstance(number, float) and float(np.finfo(np.float32).max) < abs(number) < np.inf:
                raise ValueError(f"{name} must be less than 3.4e38, and is {number}.")


def peek(words: list[str], flag: str) -> str | None:
    """The value of a flag, before the parser has run."""
    for i, word in enumerate(words):
        if word.startswith(f"{flag}="):
            return word.split("=", 1)[1]
        if word == flag and i + 1 < len(words):
            return words[i + 1]
    return None
