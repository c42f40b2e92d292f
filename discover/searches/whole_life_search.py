"""The search by meta-gradients through whole lives."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

import learned_objectives as lo
from discover.agents.mixed_mode import differentiated
from discover.agents.objectives import as_arrays
from discover.devices import parallel
from discover.devices.parallel import to_default_device
from discover.formats import number
from discover.searches import curriculum as cu
from discover.searches.metagrad import require_feedforward
from discover.searches.problem import Problem, Setting
from discover.searches.search import Search
from discover.searches.whole_life import WholeLife, WholeLifeConfig, clipped

PyTree = Any


class WholeLifeState(struct.PyTreeNode):
    """Of a search by gradients of whole lives. No life goes on from one step to the next."""

    objective: lo.Objective
    opt_state: PyTree


class WholeLifeSearch(Search):
    """Each step trains new agents for whole lives, and follows the mean of their gradients with respect to the objective."""

    def __init__(self, config: WholeLifeConfig, problem: Problem):
        super().__init__(config, problem)
        require_feedforward(problem.recipe.agent)
        if problem.recipe.curriculum.kind == "plr":
            raise ValueError(
                "curriculum.kind 'plr' replays tasks between the windows of a meta-gradient; with whole lives choose 'uniform' "
                "or 'fixed'."
            )
        if problem.template.critic_width != 1:
            raise ValueError(
                "the search 'whole_life' takes advantages from the agent's own value, and this objective has none: choose "
                "'metagrad' (--search metagrad)."
            )
        self.lives = [
            WholeLife(config, differentiated(each.agent, config.differentiation), each.tasks.longest)
            for each in problem.settings
        ]
        self.group = problem.chunk or config.lives  # lives side by side
        self.devices = parallel.devices_for(config.lives // self.group, problem.available)

    @cached_property
    def optimizer(self) -> optax.GradientTransformation:
        c = self.config
        clip = optax.identity() if c.max_grad_norm is None else optax.clip_by_global_norm(c.max_grad_norm)
        return optax.chain(clip, optax.adam(c.learning_rate))

    def init(self) -> PyTree:
        objective = as_arrays(self.problem.template)
        return WholeLifeState(objective, self.optimizer.init(objective))

    def mean(self, state: WholeLifeState) -> lo.Objective:
        return state.objective

    @property
    def updates_per_step(self) -> float:
        return float(self.config.lives * sum(life.updates + self.config.points for life in self.lives))

    def _keys(self, e: int, generation: int) -> jax.Array:
        """Of the lives of a step in environment e: [groups, group]."""
        root = jax.random.fold_in(self.problem.key("life", generation), e)
        return jax.random.split(root, (self.config.lives // self.group, self.group))

    @cached_property
    def _programs(self):
        """Per environment: objective, keys [G, n] -> (sums of gradients over groups [G, ...], `LifeGradient` [G, n])."""

        def program(life: WholeLife, setting: Setting):
            def one(objective, key):
                found = life.gradient(objective, setting.tasks(jax.random.fold_in(key, cu.TASK)), key)
                return clipped(found, self.config.max_life_grad_norm), found._replace(gradient=None)

            def group(objective, keys):
                gradients, found = jax.vmap(one, in_axes=(None, 0))(objective, keys)
                return jax.tree.map(lambda g: g.sum(0), gradients), found

            return parallel.sharded_map(group, chunk=1, devices=self.devices)

        return [program(life, each) for life, each in zip(self.lives, self.problem.settings, strict=True)]

    def programs(self, state: WholeLifeState) -> dict[str, tuple[Any, tuple]]:
        names = self.problem.recipe.envs
        return {
            name: (program, (state.objective, self._keys(e, 0)))
            for e, (name, program) in enumerate(zip(names, self._programs, strict=True))
        }

    @cached_property
    def _apply(self):
        """A step along the mean over those lives whose gradients are finite; none where there are no such lives."""

        def apply(sums, finite, state: WholeLifeState):
            count = jnp.maximum(finite.sum(), 1)
            mean = jax.tree.map(lambda g: g.sum(0) / count, sums)
            norm = optax.tree.norm(mean)
            updates, opt_state = self.optimizer.update(mean, state.opt_state, state.objective)
            after = WholeLifeState(optax.apply_updates(state.objective, updates), opt_state)
            steps = finite.any() & jnp.isfinite(norm)
            return jax.tree.map(lambda new, old: jnp.where(steps, new, old), after, state), norm

        return jax.jit(apply)

    def step(self, state: WholeLifeState, generation: int) -> tuple[WholeLifeState, dict[str, Any]]:
        with self.problem.on_devices():
            sums, found = zip(
                *(program(state.objective, self._keys(e, generation)) for e, program in enumerate(self._programs)),
                strict=True,
            )
            sums, found = to_default_device((sums, found))
        sums = jax.tree.map(lambda *g: jnp.concatenate(g), *sums)
        finite = jnp.stack([each.finite for each in found])
        state, norm = self._apply(sums, finite, state)
        self.problem.updates += int(self.updates_per_step)
        return state, {"meta": self._row(found, norm)}

    def _row(self, found: tuple[Any, ...], norm: jax.Array) -> dict[str, Any]:
        norms, losses, rewards, finite, broken = (
            np.stack([np.asarray(getattr(each, name)) for each in found])
            for name in ("norm", "loss", "reward", "finite", "diverged")
        )
        row = {
            "meta_loss": number(losses.mean()),
            "reward": number(rewards.mean()),
            "gradient_norm": number(norm),
            "life_gradient_norm": number(np.median(norms)),
            "largest_life_gradient_norm": number(norms.max()),
            "dropped_fraction": number(1.0 - finite.mean()),
            "diverged": int(broken.sum()),
        }
        if len(found) > 1:
            row |= {
                f"reward/{name}": number(each.mean())
                for name, each in zip(self.problem.recipe.envs, rewards, strict=True)
            }
        return row
