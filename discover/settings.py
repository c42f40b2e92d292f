"""Settings, which are dataclasses, as files have them."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

KIND = "kind"  # names the class of settings that may be of several: `of_kind` of their base finds it


def as_dict(settings: Any) -> dict[str, Any]:
    """Settings as JSON has them; those that may be of several classes with the name or path of theirs."""
    out: dict[str, Any] = {KIND: settings.kind} if hasattr(type(settings), "of_kind") else {}
    for field in dataclasses.fields(settings):
        if field.metadata.get("recorded", True):
            value = getattr(settings, field.name)
            out[field.name] = as_dict(value) if dataclasses.is_dataclass(value) else value
    return out


def rebuild(cls: type, values: Mapping[str, Any]) -> Any:
    """A dataclass from what `as_dict` and JSON made of it. Fields that it has got since have their defaults, which are what there
    was before them; TypeError for those that it has no more."""
    if hasattr(cls, "of_kind"):
        cls, values = cls.of_kind(values[KIND]), {name: value for name, value in values.items() if name != KIND}
    kinds = typing.get_type_hints(cls)
    built = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(kinds.get(name)):
            value = rebuild(kinds[name], value)
        built[name] = tuple(value) if isinstance(value, list) else value
    return cls(**built)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; tuples become lists, as they do in JSON."""
    out: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            out |= flatten(value, f"{prefix}{name}.")
        else:
            out[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return out
