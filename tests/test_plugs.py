"""Plugs of a user's own file: an objective, a search, an estimator, a shaping and a score, from Python and the command line."""

import dataclasses
import functools
import importlib
import json
import subprocess
import sys

import crash
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import discover
import learned_objectives as lo
from discover import cli, config
from discover.agents.objectives import resolve_objective
from discover.commands import meta_train
from discover.plugins import Registry
from discover.runs.dry_run import dry_run
from discover.searches.config import SEARCHES, search_config
from discover.searches.curriculum import SCORES, CurriculumConfig, fields_read
from discover.searches.evolution import SHAPINGS, EvolutionConfig
from discover.searches.family import FAMILIES
from discover.searches.family_of import OwnObjective, objective_config
from discover.searches.metagrad import ESTIMATORS, MetaGradConfig
from discover.searches.programs import ProgramsConfig
from discover.searches.proposers import PROPOSERS
from discover.searches.recipe import recipe_in, recipe_of
from discover.searches.registry import search_for
from envs import plugs

KITES = """
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct

import discover
import learned_objectives as lo


class Quadratic(lo.Drift):
    weight: jax.Array | float = 1.0
    power: int = struct.field(pytree_node=False, default=2)

    def __call__(self, log_ratio, advantage, progress=None):
        return jnp.abs(self.weight * advantage) * jnp.expm1(log_ratio) ** self.power


def half(key):
    return Quadratic(weight=0.5)


@dataclass(frozen=True)
class Weighted(discover.ObjectiveConfig):
    weight: float = 3.0

    def template(self, key, loss):
        return loss.on(lo.Mirror(drift=Quadratic(jnp.float32(self.weight))))


@dataclass(frozen=True)
class Walk(discover.SearchConfig):
    population: int = 2
    sigma: float = 0.1

    @property
    def items(self):
        return self.population

    def build(self, problem):
        return Walker(self, problem)


class Walker(discover.Search):
    def init(self):
        return self.problem.template

    def step(self, state, generation):
        noise, lives = jax.random.split(self.problem.key("step", generation))
        leaves, structure = jax.tree.flatten(state)
        keys = jax.random.split(noise, len(leaves))
        shape = (self.config.population, 1)
        moved = [x + self.config.sigma * jax.random.normal(k, shape + x.shape) for x, k in zip(leaves, keys)]
        candidates = jax.tree.unflatten(structure, moved)
        fitness = self.problem.fitness(candidates, lives).mean((1, 2))
        return jax.tree.map(lambda x: x[jnp.argmax(fitness), 0], candidates), {"top": float(fitness.max())}

    def mean(self, state):
        return state


def flat(fitness):
    return jnp.zeros_like(fitness)


def worth(life):
    return life.max_return


def estimate(search, objective, member, seen):
    return 2.0 * search.policy_loss(seen.after, seen.outer, seen.advantage)


class NoDrift:
    pass


class Bent(lo.Drift):
    weight: jax.Array | float = 1.0

    def __call__(self, log_ratio, advantage, progress=None):
        return self.weight * log_ratio


class Counted(lo.Drift):
    count: jax.Array | int = 3

    def __call__(self, log_ratio, advantage, progress=None):
        return self.count * log_ratio**2


class Blank(lo.Drift):
    weight: jax.Array | float = 1.0


@dataclass(frozen=True)
class Unfinished(discover.SearchConfig):
    population: int = 2


@dataclass(frozen=True)
class Groundless(Walk):
    def build(self, problem):
        return None


@dataclass(frozen=True)
class Meanless(Walk):
    def build(self, problem):
        return NoMean(self, problem)


class NoMean(discover.Search):
    def init(self):
        return 0.0

    def step(self, state, generation):
        return state, {}


@dataclass(frozen=True)
class Stuck(Walk):
    def build(self, problem):
        return discover.Search(self, problem)


class Torn(lo.Drift):
    weight: float = 1.0

    def __call__(self, log_ratio, advantage, progress=None):
        raise RuntimeError("no wind, no kite")


@dataclass(frozen=True)
class Lost(discover.ObjectiveConfig):
    def template(self, key, loss):
        return None


def lost(key):
    return None


number = 3


def broken(key):
    raise RuntimeError("no wind")
"""

RUN = ["--envs", "probe/observation_action", "--total-steps", "512", "--generations", "2", "--evaluate-every", "1"]
RUN += ["--evaluation-seeds", "2", "--checkpoint-every", "1", "--agent.hidden", "8", "--agent.num-minibatches", "1"]


