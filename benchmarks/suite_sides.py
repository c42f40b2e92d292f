"""A step of each suite of environments, ours and theirs, for `benchmarks.suites`."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

import envs

Side = tuple[
    Callable[..., Any], Callable[..., Any]
]  # keys -> states; (states, actions, keys) -> states, what agents read


def mapped(start: Callable[..., Any], step: Callable[..., Any]) -> Side:
    return jax.vmap(start), jax.vmap(step)


def ours(name: str) -> Side:
    env, params = envs.make(name)

    def step(state, action, key):
        obs, state, reward, terminated, _ = env.step_env(key, state, action, params)
        return state, (obs, reward, terminated, env.is_truncated(state, params))

    return mapped(lambda key: env.reset_env(key, params)[1], step)


def craftax(task: str, *, auto_reset: bool) -> Side:
    from craftax.craftax_env import make_craftax_env_from_name

    env = make_craftax_env_from_name(f"Craftax-{task}-v1", auto_reset=auto_reset)
    params = env.default_params

    def step(state, action, key):
        obs, state, reward, done, _ = env.step(key, state, action, params)
        return state, (obs, reward, done)

    return mapped(lambda key: env.reset(key, params)[1], step)


def jumanji(task: str, *, auto_reset: bool, stoa: bool = False) -> Side:
    from jumanji import make
    from jumanji.wrappers import VmapAutoResetWrapper

    from envs.suites.jumanji import registered

    env = make(registered(task))
    if stoa:
        from stoa.env_adapters.jumanji import JumanjiToStoa

        return of_stoa(JumanjiToStoa(env))

    def read(state, timestep):
        return state, (timestep.observation, timestep.reward, timestep.discount, timestep.last())

    if auto_reset:
        env = VmapAutoResetWrapper(env)
        return lambda keys: env.reset(keys)[0], lambda states, actions, keys: read(*env.step(states, actions))
    return mapped(lambda key: env.reset(key)[0], lambda state, action, key: read(*env.step(state, action)))


def xminigrid(task: str, *, auto_reset: bool, stoa: bool = False) -> Side:
    from xminigrid import make
    from xminigrid.wrappers import GymAutoResetWrapper

    env, params = make(f"MiniGrid-{task}")
    env = GymAutoResetWrapper(env) if auto_reset else env
    if stoa:
        from stoa.env_adapters.xminigrid import XMiniGridToStoa

        return of_stoa(XMiniGridToStoa(env, params))

    def step(state, action, key):
        timestep = env.step(params, state, action)
        return timestep, (timestep.observation, timestep.reward, timestep.discount, timestep.last())

    return mapped(lambda key: env.reset(params, key), step)


def navix(task: str, *, auto_reset: bool, stoa: bool = False) -> Side:
    from navix import make

    env = make(f"Navix-{task}-v0")
    if stoa:
        from stoa.env_adapters.navix import NavixToStoa

        return of_stoa(NavixToStoa(env))

    def step(state, action, key):
        timestep = env.step(state, action) if auto_reset else env._step(state, action)
        return timestep, (timestep.observation, timestep.reward, timestep.step_type)

    return mapped(env.reset, step)


def of_stoa(env: Any) -> Side:
    def step(state, action, key):
        state, timestep = env.step(state, action)
        return state, (timestep.observation, timestep.reward, timestep.discount, timestep.step_type)

    return mapped(lambda key: env.reset(key)[0], step)


SUITES = {"craftax": craftax, "jumanji": jumanji, "xminigrid": xminigrid, "navix": navix}
