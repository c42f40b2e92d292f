"""Objectives on disk: safetensors leaves and a JSON record. Never pickle."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import inspect
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from learned_objectives.core import Objective
from learned_objectives.disco import Disco
from learned_objectives.drifts import DPO, KL, SPO, AsymmetricClip, Clip, Drift, NoDrift, TimedClip, Tsallis
from learned_objectives.interpreted import InterpretedProgram
from learned_objectives.lpg import LPG
from learned_objectives.lpo import LPO
from learned_objectives.mirror import Mirror, ScheduledMirror, ta_ppo
from learned_objectives.penalised import AdaptiveKLMirror, AveragedKLMirror, DropoutMirror
from learned_objectives.programs import Program, SurrogateProgram
from learned_objectives.soft_clip import SoftClip
from learned_objectives.variants import GroupMirror, HLGaussMirror, MunchausenMirror

FORMAT = "learned_objectives"
SCHEMA = 2  # of the metadata; raise it when an older reader would misread a newer file
WEIGHTS = Path(__file__).parent / "weights"

CLOSED_FORMS: dict[str, Callable[[], Objective]] = {
    "a2c": lambda: Mirror(drift=NoDrift()),
    "dpo": lambda: Mirror(drift=DPO()),
    "mdpo": lambda: Mirror(drift=KL()),
    "ppo": lambda: Mirror(drift=Clip()),
    "ta_ppo": ta_ppo,
}

OURS = (
    *(Mirror, ScheduledMirror, HLGaussMirror, GroupMirror, MunchausenMirror, LPG, Disco),
    *(AdaptiveKLMirror, AveragedKLMirror, DropoutMirror),
    *(NoDrift, Clip, AsymmetricClip, TimedClip, DPO, KL, SPO, Tsallis, LPO, SoftClip),
    *(Program, SurrogateProgram, InterpretedProgram),
)
_types: dict[str, type] = {cls.__name__: cls for cls in OURS}


class ObjectiveFileError(ValueError):
    """A file that is not a readable objective; the message says what it is and what to do."""


class _Changed(ValueError):
    """The class of an objective has other fields than when its file was written."""


def register(cls: type) -> type:
    """Let `save` and `load` know a drift or objective of your own, by its class name. Usable as a decorator.

    A class that is defined again, as by a notebook's cell that is run again, replaces the one before it.
    """
    if not isinstance(cls, type):
        raise TypeError(f"register takes a class, and was given a {type(cls).__name__}.")
    if not issubclass(cls, (Drift, Objective)):
        raise TypeError(f"expected a subclass of Drift or Objective, got {cls.__name__}.")
    known = _types.get(cls.__name__, cls)
    if not _is_same(known, cls):
        raise ValueError(f"the name {cls.__name__} is taken by the class of {_where(known)}; choose another.")
    _types[cls.__name__] = cls
    return cls


def _is_same(one: type, other: type) -> bool:
    """Whether two classes are one, or the second is the first defined again."""
    if one is other:
        return True
    paths = {f"{cls.__module__}.{cls.__qualname__}" for cls in (one, other)}
    return len(paths) == 1 and "<locals>" not in paths.pop()


def _where(cls: type) -> str:
    """File and line of a class: "kites.py, line 12"; its module and name where there is no file."""
    try:
        return f"{inspect.getsourcefile(cls)}, line {inspect.getsourcelines(cls)[1]}"
    except (OSError, TypeError):
        return f"{cls.__module__}.{cls.__qualname__}"


def available() -> tuple[str, ...]:
    """The names `load` knows: closed forms, and discovered objectives shipped with weights."""
    shipped = (path.stem for path in WEIGHTS.glob("*.safetensors"))
    return tuple(sorted({*CLOSED_FORMS, *shipped}))


def _as_text(name_or_path: str | os.PathLike) -> str:
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise TypeError(
            f"expected a name or the path of a file, and got a {type(name_or_path).__name__}: "
            f"names are {', '.join(available())}."
        )
    return os.fspath(name_or_path)


def load(name_or_path: str | os.PathLike) -> Objective:
    """An objective by its name, or from a file that `save` wrote.

    Raises:
      ValueError: an unknown name, with the nearest one.
      TypeError: neither a name nor a path.
      ObjectiveFileError: a file that is missing, truncated, altered, foreign, or of a newer schema.
    """
    name = _as_text(name_or_path)
    return CLOSED_FORMS[name]() if name in CLOSED_FORMS else _read(_path_of(name))[0]


def _path_of(name: str) -> Path:
    """The file of a name or a path; ValueError for a name that is not known."""
    path = WEIGHTS / f"{name}.safetensors"
    if os.sep not in name and path.exists():
        return path
    path = Path(name)
    if path.exists() or path.suffix or os.sep in name:
        return path
    near = difflib.get_close_matches(name.lower(), available(), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? Known are" if near else "known are"
    raise ValueError(
        f"Unknown objective {name!r}; {hint} {', '.join(available())}, or the path of a .safetensors file."
    )


def record(name_or_path: str | os.PathLike) -> dict[str, Any]:
    """The record saved beside an objective: how it was made.

    Raises as `load` does, and ValueError for a closed form, which has no record.
    """
    name = _as_text(name_or_path)
    if name in CLOSED_FORMS:
        raise ValueError(
            f"{name!r} is a closed form and has no record, because no search made it: lo.card({name!r}) has its reference."
        )
    return _read(_path_of(name))[1]


def save(objective: Objective, path: str | os.PathLike, record: Mapping[str, Any] | None = None) -> None:
    """Write an objective and the record of how it was made, atomically: the path holds the old file or the new one. The same
    objective and record make the same bytes.

    Args:
      objective: made of our types, of registered ones (see `register`), or of classes at the top level of a module. A file names
        such a class by its module, and `load` imports it.
      path: by custom `*.safetensors`. Its directory must exist.
      record: provenance, anything JSON can hold.

    Raises:
      TypeError: the objective is not one, or the record is not a mapping.
      FileNotFoundError, IsADirectoryError: there is no such directory, or the path is one.
    """
    if not isinstance(objective, (Drift, Objective)):
        raise TypeError(f"save takes an objective or a drift, then a path, and was given a {type(objective).__name__}.")
    if record is not None and not isinstance(record, Mapping):
        raise TypeError(f"a record is a mapping from names to JSON values, and was given as a {type(record).__name__}.")
    tensors: dict[str, np.ndarray] = {}
    spec, how = _describe(objective, "", tensors), json.dumps(dict(record or {}), default=str)
    header = {
        "format": FORMAT,
        "schema": str(SCHEMA),
        "objective": json.dumps(spec),
        "sha256": _digest(tensors, spec, how),
        "record": how,
    }
    _write_atomically(Path(path), _in_order(safetensors.numpy.save(tensors, metadata=header)))


def _in_order(data: bytes) -> bytes:
    """A file of the same contents is of the same bytes: safetensors orders metadata at random."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]


