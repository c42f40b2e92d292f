"""The meta-training run: a recipe becomes one pytree of state and a host loop over jitted generations."""

from __future__ import annotations

import signal
import time
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

import envs
import learned_objectives as lo
from discover import parallel
from discover.agent import Agent, Task, diverged
from discover.evolution import SHAPINGS, Evolution
from discover.recipes import Recipe, purpose_key
from discover.record import Writers, clock, import_wandb, mean_return, number, provenance, show
from discover.store import Store, open_run

PyTree = Any

STRETCHES = 10  # a life's fitness is its mean training return over the last of so many equal stretches


class MetaState(struct.PyTreeNode):
    """All that a run carries from one generation to the next. Arrays only."""

    generation: jax.Array  # i32[], generations done
    search: PyTree  # the strategy's state
    best: lo.Objective  # the mean with the best evaluation so far
    best_score: jax.Array  # f32[], see `MetaTraining._keep_best`
    best_generation: jax.Array  # i32[], the generations that mean had seen
    reference: jax.Array  # f32[E], the starting mean's return in each environment
    scale: jax.Array  # f32[E], the size of a difference that matters there


class Setting(NamedTuple):
    """One environment of a recipe, ready for lives."""

    agent: Agent
    task: Task
    num_updates: int


def life_fitness(setting: Setting, objective: lo.Objective, task: Task, key: jax.Array) -> jax.Array:
    """f32[]: what one life under an objective comes to, its mean training return at the end; NaN if its agent diverged.

    In a life too short for any episode to end, the mean return of those in play.
    """
    num_evals = min(STRETCHES, setting.num_updates)
    state, returns = setting.agent.train(objective, task, key, num_updates=setting.num_updates, num_evals=num_evals)
    fitness = jnp.where(jnp.isnan(returns[-1]), state.env.episodes.running.mean(), returns[-1])
    return jnp.where(diverged(state) | ~jnp.isfinite(fitness), jnp.nan, fitness)


