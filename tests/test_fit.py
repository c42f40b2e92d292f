"""What a run would take is known before it runs."""

import dataclasses
from functools import cache

import crash
import jax
import numpy as np
import pytest

from discover import cli, recipes
from discover.devices.plan import CPU
from discover.runs import fit
from discover.runs import loop as run
from discover.runs.dry_run import dry_run
from discover.runs.store import RunError
from discover.searches.metagrad import MetaGradConfig
from discover.searches.outer_loop import OuterLoop
from discover.searches.recipe import recipe_in
from discover.searches.registry import search_for


@pytest.fixture(scope="module")
def recipe():
    """Of eight pairs, two of them on each of four devices."""
    return crash.recipe(**{"search.population": 16})


@pytest.fixture(scope="module")
def needed(recipe):
    """Bytes by chunk; the compiler is asked once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "needed", cache(fit.needed))
        yield {chunk: fit.needed(fit.with_chunk(recipe, chunk)) for chunk in (1, 2)}


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_dry_run_counts_what_there_will_be():
    lines = dict(line.split(maxsplit=1) for line in dry_run(crash.recipe()) if not line.startswith(" "))
    # An LPO of eight features and four hidden units; 16 generations of 4 lives and 5 evaluations of 4, of 2048 steps each.
    assert lines["objective"] == "Mirror, 36 parameters"
    assert "16 updates of 128 environment steps" in lines["lives"]
    assert lines["steps"] == "16 of 8,192 environment steps, 5 evaluations of 8,192: 172,032 in all"
    assert lines["devices"] == "4 of kind cpu"
    assert "s a generation" in lines["time"]
    assert lines["chunk"] == "1 pair at a time on each device"
    assert " temporary " in lines["memory"]
    assert lines["compilation"].endswith(" s (less if cached)")
    assert lines["loop"].endswith(" ms overhead a step")


@pytest.mark.slow
def test_a_dry_run_touches_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = {"agent.num_steps": 4, "objective.hidden": 4, "search.members": 2, "search.chunk": 1, "curriculum.size": 2}
    assert cli.main([*crash.arguments("out", of="lpg_small", **small), "--dry-run"]) == 0
    assert "meta-gradient" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_keeps_the_chunk_it_began_with(tmp_path):
    out = tmp_path / "run"
    assert cli.main([*crash.arguments(out, generations=1), "--fit"]) == 0
    assert fit.fitted(crash.recipe(), out).search.chunk == 1  # two pairs on four devices
    (out / "recipe.json").write_text((out / "recipe.json").read_text().replace('"chunk": 1', '"chunk": 2'))
    assert fit.fitted(crash.recipe(), out).search.chunk == 2


@pytest.mark.parametrize(
    ("name", "chunk"),
    [
        ("quickstart", 4),
        ("lpo_small", 1),
        ("ta_lpg_small", 4),
        ("lpg_small", 8),
        ("groove_small", 8),
        ("lpg", 8),
        ("ta_lpg", 4),
    ],
)
def test_the_usual_chunks_of_cpus_are_those_that_were_measured(name, chunk):
    recipe = recipes.get(name)
    fills_cache = recipe.agent.hidden == (64, 64) and "MinAtar" in recipe.envs[0]
    assert recipe.search.usual_chunk(CPU, fills_cache=fills_cache) == chunk


@pytest.mark.parametrize(("members", "chunk"), [(32, 8), (12, 6), (7, 7), (22, 2)])
def test_a_usual_chunk_of_members_divides_them(members, chunk):
    assert MetaGradConfig(members=members).usual_chunk(CPU, fills_cache=False) == chunk


@pytest.mark.slow
def test_a_run_records_the_number_that_auto_became_and_keeps_it(tmp_path):
    """Eight pairs: four side by side. Then three, when it is asked for; a chunk that is not named stays."""
    out, few = tmp_path / "run", {"search.population": 16, "total_steps": 256, "evaluation_seeds": 2}
    kept = []
    for generations, changes in ((1, {}), (2, {"search.chunk": 3}), (3, {})):
        recipe = crash.recipe(**few, **({"search.chunk": "auto"} | changes), generations=generations)
        rows = run.meta_train(recipe, out, quiet=True).rows
        kept.append((recipe_in(out).search.chunk, [row["depends_on"]["chunk"] for row in rows if "depends_on" in row]))
    assert kept == [(4, [4]), (3, [4, 3]), (3, [4, 3])]


@pytest.mark.slow
def test_members_go_on_in_groups_of_another_size(tmp_path):
    """What a member is does not depend on its group: two steps in groups of two, or one and then one in groups of four."""
    few = {"evaluate_every": 9, "curriculum.kind": "uniform"}
    alone = run.meta_train(crash.recipe(of="groove", generations=2, **few), tmp_path / "alone", quiet=True)
    run.meta_train(crash.recipe(of="groove", generations=1, **few), tmp_path / "run", quiet=True)
    changed = crash.recipe(of="groove", generations=2, **few, **{"search.chunk": 4})
    found = run.meta_train(changed, tmp_path / "run", quiet=True)
    for a, b in zip(jax.tree.leaves(found.objective), jax.tree.leaves(alone.objective), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert recipe_in(tmp_path / "run").search.chunk == 4


@pytest.mark.slow
def test_a_checkpoint_does_not_depend_on_the_chunk(tmp_path):
    """A process is killed after it wrote the recipe with another chunk, and before its first checkpoint."""
    few, out = {"evaluate_every": 9, "curriculum.kind": "uniform"}, tmp_path / "run"
    run.meta_train(crash.recipe(of="groove", generations=1, **few), out, quiet=True)
    text = (out / "recipe.json").read_text()
    assert '"chunk": 2' in text
    (out / "recipe.json").write_text(text.replace('"chunk": 2', '"chunk": 4'))
    assert int(run.last_state(out)[1].generation) == 1
    rows = run.meta_train(dataclasses.replace(recipe_in(out), generations=2), out, quiet=True).rows
    assert [row["generation"] for row in rows] == [0, 1, 2]


@pytest.mark.slow
def test_of_two_devices_the_named_one_is_used(tmp_path):
    search = search_for(crash.recipe(), devices=jax.devices()[1:2])
    ((program, arguments),) = search.programs(search.init()).values()
    assert {d.id for d in program(*arguments).devices()} == {jax.devices()[1].id}


@pytest.mark.slow
def test_a_run_that_runs_out_of_memory_is_saved_and_says_which_chunk_fits(tmp_path, monkeypatch):
    """The third generation does not fit with a chunk of 2; with 1 the run goes on where it was."""
    few = {
        "search.population": 8,
        "total_steps": 256,
        "evaluation_seeds": 2,
        "checkpoint_every": 9,
        "evaluate_every": 9,
    }
    generation = OuterLoop.generation

    def limited(self, state):
        if int(state.generation) >= 2 and self.recipe.search.chunk > 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")
        return generation(self, state)

    monkeypatch.setattr(OuterLoop, "generation", limited)
    recipe = crash.recipe(**few, **{"search.chunk": 2}, generations=3)
    with pytest.raises(
        RunError, match=r"in generation 3; generation 2 is saved. --search.chunk 1 needs .* GB and should fit"
    ):
        run.meta_train(recipe, tmp_path / "run", devices=jax.devices()[:1], quiet=True)
    recipe = crash.recipe(**few, **{"search.chunk": 1}, generations=3)
    rows = run.meta_train(recipe, tmp_path / "run", devices=jax.devices()[:1], quiet=True).rows
    assert [row["generation"] for row in rows] == [0, 1, 2, 3]


@pytest.mark.slow
def test_gradients_may_meet_on_the_devices(tmp_path):
    """Two steps on four devices: but for rounding what they are by way of the host."""
    found = []
    for on_device in (False, True):
        search = search_for(crash.recipe(of="groove", **{"search.chunk": 2, "curriculum.kind": "uniform"}))
        search.problem.plan = dataclasses.replace(search.problem.plan, gathers_on_device=on_device)
        state = search.init()
        for _ in range(2):
            state, _ = search.generation(state)
        found.append(jax.device_get((state.search.objective, state.search.opt_state)))
        assert len(search.search.devices) == 4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *found)


@pytest.mark.slow
def test_a_meta_gradient_compiles_once_where_gradients_meet_on_the_devices():
    """Its shared arrays are on all devices before the first step, as they are after it."""
    search = search_for(crash.recipe(of="groove", **{"search.chunk": 2, "curriculum.kind": "uniform"}))
    search.problem.plan = dataclasses.replace(search.problem.plan, gathers_on_device=True)
    state = search.init()
    for _ in range(2):
        state, _ = search.generation(state)
    assert (search.search._window._cache_size(), search.search._apply._cache_size()) == (1, 1)


@pytest.mark.parametrize(
    ("name", "chunks"), [("ta_lpg", [1, 2, 4, 8, 16, 32, 64, 128]), ("lpo_minatar", [1, 2, 4, 8, 16, 32])]
)
def test_lives_of_different_lengths_are_shared_out_in_several_chunks(name, chunks):
    """512 pairs in four turns at least; 32 pairs of one length in one."""
    assert fit.sizes(recipes.get(name), 1, turns=4) == chunks
