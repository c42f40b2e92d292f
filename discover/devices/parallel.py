"""Many lives on many devices: each device has a shard of them and runs it in chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from discover.devices import processes
from discover.devices.runtime import compiler_options
from discover.devices.team import AXIS

PyTree = Any


def devices_for(count: int, devices: Sequence[Any] | None = None) -> list[Any]:
    """As many of these devices (default: all) as share `count` items evenly, the same number of every process."""
    devices = devices or jax.devices()
    if even := _even_devices(count, devices):
        return even
    raise ValueError(
        f"{count} parts cannot be shared evenly by {len(_by_process(devices))} processes: choose a population or a number of "
        "members whose chunks can be."
    )


def _even_devices(count: int, devices: Sequence[Any]) -> list[Any]:
    """The same; an empty list if there are no such."""
    of = _by_process(devices)
    least = min(map(len, of))  # the same in every process
    each = [d for d in range(1, least + 1) if count % (d * len(of)) == 0]
    return [d for devices in of for d in devices[: max(each, default=0)]]


def _by_process(devices: Sequence[Any]) -> list[list[Any]]:
    return [[d for d in devices if d.process_index == p] for p in sorted({d.process_index for d in devices})]


def to_default_device(tree: PyTree) -> PyTree:
    """Copies of the arrays, whole and uncommitted, on the default device. Every process must call this.

    Arrays from a mesh or a checkpoint are committed to devices: a program would compile again for them, and for those alone.
    """

    def fetch(x):
        return (
            processes.all_gather_to_host(x)
            if isinstance(x, jax.Array) and not x.is_fully_addressable
            else jax.device_get(x)
        )

    return wrap_keys(jax.device_put(jax.tree.map(fetch, unwrap_keys(tree))), tree)


def _mesh(devices: list[Any], team: int = 1) -> Mesh:
    """The mesh of all programs, so that one program's results lie where the next expects them."""
    return Mesh(np.array(devices).reshape(-1, team), ("lives", AXIS))


