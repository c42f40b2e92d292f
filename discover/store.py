"""A run's directory: its recipe, checkpoints, metrics and objective, each written whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import learned_objectives as lo
from discover import processes
from discover.console import tell
from discover.settings import flatten, rebuild

PyTree = Any

# Between a run and its resumption. Another chunk may round otherwise, and the log says from which generation on.
MAY_CHANGE = ("generations", "checkpoint_every", "evolution.chunk", "metagrad.chunk")


class RunError(ValueError):
    """A run directory that cannot be used; the message says why and what to do."""


@dataclasses.dataclass
class Store:
    """One run's directory. Use `open_run`, which locks it."""

    path: Path

    @property
    def objective(self) -> Path:
        return self.path / "objective.safetensors"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def save(self, generation: int, state: PyTree) -> None:
        """A checkpoint, atomic: it appears under its name only when all of it is on disk."""
        if generation not in self._manager.all_steps():
            try:
                with _quiet_tensorstore():
                    self._manager.save(generation, args=_orbax().args.StandardSave(_sealed(_on_host(_filled(state)))))
                    self._manager.wait_until_finished()
            except Exception as error:  # whatever a full disk makes tensorstore raise
                full = "No space left on device"
                reason = full if full in str(error) else _first_line(error)
                raise RunError(
                    f"Cannot write the checkpoint of generation {generation} ({reason}): the same command goes on from the "
                    "one before, once it can."
                ) from None

    def restore(self, template: PyTree) -> tuple[int, PyTree] | None:
        """The newest readable checkpoint, (generation, state), or None if there has never been one.

        Newer ones that cannot be read are set aside once an older one could: only then is it they that are at fault.
        """
        unreadable: list[int] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = _read(self._manager, step, template)
            except Exception as error:  # whatever a damaged file makes tensorstore raise
                tell(
                    f"The checkpoint of generation {step} is damaged ({_first_line(error)}); trying the one before.",
                    error=True,
                )
                unreadable.append(step)
            else:
                self._set_aside(unreadable)
                return step, state
        if unreadable:
            raise RunError(f"No checkpoint in {self.path} can be read: choose another --out and start anew.")
        return None

    def peek(self, template: PyTree) -> tuple[int, PyTree] | None:
        """As `restore`, and leaves no trace: for a look at a run that may be going on. None if nothing can be read."""
        directory = (self.path / "checkpoints").resolve()
        for _ in range(3 if directory.is_dir() else 0):  # its writer may take away what was just listed
            manager = _orbax().CheckpointManager(directory, options=_orbax().CheckpointManagerOptions(read_only=True))
            for step in sorted(manager.all_steps(), reverse=True):
                with contextlib.suppress(Exception):  # whatever a damaged file makes tensorstore raise
                    return step, _read(manager, step, template)
        return None

    def _set_aside(self, steps: list[int]) -> None:
        for step in steps:
            damaged = self.path / "checkpoints" / f"damaged-{step}"
            shutil.rmtree(damaged, ignore_errors=True)
            os.replace(self.path / "checkpoints" / str(step), damaged)
        if steps:
            self._manager.reload()

    def log(self, row: dict[str, Any]) -> None:
        with self._writing("the log"), self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def export(self, objective: lo.Objective, record: dict[str, Any]) -> None:
        with self._writing("the objective"):
            lo.save(objective, self.objective, record)

    def rows(self) -> list[dict[str, Any]]:
        """All logged rows; a last line that a crash cut short is left out."""
        return read_rows(self.metrics)

    def forget_after(self, generation: int) -> None:
        """Drop the rows of generations that will be run again."""
        kept = [json.dumps(row) + "\n" for row in self.rows() if row["generation"] <= generation]
        with self._writing("the log"):
            write_text(self.metrics, "".join(kept))

    @contextlib.contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """A disk that is full or read-only becomes a sentence. What was there before is whole."""
        try:
            yield
        except OSError as error:
            raise RunError(
                f"Cannot write {what} of {self.path} ({error.strerror or error}): the same command goes on from the last "
                "checkpoint, once it can."
            ) from None

    @property
    def _manager(self):
        if not hasattr(self, "_opened"):
            ocp = _orbax()
            alone = ocp.options.MultiprocessingOptions(
                primary_host=0, active_processes={0}, barrier_sync_key_prefix="0"
            )
            options = ocp.CheckpointManagerOptions(
                max_to_keep=3,
                create=False,
                enable_async_checkpointing=False,
                cleanup_tmp_directories=True,
                **({"multiprocessing_options": alone} if processes.several() else {}),
            )
            directory = (self.path / "checkpoints").resolve()
            directory.mkdir(exist_ok=True)
            self._opened = ocp.CheckpointManager(directory, options=options)
        return self._opened