class MetaTraining:
    """The compiled pieces of one recipe's run. Every key is a function of (seed, generation, pair, life)."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.template = recipe.template()
        self.evolution = Evolution(recipe.evolution, self.template)
        self.settings = tuple(self._settings())

    def _settings(self):
        recipe = self.recipe
        rates = recipe.learning_rates or (recipe.agent.learning_rate,) * len(recipe.envs)
        for name, rate in zip(recipe.envs, rates, strict=True):
            env, env_params = envs.make(name)
            agent = Agent(env, recipe.agent, self.template.critic_width)
            agent.networks  # raises here, with a sentence, for spaces that no head serves  # noqa: B018
            task = agent.task(env_params, recipe.total_steps).replace(learning_rate=jnp.float32(rate))
            yield Setting(agent, task, recipe.agent.num_updates(recipe.total_steps))

    def init(self) -> MetaState:
        count = len(self.settings)
        return MetaState(
            generation=jnp.int32(0),
            search=self.evolution.init(self._key("start", 0)),
            best=self.template,
            best_score=jnp.float32(-jnp.inf),
            best_generation=jnp.int32(0),
            reference=jnp.zeros(count),
            scale=jnp.ones(count),
        )

    def _key(self, purpose: str, generation: int) -> jax.Array:
        return jax.random.fold_in(purpose_key(self.recipe.seed, purpose), generation)

    @cached_property
    def _ask(self):
        return jax.jit(self.evolution.ask)

    @cached_property
    def _tell(self):
        shape = SHAPINGS[self.recipe.evolution.shaping]

        def tell(key, population, fitness, search):
            shaped = jnp.stack([shape(f) for f in jnp.moveaxis(fitness, -1, 0)]).mean(0)
            return self.evolution.tell(key, population, fitness, search, shaped)

        return jax.jit(tell)

    @cached_property
    def _lives(self):
        """Per environment: (task, keys shared by all), (pairs of objectives, keys of each pair) -> f32[P // 2, 2]."""

        def program(setting: Setting):
            def candidate(objective, task, keys):
                lives = jax.vmap(lambda key: life_fitness(setting, objective, task, key))
                return lives(keys).mean()

            def pair(shared, item):
                (task, shared_keys), (objectives, pair_keys) = shared, item
                keys = pair_keys if shared_keys is None else shared_keys
                return jax.vmap(candidate, in_axes=(0, None, None))(objectives, task, keys)

            return parallel.spread(pair, chunk=self.recipe.evolution.chunk)

        return [program(setting) for setting in self.settings]

    @cached_property
    def _evaluations(self):
        """Per environment: (objective, task), keys [S] -> f32[S]."""

        def program(setting: Setting):
            def life(shared, key):
                return life_fitness(setting, *shared, key)

            return parallel.spread(life, chunk=self.recipe.evolution.chunk)

        return [program(setting) for setting in self.settings]

    def generation(self, state: MetaState) -> tuple[MetaState, jax.Array]:
        """One generation: (next state, raw fitness f32[P // 2, 2, E])."""
        c = self.recipe.evolution
        index = int(state.generation)
        population, search = self._ask(self._key("ask", index), state.search, state.generation)
        fitness = []
        for e, (setting, lives) in enumerate(zip(self.settings, self._lives, strict=True)):
            key = jax.random.fold_in(self._key("life", index), e)
            if c.shared_keys == "population":
                shared_keys, pair_keys = jax.random.split(key, c.lives), None
            else:
                shared_keys, pair_keys = None, jax.random.split(key, (c.population // 2, c.lives))
            fitness.append(lives((setting.task, shared_keys), (population, pair_keys)))
        fitness = free(jnp.stack(fitness, axis=-1))
        search = self._tell(self._key("tell", index), population, fitness, search)
        return state.replace(generation=state.generation + 1, search=search), fitness

    def evaluate(self, state: MetaState) -> tuple[MetaState, jax.Array]:
        """Lives of the mean itself, on keys no candidate has met: (state with the best mean kept, f32[E, S])."""
        mean = self.evolution.mean(state.search)
        key = self._key("evaluation", int(state.generation))
        returns = jnp.stack(
            [
                evaluation(
                    (mean, setting.task),
                    jax.random.split(jax.random.fold_in(key, e), self.recipe.evaluation_seeds),
                )
                for e, (setting, evaluation) in enumerate(zip(self.settings, self._evaluations, strict=True))
            ]
        )
        returns = free(returns)
        return self._keep_best(state, mean, returns), returns

    @cached_property
    def _keep_best(self):
        def keep(state: MetaState, mean, lives):
            returns, finite = lives.mean(-1), jnp.isfinite(lives)
            start = jnp.where(finite, lives, 0.0).sum(-1) / jnp.maximum(finite.sum(-1), 1)
            spread = jnp.sqrt(jnp.where(finite, (lives - start[:, None]) ** 2, 0.0).mean(-1))
            first = state.generation == 0
            reference = jnp.where(first, start, state.reference)
            scale = jnp.where(first, jnp.maximum(jnp.maximum(jnp.abs(start), spread), 1e-3), state.scale)
            # Over environments of different scales: how far from the starting mean, in units of its return there. A mean
            # under which a life diverged is never the best.
            score = ((returns - reference) / scale).mean()
            better = jnp.isfinite(score) & (score > state.best_score)

            def pick(new, old):
                return jnp.where(better, new, old)

            return state.replace(
                best=jax.tree.map(pick, mean, state.best),
                best_score=pick(score, state.best_score),
                best_generation=pick(state.generation, state.best_generation),
                reference=reference,
                scale=scale,
            )

        return jax.jit(keep)

    def env_steps(self, generation: int) -> int:
        """Environment steps spent once `generation` generations are done, evaluations included."""
        recipe = self.recipe
        lifetimes = sum(s.num_updates * s.agent.config.steps_per_update for s in self.settings)
        evaluations = 1 + generation // recipe.evaluate_every
        if generation == recipe.generations and generation % recipe.evaluate_every:
            evaluations += 1
        candidates = generation * recipe.evolution.population * recipe.evolution.lives
        return lifetimes * (candidates + evaluations * recipe.evaluation_seeds)


def free(tree: PyTree) -> PyTree:
    """The same arrays, tied to no device. What came from devices, or from a checkpoint, is tied to those it was on: it would
    compile every program once more, and meet no other number of devices."""
    return jax.device_put(jax.device_get(tree))


class Result(NamedTuple):
    """What a run came to."""

    objective: lo.Objective  # the best evaluated mean
    out: Path
    rows: list[dict[str, Any]]  # the log, a row per generation
    stopped: int | None  # the signal that stopped it early, if one did


def meta_train(recipe: Recipe, out: str | Path, *, wandb: bool = False, quiet: bool = False) -> Result:
    """Search for an objective. The same call on the same `out` resumes, exactly.

    Leaves in `out`: recipe.json, metrics.jsonl, checkpoints/, tensorboard/ and objective.safetensors, the best evaluated
    mean with the record of how it was made. Ctrl-C and SIGTERM stop it after the generation in flight, with a checkpoint.

    Raises:
      RunError: `out` holds something else, another recipe's run, or a run that is going on.
      ValueError: an environment or a size that cannot be.
    """
    if wandb:
        import_wandb()
    training = MetaTraining(recipe)
    with open_run(out, recipe) as store, _stop_signals() as stop:
        loop = _Loop(training, store, quiet, wandb)
        try:
            stopped = loop.run(stop)
        finally:
            loop.writer.close()
        return Result(loop.state.best, store.path, store.rows(), stopped)


class _Loop:
    """The host's side of a run: what to do after each generation, and when."""

    def __init__(self, training: MetaTraining, store: Store, quiet: bool, wandb: bool):
        self.training, self.store, self.quiet = training, store, quiet
        self.recipe = training.recipe
        self.state = training.init()
        restored = store.restore(self.state)
        if restored is not None:
            self.state = free(restored[1])
            self._say(f"Resuming {store.path} at generation {restored[0]} of {self.recipe.generations}.")
            store.forget_after(restored[0])
        elif store.metrics.exists():
            store.metrics.unlink()
        self.writer = Writers(store.path / "tensorboard", self.recipe, wandb)

    def run(self, stop: list[int]) -> int | None:
        """Until the last generation or a signal; returns the signal."""
        recipe, start = self.recipe, time.monotonic()
        if self.state.generation == 0 and not self.store.rows():
            self._finish_generation(0, None, start)
        first = int(self.state.generation)
        for index in range(first + 1, recipe.generations + 1):
            if stop:
                break
            began = time.monotonic()
            self.state, fitness = self.training.generation(self.state)
            jax.block_until_ready(fitness)
            self._finish_generation(index, fitness, began)
        index = int(self.state.generation)
        self.store.save(index, self.state)
        self._export(index)
        if stop:
            self._say(f"Stopped after generation {index}, which is saved; the same command goes on from there.")
        return stop[0] if stop else None

    def _finish_generation(self, index: int, fitness, began: float) -> None:
        recipe = self.recipe
        row: dict[str, Any] = {"generation": index, "env_steps": self.training.env_steps(index)}
        if fitness is not None:
            row |= _summarise(fitness, recipe.envs)
        if index % recipe.evaluate_every == 0 or index == recipe.generations:
            self.state, returns = self.training.evaluate(self.state)
            row["evaluation"] = {name: [number(r) for r in rs] for name, rs in zip(recipe.envs, returns, strict=True)}
            row["best_score"] = number(self.state.best_score)
        row["mean_norm"] = number(jnp.linalg.norm(self.state.search.mean))
        row["sigma"] = number(self.training.evolution.sigma(self.state.search, index))
        seconds = time.monotonic() - began
        row["seconds"] = round(seconds, 3)
        before = self.training.env_steps(index - 1) if index else 0
        row["steps_per_second"] = round((row["env_steps"] - before) / seconds)
        self.store.log(row)
        self.writer.write(row)
        self._progress(row)
        if index % recipe.checkpoint_every == 0:
            self.store.save(index, self.state)
        if "evaluation" in row:
            self._export(index)

    def _export(self, index: int) -> None:
        evaluations = {row["generation"]: row["evaluation"] for row in self.store.rows() if "evaluation" in row}
        record = provenance(self.recipe) | {
            "generation": int(self.state.best_generation),  # that this objective is the mean of
            "generations": index,  # that the search had seen when this was written
            "env_steps": self.training.env_steps(index),
            "evaluations": evaluations,
        }
        self.store.export(self.state.best, record)

    def _progress(self, row: dict[str, Any]) -> None:
        index, total = row["generation"], self.recipe.generations
        parts = [f"generation {index:>{len(str(total))}}/{total}"]
        if "fitness" in row:
            parts.append("population " + " ".join(show(f["mean"]) for f in row["fitness"].values()))
        if "evaluation" in row:
            means = [mean_return(r) for r in row["evaluation"].values()]
            parts.append("mean " + " ".join(show(m) for m in means))
        if row.get("diverged"):
            parts.append(f"diverged {row['diverged']:.0%}")
        parts.append(f"{row['steps_per_second'] / 1e3:,.0f}k env steps/s")
        if index:
            self._seconds = 0.7 * getattr(self, "_seconds", row["seconds"]) + 0.3 * row["seconds"]
            parts.append(f"{clock(self._seconds * (total - index))} left")
        self._say("  ".join(parts))

    def _say(self, line: str) -> None:
        if not self.quiet:
            print(line, flush=True)


def _summarise(fitness: jax.Array, names: tuple[str, ...]) -> dict[str, Any]:
    """Of raw fitness f32[P // 2, 2, E]: per environment over candidates that did not diverge, and the share that did."""
    out, fitness = {}, np.asarray(fitness)  # on the host: how many diverged is no shape to compile for
    for e, name in enumerate(names):
        values = fitness[..., e][np.isfinite(fitness[..., e])]
        if values.size:
            out[name] = {
                "mean": float(values.mean()),
                "std": float(values.std()),
                "best": float(values.max()),
            }
        else:
            out[name] = {"mean": None, "std": None, "best": None}
    return {"fitness": out, "diverged": float((~np.isfinite(fitness)).any(-1).mean())}


@contextmanager
def _stop_signals():
    """A list that the first Ctrl-C, SIGTERM or SIGHUP is put into; a second Ctrl-C interrupts at once."""
    received: list[int] = []

    def note(number, _frame):
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    old = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            old[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: leave signals to whoever has it
        pass
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
