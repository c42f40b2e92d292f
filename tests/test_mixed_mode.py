"""Forward over reverse mode through gradient steps has the derivatives of reverse over reverse mode."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_metagrad as tm

from discover.agents.agent import Agent
from discover.agents.mixed_mode import MixedModeLearner, differentiated, mixed_mode_grad
from discover.searches.metagrad import MetaGrad, MetaGradConfig
from discover.searches.problem import Problem
from discover.searches.whole_life import WholeLifeConfig


def loss(theta, eta, batch):
    """Not symmetric in anything, with whole numbers among its inputs and what is logged."""
    x, index = batch
    hidden = jnp.tanh(x[index] @ theta["w"] + eta["b"])
    out = (hidden * theta["v"]).sum(-1)
    return (jnp.exp(-eta["s"] * out) + out**3).mean(), {"square": (out * eta["s"] ** 2).mean(), "rows": index.sum()}


def after_steps(gradient, eta, theta, batch):
    """A number that depends on the parameters after three steps, and on all that they logged."""
    logged = 0.0
    for _ in range(3):
        slope, aux = gradient(theta, eta, batch)
        theta = jax.tree.map(lambda p, g: p - 0.3 * g, theta, slope)
        logged = logged + jnp.sin(aux["square"]) + 0.0 * aux["rows"]
    return sum((x**2).sum() for x in jax.tree.leaves(theta)) + logged


def test_it_has_the_gradients_of_reverse_over_reverse_mode():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        theta = {"w": jnp.asarray(rng.normal(size=(4, 3))), "v": jnp.asarray(rng.normal(size=3))}
        eta = {"b": jnp.asarray(rng.normal(size=3)), "s": jnp.asarray(0.7)}
        batch = jnp.asarray(rng.normal(size=(6, 4))), jnp.array([0, 2, 5, 5])
        plain = jax.grad(loss, has_aux=True)
        both = [
            jax.value_and_grad(lambda e, t, x, g=g: after_steps(g, e, t, (x, batch[1])), argnums=(0, 1, 2))(
                eta, theta, batch[0]
            )
            for g in (mixed_mode_grad(loss), plain)
        ]
        vmapped = jax.vmap(jax.grad(lambda e, t: after_steps(mixed_mode_grad(loss), e, t, batch)), in_axes=(0, None))
        stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), eta)
        lanes = vmapped(stacked, theta)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13), *both)
    np.testing.assert_allclose(np.asarray(lanes["b"])[0], both[1][1][0]["b"], rtol=1e-10)
    assert np.abs(np.asarray(both[0][1][2])).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lpo", "gru"])
def test_a_window_has_the_same_meta_gradient(name):
    """Also through what an LPG logs, which its regulariser reads, through epochs of Adam, and through minibatches."""
    config = dataclasses.replace(tm.ADAM, num_minibatches=2)
    objective = tm.OBJECTIVES[name]()
    agent = Agent(tm.ENV, config, objective.critic_width)
    metas = [
        MetaGrad(MetaGradConfig(members=1, chunk=1, window=2), differentiated(agent, mode))
        for mode in ("mixed", "reverse")
    ]
    assert isinstance(metas[0].agent.learner, MixedModeLearner)
    assert metas[1].agent is agent
    member = tm.born(metas[0], tm.ENV.level())
    with jax.enable_x64(True):
        (_, found), (_, expected) = (tm.window(meta)(tm.wide(objective), tm.wide(member)) for meta in metas)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-11), found, expected)
    assert max(np.abs(np.asarray(x)).max() for x in jax.tree.leaves(found)) > 1e-5


@pytest.mark.parametrize(("mode", "kind"), [("mixed", "MixedModeLearner"), ("reverse", "Learner")])
def test_the_searches_use_it_where_asked(mode, kind):
    recipe = dataclasses.replace(tm.SEVERAL, search=dataclasses.replace(tm.SEVERAL.search, differentiation=mode))
    worlds = recipe.search.build(Problem(recipe)).worlds
    assert {type(world.meta.agent.learner).__name__ for world in worlds} == {kind}
    recipe = dataclasses.replace(recipe, search=WholeLifeConfig(lives=2, differentiation=mode))
    lives = recipe.search.build(Problem(recipe)).lives
    assert {type(life.agent.learner).__name__ for life in lives} == {kind}


@pytest.mark.parametrize("config", [MetaGradConfig, WholeLifeConfig])
def test_an_unknown_way_of_differentiation_is_refused(config):
    with pytest.raises(ValueError, match=r"search\.differentiation must be 'reverse' or 'mixed', and is 'forward'"):
        config(differentiation="forward")
