"""Arguments of the wrong type: each is refused with one sentence, before anything is trained or written."""

import numpy as np
import pytest

import discover
import learned_objectives as lo

SMALL = discover.AgentConfig(num_envs=2, num_steps=4, num_minibatches=1, num_epochs=1, hidden=(4,))
SIZES = {"total_steps": 16, "num_seeds": 2, "num_evals": 1, "agent": SMALL}

WRONG = [
    ({"num_seeds": "2"}, "num_seeds must be a whole number, and is '2': give an int"),
    ({"seed": None}, "seed must be a whole number, and is None: give an int"),
    ({"seed": 1.5}, r"seed must be a whole number, and is 1\.5: give an int"),
    ({"num_evals": 1.0}, r"num_evals must be a whole number, and is 1\.0: give 1\."),
    ({"total_steps": "2048"}, "total_steps must be a whole number, and is '2048'"),
    ({"total_steps": 1e3}, r"total_steps must be a whole number, and is 1000\.0: give 1000\."),
    ({"total_steps": np.float32(16)}, "total_steps must be a whole number"),
    ({"chunk": "1"}, "chunk must be a whole number, and is '1'"),
    (
        {"agent": {"num_envs": 4}},
        r"agent must be a discover\.AgentConfig, and is a dict: give discover\.AgentConfig\(\.\.\.\)",
    ),
    ({"agent": {}}, r"agent must be a discover\.AgentConfig, and is a dict"),
    ({"agent": discover.LossConfig()}, r"agent must be a discover\.AgentConfig, and is a LossConfig"),
    (
        {"loss": {"gamma": 0.9}},
        r"loss must be a discover\.LossConfig, and is a dict: give discover\.LossConfig\(\.\.\.\)",
    ),
    ({"out": 3}, "out must be the path of a directory, and is 3: give a string or a Path"),
]


@pytest.mark.parametrize(("changes", "sentence"), WRONG)
def test_a_setting_of_the_wrong_type_is_refused(changes, sentence):
    with pytest.raises(TypeError, match=sentence):
        discover.train("ppo", **SIZES | changes)
    with pytest.raises(TypeError, match=sentence):
        discover.evaluate(["ppo"], ["CartPole-v1"], **SIZES | changes)


OBJECTIVES = [
    (None, "expected an objective, a drift, a name .*, or a path, and got a NoneType"),
    (3, "expected an objective, .* and got a int"),
    (lo.DPO, "expected an objective, .* and got the class DPO: call it"),
    (lambda r, a: r * a, "expected an objective, .* and got a function"),
    (
        lo.Mirror(drift=lambda r, a: r * a),
        r"the drift of a Mirror must be a .*Drift, and is <function .*: give lo\.DPO\(\)",
    ),
    (lo.Mirror(drift=lo.DPO), "the drift of a Mirror must be a .*Drift, and is <class"),
]


@pytest.mark.parametrize(("objective", "sentence"), OBJECTIVES)
def test_what_is_no_objective_is_refused(objective, sentence):
    with pytest.raises(TypeError, match=sentence):
        discover.train(objective, **SIZES)
    with pytest.raises(TypeError, match=sentence):
        discover.evaluate({"mine": objective}, ["CartPole-v1"], **SIZES)


def test_a_list_of_what_is_no_objective_is_refused():
    with pytest.raises(TypeError, match="got a NoneType"):
        discover.evaluate(["ppo", None], ["CartPole-v1"], **SIZES)
    for objectives, envs in ((None, ["CartPole-v1"]), (["ppo"], None), (lo.DPO(), ["CartPole-v1"])):
        with pytest.raises(ValueError, match="takes lists"):
            discover.evaluate(objectives, envs, **SIZES)


def test_a_run_is_in_a_directory():
    for use in (lambda out: discover.meta_train(discover.recipes.quickstart(), out), discover.last_state):
        with pytest.raises(TypeError, match="out must be the path of a directory, and is None"):
            use(None)
        with pytest.raises(ValueError, match="out must be the path of a directory, and is empty"):
            use("")


@pytest.mark.slow
def test_integers_of_numpy_are_whole_numbers():
    sizes = {"total_steps": np.int64(16), "num_seeds": np.int32(2), "num_evals": np.uint8(1), "seed": np.int64(3)}
    assert discover.train("ppo", agent=SMALL, **sizes).returns.shape == (2, 1)
