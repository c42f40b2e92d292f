"""A virtual environment for peers that cannot live in ours, built once and kept in a cache."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path


class PeerEnvError(Exception):
    """The environment could not be built; the message says why."""


def requirements() -> list[str]:
    """rejax needs gymnax before 1.0, which needs an undeclared six; the rest is as here."""
    same = [f"{name}=={importlib.metadata.version(name)}" for name in ("jax", "brax", "safetensors")]
    return ["rejax==0.1.3", "gymnax==0.0.9", *same, "six"]


def python() -> str:
    """The interpreter of rejax's environment, which is built first if it is not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    pins = "-".join(r.replace("==", "-") for r in requirements() if "==" in r)
    major, minor, _ = platform.python_version_tuple()
    folder = cache / "discover-benchmarks" / f"{pins}-py{major}.{minor}"
    interpreter, complete = folder / "bin" / "python", folder / "complete"
    if not complete.exists():
        print(f"Building an environment with {', '.join(requirements())} ...", flush=True)
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        pip = [str(interpreter), "-m", "pip", "--disable-pip-version-check", "--quiet"]
        _run([*pip, "--retries", "1", "install", *requirements()])
        complete.write_text("\n".join(requirements()) + "\n")
    return str(interpreter)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise PeerEnvError(str(error.strerror)) from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise PeerEnvError(errors[0].removeprefix("ERROR: ").rstrip("."))
