"""Compile a recipe for devices that are not there: `python -m benchmarks.accelerator_compile RECIPE TOPOLOGY` prints a JSON line.

For a TPU (v5e:2x2) the package `libtpu` has the compiler; for an H100 (h100) the two packages of JAX's CUDA plugin have it, and
give no operations or cycles. `benchmarks.accelerators --compile` sets the environment that libtpu needs and calls this.
Nothing is run: starting states are shapes, and what is reported is the compiler's own analysis.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import math
import sys
import time
from typing import Any, NamedTuple
from unittest import mock

from benchmarks.program import Program, jaxpr_flops


class Chip(NamedTuple):
    """Peak rates of a chip, by its maker: Google Cloud's documentation of TPU v5e, NVIDIA's data sheet of the H100 SXM."""

    memory: float  # bytes
    flops: float  # a second, of bfloat16 products on a TPU, of TF32 products on a GPU
    bandwidth: float  # bytes a second
    clock: float | None = None  # hertz; of v5e flops / (2 x 4 units x 128 x 128 multipliers)


CHIPS = {
    "TPU v5 lite": Chip(16e9, 197e12, 819e9, 197e12 / (2 * 4 * 128 * 128)),
    "NVIDIA H100 80GB HBM3": Chip(80e9, 495e12, 3.35e12),
}
H100 = """\
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84941897728 shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
PART = 0.9  # of the memory, that a program may take


def devices_of(topology: str) -> list[Any]:
    """The devices of a topology, v5e:2x2 or h100. ValueError with a sentence for no such, and without the right compiler."""
    return h100() if topology == "h100" else tpus(topology)


def h100() -> list[Any]:
    """One H100, described to XLA by its target configuration."""
    import jax
    from jax.experimental import topologies

    try:
        described = {"target_config": H100, "topology": "1x1x1"}
        return list(topologies.get_topology_desc(platform="cuda", topology_name="h100", **described).devices)
    except (RuntimeError, ValueError) as error:
        packages = " ".join(f"jax-cuda13-{part}=={jax.__version__}" for part in ("plugin", "pjrt"))
        raise ValueError(
            f"Compiling for an H100 needs JAX's CUDA plugin ({str(error).splitlines()[0]}): `pip install --no-deps {packages}`."
        ) from None


def tpus(topology: str) -> list[Any]:
    """The chips of a TPU topology, by libtpu."""
    import jax
    from jax.experimental import topologies
    from packaging.requirements import Requirement

    asked = [Requirement(text) for text in importlib.metadata.requires("jax") or () if text.startswith("libtpu")]
    advice = "Install the extra, `pip install 'discover-rl[tpu-compile]'`, or " + " ".join(
        f"`pip install '{r.name}{r.specifier}'`" for r in asked
    )
    try:
        version = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(f"Compiling for a TPU needs the package libtpu, which is not installed. {advice}.") from None
    if any(version not in r.specifier for r in asked):
        raise ValueError(
            f"jax {jax.__version__} compiles for a TPU with libtpu{asked[0].specifier}, and {version} is installed. {advice}."
        )
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        raise ValueError(
            f"No TPU topology is named {topology!r} ({str(error).splitlines()[0]}): expected a generation and whole hosts of "
            "chips, v5e:2x2 or v5e:4x4 for example."
        ) from None


def analyse(recipe: Any, devices: list[Any]) -> dict[str, Any]:
    """What the compiler says of one step of a recipe on these devices, per device and over all its programs."""
    import jax

    from discover.runs.fit import total_memory
    from discover.searches.registry import search_for

    search = search_for(recipe, devices=devices)
    state = jax.eval_shape(search.init)
    chip = CHIPS.get(devices[0].device_kind)
    row: dict[str, Any] = {
        "chunk": search.recipe.search.chunk, "devices": len(devices), "kind": devices[0].device_kind, "memory": 0,
        "arguments": 0, "temporaries": 0, "flops_a_turn": 0.0, "bytes_a_turn": 0.0, "product_flops": 0.0, "estimated_cycles": 0.0,
        "collectives": {}, "results": 0, "lower_s": 0.0, "compile_s": 0.0, "code": 0,
    }  # fmt: skip
    turns = turns_of(search)
    for name, (program, arguments) in search.programs(state).items():
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
        began = time.perf_counter()
        traced = program.trace(*shapes)
        lowered = traced.lower()
        row["lower_s"] += time.perf_counter() - began
        began = time.perf_counter()
        compiled = lowered.compile()
        row["compile_s"] += time.perf_counter() - began
        memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {"flops": 0.0, "bytes accessed": 0.0}
        row["memory"] = max(row["memory"], total_memory(compiled))
        row["arguments"] = max(row["arguments"], memory.argument_size_in_bytes)
        row["temporaries"] = max(row["temporaries"], memory.temp_size_in_bytes)
        row["code"] = max(row["code"], memory.generated_code_size_in_bytes)
        row["flops_a_turn"] += cost["flops"]
        row["bytes_a_turn"] += cost["bytes accessed"]
        row["product_flops"] += jaxpr_flops(traced.jaxpr.jaxpr, turns[name])
        text = Program(compiled.as_text())
        row["estimated_cycles"] += text.cycles(turns[name])
        for kind, found in text.collectives(turns[name]).items():
            row["collectives"][kind] = found
        row["results"] += crossing(search, jax.eval_shape(program, *shapes))
    row["flops_per_byte"] = row["flops_a_turn"] / row["bytes_a_turn"] if row["bytes_a_turn"] else None
    row["env_steps"] = steps_of(search)
    if chip is not None:
        row["fits"] = row["memory"] <= PART * chip.memory
        row["peak_s"] = row["product_flops"] / chip.flops
    if chip is not None and chip.clock is not None:
        row["estimated_s"] = row["estimated_cycles"] / chip.clock
        row["estimated_env_steps_per_s"] = row["env_steps"] / row["estimated_s"]
    return row


