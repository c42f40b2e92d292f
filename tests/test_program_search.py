"""The search for programs: what it proposes, refuses, records, and continues."""

import json
import re
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import discover
import learned_objectives as lo
from discover.agents.config import AgentConfig
from discover.agents.setups import LossConfig
from discover.searches import proposers
from discover.searches.inner_constants import varied
from discover.searches.outer_loop import OuterLoop
from discover.searches.problem import Problem
from discover.searches.program_archive import Archive, Entry, decode, encode, entries_of, lines
from discover.searches.program_checks import BATCH, Checked, Checks
from discover.searches.program_family import PPO, ProgramConfig
from discover.searches.program_search import ProgramSearch
from discover.searches.programs import ProgramsConfig
from discover.searches.recipe import Recipe
from learned_objectives.parsing import parse
from tests.test_programs import DPO

SMALL = Recipe(
    name="program_test",
    objective=ProgramConfig(),
    total_steps=1024,
    generations=4,
    evaluate_every=2,
    evaluation_seeds=2,
    checkpoint_every=2,
    agent=AgentConfig(num_envs=4, num_steps=32, hidden=(8,)),
    search=ProgramsConfig(children=5, population=4),
)
CHECKS = Checks(lo.InterpretedProgram.of(PPO, timed=True))


def archive_of(*texts, seed=0, size=8, asked=0):
    entries = tuple(Entry(i, 0, "test", text, (1.0,), float(i)) for i, text in enumerate(texts))
    return Archive(entries, 0, asked, size, 2, ("log_r", "r1", "A"), np.random.default_rng(seed))


def is_drift(drift):
    try:
        lo.verify_drift(drift)
    except lo.DriftLawError:
        return False
    return True


def test_laws_are_judged_at_points_as_verify_drift_does():
    texts = [PPO, DPO, "0", "r1", "square(A)", "abs(r1)", "square(r1) - 0.1", "t * square(r1)"]
    found = CHECKS.quick(texts)
    assert [each.refused is None for each in found] == [is_drift(lo.Program.parse(text)) for text in texts]
    assert "be non-negative" in found[3].refused
    assert "be zero at ratio 1" in found[4].refused
    assert "expected a variable" in CHECKS.quick(["nonsense"])[0].refused


def test_the_laws_of_many_programs_are_those_of_verify_drift():
    for text in (PPO, DPO, "square(r1 * tanh(A)) * 1.3"):
        assert CHECKS.broken_law(lo.InterpretedProgram.of(text, timed=True)) is None
        lo.verify_drift(lo.Program.parse(text))
    # Negative in a small region alone, between the probe points.
    hidden = "square(r1) - relu(0.01 - abs(r1 - 0.5)) * 100"
    assert CHECKS.quick([hidden])[0].refused is None
    assert "be non-negative" in CHECKS.broken_law(lo.InterpretedProgram.of(hidden, timed=True))
    with pytest.raises(lo.DriftLawError, match="be non-negative"):
        lo.verify_drift(lo.Program.parse(hidden))


def test_equal_functions_have_one_digest():
    equal = [
        (PPO, "relu((r1 - min(max(-0.2, r1), 0.2)) * A)"),
        ("square(r1) * 2", "r1 * (r1 + r1)"),
        ("square(r1)", "square(r1) + 0 * A"),
    ]
    for one, other in equal:
        first, second = CHECKS.quick([one, other])
        assert first.function == second.function
    functions = [each.function for each in CHECKS.quick([PPO, PPO.replace("0.2", "0.21"), DPO, "square(r1)", "0"])]
    assert len({*functions}) == 5


def test_any_number_of_texts_is_checked():
    assert CHECKS.quick([]) == []
    found = CHECKS.quick([PPO] * (BATCH + 1))
    assert len(found) == BATCH + 1
    assert len({each.function for each in found}) == 1


def test_a_program_that_does_not_fit_is_refused():
    checks = Checks(lo.InterpretedProgram.of("A", length=4, constants=1))
    assert "at most 4 different operations" in checks.quick(["tanh(tanh(tanh(tanh(tanh(A)))))"])[0].refused
    assert "at most 1 constants" in checks.quick([PPO])[0].refused
    assert "must read neither t nor log_N" in checks.quick(["t * square(r1)"])[0].refused


