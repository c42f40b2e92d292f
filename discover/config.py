"""Settings, which are dataclasses, as TOML: written with the help of each field, and read over what is there."""

from __future__ import annotations

import collections.abc
import dataclasses
import json
import os
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from discover.flags import renamed
from discover.names import nearest
from discover.settings import KIND
from envs import plugs

NONE = "None"  # TOML has no null


def to_toml(settings: Any, base: Any, head: str = "") -> str:
    """A dataclass as TOML. `from_toml` with the same base gives it back.

    A field that is None has a commented-out line where it is None in the base too; otherwise it is the string "None".
    """
    lines = [f"# {line}".rstrip() for line in head.splitlines()] + [""] * bool(head)
    return "\n".join([*lines, *_lines(settings, base, "")]) + "\n"


def from_toml(text: str, base: Any) -> Any:
    """The base with what the text has. The type of a dataclass within the base decides which keys its table has.

    Raises ValueError, in a sentence, for what is not TOML, an unknown key, or a value of the wrong type.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        last = f"at line {max(len(text.splitlines()), 1)}, the last"
        raise ValueError(f"this is not TOML: {str(error).replace('at end of document', last)}.") from None
    except RecursionError:
        raise ValueError("this is not TOML that can be read: its lists are nested too deeply.") from None
    return _updated(base, values, "")


def read(path: str | os.PathLike, base: Any) -> Any:
    """As `from_toml`, from a file, which is named in each error."""
    try:
        return from_toml(read_text(path), base)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_text(path: str | os.PathLike) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError("this is not TOML: it is not UTF-8 text.") from None


def _lines(settings: Any, base: Any, table: str) -> Iterator[str]:
    """The plain fields, and after them the dataclasses, each a table."""
    same = base if type(base) is type(settings) else None
    nested = []
    if hasattr(type(settings), "of_kind"):
        yield f"{KIND} = {_literal(settings.kind, table + KIND)}"
    for field in _fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            nested.append((field.name, value))
            continue
        unset = value is None and getattr(same, field.name, field.default) is None
        line = f"{'# ' if unset else ''}{field.name} = {NONE if unset else _literal(value, table + field.name)}"
        comment = help_of(type(settings), field.name)
        yield f"{line}  # {comment}" if comment else line
    for name, value in nested:
        yield ""
        if summary := (type(value).__doc__ or "").strip().split("\n")[0]:
            yield f"# {summary}"
        yield f"[{table}{name}]"
        yield from _lines(value, getattr(same, name, None), f"{table}{name}.")


def help_of(kind: type, name: str) -> str:
    """The comment of a field."""
    from tyro._docstrings import get_field_docstring

    return " ".join((get_field_docstring(kind, name, ()) or "").split())


def _literal(value: Any, key: str) -> str:
    if value is None:
        return json.dumps(NONE)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{json.dumps(name)} = {_literal(each, key)}' for name, each in value.items())}}}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(_literal(each, key) for each in value)}]"
    raise ValueError(f"{key} is {value!r}, which TOML cannot hold: expected a number, a string, a list or a dataclass.")


def _updated(settings: Any, values: Mapping[str, Any], table: str) -> Any:
    """The settings with these values; a value of the settings that is a dataclass takes a table of its own."""
    settings, values = _of_kind(settings, values, table)
    hints = typing.get_type_hints(type(settings))
    changes = {}
    for name, value in values.items():
        key = table + name
        if name not in _names(settings):
            raise _unknown(key, settings, table, value)
        current = getattr(settings, name)
        if isinstance(value, str) and hasattr(type(current), "of_kind"):
            raise ValueError(f"{key} must be a table, and is {_shown(value)}: write {key}.{KIND} = {value!r}.")
        if dataclasses.is_dataclass(current) and isinstance(value, dict):
            changes[name] = _updated(current, value, f"{key}.")
        else:
            changes[name] = _converted(value, hints[name], key)
    try:
        return dataclasses.replace(settings, **changes)
    except ValueError as error:
        named = re.match(r"\w+", str(error))
        ours = named is not None and named[0] in _names(settings)
        raise ValueError(f"{table if ours else ''}{error}") from None
    except Exception as error:  # whatever a user's class raises
        raise ValueError(f"the settings of {plugs.where(type(settings))} failed: {plugs.raised(error)}") from error


def _of_kind(settings: Any, values: Mapping[str, Any], table: str) -> tuple[Any, Mapping[str, Any]]:
    """The settings that the key `kind` names, where settings may be of several classes; and the other values."""
    if not hasattr(type(settings), "of_kind") or KIND not in values:
        return settings, values
    rest = {name: value for name, value in values.items() if name != KIND}
    name = _converted(values[KIND], str, table + KIND)
    try:
        found = type(settings).choice(name, settings)
    except ValueError as error:
        raise ValueError(f"{table}{KIND}: {error}") from None
    if not isinstance(found, type):
        return found, rest
    return settings if found is type(settings) else _made(found, name, rest, table), rest


def _made(kind: type, name: str, values: Mapping[str, Any], table: str) -> Any:
    """The settings of a class: its defaults, and the values of fields that have none."""
    needed = [f.name for f in _fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [each for each in needed if each not in values]:
        raise ValueError(f"the key {table}{missing[0]} is missing: {KIND} = {name!r} needs it.")
    hints = typing.get_type_hints(kind)
    given = {each: _converted(values[each], hints[each], table + each) for each in needed}
    try:
        return kind(**given)
    except ValueError:
        raise
    except Exception as error:  # whatever the user's class raises
        raise ValueError(f"the settings of {plugs.where(kind)} failed: {plugs.raised(error)}") from error


def _unknown(key: str, settings: Any, table: str, value: Any) -> ValueError:
    name = key.removeprefix(table)
    old = f"{key}.{next(iter(value))}" if isinstance(value, dict) and value else key
    if new := _renamed(old, settings):
        return ValueError(f"unknown key {old}, which is of version 0.1: write {new}.")
    if near := nearest(name, _names(settings)) or nearest(name, _paths(settings)):
        return ValueError(f"unknown key {key}; did you mean {table + near!r}?")
    kind = f" of {KIND} {settings.kind!r}" if hasattr(type(settings), "of_kind") else ""
    here = f"the table [{table.removesuffix('.')}]{kind} has" if table else "the file may have"
    return ValueError(f"unknown key {key}; {here} {', '.join(_names(settings))}.")


def _renamed(key: str, settings: Any) -> str | None:
    """The key that has taken the place of one of version 0.1, as the command line says it of flags."""
    flag = renamed("--" + key.replace("_", "-")) or ""
    table, _, field = flag.removeprefix("--").replace("-", "_").partition(".")
    return f"{table}.{field or KIND}" if table in _names(settings) else None


def _paths(settings: Any) -> Iterator[str]:
    """The keys of settings and of the dataclasses in them."""
    for name in _names(settings):
        value = getattr(settings, name)
        yield name
        if dataclasses.is_dataclass(value):
            yield from (f"{name}.{path}" for path in _paths(value))


def _fields(settings: Any) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(settings) if field.init and field.metadata.get("recorded", True)]


def _names(settings: Any) -> list[str]:
    return [field.name for field in _fields(settings)]


def _converted(value: Any, hint: Any, key: str) -> Any:
    try:
        return _as(hint, value)
    except TypeError:
        raise ValueError(f"{key} must be {_described(hint)}, and is {_shown(value)}.") from None


def _as(hint: Any, value: Any) -> Any:
    """A value of TOML as the type of a hint; TypeError where it does not fit."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _as_one_of(sorted(arguments, key=lambda kind: kind is not type(None)), value)
    if origin is tuple and isinstance(value, list):
        if arguments[1:] == (...,):
            return tuple(_as(arguments[0], each) for each in value)
        if len(arguments) == len(value):
            return tuple(_as(kind, each) for kind, each in zip(arguments, value, strict=True))
    elif origin is typing.Literal and any(value == each and type(value) is type(each) for each in arguments):
        return value
    elif hint is float and type(value) in (int, float):
        return float(value)
    elif hint is type(None) and value == NONE:
        return None
    elif hint is Path and isinstance(value, str):
        return Path(value)
    elif (
        (origin is collections.abc.Mapping and isinstance(value, dict))
        or hint is Any
        or (hint in (str, int, bool) and type(value) is hint)
    ):
        return value
    raise TypeError


def _as_one_of(kinds: list[Any], value: Any) -> Any:
    for kind in kinds:
        try:
            return _as(kind, value)
        except TypeError:
            continue
    raise TypeError


WORDS = {
    str: ("a string", "strings"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false"),
    Path: ("a path", "paths"),
    type(None): ('"None"', ""),
}
CAME = {str: "string", int: "whole number", float: "number", bool: "boolean", list: "list", dict: "table"}


def _described(hint: Any, several: bool = False) -> str:
    """The type of a hint in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_described(kind) for kind in arguments))
    if origin is typing.Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin is tuple:
        return f"a list of {_described(arguments[0], several=True)}"
    if dataclasses.is_dataclass(hint):
        return "a table"
    return WORDS.get(hint, (f"a {getattr(hint, '__name__', hint)}",) * 2)[several]


def _shown(value: Any) -> str:
    shown = "" if isinstance(value, dict) else f"{value!r}, "
    return f"{shown}a {CAME.get(type(value), 'date or time')}"
