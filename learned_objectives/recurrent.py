"""Recurrent nets that run backward over a trajectory, with a gradient made for long windows.

Automatic differentiation of such a loop keeps every gate, or walks the loop twice. Here only the states are kept (under the name
"recurrent", for `jax.checkpoint` policies). Whatever else a step needs, both ways, is made within the step, where it stays in
cache; the weights' gradients are one product each over the whole trajectory.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

STATES = "recurrent"  # the name under which a checkpoint policy may keep what the backward pass needs


def sigmoid(x: jax.Array) -> jax.Array:
    """The logistic function, by way of tanh, which XLA computes faster on CPU."""
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


def _before(state: jax.Array, end: jax.Array) -> jax.Array:
    """The state each step started from, f32[T, B, H]: that of the step after it in time, or zero behind an end."""
    after = jnp.concatenate([state[1:], jnp.zeros_like(state[:1])])
    return jnp.where(end[..., None], 0.0, after)


def _weight_gradients(x, before, dgates, dinner):
    """Of kernel, bias and recurrent weights, from what flows into a step's gates and into its recurrent product."""

    def flat(a):
        return a.reshape(-1, a.shape[-1])

    return flat(x).T @ flat(dgates), flat(dgates).sum(0), flat(before).T @ flat(dinner)


@jax.custom_vjp
def gru(
    x: jax.Array, end: jax.Array, kernel: jax.Array, bias: jax.Array, weights: jax.Array, inner: jax.Array
) -> jax.Array:
    """h f32[T, B, H] of a gated recurrent unit that runs from T to 1.

        r, z = sigma(x K_rz + b_rz + h' W_rz),    n = tanh(x K_n + b_n + r (h' W_n + inner)),    h = (1 - z) n + z h'

    h' is the state at t + 1, and zero where `end` bool[T, B] says that t was an episode's last step. `x` f32[T, B, I],
    `kernel` f32[I, 3H], `bias` f32[3H], `weights` f32[H, 3H], `inner` f32[H]. Reference: Cho et al. 2014, arXiv:1406.1078.
    """
    return _gru_forward(x, end, kernel, bias, weights, inner)[0]


def _gru_gates(x, before, kernel, bias, weights, inner):
    size = inner.shape[-1]
    gates, recurrent = x @ kernel + bias, before @ weights
    r = sigmoid(gates[..., :size] + recurrent[..., :size])
    z = sigmoid(gates[..., size : 2 * size] + recurrent[..., size : 2 * size])
    q = recurrent[..., 2 * size :] + inner
    return r, z, q, jnp.tanh(gates[..., 2 * size :] + r * q)


def _gru_forward(x, end, *weights):
    def step(h, inputs):
        x_t, end_t = inputs
        before = jnp.where(end_t[..., None], 0.0, h)
        _, z, _, n = _gru_gates(x_t, before, *weights)
        h = (1.0 - z) * n + z * before
        return h, h

    zero = jnp.zeros((*x.shape[1:-1], weights[-1].shape[-1]), x.dtype)
    _, h = jax.lax.scan(step, zero, (x, end), reverse=True)
    h = checkpoint_name(h, STATES)
    return h, (x, end, *weights, h)


def _gru_backward(saved, dh):
    x, end, *weights, h = saved
    kernel, _, recurrent, _ = weights
    before = _before(h, end)

    def step(carry, inputs):
        dh_t, end_t, x_t, before_t = inputs
        dh_t = dh_t + carry
        r, z, q, n = _gru_gates(x_t, before_t, *weights)
        dn = dh_t * (1.0 - z) * (1.0 - n**2)
        dr, dz = dn * q * r * (1.0 - r), dh_t * (before_t - n) * z * (1.0 - z)
        dinner = jnp.concatenate([dr, dz, dn * r], axis=-1)
        carry = dh_t * z + dinner @ recurrent.T
        return jnp.where(end_t[..., None], 0.0, carry), (dinner, dn)

    _, (dinner, dn) = jax.lax.scan(step, jnp.zeros_like(dh[0]), (dh, end, x, before))
    size = h.shape[-1]
    dgates = jnp.concatenate([dinner[..., : 2 * size], dn], axis=-1)
    gradients = _weight_gradients(x, before, dgates, dinner)
    return dgates @ kernel.T, None, *gradients, dinner[..., 2 * size :].reshape(-1, size).sum(0)


gru.defvjp(_gru_forward, _gru_backward)


@jax.custom_vjp
def lstm(x: jax.Array, end: jax.Array, kernel: jax.Array, bias: jax.Array, weights: jax.Array) -> jax.Array:
    """h f32[T, B, H] of a long short-term memory that runs from T to 1.

        i, f, o = sigma(x K_ifo + b_ifo + h' W_ifo),    g = tanh(x K_g + b_g + h' W_g),    c = f c' + i g,    h = o tanh(c)

    h' and c' are the states at t + 1, and zero where `end` bool[T, B] says that t was an episode's last step. `x`
    f32[T, B, I], `kernel` f32[I, 4H], `bias` f32[4H] and `weights` f32[H, 4H], in the order i, f, g, o. Reference: Hochreiter
    and Schmidhuber 1997; Gers et al. 2000 (the forget gate).
    """
    return _lstm_forward(x, end, kernel, bias, weights)[0]


def _lstm_gates(x, before, kernel, bias, weights):
    i, f, g, o = jnp.split(x @ kernel + bias + before @ weights, 4, axis=-1)
    return sigmoid(i), sigmoid(f), jnp.tanh(g), sigmoid(o)


def _lstm_forward(x, end, *weights):
    def step(carry, inputs):
        x_t, end_t = inputs
        h, c = (jnp.where(end_t[..., None], 0.0, a) for a in carry)
        i, f, g, o = _lstm_gates(x_t, h, *weights)
        c = f * c + i * g
        h = o * jnp.tanh(c)
        return (h, c), (h, c)

    zero = jnp.zeros((*x.shape[1:-1], weights[-1].shape[0]), x.dtype)
    _, states = jax.lax.scan(step, (zero, zero), (x, end), reverse=True)
    h, c = checkpoint_name(states, STATES)
    return h, (x, end, *weights, h, c)


def _lstm_backward(saved, dh):
    x, end, *weights, h, c = saved
    kernel, _, recurrent = weights
    before, cell_before = _before(h, end), _before(c, end)

    def step(carry, inputs):
        dh_t, end_t, x_t, before_t, cell_t, c_t = inputs
        i, f, g, o = _lstm_gates(x_t, before_t, *weights)
        t = jnp.tanh(c_t)
        dh_t = dh_t + carry[0]
        dc = carry[1] + dh_t * o * (1.0 - t**2)
        di, df = dc * g * i * (1.0 - i), dc * cell_t * f * (1.0 - f)
        dgates = jnp.concatenate([di, df, dc * i * (1.0 - g**2), dh_t * t * o * (1.0 - o)], axis=-1)
        carry = (dgates @ recurrent.T, dc * f)
        return jax.tree.map(lambda a: jnp.where(end_t[..., None], 0.0, a), carry), dgates

    zero = jnp.zeros_like(dh[0])
    _, dgates = jax.lax.scan(step, (zero, zero), (dh, end, x, before, cell_before, c))
    return dgates @ kernel.T, None, *_weight_gradients(x, before, dgates, dgates)


lstm.defvjp(_lstm_forward, _lstm_backward)
