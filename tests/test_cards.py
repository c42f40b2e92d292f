"""A card says what there is to say, and its line of code runs; probe values come out as they were saved."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import learned_objectives as lo
from discover import recipes
from discover.runs.record import provenance
from learned_objectives import cards
from learned_objectives.library import CLOSED_FORMS, WEIGHTS
from learned_objectives.probe import ADVANTAGES, LOG_RATIOS

SHIPPED = sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


@pytest.mark.parametrize("name", [*CLOSED_FORMS, *SHIPPED])
def test_every_objective_has_a_card(name):
    text = lo.card(name)
    assert text.startswith(f"# {name}\n")
    assert "## What it expects" in text
    if name in CLOSED_FORMS:
        assert re.search(r"arXiv:\d{4}\.\d{5}", text)
    else:
        assert "## How it was made" in text
        assert "## Where it was tested" in text
        assert "## Where it loses" in text


TESTED = json.loads(cards.TESTED.read_text())


def test_what_was_measured_is_of_what_there_is():
    assert set(TESTED) <= set(lo.available())


@pytest.mark.parametrize("name", TESTED)
def test_a_card_shows_what_was_measured(name):
    text = lo.card(name)
    for kind, comparison in TESTED[name].items():
        if kind == "drifts" and "replication" in TESTED[name]:
            assert comparison["score"] not in text  # the same trials with more seeds stand in its place
            continue
        assert comparison["score"] in text
        for row in comparison["rows"]:
            assert "| " + " | ".join(row.values()) + " |" in text


@pytest.mark.parametrize("name", [name for name in lo.available() if not isinstance(lo.load(name), lo.LPG)])
def test_the_line_of_a_card_runs(name, samples):
    (code,) = re.findall(r"```python\n(.*?)```", lo.card(name), re.DOTALL)
    log_ratio, advantage = samples
    scope = {"log_ratio": log_ratio, "advantage": advantage, "step": 10.0, "lifetime": 100.0}
    scope |= {"value_loss": 0.3, "entropy": 0.5}
    exec(code, scope)
    expected = -lo.load(name).surrogate(log_ratio, advantage, lo.Progress(10.0, 100.0)).mean()
    assert scope["policy_loss"] == expected


def in_numpy(logits, policy, action):
    """d/d logits of -mean(log softmax(logits)[action] policy): [T, B, A], by hand."""
    pi = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return -policy[..., None] * (np.eye(logits.shape[-1])[action] - pi) / policy.size


def of_prediction_in_numpy(logits, log_target):
    """d/d logits of mean KL(softmax(logits) || target) / 2: [T, B, M], by hand."""
    y = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    gap = np.log(y) - log_target
    return 0.5 * y * (gap - (y * gap).sum(-1, keepdims=True)) / y[..., 0].size


@pytest.mark.parametrize("name", [name for name in lo.available() if isinstance(lo.load(name), lo.LPG)])
def test_the_lines_of_an_lpgs_card_run_in_an_agent_of_ones_own(name):
    (code,) = re.findall(r"```python\n(.*?)```", lo.card(name), re.DOTALL)
    rng = np.random.default_rng(0)
    steps, num_envs, predictions = 5, 2, lo.load(name).predictions
    shape = (steps, num_envs)
    logits = {"policy": rng.normal(size=(*shape, 3)), "critic": rng.normal(size=(*shape, predictions))}
    action = rng.integers(0, 3, shape)

    def agent(params, obs, action):  # a table with a row for every step
        log_pi = jax.nn.log_softmax(params["policy"])
        log_prob = jnp.take_along_axis(log_pi, action[..., None], -1)[..., 0]
        return log_prob, -(jnp.exp(log_pi) * log_pi).sum(-1), params["critic"]

    params = jax.tree.map(jnp.float32, logits)
    log_prob, _, critic = agent(params, None, jnp.asarray(action))
    scope = {"agent": agent, "params": params, "obs": jnp.zeros(shape), "action": jnp.asarray(action)}
    scope |= {"log_prob": log_prob, "critic": critic, "next_critic": jnp.roll(critic, -1, 0)}
    scope |= {"reward": jnp.float32(rng.normal(size=shape)), "step": 10.0, "lifetime": 100.0}
    scope |= {"terminated": jnp.zeros(shape, bool), "truncated": jnp.zeros(shape, bool)}
    exec(code, scope)
    targets, gradient = scope["targets"], scope["gradient"]
    assert np.abs(gradient["policy"]).max() > 1e-5
    expected = in_numpy(logits["policy"], np.float64(targets.policy), action)
    np.testing.assert_allclose(gradient["policy"], expected, rtol=1e-4, atol=1e-7)
    expected = of_prediction_in_numpy(logits["critic"], np.float64(targets.prediction))
    np.testing.assert_allclose(gradient["critic"], expected, rtol=1e-4, atol=1e-7)


def test_the_card_of_an_lpg_names_the_settings_of_its_search():
    recipe = recipes.lpg_small()
    for part in (
        f"`{recipe.agent.optimizer}` at a learning rate of {recipe.agent.learning_rate}",
        "one epoch, one minibatch",
    ):
        assert part in lo.card("lpg")


@pytest.mark.parametrize("name", lo.available())
def test_where_it_loses_is_read_off_the_tables(name):
    """Counted here from the tables of the card itself: what is printed beside the value of a baseline."""
    _, heading, tested = lo.card(name).partition("## Where it was tested")
    if not heading:
        assert name in CLOSED_FORMS  # which may have no tables
        return
    tested, _, loses = tested.partition("## Where it loses")
    counts = []
    for table in re.findall(r"(?:^\|.*\n?)+", tested, re.MULTILINE):
        head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines())
        own = head.index("return") if "return" in head else head.index("this rule")
        if own + 1 < len(head):
            values = [[float(cell.split()[0]) for cell in row[own : own + 2]] for row in rows]
            counts.append((sum(mine < theirs for mine, theirs in values), len(rows)))
    said = [(int(a), int(b)) for a, b in re.findall(r"in (\d+) of (\d+) rows", loses)]
    assert said == counts
    assert "Nothing is known" not in loses


def test_the_card_of_a_file_says_how_it_was_made(tmp_path):
    recipe = recipes.ta_lpg_small()
    how = provenance(recipe) | {"generation": 20, "generations": 30, "env_steps": 1_234_000_000}
    how["evaluations"] = {"0": {recipe.envs[0]: [1.0, 2.0]}, "20": {recipe.envs[0]: [4.0, None]}}
    how["card"] = {"summary": "A rule.", "loses": "Everywhere.", "tested": [{"world": "dense", "IQM": "0.5"}]}
    lo.save(lo.LPG.create(jax.random.key(0), hidden=4, time_aware=True), tmp_path / "mine.safetensors", how)
    text = lo.card(tmp_path / "mine.safetensors")
    assert text.startswith("# mine\n\nA rule.\n")
    for line in (
        "- recipe: `ta_lpg_small`, by evolution, seed 0",
        "- steps of the search: 20 of 30",
        "- environment steps in all: 1.23e+09",
        "- return at each evaluation: gridworld/small_vrandlife 1.5 at 0, 4 at 20",
        "| world | IQM |\n|---|---|\n| dense | 0.5 |",
        "`Progress` in environment steps",
        "Everywhere.",
    ):
        assert line in text


def test_a_file_without_a_record_has_a_card_too(tmp_path):
    lo.save(lo.DPO(), tmp_path / "mine.safetensors")
    assert "## How it was made" not in lo.card(tmp_path / "mine.safetensors")


@lo.register
class Custom(lo.Objective):
    """Neither mirror learning nor an LPG."""


@pytest.mark.parametrize(
    "record", [{"recipe": "text"}, {"recipe": {"name": "x"}}, {"card": "text"}, {"evaluations": 3, "recipe": {"a": 1}}]
)
@pytest.mark.parametrize("objective", [lo.DPO(), Custom()])
def test_a_card_makes_do_with_whatever_was_recorded(tmp_path, objective, record):
    lo.save(objective, tmp_path / "mine.safetensors", record)
    assert lo.card(tmp_path / "mine.safetensors").startswith("# mine\n")


def test_no_card_without_an_objective():
    with pytest.raises(ValueError, match="did you mean 'dpo'"):
        lo.card("dpoo")


def test_a_card_is_of_a_name_or_a_file():
    with pytest.raises(TypeError, match="expected a name or the path of a file, and got a Mirror: names are a2c, "):
        lo.card(lo.load("dpo"))


def test_the_probe_of_a_drift_is_its_surrogate():
    r, a = np.exp(np.float64(LOG_RATIOS))[:, None], np.float64(ADVANTAGES)
    expected = np.minimum(r * a, np.clip(r, 0.8, 1.2) * a)  # PPO's, of Schulman et al. 2017
    np.testing.assert_allclose(lo.probe(lo.load("ppo")), np.tile(expected.ravel(), 3), rtol=1e-5)


def test_the_probe_of_an_lpg_sees_every_weight():
    lpg = lo.LPG.create(jax.random.key(0), hidden=4, predictions=3, time_aware=True)
    before = np.asarray(lo.probe(lpg))
    assert np.isfinite(before).all()
    for name in ("embed", "kernel", "recurrent", "policy_head", "prediction_head"):
        after = np.asarray(lo.probe(lpg.replace(**{name: 1.5 * getattr(lpg, name)})))
        assert np.abs(after - before).max() > 1e-4, name


def test_what_has_no_probe_is_refused():
    with pytest.raises(TypeError, match="was given a Objective"):
        lo.probe(lo.Objective())


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_give_their_probe_values(name):
    np.testing.assert_allclose(lo.probe(lo.load(name)), lo.record(name)["probe"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_drifts_keep_the_laws(name):
    objective = lo.load(name)
    if isinstance(objective, lo.LPG):
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(objective))
    else:
        lo.verify_drift(objective.drift if isinstance(objective, lo.Mirror) else objective)
