"""The packages announce their types, and the version is the same wherever it is written."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.mark.parametrize("package", ["discover", "envs", "learned_objectives"])
def test_a_package_has_type_information(package):
    assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize(
    ("page", "pattern"),
    [
        ("CITATION.cff", r"^version: (.+)$"),
        ("docs/cite.md", r"version = \{(.+)\}"),
        ("CHANGELOG.md", r"^## \[(\d.+?)\] - \d{4}-\d\d-\d\d$"),
    ],
)
def test_the_version_is_that_of_the_package(page, pattern):
    assert re.search(pattern, (ROOT / page).read_text(), re.MULTILINE)[1] == VERSION