@pytest.fixture
def kites(tmp_path, monkeypatch):
    """A user's file in the working directory."""
    (tmp_path / "kites.py").write_text(KITES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("kites", None)
    yield importlib.import_module("kites")
    sys.modules.pop("kites", None)


def line_of(text):
    return 1 + KITES[: KITES.index(text)].count("\n")


def test_a_drift_of_ones_own_is_a_family(kites):
    recipe = dataclasses.replace(discover.recipes.quickstart(), objective=kites.Quadratic(weight=2.0))
    template = recipe.template()
    assert isinstance(template, lo.Mirror)
    assert float(template.drift.weight) == 2.0
    assert recipe.objective == OwnObjective("kites:Quadratic", {"power": 2}, recipe.objective.leaves)
    assert template.value_clip == recipe.loss.value_clip


@pytest.mark.parametrize("spec", ["kites:Quadratic", "kites:half", "kites:Weighted"])
def test_a_family_is_named_by_its_path(kites, spec):
    recipe = dataclasses.replace(discover.recipes.quickstart(), objective=spec)
    weight = {"kites:Quadratic": 1.0, "kites:half": 0.5, "kites:Weighted": 3.0}[spec]
    assert float(recipe.template().drift.weight) == weight
    again = recipe_of({"recipe": json.loads(json.dumps(recipe.as_dict()))})
    assert again == recipe
    assert float(again.template().drift.weight) == weight


def test_a_file_names_plugs_by_their_paths(kites, more):
    """And a recipe that is written reads back as itself."""
    read = lambda part, name, rest="": config.from_toml(f"[{part}]\nkind = '{name}'\n{rest}", discover.Recipe())
    assert read("objective", "kites:Quadratic").objective == OwnObjective("kites:Quadratic", {"power": 2})
    assert read("objective", "kites:half").objective == OwnObjective("kites:half")
    assert read("objective", "kites:Weighted", "weight = 2.0").objective == kites.Weighted(2.0)
    assert read("search", "kites:Walk", "sigma = 0.5").search == kites.Walk(sigma=0.5)
    for objective in ("kites:Quadratic", "kites:Weighted"):
        recipe = dataclasses.replace(discover.recipes.quickstart(), objective=objective, search="kites:Walk")
        assert config.from_toml(config.to_toml(recipe, discover.Recipe()), discover.Recipe()) == recipe
    with pytest.raises(ValueError, match=r"the key search\.size is missing: kind = 'more:Needy' needs it"):
        read("search", "more:Needy")


def test_what_a_search_finds_is_saved_and_loaded_by_its_path(kites, tmp_path):
    lo.save(lo.Mirror(drift=kites.Quadratic(weight=0.25, power=4)), tmp_path / "found.safetensors")
    found = lo.load(tmp_path / "found.safetensors").drift
    assert (type(found), float(found.weight), found.power) == (kites.Quadratic, 0.25, 4)


def test_a_file_of_a_class_that_is_gone_is_refused(kites, tmp_path, monkeypatch):
    lo.save(kites.Quadratic(), tmp_path / "found.safetensors")
    monkeypatch.undo()
    sys.modules.pop("kites", None)
    with pytest.raises(lo.ObjectiveFileError, match="Quadratic of kites, which cannot be imported here"):
        lo.load(tmp_path / "found.safetensors")


@pytest.mark.parametrize(
    ("spec", "sentence", "definition"),
    [
        ("kites:Bent", "kites:Bent is no drift", "class Bent"),
        ("kites:Counted", "the leaf count of kites:Counted must be floating-point, and is int", "class Counted"),
        ("kites:Blank", "kites:Blank lacks __call__", "class Blank"),
        ("kites:NoDrift", "kites:NoDrift is the class NoDrift .* and must be a drift, an objective, ", "class NoDrift"),
        ("kites:lost", "kites:lost must make a learned_objectives.Drift or Objective, and makes None", "def lost"),
        (
            "kites:Lost",
            "kites:Lost must make a learned_objectives.Drift or Objective, and makes None",
            "@dataclass(frozen=True)\nclass Lost",
        ),
        (
            "kites:Torn",
            r"^__call__ of kites:Torn failed: .*: RuntimeError: no wind",
            'raise RuntimeError("no wind, no kite")',
        ),
        ("kites:broken", "kites:broken cannot be made: RuntimeError: no wind", "def broken"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_its_line(kites, spec, sentence, definition):
    with pytest.raises(ValueError, match=sentence) as refusal:
        dataclasses.replace(discover.recipes.quickstart(), objective=spec).template()
    assert f"kites.py, line {line_of(definition)}" in str(refusal.value)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("kites:Quadratik", "kites.py has no Quadratik. Did you mean Quadratic?"),
        ("kite:Quadratic", "no module named kite is in the working directory or installed"),
        ("lqo", "Unknown objective 'lqo'; did you mean 'lpo'?"),
    ],
)
def test_a_mistyped_family_is_refused(kites, spec, sentence):
    with pytest.raises(ValueError, match=sentence.replace("?", "[?]")):
        objective_config(spec)


def test_a_module_that_fails_is_named_with_its_line(kites, tmp_path):
    (tmp_path / "torn.py").write_text("import math\n\nx = math.sqroot(2)\n")
    with pytest.raises(ValueError, match=r"torn:x cannot be imported: .*torn.py, line 3: AttributeError"):
        plugs.resolve("torn:x")


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("kites:Unfinished", r"Unfinished lacks items and build .*kites.py, line"),
        ("kites:Quadratic", "must be a subclass of discover.SearchConfig"),
        ("evolutoin", "Unknown search 'evolutoin'; did you mean 'evolution'?"),
    ],
)
def test_what_is_no_search_is_refused(kites, spec, sentence):
    with pytest.raises(ValueError, match=sentence.replace("?", "[?]")):
        dataclasses.replace(discover.recipes.quickstart(), search=spec)


def test_a_search_without_a_step_is_refused(kites, tmp_path):
    with pytest.raises(ValueError, match="Search lacks init and step and mean"):
        discover.meta_train(dataclasses.replace(crash.recipe(), search=kites.Stuck()), tmp_path / "run")


