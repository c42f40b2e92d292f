"""Every Python block of the README and the documentation runs, at a small size, and the site builds without a warning."""

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import envs
from learned_objectives import library

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(
    page for page in DOCS.rglob("*.md") if not any(part.startswith("_") for part in page.relative_to(DOCS).parts)
)
README = DOCS.parent / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WORD = re.compile(r"^import (\w+)", re.MULTILINE)
SMALL_SEARCH = "total_steps=1_024, evaluation_seeds=2, search=discover.EvolutionConfig(population=4)"
# A page has the sizes that a reader would take; here they are smaller.
SMALL = {
    r'"quickstart", out': "replace(discover.recipes.quickstart(), generations=20, evaluate_every=4, checkpoint_every=4), out",
    r"\btotal_steps=\[.*?\]": "total_steps=[1_024, 2_048]",
    r"\btotal_steps=[\d_]+": "total_steps=1_024",
    r"\bnum_seeds=\d+": "num_seeds=2",
    r"\bgenerations=\d+": "generations=2",
    r"\b(evaluate|checkpoint)_every=\d+": r"\1_every=1",
    r"(recipes\.quickstart\(\)), ": rf"\1, {SMALL_SEARCH}, ",
}


def blocks(page):
    """The Python of a page, each block on the line where the page has it."""
    text = page.read_text()
    return [(match[1], text[: match.start(1)].count("\n")) for match in BLOCK.finditer(text)]


def small(code):
    for pattern, size in SMALL.items():
        code = re.sub(pattern, size, code)
    return code


def run(page):
    """The names that a page leaves behind when its blocks run in order."""
    names = {"__name__": "__main__", "replace": dataclasses.replace}
    for code, line in blocks(page):
        exec(compile("\n" * line + small(code), page, "exec"), names)
    return names


@pytest.fixture
def apart(tmp_path, monkeypatch):
    """A directory of one's own, and the registries as they were."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(library, "_types", dict(library._types))
    monkeypatch.setattr(envs, "_registered", dict(envs._registered))
    monkeypatch.setattr(envs, "_built", dict(envs._built))
    monkeypatch.setattr(envs.suites, "_suites", dict(envs.suites._suites))


@pytest.fixture(scope="module")
def quick_compilation():
    """Nearly all of the time is compilation. Programs made like this are not left to other tests."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in (README, *PAGES) if blocks(page)], ids=lambda page: page.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_code_of_a_page_runs(page, apart, quick_compilation):
    for module in WORD.findall("".join(code for code, _ in blocks(page))):
        pytest.importorskip(module)
    names = run(page)
    if page.stem == "ppo":
        losses = [names[f"{library}_loss"] for library in ("linen", "nnx", "plain")]
        assert np.isfinite(losses).all()
        assert any(x.size for x in jax.tree.leaves(names["plain"]))


def test_a_page_is_made_small():
    code = "discover.train('ppo', total_steps=100_000, num_seeds=10)"
    assert small(code) == "discover.train('ppo', total_steps=1_024, num_seeds=2)"


def test_every_page_has_a_place():
    """In a table of contents, by its path without the ending."""
    named = "\n".join(page.read_text() for page in PAGES)
    for page in PAGES:
        path = str(page.relative_to(DOCS).with_suffix(""))
        assert path == "index" or re.search(rf"^{path}$", named, re.MULTILINE), path


@pytest.mark.parametrize("module", ["learned_objectives", "discover", "envs"])
def test_the_reference_has_every_public_name(module):
    text = (DOCS / "api" / f"{module}.md").read_text()
    public = __import__("discover._api", fromlist=["_api"]) if module == "discover" else __import__(module)
    modules = {"plots": "discover.plots", "recipes": "discover.runs.recipes"}
    for name in public.__all__:
        full = modules.get(name, f"{module}.{name}") if module == "discover" else f"{module}.{name}"
        assert re.search(rf":: {re.escape(full)}(\(\))?$", text, re.MULTILINE), full


@pytest.mark.skipif("DISCOVER_LONG_TESTS" not in os.environ, reason="half a minute; `make docs` does the same")
@pytest.mark.skipif(not all(map(importlib.util.find_spec, ("sphinx", "latex2mathml"))), reason="needs the extra docs")
def test_the_site_builds_without_a_warning(tmp_path):
    build = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        str(DOCS),
        str(tmp_path / "html"),
    ]
    done = subprocess.run(build, capture_output=True, text=True, cwd=DOCS.parent)
    assert done.returncode == 0, done.stderr
