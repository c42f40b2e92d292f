"""Code, help, README, documentation and notebooks are in plain technical English: no idiom of the list below occurs in them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UNCHECKED = {Path(__file__)}
FOLDERS = ("benchmarks", "discover", "docs", "envs", "learned_objectives", "notebooks", "tests")
# An idiom, and what to write instead. A pattern stands here only if a technical text has no other use for it.
IDIOMS = {
    r"dear(er|est)?": "expensive",
    r"whoever": "any process, any user, any caller",
    r"(no|some|every|any)body": "no process, a user, all objectives, any reader",
    r"at will": "freely, in any order",
    r"meanwhile": "at the same time",
    r"(has|have|had) come to": "has reached, is",
    r"(comes|came) (all )?to (the|a|an|what|it|its|their|something)": "gives, reaches",
    r"(?-i:[Tt]here (is|are) none)": "no wheel exists, it is missing",
    r"got otherwise": "has another value",
    r"(what|nothing) crosses": "is sent",
    r"(is|are|was|were|be|being) told": "receives, raises an error",
    r"tells": "reports, shows, distinguishes",
    r"gives? back": "returns",
    r"(likes|wants|believes)": "needs, has the highest score",
    r"(by heart|nearer at hand|lets go|none the less|of old)": "a plain word",
    r"(thereof|therein|thereby|herein|hereby|whence|hither|thither|albeit|lest)": "a plain word",
}


def texts():
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            generated = any(
                part.startswith(("_build", "_cards", "_notebooks", ".")) for part in path.relative_to(ROOT).parts
            )
            if path.suffix in {".py", ".md", ".css"} and not generated and path not in UNCHECKED:
                yield path
    yield from (
        path for path in (*sorted(ROOT.glob("*.md")), ROOT / "Makefile", ROOT / "pyproject.toml") if path.exists()
    )


@pytest.mark.parametrize("idiom", IDIOMS)
def test_an_idiom_does_not_occur(idiom):
    pattern = re.compile(rf"\b{idiom}\b", re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in texts()
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not found, f"write {IDIOMS[idiom]!r}:\n" + "\n".join(found)
