"""Notebooks are what their sources say, ran without error, and name no private machine. Nothing is executed here."""

import ast
import re
import runpy
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
BUILD = runpy.run_path(str(NOTEBOOKS / "build.py"))
SOURCES = BUILD["sources"]()
# Home, temporary and system directories of any machine, addresses, and names that only a local network knows.
PRIVATE = re.compile(
    r"(?<![\w.:/])/(home|root|tmp|work|Users|mnt|opt|srv|var|usr|workspace|content)/|[A-Z]:\\\\|\b\d+\.\d+\.\d+\.\d+\b|localhost"
    r"|\b[\w-]+\.(local|internal|lan|corp)\b"
)


def test_there_is_a_notebook_for_each_source_and_none_besides():
    assert SOURCES
    assert {p.stem for p in NOTEBOOKS.glob("*.ipynb")} == {p.stem for p in SOURCES}


@pytest.fixture(params=SOURCES, ids=lambda source: source.stem)
def source(request):
    return request.param


@pytest.fixture
def notebook(source):
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_a_notebook_has_the_cells_of_its_source(source, notebook):
    expected = BUILD["from_source"](source)
    assert [(c.cell_type, c.source) for c in notebook.cells] == [(c.cell_type, c.source) for c in expected.cells]


def test_a_notebook_was_executed_from_top_to_bottom_at_full_size_without_errors(notebook):
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in code(notebook)] == [*range(1, len(code(notebook)) + 1)]
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]


def strings(node):
    """Every string anywhere in a JSON document."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, (dict, list)):
        for child in node.values() if isinstance(node, dict) else node:
            yield from strings(child)


def test_a_notebook_names_no_machine(notebook):
    for cell in code(notebook):
        for output in cell.outputs:
            output.get("data", {}).pop("image/png", None)
    assert not PRIVATE.search("\n".join(strings(notebook)))


@pytest.mark.parametrize("text", ["/home/me/x.py", "see /tmp/a", "10.0.0.7:80", "http://localhost", "build.internal"])
def test_what_names_a_machine_is_seen(text):
    assert PRIVATE.search("\n".join(strings({"text": [f"a line\n{text}"]})))


def test_a_notebook_installs_the_package_by_name_or_from_the_checkout(source, notebook):
    title, install = notebook.cells[:2]
    assert title.source.startswith(f"# {source.stem[0]}. ")
    assert 'if "google.colab" in sys.modules:' in install.source
    assert '[*install, "discover-rl"]' in install.source
    assert "[*install, str(root)]" in install.source
    assert '"-c", "keep.txt"' in install.source  # Colab's own JAX stays


def test_a_badge_needs_a_public_address(source):
    title = BUILD["from_source"](source, public="").cells[0].source
    assert "colab" not in title
    with_badge = BUILD["from_source"](source, public="them/it").cells[0].source
    assert f"github/them/it/blob/main/notebooks/{source.stem}.ipynb" in with_badge.splitlines()[2]
    assert [line for line in with_badge.splitlines() if "colab" not in line][2:] == title.splitlines()[1:]


def test_no_placeholder_of_an_address_is_left():
    root = NOTEBOOKS.parent
    files = [p for kind in ("*.md", "*.toml", "*/*.md", "*/*.py", "*/*.ipynb", "*/*/*.py") for p in root.glob(kind)]
    assert NOTEBOOKS / "build.py" in files
    placeholder = "OWNER" + "/REPO"
    assert not [p for p in files if ".venv" not in p.parts and placeholder in p.read_text()]


def test_an_objective_is_one_line_of_a_ppo():
    text = (NOTEBOOKS / "1_use_a_discovered_objective.py").read_text()
    functions = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    before, after = (
        ast.get_source_segment(text, functions[name]).splitlines()[1:] for name in ("ppo_loss", "discovered_loss")
    )
    (changed,) = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    assert all(line.lstrip().startswith("policy_loss = ") for line in changed)
    assert "surrogate" in changed[1]
