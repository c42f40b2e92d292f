"""Log-uniform draws."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def log_uniform(key: jax.Array, low: float, high: float, shape: tuple[int, ...] = ()) -> jax.Array:
    """f32[*shape] in [low, high], its logarithm uniform."""
    return jnp.exp(jax.random.uniform(key, shape, minval=np.log(low), maxval=np.log(high)))


def log_uniform_int(key: jax.Array, low: int, high: int) -> jax.Array:
    """i32[] in [low, high], its logarithm uniform."""
    return jnp.clip(jnp.floor(log_uniform(key, low, high + 1)), low, high).astype(jnp.int32)
