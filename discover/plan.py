"""What suits which kind of device: an execution plan, chosen once, which model code reads and never the backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax


@dataclass(frozen=True)
class Plan:
    """How the programs of lives are laid out on one kind of device.

    A plan changes speed, memory and rounding, and no result beyond them. `chosen_by` says for each choice whether it was
    measured on such a device, or follows from the compiler's analysis, or from nothing but the default.
    """

    platform: str = "cpu"
    cache_bytes: int | None = (
        2**20
    )  # of a core's own; lives whose minibatch exceeds it run one after another. None: all by vmap
    splits_lives: bool = True  # whether spare devices share one life
    eager_starts: int | None = (
        64  # size of observations up to which a rollout's starts are drawn at once; None: any size
    )
    copies_transposed: bool = True  # whether the transposed factor of a weight's gradient is laid out anew in memory
    chunk: int | None = 4  # pairs (or half as many members) side by side on a device; None: as many as its memory holds
    chosen_by: str = "measured"


CPU = Plan()
GPU = Plan("gpu", None, False, None, False, None, "measured: chunk; not measured: the rest")
TPU = Plan("tpu", None, False, None, False, None, "not measured: no TPU has run this")


def plan_for(devices: Sequence[Any] | None = None) -> Plan:
    """The plan for these devices, which are of one platform; by default, for those of this process."""
    platform = (devices or jax.devices())[0].platform
    return {"cpu": CPU, "tpu": TPU}.get(platform, GPU)