def test_mutation_gives_programs_of_the_right_types():
    archive = archive_of(PPO, DPO, "where(A < 0, square(r1), 2 * square(log_r))", "A")
    texts = proposers.mutated_texts(archive, 500)
    programs = [CHECKS.read(text) for text in texts]
    unread = [each.refused for each in programs if each.program is None]
    assert all("at most" in why for why in unread)
    assert len({*texts}) > 250
    assert not any(re.search(r"\bt\b|log_N", text) for text in texts)


def test_random_texts_are_programs_and_many_are_drifts():
    texts = proposers.random_texts(archive_of(seed=1), 300)
    found = CHECKS.quick(texts)
    assert not any("expected" in (each.refused or "") for each in found)
    assert len({each.function for each in found if each.program is not None}) > 60


def test_the_same_key_gives_the_same_proposals():
    for propose in (proposers.mutated_texts, proposers.random_texts):
        first, same, other = (propose(archive_of(PPO, DPO, seed=seed), 20) for seed in (0, 0, 1))
        assert first == same != other


def test_parts_of_postfix_are_found():
    nodes = proposers.nodes_of("where(A < 0, r1 * 2, tanh(A - -3))")
    assert nodes == ["A", 0.0, "<", "r1", 2.0, "*", "A", -3.0, "-", "tanh", "where"]
    assert [proposers.start_of(nodes, end) for end in range(11)] == [0, 1, 0, 3, 4, 3, 6, 7, 6, 6, 0]
    assert proposers.text_of(nodes) == "where(A < 0, r1 * 2, tanh(A - -3))"


def test_the_oldest_leaves_the_population():
    archive = archive_of("A", "r1", "log_r", size=2)
    refused = archive.entries[0]._replace(number=3, score=None, refused="no")
    archive = replace(archive, entries=(*archive.entries, refused))
    assert [e.program for e in archive.population] == ["r1", "log_r"]
    assert archive.best.program == "log_r"


def test_an_archive_as_bytes_and_as_lines():
    entries = (
        Entry(0, 0, "reference", PPO, (9.5, None), 0.0, None, "ab"),
        Entry(1, 0, "mine", "\ud800\0 é", refused="No."),
        Entry(2, 1, "mutation", DPO, (0.1 + 0.2,), 1 / 3, None, "cd"),
    )
    assert decode(*encode(entries, 2**14, 4)) == entries
    assert entries_of(lines(entries)) == entries
    assert [json.loads(line)["program"] for line in lines(entries).splitlines()] == [PPO, "\ud800\0 é", DPO]


def test_a_full_archive_drops_what_is_of_least_use():
    entries = [Entry(i, i, "m", "A" * 100, refused="no") for i in range(100)]
    entries += [Entry(100 + i, i, "m", "r1" * 50, (1.0,), -float(i)) for i in range(10)]
    data, used = encode(entries, 8192, size=3)
    kept = decode(data, used)
    numbers = [e.number for e in kept]
    assert used <= 8192
    assert {100, 107, 108, 109} <= {*numbers}  # the best and the population
    assert numbers == sorted(numbers)
    refused = [n for n in numbers if n < 100]
    assert {*range(100, 110)} <= {*numbers}  # scored ones before refused ones
    assert refused == [*range(100 - len(refused), 100)]  # and of those the newest


def outcome(recipe, out):
    """The lines of the archive, and the exported objective, of a run."""
    result = discover.meta_train(recipe, out, quiet=True)
    return (out / "archive.jsonl").read_text(), result


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return outcome(with_archive(SMALL, out / "run"), out / "run")


def with_archive(recipe, out):
    return replace(recipe, search=replace(recipe.search, archive=str(out / "archive.jsonl")))


