"""Checkpoints with a checksum, checked against the expected state."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from envs import plugs

PyTree = Any


def write(manager: Any, step: int, state: PyTree) -> None:
    """Write a state, whole or not at all. Raises whatever a full disk makes tensorstore raise."""
    with _quiet_tensorstore():
        manager.save(step, args=orbax().args.StandardSave(_sealed(_on_host(_filled(state)))))
        manager.wait_until_finished()


def reader(directory: Path) -> Any:
    """A manager that leaves no trace in the directory."""
    return orbax().CheckpointManager(directory, options=orbax().CheckpointManagerOptions(read_only=True))


def read(manager: Any, step: int, template: PyTree) -> PyTree:
    """A checkpoint's state. Raises whatever a damaged file makes tensorstore raise, or ValueError where it is another state."""
    abstract = {"state": jax.tree.map(_abstract, _filled(template)), "sha256": np.zeros(32, np.uint8)}
    with _quiet_tensorstore():
        found = manager.restore(step, args=orbax().args.StandardRestore(abstract))
    state = found["state"]
    if not np.array_equal(found["sha256"], _sealed(state)["sha256"]):
        raise ValueError("its contents do not match its checksum")
    if _types(state) != _types(_filled(template)):  # orbax reads an array of another shape as it is
        raise ValueError("its arrays have other shapes")
    return jax.tree.map(lambda x, like: x if like.size else like, state, template)


def misfit(directory: Path, template: PyTree, owner: str) -> str | None:
    """How the arrays of a checkpoint differ from those of the template: the class, and the first difference. None where they do
    not, or where that cannot be read."""
    with contextlib.suppress(Exception):  # whatever a damaged file makes orbax raise
        found = orbax().StandardCheckpointHandler().metadata((directory / "default").resolve())
        old, new = _types(getattr(found, "tree", found)["state"]), _types(_filled(template))
        # Leaves of the objective first: a change of it shows in the state of the search too.
        names = sorted({**new, **old}, key=lambda names: names[0] != "best")
        for each in names:
            if new.get(each) != old.get(each):
                now, then = new.get(each, "not there"), old.get(each, "not there")
                field = ".".join(each[1:]) or "state"
                return f"{_owner(template, each) or owner}: its {field} is {now} now, and was {then}"
    return None


def _types(tree: PyTree) -> dict[tuple[str, ...], str]:
    """{names on the way to a leaf: its type and shape}."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {_names(path): f"{np.dtype(x.dtype)}{list(x.shape)}" for path, x in leaves}


def _names(path: Any) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _owner(template: PyTree, names: tuple[str, ...]) -> str | None:
    """The class of the objective that a leaf belongs to, with its place; None for a leaf of the search's own state."""
    if names[0] != "best":
        return None
    node = template
    for name in names[:-1]:
        node = getattr(node, name, node)
    return f"{type(node).__name__} ({plugs.where(node)})"


def _sealed(state: PyTree) -> PyTree:
    """The state with a checksum. tensorstore does not verify the contents of arrays."""
    digest = hashlib.sha256()
    for x in jax.tree.leaves(state):
        digest.update(f"{x.dtype}{x.shape}".encode() + x.tobytes())
    return {"state": state, "sha256": np.frombuffer(digest.digest(), np.uint8)}


def _filled(tree: PyTree) -> PyTree:
    """With one zero in every array that has no element, such as an LSTM's second bias: checkpoints cannot hold an empty one."""
    return jax.tree.map(lambda x: x if x.size else np.zeros(1, x.dtype), tree)


def _on_host(tree: PyTree) -> PyTree:
    """As NumPy arrays. Only process 0 writes, and device arrays would need all processes."""
    return jax.tree.map(np.asarray, tree)


def _abstract(x: jax.Array) -> np.ndarray:
    """A NumPy placeholder with the shape and type to read."""
    return np.broadcast_to(np.zeros((), x.dtype), x.shape)


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["unreadable"])[0][:120]


@contextlib.contextmanager
def _quiet_tensorstore() -> Iterator[None]:
    """When one array of a checkpoint cannot be written or read, the threads of the others report to an event loop that is
    gone, each with a traceback, some after the error itself has arrived: so the hook is put back only after a success."""
    show = sys.unraisablehook

    def hook(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    sys.unraisablehook = hook
    yield
    sys.unraisablehook = show


def orbax():
    """Imported when the first checkpoint is due: it takes seconds. It logs what it raises, at length."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    import orbax.checkpoint as ocp

    return ocp
