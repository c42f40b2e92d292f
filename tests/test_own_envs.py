"""An environment of a user's own is named by the path of its class, or by a name that an installed package announces."""

import json
import sys

import numpy as np
import pytest

import discover
import envs
from discover import cli
from discover.agents.setups import CLASSIC
from discover.commands import meta_train
from envs import plugs
from envs.check import not_finite

TINY = discover.AgentConfig(num_envs=2, num_steps=4, num_epochs=1, num_minibatches=1, hidden=(4,))
KITES = """
import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import Environment


@struct.dataclass
class Wind:
    gust: jax.Array
    max_steps_in_episode: jax.Array


@struct.dataclass
class Flight:
    height: jax.Array
    time: jax.Array


class Kite(Environment):
    def __init__(self, size=1, **options):
        self.size = size
        if options:
            raise KeyError("no such option")

    @property
    def default_params(self):
        return Wind(jnp.float32(0.05), jnp.int32(4))

    def reset_env(self, key, params):
        state = Flight(jax.random.uniform(key, (self.size,)), jnp.int32(0))
        return state.height, state

    def step_env(self, key, state, action, params):
        state = Flight(state.height + action, state.time + 1)
        return state.height, state, state.height.sum(), jnp.bool_(False), {"discount": jnp.float32(1.0)}

    def observation_space(self, params):
        return spaces.Box(-jnp.inf, jnp.inf, (self.size,), jnp.float32)

    def action_space(self, params=None):
        return spaces.Discrete(2)


class Short(Kite):
    def step_env(self, key, state, action, params):
        return super().step_env(key, state, action, params)[:4]


class Ill(Kite):
    def step_env(self, key, state, action, params):
        return state.hieght


class Stated(Kite):
    lifetimes = 100


class Bare:
    step_env = Kite.step_env


class NoReset(Environment):
    default_params, step_env = Kite.default_params, Kite.step_env
    observation_space, action_space = Kite.observation_space, Kite.action_space


class NoStep(Environment):
    default_params, reset_env, action_space = Kite.default_params, Kite.reset_env, Kite.action_space


class NoInfo(Kite):
    def step_env(self, key, state, action, params):
        return (*super().step_env(key, state, action, params)[:4], None)


class NoSpace(Kite):
    def observation_space(self, params):
        raise NotImplementedError


class NoActions(Kite):
    def action_space(self, params):
        raise NotImplementedError("later")


class NanReward(Kite):
    def step_env(self, key, state, action, params):
        seen, state, reward, *rest = super().step_env(key, state, action, params)
        return seen, state, reward * jnp.nan, *rest


class NanSeen(Kite):
    def reset_env(self, key, params):
        seen, state = super().reset_env(key, params)
        return seen * jnp.nan, state


class Leaving(Kite):
    def reset_env(self, key, params):
        raise SystemExit(3)


class NoParams(Kite):
    @property
    def default_params(self):
        raise AttributeError("oops")


class Needy(Kite):
    def __init__(self, size):
        super().__init__(size)


class NoEnvironment:
    pass


def build(size=2):
    return Kite(size)


def pair():
    return Kite(), None


kite = Kite(3)
number = 3
"""


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """A directory on the path, with kites.py; what is imported or built from it is gone after the test."""
    (tmp_path / "kites.py").write_text(KITES)
    monkeypatch.syspath_prepend(tmp_path)
    for registry in ("_registered", "_given", "_built"):
        monkeypatch.setattr(envs, registry, dict(getattr(envs, registry)))
    plugs.announced.cache_clear()
    yield tmp_path
    plugs.announced.cache_clear()
    sys.modules.pop("kites", None)


def announce(directory, package, *lines, group="discover.envs"):
    """Install a package that announces names: "kite = kites:Kite"."""
    folder = directory / f"{package}-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("\n".join((f"[{group}]", *lines)) + "\n")


def line_of(text):
    return KITES[: KITES.index(text)].count("\n") + 1