def discover_in(folder, *words):
    """The command line in a process of its own, which has nothing but the working directory."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from discover.__main__ import main; sys.exit(main())", *words],
        cwd=folder,
        env=crash.environment(1) | {"PYTHONPATH": str(crash.REPO), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_file_in_the_working_directory_is_enough_for_the_command_line(kites, tmp_path):
    """A drift and an outer loop of one file: searched, resumed, evaluated, exported and drawn."""
    words = [
        "meta-train",
        "quickstart",
        "--objective",
        "kites:Quadratic",
        "--search",
        "kites:Walk",
        *RUN,
        "--out",
        "run",
    ]
    discover_in(tmp_path, *words, "--search.sigma", "0.2", "--generations", "1")
    recipe = recipe_in(tmp_path / "run")
    assert (recipe.search.kind, recipe.search.sigma) == ("kites:Walk", 0.2)
    assert "Resuming run at generation 1 of 2" in discover_in(tmp_path, *words, "--search.sigma", "0.2")
    record = lo.record(tmp_path / "run" / "objective.safetensors")
    assert record["recipe"]["objective"] == {
        "kind": "own",
        "path": "kites:Quadratic",
        "static": {"power": 2},
        "leaves": "",
    }
    cli_in = lambda *words: cli.main([*words])
    small = ["--envs", "probe/observation_action", "--total-steps", "512", "--num-seeds", "2"]
    assert cli_in("evaluate", "run", "ppo", *small) == 0
    assert cli_in("export", "run", "found.safetensors") == 0
    assert cli_in("plot", "run") == 0
    assert isinstance(lo.load("found.safetensors").drift, kites.Quadratic)
    assert (tmp_path / "run" / "drift.png").exists()


@pytest.mark.slow
def test_agents_are_trained_with_an_objective_named_by_its_path(kites):
    kwargs = {"total_steps": 512, "num_seeds": 2, "num_evals": 1}
    named = discover.train("kites:Quadratic", "probe/action", **kwargs)
    given = discover.train(lo.Mirror(drift=kites.Quadratic()), "probe/action", **kwargs)
    np.testing.assert_array_equal(named.returns, given.returns)
    assert cli.main(["train", "--objective", "kites:half", "--env", "probe/action", "--total-steps", "512"]) == 0


@pytest.mark.slow
def test_a_search_of_ones_own_resumes_exactly(kites, tmp_path):
    recipe = dataclasses.replace(crash.recipe(), search=kites.Walk(chunk=1), generations=3, evaluate_every=1)
    whole = discover.meta_train(recipe, tmp_path / "whole", quiet=True)
    discover.meta_train(dataclasses.replace(recipe, generations=1), tmp_path / "run", quiet=True)
    again = discover.meta_train(recipe, tmp_path / "run", quiet=True)
    jax.tree.map(np.testing.assert_array_equal, again.objective, whole.objective)
    # Two candidates a step, and evaluations of 4 lives at 0, 1, 2 and 3; 2048 environment steps in each life.
    assert whole.rows[-1]["env_steps"] == (3 * 2 + 4 * 4) * 2048
    assert [row["top"] for row in again.rows[1:]] == [row["top"] for row in whole.rows[1:]]


def test_a_run_without_its_plug_is_refused(kites, tmp_path, monkeypatch):
    recipe = dataclasses.replace(crash.recipe(), search=kites.Walk(), objective="kites:Quadratic")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(recipe.as_dict()))
    monkeypatch.undo()
    sys.modules.pop("kites", None)
    with pytest.raises(
        ValueError, match=r"recipe\.json cannot be used: kites:Walk cannot be imported: no module named kites"
    ):
        recipe_in(tmp_path / "run")


def test_functions_take_the_place_of_parts(kites):
    assert SHAPINGS[discover.EvolutionConfig(shaping="kites:flat").shaping] is kites.flat
    assert ESTIMATORS[discover.MetaGradConfig(estimator="kites:estimate").estimator] is kites.estimate
    curriculum = dataclasses.replace(discover.recipes.groove().curriculum, score="kites:worth")
    assert SCORES[curriculum.score] is kites.worth


def test_a_shaping_of_ones_own_is_used(kites, tmp_path):
    """Where all candidates count alike, the mean stays where it is."""
    recipe = crash.recipe()
    recipe = dataclasses.replace(recipe, generations=1, search=dataclasses.replace(recipe.search, shaping="kites:flat"))
    result = discover.meta_train(recipe, tmp_path / "run", quiet=True)
    assert result.rows[1]["mean_norm"] == pytest.approx(result.rows[0]["mean_norm"], abs=1e-7)


@pytest.mark.parametrize(
    ("score", "fields"),
    [
        ("regret", {"reference", "final_return"}),
        ("max_mc", {"max_return", "mean_value"}),
        ("l1_value_loss", {"l1_value_loss"}),
    ],
)
def test_the_fields_that_a_score_reads_are_known(score, fields):
    assert fields_read(SCORES[score]) == fields


def test_a_registered_plug_has_a_name():
    registry = Registry("tests", "test", {"ours": len})
    registry["mine"] = abs
    assert (registry.require("mine"), registry.name_of(abs), [*registry]) == (abs, "mine", ["ours", "mine"])
    with pytest.raises(ValueError, match="the name 'ours' is that of a test of discover"):
        registry["ours"] = abs
    with pytest.raises(ValueError, match="Unknown test 'oars'; did you mean 'ours'"):
        registry.require("oars")


@pytest.fixture
def registered(monkeypatch):
    """Registries whose plugs are gone after the test."""
    for registry in (FAMILIES, SEARCHES, SCORES, SHAPINGS, ESTIMATORS, PROPOSERS):
        monkeypatch.setattr(registry, "_registered", {})


def test_a_second_plug_of_one_name_is_refused_with_both_places(kites, more, registered):
    SEARCHES["walk"] = kites.Walk
    SEARCHES["walk"] = kites.Walk
    with pytest.raises(ValueError, match="two searches have the name 'walk'") as refusal:
        SEARCHES["walk"] = more.Config
    definition = 1 + MORE[: MORE.index("@dataclass(frozen=True)\nclass Config")].count("\n")
    walk = line_of("@dataclass(frozen=True)\nclass Walk")
    assert f"kites.py, line {walk}, and {more.__file__}, line {definition}." in str(refusal.value)
    assert SEARCHES["walk"] is kites.Walk


@pytest.mark.parametrize(
    ("part", "spec", "wanted"),
    [
        ("objective", "kites:number", "a drift, an objective, a discover.ObjectiveConfig, or a function of a key"),
        ("search", "kites:number", "a subclass of discover.SearchConfig"),
        ("shaping", "kites:number", "a function of the fitness"),
        ("score", "kites:number", "a function of a LifeSummary"),
        ("estimator", "kites:number", r"a function of \(search, objective, member, seen\)"),
        ("proposer", "kites:number", r"a function of \(archive, n\) that returns texts"),
    ],
)
def test_a_number_is_no_plug(kites, registered, part, spec, wanted):
    make = {
        "objective": objective_config,
        "search": search_config,
        "shaping": lambda name: EvolutionConfig(shaping=name),
        "score": lambda name: CurriculumConfig(score=name),
        "estimator": lambda name: MetaGradConfig(estimator=name),
        "proposer": lambda name: ProgramsConfig(proposer=name),
    }
    registry = {
        "objective": FAMILIES,
        "search": SEARCHES,
        "shaping": SHAPINGS,
        "score": SCORES,
        "estimator": ESTIMATORS,
        "proposer": PROPOSERS,
    }
    with pytest.raises(ValueError, match=f"^kites:number is an int, and must be {wanted}[.]$"):
        make[part](spec)
    with pytest.raises(ValueError, match=f"^the {part} 'three' is an int, and must be {wanted}[.]$"):
        registry[part]["three"] = 3
    assert "three" not in registry[part]


@pytest.fixture(scope="module")
def problem():
    return search_for(crash.recipe()).problem


def test_a_problem_has_two_purposes_for_a_search_of_ones_own(problem):
    with pytest.raises(ValueError, match=r"^purpose must be 'start' or 'step', and is 'foo'\.$"):
        problem.key("foo", 0)
    keys = [problem.key(purpose, 0) for purpose in ("start", "step", "ask", "life")]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 4


FORM = r"^candidates must be objectives of the structure of problem\.template with leaves \[G, S, \.\.\.\], and "


def stacked(template, *sizes):
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (*sizes, *jnp.shape(x))), template)


@pytest.mark.parametrize(
    ("candidates", "found"),
    [
        (lambda template: template, r"the leaf \S+, which must be \[G, S(, \d+)*\], is \[(\d+(, \d+)*)?\]\."),
        (lambda template: stacked(template, 4), r"the leaf \S+, which must be \[G, S(, \d+)*\], is \[4(, \d+)*\]\."),
        (lambda template: stacked(template, 0, 1), r"the leaf \S+ is \[0, 1(, \d+)*\]\."),
        (
            lambda template: stacked(template.drift, 4, 1),
            "are an instance of LPO, not of Mirror: make them from the template",
        ),
        (lambda template: [stacked(template, 4, 1)], "are an instance of list, not of Mirror"),
        (
            lambda template: stacked(template, 4, 1).replace(gamma=0.5),
            "are a Mirror with other settings: make them from the template",
        ),
        (
            lambda template: jax.tree.map(
                lambda x, n: jnp.ones((n, 1, *x.shape)),
                template,
                jax.tree.unflatten(jax.tree.structure(template), range(1, 1 + len(jax.tree.leaves(template)))),
            ),
            r"the leaf \S+ is \[2, 1(, \d+)*\], after leaves with \[G, S\] = \[1, 1\]\.",
        ),
    ],
    ids=["template", "one axis", "none", "drift", "list", "settings", "sizes"],
)
def test_candidates_of_another_form_are_refused(problem, candidates, found):
    with pytest.raises(ValueError, match=FORM + found):
        problem.fitness(candidates(problem.template), problem.key("step", 0))


@pytest.mark.parametrize(
    ("key", "options", "sentence"),
    [
        (3, {}, r"^key must be one key, such as problem\.key\('step', generation\), and is 3\.$"),
        (None, {"lives": 0}, r"^lives must be a whole number, at least 1, and is 0\.$"),
        (None, {"shared_keys": "pair"}, r"^shared_keys must be 'population' or 'group', and is 'pair'\.$"),
    ],
)
def test_a_fitness_of_another_key_or_number_of_lives_is_refused(problem, key, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        problem.fitness(stacked(problem.template, 2, 1), key or problem.key("step", 0), **options)


def test_an_objective_that_is_a_number_is_no_plug_of_train(kites):
    with pytest.raises(ValueError, match=r"^kites:number is an int, and must be a drift, an objective, or a function"):
        resolve_objective("kites:number")


def test_two_instances_of_one_name_must_be_equal(kites, registered):
    FAMILIES["weighted"] = kites.Weighted(2.0)
    FAMILIES["weighted"] = kites.Weighted(2.0)
    with pytest.raises(
        ValueError, match=r"have the name 'weighted': Weighted\(weight=2.0\) .*Weighted\(weight=0.5\) \("
    ):
        FAMILIES["weighted"] = kites.Weighted(0.5)
    assert FAMILIES["weighted"] == kites.Weighted(2.0)
    FAMILIES["drift"] = kites.Quadratic(jnp.float32(1.0))
    FAMILIES["drift"] = kites.Quadratic(jnp.float32(1.0))
    with pytest.raises(ValueError, match="two objectives have the name 'drift'"):
        FAMILIES["drift"] = kites.Quadratic(jnp.float32(2.0))


def test_a_function_that_is_defined_again_keeps_its_name():
    """As in a notebook whose cell is run again. Lambdas and inner functions have a place and no path."""

    def of_file(text, file="<cell 1>"):
        names = {}
        exec(compile(text, file, "exec"), names)
        return names

    registry = Registry("tests", "test", {})
    cell = "worth = lambda life: life.returns"
    registry["worth"] = of_file(cell)["worth"]
    again = of_file(cell)["worth"]
    registry["worth"] = again
    assert registry["worth"] is again
    with pytest.raises(ValueError, match="two tests have the name 'worth'"):
        registry["worth"] = of_file(cell, "<cell 2>")["worth"]

    make = lambda power: lambda life: life.returns**power
    registry["power"] = make(2)
    registry["power"] = make(2)
    with pytest.raises(ValueError, match="two tests have the name 'power'"):
        registry["power"] = make(3)

    registry["bound"] = functools.partial(pow, 2)
    registry["bound"] = functools.partial(pow, 2)
    with pytest.raises(ValueError, match="two tests have the name 'bound'"):
        registry["bound"] = functools.partial(pow, 3)

    registry["jitted"] = jax.jit(plugs.where)
    registry["jitted"] = jax.jit(plugs.where)
    with pytest.raises(ValueError, match=r"envs/plugs.py, line \d+, and .*envs/plugs.py, line \d+"):
        registry["jitted"] = jax.jit(plugs.is_path)


def test_a_class_that_is_defined_again_keeps_its_name(kites, registered):
    """As in a notebook whose cell is run again."""
    SEARCHES["walk"] = kites.Walk
    again = importlib.reload(kites)
    SEARCHES["walk"] = again.Walk
    assert SEARCHES["walk"] is again.Walk


def test_a_name_that_a_package_announces_is_not_registered_for_another_class(kites, installed, registered):
    installed(sky=["walk = kites:Walk"])
    SEARCHES["walk"] = kites.Walk
    del SEARCHES["walk"]
    with pytest.raises(
        ValueError, match=r"have the name 'walk': kites:Walk, which an installed package announces, and .*line"
    ):
        SEARCHES["walk"] = kites.Stuck


@pytest.mark.parametrize(("part", "known"), [("search", "evolution, rolling, metagrad"), ("objective", "lpo, ")])
def test_a_run_whose_plug_is_not_registered_here_is_refused(kites, registered, tmp_path, part, known, capsys):
    FAMILIES["sail"], SEARCHES["sail"] = kites.Weighted, kites.Walk
    recipe = dataclasses.replace(crash.recipe(), **{part: "sail"})
    assert recipe.as_dict()[part]["kind"] == "sail"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(recipe.as_dict()))
    del FAMILIES["sail"], SEARCHES["sail"]
    for words in (["resume", "run"], crash.arguments("run")):
        assert cli.main(words) == 2
        said = capsys.readouterr().err
        assert f"Unknown {part} 'sail'; known are {known}" in said
        assert "; module:Name is the form for one of your own, and needs no registration." in said
        assert len(said.splitlines()) == 1


def test_a_mistyped_name_is_answered_with_the_form_of_a_path(capsys):
    lines = ["train --objective ppoo", "train --objective xyzzy", "train --env CartPol-v1", "train --env xyzzy"]
    lines += [f"meta-train quickstart --{part} xyzzy --out run" for part in ("objective", "search", "search.shaping")]
    for line in lines:
        assert cli.main(line.split()) == 2
        assert "; module:Name is the form for one of your own" in capsys.readouterr().err, line


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Make packages that announce plugs: {distribution: entry points of discover.searches}."""

    def install(**packages):
        for name, points in packages.items():
            folder = tmp_path / f"{name}-1.0.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            (folder / "entry_points.txt").write_text("[discover.searches]\n" + "\n".join(points))
        monkeypatch.syspath_prepend(tmp_path)
        plugs.announced.cache_clear()

    yield install
    plugs.announced.cache_clear()