def turns_of(search: Any) -> dict[str, float]:
    """By environment: how often the loop over updates turns, whose length is an argument of the program."""
    from discover.searches.problem import STRETCHES

    if search.recipe.search.kind == "metagrad":
        return {"meta-gradient": 1.0}
    out = {}
    for name, setting, mean in zip(search.recipe.envs, search.settings, search.problem.mean_lengths, strict=True):
        whole = setting.episodes is None and search.recipe.search.whole_lives
        out[name] = setting.tasks.longest / min(STRETCHES, setting.tasks.longest) if whole else mean
    return out


def steps_of(search: Any) -> float:
    """Environment steps of a step of the search."""
    return search.search.updates_per_step * search.recipe.agent.steps_per_update


def crossing(search: Any, outs: Any) -> int:
    """Bytes of the results that leave their device in a step: fitness, or gradients. States of lives stay where they are."""
    import jax

    kept = outs if search.recipe.search.whole_lives else outs[0]
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(kept))


def largest_that_fits(recipe: Any, devices: list[Any]) -> dict[str, Any]:
    """The analysis with the largest chunk whose program fits. ValueError if none does."""
    import jax

    from discover.devices.plan import plan_for
    from discover.runs.fit import sizes
    from discover.searches.chunks import with_chunk

    tried = []
    for size in reversed(sizes(recipe, len(devices), plan_for(devices).turns)):
        try:
            row = analyse(with_chunk(recipe, size), devices)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            tried.append({"chunk": size, "memory": None})
            continue
        if row.get("fits", True):
            return row | {"too_large": tried}
        tried.append({"chunk": size, "memory": row["memory"]})
    smallest = tried[-1]["memory"]
    need = "more than there is" if smallest is None else f"{smallest / 1e9:.1f} GB"
    raise ValueError(
        f"{recipe.name} does not fit on {devices[0].device_kind} with any chunk: the smallest, {tried[-1]['chunk']}, needs "
        f"{need} a device. Take fewer environments (agent.num_envs) or shorter rollouts (agent.num_steps)."
    )


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m benchmarks.accelerator_compile", description=__doc__)
    p.add_argument("recipe")
    p.add_argument("topology", help="v5e:2x2 for one, or h100")
    p.add_argument("--devices", type=int, help="so many of the topology's (all)")
    p.add_argument("--chunk", type=int, help="instead of the largest that fits")
    p.add_argument("--pairs-per-device", type=int, help="a population of so many pairs a device, for weak scaling")
    p.add_argument(
        "--plan", type=json.loads, default={}, help="""changes of the TPU's plan, '{"eager_starts": 64}' for one"""
    )
    p.add_argument("--total-steps", type=int, help="of each life, instead of the recipe's")
    args = p.parse_args()
    from discover import recipes
    from discover.devices import plan
    from discover.searches.chunks import with_chunk

    try:
        recipe = recipes.get(args.recipe)
        devices = devices_of(args.topology)[: args.devices]
        if args.total_steps:
            recipe = dataclasses.replace(recipe, total_steps=args.total_steps)
        if args.pairs_per_device:
            size = 2 * args.pairs_per_device * len(devices)
            recipe = dataclasses.replace(recipe, search=dataclasses.replace(recipe.search, population=size))
        with mock.patch.object(plan, "TPU", dataclasses.replace(plan.TPU, **args.plan)):
            row = analyse(with_chunk(recipe, args.chunk), devices) if args.chunk else largest_that_fits(recipe, devices)
    except ValueError as error:
        print(f"benchmarks.accelerators: {error}", file=sys.stderr)
        return 2
    compiler = "jax-cuda13-plugin" if args.topology == "h100" else "libtpu"
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", compiler)}
    print(json.dumps({"recipe": args.recipe, "topology": args.topology, "versions": versions, **row}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
