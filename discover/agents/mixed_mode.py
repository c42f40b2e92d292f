"""Gradient steps that reverse mode goes back through by forward mode: less memory, and less time, for meta-gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from discover.agents.agent import Agent
from discover.agents.learning import Learner, minibatches

PyTree = Any


class MixedModeLearner(Learner):
    """The same gradient steps as `Learner` to rounding, with another derivative program: `mixed_mode_grad`.

    For agents whose networks are clipped together, on one device each.
    """

    def _learn_together(self, objective, progress, params, opt_state, flat, rate, order):
        vector, unpack = self._packed(params)
        take = minibatches(flat, self.flat_rows)

        def loss(vector, objective, progress, rollout, targets):
            outputs = self._outputs(unpack(vector), rollout.obs, rollout.action)
            return objective.loss(outputs, rollout, targets, progress)

        gradient = mixed_mode_grad(loss)

        def slope(vector, index):
            return gradient(vector, objective, progress, *take(index))

        (vector, opt_state), metrics = self._run_gradient_steps(slope, vector, opt_state, rate, order)
        return unpack(vector), opt_state, metrics


def mixed_mode_grad(loss: Callable[..., tuple[jax.Array, PyTree]]) -> Callable[..., tuple[PyTree, PyTree]]:
    """`jax.grad(loss, has_aux=True)` of loss(theta, *others) -> (f32[], aux), for reverse mode to go back through.

    The Hessian is symmetric, so for a cotangent v of the gradient and w of aux, with x = (theta, others),

        d(<v, grad_theta L> + <w, aux>) / dx = d/de grad_x [L(theta + e v, others) + e <w, aux>] at e = 0,

    one pass of forward mode over one of reverse mode. Reverse over reverse mode stores every intermediate value of the inner
    gradient until its own backward pass; this stores theta and the others. `loss` must not close over what is differentiated.

    Reference: Kemaev et al. 2025, arXiv:2505.00793 (MixFlow-MG).
    """

    @jax.custom_vjp
    def gradient(theta, others):
        return jax.grad(loss, has_aux=True)(theta, *others)

    def forward(theta, others):
        return gradient(theta, others), (theta, others)

    def backward(inputs, cotangents):
        theta, others = inputs
        v, w = cotangents
        leaves, structure = jax.tree.flatten(others)
        floating = [jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in leaves]

        def weighted(theta, floats, e):
            floats = iter(floats)
            merged = [next(floats) if f else x for f, x in zip(floating, leaves, strict=True)]
            value, aux = loss(theta, *jax.tree.unflatten(structure, merged))
            return value + e * sum(_inner(a, b) for a, b in zip(jax.tree.leaves(aux), jax.tree.leaves(w), strict=True))

        floats = [x for f, x in zip(floating, leaves, strict=True) if f]
        slopes = lambda theta, e: jax.grad(weighted, argnums=(0, 1))(theta, floats, e)
        zero = jnp.zeros((), jnp.result_type(*jax.tree.leaves(theta)))
        _, (of_theta, of_floats) = jax.jvp(slopes, (theta, zero), (v, jnp.ones_like(zero)))
        of_floats = iter(of_floats)
        found = [next(of_floats) if f else _no_tangent(x) for f, x in zip(floating, leaves, strict=True)]
        return of_theta, jax.tree.unflatten(structure, found)

    gradient.defvjp(forward, backward)
    return lambda theta, *others: gradient(theta, others)


def _inner(x: jax.Array, cotangent: jax.Array) -> jax.Array | float:
    return (x * cotangent).sum() if jnp.issubdtype(jnp.result_type(x), jnp.floating) else 0.0


def _no_tangent(x: jax.Array) -> np.ndarray:
    """The cotangent of what has none: whole numbers and keys."""
    return np.zeros(jnp.shape(x), jax.dtypes.float0)


def require_mode(name: str) -> None:
    """ValueError for an unknown way of differentiation."""
    if name not in ("reverse", "mixed"):
        raise ValueError(f"search.differentiation must be 'reverse' or 'mixed', and is {name!r}.")


def differentiated(agent: Agent, mode: str) -> Agent:
    """The agent whose gradient steps are differentiated in this way. Networks that are clipped apart are always differentiated by
    reverse mode."""
    return replace(agent, learning=MixedModeLearner) if mode == "mixed" else agent