def _write_atomically(path: Path, data: bytes) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; give the path of a file to write.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no directory {path.parent} to write {path.name} into: make it first.")
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _name_of(cls: type) -> str:
    """The name that a file gives a class: `package.module:Class`. One of ours, or a registered one that no import finds,
    has its own name."""
    if cls in OURS:
        return cls.__name__
    module = sys.modules.get(cls.__module__)
    if cls.__module__ != "__main__" and getattr(module, cls.__name__, None) is cls:
        return f"{cls.__module__}:{cls.__name__}"
    if not _is_same(_types.get(cls.__name__, object), cls):
        raise ValueError(
            f"cannot save a {cls.__name__}, because no import finds its class again: define it at the top level of a module, or "
            "decorate it with learned_objectives.register."
        )
    return cls.__name__


def _type_of(name: str) -> type:
    """The inverse of `_name_of`. The module of a class that is not registered is imported, and nothing but a drift or an
    objective is taken from it."""
    module, is_path, attribute = name.rpartition(":")
    if not is_path:
        if name not in _types:
            raise ValueError(f"it holds a {name}, which is not registered here: import the code that defines it")
        return _types[name]
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # whatever the user's module raises
        raise ValueError(
            f"it holds a {attribute} of {module}, which cannot be imported here ({type(error).__name__}: {error}): run where "
            f"{module} can be imported"
        ) from None
    if not (isinstance(cls, type) and issubclass(cls, (Drift, Objective))):
        raise ValueError(f"{name} is not a subclass of Drift or Objective")
    return cls


