"""The search by meta-gradient: members whose lives roll on, born into the tasks of a curriculum."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

import learned_objectives as lo
from discover.agents.agent import Agent, diverged
from discover.agents.objectives import as_arrays, resolve_objective
from discover.devices import parallel
from discover.devices.parallel import to_default_device
from discover.formats import number
from discover.plugins import is_ours
from discover.searches import curriculum as cu
from discover.searches.metagrad import ESTIMATORS, Member, MetaGrad, MetaGradConfig
from discover.searches.problem import Problem, final_return, live
from discover.searches.search import Search

PyTree = Any

STAGGER = 1_000_033  # folded into a first member's key: how much of its life is left


class GradientState(struct.PyTreeNode):
    """Of a search by meta-gradient."""

    objective: lo.Objective
    opt_state: PyTree
    members: Member  # leaves [groups, chunk, ...]
    buffer: cu.Buffer | None  # of prioritised level replay


class GradientSearch(Search):
    """Meta-gradients over members whose lives roll on, born into the tasks of a curriculum."""

    def __init__(self, config: MetaGradConfig, problem: Problem):
        super().__init__(config, problem)
        if len(problem.settings) != 1:
            raise ValueError(
                "a meta-gradient search takes one environment, which may be a distribution, and envs names "
                f"{len(problem.settings)}."
            )
        (self.setting,) = problem.settings
        c, self.curriculum = config, problem.recipe.curriculum
        if self.curriculum.kind == "plr":
            cu.fields_read(cu.SCORES[self.curriculum.score])  # a score that cannot be used is refused here
        if c.estimator == "standard" and problem.template.critic_width != 1:
            raise ValueError(
                "search.estimator 'standard' takes advantages from the agent's own value, and this objective has none: "
                "choose 'debiased'."
            )
        if self.curriculum.kind == "plr" and self.curriculum.size < c.members:
            raise ValueError(
                f"curriculum.size must be at least search.members, {c.members}, and is {self.curriculum.size}."
            )
        env = self.setting.agent.env
        if self.curriculum.kind == "plr" and self.curriculum.score == "optimal_regret":
            if env.optimal_return is None:
                raise ValueError(
                    "curriculum.score 'optimal_regret' needs an environment that computes its optimal return, and "
                    f"{env.name} does not: choose 'regret', or a grid world whose objects keep their cells."
                )
        elif self.curriculum.kind == "plr" and self._antagonist is not None:
            Agent.fit(env, problem.recipe.agent, self._antagonist, problem.plan)  # raises here, with a sentence
        self.meta = MetaGrad(c, self.setting.agent)
        if not is_ours(ESTIMATORS[c.estimator]):
            self._check_estimator()
        self.group = problem.chunk or c.members  # members that are together in a device's program
        self.devices = parallel.devices_for(c.members // self.group, problem.available)

    def _check_estimator(self) -> None:
        """ValueError, in a sentence, where the estimator of a user fails or returns no loss. Nothing is run."""

        def window(objective, key):
            member = self.meta.birth(cu.fresh(self.setting.tasks, key), key, jnp.int32(1))
            return self.meta.window(objective, member)[0]

        jax.eval_shape(window, as_arrays(self.problem.template), jax.random.key(0))

    @cached_property
    def optimizer(self) -> optax.GradientTransformation:
        c = self.config
        clip = optax.identity() if c.max_grad_norm is None else optax.clip_by_global_norm(c.max_grad_norm)
        return optax.chain(clip, optax.adam(c.learning_rate))

    def init(self) -> PyTree:
        c = self.config
        keys = jax.random.split(self.problem.key("start", 0), (c.members // self.group, self.group))
        tasks = self.setting.tasks

        def first(_, keys):
            def one(key):
                drawn = cu.fresh(tasks, jax.random.fold_in(key, cu.TASK))
                # Replaced after some of its life, so that those after it begin at different times.
                life = cu.num_updates(tasks.agent.config, drawn.task)
                windows = jax.random.randint(jax.random.fold_in(key, STAGGER), (), 1, -(-life // c.window) + 1)
                return self.meta.birth(drawn, key, jnp.minimum(windows * c.window, life))

            return jax.vmap(one)(keys)

        members = parallel.sharded_map(first, chunk=1, devices=self.devices)(None, keys)
        objective = self._shared(as_arrays(self.problem.template))
        buffer = cu.empty(self.curriculum, tasks) if self.curriculum.kind == "plr" else None
        return GradientState(objective, self._shared(self.optimizer.init(objective)), members, buffer)

    def _shared(self, tree: PyTree) -> PyTree:
        """Arrays on the devices where a step leaves them, so that the second step does not compile again: on all devices if
        gradients are summed there, else on the default device."""
        return (
            parallel.replicated(tree, self.devices) if self.problem.plan.gathers_on_device else to_default_device(tree)
        )

    def to_checkpoint(self, state: GradientState) -> GradientState:
        members = jax.tree.map(lambda x: np.asarray(x).reshape((-1, *x.shape[2:])), state.members)
        return state.replace(members=members)

    def from_checkpoint(self, state: GradientState) -> GradientState:
        members = jax.tree.map(lambda x: np.asarray(x).reshape((-1, self.group, *x.shape[1:])), state.members)
        return state.replace(members=members)

    def placed(self, state: GradientState) -> GradientState:
        members = parallel.shard(state.members, self.devices)
        objective, opt_state = (self._shared(tree) for tree in to_default_device((state.objective, state.opt_state)))
        return GradientState(objective, opt_state, members, to_default_device(state.buffer))

    def mean(self, state: GradientState) -> lo.Objective:
        return state.objective

    @property
    def updates_per_step(self) -> float:
        return float(self.config.members * self.meta.rollouts)

    @cached_property
    def _window(self):
        return parallel.sharded_map(self.meta.gradient, chunk=1, devices=self.devices)

    @cached_property
    def _apply(self):
        """Of sums over groups of members [G, ...]: a step along their mean, and what share of the groups it leaves out.

        A member that diverged may take its group's sum with it, for this step; it is replaced before the next.
        """
        size = self.group

        def apply(grads, objective, opt_state):
            squares = [(g * g).sum(tuple(range(1, g.ndim))) for g in jax.tree.leaves(grads)]
            finite = jnp.isfinite(sum(squares))  # their norms: what is too large to square is too large to follow
            count = jnp.maximum(finite.sum(), 1) * size
            grads = jax.tree.map(
                lambda g: jnp.where(finite.reshape(-1, *(1,) * (g.ndim - 1)), g, 0).sum(0) / count, grads
            )
            norm = optax.tree.norm(grads)
            updates, after = self.optimizer.update(grads, opt_state, objective)
            moved = optax.apply_updates(objective, updates)
            # The squares of a sum may be too large where no group's own are.
            steps = finite.any() & jnp.isfinite(norm)
            objective, opt_state = jax.tree.map(
                lambda new, old: jnp.where(steps, new, old), (moved, after), (objective, opt_state)
            )
            return objective, opt_state, jnp.where(steps, norm, jnp.nan), 1.0 - finite.mean()

        return jax.jit(apply)

    def programs(self, state: GradientState) -> dict[str, tuple[Any, tuple]]:
        return {"meta-gradient": (self._window, (state.objective, state.members))}

    def step(self, state: GradientState, generation: int) -> tuple[GradientState, dict[str, Any]]:
        with self.problem.on_devices():
            grads, members, metrics = self._window(state.objective, state.members)
            grads = self._shared(grads)
        objective, opt_state, norm, dropped = self._apply(grads, state.objective, state.opt_state)
        state = state.replace(objective=objective, opt_state=opt_state, members=members)
        with self.problem.on_devices():
            metrics, ages, stops = to_default_device((metrics, members.state.num_updates, members.stop))
        broken = np.asarray(metrics.pop("diverged"))
        ended = np.asarray(ages >= stops) | broken
        self.problem.updates += self.config.members * self.meta.rollouts
        if ended.any():
            state = self._renew(state, ended, broken, generation)
        row = {name: number(np.asarray(value).mean()) for name, value in metrics.items()}
        row |= {
            "gradient_norm": number(norm),
            "dropped_fraction": number(dropped),
            "ended": int(ended.sum()),
            "diverged": int(broken.sum()),
        }
        return state, {"meta": row}

    def _renew(self, state: GradientState, ended: np.ndarray, broken: np.ndarray, generation: int) -> GradientState:
        """Let new members take the place of those whose lives have ended.

        A curriculum hears of whole lives alone: not of those that diverged, nor of the first ones, which are cut short.
        """
        keys = jax.random.split(self.problem.key("birth", generation), ended.size)
        task_keys = jax.vmap(lambda key: jax.random.fold_in(key, cu.TASK))(keys)
        buffer = state.buffer
        if buffer is None:
            drawn = self._fresh(task_keys)
        else:
            drawn, tally = jax.tree.map(_flat, to_default_device((state.members.drawn, state.members.tally)))
            lengths = np.asarray(jnp.round(drawn.task.lifetime / self.setting.agent.config.steps_per_update))
            age = np.asarray(to_default_device(state.members.state.num_updates))
            whole = ended & ~broken & (age >= lengths.reshape(age.shape))
            final, reference = self._judge(state.members, drawn, whole, generation)
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
        members = self._reborn(None, (state.members, ended, *grouped))
        return state.replace(members=members, buffer=buffer)

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
        keys = jax.random.split(self.problem.key("antagonist", generation), ended.size)
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
