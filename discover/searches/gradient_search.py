"""The search by meta-gradient: members whose lives roll on, born into the tasks of a curriculum."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

import learned_objectives as lo
from discover.agents.objectives import as_arrays
from discover.devices import parallel
from discover.devices.parallel import to_default_device
from discover.formats import number
from discover.searches import curriculum as cu
from discover.searches.members import Members
from discover.searches.metagrad import Member, MetaGradConfig, require_feedforward
from discover.searches.problem import Problem
from discover.searches.search import Search

PyTree = Any


class GradientState(struct.PyTreeNode):
    """Of a search by meta-gradient. The tuples have one entry for each environment."""

    objective: lo.Objective
    opt_state: PyTree
    members: tuple[Member, ...]  # leaves [groups, chunk, ...]
    buffers: tuple[cu.Buffer | None, ...]  # of prioritised level replay


class GradientSearch(Search):
    """Meta-gradients over members whose lives roll on, as many in every environment.

    The meta-gradient is the mean over members, and so over environments. Advantages are normalised before it, so that rewards of
    any scale count alike.
    """

    def __init__(self, config: MetaGradConfig, problem: Problem):
        super().__init__(config, problem)
        require_feedforward(problem.recipe.agent)
        self.worlds = [Members(config, problem, e) for e in range(len(problem.settings))]

    @cached_property
    def optimizer(self) -> optax.GradientTransformation:
        c = self.config
        clip = optax.identity() if c.max_grad_norm is None else optax.clip_by_global_norm(c.max_grad_norm)
        return optax.chain(clip, optax.adam(c.learning_rate))

    def init(self) -> PyTree:
        members = tuple(world.first() for world in self.worlds)
        objective = self._shared(as_arrays(self.problem.template))
        buffers = tuple(world.empty_buffer() for world in self.worlds)
        return GradientState(objective, self._shared(self.optimizer.init(objective)), members, buffers)

    def _shared(self, tree: PyTree) -> PyTree:
        """Arrays on the devices where a step leaves them, so that the second step does not compile again: on all devices if
        gradients are summed there, else on the default device."""
        if self.problem.plan.gathers_on_device:
            return parallel.replicated(tree, self.worlds[0].devices)
        return to_default_device(tree)

    def to_checkpoint(self, state: GradientState) -> GradientState:
        members = jax.tree.map(lambda x: np.asarray(x).reshape((-1, *x.shape[2:])), state.members)
        return state.replace(members=members)

    def from_checkpoint(self, state: GradientState) -> GradientState:
        members = (world.grouped(each) for world, each in zip(self.worlds, state.members, strict=True))
        return state.replace(members=tuple(members))

    def placed(self, state: GradientState) -> GradientState:
        members = tuple(world.placed(each) for world, each in zip(self.worlds, state.members, strict=True))
        objective, opt_state = (self._shared(tree) for tree in to_default_device((state.objective, state.opt_state)))
        return GradientState(objective, opt_state, members, to_default_device(state.buffers))

    def mean(self, state: GradientState) -> lo.Objective:
        return state.objective

    @property
    def updates_per_step(self) -> float:
        return float(self.config.members * sum(world.meta.rollouts for world in self.worlds))

    @cached_property
    def _apply(self):
        """Of sums over groups of members [G, ...]: a step along their mean, and what share of the groups it leaves out.

        A member that diverged may take its group's sum with it, for this step; it is replaced before the next.
        """
        size = self.worlds[0].group

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
        names = self.problem.recipe.envs if len(self.worlds) > 1 else ("meta-gradient",)
        return {
            name: (world.window, (state.objective, members))
            for name, world, members in zip(names, self.worlds, state.members, strict=True)
        }

    def step(self, state: GradientState, generation: int) -> tuple[GradientState, dict[str, Any]]:
        with self.problem.on_devices():
            grads, members, metrics = zip(
                *(world.window(state.objective, each) for world, each in zip(self.worlds, state.members, strict=True)),
                strict=True,
            )
            grads = self._shared(grads)
        grads = grads[0] if len(grads) == 1 else jax.tree.map(lambda *g: jnp.concatenate(g), *grads)
        objective, opt_state, norm, dropped = self._apply(grads, state.objective, state.opt_state)
        with self.problem.on_devices():
            metrics = to_default_device(metrics)
        buffers, rows = list(state.buffers), []
        members = list(members)
        for e, world in enumerate(self.worlds):
            row = {name: np.asarray(value) for name, value in metrics[e].items()}
            with self.problem.on_devices():
                ages, stops = to_default_device((members[e].state.num_updates, members[e].stop))
            broken = row.pop("diverged")
            ended = np.asarray(ages >= stops) | broken
            self.problem.updates += self.config.members * world.meta.rollouts
            if ended.any():
                members[e], buffers[e] = world.renew(members[e], buffers[e], ended, broken, generation)
            rows.append((row, int(ended.sum()), int(broken.sum())))
        state = GradientState(objective, opt_state, tuple(members), tuple(buffers))
        logged = {name: number(np.mean([row[name].mean() for row, _, _ in rows])) for name in rows[0][0]}
        if len(rows) > 1:
            names = self.problem.recipe.envs
            logged |= {
                f"reward/{name}": number(row["reward"].mean()) for name, (row, _, _) in zip(names, rows, strict=True)
            }
        logged |= {
            "gradient_norm": number(norm),
            "dropped_fraction": number(dropped),
            "ended": sum(ended for _, ended, _ in rows),
            "diverged": sum(broken for _, _, broken in rows),
        }
        return state, {"meta": logged}
