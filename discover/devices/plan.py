"""What suits which kind of device, as an execution plan that model code reads, and what memory devices have left."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax


@dataclass(frozen=True)
class Plan:
    """How the programs of lives are laid out on one kind of device.

    A plan changes speed, memory and rounding, and no result beyond them. `chosen_by` says what the choices rest on: a
    measurement on such a device, the compiler's analysis, or a default.
    """

    platform: str = "cpu"
    cache_bytes: int | None = 2**20  # lives whose minibatch exceeds it run one after another; None: side by side
    splits_lives: bool = True  # whether several devices share one life
    eager_starts: int | None = 64  # largest observations whose starts are drawn a rollout at once; None: any
    late_values: int | None = 64  # largest observations of which last ones are valued after a rollout; None: any
    binary_obs: bool = False  # whether rollouts keep observations of zeros and ones, as MinAtar's, as booleans
    copies_transposed: bool = True  # whether the transposed factor of a weight's gradient is copied to another layout
    flat_rows: bool = False  # whether minibatches are gathered from a rollout's observations as vectors
    gathers_on_device: bool = False  # whether gradients are summed on the devices, and not in the host's memory
    chunk: int | None = 4  # pairs, or twice as many members, side by side on a device; None: what memory holds
    turns: int = 1  # chunks that a device takes in turn at least, where lives differ in length
    chosen_by: str = "measured"


CPU = Plan()
GPU = Plan(
    platform="gpu",
    cache_bytes=None,
    splits_lives=False,
    eager_starts=None,
    late_values=None,
    binary_obs=True,
    copies_transposed=False,
    gathers_on_device=True,
    chunk=None,
    turns=4,
    chosen_by="an H200 for binary_obs and turns; the compiler's analysis for late_values; defaults for the rest",
)
TPU = replace(
    GPU,
    platform="tpu",
    late_values=64,
    flat_rows=True,
    chosen_by="the compiler's analysis for v5e (eager_starts, late_values, binary_obs, flat_rows); no TPU has run this",
)


def plan_for(devices: Sequence[Any] | None = None) -> Plan:
    """The plan for these devices, which are of one platform; by default, for those of this process."""
    platform = (devices or jax.devices())[0].platform
    return {"cpu": CPU, "tpu": TPU}.get(platform, GPU)


def free_memory(devices: Sequence[Any] | None = None) -> int:
    """Bytes that each device has left."""
    local = [d for d in devices or jax.devices() if d.process_index == jax.process_index()]
    device = local[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    info, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    left = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if info.exists():
        left = 1024 * next(
            int(line.split()[1]) for line in info.read_text().splitlines() if line.startswith("MemAvailable")
        )
    if limit.exists() and limit.read_text().strip().isdigit():  # of a container
        left = min(left, int(limit.read_text()))
    return left // len(local)
