"""Settings of JAX and its compiler, made before anything runs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp


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


@lru_cache(maxsize=4)
def compiler_options(platform: str) -> dict[str, Any]:
    """For every jitted life, on devices of a platform; none but for CPUs.

    The concurrency-optimised CPU scheduler costs more than it gains on programs made of thousands of tiny operations, and can
    deadlock on batched factorisations. The scheduler that saves memory is quickest (measured, CartPole's rollouts: 8.2, 8.1 and
    6.5 microseconds a step with it, the default and that). LLVM's last level of optimisation makes no life quicker, and
    compilation longer by a tenth to a third.
    """
    if platform != "cpu":
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
    except (RuntimeError, OSError):  # no home directory
        return
    features = "".join(
        sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}) or lines
    )
    kind = hashlib.sha256(features.encode()).hexdigest()[:12]
    jax.config.update("jax_compilation_cache_dir", str(base / "discover" / f"{platform.machine()}-{kind}"))
    # What cannot be read or written is compiled again, and that is all there is to say of it.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
