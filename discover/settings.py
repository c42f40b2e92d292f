"""Settings, which are dataclasses, as files have them."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any


def rebuild(cls: type, values: Mapping[str, Any]) -> Any:
    """A dataclass from what `dataclasses.asdict` and JSON made of it. Fields that it has got since have their defaults, which are
    what there was before them; TypeError for those that it has no more."""
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
