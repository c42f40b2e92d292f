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
from discover.console import print_line
from discover.devices import processes
from discover.searches.recipe import Recipe, recipe_of
from discover.searches.registry import START
from discover.settings import flatten
from envs import plugs

PyTree = Any

# Between a run and its resumption. Another chunk may round otherwise, and the log says from which generation on.
MAY_CHANGE = ("generations", "checkpoint_every", "search.chunk")


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

    @property
    def began(self) -> bool:
        """Whether there is anything to resume or to read."""
        return self.metrics.exists() or any((self.path / "checkpoints").glob("[0-9]*"))

    def remove(self) -> None:
        """Remove the files of a run that has not begun, so that another recipe may run here."""
        for name in ("tensorboard", "checkpoints"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in ("recipe.json", "config.toml", START):
            (self.path / name).unlink(missing_ok=True)

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

    def restore(self, template: PyTree, owner: str = "the search") -> tuple[int, PyTree] | None:
        """The newest readable checkpoint, (generation, state), or None if there has never been one.

        Newer ones that cannot be read are set aside once an older one could: only then is it they that are at fault.

        `owner`: the class whose state it is, with its place, for the RunError where that class has changed since. A run that has
        made no step has nothing to lose: it starts anew then.
        """
        unreadable: dict[int, str] = {}
        misfits: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = _read(self._manager, step, template)
            except Exception as error:  # whatever a damaged file makes tensorstore raise
                unreadable[step] = _first_line(error)
                if misfit := _misfit(self.path / "checkpoints" / str(step), template, owner):
                    misfits[step] = misfit
                else:
                    _say_damaged(step, unreadable[step])
            else:
                for each in misfits:
                    _say_damaged(each, unreadable[each])
                self._set_aside([*unreadable])
                return step, state
        if 0 in misfits and len(unreadable) == 1:
            print_line(f"The checkpoint of generation 0 does not fit {misfits[0]}. The run starts anew.", error=True)
            self._set_aside([0])
        elif misfits:
            raise RunError(_unfit(self.path, misfits))
        elif unreadable:
            raise RunError(f"No checkpoint in {self.path} can be read: choose another --out and start anew.")
        return None

    def peek(self, template: PyTree, owner: str = "the search") -> tuple[int, PyTree] | None:
        """As `restore`, and leaves no trace: for a look at a run that may be going on. None if nothing can be read."""
        directory = (self.path / "checkpoints").resolve()
        misfits: dict[int, str] = {}
        for _ in range(3 if directory.is_dir() else 0):  # its writer may take away what was just listed
            manager = _orbax().CheckpointManager(directory, options=_orbax().CheckpointManagerOptions(read_only=True))
            for step in sorted(manager.all_steps(), reverse=True):
                try:
                    return step, _read(manager, step, template)
                except Exception:  # whatever a damaged file makes tensorstore raise
                    if misfit := _misfit(directory / str(step), template, owner):
                        misfits[step] = misfit
        if misfits:
            raise RunError(_unfit(self.path, misfits))
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
                **({"multiprocessing_options": alone} if processes.is_multiprocess() else {}),
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
def open_run(out: str | os.PathLike, recipe: Recipe) -> Iterator[Store]:
    """The store of this recipe's run in `out`, new or as it was left, locked while the context lasts.

    Raises RunError if `out` holds something else, another recipe's run, or a run that is going on.
    """
    path = Path(out)
    _refuse_foreign(path)
    with locked(path):
        for half in path.glob(".objective.safetensors.*"):  # of an export that was killed
            half.unlink()
        new = not (path / "recipe.json").exists()
        _check_recipe(path / "recipe.json", recipe)
        store = Store(path)
        try:
            yield store
        except Exception:
            if new and not store.began:
                store.remove()
            raise


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


def _recorded(path: Path) -> Recipe:
    try:
        recipe = json.loads(path.read_text())
    except (ValueError, OSError, RecursionError):
        raise RunError(f"{path} is not a readable recipe: choose another --out.") from None
    try:
        return recipe_of({"recipe": recipe})
    except ValueError as error:
        raise RunError(f"{path} cannot be used: {str(error).removesuffix('.')}. Choose another --out.") from None


def _check_recipe(path: Path, recipe: Recipe) -> None:
    mine = flatten(recipe.as_dict())
    if path.exists():
        theirs = flatten(_recorded(path).as_dict())
        for name in [*mine, *(n for n in theirs if n not in mine)]:
            if mine.get(name) != theirs.get(name) and name not in MAY_CHANGE:
                raise RunError(
                    f"{path.parent} belongs to another recipe: its {name} is {theirs.get(name)!r}, and this one's is "
                    f"{mine.get(name)!r}. Choose another --out, or the same {name}."
                )
    write_text(path, json.dumps(recipe.as_dict(), indent=2) + "\n")


def _read(manager: Any, step: int, template: PyTree) -> PyTree:
    """A checkpoint's state. Raises whatever a damaged file makes tensorstore raise, or ValueError where it is another state."""
    abstract = {"state": jax.tree.map(_abstract, _filled(template)), "sha256": np.zeros(32, np.uint8)}
    with _quiet_tensorstore():
        found = manager.restore(step, args=_orbax().args.StandardRestore(abstract))
    state = found["state"]
    if not np.array_equal(found["sha256"], _sealed(state)["sha256"]):
        raise ValueError("its contents do not match its checksum")
    if _types(state) != _types(_filled(template)):  # orbax reads an array of another shape as it is
        raise ValueError("its arrays have other shapes")
    return jax.tree.map(lambda x, like: x if like.size else like, state, template)


def _say_damaged(step: int, why: str) -> None:
    print_line(f"The checkpoint of generation {step} is damaged ({why}); trying the one before.", error=True)


def _unfit(path: Path, misfits: dict[int, str]) -> str:
    step = max(misfits)
    advice = "Change the class back, or choose another --out."
    return f"The checkpoint of generation {step} in {path} does not fit {misfits[step]}. {advice}"


def _misfit(directory: Path, template: PyTree, owner: str) -> str | None:
    """How the arrays of a checkpoint differ from those of the template: the class, and the first difference. None where they do
    not, or where that cannot be read."""
    with contextlib.suppress(Exception):  # whatever a damaged file makes orbax raise
        found = _orbax().StandardCheckpointHandler().metadata((directory / "default").resolve())
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
