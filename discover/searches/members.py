"""The members of a meta-gradient search in one environment: their windows, and births into the tasks of a curriculum."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import learned_objectives as lo
from discover.agents.agent import Agent, diverged
from discover.agents.mixed_mode import differentiated
from discover.agents.objectives import as_arrays, resolve_objective
from discover.devices import parallel
from discover.devices.parallel import to_default_device
from discover.plugins import is_ours
from discover.searches import curriculum as cu
from discover.searches.metagrad import ESTIMATORS, Member, MetaGrad, MetaGradConfig
from discover.searches.problem import Problem, final_return, live

PyTree = Any

STAGGER = 1_000_033  # folded into a first member's key: how much of its life is left


class Members:
    """Members whose lives roll on in one environment. Their arrays are in the state of the search."""

    def __init__(self, config: MetaGradConfig, problem: Problem, number: int):
        """`number`: which environment of the recipe."""
        c, self.curriculum, setting = config, problem.recipe.curriculum, problem.settings[number]
        self.config, self.problem, self.setting, self.number = config, problem, setting, number
        if self.curriculum.kind == "plr":
            cu.fields_read(cu.SCORES[self.curriculum.score])  # a score that cannot be used is refused here
        if c.estimator == "standard" and not problem.template.trains_value:
            raise ValueError(
                "search.estimator 'standard' takes advantages from a critic that is trained to be a value, and that of "
                f"{_other_critic(problem.template)}: choose 'debiased'."
            )
        if self.curriculum.kind == "plr" and self.curriculum.size < c.members:
            raise ValueError(
                f"curriculum.size must be at least search.members, {c.members}, and is {self.curriculum.size}."
            )
        env = setting.agent.env
        if self.curriculum.kind == "plr" and self.curriculum.score == "optimal_regret":
            if env.optimal_return is None:
                raise ValueError(
                    "curriculum.score 'optimal_regret' needs an environment that computes its optimal return, and "
                    f"{env.name} does not: choose 'regret', or a grid world whose objects keep their cells."
                )
        elif self.curriculum.kind == "plr" and self._antagonist is not None:
            Agent.fit(env, problem.recipe.agent, self._antagonist, problem.plan)  # raises here, with a sentence
        self.meta = MetaGrad(c, differentiated(setting.agent, c.differentiation))
        if not is_ours(ESTIMATORS[c.estimator]):
            self._check_estimator()
        self.group = problem.chunk or c.members  # members that are together in a device's program
        self.devices = parallel.devices_for(c.members // self.group, problem.available)

    def _key(self, purpose: str, generation: int) -> jax.Array:
        """The key of a purpose; one of this environment's own where there are several."""
        key = self.problem.key(purpose, generation)
        return jax.random.fold_in(key, self.number) if len(self.problem.settings) > 1 else key

    def _check_estimator(self) -> None:
        """ValueError, in a sentence, where the estimator of a user fails or returns no loss. Nothing is run."""

        def window(objective, key):
            member = self.meta.birth(cu.fresh(self.setting.tasks, key), key, jnp.int32(1))
            return self.meta.window(objective, member)[0]

        jax.eval_shape(window, as_arrays(self.problem.template), jax.random.key(0))

    def first(self) -> Member:
        """The first members, leaves [groups, chunk, ...]. Their lives end at different times."""
        c, tasks = self.config, self.setting.tasks
        keys = jax.random.split(self._key("start", 0), (c.members // self.group, self.group))

        def first(_, keys):
            def one(key):
                drawn = cu.fresh(tasks, jax.random.fold_in(key, cu.TASK))
                # Replaced after some of its life, so that those after it begin at different times.
                life = cu.num_updates(tasks.agent.config, drawn.task)
                windows = jax.random.randint(jax.random.fold_in(key, STAGGER), (), 1, -(-life // c.window) + 1)
                return self.meta.birth(drawn, key, jnp.minimum(windows * c.window, life))

            return jax.vmap(one)(keys)

        return parallel.sharded_map(first, chunk=1, devices=self.devices)(None, keys)

    def empty_buffer(self) -> cu.Buffer | None:
        """Of prioritised level replay."""
        return cu.empty(self.curriculum, self.setting.tasks) if self.curriculum.kind == "plr" else None

    def placed(self, members: Member) -> Member:
        return parallel.shard(members, self.devices)

    def grouped(self, members: Member) -> Member:
        """Members from a checkpoint, [P, ...] -> [groups, chunk, ...]."""
        return jax.tree.map(lambda x: np.asarray(x).reshape((-1, self.group, *x.shape[1:])), members)

    @cached_property
    def window(self):
        """(objective, members) -> (sums of meta-gradients over groups [groups, ...], members after a window, metrics)."""
        return parallel.sharded_map(self.meta.gradient, chunk=1, devices=self.devices)

    def renew(
        self, members: Member, buffer: cu.Buffer | None, ended: np.ndarray, broken: np.ndarray, generation: int
    ) -> tuple[Member, cu.Buffer | None]:
        """Let new members take the place of those whose lives have ended: (members, buffer).

        A curriculum hears of whole lives alone: not of those that diverged, nor of the first ones, which are cut short.
        """
        keys = jax.random.split(self._key("birth", generation), ended.size)
        task_keys = jax.vmap(lambda key: jax.random.fold_in(key, cu.TASK))(keys)
        if buffer is None:
            drawn = self._fresh(task_keys)
        else:
            drawn, tally = jax.tree.map(_flat, to_default_device((members.drawn, members.tally)))
            lengths = np.asarray(jnp.round(drawn.task.lifetime / self.setting.agent.config.steps_per_update))
            age = np.asarray(to_default_device(members.state.num_updates))
            whole = ended & ~broken & (age >= lengths.reshape(age.shape))
            final, reference = self._judge(members, drawn, whole, generation)
            life = cu.LifeSummary(
                final_return=final,
                reference=reference,
                positive_value_loss=tally.positive / tally.count,
                l1_value_loss=tally.absolute / tally.count,
                mean_value=tally.value / tally.count,
                max_return=tally.max_return,
            )
            buffer, drawn = self._replay(buffer, drawn, life, (whole.reshape(-1), ended.reshape(-1)), task_keys)
        grouped = jax.tree.map(lambda x: x.reshape((*ended.shape, *x.shape[1:])), (to_default_device(drawn), keys))
        return self._reborn(None, (members, ended, *grouped)), buffer

    @cached_property
    def _fresh(self):
        return jax.jit(jax.vmap(partial(cu.fresh, self.setting.tasks)))

    @cached_property
    def _replay(self):
        def replay(buffer, drawn, life, ended, keys):
            whole, wanted = ended
            buffer = cu.record(self.curriculum, buffer, drawn, life, whole)
            return cu.draw(self.curriculum, self.setting.tasks, buffer, keys, wanted)

        return jax.jit(replay)

    @cached_property
    def _reborn(self):
        def one(member: Member, ended, drawn: cu.AssignedTask, key):
            stop = cu.num_updates(self.setting.agent.config, drawn.task)
            new = self.meta.birth(drawn, key, stop)
            return jax.tree.map(lambda a, b: jnp.where(ended, a, b), new, member)

        return parallel.sharded_map(lambda _, item: jax.vmap(one)(*item), chunk=1, devices=self.devices)

    def _judge(self, members: Member, drawn: cu.AssignedTask, ended: np.ndarray, generation: int):
        """Of the members that ended: (their final returns f32[P], references f32[P]).

        A reference is found once, when a level is new, and comes back from the buffer with the level ever after.
        """
        final = reference = np.full(ended.size, np.nan, np.float32)
        if not self._reads & {"reference", "final_return"}:
            return jnp.asarray(final), jnp.asarray(reference)
        final = self._final_returns(None, members, ended, final.reshape(ended.shape))
        if "reference" not in self._reads:
            return to_default_device(final).reshape(-1), jnp.asarray(reference)
        new = ended.reshape(-1) & np.isnan(np.asarray(drawn.reference))
        keys = jax.random.split(self._key("antagonist", generation), ended.size)
        items = jax.tree.map(lambda x: x.reshape((*ended.shape, *x.shape[1:])), (drawn.task, keys))
        shape = ended.shape
        reference = self._references(
            self._antagonist, items, new.reshape(shape), np.asarray(drawn.reference).reshape(shape)
        )
        if self._antagonist is not None:
            lengths = np.asarray(drawn.task.lifetime) / self.setting.agent.config.steps_per_update
            self.problem.updates += int(lengths[new].sum())
        return to_default_device(final).reshape(-1), to_default_device(reference).reshape(-1)

    @cached_property
    def _reads(self) -> set[str]:
        return cu.fields_read(cu.SCORES[self.curriculum.score])

    @cached_property
    def _final_returns(self):
        def judge(_, member: Member):
            return final_return(self.setting, member.drawn.task, member.state)

        return parallel.sharded_map_where(judge, chunk=self.curriculum.chunk, devices=self.devices)

    @cached_property
    def _antagonist(self) -> lo.Objective | None:
        if "reference" not in self._reads or self.curriculum.score == "optimal_regret":
            return None
        return as_arrays(self.problem.recipe.loss.on(resolve_objective(self.curriculum.antagonist)))

    @cached_property
    def _references(self):
        setting, trained = self.setting, self._antagonist
        if trained is not None:
            setting = setting._replace(
                agent=Agent.fit(setting.agent.env, setting.agent.config, trained, self.problem.plan)
            )

        def reference(antagonist, item):
            task, key = item
            if antagonist is None:
                return setting.agent.env.optimal_return(task.env_params)
            state = live(setting, antagonist, task, key)
            return jnp.where(diverged(state), jnp.nan, final_return(setting, task, state))

        return parallel.sharded_map_where(reference, chunk=self.curriculum.chunk, devices=self.devices)


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape((-1, *x.shape[2:]))


def _other_critic(objective: lo.Objective) -> str:
    """What the critic of an objective is, where it is no value."""
    kind, width = type(objective).__name__, objective.critic_width
    if width == 1:
        return f"{kind} is not trained"
    return f"{kind} predicts {width} numbers per state" if width else f"{kind} has outputs of other kinds"
