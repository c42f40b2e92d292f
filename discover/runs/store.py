"""A run's directory: its recipe, checkpoints, metrics and objective, each written whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import learned_objectives as lo
from discover.console import print_line
from discover.devices import processes
from discover.formats import write_text
from discover.runs import checkpoints
from discover.searches.recipe import Recipe, recipe_of
from discover.searches.registry import START
from discover.settings import flatten

PyTree = Any

# Settings that may change when a run resumes. Another chunk can change the rounding; the log shows from which generation on.
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
                checkpoints.write(self._manager, generation, state)
            except Exception as error:  # whatever a full disk makes tensorstore raise
                full = "No space left on device"
                reason = full if full in str(error) else checkpoints.first_line(error)
                raise RunError(
                    f"Cannot write the checkpoint of generation {generation} ({reason}). When this is solved, the same "
                    "command continues from the one before."
                ) from None

    def restore(self, template: PyTree, owner: str = "the search") -> tuple[int, PyTree] | None:
        """The newest readable checkpoint, (generation, state), or None if there has never been one.

        If an older checkpoint can be read, the newer unreadable ones are damaged. They are renamed to damaged-N.

        `owner`: the class of the state, with its file and line. If no checkpoint can be read, because that class has changed, the
        RunError names it. If that run has made no step, it starts again: its checkpoint is renamed, and the result is None.
        """
        unreadable: dict[int, str] = {}
        misfits: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = checkpoints.read(self._manager, step, template)
            except Exception as error:  # whatever a damaged file makes tensorstore raise
                unreadable[step] = checkpoints.first_line(error)
                if why := checkpoints.misfit(self.path / "checkpoints" / str(step), template, owner):
                    misfits[step] = why
                else:
                    _say_damaged(step, unreadable[step])
            else:
                for each in misfits:
                    _say_damaged(each, unreadable[each])
                self._set_aside([*unreadable])
                return step, state
        if 0 in misfits and len(unreadable) == 1:
            print_line(f"The checkpoint of generation 0 does not fit {misfits[0]}. The run starts again.", error=True)
            self._set_aside([0])
        elif misfits:
            raise RunError(_unfit(self.path, misfits))
        elif unreadable:
            raise RunError(f"No checkpoint in {self.path} can be read: choose another --out and start again.")
        return None

    def peek(self, template: PyTree, owner: str = "the search") -> tuple[int, PyTree] | None:
        """As `restore`, but writes nothing, so the run may be in progress. None if nothing can be read."""
        directory = (self.path / "checkpoints").resolve()
        misfits: dict[int, str] = {}
        for _ in range(3 if directory.is_dir() else 0):  # the run may delete a checkpoint that was just listed
            manager = checkpoints.reader(directory)
            for step in sorted(manager.all_steps(), reverse=True):
                try:
                    return step, checkpoints.read(manager, step, template)
                except Exception:  # whatever a damaged file makes tensorstore raise
                    if why := checkpoints.misfit(directory / str(step), template, owner):
                        misfits[step] = why
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
                f"Cannot write {what} of {self.path} ({error.strerror or error}). When this is solved, the same command "
                "continues from the last checkpoint."
            ) from None

    @property
    def _manager(self):
        if not hasattr(self, "_opened"):
            ocp = checkpoints.orbax()
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


@contextlib.contextmanager
def open_run(out: str | os.PathLike, recipe: Recipe) -> Iterator[Store]:
    """The store of this recipe's run in `out`, new or as it was left, locked while the context lasts.

    Raises RunError if `out` holds something else, another recipe's run, or a run in progress.
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


def _say_damaged(step: int, why: str) -> None:
    print_line(f"The checkpoint of generation {step} is damaged ({why}); trying the one before.", error=True)


def _unfit(path: Path, misfits: dict[int, str]) -> str:
    step = max(misfits)
    advice = "Change the class back, or choose another --out."
    return f"The checkpoint of generation {step} in {path} does not fit {misfits[step]}. {advice}"