def test_a_run_finds_programs_and_exports_one(whole):
    text, result = whole
    entries = entries_of(text)
    assert entries[0].by == "reference"
    assert entries[0].score == 0.0
    scored = [e for e in entries if e.is_scored]
    assert len(scored) >= 4 * 5 - 2
    assert len({e.function for e in scored}) == len(scored)
    assert all((e.score is None) == (e.refused is not None) for e in entries)
    for e in scored[:6]:
        lo.verify_drift(lo.Program.parse(e.program))
    drift = lo.load(result.out / "objective.safetensors").drift
    assert str(drift) in {e.program for e in scored}
    best = max(scored, key=lambda e: e.score)
    assert result.rows[-1]["program"] == best.program
    assert result.rows[-1]["program_score"] == best.score


@pytest.mark.slow
def test_a_run_that_stopped_continues_as_the_whole_one(whole, tmp_path):
    recipe = with_archive(SMALL, tmp_path / "run")
    outcome(replace(recipe, generations=2), tmp_path / "run")
    text, result = outcome(recipe, tmp_path / "run")
    assert text == whole[0]
    for one, other in zip(jax.tree.leaves(result.objective), jax.tree.leaves(whole[1].objective), strict=True):
        np.testing.assert_array_equal(one, other)
    same = ("fitness", "reference", "program", "proposed", "refused", "evaluation")
    assert [[row.get(name) for name in same] for row in result.rows] == [
        [row.get(name) for name in same] for row in whole[1].rows
    ]


def test_a_score_is_the_gain_over_ppo_in_the_same_tasks(whole):
    rows = whole[1].rows
    for e in entries_of(whole[0]):
        if e.is_scored:
            ppo = rows[e.generation + 1]["reference"]["CartPole-v1"]
            assert e.score == pytest.approx((e.fitness[0] - ppo) / max(abs(ppo), 1.0))


def searching(**changes):
    recipe = replace(SMALL, search=replace(SMALL.search, **changes))
    search = ProgramSearch(recipe.search, Problem(recipe))
    search._fitness = lambda programs, generation: np.arange(10.0, 11.0 + len(programs))[:, None]  # without lives
    return search


def stepped(search, steps=1):
    state = search.init()
    for generation in range(steps):
        state, row = search.step(state, generation)
    return decode(np.asarray(state.archive), int(state.used)), row, state


def fixed(archive, n):
    texts = ["square(r1)", "r1", "2 +", 7, PPO, "square(r1) + 0", "square(r1) * 2"]
    return [] if archive.asked else texts[:n]


def test_what_a_proposer_gives_is_trained_or_recorded_with_the_reason():
    proposers.PROPOSERS["fixed"] = fixed
    try:
        entries, row, _ = stepped(searching(proposer="fixed", children=7))
    finally:
        del proposers.PROPOSERS["fixed"]
    by_fixed = [e for e in entries if e.by == "fixed"]
    assert [e.refused for e in by_fixed[:1]] == [None]
    assert [e.is_scored for e in by_fixed] == [True, False, False, False, False, False, True]
    assert by_fixed[1].refused.startswith("A drift must be non-negative, and here it gives -")
    assert by_fixed[2].refused == "expected a number, a variable or a function, and found the end of the text."
    assert by_fixed[3].refused == "a program must be a text, and is of type int."
    assert by_fixed[4].refused == "This program equals program 0 at the probe points."
    assert by_fixed[5].refused == "This program equals program 1 at the probe points."
    assert row["trained"] == 7  # mutation gave the others
    assert {e.by for e in entries} == {"reference", "fixed", "mutation"}


def raises(archive, n):
    raise RuntimeError("no\nconnection")


def exits(archive, n):
    raise SystemExit(3)


def returns_none(archive, n):
    return None


def returns_one_text(archive, n):
    return "A"


def hangs(archive, n):
    time.sleep(30)


def changes_the_archive(archive, n):
    archive.entries[0].program = "A"