def sharded_map(
    fn: Callable[[PyTree, PyTree], PyTree],
    *,
    chunk: int | None = None,
    devices: Sequence[Any] | None = None,
    team: int = 1,
    vmap: Callable[..., Any] = jax.vmap,
) -> Callable[[PyTree, PyTree], PyTree]:
    """fn(shared, item) -> out, jitted, over a leading axis of items: (shared, items [n, ...]) -> outs [n, ...].

    Each device takes an equal share and runs it `chunk` items at a time (None: all at once). With a chunk, every device count
    runs the same inner program, so that results do not depend on it; the chunk itself may change float rounding. `n` is
    padded to whole chunks on every device, by repeating the last item.

    `devices`: those that share the items (default: all). `vmap` maps a whole share. With a `team`, that many devices run each
    share together, and `fn` uses the axis `AXIS` to divide the work.
    """
    available = list(devices or jax.devices())

    def share(shared, items):
        if chunk is None and jax.tree.leaves(items)[0].shape[0] > 1:
            return vmap(lambda item: fn(shared, item))(items)
        if chunk is None or chunk == 1:
            return jax.lax.map(lambda item: fn(shared, item), items)
        chunks = jax.tree.map(lambda x: x.reshape((-1, chunk, *x.shape[1:])), items)
        outs = jax.lax.map(lambda c: jax.vmap(fn, in_axes=(None, 0))(shared, c), chunks)
        return jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), outs)

    def run(shared, items):
        n = jax.tree.leaves(items)[0].shape[0]
        chunks = -(-n // (chunk or 1))
        # Devices without items are left out, unless a process would then have no device.
        used = available[: chunks * team]
        if len(_by_process(available)) > 1:
            used = _even_devices(chunks, available) or available
        mesh = _mesh(used, team)
        along = PartitionSpec("lives")
        sharded = jax.shard_map(share, mesh=mesh, in_specs=(PartitionSpec(), along), out_specs=along, check_vma=False)
        unit = mesh.shape["lives"] * (chunk or 1)
        if n % unit == 0:
            return sharded(shared, items)
        index = jnp.minimum(jnp.arange(-(-n // unit) * unit), n - 1)
        outs = sharded(shared, jax.tree.map(lambda x: x[index], items))
        return jax.tree.map(lambda x: x[:n], outs)

    return jax.jit(run, compiler_options=compiler_options(available[0].platform))


def sharded_map_where(
    fn: Callable[[PyTree, PyTree], jax.Array], *, chunk: int, devices: list[Any]
) -> Callable[[PyTree, PyTree, PyTree, PyTree], jax.Array]:
    """fn(shared, item) -> out for selected items: (shared, items [G, n, ...], wanted bool[G, n], others [G, n, ...]) -> outs
    [G, n, ...], which are `others` where `wanted` is false.

    Each device has an equal share of the groups, and runs the selected items of its share `chunk` at a time.
    """

    def share(shared, items, wanted, outs):
        groups = wanted.shape
        items, wanted, outs = jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), (items, wanted, outs))
        count, size = wanted.sum(), wanted.shape[0]
        # What is wanted, in order; without a sort of pairs, on which GSPMD crashes in jaxlib 0.11.2.
        order = (
            jnp.zeros(size, jnp.int32)
            .at[jnp.where(wanted, jnp.cumsum(wanted) - 1, size)]
            .set(jnp.arange(size), mode="drop")
        )

        def take(carry):
            done, outs = carry
            lanes = done + jnp.arange(chunk)
            index = order[jnp.minimum(lanes, size - 1)]
            new = jax.vmap(fn, in_axes=(None, 0))(shared, jax.tree.map(lambda x: x[index], items))
            target = jnp.where(lanes < count, index, size)  # beyond the end: dropped
            return done + chunk, outs.at[target].set(new, mode="drop")

        _, outs = jax.lax.while_loop(lambda carry: carry[0] < count, take, (jnp.int32(0), outs))
        return outs.reshape((*groups, *outs.shape[1:]))

    mesh, along, alike = _mesh(devices), PartitionSpec("lives"), PartitionSpec()
    specs = (alike, along, along, along)
    return jax.jit(
        jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=along, check_vma=False),
        compiler_options=compiler_options(devices[0].platform),
    )


def replicated(tree: PyTree, devices: list[Any]) -> PyTree:
    """The arrays, replicated on these devices without a copy through host memory."""
    return _replicator(tuple(devices))(tree)


@lru_cache(maxsize=8)
def _replicator(devices: tuple[Any, ...]):
    return jax.jit(lambda x: x, out_shardings=NamedSharding(_mesh(list(devices)), PartitionSpec()))


def shard(tree: PyTree, devices: list[Any]) -> PyTree:
    """Leaves [n, ...] sharded evenly, as a program made by `sharded_map` returns them."""
    sharding = NamedSharding(_mesh(devices), PartitionSpec("lives"))

    def dealt(x):
        return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])

    return wrap_keys(jax.tree.map(dealt, jax.device_get(unwrap_keys(tree))), tree)


def take(tree: PyTree, index: jax.Array, *, devices: list[Any]) -> PyTree:
    """Leaves x[index] of leaves x [n, ...] that `shard` or a program of `sharded_map` placed, placed in the same way."""
    return _taker(tuple(devices))(tree, index)


@lru_cache(maxsize=8)
def _taker(devices: tuple[Any, ...]):
    sharding = NamedSharding(_mesh(list(devices)), PartitionSpec("lives"))
    return jax.jit(lambda tree, index: jax.tree.map(lambda x: x[index], tree), out_shardings=sharding)


def unwrap_keys(tree: PyTree) -> PyTree:
    """The tree with typed random keys replaced by their key data, which files and host memory can hold."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)


def wrap_keys(tree: PyTree, like: PyTree) -> PyTree:
    """The inverse of `unwrap_keys`."""
    return jax.tree.map(lambda x, y: jax.random.wrap_key_data(x) if _is_key(y) else x, tree, like)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)


def balance(cost: np.ndarray, chunk: int | None, num_devices: int | None = None) -> np.ndarray:
    """Load balancing: the order in which `sharded_map` should take items of different costs. A chunk costs as much as its most
    expensive item.

    Items of similar cost share a chunk, and devices receive chunks in turn, so each has its part of the expensive ones. Returns
    i32[m], m >= n: item numbers, with the padding of `sharded_map` as repeats. The items of a chunk do not depend on the number
    of devices.
    """
    count, chunk = len(cost), chunk or 1
    devices = min(num_devices or jax.device_count(), -(-count // chunk))
    order = np.argsort(-cost, kind="stable")
    whole = -(-count // (chunk * devices)) * devices
    order = np.concatenate([order, np.repeat(order[-1:], whole * chunk - count)])
    return order.reshape(-1, devices, chunk).swapaxes(0, 1).reshape(-1).astype(np.int32)