@pytest.mark.parametrize(("path", "size"), [("kites:Kite", 1), ("kites:build", 2), ("kites:kite", 3)])
def test_a_class_a_function_and_an_instance_are_environments(path, size):
    env, params = envs.make(path)
    assert (env.name, env.size) == (path, size)
    assert envs.make(path)[0] is env
    assert env.observation_space(params).shape == (size,)
    envs.check(env, params, num_steps=3)


def test_options_go_to_the_class_or_the_function():
    assert envs.make("kites:Kite", size=4)[0].size == envs.make("kites:build", size=4)[0].size == 4


@pytest.mark.slow
def test_a_path_is_a_name_of_an_environment_in_train(own):
    assert discover.usual_setup("kites:Kite") == CLASSIC
    result = discover.train(
        "ppo", env="kites:Kite", total_steps=16, num_seeds=2, num_evals=1, agent=TINY, out=own / "out"
    )
    assert np.isfinite(result.returns).all()
    assert result.agent.env.name == "kites:Kite"
    rows = [json.loads(line) for line in (own / "out" / "train.jsonl").read_text().splitlines()]
    assert {row["env"] for row in rows} == {"kites:Kite"}


@pytest.mark.slow
def test_a_path_is_a_name_of_an_environment_in_evaluate(own):
    sizes = {"total_steps": 16, "num_seeds": 2, "num_evals": 1, "agent": TINY, "out": own / "out"}
    found = discover.evaluate(["ppo"], ["kites:Kite", "probe/action"], **sizes)
    assert [trial.env for trial in found.curves] == ["kites:Kite", "probe/action"]
    assert (own / "out" / "kites_Kite.png").exists()
    again = discover.evaluate(["ppo"], ["kites:Kite"], **sizes)  # read from the disk
    for trial, curves in again.curves.items():
        np.testing.assert_array_equal(curves["ppo"].returns, found.curves[trial]["ppo"].returns)


@pytest.mark.slow
def test_a_path_is_a_name_of_an_environment_in_a_recipe(own):
    recipe = discover.Recipe(
        envs=("kites:Kite",), agent=TINY, total_steps=16, generations=1, evaluate_every=1, evaluation_seeds=2,
        objective=discover.LPOConfig(width=4), search=discover.EvolutionConfig(population=2),
    )  # fmt: skip
    discover.meta_train(recipe, out=own / "run")
    rows = [json.loads(line) for line in (own / "run" / "metrics.jsonl").read_text().splitlines()]
    assert next(list(row["evaluation"]) for row in rows if row.get("evaluation")) == ["kites:Kite"]
    search, _ = discover.last_state(own / "run")
    assert search.recipe.envs == ("kites:Kite",)


@pytest.mark.parametrize(
    ("path", "text", "sentence"),
    [
        ("kits:Kite", None, "kits:Kite cannot be imported: no module named kits"),
        ("kites:Kit", None, "kites:Kit does not exist: kites.py has no Kit. Did you mean Kite?"),
        ("kites:number", None, "'kites:number' is an int, and must be an environment: a class, a function that returns one"),
        ("kites:NoEnvironment", "class NoEnvironment", "'kites:NoEnvironment' is a class without step_env: derive it from"),
        ("kites:pair", "def pair", "'kites:pair' returns a tuple, and must return an environment."),
        ("kites:Bare", "class Bare", "Bare lacks reset_env and is_truncated and"),
        ("kites:NoReset", "class NoReset", "NoReset lacks reset_env: see gymnax's Environment"),
        ("kites:NoStep", "class NoStep", "NoStep lacks step_env and observation_space: see gymnax's Environment"),
        ("kites:NoInfo", "class NoInfo", "step_env of 'kites:NoInfo' returns None as info, which must be a dictionary"),
        ("kites:Short", "class Short", "step_env of 'kites:Short' returns 4 values, and must return 5"),
        ("kites:Stated", "class Stated", "'kites:Stated' has the lifetimes 100, and they must be envs.Lifetimes or None."),
    ],
)  # fmt: skip
def test_what_a_path_names_is_refused_in_a_sentence(own, path, text, sentence):
    with pytest.raises(ValueError, match=r".") as error:
        discover.train("ppo", env=path, total_steps=16, num_seeds=1, agent=TINY)
    where = f"{own / 'kites.py'}, line {line_of(text)}: " if text else ""
    assert str(error.value).startswith(where + sentence)