@pytest.mark.parametrize(
    ("proposer", "sentence"),
    [
        (raises, "The proposer failed: RuntimeError: no connection ("),
        (exits, "The proposer failed: SystemExit: 3 ("),
        (returns_none, "The proposer must return a list of texts, and returned None ("),
        (returns_one_text, "The proposer must return a list of texts, and returned a str ("),
        (hangs, "The proposer returned nothing within 0.2 s ("),
        (changes_the_archive, "The proposer failed: AttributeError: "),
    ],
)
def test_a_proposer_that_fails_costs_one_sentence_and_no_generation(proposer, sentence):
    search = searching(proposer=f"tests.test_program_search:{proposer.__name__}", patience=0.2, children=2)
    with pytest.warns(UserWarning, match=re.escape(sentence)) as seen:
        entries, row, _ = stepped(search)
    assert len(seen) == 1
    failed = [e for e in entries if e.refused is not None and e.refused.startswith(sentence)]
    assert len(failed) == 1
    assert row["proposer_failures"] == 1
    assert row["trained"] == 2


@pytest.mark.filterwarnings("error")
def test_a_generation_without_a_new_program_goes_on(monkeypatch):
    search = searching(asks=2)
    monkeypatch.setattr(search.checks, "quick", lambda texts: [Checked(None, refused="No.")] * len(texts))
    entries, row, state = stepped(search, steps=2)
    assert [e.by for e in entries if e.is_scored] == ["reference"]
    assert (row["trained"], row["refused"]) == (0, 10)
    assert str(search.mean(state).drift) == PPO


def test_proposals_are_replayed_from_a_file_in_order(tmp_path):
    path = tmp_path / "proposals.jsonl"
    path.write_text(
        '"square(r1)"\n{"program": "2 * square(r1)", "score": 1}\n\nsquare(log_r)\n{"other": 1}\n3 * square(r1)\n'
    )
    search = searching(proposer=f"replay:{path}", children=2)
    entries, _, state = stepped(search, steps=2)
    replayed = [(e.generation, e.program) for e in entries if e.by.startswith("replay")]
    assert replayed == [
        *((0, "square(r1)"), (0, "2 * square(r1)")),
        *((1, "square(log_r)"), (1, '{"other": 1}'), (1, "3 * square(r1)")),
    ]
    assert int(state.asked) == 5
    _, row = search.step(state, 2)
    assert row["trained"] == 2  # by mutation, since the file has no more


def test_a_file_of_proposals_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"none\.jsonl cannot be read as a file of proposals: No such file or directory\."
    ):
        searching(proposer=f"replay:{tmp_path / 'none.jsonl'}")


def test_a_program_that_misses_the_hurdle_is_not_trained_elsewhere():
    recipe = replace(SMALL, envs=("CartPole-v1", "Acrobot-v1"), search=replace(SMALL.search, children=3))
    search = ProgramSearch(recipe.search, Problem(recipe))
    asked = []

    def fitness(candidates, key, *, lives, environments):
        count = candidates.drift.opcodes.shape[0]
        asked.append((count, environments))
        values = [100.0, 49.0, 50.0, jnp.nan] if environments == [0] else [-80.0, -70.0, 0.0, 0.0]
        return jnp.array(values)[:count, None, None]

    search.problem.fitness = fitness
    entries, row, _ = stepped(search)
    tried = [e for e in entries if e.function is not None]
    assert asked == [(4, [0]), (2, [1])]
    assert [e.fitness for e in tried] == [(100.0, -80.0), (49.0, None), (50.0, -70.0), (None, None)]
    assert tried[2].score == pytest.approx((-0.5 + 10 / 80) / 2)
    assert tried[1].refused == "Its agents reached 49 in the first environment, and PPO's 100."
    assert tried[3].refused == "Its agents diverged."
    assert row["diverged"] == 0.25
    assert row["reference"] == {"CartPole-v1": 100.0, "Acrobot-v1": -80.0}


def test_environments_of_a_problem_can_be_chosen():
    recipe = replace(SMALL, envs=("CartPole-v1", "Acrobot-v1"))
    problem = Problem(recipe)
    candidates = jax.tree.map(lambda x: jnp.asarray(x)[None, None], problem.template)
    both = problem.fitness(candidates, problem.key("life", 0))
    for e in (0, 1):
        one = problem.fitness(candidates, problem.key("life", 0), environments=[e])
        np.testing.assert_array_equal(one[..., 0], both[..., e])


