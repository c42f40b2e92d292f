"""An objective from whatever names it: itself, a drift, a name, a file, or the directory of a run."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import os
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import learned_objectives as lo
from discover.names import OWN
from discover.plugins import shown
from envs import plugs
from learned_objectives import laws
from learned_objectives.library import OURS


def as_arrays(objective: lo.Objective) -> lo.Objective:
    """Leaves as strongly typed arrays, so that Python numbers and arrays share one program."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), objective)


def resolve_objective(spec: str | os.PathLike | lo.Objective) -> lo.Objective:
    """An Objective as it is; a name or a file as `learned_objectives.load` does; the directory of a run by the objective in it; a
    path `package.module:Attribute` by the class, instance or function there.

    A drift by itself, from a file or as given, is put into `Mirror`.
    """
    require_objective(spec)
    if isinstance(spec, lo.Drift):
        return lo.Mirror(drift=spec)
    if isinstance(spec, lo.Objective):
        return spec
    if isinstance(spec, str) and (found := _plug(spec)) is not None:
        return found
    path = Path(spec)
    if os.fspath(spec) not in lo.available() and path.is_dir() and os.fspath(spec):
        if not (path / "objective.safetensors").exists():
            raise ValueError(f"{path} is a directory without objective.safetensors: it holds no finished evaluation.")
        return resolve_objective(lo.load(path / "objective.safetensors"))
    return resolve_objective(_loaded(spec))


def _loaded(spec: str | os.PathLike) -> lo.Objective | lo.Drift:
    try:
        return lo.load(spec)
    except lo.ObjectiveFileError:
        raise
    except ValueError as error:  # an unknown name
        raise ValueError(f"{str(error).removesuffix('.')}; {OWN}.") from None


def _plug(name: str) -> lo.Objective | None:
    """The objective of a path `package.module:Attribute`, or of a name that an installed package announces; None for another."""
    if Path(name).exists() or name in lo.available() or (found := plugs.find("objectives", name)) is None:
        return None
    made = made_by(found, name, jax.random.key(0), {})
    return resolve_objective(checked(made, name, searched=False, where=plugs.where(found)))


def require_objective(spec: Any) -> Any:
    """What `resolve_objective` takes, as it is; TypeError with a sentence for anything else."""
    if not isinstance(spec, str | os.PathLike | lo.Objective | lo.Drift):
        got = f"the class {spec.__name__}: call it" if isinstance(spec, type) else f"a {type(spec).__name__}"
        raise TypeError(
            f"expected an objective, a drift, a name (learned_objectives.available()), or a path, and got {got}."
        )
    if isinstance(spec, lo.Mirror) and not isinstance(spec.drift, lo.Drift):
        raise TypeError(
            f"the drift of a Mirror must be a learned_objectives.Drift, and is {spec.drift!r}: give lo.DPO(), or an instance of "
            "your own subclass of lo.Drift."
        )
    return spec


def made_by(found: Any, path: str, key: jax.Array, static: Mapping[str, Any]) -> Any:
    """The drift or objective of what a path names: of an instance, a class, or a function `key -> objective`.

    Args:
      key: for what a function, or the method `create` of a class, draws.
      static: static fields, where they are not the defaults.

    Raises ValueError, in a sentence with the file and the line of the user's code.
    """
    static = {name: as_tuples(value) for name, value in static.items()}
    if isinstance(found, lo.Drift | lo.Objective):
        return found.replace(**static)
    if not isinstance(found, type):
        if not callable(found):
            raise ValueError(f"{path} is {shown(found)}, and must be a drift, an objective, or a function of a key.")
        return _called(path, found, key)
    if not issubclass(found, lo.Drift | lo.Objective):
        raise ValueError(
            f"{path} must be a subclass of learned_objectives.Drift or Objective, and is {found!r} ({plugs.where(found)})."
        )
    create = getattr(found, "create", None)
    needed = [f.name for f in dataclasses.fields(found) if f.default is f.default_factory is dataclasses.MISSING]
    if create is not None and {*needed} - {*static}:
        taken = {name: value for name, value in static.items() if name in inspect.signature(create).parameters}
        return _called(path, create, key, **taken)
    return _called(path, found, **static)


def checked(made: Any, name: str, *, searched: bool = True, where: str | None = None) -> Any:
    """A user's objective or drift, if it can be used: its fields can be saved, it has all methods, and a drift keeps the laws.

    Args:
      searched: whether its leaves are to be searched, so that it must have some, all of them floating-point.
      where: file and line of the code that made it; default: of its class.

    Raises ValueError in a sentence with that place.
    """
    require_made(made, name, where)
    where = plugs.where(users_class(made) or made)
    _require_fields(made, name, where)
    if searched:
        _require_leaves(made, name, where)
    _require_methods(made, name, where)
    drift = made.drift if isinstance(made, lo.Mirror) else made
    if isinstance(drift, lo.Drift):
        try:
            lo.verify_drift(drift)
        except jax.errors.JaxRuntimeError:
            raise
        except (Exception, SystemExit) as error:  # a broken law, or whatever the user's code raises
            if not _is_of_verification(error):
                raise ValueError(f"__call__ of {name} failed: {plugs.raised(error)}.") from error
            raise ValueError(f"{name} is no drift: {' '.join(str(error).split())} ({where})") from None
    return made


