"""Disco103 against inputs and outputs of its authors' own code, which are not part of this repository."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import learned_objectives as lo
from learned_objectives.disco import SHAPES, Disco
from learned_objectives.disco_file import MODULES
from learned_objectives.disco_values import BINS, decoded, inverse_hyperbolic, signed_hyperbolic, two_hot_cross_entropy

ROOT = Path(__file__).parents[1]
FOLDER = next((p for p in (ROOT / "shared" / "disco103", ROOT.parent / "shared" / "disco103") if p.is_dir()), None)
published = pytest.mark.skipif(
    FOLDER is None, reason="the published weights and the reference are in no folder shared/disco103 here"
)
PROGRESS = lo.Progress(0.0, 1.0)
HEADS = ("logits", "y", "z", "aux_pi", "q")


def rule_at_random(seed=0):
    """A Disco of random weights."""
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    leaves = {
        name: jax.random.normal(key, shape) / shape[-2] ** 0.5 if name.endswith("_w") else jnp.full(shape, 0.1)
        for key, (name, shape) in zip(keys, SHAPES.items(), strict=True)
    }
    return Disco(**leaves)


def experience(reference, name):
    """(rollout, logits of the behaviour) of one call."""

    def get(key):
        return jnp.asarray(reference[f"{name}/{key}"])

    heads = {head: get(f"agent/{head}") for head in HEADS}
    heads["target"] = {head: get(f"target/{head}") for head in ("logits", "y", "z", "q")}
    terminal = get("terminal")
    rollout = lo.Rollout(
        obs=jnp.zeros(terminal.shape),
        action=get("actions")[:-1],
        log_prob=jnp.zeros(terminal.shape),
        critic=jax.tree.map(lambda x: x[:-1], heads),
        next_critic=jax.tree.map(lambda x: x[1:], heads),
        reward=get("rewards"),
        terminated=terminal,
        truncated=jnp.zeros_like(terminal),
    )
    return rollout, get("behaviour/logits")[:-1]


@pytest.fixture(scope="module")
def rule():
    return lo.load_disco103(FOLDER / "disco_103.npz")


@pytest.fixture(scope="module")
def reference():
    with np.load(FOLDER / "reference.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def calls(rule, reference):
    """name -> (rollout, values, targets, losses, gradients, state) of both calls of both cases."""
    found, teach = {}, jax.jit(rule.teach)
    for case in "ab":
        state = rule.init_state()
        for call in "01":
            rollout, behaviour = experience(reference, f"{case}/{call}")
            values, _ = rule.values(rollout, behaviour, state)
            targets, state = teach(rollout, behaviour, state)
            terms, value = rule.losses(rollout.critic, rollout, targets)
            found[f"{case}/{call}"] = (rollout, values, targets, (terms, value), state)
    return found


def close(found, expected, relative):
    """Within `relative` of the largest number expected."""
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=relative * np.abs(expected).max())


@published
@pytest.mark.parametrize("name", ["a/0", "a/1", "b/0", "b/1"])
class TestReference:
    def test_values(self, calls, reference, name):
        values = calls[name][1]
        for ours, theirs in {
            "q_target": "q_target",
            "advantage": "adv",
            "normalised_advantage": "normalized_adv",
            "error": "q_td",
            "normalised_error": "normalized_q_td",
        }.items():
            close(getattr(values, ours), reference[f"{name}/out/{theirs}"], 1e-4)
        for ours, theirs in (("over", "qv_adv"), ("normalised_over", "normalized_qv_adv")):
            close(getattr(values, ours), reference[f"{name}/out/{theirs}"][:-1], 1e-4)
        close(decoded(reference[f"{name}/agent/q"]), reference[f"{name}/out/q_value"], 1e-4)

    def test_targets(self, calls, reference, name):
        targets = calls[name][2]
        for ours, theirs in (("policy", "pi"), ("y", "y"), ("z", "z")):
            close(getattr(targets, ours), reference[f"{name}/out/{theirs}"], 1e-4)

    def test_losses(self, calls, rule, reference, name):
        terms, value = calls[name][3]
        close(sum(terms.values()), reference[f"{name}/loss"], 1e-4)
        close(rule.value_weight * value, reference[f"{name}/value_loss"], 1e-4)

    def test_gradients(self, calls, rule, reference, name):
        rollout, _, targets, (terms, value), _ = calls[name]
        heads = {head: jnp.asarray(reference[f"{name}/agent/{head}"]) for head in HEADS}

        def loss(heads):
            at_states = jax.tree.map(lambda x: x[:-1], heads)
            outputs = lo.Outputs(rollout.log_prob, jnp.zeros_like(rollout.log_prob), at_states)
            return rule.loss(outputs, rollout, targets, PROGRESS)[0]

        assert loss(heads) == pytest.approx(float(sum(terms.values()).mean() + 0.2 * value.mean()), rel=1e-5)
        for head, gradient in jax.jit(jax.grad(loss))(heads).items():
            close(gradient, reference[f"{name}/gradient/{head}"], 1e-3)

    def test_state_of_the_lifetime(self, calls, reference, name):
        state = calls[name][4]
        for part in ("hidden", "cell"):
            close(getattr(state, part), reference[f"{name}/rnn_state/['lstm']['meta_rnn_state'].{part}"], 1e-4)


@published
def test_the_second_call_depends_on_the_first(rule, reference):
    rollout, behaviour = experience(reference, "a/1")
    fresh, _ = rule.teach(rollout, behaviour, rule.init_state())
    assert np.abs(fresh.policy - reference["a/1/out/pi"]).max() > 1e-2


@published
def test_the_published_file_has_its_hash_and_no_other_does(tmp_path):
    data = (FOLDER / "disco_103.npz").read_bytes()
    other = tmp_path / "other.npz"
    other.write_bytes(data + b"\0")
    with pytest.raises(lo.ObjectiveFileError, match=r"should be dac840a1\w+ and is \w{64}.*Oh et al. 2025.*disco_rl"):
        lo.load_disco103(other)


def written(path, **changes):
    """The path of a file of zeros in the shape of a rule, with changes."""
    arrays = {
        f"{module}/{kind}": np.zeros(SHAPES[f"{part}_{kind}"], np.float32)
        for part, module in MODULES.items()
        for kind in "wb"
    }
    arrays |= changes
    np.savez(path, **{name: x for name, x in arrays.items() if x is not None})
    return path


def test_any_rule_of_that_shape_is_loaded(tmp_path):
    rule = lo.load_disco(written(tmp_path / "zeros.npz"))
    assert sum(x.size for x in jax.tree.leaves(rule)) == 754_778
    assert len(jax.tree.leaves(rule)) == 42


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lstm/linear/w": None}, "it holds 41 arrays, of 42, and lacks lstm/linear/w"),
        ({"more": np.zeros(1)}, "it holds 43 arrays, of 42, and has more besides"),
        (
            {"lstm/linear/b": np.zeros(3, np.float32)},
            r"lstm/linear/b should be float32 of shape \(256,\), and is float32 of",
        ),
        ({"lstm/linear/b": np.zeros(256)}, r"lstm/linear/b should be float32 of shape \(256,\), and is float64 of"),
    ],
)
def test_a_file_of_another_shape_is_refused(tmp_path, changes, sentence):
    with pytest.raises(lo.ObjectiveFileError, match=f"is no Disco rule: {sentence}"):
        lo.load_disco(written(tmp_path / "other.npz", **changes))


def test_what_is_no_file_of_arrays_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("not a zip")
    for path, sentence in (
        ("text.npz", "is not a complete .npz file"),
        ("", "is a directory"),
        ("no", "There is no file"),
    ):
        with pytest.raises(lo.ObjectiveFileError, match=sentence):
            lo.load_disco(tmp_path / path)


def test_a_rule_is_saved_and_loaded(tmp_path):
    rule = rule_at_random()
    lo.save(rule, tmp_path / "rule.safetensors")
    found = lo.load(tmp_path / "rule.safetensors")
    assert jax.tree.structure(found) == jax.tree.structure(rule)
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(rule), strict=True))


def test_values_are_decoded_from_what_they_are_encoded_in():
    value = jnp.array([-5e4, -3.0, -0.2, 0.0, 0.7, 1.0, 1234.5, 8e4])
    np.testing.assert_allclose(inverse_hyperbolic(signed_hyperbolic(value)), value, rtol=1e-3, atol=1e-6)
    # By hand: h(3) = sqrt(4) - 1 + 0.003 = 1.003, three thousandths of the way from bin 301 to bin 302.
    probabilities = jnp.full(BINS, 1e-9).at[301].set(0.25).at[302].set(0.75)
    expected = -(0.997 * np.log(0.25) + 0.003 * np.log(0.75))
    assert two_hot_cross_entropy(jnp.log(probabilities), jnp.float32(3.0)) == pytest.approx(expected, rel=1e-4)
    assert jnp.isfinite(two_hot_cross_entropy(jnp.zeros((2, BINS)), jnp.array([1e9, -1e9]))).all()


def small_experience(seed=0, steps=5, envs=2, actions=3):
    """A rollout of random heads, and logits of the behaviour."""
    shapes = {
        "logits": (actions,),
        "y": (600,),
        "z": (actions, 600),
        "aux_pi": (actions, actions),
        "q": (actions, BINS),
    }
    key = jax.random.key(seed)

    def heads(number):
        keys = jax.random.split(jax.random.fold_in(key, number), len(shapes))
        return {
            name: jax.random.normal(k, (steps + 1, envs, *s)) for k, (name, s) in zip(keys, shapes.items(), strict=True)
        }

    both = heads(0) | {"target": heads(1)}
    none = jnp.zeros((steps, envs), bool)
    critic, after = (jax.tree.map(lambda x, part=part: x[part], both) for part in (slice(None, -1), slice(1, None)))
    action = jax.random.randint(jax.random.fold_in(key, 3), (steps, envs), 0, actions)
    reward = jax.random.normal(jax.random.fold_in(key, 4), (steps, envs))
    return lo.Rollout(none, action, jnp.zeros((steps, envs)), critic, after, reward, none, none)


@pytest.mark.parametrize("kind", ["terminated", "truncated"])
def test_no_target_sees_across_the_end_of_an_episode(kind):
    rollout = small_experience()
    rollout = rollout._replace(**{kind: getattr(rollout, kind).at[2, 0].set(True)})
    rule = rule_at_random()
    # Moments of a whole rollout reach every step, so that they are far along their life here.
    state = rule.init_state()
    heavy = lo.disco.Moments(jnp.float32(0.0), jnp.float32(1.0), jnp.float32(1.0))
    state = lo.DiscoState(jnp.ones(128), jnp.ones(128), heavy, heavy)
    rule = rule.replace(moment_decay=1.0)

    def pick(reward):
        targets, _ = rule.teach(rollout._replace(reward=reward), rollout.critic["logits"], state)
        return targets.policy[1, 0].sum() + targets.y[1, 0, 0] + targets.q[1, 0]

    slope = jax.jit(jax.grad(pick))(rollout.reward)
    assert (slope[1:3, 0] != 0).all()
    assert (slope[3:, 0] == 0).all()
    assert (slope[:, 1] == 0).all()


def test_a_rule_of_other_shapes_is_refused():
    with pytest.raises(ValueError, match=r"the note_w of this Disco should have shape \(256, 1\), and has \(256,\)\."):
        rule_at_random().replace(note_w=jnp.zeros(256)).validate()


def test_a_rule_has_no_drift():
    with pytest.raises(AttributeError, match="a Disco has no drift, because it is a whole update rule"):
        rule_at_random().drift  # noqa: B018