def test_variants_have_other_constants_and_the_same_structure():
    texts = varied("where(A < 0, 2 * square(r1), -0.5 * square(log_r))", np.random.default_rng(0), 200, 0.3)
    code, _ = parse(texts[0])
    constants = np.array([parse(text)[1] for text in texts])
    assert {parse(text)[0] for text in texts} == {code}
    assert (constants[:, 0] == 0).all()
    moved = np.log(constants[:, 1:] / [2.0, -0.5])
    assert abs(moved.mean()) < 0.05
    assert moved.std() == pytest.approx(0.3, abs=0.03)


def varying(**changes):
    """A search in which a program c (r - 1)^2 returns 100 - |c - 3| in every life, and PPO 50."""
    recipe = replace(SMALL, envs=("CartPole-v1", "Acrobot-v1"), search=replace(SMALL.search, children=3, **changes))
    search = ProgramSearch(recipe.search, Problem(recipe))
    asked = []

    def fitness(candidates, key, *, lives, environments):
        drifts = [jax.tree.map(lambda x, i=i: x[i, 0], candidates.drift) for i in range(len(candidates.drift.opcodes))]
        asked.append((jax.random.key_data(key).tolist(), environments))
        values = [50.0 if str(d) == PPO else 100.0 - abs(float(d.constants[0]) - 3.0) for d in drifts]
        search.problem.updates += len(drifts)
        return jnp.array(values)[:, None, None] * jnp.ones(len(environments))

    search.problem.fitness = fitness
    return search, asked


def squares(archive, n):
    return [] if archive.asked else ["2 * square(r1)", "square(r1)", "90 * square(r1)"]


def test_other_constants_are_chosen_in_tasks_of_their_own_and_scored_in_those_of_the_generation(monkeypatch):
    monkeypatch.setitem(proposers.PROPOSERS, "squares", squares)
    search, asked = varying(proposer="squares", variants=8, varied=2)
    entries, row, state = stepped(search)
    new = [e for e in entries if e.by == "constants"]
    assert len(new) == row["improved"] == 1  # square(r1) has no constant, and 90 misses the hurdle
    assert row["varied"] == 1
    (constant,) = parse(new[0].program)[1]
    assert abs(constant - 3.0) < 1.0  # 2 was the start
    assert new[0].score == pytest.approx((50.0 - abs(constant - 3.0)) / 50.0, rel=1e-5)
    assert str(state.best) == new[0].program
    keys = [key for key, _ in asked]
    assert [environments for _, environments in asked] == [[0], [1], [0], [0], [0], [0], [1]]
    assert keys[0] == keys[1] == keys[5] == keys[6] != keys[2] == keys[3] == keys[4]
    assert row["inner_env_steps"] % SMALL.agent.steps_per_update == 0


def test_a_program_that_no_variant_beats_stays_alone(monkeypatch):
    monkeypatch.setitem(
        proposers.PROPOSERS, "best", lambda archive, n: ["3 * square(r1)"][:n] if not archive.asked else []
    )
    search, _ = varying(proposer="best", variants=3, varied=1)
    entries, row, _ = stepped(search)
    assert (row["varied"], row["improved"]) == (1, 0)
    assert not [e for e in entries if e.by == "constants"]


@pytest.mark.slow
def test_a_run_that_varies_constants_continues_as_the_whole_one(tmp_path):
    recipe = replace(SMALL, total_steps=4096, search=replace(SMALL.search, variants=3, varied=3))
    whole, result = outcome(with_archive(recipe, tmp_path / "whole"), tmp_path / "whole")
    parts = with_archive(recipe, tmp_path / "parts")
    outcome(replace(parts, generations=2), tmp_path / "parts")
    text, again = outcome(parts, tmp_path / "parts")
    assert text == whole
    assert any('"by": "constants"' in line for line in text.splitlines())
    same = ("fitness", "program", "varied", "improved", "inner_env_steps", "env_steps")
    assert [[row.get(name) for name in same] for row in again.rows] == [
        [row.get(name) for name in same] for row in result.rows
    ]