def test_an_installed_package_announces_a_plug(kites, installed):
    installed(sky=["walk = kites:Walk"])
    recipe = dataclasses.replace(discover.recipes.quickstart(), search="walk")
    assert recipe.search == kites.Walk()
    assert "walk" in SEARCHES


def test_two_packages_that_announce_one_name_are_refused(kites, installed):
    installed(sky=["walk = kites:Walk"], sea=["walk = boats:Walk"])
    with pytest.raises(ValueError, match=r"two installed packages announce 'walk' in discover\.searches"):
        SEARCHES.require("walk")


def test_an_announced_name_of_ours_is_refused(kites, installed):
    installed(sky=["evolution = kites:Walk"])
    with pytest.raises(ValueError, match="announces the search 'evolution' as kites:Walk, and discover has one"):
        SEARCHES.require("evolution")


def test_a_recipe_of_version_0_1_is_read():
    """The shipped objectives have such records."""
    lpo = recipe_of(lo.record("ta_lpo_2026_11"))
    assert lpo.objective == discover.LPOConfig(time_aware=True, start="lpo", epsilon=0.2, width=128)
    assert isinstance(lpo.search, discover.RollingConfig)
    assert (lpo.search.window, lpo.search.late_window_weight) == (8, 1.0)
    assert recipe_of(lo.record("groove")).search == discover.MetaGradConfig(members=32, learning_rate=4e-3, chunk=8)
    old = {"objective": "dpo", "method": "evolution", "agent": {"clip": "apart"}, "evolution": {"population": 6}}
    recipe = recipe_of({"recipe": old})
    assert (recipe.objective.name, recipe.search.population, recipe.agent.clip) == ("dpo", 6, "separate")


