"""The search by meta-gradient: members whose lives roll on, born into the tasks of a curriculum."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

import envs
import learned_objectives as lo
from discover import curriculum as cu
from discover import parallel
from discover.agent import Agent, diverged
from discover.metagrad import Member, MetaGrad
from discover.parallel import free
from discover.recipe import Recipe
from discover.record import number
from discover.search import MetaState, Search, final_return, live
from discover.train import as_arrays, resolve_objective
from envs.gridworld import GridWorld

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

    def __init__(self, recipe: Recipe, template: lo.Objective | None = None, devices: Sequence[Any] | None = None):
        super().__init__(recipe, template, devices)
        if len(self.settings) != 1:
            raise ValueError(
                f"a meta-gradient search takes one environment, which may be a distribution, and envs names {len(self.settings)}."
            )
        (self.setting,) = self.settings
        c, self.curriculum = self.recipe.metagrad, recipe.curriculum
        if c.estimator == "standard" and self.template.critic_width != 1:
            raise ValueError(
                "metagrad.estimator 'standard' takes advantages from the agent's own value, and this objective has none: "
                "choose 'debiased'."
            )
        if self.curriculum.kind == "plr" and self.curriculum.size < c.members:
            raise ValueError(
                f"curriculum.size must be at least metagrad.members, {c.members}, and is {self.curriculum.size}."
            )
        env = self.setting.agent.env
        if self.curriculum.kind == "plr" and self.curriculum.score == "optimal_regret":
            if not isinstance(env, GridWorld) or env.observation != "index":
                raise ValueError(
                    f"curriculum.score 'optimal_regret' needs a world whose best policy can be computed, and {env.name} is none: "
                    "choose 'regret', or a grid world whose objects keep their cells."
                )
        elif self.curriculum.kind == "plr" and self._antagonist is not None:
            Agent.fit(env, recipe.agent, self._antagonist, self.plan)  # raises here, with a sentence
        self.meta = MetaGrad(c, self.setting.agent)
        self.group = self.chunk or c.members  # members that are together in a device's program
        self.devices = parallel.devices_for(c.members // self.group, self.available)

    @cached_property
    def optimizer(self) -> optax.GradientTransformation:
        c = self.recipe.metagrad
        clip = optax.identity() if c.max_grad_norm is None else optax.clip_by_global_norm(c.max_grad_norm)
        return optax.chain(clip, optax.adam(c.learning_rate))

    def start(self) -> PyTree:
        c = self.recipe.metagrad
        keys = jax.random.split(self._key("start", 0), (c.members // self.group, self.group))
        tasks = self.setting.tasks

        def first(_, keys):
            def one(key):
                drawn = cu.fresh(tasks, jax.random.fold_in(key, cu.TASK))
                # Replaced after some of its life, so that those after it begin at different times.
                life = cu.num_updates(tasks.agent.config, drawn.task)
                windows = jax.random.randint(jax.random.fold_in(key, STAGGER), (), 1, -(-life // c.window) + 1)
                return self.meta.birth(drawn, key, jnp.minimum(windows * c.window, life))

            return jax.vmap(one)(keys)

        members = parallel.spread(first, chunk=1, devices=self.devices)(None, keys)
        objective = as_arrays(self.template)
        buffer = cu.empty(self.curriculum, tasks) if self.curriculum.kind == "plr" else None
        return GradientState(objective, self.optimizer.init(objective), members, buffer)

    def to_checkpoint(self, state: MetaState) -> MetaState:
        members = jax.tree.map(lambda x: np.asarray(x).reshape((-1, *x.shape[2:])), state.search.members)
        return state.replace(search=state.search.replace(members=members))

    def from_checkpoint(self, state: MetaState) -> MetaState:
        members = jax.tree.map(lambda x: np.asarray(x).reshape((-1, self.group, *x.shape[1:])), state.search.members)
        return state.replace(search=state.search.replace(members=members))

    def placed(self, state: MetaState) -> MetaState:
        search = state.search
        members = parallel.place(search.members, self.devices)
        rest = free((search.objective, search.opt_state, search.buffer))
        return free(state.replace(search=None)).replace(search=GradientState(rest[0], rest[1], members, rest[2]))

    def mean(self, state: MetaState) -> lo.Objective:
        return state.search.objective

    @cached_property
    def _window(self):
        return parallel.spread(self.meta.gradient, chunk=1, devices=self.devices)

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

    def programs(self, state: MetaState) -> dict[str, tuple[Any, tuple]]:
        return {"meta-gradient": (self._window, (state.search.objective, state.search.members))}

    def generation(self, state: MetaState) -> tuple[MetaState, dict[str, Any]]:
        c, search, index = self.recipe.metagrad, state.search, int(state.generation)
        grads, members, metrics = self._window(search.objective, search.members)
        grads = parallel.replicated(grads, self.devices) if self.plan.gathers_on_device else free(grads)
        objective, opt_state, norm, left_out = self._apply(grads, search.objective, search.opt_state)
        search = search.replace(objective=objective, opt_state=opt_state, members=members)
        metrics, ages, stops = free((metrics, members.state.num_updates, members.stop))
        broken = np.asarray(metrics.pop("diverged"))
        ended = np.asarray(ages >= stops) | broken
        extra = 0
        if ended.any():
            search, extra = self._renew(search, ended, broken, index)
        row = {name: number(np.asarray(value).mean()) for name, value in metrics.items()}
        row |= {
            "gradient_norm": number(norm),
            "left_out": number(left_out),
            "ended": int(ended.sum()),
            "diverged": int(broken.sum()),
        }
        updates = state.updates + c.members * self.meta.rollouts + extra
        return state.replace(generation=state.generation + 1, updates=updates, search=search), {"meta": row}

    def _renew(
        self, search: GradientState, ended: np.ndarray, broken: np.ndarray, index: int
    ) -> tuple[GradientState, int]:
        """Let new members take the place of those whose lives have ended: (the search, updates of antagonists).

        A curriculum hears of whole lives alone: not of those that diverged, nor of the first ones, which are cut short.
        """
        keys = jax.random.split(self._key("birth", index), ended.size)
        task_keys = jax.vmap(lambda key: jax.random.fold_in(key, cu.TASK))(keys)
        buffer, updates = search.buffer, 0
        if buffer is None:
            drawn = self._fresh(task_keys)
        else:
            drawn, tally = jax.tree.map(_flat, free((search.members.drawn, search.members.tally)))
            lengths = np.asarray(jnp.round(drawn.task.lifetime / self.setting.agent.config.steps_per_update))
            age = np.asarray(free(search.members.state.num_updates))
            whole = ended & ~broken & (age >= lengths.reshape(age.shape))
            final, reference, updates = self._judge(search.members, drawn, whole, index)
            life = cu.Life(
                final_return=final,
                reference=reference,
                positive_value_loss=tally.positive / tally.count,
                l1_value_loss=tally.absolute / tally.count,
                mean_value=tally.value / tally.count,
                max_return=tally.max_return,
            )
            buffer, drawn = self._replay(buffer, drawn, life, (whole.reshape(-1), ended.reshape(-1)), task_keys)
        grouped = jax.tree.map(lambda x: x.reshape((*ended.shape, *x.shape[1:])), (free(drawn), keys))
        members = self._reborn(None, (search.members, ended, *grouped))
        return search.replace(members=members, buffer=buffer), updates

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
        def one(member: Member, ended, drawn: cu.Drawn, key):
            stop = cu.num_updates(self.setting.agent.config, drawn.task)
            new = self.meta.birth(drawn, key, stop)
            return jax.tree.map(lambda a, b: jnp.where(ended, a, b), new, member)

        return parallel.spread(lambda _, item: jax.vmap(one)(*item), chunk=1, devices=self.devices)

    def _judge(self, members: Member, drawn: cu.Drawn, ended: np.ndarray, index: int):
        """Of the members that ended: (their final returns f32[P], references f32[P], updates of antagonists trained).

        A reference is found once, when a level is new, and comes back from the buffer with the level ever after.
        """
        final = reference = np.full(ended.size, np.nan, np.float32)
        if "regret" not in self.curriculum.score:
            return jnp.asarray(final), jnp.asarray(reference), 0
        final = self._final_returns(None, members, ended, final.reshape(ended.shape))
        new = ended.reshape(-1) & np.isnan(np.asarray(drawn.reference))
        keys = jax.random.split(self._key("antagonist", index), ended.size)
        items = jax.tree.map(lambda x: x.reshape((*ended.shape, *x.shape[1:])), (drawn.task, keys))
        shape = ended.shape
        reference = self._references(
            self._antagonist, items, new.reshape(shape), np.asarray(drawn.reference).reshape(shape)
        )
        updates = 0
        if self.curriculum.score == "regret":
            lengths = np.asarray(drawn.task.lifetime) / self.setting.agent.config.steps_per_update
            updates = int(lengths[new].sum())
        return free(final).reshape(-1), free(reference).reshape(-1), updates

    @cached_property
    def _final_returns(self):
        def judge(_, member: Member):
            return final_return(self.setting, member.drawn.task, member.state)

        return parallel.spread_some(judge, chunk=self.curriculum.chunk, devices=self.devices)

    @cached_property
    def _antagonist(self) -> lo.Objective | None:
        if self.curriculum.score != "regret":
            return None
        return as_arrays(self.recipe.loss.on(resolve_objective(self.curriculum.antagonist)))

    @cached_property
    def _references(self):
        setting, trained = self.setting, self._antagonist
        if trained is not None:
            setting = setting._replace(agent=Agent.fit(setting.agent.env, setting.agent.config, trained, self.plan))

        def reference(antagonist, item):
            task, key = item
            if antagonist is None:
                return envs.gridworld.optimal_return(setting.agent.env, task.env_params)
            state = live(setting, antagonist, task, key)
            return jnp.where(diverged(state), jnp.nan, final_return(setting, task, state))

        return parallel.spread_some(reference, chunk=self.curriculum.chunk, devices=self.devices)


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape((-1, *x.shape[2:]))