def test_what_the_code_of_a_user_raises_is_named_with_its_line(own):
    file = own / "kites.py"
    with pytest.raises(ValueError, match=r".") as error:
        envs.make("kites:Ill")
    assert str(error.value) == (
        f"'kites:Ill' ({file}, line {line_of('class Ill')}) fails when it is traced: {file}, line {line_of('state.hieght')}: "
        "AttributeError: 'Flight' object has no attribute 'hieght'"
    )
    with pytest.raises(
        ValueError, match=r"'kites:Needy' .* cannot be built: TypeError: .*missing 1 required positional"
    ):
        envs.make("kites:Needy")
    with pytest.raises(ValueError, match=r"'kites:Kite' .* cannot be built: .*, line 25: KeyError: 'no such option'"):
        envs.make("kites:Kite", colour="red")
    with pytest.raises(ValueError, match=r"'kites:kite' .* is an instance, and takes no options, such as size"):
        envs.make("kites:kite", size=4)
    (own / "kites.py").write_text("import jax\n1 / 0\n")
    sys.modules.pop("kites")
    with pytest.raises(ValueError, match=r"kites:Kite cannot be imported: .*kites.py, line 2: ZeroDivisionError"):
        envs.make("kites:Kite", size=5)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("kites:NoSpace", "observation_space of NoSpace is not implemented ({}: NotImplementedError): write it."),
        ("kites:NoActions", "action_space of NoActions is not implemented ({}: NotImplementedError: later): write it."),
        ("kites:NoParams", "'kites:NoParams' {} fails when it is traced: {}: AttributeError: oops"),
    ],
)
def test_a_member_that_raises_is_named_with_what_it_raises(own, path, sentence):
    file, name = own / "kites.py", path.removeprefix("kites:")
    lines = KITES.splitlines()
    begins = lines.index(f"class {name}(Kite):") + 1
    raises = next(n for n, text in enumerate(lines[begins:], begins + 1) if "raise " in text)
    with pytest.raises(ValueError, match=r".") as error:
        envs.make(path)
    where = f"{file}, line {begins}"
    if sentence.count("{}") == 1:
        assert str(error.value) == f"{where}: " + sentence.format(f"{file}, line {raises}")
    else:
        assert str(error.value) == sentence.format(f"({where})", f"{file}, line {raises}")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("NoReset", r"NoReset lacks reset_env\.$"),
        ("NoStep", r"NoStep lacks step_env and observation_space\.$"),
        (
            "NoInfo",
            r"NoInfo returns None as info, which must be a dictionary, and may be empty \(step_env\)\.$",
        ),
        ("NoSpace", r"NoSpace fails when it is traced: .*kites.py, line \d+: NotImplementedError\.$"),
        ("Short", r"Short returns 4 values from step_env; the contract is 5\.$"),
        ("Ill", r"Ill fails when it is traced: .*kites.py, line \d+: AttributeError: .* no attribute 'hieght'\.$"),
    ],
)
def test_check_names_what_is_missing_or_fails(own, name, sentence):
    env, kite = plugs.resolve(f"kites:{name}")(), plugs.resolve("kites:Kite")()
    with pytest.raises(AssertionError, match=sentence):
        envs.check(env, kite.default_params, num_steps=2)


@pytest.mark.parametrize(
    ("path", "what"), [("kites:NanReward", "rewards"), ("kites:NanSeen", "observations"), ("kites:Kite", None)]
)
def test_an_environment_that_gives_no_numbers_is_named(path, what):
    env, _ = envs.make(path)
    assert not_finite(env) == (what and f"gives {what} that are not finite")
    if what:
        with pytest.warns(
            UserWarning, match=rf"^{path} gives {what} that are not finite, so 2 of 2 agents ended without"
        ):
            discover.train("ppo", env=path, total_steps=64, num_seeds=2, num_evals=1, agent=TINY)