@pytest.mark.parametrize(
    ("flag", "now"),
    [
        ("--evolution.sigma", "--search.sigma"),
        ("--evolution.lateness", "--search.late-window-weight"),
        ("--metagrad.members", "--search.members"),
        ("--lpg.hidden", "--objective.hidden"),
        ("--start", "--objective.start"),
        ("--method", "--search"),
    ],
)
def test_a_flag_of_version_0_1_is_answered_with_the_new_one(flag, now, capsys):
    assert cli.main(["meta-train", "quickstart", flag, "1"]) == 2
    assert f"Perhaps you meant {now}." in capsys.readouterr().err


def test_an_objective_takes_the_settings_that_the_family_before_it_had():
    recipe = discover.recipes.quickstart()
    changed = objective_config("ta_lpo", recipe.objective)
    assert changed == dataclasses.replace(recipe.objective, time_aware=True)
    assert jnp.shape(dataclasses.replace(recipe, objective=changed).template().drift.out) == (32,)


@pytest.mark.slow
def test_a_start_of_other_numbers_is_part_of_the_recipe(kites, tmp_path):
    """It is refused in the run of another start, and cannot be made again from the recipe alone."""
    recipe = dataclasses.replace(crash.recipe(), generations=1, objective=kites.Quadratic(weight=0.7))
    discover.meta_train(recipe, tmp_path / "run", quiet=True)
    other = dataclasses.replace(recipe, objective=kites.Quadratic(weight=0.2))
    with pytest.raises(ValueError, match=r"another recipe: its objective\.leaves is"):
        discover.meta_train(other, tmp_path / "run", quiet=True)
    assert float(discover.last_state(tmp_path / "run")[0].template.drift.weight) == pytest.approx(0.7)
    with pytest.raises(ValueError, match="whose numbers are not the default ones"):
        recipe_in(tmp_path / "run").template()
    assert dataclasses.replace(recipe, objective=kites.Quadratic()).objective.leaves == ""


