"""A recipe survives the record of the objective that it made."""

import dataclasses
import json

import pytest

from discover import recipes
from discover.recipe import recipe_of


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_comes_back_from_its_record(name):
    recipe = recipes.get(name)
    record = json.loads(json.dumps({"recipe": dataclasses.asdict(recipe)}))
    assert recipe_of(record) == recipe


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({}, "holds no recipe"),
        ({"recipe": {"colour": "red"}}, "does not fit this version"),
        ({"recipe": {"agent": {"num_envs": "many"}}}, "does not fit this version"),
        ({"recipe": {"agent": 3}}, "does not fit this version"),
        ({"recipe": {"generations": 0}}, "generations must be at least 1"),
    ],
)
def test_a_record_without_one_is_refused(record, sentence):
    with pytest.raises(ValueError, match=sentence):
        recipe_of(record)
