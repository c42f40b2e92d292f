"""Many lives on many devices: shards, and chunks within a shard."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import platform
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from discover import processes

PyTree = Any

LARGE = 2**18  # bytes, of an array that is not worth packing with others
AXIS = "envs"  # of the mesh: devices that share the environments and minibatches of one life


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


def spare_shardy() -> None:
    """Let jax 0.11 partition by GSPMD, unless the user has said by what: its Shardy crashes as it compiles a `shard_map` over
    arrays without elements, as Brax's states have (jaxlib 0.11.2, in ManualComputationUnusedInputsPattern)."""
    if jax.__version_info__[:2] == (0, 11) and "JAX_USE_SHARDY_PARTITIONER" not in os.environ:
        with contextlib.suppress(AttributeError):
            jax.config.update("jax_use_shardy_partitioner", False)


@lru_cache(maxsize=1)
def compiler_options() -> dict[str, Any]:
    """For every jitted life. The concurrency-optimised CPU scheduler costs more than it gains on programs made of thousands of
    tiny operations, and can deadlock on batched factorisations; the one that saves memory leaves the fewest of them for two
    threads to argue over (measured, CartPole's rollouts: 8.2, 8.1 and 6.5
    microseconds a step with it, the default and that). LLVM's last level of optimisation makes no life quicker, and
    compilation longer by a tenth to a third."""
    if jax.default_backend() != "cpu":
        return {}
    level = (
        {}
        if "xla_backend_optimization_level" in os.environ.get("XLA_FLAGS", "")
        else {"xla_backend_optimization_level": 2}
    )
    sparing = level | {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    try:
        jax.jit(lambda: jnp.int32(0), compiler_options=sparing).lower().compile()
    except jax.errors.JaxRuntimeError:  # an older compiler, with two of the three
        return level | {"xla_cpu_enable_concurrency_optimized_scheduler": False}
    return sparing


def keep_programs() -> None:
    """Keep compiled programs on disk, for the next process: a run that resumes waits for seconds, not for a minute, and needs a
    third less memory.

    Under the user's cache directory, apart for each kind of processor, whose instructions a program may use. A directory that
    the user has named to JAX, as JAX_COMPILATION_CACHE_DIR for one, is left as it is.
    """
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return
    info = Path("/proc/cpuinfo")
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        lines = info.read_text().splitlines() if info.exists() else [platform.processor()]
    except (RuntimeError, OSError):  # nobody's home
        return
    features = "".join(
        sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}) or lines
    )
    kind = hashlib.sha256(features.encode()).hexdigest()[:12]
    jax.config.update("jax_compilation_cache_dir", str(base / "discover" / f"{platform.machine()}-{kind}"))
    # What cannot be read or written is compiled again, and that is all there is to say of it.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")


def devices_for(count: int) -> list[Any]:
    """As many devices as share `count` items evenly, the same number of every process."""
    if devices := _even_devices(count):
        return devices
    raise ValueError(
        f"{count} parts cannot be shared evenly by {jax.process_count()} processes: choose a population or a number of members "
        "whose chunks can be."
    )


def _even_devices(count: int) -> list[Any]:
    """The same; an empty list if there are no such."""
    of = [[d for d in jax.devices() if d.process_index == p] for p in range(jax.process_count())]
    least = min(map(len, of))  # the same in every process
    each = [d for d in range(1, least + 1) if count % (d * jax.process_count()) == 0]
    return [d for devices in of for d in devices[: max(each, default=0)]]


def free(tree: PyTree) -> PyTree:
    """The same arrays, whole, tied to no device. What came from devices, or from a checkpoint, is tied to those it was on: it
    would compile every program once more, and meet no other number of devices. Every process must ask for it."""

    def fetch(x):
        return processes.gathered(x) if isinstance(x, jax.Array) and not x.is_fully_addressable else jax.device_get(x)

    return dress(jax.device_put(jax.tree.map(fetch, bare(tree))), tree)


def _mesh(devices: list[Any], team: int = 1) -> Mesh:
    """One for all programs: what one leaves on its devices is where the next expects it."""
    return Mesh(np.array(devices).reshape(-1, team), ("lives", AXIS))


