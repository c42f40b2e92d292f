"""The meta-training run: a host loop over the jitted steps of a search, with its checkpoints, logs and signals."""

from __future__ import annotations

import math
import signal
import time
import zlib
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import learned_objectives as lo
from discover.agents.arguments import directory_of
from discover.agents.objectives import fingerprint
from discover.console import advise, print_line
from discover.devices import parallel, processes
from discover.devices.modes import plain_jax
from discover.formats import clock, mean_return, number, show
from discover.progress import reached
from discover.results.statistics import Interval, interval, paired_improvement
from discover.runs.fit import advice, settled
from discover.runs.recipes import get
from discover.runs.record import Writers, depends_on, import_wandb, provenance
from discover.runs.store import RunError, Store, open_run, write_text
from discover.searches.outer_loop import MetaState, OuterLoop
from discover.searches.recipe import Recipe, recipe_in
from discover.searches.registry import START, search_for, start_record
from envs import plugs
from envs.check import not_finite

PyTree = Any

PROGRESS_INTERVAL_S = 5.0  # seconds: meta-gradient steps are quick, and need no line each


class Result(NamedTuple):
    """The result of a run."""

    objective: lo.Objective  # the evaluated mean that is exported: `Recipe.exported`
    out: Path
    rows: list[dict[str, Any]]  # the log, a row per generation
    stopped: int | None  # the signal that stopped it early, if one did


@plain_jax()
def meta_train(
    recipe: Recipe | str,
    out: str | Path,
    *,
    devices: Sequence[Any] | None = None,
    wandb: bool = False,
    quiet: bool = False,
    config: str | None = None,
) -> Result:
    """Search for an objective. The same call on the same `out` resumes, exactly. `recipe`: a Recipe, or the name of one.

    Leaves in `out`: recipe.json, metrics.jsonl, checkpoints/, tensorboard/ and objective.safetensors, which is the best or the
    last evaluated mean (`Recipe.exported`) with the record of how it was made. Ctrl-C and SIGTERM stop it after the generation in
    flight, with a checkpoint.

    `devices`: those that run the lives, of all processes (default: all there are). A chunk "auto" becomes the number that suits
    them when the run begins; recipe.json has that number, and a run that is resumed keeps it.

    `config`: the text of the file that the recipe was read from; `out` keeps it as config.toml.

    On several processes (`jax.distributed.initialize`, before discover is imported) each makes the same call; `out` is the
    first one's, and the rows of the result are there alone.

    Raises:
      RunError: `out` holds something else, another recipe's run, or a run that is going on.
      ValueError: an environment or a size that cannot be.
      TypeError: `out` is no path.
      LostProcess: another process of the run is gone.
    """
    if isinstance(recipe, str):
        recipe = get(recipe)
    if not isinstance(recipe, Recipe):
        raise ValueError(
            f"recipe must be a Recipe or the name of one, and is {recipe!r}: see discover.recipes.RECIPES."
        )
    out = directory_of(out)
    if wandb and processes.is_primary():
        import_wandb()
    with processes.translate_disconnects():
        return _meta_train(recipe, out, devices, wandb, quiet, config)


def _meta_train(
    recipe: Recipe, out: str | Path, devices: Sequence[Any] | None, wandb: bool, quiet: bool, config: str | None
) -> Result:
    search = search_for(settled(recipe, Path(out), devices), Path(out), devices)
    recipe = search.recipe
    processes.assert_equal_across_processes(
        "recipe or start", zlib.crc32(f"{recipe} {fingerprint(search.template)}".encode()) >> 1
    )
    with (
        open_run(out, recipe) if processes.is_primary() else nullcontext() as store,
        _stop_signals() as stop,
    ):
        if store is not None and recipe.objective.keeps_copy and not (store.path / START).exists():
            lo.save(search.template, store.path / START, start_record(search.template))
        if store is not None and config is not None:
            write_text(store.path / "config.toml", config)
        loop = _Loop(search, store, quiet, wandb)
        try:
            stopped = loop.run(stop)
        finally:
            if loop.writer is not None:
                loop.writer.close()
        if processes.is_multiprocess():
            processes.barrier()  # otherwise the other processes exit and report process 0 as lost
        return Result(loop.state.best, Path(out), store.rows() if store is not None else [], stopped)


