"""Imports go one way: learned_objectives and envs are leaves, and brax is behind one door."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import learned_objectives

ROOT = Path(learned_objectives.__file__).parents[1]  # the checkout, or where the wheel was installed

SCRIPT = """
import json, sys
import jax, flax.struct, numpy, safetensors.numpy
before = set(sys.modules)
import learned_objectives
print(json.dumps([sorted(before), sorted(set(sys.modules) - before)]))
"""


@pytest.fixture(scope="module")
def imported():
    """Top-level packages: those of jax, flax, numpy and safetensors, and those we add to them."""
    run = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True)
    return [{name.split(".")[0] for name in names} for names in json.loads(run.stdout)]


def test_learned_objectives_adds_nothing_to_its_four_dependencies(imported):
    # Asked of what we add, since flax may bring optax and orbax along (0.12 does not).
    _, added = imported
    dependencies = {"jax", "jaxlib", "flax", "numpy", "safetensors"}
    assert added - dependencies - sys.stdlib_module_names == {"learned_objectives"}


def test_a_user_of_one_objective_pulls_in_no_environment_and_no_strategy(imported):
    heavy = {"gymnax", "brax", "mujoco", "evosax", "matplotlib", "tensorboardX", "discover", "envs"}
    assert not heavy & set.union(*imported)


def sources(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    return files


def imports(file):
    """Top-level names imported anywhere in a file, at its head or late."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            relative = file.relative_to(ROOT).parts[0]
            yield relative if node.level else node.module.split(".")[0]
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            if name in {"import_module", "__import__"}:
                yield node.args[0].value.split(".")[0]


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("learned_objectives", {"envs", "discover", "gymnax", "evosax", "optax", "orbax"}),
        ("envs", {"learned_objectives", "discover", "evosax", "optax", "orbax"}),
    ],
)
def test_the_leaves_know_neither_each_other_nor_discover(package, forbidden):
    broken = {f.name: known for f in sources(package) if (known := forbidden & {*imports(f)})}
    assert not broken


@pytest.mark.parametrize("package", ["learned_objectives", "envs", "discover"])
def test_brax_is_behind_one_door(package):
    importers = {str(f.relative_to(ROOT)) for f in sources(package) if "brax" in {*imports(f)}}
    assert importers == ({"envs/suites/brax.py"} if package == "envs" else set())


def test_no_package_imports_from_the_tests():
    for package in ("learned_objectives", "envs", "discover"):
        for file in sources(package):
            assert not {"tests", "conftest", "pytest"} & {*imports(file)}, file


ROOMS = (  # of discover, from the top: each imports from those after it
    ("__main__", "_api", "cli"),
    ("commands",),
    ("quickstart",),
    ("evaluation",),
    ("plots",),
    ("runs",),
    ("searches",),
    ("agents",),
    ("devices",),
    ("results",),
    ("plugins",),
    ("names", "console", "flags", "formats", "settings", "config", "light", "progress"),
)


def modules():
    """{dotted name: file} of the three packages."""
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for package in ("discover", "envs", "learned_objectives")
        for file in sources(package)
    }


def imported_modules(known, file):
    """Our own modules that a file imports anywhere: at its head, late, or for types alone."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        if isinstance(node, ast.ImportFrom) and node.module in known:
            inner = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in known else node.module for name in inner)


def test_imports_form_no_circle():
    """Packages themselves are left out where they only pass on the names of their modules."""
    known = modules()
    left = {name: set(imported_modules(known, file)) - {name, name.rpartition(".")[0]} for name, file in known.items()}
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert not left


def test_imports_run_downward_between_rooms():
    known = modules()
    level = {room: i for i, rooms in enumerate(ROOMS) for room in rooms}
    found = []
    for name, file in known.items():
        if name == "discover" or not name.startswith("discover."):
            continue
        here = level[name.split(".")[1]]
        for other in imported_modules(known, file):
            if other.startswith("discover.") and level[other.split(".")[1]] < here:
                found.append(f"{name} imports {other}")
    assert not found