def require_made(made: Any, name: str, where: str | None = None) -> None:
    """ValueError, with the place of the code that made it, for what is neither a drift nor an objective."""
    if not isinstance(made, lo.Drift | lo.Objective):
        raise ValueError(
            f"{name} must make a learned_objectives.Drift or Objective, and makes {shown(made)} ({where or plugs.where(made)})."
        )


def _is_of_verification(error: BaseException) -> bool:
    """Whether `verify_drift` raised an error itself, and not the drift that it called."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, lo.DriftLawError) or frames[-1].filename == inspect.getsourcefile(laws)


def _require_fields(made: Any, name: str, where: str) -> None:
    """A leaf field holds one array or number, another drift or an objective; a static field what JSON can hold."""
    for field in dataclasses.fields(made):
        value = getattr(made, field.name)
        if not field.metadata.get("pytree_node", True):
            try:
                json.dumps(value)
            except TypeError:
                raise ValueError(
                    f"the static field {field.name} of {name} must be a number, a string, a list or a dictionary, and is "
                    f"{value!r} ({where})."
                ) from None
        elif isinstance(value, lo.Drift | lo.Objective):
            _require_fields(value, f"{name}.{field.name}", where)
        elif not isinstance(value, int | float | np.ndarray | np.generic | jax.Array | jax.ShapeDtypeStruct):
            raise ValueError(
                f"the field {field.name} of {name} must be an array, a number, a drift or an objective, and is {value!r} "
                f"({where})."
            )


def _require_leaves(made: Any, name: str, where: str) -> None:
    leaves = jax.tree_util.tree_flatten_with_path(made)[0]
    if not leaves:
        raise ValueError(f"{name} has no leaves, so there is nothing to search ({where}).")
    for path, leaf in leaves:
        kind = np.asarray(leaf).dtype if not hasattr(leaf, "dtype") else leaf.dtype
        if not jnp.issubdtype(kind, jnp.floating):
            raise ValueError(
                f"the leaf {jax.tree_util.keystr(path).lstrip('.')} of {name} must be floating-point, and is {kind}: make it a "
                f"float, or a static field (flax.struct.field(pytree_node=False)) ({where})."
            )


def _require_methods(made: Any, name: str, where: str) -> None:
    base, needed = (
        (lo.Drift, ("__call__",)) if isinstance(made, lo.Drift) else (lo.Objective, ("critic_width", "targets"))
    )
    if isinstance(made, lo.Objective) and type(made).observe is not lo.Objective.observe:
        needed = ("critic_width",)
    if isinstance(made, lo.Objective) and type(made).loss is lo.Objective.loss:
        needed = (*needed, "actor_loss", "critic_loss")
    missing = [
        each for each in needed if inspect.getattr_static(type(made), each) is inspect.getattr_static(base, each)
    ]
    if missing:
        raise ValueError(f"{name} lacks {' and '.join(missing)} ({where}).")


def as_tuples(value: Any) -> Any:
    """JSON has lists for tuples."""
    return tuple(map(as_tuples, value)) if isinstance(value, list | tuple) else value


def static_fields(node: Any) -> dict[str, Any]:
    """The fields of an objective or a drift that are neither leaves nor objectives."""
    fields = [f for f in dataclasses.fields(node) if not f.metadata.get("pytree_node", True)]
    return {f.name: getattr(node, f.name) for f in fields}


def fingerprint(objective: Any) -> str:
    """Of an objective's structure and every number in it."""
    leaves, structure = jax.tree.flatten(objective)
    digest = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        digest.update(np.asarray(leaf, np.float32).tobytes())
    return digest.hexdigest()[:16]


def users_class(objective: lo.Objective | lo.Drift) -> type | None:
    """The class of an objective, or of the drift in a Mirror, if it is of a user's code. None if it is one of ours."""
    inner = objective.drift if isinstance(objective, lo.Mirror) and type(objective) in OURS else objective
    return None if type(inner) in OURS else type(inner)


def identity(objective: lo.Objective) -> str:
    """`fingerprint`, and of a user's class a digest of its code too: another equation gives other results."""
    found, theirs = fingerprint(objective), users_class(objective)
    return found if theirs is None else f"{found}-{plugs.code_digest(theirs)}"


def _called(path: str, maker: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    try:
        return maker(*arguments, **options)
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise ValueError(
            f"{path} cannot be made: {type(error).__name__}: {' '.join(str(error).split())} ({plugs.where(maker)})."
        ) from None
