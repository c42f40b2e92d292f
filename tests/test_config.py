"""Settings in TOML files: what is written reads back, what is missing stays, and every mistake is a sentence."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from discover import config, recipes
from discover.commands.recipe import as_toml
from discover.searches.families import FormulaConfig, LPGConfig, LPOConfig
from discover.searches.recipe import Recipe


@dataclass(frozen=True)
class Round:
    """A kind of shape."""

    radius: float = 1.0  # in metres


@dataclass(frozen=True)
class Square:
    """Another kind of shape."""

    side: int = 2  # in metres

    def __post_init__(self):
        if self.side < 1:
            raise ValueError(f"side must be at least 1, and is {self.side}.")


@dataclass(frozen=True)
class Drawing:
    """Shapes on paper."""

    title: str = "untitled"  # what the # is for
    paper: Literal["A4", "A5"] = "A4"
    copies: int | None = 1  # None: as many as fit
    limit: float | None = None  # of ink
    filled: bool = False
    sizes: tuple[int, ...] = (1, 2)
    at: tuple[float, float] = (0.0, 0.0)
    file: Path = Path("drawing.svg")
    extra: Any = 0
    shape: Round | Square = field(default_factory=Round)  # the value decides


BASE = Drawing()


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_printed_recipe_reads_back_as_itself(name):
    assert config.from_toml(as_toml(name), Recipe()) == recipes.get(name)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"title": 'quotes " and \\ and \n and \x7f and \u00e9 and \U0001f600'},
        {"copies": None, "limit": 1e-30},
        {"copies": 3, "limit": float("inf"), "sizes": (), "at": (1.5, -2.0)},
        {"filled": True, "paper": "A5", "file": Path("a b/c.svg")},
        {"shape": Round(radius=2.5)},
    ],
)
def test_what_is_written_reads_back(changes):
    settings = dataclasses.replace(BASE, **changes)
    assert config.from_toml(config.to_toml(settings, BASE, "A head\nof two lines"), BASE) == settings


def test_the_written_text_explains_each_field():
    assert config.to_toml(dataclasses.replace(BASE, copies=None), BASE, "Drawing") == (
        "# Drawing\n"
        "\n"
        'title = "untitled"  # what the # is for\n'
        'paper = "A4"\n'
        'copies = "None"  # None: as many as fit\n'
        "# limit = None  # of ink\n"
        "filled = false\n"
        "sizes = [1, 2]\n"
        "at = [0.0, 0.0]\n"
        'file = "drawing.svg"\n'
        "extra = 0\n"
        "\n"
        "# A kind of shape.\n"
        "[shape]\n"
        "radius = 1.0  # in metres\n"
    )


def test_what_a_file_leaves_out_stays_as_it_is():
    base = dataclasses.replace(BASE, title="mine", shape=Square(side=5))
    assert config.from_toml("copies = 4", base) == dataclasses.replace(base, copies=4)


def test_the_value_of_a_field_decides_the_keys_of_its_table():
    square = dataclasses.replace(BASE, shape=Square())
    assert config.from_toml("[shape]\nside = 3", square).shape == Square(side=3)
    with pytest.raises(ValueError, match=r"unknown key shape\.radius; the table \[shape\] has side\."):
        config.from_toml("[shape]\nradius = 3", square)


def test_a_whole_number_is_a_number():
    radius = config.from_toml("[shape]\nradius = 3", BASE).shape.radius
    assert (type(radius), radius) == (float, 3.0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("titel = 'x'", r"unknown key titel; did you mean 'title'\?"),
        ("radius = 2", r"unknown key radius; did you mean 'shape\.radius'\?"),
        ("[shape]\nradus = 1", r"unknown key shape\.radus; did you mean 'shape\.radius'\?"),
        ("zzz = 1", "unknown key zzz; the file may have title, paper, copies"),
        ("title = 3", "title must be a string, and is 3, a whole number"),
        ("copies = 'many'", "copies must be a whole number or \"None\", and is 'many', a string"),
        ("copies = true", "copies must be a whole number .*, and is True, a boolean"),
        ("copies = 1.0", r"copies must be a whole number .*, and is 1\.0, a number"),
        ("filled = 1", "filled must be true or false, and is 1, a whole number"),
        ("paper = 'A3'", "paper must be one of 'A4', 'A5', and is 'A3', a string"),
        ("sizes = 3", "sizes must be a list of whole numbers, and is 3, a whole number"),
        ("sizes = [1, 'a']", r"sizes must be a list of whole numbers, and is \[1, 'a'\], a list"),
        ("at = [1.0]", r"at must be a list of numbers, and is \[1\.0\], a list"),
        ("shape = 3", "shape must be a table, and is 3, a whole number"),
        ("[title]\na = 1", "title must be a string, and is a table"),
        ("title = 1979-05-27", "title must be a string, and is .*, a date or time"),
        ("\ntitle = ", "this is not TOML: .*at line 2"),
        ("sizes = [\n1,", "this is not TOML: .*at line 2"),
        ("title = 'a'\ntitle = 'b'", "this is not TOML: .*at line 2"),
        ("sizes = " + "[" * 5000, "this is not TOML"),
    ],
)
def test_a_mistake_in_a_file_is_said(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        config.from_toml(text, BASE)


def test_a_value_that_a_table_refuses_is_named_with_its_table():
    with pytest.raises(ValueError, match=r"^shape\.side must be at least 1, and is 0\.$"):
        config.from_toml("[shape]\nside = 0", dataclasses.replace(BASE, shape=Square()))


def test_a_mistake_in_a_file_names_the_file(tmp_path):
    (tmp_path / "a.toml").write_text("title = 3")
    (tmp_path / "b.toml").write_bytes(b"title = '\xff'")
    with pytest.raises(ValueError, match=r"a\.toml: title must be a string"):
        config.read(tmp_path / "a.toml", BASE)
    with pytest.raises(ValueError, match=r"b\.toml: this is not TOML: it is not UTF-8 text"):
        config.read(tmp_path / "b.toml", BASE)


def test_what_toml_cannot_hold_is_not_written():
    with pytest.raises(ValueError, match=r"extra is .*object.*, which TOML cannot hold"):
        config.to_toml(dataclasses.replace(BASE, extra=object()), BASE)


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        ("method = 'metagrad'", "method", "search.kind"),
        ("start = 'none'", "start", "objective.start"),
        ("epsilon = 0.1", "epsilon", "objective.epsilon"),
        ("[evolution]\nlateness = 1.0", "evolution.lateness", "search.late_window_weight"),
        ("[evolution]\nsigma = 1.0", "evolution.sigma", "search.sigma"),
        ("[metagrad]\nmembers = 8", "metagrad.members", "search.members"),
        ("[lpg]\nhidden = 8", "lpg.hidden", "objective.hidden"),
        ("[evolution]", "evolution", "search.kind"),
    ],
)
def test_a_key_of_version_0_1_is_answered_with_the_new_one(text, old, new):
    with pytest.raises(ValueError, match=r".") as error:
        config.from_toml(text, Recipe())
    assert str(error.value) == f"unknown key {old}, which is of version 0.1: write {new}."


@pytest.mark.parametrize(("part", "name"), [("objective", "ta_lpo"), ("search", "rolling")])
def test_a_name_in_the_place_of_a_table_is_answered_with_its_kind(part, name):
    with pytest.raises(
        ValueError, match=f"^{part} must be a table, and is '{name}', a string: write {part}.kind = '{name}'"
    ):
        config.from_toml(f"{part} = '{name}'", Recipe())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ta_lpo", LPOConfig(time_aware=True)),
        ("ta_lpg", LPGConfig(time_aware=True)),
        ("lpg", LPGConfig()),
        ("mdpo", FormulaConfig("mdpo")),
    ],
)
def test_a_file_names_an_objective_as_the_command_line_does(name, settings):
    assert config.from_toml(f"[objective]\nkind = '{name}'", Recipe()).objective == settings


def test_a_kind_keeps_the_settings_of_its_class():
    text = "[objective]\nkind = 'ta_lpo'\nwidth = 7"
    small = Recipe(objective=LPOConfig(epsilon=0.3))
    assert config.from_toml(text, small).objective == LPOConfig(time_aware=True, epsilon=0.3, width=7)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "[objective]\nkind = 'ta_lqo'",
            r"objective.kind: Unknown objective 'ta_lqo'; did you mean 'ta_lpo'.*module:Name",
        ),
        ("[objective]\nkind = 'own'", "the key objective.path is missing: kind = 'own' needs it"),
        ("[search]\nkind = 3", "search.kind must be a string, and is 3, a whole number"),
        ("[search]\nmembers = 3", r"unknown key search.members; the table \[search\] of kind 'evolution' has chunk, "),
    ],
)
def test_a_mistake_in_a_kind_is_said(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        config.from_toml(text, Recipe())