def spread(
    fn: Callable[[PyTree, PyTree], PyTree],
    *,
    chunk: int | None = None,
    devices: list[Any] | None = None,
    team: int = 1,
    vmap: Callable[..., Any] = jax.vmap,
) -> Callable[[PyTree, PyTree], PyTree]:
    """fn(shared, item) -> out, jitted, over a leading axis of items: (shared, items [n, ...]) -> outs [n, ...].

    Each device takes an equal share and runs it `chunk` items at a time (None: all at once). With a chunk, every device count
    runs the same inner program, so that results do not depend on it; the chunk itself may change float rounding. `n` is
    padded to whole chunks on every device, by repeating the last item.

    `vmap` takes a share all at once. With a `team`, so many devices run each share together, and `fn` says by `AXIS` what each
    of them does.
    """
    available = devices or jax.devices()

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
        # No device without an item, but where that would leave a process without a device.
        used = available[: chunks * team]
        if processes.several() and devices is None:
            used = _even_devices(chunks) or available
        mesh = _mesh(used, team)
        along = PartitionSpec("lives")
        sharded = jax.shard_map(share, mesh=mesh, in_specs=(PartitionSpec(), along), out_specs=along, check_vma=False)
        unit = mesh.shape["lives"] * (chunk or 1)
        if n % unit == 0:
            return sharded(shared, items)
        index = jnp.minimum(jnp.arange(-(-n // unit) * unit), n - 1)
        outs = sharded(shared, jax.tree.map(lambda x: x[index], items))
        return jax.tree.map(lambda x: x[:n], outs)

    return jax.jit(run, compiler_options=compiler_options())


def own(x: PyTree, shards: int, axis: int = 0) -> PyTree:
    """This device's part of what all devices of a life have. Raises ValueError where there is no equal part for each."""
    if shards == 1:
        return x

    def part(leaf):
        if leaf.shape[axis] % shards:
            raise ValueError(f"{leaf.shape[axis]} rows cannot be shared evenly by {shards} devices.")
        size = leaf.shape[axis] // shards
        return jax.lax.dynamic_slice_in_dim(leaf, jax.lax.axis_index(AXIS) * size, size, axis)

    return jax.tree.map(part, x)


def gathered(x: PyTree, shards: int, axis: int = 0) -> PyTree:
    """The inverse of `own`. Devices meet once for all small arrays of a type, since each meeting costs them the same (measured:
    70 microseconds between two cores), and once for every large one."""
    if shards == 1:
        return x
    leaves, treedef = jax.tree.flatten(x)
    whole: dict[int, jax.Array] = {}
    small: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        if _is_key(leaf):
            whole[i] = jax.lax.all_gather(leaf, AXIS, axis=axis, tiled=True)
        elif leaf.size * leaf.dtype.itemsize > LARGE:
            # Still as they came in memory, until somebody wants them otherwise: see `by_device`.
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
    """[T, B, ...] as rows [T * B, ...]: each device's environments' one after another, as `gathered` has them in memory, so that
    what is large need not be laid out anew."""
    steps, envs = x.shape[:2]
    parts = x.reshape(steps, shards, envs // shards, *x.shape[2:])
    return jnp.moveaxis(parts, 1, 0).reshape(steps * envs, *x.shape[2:])


def row_by_device(steps: int, envs: int, shards: int) -> np.ndarray:
    """i32[T * B]: which row of `by_device` holds step t of environment b, at t * B + b."""
    rows = np.arange(steps * envs, dtype=np.int32).reshape(shards, steps, envs // shards)
    return rows.swapaxes(0, 1).reshape(-1)


def summed(x: PyTree, shards: int) -> PyTree:
    """Over the devices of a life."""
    return x if shards == 1 else jax.lax.psum(x, AXIS)


def divided(tasks: Sequence[Callable[[], tuple]], shards: int) -> list[tuple]:
    """[task() for task in tasks], each a tuple. With several devices, as many as there are tasks or more, each task is run by one
    of them, and all come to have all results, bit for bit. They meet once for each element of the tuples and each width of
    number, and not at all for an element that nobody reads."""
    if shards == 1:
        return [task() for task in tasks]
    tasks = [jax.jit(task, inline=True) for task in tasks]  # traced once, though called twice here
    absent = [jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(task)) for task in tasks]

    def only(i):
        return lambda: [task() if i == j else absent[j] for j, task in enumerate(tasks)]

    found = jax.lax.switch(
        jnp.minimum(jax.lax.axis_index(AXIS), len(tasks)), [*map(only, range(len(tasks))), lambda: absent]
    )
    return list(zip(*(_added(list(elements)) for elements in zip(*found, strict=True)), strict=True))


def _added(tree: PyTree) -> PyTree:
    """The sum over the devices of a life, of arrays that are zero on all but one: their bits, in one meeting for each width."""
    leaves, treedef = jax.tree.flatten(tree)
    bits = [jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}") for x in leaves]
    for width in {x.dtype for x in bits}:
        members = [i for i, x in enumerate(bits) if x.dtype == width]
        whole = jax.lax.psum(jnp.concatenate([bits[i].reshape(-1) for i in members]), AXIS)
        parts = jnp.split(whole, np.cumsum([bits[i].size for i in members])[:-1])
        for i, part in zip(members, parts, strict=True):
            bits[i] = part.reshape(leaves[i].shape)
    return jax.tree.unflatten(
        treedef, [jax.lax.bitcast_convert_type(x, y.dtype) for x, y in zip(bits, leaves, strict=True)]
    )


def spread_some(
    fn: Callable[[PyTree, PyTree], jax.Array], *, chunk: int, devices: list[Any]
) -> Callable[[PyTree, PyTree, PyTree, PyTree], jax.Array]:
    """fn(shared, item) -> out for the items that are wanted alone: (shared, items [G, n, ...], wanted bool[G, n], others
    [G, n, ...]) -> outs [G, n, ...], which are `others` where nothing was wanted.

    Each device looks through its share of the groups, which it must get evenly, and takes what is wanted `chunk` at a time.
    """

    def share(shared, items, wanted, outs):
        groups = wanted.shape
        items, wanted, outs = jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), (items, wanted, outs))
        count, size = wanted.sum(), wanted.shape[0]
        order = jnp.argsort(~wanted, stable=True)

        def take(carry):
            done, outs = carry
            lanes = done + jnp.arange(chunk)
            index = order[jnp.minimum(lanes, size - 1)]
            new = jax.vmap(fn, in_axes=(None, 0))(shared, jax.tree.map(lambda x: x[index], items))
            place = jnp.where(lanes < count, index, size)  # beyond the end: dropped
            return done + chunk, outs.at[place].set(new, mode="drop")

        _, outs = jax.lax.while_loop(lambda carry: carry[0] < count, take, (jnp.int32(0), outs))
        return outs.reshape((*groups, *outs.shape[1:]))

    mesh, along, alike = _mesh(devices), PartitionSpec("lives"), PartitionSpec()
    specs = (alike, along, along, along)
    return jax.jit(
        jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=along, check_vma=False),
        compiler_options=compiler_options(),
    )


def place(tree: PyTree, devices: list[Any]) -> PyTree:
    """Leaves [n, ...] dealt out evenly, as a program made by `spread` leaves them."""
    sharding = NamedSharding(_mesh(devices), PartitionSpec("lives"))

    def dealt(x):
        return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])

    return dress(jax.tree.map(dealt, jax.device_get(bare(tree))), tree)


def bare(tree: PyTree) -> PyTree:
    """The same with random keys as the numbers they are made of, which files and hosts can hold."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)


def dress(tree: PyTree, like: PyTree) -> PyTree:
    """The inverse of `bare`."""
    return jax.tree.map(lambda x, y: jax.random.wrap_key_data(x) if _is_key(y) else x, tree, like)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)


def deal(cost: np.ndarray, chunk: int | None, num_devices: int | None = None) -> np.ndarray:
    """The order in which `spread` should take items whose costs differ, a chunk costing as much as its dearest item.

    Items of like cost share a chunk, and chunks are dealt to devices in turn, so that each gets its part of the dear ones.
    Returns i32[m], m >= n: item numbers, the padding of `spread` made explicit by repeats. What is in a chunk does not depend
    on the number of devices.
    """
    count, chunk = len(cost), chunk or 1
    devices = min(num_devices or jax.device_count(), -(-count // chunk))
    order = np.argsort(-cost, kind="stable")
    whole = -(-count // (chunk * devices)) * devices
    order = np.concatenate([order, np.repeat(order[-1:], whole * chunk - count)])
    return order.reshape(-1, devices, chunk).swapaxes(0, 1).reshape(-1).astype(np.int32)
