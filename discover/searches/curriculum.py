"""The tasks that agents are assigned: drawn at random, from a fixed set, or replayed where there is something to learn.

A task is a level, a lifetime and a learning rate, which may fall to zero or stay. All are arrays, and a curriculum's memory is
one more pytree in the state of a run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct

from discover.agents.agent import Agent, Task
from discover.plugins import Registry, blame, is_array, returned
from envs import plugs
from envs.interface import Lifetimes

PyTree = Any

TASK = 1_000_003  # folded into an agent's key: the key of its task
AGENT = 1_000_033  # folded into a task's key: the key of the settings of its agent


@dataclass(frozen=True)
class CurriculumConfig:
    """How tasks are chosen. The fields after `kind` are for prioritised level replay; `size` is also for a fixed set."""

    kind: Literal["uniform", "fixed", "plr"] = "uniform"  # fresh tasks, a fixed set, or prioritised level replay
    size: int = 4000  # tasks in the buffer, or in the fixed set
    replay: float = 0.5  # probability that a new life goes to a task from the buffer
    prioritisation: Literal["rank", "proportional"] = "rank"  # replay by the rank of the score, or by the score
    temperature: float = 1.0  # beta: exponent 1 / beta on 1 / rank, or on the score, in the replay probability
    staleness: float = 0.1  # rho: weight of the time since the last visit in the replay probability
    score: str = "regret"  # of a task: regret, optimal_regret, positive_value_loss, l1_value_loss, max_mc, or yours
    antagonist: str = "a2c"  # whose return the regret is measured against: any objective
    chunk: int = 1  # antagonists trained side by side on a device

    def __post_init__(self):
        if self.kind not in ("uniform", "fixed", "plr"):
            raise ValueError(f"curriculum.kind must be uniform, fixed or plr, and is {self.kind!r}.")
        if self.prioritisation not in ("rank", "proportional"):
            raise ValueError(f"curriculum.prioritisation must be rank or proportional, and is {self.prioritisation!r}.")
        SCORES.require(self.score)
        for name in ("size", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"curriculum.{name} must be at least 1, and is {getattr(self, name)}.")
        for name in ("replay", "staleness"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"curriculum.{name} must be in [0, 1], and is {getattr(self, name)}.")
        if not self.temperature > 0:
            raise ValueError(f"curriculum.temperature must be positive, and is {self.temperature}.")


@dataclass(frozen=True)
class Tasks:
    """Draws tasks of one environment: a pure function of a key, to be jitted and mapped."""

    agent: Agent
    total_steps: int | None  # the lifetime, in environment steps; None: the distribution's own
    learning_rate: float
    num_fixed: int | None = None  # size of a fixed set to draw from; None: draw from all tasks
    seed: int = 0  # of the fixed tasks
    longest_steps: int | None = None  # lifetimes are log-uniform from total_steps to this; None: all are total_steps
    rate_spread: float = 1.0  # learning rates are log-uniform from learning_rate / spread to learning_rate * spread
    constant_rates: float = 0.0  # share of lives with a constant learning rate; the others follow AgentConfig.anneal

    def __post_init__(self):
        if self.total_steps is not None:
            whole = self.agent.config.num_updates
            shortest = whole(self.total_steps)
            if self.longest_steps is not None and whole(self.longest_steps, "longest_steps") < shortest:
                raise ValueError(
                    f"longest_steps must be at least total_steps, {self.total_steps:,}, and is {self.longest_steps:,}."
                )
            return
        if self.longest_steps is not None:
            raise ValueError("longest_steps needs total_steps, the shortest lifetime: give both, or neither.")
        lifetimes, rollout = self.agent.env.lifetimes, self.agent.config.steps_per_update
        if lifetimes is None:
            raise ValueError(f"total_steps must be given for {self.agent.env.name}, which has no lifetimes of its own.")
        if lifetimes.shortest < rollout:
            raise ValueError(
                f"the shortest life on {self.agent.env.name} is {lifetimes.shortest} environment steps, less than one rollout of "
                f"{rollout}: make num_envs or num_steps smaller, or give total_steps."
            )
        self.agent.config.num_updates(lifetimes.longest)

    @property
    def varied(self) -> bool:
        """Whether there is more than one level."""
        return self.agent.env.sample_level is not None

    @property
    def longest(self) -> int:
        """Updates in the longest life there can be."""
        return self.agent.config.num_updates(self.longest_steps or self.total_steps or self.agent.env.lifetimes.longest)

    @property
    def lifetimes(self) -> Lifetimes:
        """Whole rollouts, in environment steps."""
        rollout = self.agent.config.steps_per_update
        if self.total_steps is not None:
            return Lifetimes(self.agent.config.num_updates(self.total_steps) * rollout, self.longest * rollout, rollout)
        return self.agent.env.lifetimes

    def __call__(self, key: jax.Array) -> Task:
        if self.num_fixed is not None:
            key = jax.random.fold_in(jax.random.key(self.seed), jax.random.randint(key, (), 0, self.num_fixed))
        level_key, life_key = jax.random.split(key)
        env, config = self.agent.env, self.agent.config
        level = env.sample_level(level_key) if self.varied else env.default_params
        lifetime = self.lifetimes.sample(life_key)
        if self.total_steps is None:  # the environment's own, which need not be whole rollouts
            lifetime = lifetime // config.steps_per_update * config.steps_per_update
        rate_key, anneal_key = jax.random.split(jax.random.fold_in(key, AGENT))
        rate, anneal = jnp.float32(self.learning_rate), None
        if self.rate_spread > 1.0:
            rate *= self.rate_spread ** jax.random.uniform(rate_key, minval=-1.0, maxval=1.0)
        if self.constant_rates > 0.0:
            anneal = config.anneal & (jax.random.uniform(anneal_key) >= self.constant_rates)
        return Task(level, jnp.float32(lifetime), rate, anneal)


def num_updates(config: Any, task: Task) -> jax.Array:
    """i32[]: updates in the life of a task."""
    return jnp.round(task.lifetime / config.steps_per_update).astype(jnp.int32)


class LifeSummary(struct.PyTreeNode):
    """What is known of a life when it ends: what scores are made of."""

    final_return: jax.Array  # f32[], of the agent at the end
    reference: jax.Array  # f32[], of the antagonist, or of the best policy there is
    positive_value_loss: jax.Array  # f32[], mean over the life of max(A, 0), A the generalised advantage
    l1_value_loss: jax.Array  # f32[], mean over the life of |A|
    mean_value: jax.Array  # f32[], mean over the life of V(s)
    max_return: jax.Array  # f32[], the highest of any episode on this level


# A score: LifeSummary -> f32[], how much there is to learn on the task of that life.
# Jiang et al. 2021, arXiv:2010.03934 (the value losses) and arXiv:2110.02439 (MaxMC); Jackson et al. 2023, arXiv:2310.02782.
SCORES = Registry(
    "scores",
    "score",
    {
        "regret": lambda life: life.reference - life.final_return,
        "optimal_regret": lambda life: life.reference - life.final_return,
        "positive_value_loss": lambda life: life.positive_value_loss,
        "l1_value_loss": lambda life: life.l1_value_loss,
        "max_mc": lambda life: life.max_return - life.mean_value,
    },
    "a function of a LifeSummary",
)


def fields_read(score: Callable[[LifeSummary], jax.Array]) -> set[str]:
    """The fields of a life that a score depends on. A run trains antagonists and tests agents for those scores alone that read
    `reference` or `final_return`."""
    names, wrong = [field.name for field in dataclasses.fields(LifeSummary)], []

    def of_life(*values):
        worth = score(LifeSummary(*values))
        if is_array(worth) and jnp.shape(worth) == ():
            return worth
        wrong.append(returned(worth))
        return jnp.float32(0)

    with blame(score, "the score"):
        traced = jax.make_jaxpr(of_life)(*(jnp.float32(0) for _ in names)).jaxpr
    if wrong:
        raise ValueError(
            f"a score must return one number for each life, and returns {wrong[0]} ({plugs.where(score)})."
        )
    read = {id(x) for equation in traced.eqns for x in equation.invars} | {id(x) for x in traced.outvars}
    return {name for name, x in zip(names, traced.invars, strict=True) if id(x) in read}


class Buffer(struct.PyTreeNode):
    """The tasks that may be replayed. Leaves [size, ...]."""

    task: Task
    score: jax.Array  # f32, of the last life there
    played: jax.Array  # i32, the draw in which the task was played last
    reference: jax.Array  # f32, the antagonist's return, trained once
    max_return: jax.Array  # f32
    number: jax.Array  # i32, which task this is, counted from 1 over all that ever entered; 0: an empty slot
    entered: jax.Array  # i32[], tasks that ever entered
    draws: jax.Array  # i32[], draws so far


def empty(config: CurriculumConfig, tasks: Tasks) -> Buffer:
    like = jax.eval_shape(tasks, jax.random.key(0))
    size = config.size
    return Buffer(
        task=jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), like),
        score=jnp.zeros(size),
        played=jnp.zeros(size, jnp.int32),
        reference=jnp.full(size, jnp.nan),
        max_return=jnp.full(size, -jnp.inf),
        number=jnp.zeros(size, jnp.int32),
        entered=jnp.int32(0),
        draws=jnp.int32(0),
    )


def replay_probability(config: CurriculumConfig, buffer: Buffer) -> jax.Array:
    """f32[size]: P = (1 - rho) P_score + rho P_stale, over the tasks in the buffer; zero in empty slots.

        P_score ~ h(score)^(1 / beta),    h = 1 / rank, or the score itself where it is positive
        P_stale ~ draws since the task was played

    Reference: Jiang et al. 2021, section 3, arXiv:2010.03934. A score that is not finite ranks last.
    """
    filled = buffer.number > 0
    score = jnp.where(filled & jnp.isfinite(buffer.score), buffer.score, -jnp.inf)
    if config.prioritisation == "rank":
        rank = jnp.argsort(jnp.argsort(-score, stable=True), stable=True) + 1
        weight = (1.0 / rank) ** (1.0 / config.temperature)
    else:
        top = jnp.maximum(score.max(), 1e-6)  # the powers stay finite
        weight = (jnp.maximum(score, 0.0) / top) ** (1.0 / config.temperature)
    stale = (buffer.draws - buffer.played).astype(jnp.float32)
    return (1.0 - config.staleness) * _normalised(weight, filled) + config.staleness * _normalised(stale, filled)


def _normalised(weight: jax.Array, among: jax.Array) -> jax.Array:
    """Weights that sum to one; even ones where all are zero."""
    weight = jnp.where(among, weight, 0.0)
    total, even = weight.sum(), among / jnp.maximum(among.sum(), 1)
    return jnp.where(total > 0, weight / jnp.where(total > 0, total, 1.0), even)


class AssignedTask(struct.PyTreeNode):
    """A task in play, and what the buffer knows of it."""

    task: Task
    slot: jax.Array  # i32[], where it lies in the buffer; -1: it is new
    number: jax.Array  # i32[], its number there
    reference: jax.Array  # f32[], NaN if it is new
    max_return: jax.Array  # f32[]


def fresh(tasks: Tasks, key: jax.Array) -> AssignedTask:
    return AssignedTask(tasks(key), jnp.int32(-1), jnp.int32(0), jnp.float32(jnp.nan), jnp.float32(-jnp.inf))


def draw(
    config: CurriculumConfig, tasks: Tasks, buffer: Buffer, keys: jax.Array, wanted: jax.Array
) -> tuple[Buffer, AssignedTask]:
    """New tasks [n] for the keys [n]; those that are not `wanted` bool[n] leave no trace in the buffer."""
    probability = replay_probability(config, buffer)

    def one(key):
        coin, which, new = jax.random.split(key, 3)
        slot = jax.random.categorical(which, jnp.log(probability))
        replayed = AssignedTask(
            jax.tree.map(lambda x: x[slot], buffer.task),
            slot.astype(jnp.int32),
            buffer.number[slot],
            buffer.reference[slot],
            buffer.max_return[slot],
        )
        again = (jax.random.uniform(coin) < config.replay) & (buffer.entered > 0)
        return jax.tree.map(lambda a, b: jnp.where(again, a, b), replayed, fresh(tasks, new))

    drawn = jax.vmap(one)(keys)
    slot = jnp.where(wanted & (drawn.slot >= 0), drawn.slot, config.size)  # beyond the end: dropped
    now = buffer.draws + wanted.any()
    return buffer.replace(played=buffer.played.at[slot].set(now, mode="drop"), draws=now), drawn


def record(
    config: CurriculumConfig, buffer: Buffer, drawn: AssignedTask, life: LifeSummary, ended: jax.Array
) -> Buffer:
    """The buffer once it knows of the lives [n] that have `ended` bool[n].

    A task that lies in the buffer gets its new score; a new one takes an empty slot, or that of the task least likely to be
    replayed, if it scores higher. A replayed task that lost its slot since then is not inserted again.
    """
    score = SCORES[config.score](life)

    def one(i, buffer: Buffer) -> Buffer:
        slot = drawn.slot[i]
        known = (slot >= 0) & (buffer.number[slot] == drawn.number[i])
        vacant = jnp.argmin(buffer.number)  # an empty slot, if there is one
        full = buffer.number[vacant] > 0
        victim = jnp.argmin(replay_probability(config, buffer))
        place = jnp.where(known, slot, jnp.where(full, victim, vacant))
        new = (slot < 0) & (~full | (score[i] > buffer.score[victim]))
        best = jnp.maximum(life.max_return[i], jnp.where(known, buffer.max_return[place], -jnp.inf))
        changes = ended[i] & jnp.isfinite(score[i]) & (known | new)
        at = jnp.where(changes, place, config.size)  # beyond the end: dropped

        def put(leaf, value):
            return leaf.at[at].set(value, mode="drop")

        return Buffer(
            task=jax.tree.map(lambda leaf, x: put(leaf, x[i]), buffer.task, drawn.task),
            score=put(buffer.score, score[i]),
            played=put(buffer.played, jnp.where(known, buffer.played[place], buffer.draws)),
            reference=put(buffer.reference, life.reference[i]),
            max_return=put(buffer.max_return, best),
            number=put(buffer.number, jnp.where(known, drawn.number[i], buffer.entered + 1)),
            entered=buffer.entered + (changes & ~known),
            draws=buffer.draws,
        )

    return jax.lax.fori_loop(0, ended.shape[0], one, buffer)
