"""Many lives on many devices: shards, and chunks within a shard."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

PyTree = Any


def use_every_core() -> None:
    """Give XLA one CPU device per core, unless the user has set a number or JAX has already started.

    `import discover` calls this before it imports anything else, because importing gymnax starts JAX.

    Lives are sharded over devices, and two virtual devices on two cores nearly double the throughput of one that spreads its
    small products over both.
    """
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if chosen or "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    # RuntimeError: JAX has started. AttributeError: no affinity on this system.
    with contextlib.suppress(RuntimeError, AttributeError):
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


def compiler_options() -> dict[str, Any]:
    """For every jitted life. The concurrency-optimised CPU scheduler costs more than it gains on programs made of thousands of
    tiny operations (measured: rollouts 1.7x slower with it), and it can deadlock on batched factorisations."""
    if jax.default_backend() != "cpu":
        return {}
    return {"xla_cpu_enable_concurrency_optimized_scheduler": False}


def spread(
    fn: Callable[[PyTree, PyTree], PyTree],
    *,
    chunk: int | None = None,
    devices: list[Any] | None = None,
) -> Callable[[PyTree, PyTree], PyTree]:
    """fn(shared, item) -> out, jitted, over a leading axis of items: (shared, items [n, ...]) -> outs [n, ...].

    Each device takes an equal share and runs it `chunk` items at a time (None: all at once). With a chunk, every device count
    runs the same inner program, so that results do not depend on it; the chunk itself may change float rounding. `n` is
    padded to whole chunks on every device, by repeating the last item.
    """
    available = devices or jax.devices()

    def share(shared, items):
        if chunk is None:
            return jax.vmap(fn, in_axes=(None, 0))(shared, items)
        chunks = jax.tree.map(lambda x: x.reshape((-1, chunk, *x.shape[1:])), items)
        outs = jax.lax.map(lambda c: jax.vmap(fn, in_axes=(None, 0))(shared, c), chunks)
        return jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), outs)

    def run(shared, items):
        n = jax.tree.leaves(items)[0].shape[0]
        mesh = Mesh(np.array(available[: -(-n // (chunk or 1))]), ("lives",))  # no device without an item
        along = PartitionSpec("lives")
        sharded = jax.shard_map(share, mesh=mesh, in_specs=(PartitionSpec(), along), out_specs=along, check_vma=False)
        unit = mesh.size * (chunk or 1)
        index = jnp.minimum(jnp.arange(-(-n // unit) * unit), n - 1)
        outs = sharded(shared, jax.tree.map(lambda x: x[index], items))
        return jax.tree.map(lambda x: x[:n], outs)

    return jax.jit(run, compiler_options=compiler_options())
