"""Registries: the plugs of one kind by name, those of the toolkit beside those of a user."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from discover.names import OWN_BY_PATH, unknown
from envs import plugs


def is_ours(plug: Any) -> bool:
    """Whether a class, a function, or the class of an instance is of discover."""
    kind = plug if isinstance(plug, type) or hasattr(plug, "__module__") else type(plug)
    return str(kind.__module__).split(".")[0] == "discover"


@contextlib.contextmanager
def blame(plug: Any, what: str) -> Iterator[None]:
    """Whatever a user's code raises in the block becomes a ValueError in one sentence, with the line of theirs. Errors of our own
    plugs pass, and so do those of a device."""
    try:
        yield
    except jax.errors.JaxRuntimeError:
        raise
    except (Exception, SystemExit) as error:
        if is_ours(plug):
            raise
        raise ValueError(f"{what} of {plugs.where(plug)} failed: {plugs.raised(error)}") from error


def require_defaults(kind: type) -> None:
    """ValueError where a class of settings has a field without a default: its flags are known only once it has been made."""
    needed = [
        f.name for f in dataclasses.fields(kind) if f.init and f.default is f.default_factory is dataclasses.MISSING
    ]
    if needed:
        raise ValueError(f"{kind.__name__} needs defaults: give one to {' and '.join(needed)} ({plugs.where(kind)}).")


def shown(plug: Any) -> str:
    """What an object is, with the place of a class or a function: "an int", "the class Kite (kites.py, line 3)"."""
    if isinstance(plug, type):
        return f"the class {plug.__name__} ({plugs.where(plug)})"
    if inspect.isfunction(plug):
        return f"the function {plug.__name__} ({plugs.where(plug)})"
    kind = type(plug).__name__
    place = "" if type(plug).__module__ == "builtins" else f" ({plugs.where(plug)})"
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}{place}" if plug is not None else "None"


def is_array(value: Any) -> bool:
    """Whether a value is a number or an array, or the shape of one."""
    return isinstance(value, bool | int | float | np.ndarray | np.generic | jax.Array | jax.ShapeDtypeStruct)


def returned(value: Any) -> str:
    """What a user's function returns, by its types: "float32[2]", "a tuple of float32[2] and int32[]", "a str", "None"."""
    if is_array(value):
        return f"{jnp.result_type(value)}{list(jnp.shape(value))}"
    if isinstance(value, tuple | list) and value and all(map(is_array, value)):
        return f"a {type(value).__name__} of {' and '.join(map(returned, value))}"
    return shown(value)


def _place(plug: Any) -> str:
    """A plug by its place; an instance by its attributes too, which alone may differ."""
    is_definition = isinstance(plug, type) or hasattr(plug, "__qualname__")
    return plugs.where(plug) if is_definition else f"{' '.join(repr(plug).split())} ({plugs.where(plug)})"


class Registry(MutableMapping[str, Any]):
    """Plugs of one kind by name. A name is one of ours, one that was registered, one that an installed package announces (see
    `envs.plugs`), or a path `package.module:Attribute`.

    `registry[name] = plug` registers a plug for this process. Iteration gives the names but no paths.
    """

    def __init__(
        self,
        kind: str,
        singular: str,
        ours: Mapping[str, Any],
        wanted: str = "a class or a function",
        accepts: Callable[[Any], bool] = callable,
    ):
        """
        Args:
          kind: the group of entry points is `discover.KIND`.
          ours: by name, an object or its path.
          wanted: what a plug must be, in words.
          accepts: whether an object is that.
        """
        self.kind, self.singular, self.wanted, self.accepts = kind, singular, wanted, accepts
        self._ours, self._registered = dict(ours), {}

    def __getitem__(self, name: str) -> Any:
        """KeyError where the name is none of them; ValueError where what it names cannot be imported."""
        if name in self._registered:
            return self._registered[name]
        if name in self._ours:
            found = self._ours[name]
            return plugs.resolve(found) if plugs.is_path(found) else found
        found = plugs.find(self.kind, name)
        if found is None:
            raise KeyError(name)
        return found

    def require(self, name: str) -> Any:
        """As `registry[name]`; ValueError with the nearest name for an unknown one, and for what is no plug of this kind."""
        if not isinstance(name, str):
            raise ValueError(f"expected the name of a {self.singular}, and got {name!r}: one of {', '.join(self)}.")
        if name not in self:
            raise unknown(self.singular, name, self, OWN_BY_PATH)
        found = self[name]
        self._require_accepted(name, found)
        return found

    def _require_accepted(self, name: str, plug: Any) -> None:
        if not self.accepts(plug):
            raise ValueError(f"{name} is {shown(plug)}, and must be {self.wanted}.")

    def __setitem__(self, name: str, plug: Any) -> None:
        if not isinstance(name, str) or not name or plugs.is_path(name):
            raise ValueError(f"the name of a {self.singular} must be a word, and is {name!r}.")
        if name in self._ours:
            raise ValueError(f"the name {name!r} is that of a {self.singular} of discover: choose another.")
        self._require_accepted(f"the {self.singular} {name!r}", plug)
        self._refuse_second(name, plug)
        self._registered[name] = plug

    def _refuse_second(self, name: str, plug: Any) -> None:
        """ValueError where the name stands for another plug. A notebook's cell that is run again defines the same plug again."""
        if name in self._registered:
            known = self._registered[name]
            if not plugs.same(known, plug):
                raise ValueError(
                    f"two {self.kind} have the name {name!r}: {_place(known)}, and {_place(plug)}. Choose another name for one "
                    "of them, or delete the first."
                )
        elif name in self._announced() and not plugs.same(plugs.resolve(self._announced()[name].value), plug):
            raise ValueError(
                f"two {self.kind} have the name {name!r}: {self._announced()[name].value}, which an installed package announces, "
                f"and {_place(plug)}. Choose another name."
            )

    def __delitem__(self, name: str) -> None:
        del self._registered[name]

    def __contains__(self, name: object) -> bool:
        return name in {*self} or plugs.is_path(name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._ours, *self._registered, *self._announced())))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _announced(self) -> dict[str, Any]:
        """ValueError for an announced plug with the name of one of ours."""
        found = plugs.announced(self.kind)
        for name in found.keys() & self._ours.keys():
            raise ValueError(
                f"an installed package announces the {self.singular} {name!r} as {found[name].value}, and discover has one of "
                "that name: name it by its path."
            )
        return found

    def name_of(self, plug: Any) -> str:
        """The name of a plug, or its path where it has no name."""
        for name in (*self._registered, *self._ours):
            if self[name] is plug:
                return name
        return plugs.path_of(plug)