@plain_jax()
def last_state(out: str | Path) -> tuple[OuterLoop, MetaState]:
    """The search of the run in a directory, and its state at the newest readable checkpoint. Use it to inspect the
    curriculum, the agents or the mean. The run may be in progress. Raises ValueError without a run or a checkpoint."""
    search = search_for(recipe_in(out), Path(out))
    state = search.init()
    found = Store(Path(out)).peek(checkpoint_template(search, state), owner(search))
    if found is None:
        raise ValueError(f"{out} holds no checkpoint that can be read: let the run make one.")
    return search, search.placed(parallel.wrap_keys(search.from_checkpoint(found[1]), state))


def checkpoint_template(search: OuterLoop, state: MetaState) -> PyTree:
    """Arrays of the shapes and types that a checkpoint of the search holds; they take no memory."""
    empty = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), parallel.unwrap_keys(state))
    return search.to_checkpoint(empty)


def owner(search: OuterLoop) -> str:
    """The class of a search with its place, for messages."""
    return f"{type(search.search).__name__} ({plugs.where(search.search)})"


def _resuming(path: Path, generation: int, generations: int) -> str:
    if generation > generations:
        return f"{path} has {generation} generations, more than the {generations} asked for: nothing is left to do."
    return f"Resuming {path} at generation {generation} of {generations}."


def gains(evaluations: dict[int, dict[str, list]], best: int) -> dict[str, Interval | None]:
    """By environment: mean return of a generation's lives minus that of generation 0, with its 95% interval over lives
    (a t-interval below 8 lives).

    Both generations have the same tasks, so lives are resampled in pairs. None if a life diverged, if generation 0 is the best,
    or for a single life. Empty if the log of either generation is missing.
    """
    found = {}
    for env, start in (evaluations.get(0, {}) if best in evaluations else {}).items():
        lives = evaluations[best][env]
        known = best > 0 and len(lives) > 1 and None not in (*lives, *start)
        found[env] = interval(paired_improvement, lives, start, paired=True) if known else None
    return found


def outcome(rows: list[dict[str, Any]], best: int, *, selected: bool = True) -> list[str]:
    """What a finished run reports: the generation it exports, its gain over the start, and a warning if it gained nothing.

    `selected`: whether it is the best of those evaluated, and not the last one.
    """
    evaluations = {row["generation"]: row["evaluation"] for row in rows if "evaluation" in row}
    if not {0, best} <= evaluations.keys():
        return [
            f"Exported: generation {best}. What it gained over the start is not known, since metrics.jsonl, or a part of it, is "
            "gone."
        ]
    if best == 0:
        count, why = len(evaluations) - 1, "scored higher" if selected else "kept all agents finite"
        return [
            f"Exported: generation 0, the start of the search. None of the {count} later evaluated means {why}, so the "
            "search found nothing. More generations, or another sigma or learning rate, may help."
        ]
    lines = []
    for env, gain in gains(evaluations, best).items():
        before, after = (show(mean_return(evaluations[g][env])) for g in (0, best))
        change = "" if gain is None else f", difference {gain:+.2f}, 95% interval over {len(evaluations[0][env])} lives"
        lines.append(f"Exported: generation {best}. {env}: mean return {after}, at the start {before}{change}.")
    known = [gain for gain in gains(evaluations, best).values() if gain is not None]
    if known and not any(gain.low > 0 for gain in known):
        lines.append("The gain over the start is within its interval: the search may have found nothing.")
    if selected and len(evaluations) > 2:
        lines.append(
            f"The difference is optimistic, since generation {best} is the best of {len(evaluations)} evaluated."
        )
    return lines