def test_a_search_in_an_environment_that_gives_no_numbers_warns(own):
    recipe = discover.Recipe(
        envs=("kites:Kite", "kites:NanReward"),
        objective="ppo",
        total_steps=64,
        generations=1,
        evaluation_seeds=2,
        agent=TINY,
        search=discover.EvolutionConfig(population=2),
    )
    with pytest.warns(
        UserWarning, match=r"^kites:NanReward gives rewards that are not finite, so no agent has a return"
    ):
        discover.meta_train(recipe, own / "run", quiet=True)


def test_code_that_ends_the_process_is_named_with_its_line(own, capsys):
    (own / "leaving.py").write_text("import sys\n\nsys.exit(3)\n")
    for words, place in (
        (["train", "--env", "leaving:Kite"], "leaving.py, line 3: SystemExit: 3"),
        (["train", "--objective", "leaving:drift"], "leaving.py, line 3: SystemExit: 3"),
        (["train", "--env", "kites:Leaving"], f"kites.py, line {line_of('raise SystemExit')}: SystemExit: 3"),
    ):
        assert cli.main(words) == 2
        assert place in capsys.readouterr().err


def test_an_installed_package_announces_names(own):
    announce(own, "kites", "kite = kites:Kite", "pair-of-kites = kites:build")
    assert {"kite", "pair-of-kites"} <= set(envs.available())
    env, params = envs.make("kite")
    assert (env.name, env.size) == ("kite", 1)
    envs.check(env, params, num_steps=3)
    result = discover.train("a2c", env="pair-of-kites", total_steps=16, num_seeds=1, num_evals=1, agent=TINY)
    assert result.agent.env.name == "pair-of-kites"
    with pytest.raises(ValueError, match="Unknown environment 'kita'; did you mean 'kite'"):
        envs.make("kita")
    with pytest.raises(ValueError, match="'kite' is a path, or one that an installed package announces"):
        envs.register("kite", lambda: None)


def test_an_announced_name_is_one_on_the_command_line(own, capsys):
    announce(own, "kites", "kite = kites:Kite")
    small = ["--total-steps", "16", "--agent.num-envs", "2", "--agent.num-steps", "4", "--agent.num-minibatches", "1"]
    words = ["train", "--env", "kite", "--num-seeds", "1", "--num-evals", "1", "--agent.hidden", "4", *small]
    assert cli.main([*words, "--out", str(own / "out")]) == 0
    assert json.loads((own / "out" / "train.jsonl").read_text().splitlines()[-1])["env"] == "kite"
    assert meta_train.parse(["quickstart", "--envs", "CartPole-v1", "kite"]).recipe.envs == ("CartPole-v1", "kite")
    capsys.readouterr()
    assert cli.main(["list", "envs"]) == 0
    assert "kite" in capsys.readouterr().out.split()
    assert cli.main(["train", "--env", "kit"]) == 2
    said = capsys.readouterr().err
    assert "Unknown environment 'kit'; did you mean 'kite'?" in said
    assert "module:Name is the form for one of your own" in said


def test_two_packages_that_announce_one_name_are_refused(own):
    announce(own, "kites", "kite = kites:Kite")
    announce(own, "other", "kite = kites:build")
    with pytest.raises(ValueError, match=r"two installed packages announce 'kite' in discover.envs: .* by its path"):
        envs.make("kite")
    assert envs.make("kites:build")[0].size == 2
    assert envs.make("probe/constant")[0].name == "probe/constant"


@pytest.mark.parametrize("name", ["probe/constant", "CartPole-v1", "gridworld/small"])
def test_a_package_that_announces_a_name_of_ours_is_refused(own, name):
    announce(own, "kites", f"{name} = kites:Kite")
    assert envs.available().count(name) == 1
    envs._built.clear()
    with pytest.raises(
        ValueError, match=f"'{name}' is an environment of ours, and an installed package announces kites:Kite"
    ):
        envs.make(name)


def test_a_path_is_no_name_to_register():
    with pytest.raises(ValueError, match="'kites:Kite' is a path, or one that an installed package announces"):
        envs.register("kites:Kite", lambda: None)


def test_an_object_that_a_path_built_has_a_name_of_its_own():
    assert envs.name_of(envs.make("kites:Kite")[0]) == "kites:Kite (2)"