@pytest.mark.slow
def test_an_interpreted_program_trains_as_the_program_does():
    """The same life under PPO's clip, as a drift, as a program, and as arrays."""
    returns = []
    for drift in (lo.Clip(0.2), lo.Program.parse(PPO), lo.InterpretedProgram.of(PPO)):
        objective = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), LossConfig().on(lo.Mirror(drift=drift)))
        problem = Problem(replace(SMALL, objective="ppo", search="evolution"), objective)
        candidates = jax.tree.map(lambda x: x[None, None], objective)
        returns.append(float(problem.fitness(candidates, problem.key("life", 0)).squeeze()))
    np.testing.assert_allclose(returns, returns[0], rtol=0.05)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"children": 0}, "children must be at least 1, and is 0"),
        ({"hurdle": 1.5}, r"hurdle must be in \[0, 1\], and is 1.5"),
        ({"variants": -1}, "variants must be at least 0, and is -1"),
        ({"varied": 0}, "varied must be at least 1, and is 0"),
        ({"spread": 0.0}, "spread must be positive and finite, and is 0"),
        ({"patience": 0.0}, "patience must be positive and finite, in seconds, and is 0"),
        ({"archive_bytes": 100}, "archive_bytes must be at least 40960 for a population of 4, and is 100"),
        ({"proposer": "mutatoin"}, "Unknown proposer 'mutatoin'; did you mean 'mutation'"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(SMALL.search, **changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"start": "r1 * A"}, r"objective.start is a program, r1 \* A, and no drift: A drift must be non-negative"),
        (
            {"start": "dpoo"},
            r"objective.start is neither 'ppo' nor a program \(expected a variable .*\) nor found before",
        ),
        ({"start": "ppo", "operations": 0}, "objective.operations must be from 1 to 200, and is 0"),
        ({"start": ""}, "objective.start must be 'ppo', a text, or a program found before"),
        ({"start": "dpo"}, "and dpo holds something else"),
        ({"start": "t * square(r1)"}, "a program must read neither t nor log_N here"),
    ],
)
def test_an_objective_that_cannot_be_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(SMALL, objective=ProgramConfig(**changes)).template()


def test_a_search_starts_from_a_text_or_a_file(tmp_path):
    assert str(replace(SMALL, objective=ProgramConfig(start=DPO)).template().drift) == DPO
    for number, drift in enumerate((lo.Program.parse(DPO), lo.InterpretedProgram.of(DPO))):
        path = tmp_path / f"{number}.safetensors"
        lo.save(lo.Mirror(drift=drift), path)
        family = ProgramConfig(start=str(path))
        assert family.keeps_copy
        assert str(replace(SMALL, objective=family).template().drift) == DPO


def test_a_start_that_is_not_ppo_is_trained_first():
    recipe = replace(SMALL, objective=ProgramConfig(start="square(r1)"))
    search = ProgramSearch(recipe.search, Problem(recipe))
    search._fitness = lambda programs, generation: np.zeros((1 + len(programs), 1))
    entries, _, _ = stepped(search)
    assert [(e.by, e.program) for e in entries[:2]] == [("reference", PPO), ("start", "square(r1)")]


def test_searches_and_objectives_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"set objective to 'program' \(--objective program\), and not 'formula'"):
        OuterLoop(Problem(replace(SMALL, objective="ppo")))
    with pytest.raises(
        ValueError, match=r"the objective 'program' is searched by 'programs' .*, and not by 'evolution'"
    ):
        OuterLoop(Problem(replace(SMALL, search="evolution")))


@pytest.mark.slow
def test_the_constants_of_a_program_are_searched_by_evolution(tmp_path):
    search = discover.EvolutionConfig(population=4, sigma=0.05)
    recipe = replace(SMALL, objective=lo.Program.parse(PPO), search=search, generations=2)
    result = discover.meta_train(recipe, tmp_path / "run", quiet=True)
    assert result.objective.drift.structure == lo.Program.parse(PPO).structure