def test_the_settings_of_a_mirror_are_not_lost_silently(kites):
    with pytest.raises(ValueError, match=r"the entropy_coef of a search is that of Recipe\.loss"):
        objective_config(lo.Mirror(drift=kites.Quadratic(), entropy_coef=0.5))


MORE = """
import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

import discover
import learned_objectives as lo
from kites import Quadratic, Walk, Walker


class Paired(Quadratic):
    weight: Any = (0.1, 0.2)


class Vector(lo.Drift):
    weight: jax.Array | float = 1.0

    def __call__(self, log_ratio, advantage, progress=None):
        return jnp.sum(self.weight) * jnp.expm1(log_ratio) ** 2


def vector(search, objective, member, seen):
    return jnp.zeros(2)


def whole(search, objective, member, seen):
    return objective


def nothing(search, objective, member, seen):
    return None


def count(search, objective, member, seen):
    return jnp.int32(0)


class Called(Quadratic):
    power: Any = struct.field(pytree_node=False, default=jnp.tanh)


@dataclass(frozen=True)
class Bending(discover.ObjectiveConfig):
    def template(self, key, loss):
        from kites import Bent

        return Bent()


class Plain(discover.ObjectiveConfig):
    def template(self, key, loss):
        return Quadratic()


@dataclass(frozen=True)
class Empty(discover.ObjectiveConfig):
    pass


@dataclass(frozen=True)
class Needy(discover.SearchConfig):
    size: int = dataclasses.field(kw_only=True)


@dataclass(frozen=True)
class Config(Walk):
    searcher: str = ""
    count: int = 2

    @property
    def items(self):
        return self.count

    def build(self, problem):
        return globals()[self.searcher](self, problem)


def config(searcher, count=2):
    return Config(searcher=searcher.__name__, count=count)


class Raises(Walker):
    def step(self, state, generation):
        raise KeyError("lift")


class Exits(Walker):
    def step(self, state, generation):
        raise SystemExit(3)


class Grows(Walker):
    def step(self, state, generation):
        return (state, state), {}


class Logs(Walker):
    def step(self, state, generation):
        return state, {"top": jnp.ones(3)}


class Taken(Walker):
    def step(self, state, generation):
        return state, {"fitness": 1.0}


class Drifts(Walker):
    def mean(self, state):
        return state.drift


class Sinks(Walker):
    def describe(self, state, generation):
        raise RuntimeError("no lift")


class Wider(Walker):
    def init(self):
        return self.problem.template, jnp.zeros(3)

    def step(self, state, generation):
        moved, row = super().step(state[0], generation)
        return (moved, state[1]), row

    def mean(self, state):
        return state[0]


class Words(Walker):
    def init(self):
        return "hello"


class Wakes(Walker):
    def init(self):
        raise RuntimeError("no wind")


class Sound(Walker):
    def step(self, state, generation):
        return state, {"top": jnp.float32(2.0), "worst": float("-inf"), "note": "calm"}
"""


