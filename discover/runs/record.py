"""What a run leaves to be read: where an objective came from, and its numbers for people and for TensorBoard."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax

from discover.formats import mean_return
from discover.searches.recipe import Recipe


def provenance(recipe: Recipe) -> dict[str, Any]:
    """How an objective was made. No times of day, so that a resumed run exports the very same file."""
    return {"recipe": recipe.as_dict(), "seed": recipe.seed} | made_with()


def depends_on(recipe: Recipe, num_devices: int | None = None) -> dict[str, Any]:
    """Everything except the recipe and the seed that the exact result of a run on `num_devices` (default: all) depends on. If one
    of these differs, rounding may differ."""
    chunk = recipe.search.chunk
    return made_with() | {"chunk": chunk} | ({} if chunk else {"devices": num_devices or jax.device_count()})


def made_with() -> dict[str, Any]:
    """Versions, device, processor, the compiler's flags and commit."""
    packages = ("jax", "jaxlib", "flax", "optax", "gymnax", "brax", "evosax", "numpy", "discover-rl")
    return {
        "versions": {name: _version(name) for name in packages} | {"python": platform.python_version()},
        "device": f"{jax.devices()[0].device_kind} ({jax.default_backend()})",
        "processor": _processor(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "commit": _commit(),
    }


def _processor() -> str:
    """Its name and its widest vectors, for which XLA compiles."""
    info = Path("/proc/cpuinfo")
    lines = (line.partition(":") for line in info.read_text().splitlines()) if info.exists() else ()
    fields = {name.strip(): value.strip() for name, _, value in lines}
    words = fields.get("flags", fields.get("Features", "")).split()
    widest = next((word for word in ("avx512f", "avx2", "avx", "sve", "asimd") if word in words), platform.machine())
    return f"{fields.get('model name') or platform.processor() or 'unnamed'} ({widest})"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit this code is at, if it is a checkout; marked when there are changes on top."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        ours = subprocess.run(
            [*git, "ls-files", "--error-unmatch", __file__], capture_output=True, timeout=10, check=False
        )
        if ours.returncode != 0:  # installed into another checkout, or into none
            return None
        command = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


class Writers:
    """TensorBoard always; Weights & Biases if asked for."""

    def __init__(self, path: Path, recipe: Recipe, wandb: bool):
        from tensorboardX.event_file_writer import EventsWriter

        # Not a SummaryWriter: where the disk is full its thread dies, and then its queue blocks for ever.
        path.mkdir(parents=True, exist_ok=True)
        self._board = EventsWriter(str(path / "events"))
        self._wandb = start_wandb(recipe) if wandb else None

    def write(self, row: dict[str, Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        scalars = {
            name: row[name]
            for name in ("mean_norm", "sigma", "diverged", "steps_per_second")
            if row.get(name) is not None
        }
        scalars |= {f"meta/{k}": v for k, v in row.get("meta", {}).items() if v is not None}
        for env, values in row.get("fitness", {}).items():
            scalars |= {f"fitness/{env}/{k}": v for k, v in values.items() if v is not None}
        for env, returns in row.get("evaluation", {}).items():
            if (mean := mean_return(returns)) is not None:
                scalars[f"evaluation/{env}"] = mean
        for name, value in scalars.items():
            event = Event(wall_time=time.time(), step=row["generation"], summary=scalar(name, value))
            self._board.write_event(event)
        self._board.flush()
        if self._wandb is not None:
            self._wandb.log(scalars, step=row["generation"])

    def close(self) -> None:
        with suppress(OSError):  # of a full disk: the run has said so
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def import_wandb() -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("wandb is not installed: `pip install wandb`, or leave --wandb out.") from None
    return wandb


def start_wandb(recipe: Recipe) -> Any:
    wandb = import_wandb()
    return wandb.init(project="discover", name=recipe.name, config=recipe.as_dict())
