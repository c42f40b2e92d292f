"""One life on several devices: local shards and the collectives between them.

All devices of a team call these functions, within a program of `parallel.sharded_map`. With one device they change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any

AXIS = "team"  # of the mesh: the devices of one life
UNPACKED_BYTES = 2**18  # larger arrays are gathered alone; smaller ones are packed into one collective


def local_shard(x: PyTree, shards: int, axis: int = 0) -> PyTree:
    """This device's shard of replicated arrays. Raises ValueError if they cannot be divided evenly."""
    if shards == 1:
        return x

    def part(leaf):
        if leaf.shape[axis] % shards:
            raise ValueError(f"{leaf.shape[axis]} rows cannot be shared evenly by {shards} devices.")
        size = leaf.shape[axis] // shards
        return jax.lax.dynamic_slice_in_dim(leaf, jax.lax.axis_index(AXIS) * size, size, axis)

    return jax.tree.map(part, x)


def all_gather(x: PyTree, shards: int, axis: int = 0) -> PyTree:
    """The inverse of `local_shard`. One collective gathers all small arrays of a type, because every collective has the same
    latency (measured: 70 microseconds between two cores). Each large array has its own."""
    if shards == 1:
        return x
    leaves, treedef = jax.tree.flatten(x)
    whole: dict[int, jax.Array] = {}
    small: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            whole[i] = jax.lax.all_gather(leaf, AXIS, axis=axis, tiled=True)
        elif leaf.size * leaf.dtype.itemsize > UNPACKED_BYTES:
            # Keep the layout of the shards: see `by_device`.
            parts = jnp.moveaxis(jax.lax.all_gather(leaf, AXIS), 0, axis)
            whole[i] = parts.reshape(*leaf.shape[:axis], -1, *leaf.shape[axis + 1 :])
        else:
            small.setdefault(leaf.dtype, []).append(i)
    for members in small.values():
        fronted = [jnp.moveaxis(leaves[i], axis, 0) for i in members]
        widths = [math.prod(leaf.shape[1:]) for leaf in fronted]
        rows = [leaf.reshape(len(leaf), width) for leaf, width in zip(fronted, widths, strict=True)]
        rows = jnp.concatenate(rows, axis=1)
        rows = jax.lax.all_gather(rows, AXIS, axis=0, tiled=True)
        parts = jnp.split(rows, np.cumsum(widths)[:-1], axis=1)
        for i, leaf, part in zip(members, fronted, parts, strict=True):
            whole[i] = jnp.moveaxis(part.reshape(len(rows), *leaf.shape[1:]), 0, axis)
    return jax.tree.unflatten(treedef, [whole[i] for i in range(len(leaves))])


def by_device(x: jax.Array, shards: int) -> jax.Array:
    """[T, B, ...] as rows [T * B, ...], the environments of one device after those of another. `all_gather` leaves them in this
    order in memory, so no copy is needed."""
    steps, envs = x.shape[:2]
    parts = x.reshape(steps, shards, envs // shards, *x.shape[2:])
    return jnp.moveaxis(parts, 1, 0).reshape(steps * envs, *x.shape[2:])


def row_by_device(steps: int, envs: int, shards: int) -> np.ndarray:
    """i32[T * B]: which row of `by_device` holds step t of environment b, at t * B + b."""
    rows = np.arange(steps * envs, dtype=np.int32).reshape(shards, steps, envs // shards)
    return rows.swapaxes(0, 1).reshape(-1)


def all_reduce_sum(x: PyTree, shards: int) -> PyTree:
    """The sum over the devices of a life."""
    return x if shards == 1 else jax.lax.psum(x, AXIS)


def run_split(tasks: Sequence[Callable[[], tuple]], shards: int) -> list[tuple]:
    """[task() for task in tasks], each a tuple of trees of real numbers or booleans. With several devices each runs one task, and
    all devices receive all results, bit for bit. There is one collective for each element of the tuples and each width of
    number, and none for an element that is not used. Raises ValueError if there are fewer devices than tasks."""
    if shards == 1:
        return [task() for task in tasks]
    if shards < len(tasks):
        raise ValueError(f"{len(tasks)} tasks cannot be divided among {shards} devices: each needs one.")
    tasks = [jax.jit(task, inline=True) for task in tasks]  # traced once, though called twice here
    absent = [jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(task)) for task in tasks]

    def only(i):
        return lambda: [task() if i == j else absent[j] for j, task in enumerate(tasks)]

    found = jax.lax.switch(
        jnp.minimum(jax.lax.axis_index(AXIS), len(tasks)), [*map(only, range(len(tasks))), lambda: absent]
    )
    return list(zip(*(_added(list(elements)) for elements in zip(*found, strict=True)), strict=True))


def _added(tree: PyTree) -> PyTree:
    """The sum over the devices of a life of arrays that are zero on all but one device: their bits, one collective per width."""
    leaves, treedef = jax.tree.flatten(tree)
    bits = [_bits(x) for x in leaves]
    for width in sorted({x.dtype for x in bits}, key=str):
        members = [i for i, x in enumerate(bits) if x.dtype == width]
        whole = jax.lax.psum(jnp.concatenate([bits[i].reshape(-1) for i in members]), AXIS)
        parts = jnp.split(whole, np.cumsum([bits[i].size for i in members])[:-1])
        for i, part in zip(members, parts, strict=True):
            bits[i] = part.reshape(leaves[i].shape)
    return jax.tree.unflatten(treedef, [_of_bits(x, leaf.dtype) for x, leaf in zip(bits, leaves, strict=True)])


def _bits(x: jax.Array) -> jax.Array:
    return (
        x.astype(jnp.uint8) if x.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
    )


def _of_bits(x: jax.Array, dtype: Any) -> jax.Array:
    return x.astype(bool) if dtype == jnp.bool_ else jax.lax.bitcast_convert_type(x, dtype)