class _Loop:
    """The host's side of a run: what to do after each generation, and when.

    Of several processes the first alone has a store, and a writer; the others do as it does, and say nothing.
    """

    def __init__(self, search: OuterLoop, store: Store | None, quiet: bool, wandb: bool):
        self.search, self.store, self.quiet = search, store, quiet or store is None
        self.recipe = search.recipe
        self.state = search.init()
        restored = self._restored()
        self.anew = restored is None
        if restored is not None:
            self.state = search.placed(parallel.wrap_keys(search.from_checkpoint(restored[1]), self.state))
        if store is not None and restored is not None:
            self._say(_resuming(store.path, restored[0], self.recipe.generations))
            store.forget_after(restored[0])
        elif store is not None and store.metrics.exists():
            store.metrics.unlink()
        self.news = self._news()
        self.steps_before = search.env_steps(self.state)
        self.waited_before = search.device_seconds
        self.writer = None if store is None else Writers(store.path / "tensorboard", self.recipe, wandb)
        self._said = -math.inf

    def _news(self) -> dict[str, Any]:
        """For the next row of the log: what the run's bits depend on, where that is not what the log says already."""
        here = depends_on(self.recipe, len(self.search.available))
        known = [] if self.store is None else [row["depends_on"] for row in self.store.rows() if "depends_on" in row]
        return {} if known[-1:] == [here] else {"depends_on": here}

    def _restored(self) -> tuple[int, PyTree] | None:
        """(generation, state) of the newest readable checkpoint, as the first process found it."""
        template = checkpoint_template(self.search, self.state)
        found = None if self.store is None else self.store.restore(template, owner(self.search))
        generation = int(processes.broadcast_from_first(np.int32(-1 if found is None else found[0])))
        if generation < 0:
            return None
        if found is None:
            found = generation, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template)
        return generation, processes.broadcast_from_first(found[1])

    def run(self, stop: list[int]) -> int | None:
        """Until the last generation or a signal; returns the signal."""
        recipe, start, stopped = self.recipe, time.monotonic(), None
        if self.anew:
            self._finish_generation(0, {}, start)
        first = int(self.state.generation)
        for index in range(first + 1, recipe.generations + 1):
            if (
                stopped := processes.max_over_processes(stop[0] if stop else 0) or None
            ):  # any process may have received the signal
                break
            began = time.monotonic()
            self.state, seen = self._generation(index)
            self._finish_generation(index, seen, began)
        index = int(self.state.generation)
        self._save(index)
        self._export(index)
        if stopped:
            self._say(f"Stopped after generation {index}, which is saved. The same command continues from it.")
        elif self.store is not None:
            selected = self.recipe.exported == "best"
            for line in outcome(self.store.rows(), int(self.state.best_generation), selected=selected):
                self._say(line)
        return stopped

    def _generation(self, index: int) -> tuple[MetaState, dict[str, Any]]:
        """A step of the search. RunError, after a checkpoint of the state before it, where a device runs out of memory."""
        try:
            return self.search.generation(self.state)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
        self._save(index - 1)
        raise RunError(
            f"A device ran out of memory in generation {index}; generation {index - 1} is saved. "
            f"{advice(self.recipe, self.search.available)}."
        )

    def _save(self, index: int) -> None:
        state = parallel.to_default_device(parallel.unwrap_keys(self.state))
        if self.store is not None:
            self.store.save(index, self.search.to_checkpoint(state))

    def _finish_generation(self, index: int, seen: dict[str, Any], began: float) -> None:
        recipe = self.recipe
        row: dict[str, Any] = {"generation": index, "env_steps": 0} | seen
        if index % recipe.evaluate_every == 0 or index == recipe.generations:
            self.state, returns = self.search.evaluate(self.state)
            row["evaluation"] = {name: [number(r) for r in rs] for name, rs in zip(recipe.envs, returns, strict=True)}
            row["best_score"] = number(self.state.best_score)
            if index == 0 and self.store is not None:
                self._warn_of_environments(row["evaluation"])
        row |= self.search.describe(self.state) | self.news
        self.news = {}
        row["env_steps"] = self.search.env_steps(self.state)
        now, waited = time.monotonic(), self.search.device_seconds
        seconds = now - began
        row["seconds"] = round(seconds, 3)
        row["loop_seconds"] = round(seconds - (waited - self.waited_before), 4)
        self.waited_before = waited
        row["steps_per_second"] = round((row["env_steps"] - self.steps_before) / seconds)
        self.steps_before = row["env_steps"]
        if self.store is not None and self.writer is not None:
            self.store.log(row)
            self.writer.write(row)
            self._progress(row)
        if index % recipe.checkpoint_every == 0:
            self._save(index)
        if "evaluation" in row:
            self._export(index)

    def _warn_of_environments(self, evaluation: dict[str, list]) -> None:
        """Where no life has a return at the start, because its environment gives no numbers."""
        for setting, (name, returns) in zip(self.search.settings, evaluation.items(), strict=True):
            if returns == [None] * len(returns) and (fault := not_finite(setting.agent.env)) is not None:
                advise(f"{name} {fault}, so no agent has a return there: envs.check tests an environment.")

    def _export(self, index: int) -> None:
        if self.store is None:
            return
        evaluations = {row["generation"]: row["evaluation"] for row in self.store.rows() if "evaluation" in row}
        record = provenance(self.recipe) | {
            "generation": int(self.state.best_generation),  # that this objective is the mean of
            "generations": index,  # that the search had seen when this was written
            "env_steps": self.search.env_steps(self.state),
            "evaluations": evaluations,
            "gain": {
                env: None if gain is None else dict(zip(("mean", "low", "high"), gain, strict=True))
                for env, gain in gains(evaluations, int(self.state.best_generation)).items()
            },
        }
        if self.recipe.objective.keeps_copy:
            record["start"] = fingerprint(self.search.template)
        self.store.export(self.state.best, record)

    def _progress(self, row: dict[str, Any]) -> None:
        index, total = row["generation"], self.recipe.generations
        parts = [f"generation {index:>{len(str(total))}}/{total}"]
        if "fitness" in row:
            parts.append("population " + " ".join(show(f["mean"]) for f in row["fitness"].values()))
        if "meta" in row:
            norm = row["meta"]["gradient_norm"]
            parts.append(f"reward {row['meta']['reward'] or 0.0:.4f}")
            parts.append("skipped, no finite gradient" if norm is None else f"|gradient| {norm:.3f}")
            if row["meta"]["dropped_fraction"]:
                parts.append(f"{row['meta']['dropped_fraction']:.0%} dropped")
        if "evaluation" in row:
            means = [mean_return(r) for r in row["evaluation"].values()]
            parts.append("mean " + " ".join(show(m) for m in means))
        if row.get("diverged"):
            parts.append(f"diverged {row['diverged']:.0%}")
        parts.append(f"{row['steps_per_second'] / 1e3:,.0f}k env steps/s")
        if index:
            self._seconds = 0.7 * getattr(self, "_seconds", row["seconds"]) + 0.3 * row["seconds"]
            parts.append(f"{clock(self._seconds * (total - index))} left")
        reached(index, total)
        now = time.monotonic()
        quick = "meta" in row and "evaluation" not in row and row["meta"]["gradient_norm"] is not None
        if quick and now - self._said < PROGRESS_INTERVAL_S:
            return
        self._said = now
        self._say("  ".join(parts))

    def _say(self, line: str) -> None:
        if not self.quiet:
            print_line(line)


@contextmanager
def _stop_signals():
    """A list that the first Ctrl-C, SIGTERM or SIGHUP is put into; a second Ctrl-C interrupts at once."""
    received: list[int] = []
    at = -math.inf

    def note(number, _frame):
        nonlocal at
        if received and number == signal.SIGINT and time.monotonic() - at > 1:  # sooner, it is the same one again
            raise KeyboardInterrupt
        at = time.monotonic()
        received.append(number)

    old = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                old[number] = signal.signal(number, note)
    except ValueError:  # not the main thread, which alone can handle signals
        pass
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
