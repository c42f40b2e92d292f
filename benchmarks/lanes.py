"""Does the wheel install and work on each Python, by pip and by uv? `python -m benchmarks.lanes --tests`.

A lane is a Python and an installer. Each gets a virtual environment of its own in a temporary directory, the wheel of this
checkout with its dev extras, and what a newcomer does, from directories in which nothing of the checkout lies. With
`--folder` the environments stay there, and the same wheel's next call repeats nothing that passed but the tests it names.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.record import ROOT, commit, machine

RESULTS = ROOT / "benchmarks/results/lanes.json"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "chex", "gymnax", "brax", "evosax", "orbax-checkpoint", "numpy", "pytest")
PATIENCE = 3600  # seconds, for any one command
SHORT = "--total-steps 8192 --num-seeds 2"
QUIET = os.nice(0) == 0  # seconds of a process that stands back for others say nothing

IMPORT = """
import pathlib, sys
import discover, envs, learned_objectives as lo
for package in (discover, envs, lo):
    assert pathlib.Path(package.__file__).is_relative_to(sys.prefix), f"{package.__name__} is not the installed one"
for name in lo.available():
    lo.load(name)
    lo.card(name)
"""

VERSIONS = """
import importlib.metadata, json, platform, sys
print(json.dumps({"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in sys.argv[1:]}))
"""

# `discover quickstart` but for its sizes, which are those of the third notebook's small form.
QUICKSTART = """
import pathlib, sys
from dataclasses import replace
from discover import quickstart, recipes
whole = recipes.quickstart()
sizes = {"total_steps": 2_048, "generations": 2, "evaluate_every": 1, "evaluation_seeds": 2, "checkpoint_every": 1}
small = replace(whole, **sizes, search=replace(whole.search, population=4, chunk=2))
recipes.quickstart, quickstart.SEEDS = lambda: small, 2
sys.exit(quickstart.quickstart(pathlib.Path("quickstart")))
"""


class Failed(Exception):
    """What a command said as it failed."""


class Lane(NamedTuple):
    """One virtual environment, and where its commands run."""

    installer: str  # pip, or uv's path
    folder: Path

    @property
    def name(self) -> str:
        return "pip" if self.installer == "pip" else "uv"

    @property
    def python(self) -> str:
        return str(self.folder / "venv" / "bin" / "python")

    def install(self, python: str, wheel: Path) -> None:
        wanted = f"discover-rl[dev] @ {wheel.as_uri()}"
        if self.installer == "pip":
            run([python, "-m", "venv", self.folder / "venv"])
            run([self.python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", wanted])
        else:
            run([self.installer, "venv", "--quiet", "--python", python, self.folder / "venv"])
            run([self.installer, "pip", "install", "--quiet", "--python", self.python, wanted])

    def __call__(self, *arguments: str | Path) -> str:
        """A command of the installed Python, in a directory that holds only what such commands wrote."""
        here = self.folder / "here"
        here.mkdir(exist_ok=True)
        return run([self.python, *arguments], cwd=here, cache=self.folder / "cache")

    def discover(self, line: str) -> str:
        return self(Path(self.python).with_name("discover"), *line.split())

    def versions(self) -> dict[str, str]:
        return json.loads(self("-c", VERSIONS, *PACKAGES))

    def quickstart(self) -> None:
        self("-c", QUICKSTART)
        if "Resuming" not in (again := self("-c", QUICKSTART)):
            raise Failed(f"The same quickstart again did not resume.\n{again}")

    def tests(self, names: Iterable[str]) -> dict[str, Any]:
        """The counts of each file. They lie beside what they read, the notebooks, and beside no package of ours."""
        folder = self.folder / "tests"
        for name in ("tests", "notebooks"):
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
            )
        shutil.copy(ROOT / "pyproject.toml", folder)
        (folder / "report.xml").unlink(missing_ok=True)
        files = [f"tests/{Path(name).stem}.py" for name in names]
        try:
            run([self.python, "-m", "pytest", "--junitxml=report.xml", *files], cwd=folder, cache=self.folder / "cache")
        except Failed as failure:
            print(failure)  # with the names of the tests that failed, and why
        if not (folder / "report.xml").exists():
            raise Failed("pytest did not come to its report.")
        found = counts(folder / "report.xml")
        if missing := [file for file in files if Path(file).stem not in found] or not found:
            raise Failed(f"pytest told nothing of {missing if files else 'any file'}.")
        return found


def counts(report: Path) -> dict[str, Any]:
    """Of pytest's report, by file: how many passed, failed and were skipped, and which failed."""
    found: dict[str, Any] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        file = (case.get("classname") or case.get("name") or "").split(".")[1]  # tests.test_run, with a class perhaps
        of_file = found.setdefault(file, {"passed": 0, "failed": 0, "skipped": 0, "failures": []})
        outcomes = {child.tag for child in case}
        if {"failure", "error"} & outcomes:
            of_file["failed"] += 1
            of_file["failures"].append(case.get("name"))
        else:
            of_file["skipped" if "skipped" in outcomes else "passed"] += 1
    return found


def run(command: list[str | Path], cwd: Path | None = None, cache: Path | None = None) -> str:
    """What it printed. `cache`: in place of the user's, in which programs compiled before may lie."""
    environment = {
        k: v for k, v in os.environ.items() if not re.match("PYTHONPATH|PYTHONHOME|VIRTUAL_ENV|JAX_|XLA_", k)
    }
    environment |= {"JAX_PLATFORMS": "cpu"} | ({} if cache is None else {"XDG_CACHE_HOME": str(cache)})
    command = [str(word) for word in command]
    try:
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:  # pytest-xdist, for one, waits for ever for workers that crashed
        raise Failed(f"{' '.join(command)[:200]} had not ended after {PATIENCE} s.") from None
    if done.returncode:
        raise Failed(f"{' '.join(command)[:200]} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-6000:]}")
    return done.stdout + done.stderr


def build(python: str, folder: Path) -> Path:
    run([python, "-m", "venv", folder / "builder"])
    pip = [folder / "builder" / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run([*pip, "wheel", "--no-deps", "--wheel-dir", folder / "dist", ROOT])
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def uv(python: str, folder: Path) -> str:
    """That on the PATH, or else one in a virtual environment of its own."""
    if found := shutil.which("uv"):
        return found
    run([python, "-m", "venv", folder / "uv"])
    run([folder / "uv" / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "uv"])
    return str(folder / "uv" / "bin" / "uv")


def find(name: str) -> str | None:
    """The interpreter of that path, name or version, if it starts."""
    path = shutil.which(f"python{name}" if re.fullmatch(r"[\d.]+", name) else name)
    try:
        run([path or name, "-c", "import venv"])
    except (OSError, Failed):
        return None
    return path


def measure(lane: Lane, python: str, wheel: Path, tests: list[str] | None) -> dict[str, Any]:
    """A row of the results: each step passed or failed; without an installation there are no further ones."""
    steps: dict[str, Callable[[], Any]] = {
        "install": lambda: lane.install(python, wheel),
        "versions": lane.versions,
        "import": lambda: lane("-c", IMPORT),
        "list": lambda: lane.discover("list"),
        "train": lambda: lane.discover(f"train --objective dpo --env CartPole-v1 {SHORT} --out trained"),
        "train in brax": lambda: lane.discover(f"train --objective lpo --env brax/inverted_pendulum {SHORT}"),
        "quickstart, small": lane.quickstart,
        "tests": lambda: row.get("tests", {}) | lane.tests(tests or []),
    }
    if tests is None:
        del steps["tests"]
    row = begun(lane, wheel)
    for step, do in steps.items():
        if row["steps"].get(step) == "passed" and step != "tests":
            continue
        began = time.monotonic()
        try:
            result = do()
            row["steps"][step] = "passed"
        except Failed as failure:
            print(failure)
            row["steps"][step] = "failed"
        else:
            row |= {step: result} if step in ("versions", "tests") else {}
        if total(row, "failed"):
            row["steps"]["tests"] = "failed"
        if QUIET:
            row.setdefault("seconds", {})[step] = round(time.monotonic() - began, 1)
        (lane.folder / "row.json").write_text(json.dumps(row))
        print(f"  {step}: {row['steps'][step]}", flush=True)
        if row["steps"]["install"] == "failed":
            break
    return row


def begun(lane: Lane, wheel: Path) -> dict[str, Any]:
    """What this wheel has done already in this lane; its environment is removed if that was another wheel."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    kept = lane.folder / "row.json"
    row = json.loads(kept.read_text()) if kept.exists() else {}
    if row.get("wheel") == digest:
        return row
    shutil.rmtree(lane.folder, ignore_errors=True)
    lane.folder.mkdir(parents=True)
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"installer": lane.name, "commit": commit(), "date": date, "wheel": digest, "steps": {}}


def total(row: dict[str, Any], what: str) -> int:
    return sum(of_file[what] for of_file in row.get("tests", {}).values())


def save(row: dict[str, Any]) -> None:
    """In place of what the file had of this lane."""
    rows = json.loads(RESULTS.read_text())["lanes"] if RESULTS.exists() else []
    rows = [old for old in rows if key(old) != key(row)] + [row]
    RESULTS.write_text(json.dumps({"machine": machine(), "lanes": sorted(rows, key=key)}, indent=1) + "\n")


def key(row: dict[str, Any]) -> tuple[str, str]:
    return row["python"], row["installer"]


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| python | installer | jax | flax | gymnax | brax | evosax | numpy | passed | failed | tests |"]
    lines.append("|---" * 11 + "|")
    for row in rows:
        versions = row.get("versions", {})
        shown = [versions.get(name, "") for name in ("jax", "flax", "gymnax", "brax", "evosax", "numpy")]
        passed, failed = (
            ", ".join(step for step, result in row["steps"].items() if result == what and step != "versions")
            or "nothing"
            for what in ("passed", "failed")
        )
        told = ", ".join(f"{total(row, what)} {what}" for what in ("passed", "failed", "skipped"))
        told = f"{told} in {len(row['tests'])} files" if "tests" in row else "not run"
        lines.append("| " + " | ".join([row["python"], row["installer"], *shown, passed, failed, told]) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0; 1 where a lane failed; 2 if there was none to try."""
    args = parser().parse_args(argv)
    rows = []
    pythons = {name: path for name in args.pythons if (path := find(name))}
    for name in sorted({*args.pythons} - {*pythons}):
        print(f"No Python {name} here: install it, or name its path. Its lanes are left out.")
    if not pythons:
        return 2
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        lanes = scratch if args.folder is None else args.folder.resolve()
        first = next(iter(pythons.values()))
        wheel = build(first, scratch)
        for python, installer in ((p, i) for p in pythons.values() for i in args.installers):
            version = run([python, "-c", "import platform; print(platform.python_version())"]).strip()
            print(f"Python {version}, {installer}", flush=True)
            try:
                lane = Lane("pip" if installer == "pip" else uv(first, scratch), lanes / f"{version}-{installer}")
            except Failed:
                print("No uv here, and it could not be installed. Its lane is left out.")
                continue
            rows.append({"python": version} | measure(lane, python, wheel, args.tests))
            save(rows[-1])
    print(table(rows))
    return int(any("failed" in row["steps"].values() for row in rows))


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m benchmarks.lanes", description=__doc__)
    p.add_argument("--pythons", nargs="+", default=["3.11", "3.12", "3.13"], help="versions, names or paths")
    p.add_argument("--installers", nargs="+", choices=["pip", "uv"], default=["pip", "uv"])
    p.add_argument("--folder", type=Path, help="where the environments stay; otherwise they are removed")
    p.add_argument("--tests", nargs="*", metavar="FILE", help="also the tests of the wheel: all, or these files")
    return p


if __name__ == "__main__":
    sys.exit(main())