def read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def write_text(path: Path, text: str) -> None:
    """Atomically: the path holds the old text or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


@contextlib.contextmanager
def open_run(out: str | os.PathLike, recipe: Any) -> Iterator[Store]:
    """The store of this recipe's run in `out`, new or as it was left, locked while the context lasts.

    Raises RunError if `out` holds something else, another recipe's run, or a run that is going on.
    """
    path = Path(out)
    _refuse_foreign(path)
    with locked(path):
        for half in path.glob(".objective.safetensors.*"):  # of an export that was killed
            half.unlink()
        _check_recipe(path / "recipe.json", recipe)
        yield Store(path)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """A directory, made if need be, for this process alone while the context lasts; RunError while another has it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("a")
    except OSError as error:
        raise RunError(f"Cannot write to {path} ({error.strerror}): choose another --out.") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"Another process is running in {path}: wait for it, or choose another --out.") from None
        yield


def _refuse_foreign(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file; --out must name a directory of its own for the run.")
    if path.exists() and any(path.iterdir()) and not (path / "recipe.json").exists():
        others = {e.name for e in path.iterdir() if e.name != ".lock" and not e.name.endswith(".partial")}
        if others:
            raise RunError(
                f"{path} is not empty and holds no run ({sorted(others)[0]} is in it): choose another --out."
            )


def _check_recipe(path: Path, recipe: Any) -> None:
    mine = flatten(dataclasses.asdict(recipe))
    if path.exists():
        try:
            theirs = flatten(dataclasses.asdict(rebuild(type(recipe), json.loads(path.read_text()))))
        except (ValueError, TypeError, AttributeError, OSError, RecursionError):
            raise RunError(f"{path} is not a readable recipe: choose another --out.") from None
        for name in [*mine, *(n for n in theirs if n not in mine)]:
            if mine.get(name) != theirs.get(name) and name not in MAY_CHANGE:
                raise RunError(
                    f"{path.parent} belongs to another recipe: its {name} is {theirs.get(name)!r}, and this one's is "
                    f"{mine.get(name)!r}. Choose another --out, or the same {name}."
                )
    write_text(path, json.dumps(dataclasses.asdict(recipe), indent=2) + "\n")


def _read(manager: Any, step: int, template: PyTree) -> PyTree:
    """A checkpoint's state. Raises whatever a damaged file makes tensorstore raise, or ValueError where it is another state."""
    abstract = {"state": jax.tree.map(_abstract, _filled(template)), "sha256": np.zeros(32, np.uint8)}
    with _quiet_tensorstore():
        found = manager.restore(step, args=_orbax().args.StandardRestore(abstract))
    state = found["state"]
    if not np.array_equal(found["sha256"], _sealed(state)["sha256"]):
        raise ValueError("its contents do not match its checksum")
    return jax.tree.map(lambda x, like: x if like.size else like, state, template)


def _sealed(state: PyTree) -> PyTree:
    """With a checksum, for tensorstore has none of what an array holds."""
    digest = hashlib.sha256()
    for x in jax.tree.leaves(state):
        digest.update(f"{x.dtype}{x.shape}".encode() + x.tobytes())
    return {"state": state, "sha256": np.frombuffer(digest.digest(), np.uint8)}


def _filled(tree: PyTree) -> PyTree:
    """With one zero in every array that has no element, such as an LSTM's second bias: checkpoints cannot hold an empty one."""
    return jax.tree.map(lambda x: x if x.size else np.zeros(1, x.dtype), tree)


def _on_host(tree: PyTree) -> PyTree:
    """In arrays of NumPy's: of several processes one alone writes, and a device's array would be a matter for all."""
    return jax.tree.map(np.asarray, tree)


def _abstract(x: jax.Array) -> np.ndarray:
    """What is to be read: an array of NumPy's, which belongs to no device and no process."""
    return np.broadcast_to(np.zeros((), x.dtype), x.shape)


def _first_line(error: Exception) -> str:
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


def _orbax():
    """Imported when the first checkpoint is due: it takes seconds. It logs what it raises, at length."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    import orbax.checkpoint as ocp

    return ocp