@pytest.fixture
def more(kites, tmp_path):
    (tmp_path / "more.py").write_text(MORE)
    sys.modules.pop("more", None)
    yield importlib.import_module("more")
    sys.modules.pop("more", None)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("Paired", "the field weight of more:Paired must be an array, a number, a drift or an objective"),
        ("Called", "the static field power of .* must be a number, a string, a list or a dictionary"),
        ("Bending", "what more:Bending makes is no drift"),
        ("Plain", "Plain must be a frozen dataclass"),
        ("Empty", "Empty lacks template"),
    ],
)
def test_a_family_that_cannot_be_used_is_refused(more, name, sentence):
    with pytest.raises(ValueError, match=sentence) as refusal:
        dataclasses.replace(discover.recipes.quickstart(), objective=f"more:{name}").template()
    assert ".py, line" in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("Exits", r"^step of .* failed: .*more.py, line \d+: SystemExit: 3$"),
        ("Raises", r"step of .* failed: .*more.py, line \d+: KeyError: 'lift'"),
        (
            "Grows",
            r"^Grows: the state that step returns must have the structure of .*, and is an instance of tuple, not of Mirror",
        ),
        ("Logs", "Logs: the value of 'top' that step logs must be a number or a string, and is Array"),
        ("Taken", "Taken: what step logs must not have the names that a run writes itself, and has fitness"),
        (
            "Drifts",
            r"^Drifts: what mean returns must have the structure of .*, and is an instance of LPO, not of Mirror \(.*\)\.",
        ),
        ("Words", "Words: the leaf .* of the state that init returns must be an array, and is 'hello'"),
        ("Wakes", r"init of .* failed: .*more.py, line \d+: RuntimeError: no wind"),
    ],
)
def test_a_search_that_breaks_the_contract_is_refused(more, tmp_path, name, sentence):
    recipe = dataclasses.replace(crash.recipe(), search=more.config(getattr(more, name)), generations=1)
    with pytest.raises(ValueError, match=sentence):
        discover.meta_train(recipe, tmp_path / "run", quiet=True)


