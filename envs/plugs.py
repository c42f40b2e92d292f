"""Plugs: objects of a user's own code, named `package.module:Attribute`, or by a name that an installed package announces.

A package announces a plug by an entry point in the group `discover.KIND`, for example in its pyproject.toml:

    [project.entry-points."discover.envs"]
    kite = "kites:Kite"

Kinds are envs, objectives, searches, estimators, scores, shapings and proposers.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import importlib
import inspect
import re
import sys
import sysconfig
import traceback
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

OURS = tuple(str(Path(__file__).parents[1] / name) for name in ("discover", "envs", "learned_objectives"))
INSTALLED = (*map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), *OURS)
PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_path(name: Any) -> bool:
    """Whether a name has the form `package.module:Attribute`."""
    return isinstance(name, str) and PATH.fullmatch(name) is not None


@cache
def announced(kind: str) -> dict[str, EntryPoint]:
    """The plugs of a kind that installed packages announce, by name. Raises ValueError where two packages announce one name."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=f"discover.{kind}"):
        if point.name in found and found[point.name].value != point.value:
            raise ValueError(
                f"two installed packages announce {point.name!r} in discover.{kind}: {found[point.name].value} and "
                f"{point.value}. Name the one you want by its path."
            )
        found[point.name] = point
    return found


def rivals(kind: str, name: str) -> tuple[str, ...]:
    """The paths that installed packages announce under one name."""
    return tuple(sorted({point.value for point in entry_points(group=f"discover.{kind}", name=name)}))


def find(kind: str, name: str) -> Any | None:
    """The object of a path or of an announced name; None for any other name.

    Raises ValueError, in a sentence, where the module cannot be imported or has no such attribute.
    """
    if is_path(name):
        return resolve(name)
    return resolve(announced(kind)[name].value) if name in announced(kind) else None


def resolve(path: str) -> Any:
    """The object that `package.module:Attribute` names."""
    module_name, _, attribute = path.partition(":")
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _failed(path, module_name, error) from None
        raise ValueError(
            f"{path} cannot be imported: no module named {error.name} is in the working directory or installed."
        ) from None
    except (Exception, SystemExit) as error:  # whatever the user's module raises
        raise _failed(path, module_name, error) from None
    for name in attribute.split("."):
        if not hasattr(found, name):
            near = difflib.get_close_matches(name, [each for each in dir(found) if not each.startswith("_")], n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(f"{path} does not exist: {_file(found)} has no {name}.{hint}")
        found = getattr(found, name)
    return found


def path_of(obj: Any) -> str:
    """The path of a class, a function, or the class of an instance: the inverse of `resolve`.

    Raises ValueError where `resolve` would not find it again: a class defined in a function.
    """
    kind = _definition(obj)
    path = f"{kind.__module__}:{kind.__qualname__}"
    if not is_path(path) or isinstance(obj, functools.partial):
        raise ValueError(f"{kind.__qualname__} has no import path: define it at the top level of a module.")
    return path


def where(obj: Any) -> str:
    """File and line of a class, a function, or the class of an instance: "kites.py, line 12"."""
    kind = _definition(obj.func if isinstance(obj, functools.partial) else obj)
    try:
        return f"{inspect.getsourcefile(kind)}, line {inspect.getsourcelines(kind)[1]}"
    except (OSError, TypeError):  # defined in a session, or in C
        return f"{kind.__module__}:{kind.__qualname__}"


def code_digest(obj: Any) -> str:
    """A digest of the source of a class with its bases, a function, or the class of an instance; of its name where there is no
    source. Of what that code calls it knows nothing."""
    kind = _definition(obj.func if isinstance(obj, functools.partial) else obj)
    theirs = [each for each in getattr(kind, "__mro__", (kind,)) if not _is_installed(_file_of(each))]
    try:
        text = "".join(map(inspect.getsource, theirs or [kind]))
    except (OSError, TypeError):  # defined in a session, or in C
        text = f"{kind.__module__}:{kind.__qualname__}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _file_of(kind: Any) -> str:
    try:
        return inspect.getsourcefile(kind) or "<frozen"
    except (OSError, TypeError):
        return "<frozen"


def _definition(obj: Any) -> Any:
    """The class or the function that an object is made by: itself, the function that `jax.jit` wraps, or its class."""
    inner = inspect.unwrap(obj) if callable(obj) else obj
    return inner if isinstance(inner, type) or inspect.isfunction(inner) else type(obj)


def same(one: Any, other: Any) -> bool:
    """Whether two plugs are one: the same object; a class or a function that is defined again, as by a notebook's cell that runs
    again; or instances of one class with equal attributes."""
    if one is other:
        return True
    if isinstance(one, type) or isinstance(other, type):
        return isinstance(one, type) and isinstance(other, type) and _has_same_path(one, other)
    first, second = _definition(one), _definition(other)
    if inspect.isfunction(first) and inspect.isfunction(second):
        return _is_same_function(first, second)
    if isinstance(one, functools.partial) and isinstance(other, functools.partial):
        return same(one.func, other.func) and same((one.args, one.keywords), (other.args, other.keywords))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if hasattr(one, "shape") and hasattr(other, "shape"):
        return np.array_equal(one, other)
    if not _has_same_path(first, second):
        return False
    return same(_attributes(one), _attributes(other)) if _attributes(one) else bool(one == other)


def _is_same_function(one: FunctionType, other: FunctionType) -> bool:
    """By path. Of lambdas and functions within others, which have none, by file, line and what they close over."""
    if _has_same_path(one, other):
        return True
    bound = [[cell.cell_contents for cell in each.__closure__ or ()] for each in (one, other)]
    places = [(each.__code__.co_filename, each.__code__.co_firstlineno, each.__qualname__) for each in (one, other)]
    return places[0] == places[1] and same(*bound)


def _has_same_path(one: Any, other: Any) -> bool:
    path = f"{one.__module__}:{one.__qualname__}"
    return is_path(path) and path == f"{other.__module__}:{other.__qualname__}"


def _attributes(obj: Any) -> dict[str, Any]:
    """Of an instance, by name."""
    if dataclasses.is_dataclass(obj):
        return {field.name: getattr(obj, field.name, None) for field in dataclasses.fields(obj)}
    return dict(getattr(obj, "__dict__", {}))


def _failed(path: str, module_name: str, error: BaseException) -> ValueError:
    """What the user's module raised, with the line of theirs that raised it."""
    return ValueError(f"{path} cannot be imported: {raised(error)}")


def raised(error: BaseException) -> str:
    """An error of a user's code in one line, with the last line of theirs that was run: "kites.py, line 3: TypeError: ..."."""
    theirs = _frames_of_theirs(error)
    line = f"{theirs[-1].filename}, line {theirs[-1].lineno}: " if theirs else ""
    if isinstance(error, SyntaxError):
        line = f"{error.filename}, line {error.lineno}: "
    said = " ".join(str(error).split())
    return f"{line}{type(error).__name__}{said and f': {said}'}"


def is_raised_by_user(error: BaseException) -> bool:
    """Whether a line of a user's code was run when an error was raised."""
    return bool(_frames_of_theirs(error))


def _frames_of_theirs(error: BaseException) -> list[traceback.FrameSummary]:
    return [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_installed(frame.filename)]


def _is_installed(file: str) -> bool:
    """Whether a line of code is of Python, of an installed package or of this one."""
    return file.startswith((*INSTALLED, "<frozen"))


def _file(module: Any) -> str:
    file = getattr(sys.modules.get(getattr(module, "__module__", None) or module.__name__, module), "__file__", None)
    return Path(file).name if file else module.__name__
