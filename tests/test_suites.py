"""A suite is a prefix of names and a module that builds its environments, imported when the first of them is made."""

import sys

import pytest

import envs
from envs.suites import Suite

ADAPTER = """
from envs.probes import Constant

def build(task, *, wind="calm", size=1):
    if task == "rare":
        import a_package_that_is_not_installed
    env = Constant()
    env.task, env.wind, env.size = task, wind, size
    return env
"""
SUITE = Suite(
    prefix="kites/",
    module="kite_adapter",
    tasks=("light", "heavy", "rare"),
    install="discover-rl[kites]",
    option="wind",
    values=("calm", "storm"),
    left_out={"kites/paper": "it tears"},
)


@pytest.fixture(autouse=True)
def kites(tmp_path, monkeypatch):
    (tmp_path / "kite_adapter.py").write_text(ADAPTER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(envs, "_built", dict(envs._built))
    monkeypatch.setattr(envs.suites, "_suites", dict(envs.suites._suites))
    envs.suites.register(SUITE)
    yield tmp_path
    sys.modules.pop("kite_adapter", None)


def test_the_names_of_a_suite_are_known_without_its_adapter():
    assert {"kites/light", "kites/heavy"} <= set(envs.available())
    with pytest.raises(ValueError, match="Unknown environment 'kites/lihgt'; did you mean 'kites/light'"):
        envs.make("kites/lihgt")
    with pytest.raises(ValueError, match="'kites/paper' is left out: it tears"):
        envs.make("kites/paper")
    assert "kite_adapter" not in sys.modules


def test_an_adapter_builds_the_environment_of_a_name():
    env, params = envs.make("kites/light", size=2)
    assert (env.name, env.task, env.wind, env.size) == ("kites/light@calm", "light", "calm", 2)
    assert envs.make("kites/light@storm")[0].wind == "storm"
    assert envs.make("kites/light", wind="storm")[0] is envs.make("kites/light@storm")[0]
    envs.check(env, params, num_steps=2)
    with pytest.raises(ValueError, match="Unknown wind 'gale' for 'kites/light'. The winds are calm, storm."):  # noqa: RUF043
        envs.make("kites/light@gale")


def test_a_package_that_is_missing_is_named_with_what_installs_it(kites):
    with pytest.raises(ValueError, match=r"^'kites/rare@calm' needs the package a_package_that_is_not_installed, which is not "
                       r"installed: pip install 'discover-rl\[kites\]'.$"):  # fmt: skip
        envs.make("kites/rare")
    sys.modules.pop("kite_adapter")
    (kites / "kite_adapter.py").write_text("import another_that_is_not_installed\n")
    with pytest.raises(ValueError, match=r"needs the package another_that_is_not_installed"):
        envs.make("kites/heavy")


def test_a_prefix_that_is_taken_is_refused():
    envs.suites.register(SUITE)  # the same again
    for prefix in ("brax/", "gridworld/", "kites/"):
        with pytest.raises(ValueError, match=f"the prefix '{prefix}' is taken: choose another"):
            envs.suites.register(Suite(prefix, "other", tasks=("a",), install="other"))
    with pytest.raises(ValueError, match="the name 'kites/mine' is taken, or belongs to a family of ours"):
        envs.register("kites/mine", lambda: None)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"prefix": "kites"}, "must be a word and a slash, such as 'brax/', and is 'kites'"),
        ({"prefix": "kites/", "option": "wind"}, "suite 'kites/' must have both an option and its values, or neither"),
    ],
)
def test_a_suite_that_cannot_be_is_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        Suite(module="m", tasks=(), install="m", **fields)