@pytest.mark.slow
def test_a_run_whose_class_failed_before_its_first_row_may_begin_again(more, tmp_path):
    recipe = dataclasses.replace(crash.recipe(), objective="kites:Quadratic", generations=1)
    with pytest.raises(ValueError, match=r"describe of .* failed: .*more.py, line \d+: RuntimeError: no lift"):
        discover.meta_train(dataclasses.replace(recipe, search=more.config(more.Sinks)), tmp_path / "run", quiet=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    mended = dataclasses.replace(recipe, search=more.config(more.Sound, 3))
    assert len(discover.meta_train(mended, tmp_path / "run", quiet=True).rows) == 2


@pytest.mark.slow
def test_a_run_whose_class_failed_in_its_first_step_may_begin_again(more, tmp_path, monkeypatch, capsys):
    """Also where the state has changed since."""
    recipe = dataclasses.replace(crash.recipe(), search=more.config(more.Raises), generations=1, evaluate_every=1)
    with pytest.raises(ValueError, match="KeyError: 'lift'"):
        discover.meta_train(recipe, tmp_path / "run", quiet=True)
    monkeypatch.setattr(more, "Raises", more.Wider)
    assert len(discover.meta_train(recipe, tmp_path / "run", quiet=True).rows) == 2
    said = capsys.readouterr().err
    assert said.startswith("The checkpoint of generation 0 does not fit Wider (")
    assert said.endswith("The run starts again.\n")


@pytest.mark.slow
def test_a_checkpoint_of_a_class_that_has_changed_is_refused_with_the_difference(more, tmp_path, monkeypatch):
    recipe = dataclasses.replace(
        crash.recipe(), search=more.config(more.Sound), objective="kites:Weighted", generations=1
    )
    discover.meta_train(recipe, tmp_path / "run", quiet=True)
    longer = dataclasses.replace(recipe, generations=2)
    with monkeypatch.context() as patch:
        patch.setattr(more, "Sound", more.Wider)
        added = r"its 0.drift.weight is float32\[\] now, and was not there"
        sentence = rf"generation 1 in .* does not fit Wider \(.*more.py, line \d+\): {added}"
        for use in (
            lambda: discover.meta_train(longer, tmp_path / "run", quiet=True),
            lambda: discover.last_state(tmp_path / "run"),
        ):
            with pytest.raises(ValueError, match=sentence):
                use()
    template = lambda self, key, loss: loss.on(lo.Mirror(drift=more.Vector(jnp.ones(2))))
    monkeypatch.setattr(type(recipe.objective), "template", template)
    with pytest.raises(
        ValueError,
        match=r"does not fit Vector \(.*, line \d+\): its drift.weight is float32\[2\] now, and was float32\[\]\.",
    ):
        discover.meta_train(longer, tmp_path / "run", quiet=True)


@pytest.mark.slow
def test_a_dry_run_of_a_search_that_fails_is_one_sentence(more):
    recipe = dataclasses.replace(crash.recipe(), search=more.config(more.Raises))
    with pytest.raises(ValueError, match=r"a step of .* failed: .*more.py, line \d+: KeyError: 'lift'"):
        list(dry_run(recipe))


@pytest.mark.parametrize(
    ("name", "returned"),
    [("vector", r"float32\[2\]"), ("whole", "a LPG"), ("nothing", "a NoneType"), ("count", r"int32\[\]")],
)
def test_an_estimator_that_returns_no_loss_is_refused(more, name, returned):
    recipe = meta_train.parse(crash.arguments("out", of="lpg_small")[1:]).recipe
    search = dataclasses.replace(recipe.search, estimator=f"more:{name}")
    sentence = (
        rf"the estimator more:{name} must return f32\[\], a loss .*, and returns {returned} \(.*more.py, line \d+\)\."
    )
    with pytest.raises(ValueError, match=sentence):
        search_for(dataclasses.replace(recipe, search=search))


def test_what_a_search_logs_is_json(more, tmp_path):
    recipe = dataclasses.replace(crash.recipe(), search=more.config(more.Sound), generations=1)
    row = discover.meta_train(recipe, tmp_path / "run", quiet=True).rows[1]
    assert (row["top"], row["worst"], row["note"]) == (2.0, None, "calm")


def test_a_search_without_items_or_with_settings_that_are_missing_is_refused(more):
    with pytest.raises(ValueError, match="items of Config must be at least 1, and is 0"):
        dataclasses.replace(discover.recipes.quickstart(), search=more.config(more.Sound, 0))
    with pytest.raises(ValueError, match=r"^Needy needs defaults: give one to size \(.*more.py, line \d+\)"):
        dataclasses.replace(discover.recipes.quickstart(), search="more:Needy")


def test_a_shaping_of_another_shape_is_refused(more, kites, tmp_path):
    recipe = crash.recipe()
    for shaping, sentence in (("kites:worth", "failed: .*AttributeError"), ("jax.numpy:sum", "must return float32")):
        search = dataclasses.replace(recipe.search, shaping=shaping)
        with pytest.raises(ValueError, match=sentence):
            discover.meta_train(dataclasses.replace(recipe, search=search), tmp_path / "run", quiet=True)


@pytest.mark.parametrize(
    ("shaping", "found"),
    [
        (lambda fitness: fitness[0], r"float32\[2\]"),
        (lambda fitness: None, "None"),
        (lambda fitness: "high", "a str"),
        (lambda fitness: (fitness, fitness), r"a tuple of float32\[2, 2\] and float32\[2, 2\]"),
        (lambda fitness: jnp.zeros((2, 2), jnp.int32), r"int32\[2, 2\]"),
    ],
    ids=["row", "none", "word", "two", "integers"],
)
def test_what_a_shaping_returns_is_told_in_types(registered, shaping, found):
    SHAPINGS["mine"] = shaping
    recipe = crash.recipe()
    search = dataclasses.replace(recipe.search, shaping="mine", population=4)
    sentence = rf"^the shaping mine must return float32\[2, 2\], and returns {found} \(.*test_plugs.py, line \d+\)\.$"
    with pytest.raises(ValueError, match=sentence):
        search_for(dataclasses.replace(recipe, search=search))


@pytest.mark.parametrize(
    ("score", "found"),
    [
        (lambda life: "high", "a str"),
        (lambda life: None, "None"),
        (lambda life: jnp.zeros(3), r"float32\[3\]"),
        (lambda life: life, r"a LifeSummary \(.*\)"),
    ],
    ids=["word", "none", "vector", "life"],
)
def test_what_a_score_returns_is_told_in_types(score, found):
    sentence = rf"^a score must return one number for each life, and returns {found} \(.*test_plugs.py, line \d+\)\.$"
    with pytest.raises(ValueError, match=sentence):
        fields_read(score)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("Groundless", r"^build must return a discover.Search, and returned None \(.*kites.py, line \d+\)\.$"),
        ("Meanless", r"^NoMean lacks mean \(.*kites.py, line \d+\)\.$"),
    ],
)
def test_what_a_search_lacks_is_said_once(kites, name, sentence):
    with pytest.raises(ValueError, match=sentence):
        search_for(dataclasses.replace(crash.recipe(), search=f"kites:{name}"))
