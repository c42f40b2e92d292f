"""A math renderer of Sphinx: equations become MathML when the site is built, so that a page needs no network and no script."""

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.errors import ExtensionError

FUNCTIONS = re.compile(
    r"<m[io]>(log|exp|tanh|sech|max|min|clip|relu|mean)</m[io]>(<mo[^>]*>(?:\(|&#x00028;|\[|&#x0005B;)</mo>)?"
)
BAR = re.compile(r"<mo([^>]*)>(\||&#x0007C;|&#x02223;|&#x02223;)</mo>")


def setup(app):
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def mathml(latex, display):
    """MathML has the spaces of operators from their element: a function name is an operator, and a bar is none."""
    try:
        text = convert(latex, display=display)
    except Exception as error:
        raise ExtensionError(f"latex2mathml cannot convert {latex!r}: {error!r}") from error
    text = FUNCTIONS.sub(_function, text)
    return BAR.sub(r'<mo stretchy="false" lspace="0" rspace="0">|</mo>', text)


def _function(found):
    after = found[2] or ""
    return f'<mo lspace="0.17em" rspace="{"0" if after else "0.17em"}">{found[1]}</mo>{after}'


def inline(translator, node):
    translator.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def block(translator, node):
    translator.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode
