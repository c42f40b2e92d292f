"""Where and on what a measurement was made. Nothing here names a host, a user or a path."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def provenance() -> dict[str, Any]:
    """The head of a results file: when, from what code, on which machine and with which packages."""
    packages = ("jax", "jaxlib", "flax", "optax", "gymnax", "brax", "evosax", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "versions": {"python": platform.python_version()} | versions,
    }


def machine() -> dict[str, Any]:
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": _cpu(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return _output(["sysctl", "-n", "machdep.cpu.brand_string"]) or platform.processor()
    fields = dict(re.findall(r"^(.+?)\s*:\s*(.+)$", info.read_text(), re.MULTILINE))
    keys = ("vendor_id", "cpu family", "model")  # where the name alone says little
    numbers = ", ".join(f"{key} {fields[key]}" for key in keys if key in fields)
    return f"{fields.get('model name') or platform.processor()} ({numbers})"


def commit() -> str | None:
    """The commit this code is at, if it is a checkout; marked when there are changes on top."""
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return _output(["git", "-C", str(ROOT), *describe])


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
