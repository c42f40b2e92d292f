"""Make each notebook from its source, N_name.py in jupytext's percent format, and execute it.

python notebooks/build.py                      all of them at full size; writes N_name.ipynb with its outputs
python notebooks/build.py 2_look_inside_a_drift   that one
python notebooks/build.py --small              tiny sizes, to see that they run; writes nothing
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).parent
PUBLIC = ""  # the project's repository on GitHub as owner/name; while it is empty, notebooks have no Colab badge
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link})"
SMALL = "DISCOVER_NOTEBOOK_SMALL"


def sources() -> list[Path]:
    return sorted(HERE.glob("[0-9]_*.py"))


def from_source(source: Path, public: str = PUBLIC) -> nbformat.NotebookNode:
    """The notebook that a source describes, without outputs; with a badge below its title if there is a public repository."""
    notebook = jupytext.reads(source.read_text(), fmt="py:percent")
    if public:
        title, _, text = notebook.cells[0].source.partition("\n")
        link = f"https://colab.research.google.com/github/{public}/blob/main/notebooks/{source.stem}.ipynb"
        notebook.cells[0].source = f"{title}\n\n{BADGE.format(link=link)}\n{text}"
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i}"  # jupytext draws them at random, which would be a diff
    return notebook


def execute(notebook: nbformat.NotebookNode) -> None:
    """In place, in a directory of its own, so that what a notebook saves is not left in the repository."""
    with tempfile.TemporaryDirectory() as directory:
        options = {"timeout": 1800, "record_timing": False, "coalesce_streams": True}
        NotebookClient(notebook, resources={"metadata": {"path": directory}}, **options).execute()


def main(arguments: list[str]) -> int:
    small = "--small" in arguments or SMALL in os.environ
    if small:  # nearly all of it is compilation, so let that be quick, and done once
        os.environ[SMALL] = "1"
        os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(HERE.parent / ".jax_cache"))
    names = [name for name in arguments if name != "--small"]
    for source in [HERE / f"{Path(name).stem}.py" for name in names] or sources():
        notebook, began = from_source(source), time.monotonic()
        try:
            execute(notebook)
        except CellExecutionError as error:
            print(f"{source.name} failed:\n{error}", file=sys.stderr)
            return 1
        if not small:
            nbformat.write(notebook, source.with_suffix(".ipynb"))
        print(f"{source.stem}: {time.monotonic() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
