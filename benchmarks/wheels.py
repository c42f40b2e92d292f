"""Gather the wheels that a machine with an accelerator needs and does not have: `python -m benchmarks.wheels`, or `make wheels`.

Such a machine (Python 3.12, JAX with CUDA, flax, optax, chex, orbax, safetensors) may have no network. The wheels go into .whl/,
those of the peer (rejax and the gymnax that it needs) into .whl/peer/. There:

    pip install --no-deps --no-index --target /tmp/site .whl/*.whl
    pip install --no-deps --no-index --target /tmp/peer .whl/peer/*.whl
    PYTHONPATH=/tmp/site python -m benchmarks.accelerators --measure --out OUT --peer-path /tmp/peer:/tmp/site
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.record import ROOT

PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64", "manylinux_2_17_x86_64", "any")
LIMIT = 64 * 2**20  # bytes that may travel, the checkout included
OURS = (
    *(
        "brax==0.14.2",
        "gymnax==1.0.1",
        "evosax==0.3.2",
        "tyro",
        "docstring-parser",
        "typeguard",
        "tensorboardX",
        "jaxopt",
    ),
    *(
        "mujoco==4.0.0",  # its parts have to have one version
        "mujoco-core==4.0.0",
        "mujoco-studio==4.0.0",
        "mujoco-mjx",
        "trimesh",
        "gymnasium<1.4",
        "farama-notifications",
        "glfw",
        "pyopengl",
        "ml-collections",
    ),
    *("dotmap", "blinker", "flask", "flask-cors", "itsdangerous"),
)
PEER = ("rejax==0.1.3", "gymnax==0.0.9", "distrax==0.1.9", "tfp-nightly", "dm-tree", "gast", "decorator")


def gather(packages: tuple[str, ...], directory: Path) -> list[str]:
    """Download the wheels; returns the packages that have no wheel."""
    missing = []
    directory.mkdir(parents=True, exist_ok=True)
    options = ["--no-deps", "--only-binary=:all:", "--python-version", PYTHON, "--dest", str(directory)]
    options += [word for platform in PLATFORMS for word in ("--platform", platform)]
    for package in packages:
        command = [sys.executable, "-m", "pip", "download", "--quiet", *options, package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            missing.append(package)
    return missing


def size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*.whl"))


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m benchmarks.wheels", description=__doc__)
    p.add_argument("--out", type=Path, default=ROOT / ".whl", help="a directory (.whl)")
    args = p.parse_args()
    missing = gather(OURS, args.out) + gather(PEER, args.out / "peer")
    total, count = size(args.out), len(list(args.out.rglob("*.whl")))
    print(
        f"{count} wheels in {args.out}, {total / 2**20:.1f} MiB; {LIMIT / 2**20:.0f} MiB may travel with the checkout."
    )
    if missing:
        print(f"benchmarks.wheels: no wheel for Python {PYTHON} was found of {', '.join(missing)}.", file=sys.stderr)
    return int(bool(missing) or total > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