def _describe(node: Any, prefix: str, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """{type, static, children}, with the arrays put into `tensors` under dotted names."""
    kind = _name_of(type(node))
    spec: dict[str, Any] = {"type": kind, "static": {}, "children": {}}
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if not field.metadata.get("pytree_node", True):
            spec["static"][field.name] = value
        elif isinstance(value, (Drift, Objective)):
            spec["children"][field.name] = _describe(value, f"{prefix}{field.name}.", tensors)
        else:
            tensors[f"{prefix}{field.name}"] = np.asarray(value, np.float32, order="C")
    return spec


def _build(spec: Mapping[str, Any], prefix: str, tensors: dict[str, np.ndarray]) -> Any:
    """The inverse of `_describe`; takes what it uses out of `tensors`."""
    cls = _type_of(spec["type"])
    values = dict(spec["static"])
    _require_fields(cls, {*values, *spec["children"], *_own(tensors, prefix)})
    for name, child in spec["children"].items():
        values[name] = _build(child, f"{prefix}{name}.", tensors)
    for field in dataclasses.fields(cls):
        if f"{prefix}{field.name}" in tensors:
            values[field.name] = jax.numpy.asarray(tensors.pop(f"{prefix}{field.name}"))
    node = cls(**values)
    getattr(node, "validate", lambda: None)()
    return node


def _own(tensors: Mapping[str, Any], prefix: str) -> set[str]:
    """The names of the tensors of one node, without those of the objectives in it."""
    names = (name.removeprefix(prefix) for name in tensors if name.startswith(prefix))
    return {name for name in names if "." not in name}


def _require_fields(cls: type, held: set[str]) -> None:
    """_Changed where a file holds a field that a user's class lacks, or lacks one that it needs."""
    if cls in OURS:
        return
    fields = dataclasses.fields(cls)
    needed = {f.name for f in fields if f.init and f.default is f.default_factory is dataclasses.MISSING}
    gone, new = sorted(held - {f.name for f in fields}), sorted(needed - held)
    name = f"{cls.__name__} ({_where(cls)})"
    if gone:
        raise _Changed(f"{name} has no field {gone[0]}, which this file holds: rename it back")
    if new:
        raise _Changed(f"{name} needs the field {new[0]}, which this file lacks: give it a default")


def _digest(tensors: Mapping[str, np.ndarray], spec: Any, record: str = "") -> str:
    """Of all that a file says; schema 1 left the record out."""
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode() + record.encode())
    for name in sorted(tensors):
        digest.update(f"{name}{tensors[name].shape}".encode() + tensors[name].tobytes())
    return digest.hexdigest()


def _read(path: Path) -> tuple[Objective, dict[str, Any]]:
    if path.is_dir():
        raise ObjectiveFileError(f"{path} is a directory; give the .safetensors file in it.")
    if not path.exists():
        raise ObjectiveFileError(f"There is no file {path}.")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        raise ObjectiveFileError(f"{path} is not a complete safetensors file ({error}).") from None
    if header.get("format") != FORMAT:
        raise ObjectiveFileError(f"{path} is a safetensors file, but learned_objectives did not write it.")
    try:
        schema = int(header["schema"])
    except (KeyError, ValueError):
        raise ObjectiveFileError(f"{path} has no schema number in its metadata.") from None
    if schema > SCHEMA:
        raise ObjectiveFileError(
            f"{path} has schema {schema}, and this version reads up to {SCHEMA}: update learned_objectives."
        )
    try:
        spec, how = json.loads(header["objective"]), json.loads(header["record"])
        if _digest(tensors, spec, header["record"] if schema > 1 else "") != header["sha256"]:
            raise ValueError("its contents do not match its checksum")
        if any(tensor.dtype != np.float32 for tensor in tensors.values()):
            raise ValueError("its tensors are not all float32")
        if not isinstance(how, dict):
            raise ValueError("its record is not a JSON object")
        objective = _build(spec, "", tensors)
        if tensors:
            raise ValueError(f"nothing in it uses its tensors {sorted(tensors)}")
    except _Changed as error:
        raise ObjectiveFileError(f"{path} does not fit the code here: {error}.") from None
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = str(error).rstrip(".")
        raise ObjectiveFileError(f"{path} does not hold a whole objective: {reason}.") from None
    return objective, how
