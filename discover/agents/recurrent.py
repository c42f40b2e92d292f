"""Actors and critics that remember: a recurrent cell between the layers of a network and its head.

A step: h_{t+1} = cell(h_t, torso(o_t)), and the head reads h_{t+1}. h is 0 at the start of an episode. It travels with the
observation (`observations.Recalled`), so that a network is still a pure function of parameters and observation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from discover.agents.layers import DotGeneral, Torso, gain
from discover.agents.observations import Recalled


class GRU(nn.Module):
    """A gated recurrent unit of `width` numbers, which `z` keeps and `n` replaces:

        r, z = sigmoid(W x + U h),    n = tanh(W_n x + b + r (U_n h + c)),    h' = (1 - z) n + z h

    Reference: Cho et al. 2014, arXiv:1406.1078, with the reset after the product.
    """

    width: int
    dot: DotGeneral

    def setup(self):
        # Columns of length 1: an orthogonal [width, 3 width] has columns of length 3^-0.5.
        self.of_input = nn.Dense(3 * self.width, kernel_init=gain(3**0.5), dot_general=self.dot)
        self.of_hidden = nn.Dense(3 * self.width, kernel_init=gain(3**0.5), dot_general=self.dot)

    def inputs(self, x: jax.Array) -> jax.Array:
        """What does not depend on h, f32[..., 3 width]: for all steps of a sequence at once."""
        return self.of_input(x)

    def advance(self, hidden: jax.Array, inputs: jax.Array) -> jax.Array:
        (r, z, n), (of_r, of_z, of_n) = (jnp.split(x, 3, axis=-1) for x in (inputs, self.of_hidden(hidden)))
        new = jnp.tanh(n + nn.sigmoid(r + of_r) * of_n)
        keep = nn.sigmoid(z + of_z)
        return (1.0 - keep) * new + keep * hidden


class MinGRU(nn.Module):
    """A linear recurrence of `width` numbers, whose products need no h and are computed for all steps at once:

        z = sigmoid(W_z x),    h' = z h + (1 - z) W x

    Reference: Feng et al. 2024, arXiv:2410.01201, section 3.1, with z and 1 - z exchanged as in `GRU`.
    """

    width: int
    dot: DotGeneral

    def setup(self):
        self.of_input = nn.Dense(2 * self.width, kernel_init=gain(2**0.5), bias_init=_keeping, dot_general=self.dot)

    def inputs(self, x: jax.Array) -> jax.Array:
        """f32[..., 2 width]."""
        return self.of_input(x)

    def advance(self, hidden: jax.Array, inputs: jax.Array) -> jax.Array:
        z, new = jnp.split(inputs, 2, axis=-1)
        keep = nn.sigmoid(z)
        return keep * hidden + (1.0 - keep) * new


def _keeping(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Biases of z, which keep h for 1 to 50 steps at first, and zeros for those of x. z = 1 - 1 / steps; Reference: Tallec &
    Ollivier 2018, arXiv:1804.11188."""
    steps = jnp.logspace(jnp.log10(1.1), jnp.log10(50.0), shape[0] // 2)
    return jnp.concatenate([jnp.log(steps - 1.0), jnp.zeros(shape[0] // 2)]).astype(dtype)


CELLS: dict[str, type[nn.Module]] = {"gru": GRU, "mingru": MinGRU}


class Bare(nn.Module):
    """No layers: a head behind it reads what it is given."""

    dot: DotGeneral

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


class Recurrent(nn.Module):
    """torso -> cell -> head."""

    torso: Torso
    cell: nn.Module
    head: nn.Module

    def __call__(self, hidden: jax.Array, x: jax.Array) -> Any:
        return self.head(self.advance(hidden, self.encode(x)))

    def encode(self, x: jax.Array) -> jax.Array:
        return self.cell.inputs(self.torso(x))

    def advance(self, hidden: jax.Array, inputs: jax.Array) -> jax.Array:
        return self.cell.advance(hidden, inputs)

    def read(self, hidden: jax.Array) -> Any:
        return self.head(hidden)


class Stepped(NamedTuple):
    """One recurrent network, under its name in the parameters and in `Recalled.hidden`."""

    module: Recurrent
    name: str
    prepare: Callable[[jax.Array], jax.Array]  # of an observation, before the first layer

    def call(self, method: str, params: Any, *args: jax.Array) -> Any:
        return self.module.apply(params[self.name], *args, method=method)

    def advance(self, params: Any, obs: Recalled) -> jax.Array:
        """f32[..., H]: what it remembers after this observation."""
        inputs = self.call("encode", params, self.prepare(obs.obs))
        return self.call("advance", params, obs.hidden[self.name], inputs)

    def step(self, params: Any, obs: Recalled) -> Any:
        """Its output for observations [...] of any steps, each with what it remembers before it."""
        return self.call("read", params, self.advance(params, obs))

    def unroll(self, params: Any, obs: Recalled) -> Any:
        """Its output for sequences [L, N, ...]. Of what it remembers only that before the first step is used, so that gradients
        go through all of them."""
        inputs = self.call("encode", params, self.prepare(obs.obs))

        def advance(hidden, now):
            inputs, starts = now
            hidden = self.call("advance", params, jnp.where(starts[..., None], 0.0, hidden), inputs)
            return hidden, hidden

        _, hidden = jax.lax.scan(advance, obs.hidden[self.name][0], (inputs, obs.starts))
        return self.call("read", params, hidden)


def first(width: int, obs: Any) -> Recalled:
    """The first observation of an episode, before which nothing is remembered."""
    return Recalled(obs, {name: jnp.zeros(width, jnp.float32) for name in ("actor", "critic")}, jnp.bool_(True))


def follow(networks: tuple[Stepped, Stepped], params: Any, obs: Recalled, after: Any) -> Recalled:
    """The observation `after` a step from `obs`, with what both networks remember then; `obs` as the networks see it."""
    hidden = {each.name: each.advance(params, obs) for each in networks}
    return Recalled(after, hidden, jnp.zeros_like(obs.starts))


def sequences(x: jax.Array, length: int) -> jax.Array:
    """A rollout [T, B, ...] as sequences [length, T / length * B, ...]."""
    steps, envs = x.shape[:2]
    parts = x.reshape(steps // length, length, envs, *x.shape[2:])
    return jnp.moveaxis(parts, 0, 1).reshape(length, -1, *x.shape[2:])
