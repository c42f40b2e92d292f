"""What a run would take is known before it runs."""

from functools import cache

import crash
import pytest

from discover import cli, fit
from discover.dry_run import dry_run


@pytest.fixture(scope="module")
def recipe():
    """Of eight pairs, two of them on each of four devices."""
    return crash.recipe(**{"evolution.population": 16})


@pytest.fixture(scope="module")
def needed(recipe):
    """Bytes by chunk; nobody asks the compiler twice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "needed", cache(fit.needed))
        yield {chunk: fit.needed(fit.with_chunk(recipe, chunk)) for chunk in (1, 2)}


def test_lives_side_by_side_need_memory_side_by_side(needed):
    assert needed[1] < needed[2]


@pytest.mark.parametrize("chunk", [1, 2])
def test_the_largest_chunk_that_fits_is_taken(recipe, needed, chunk):
    assert fit.fit(recipe, needed[chunk]) == fit.with_chunk(recipe, chunk)  # and nothing else is changed


def test_nothing_fits_into_nothing(recipe, needed):
    with pytest.raises(ValueError, match=r"smallest chunk, 1, a step needs .* take fewer environments"):
        fit.fit(recipe, needed[1] - 1)


def test_chunks_worth_a_try(recipe):
    assert fit.sizes(recipe, devices=4) == [1, 2]
    assert fit.sizes(recipe, devices=1) == [1, 2, 4, 8]
    assert fit.sizes(recipe, devices=3) == [1, 2, 3]
    assert fit.sizes(crash.recipe(of="groove"), devices=1) == [1, 2, 4, 8]  # members, in divisors
    assert fit.sizes(crash.recipe(of="groove"), devices=2) == [1, 2, 4]  # so that every device has as many
    assert fit.sizes(crash.recipe(of="groove"), devices=3) == [1]


def test_a_dry_run_counts_what_there_will_be():
    lines = dict(line.split(maxsplit=1) for line in dry_run(crash.recipe()) if not line.startswith(" "))
    # An LPO of eight features and four hidden units; 16 generations of 4 lives and 5 evaluations of 4, of 2048 steps each.
    assert lines["objective"] == "Mirror, 36 parameters"
    assert "16 updates of 128 environment steps" in lines["lives"]
    assert lines["steps"] == "16 of 8,192 environment steps, 5 evaluations of 8,192: 172,032 in all"
    assert lines["devices"] == "4 of kind cpu"
    assert "s a generation" in lines["time"]


def test_a_dry_run_touches_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = {"agent.num_steps": 4, "lpg.hidden": 4, "metagrad.members": 2, "metagrad.chunk": 1, "curriculum.size": 2}
    assert cli.main([*crash.arguments("out", of="lpg_small", **small), "--dry-run"]) == 0
    assert "meta-gradient" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_run_keeps_the_chunk_it_began_with(tmp_path):
    out = tmp_path / "run"
    assert cli.main([*crash.arguments(out, generations=1), "--fit"]) == 0
    assert cli._fitted(crash.recipe(), out).evolution.chunk == 1  # two pairs on four devices
    (out / "recipe.json").write_text((out / "recipe.json").read_text().replace('"chunk": 1', '"chunk": 2'))
    assert cli._fitted(crash.recipe(), out).evolution.chunk == 2
