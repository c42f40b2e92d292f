"""Sphinx: the pages are MyST, the API comes from docstrings, and the cards, figures and notebooks are copied in at build time."""

import dataclasses
import inspect
import re
import shutil
import sys
import textwrap
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

project = "discover"
author = "The discover authors"
project_copyright = "2026, the discover authors"
release = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "mathml"]
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # `make notebooks` executes the notebooks, and tests/test_docs.py the pages
exclude_patterns = ["_build", "_static", "**/.ipynb_checkpoints"]

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"discover {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
napoleon_numpy_docstring = False

COLON = "\ue000"  # in properties, of which napoleon takes the words before a colon for a type
SECTIONS = ("Args:", "Returns:", "Raises:", "Yields:", "Note:", "Example:", "Examples:")
FIELD = re.compile(r"^ {4}(\w+): (.+?)(?: = (.+?))?(?:  # (.+))?$")


def setup(app):
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-docstring", as_rst, priority=100)  # before napoleon
    app.connect("autodoc-process-docstring", with_colons, priority=900)
    app.connect("autodoc-skip-member", without_fields)


def write_pages(app):
    """The card and the figure of every objective, and the notebooks as they are."""
    write_cards(HERE / "_cards")
    notebooks = HERE / "_notebooks"
    notebooks.mkdir(exist_ok=True)
    for source in sorted((ROOT / "notebooks").glob("*.ipynb")):
        if not (notebooks / source.name).exists() or source.stat().st_mtime > (notebooks / source.name).stat().st_mtime:
            shutil.copyfile(source, notebooks / source.name)


def write_cards(folder):
    import matplotlib

    matplotlib.use("Agg")
    import learned_objectives as lo
    from discover import plots

    folder.mkdir(exist_ok=True)
    for name in lo.available():
        objective = lo.load(name)
        if isinstance(objective, lo.Mirror):
            picture, alt = plots.drift_landscape({name: objective.drift}), f"The drift {name} and its slope"
        else:
            picture, alt = plots.credit(objective), f"What the update rule {name} teaches before and after one reward"
        picture.savefig(folder / f"{name}.png", dpi=110)
        title, rest = lo.card(name).split("\n", 1)
        figure = f"```{{image}} {name}.png\n:alt: {alt}\n```\n"
        summary, heading, sections = rest.partition("\n## ")
        text = f"{title}\n{summary}\n{figure}{heading}{sections}"
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def as_rst(app, what, name, obj, options, lines):
    """Docstrings are plain text: equations are indented, `names` are in backticks, and | and * mean themselves."""
    text = textwrap.dedent("\n".join(lines)).splitlines()
    if what == "property":
        text = [line.replace(":", COLON) for line in text]
    lines[:] = [*_blocks(text), *_fields(obj)]


def with_colons(app, what, name, obj, options, lines):
    lines[:] = [line.replace(COLON, ":") for line in lines]


def _blocks(text):
    """Indented paragraphs become literal blocks, and the lines under a sentence a list."""
    out, section, literal, listed, code = [], False, False, False, False
    for i, line in enumerate(text):
        indent = len(line) - len(line.lstrip())
        before = text[i - 1] if i else ""
        after = text[i + 1] if i + 1 < len(text) else ""
        if not line.strip():
            out.append("")
            continue
        if indent == 0:
            section = line in SECTIONS
            literal = listed = False
            if line.startswith("import ") and not before.strip():
                out += ["::", ""]
                code = True
            code = code and bool(before.strip() or line.startswith("import "))
            if line.startswith(">>>") or code:
                out.append(f"    {line}" if code else line)
                continue
            out.append(_escaped(line))
            if not section and after.startswith(" ") and after.strip():
                out.append("")
                listed = True
            continue
        if not section and not listed and not before.strip() and not literal:
            out += ["::", ""]
            literal = True
        if literal:
            out.append(line)
        elif listed:
            out.append(("* " if indent == 2 else "  ") + _escaped(line.strip()))
        else:
            out.append(line[:indent] + _escaped(line.strip()))
    return out


def _escaped(line):
    """Outside backticks, RST's marks are characters; inside, the text is code."""
    parts = re.split(r"(`[^`]+`)", line.replace("``", "`"))
    return "".join(
        f"`{part}`" if part.startswith("`") and len(part) > 1 else re.sub(r"([|*\\]|\b_|_\b)", r"\\\1", part)
        for part in parts
    )


def _fields(obj):
    """A list of the fields of a dataclass or a NamedTuple, whose meaning is a comment in the source."""
    if not inspect.isclass(obj) or not (dataclasses.is_dataclass(obj) or hasattr(obj, "_fields")):
        return []
    try:
        source = inspect.getsource(obj)
    except (OSError, TypeError):
        return []
    names = {field.name for field in dataclasses.fields(obj)} if dataclasses.is_dataclass(obj) else set(obj._fields)
    rows, lines = [], source.splitlines()
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if not (match := FIELD.match(line)) or match[1] not in names:
            continue
        names.remove(match[1])
        kind, default, comment = match[2], match[3], match[4] or ""
        if default and "field(" in default:
            inner = re.search(r"default=([^,)]+)", default)
            default = inner and inner[1]
        if comment and after.startswith("    # "):
            comment += " " + after.strip(" #")
        type_and_default = f"(``{kind}``, ``{default}``)" if default else f"(``{kind}``)"
        rows.append(f"* ``{match[1]}`` {type_and_default}" + (f": {_escaped(comment)}" if comment else ""))
    return ["", "Fields:", "", *rows, ""] if rows else []


def without_fields(app, what, name, obj, skip, options):
    """The fields of NamedTuples are in their list."""
    return True if type(obj).__name__ == "_tuplegetter" else skip
