"""The one space that gymnax lacks, and the ways in which nested spaces become flat arrays."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments.spaces import Box, Dict, Discrete, Space, Tuple


class MultiDiscrete(Space):
    """K independent choices: i32[K], number k from 0 to `sizes[k]` - 1."""

    def __init__(self, sizes: tuple[int, ...]):
        self.sizes = tuple(int(n) for n in sizes)
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(
                f"MultiDiscrete needs the number of options of each choice, at least 1, and was given {sizes}."
            )
        self.shape = (len(self.sizes),)
        self.dtype = jnp.dtype(jnp.int32)

    def __repr__(self) -> str:
        return f"MultiDiscrete{self.sizes}"

    def sample(self, key: jax.Array) -> jax.Array:
        return jax.random.randint(key, self.shape, 0, np.asarray(self.sizes), jnp.int32)

    def contains(self, x: jax.Array) -> jax.Array:
        return ((x >= 0) & (x < np.asarray(self.sizes))).all()


def parts(space: Space) -> list[Space]:
    """The spaces in a Dict or Tuple, in the order of its own values; of any other, itself."""
    if isinstance(space, Dict):
        return list(space.spaces.values())
    return list(space.spaces) if isinstance(space, Tuple) else [space]


def values(space: Space, value: Any) -> list[Any]:
    """The values that go with `parts`. A Dict's value may be a mapping or have attributes, as gymnax's states do."""
    if isinstance(space, Dict):
        return [_part(value, name) for name in space.spaces]
    return list(value) if isinstance(space, Tuple) else [value]


def _part(value: Any, name: str) -> Any:
    if isinstance(value, dict) and name not in value:
        raise ValueError(
            f"an observation lacks {name!r}, which its Dict space has; it has {', '.join(map(repr, value))}."
        )
    return value[name] if isinstance(value, dict) else getattr(value, name)


def flat_observation(space: Space) -> Box | None:
    """The space of `flatten`, f32[n]; None where there is no part, or one that is neither Box, Discrete, MultiDiscrete, nor
    nested of these."""
    widths = [_width(part) for part in parts(space)]
    return None if None in widths or not sum(widths) else Box(-jnp.inf, jnp.inf, (sum(widths),), jnp.float32)


def flatten(space: Space, value: Any) -> jax.Array:
    """f32[n]: the parts of a nested observation one after another; a choice of n is one-hot, bytes are divided by 255."""
    return jnp.concatenate([_flat(part, x) for part, x in zip(parts(space), values(space, value), strict=True)])


def choices(space: Space) -> MultiDiscrete | None:
    """A Dict or Tuple of Discrete spaces as independent choices; None for any other space."""
    inner = parts(space)
    if isinstance(space, Dict | Tuple) and inner and all(isinstance(part, Discrete) for part in inner):
        return MultiDiscrete(tuple(part.n for part in inner))
    return None


def chosen(space: Space, action: jax.Array) -> Any:
    """i32[K] as the Dict or Tuple of `choices` takes it."""
    each = [action[k].astype(part.dtype) for k, part in enumerate(parts(space))]
    return dict(zip(space.spaces, each, strict=True)) if isinstance(space, Dict) else tuple(each)


def _width(space: Space) -> int | None:
    if isinstance(space, Dict | Tuple):
        inner = flat_observation(space)
        return None if inner is None else inner.shape[0]
    if isinstance(space, Discrete):
        return space.n
    if isinstance(space, MultiDiscrete):
        return sum(space.sizes)
    return int(np.prod(space.shape)) if isinstance(space, Box) else None


def _flat(space: Space, value: Any) -> jax.Array:
    if isinstance(space, Dict | Tuple):
        return flatten(space, value)
    if isinstance(space, Discrete):
        return jax.nn.one_hot(value, space.n, dtype=jnp.float32)
    if isinstance(space, MultiDiscrete):
        return jnp.concatenate([jax.nn.one_hot(value[k], n, dtype=jnp.float32) for k, n in enumerate(space.sizes)])
    flat = jnp.asarray(value, jnp.float32).reshape(-1)
    return flat / np.float32(255) if np.dtype(space.dtype) == np.uint8 else flat
