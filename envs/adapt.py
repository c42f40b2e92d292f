"""An environment of a user's own, built, checked and adapted when it is first made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from gymnax.environments.spaces import Box, Discrete

from envs.check import capability_faults, info_fault, missing
from envs.interface import Capabilities, Named
from envs.plugs import raised, where
from envs.spaces import MultiDiscrete
from envs.uniform import Uniform


def built(found: Any, name: str, options: Mapping[str, Any]) -> Any:
    """The environment that a class, a function or an instance stands for, adapted.

    Raises ValueError, in a sentence with the file and the line of `found`, where it is not an environment or cannot be built.
    """
    if hasattr(found, "step_env") and not isinstance(found, type):
        if options:
            raise ValueError(
                f"{name!r} ({where(found)}) is an instance, and takes no options, such as {next(iter(options))}."
            )
        return adapted(found, name)
    if not callable(found):
        raise ValueError(
            f"{name!r} is {_a(found)}, and must be an environment: a class, a function that returns one, or an instance."
        )
    if isinstance(found, type) and not hasattr(found, "step_env"):
        raise ValueError(f"{where(found)}: {name!r} is a class without step_env: derive it from envs.Environment.")
    try:
        env = found(**options)
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise ValueError(f"{name!r} ({where(found)}) cannot be built: {raised(error)}") from error
    if not hasattr(env, "step_env"):
        raise ValueError(f"{where(found)}: {name!r} returns {_a(env)}, and must return an environment.")
    return adapted(env, name)


def adapted(env: Any, name: str) -> Any:
    """The environment with the capabilities and the types that `discover` relies on, under this name.

    It is in `Uniform` where its spaces need that, or where it is gymnax's own, whose types differ; and in `Named` where it lacks
    the capabilities or has another name. Its functions are traced once, and nothing is run.
    Raises ValueError, in a sentence with the file and the line of its class, where it does not keep the contract.
    """
    try:
        return _adapted(env, name)
    except ValueError as error:
        raise ValueError(f"{where(env)}: {error}") from error
    except (Exception, SystemExit) as error:  # whatever a method of the user's raises
        raise ValueError(f"{name!r} ({where(env)}) fails when it is traced: {raised(error)}") from error


def _adapted(env: Any, name: str) -> Any:
    params = _params(env, name)
    if not _is_plain(env, params) or type(env).__module__.startswith("gymnax."):
        _require_limit(params, name)
        env = Uniform(env, name=name)
    elif not isinstance(env, Capabilities):
        env = Named(env, name)
    _check_types(env, name)
    for fault in capability_faults(env, env.default_params):
        raise ValueError(f"{name!r} {fault}.")
    return env if env.name == name else Named(env, name)


def _is_plain(env: Any, params: Any) -> bool:
    seen, acts = _spaces(env, params)
    flat = isinstance(acts, Discrete | MultiDiscrete) or (
        isinstance(acts, Box) and len(acts.shape) == 1 and acts.shape[0] > 0
    )
    return isinstance(seen, Discrete | Box) and len(seen.shape or (1,)) != 2 and flat


def _params(env: Any, name: str) -> Any:
    """The default parameters. ValueError where they are None, or where the environment lacks a member of its interface."""
    if isinstance(env, type):
        raise ValueError(f"{name!r} is the class {env.__name__}, and must be an instance of it: {env.__name__}().")
    if fault := missing(env):
        raise ValueError(f"{fault}: see gymnax's Environment for what it needs.")
    params = env.default_params
    if params is None:
        raise ValueError(f"default_params of {name!r} is None, and must be its parameters: a pytree of arrays.")
    return params


def _spaces(env: Any, params: Any) -> tuple[Any, Any]:
    """Of observations and of actions."""
    with jax.ensure_compile_time_eval():
        return _written(env, "observation_space", env.observation_space, params), _written(
            env, "action_space", env.action_space, params
        )


def _written(env: Any, method: str, call: Callable[..., Any], *args: Any) -> Any:
    """`call(*args)`. ValueError where the method is not written yet."""
    try:
        return call(*args)
    except NotImplementedError as error:
        raise ValueError(f"{method} of {type(env).__name__} is not implemented ({raised(error)}): write it.") from error


def _require_limit(params: Any, name: str) -> None:
    if not hasattr(params, "max_steps_in_episode"):
        raise ValueError(f"default_params of {name!r} has no max_steps_in_episode, the time limit in steps: add it.")


def _check_types(env: Any, name: str) -> None:
    key, params = jax.random.key(0), env.default_params
    inner = env.env if isinstance(env, Uniform) else env
    (seen, _), (_, acts) = _spaces(env, params), _spaces(inner, params)
    obs, state = _returned(inner, name, "reset_env", "observation, state", key, params)
    action = jax.eval_shape(acts.sample, key)
    wanted = "observation, state, reward, terminated, info"
    _, after, reward, terminated, info = _returned(inner, name, "step_env", wanted, key, state, action, params)
    if fault := info_fault(info):
        raise ValueError(f"step_env of {name!r} {fault}.")
    _check_limit(inner, name, state, params)
    if jax.tree.structure(state) != jax.tree.structure(after):
        raise ValueError(
            f"step_env of {name!r} returns a state of another structure than reset_env: {_type_of(after)}, and it must be "
            f"{_type_of(state)}."
        )
    if not isinstance(env, Uniform):
        _require_same_types(state, after, name)
    if reward.shape != () or terminated.shape != ():
        raise ValueError(
            f"step_env of {name!r} returns reward {_type_of(reward)} and terminated {_type_of(terminated)}: both must be scalars."
        )
    if not jnp.issubdtype(terminated.dtype, jnp.bool_):
        raise ValueError(f"step_env of {name!r} returns terminated {_type_of(terminated)}, and it must be bool[].")
    obs, _ = jax.eval_shape(env.reset_env, key, params)
    if not isinstance(seen, Discrete) and tuple(obs.shape) != tuple(seen.shape):
        raise ValueError(
            f"{name!r} returns observations {_type_of(obs)}, and its observation_space has the shape {tuple(seen.shape)}: they "
            "must be the same."
        )


def _check_limit(env: Any, name: str, state: Any, params: Any) -> None:
    try:
        jax.eval_shape(env.is_truncated, state, params)
    except AttributeError as error:
        raise ValueError(
            f"is_truncated of {name!r} fails ({error}): gymnax's compares state.time with params.max_steps_in_episode. Carry the "
            "time in the state, or override is_truncated."
        ) from None


def _returned(env: Any, name: str, method: str, wanted: str, *args: Any) -> tuple:
    """The shapes of what a method returns. ValueError where it does not return as many values as are wanted."""
    out, count = _written(env, method, jax.eval_shape, getattr(env, method), *args), wanted.count(",") + 1
    found = len(out) if isinstance(out, tuple | list) else 1
    if found != count:
        limit = " `is_truncated(state, params)` says whether the time limit is reached." if method == "step_env" else ""
        values = f"{found} values" if found > 1 else "None" if out is None else "one value"
        raise ValueError(f"{method} of {name!r} returns {values}, and must return {count}: {wanted}.{limit}")
    return tuple(out)


def _require_same_types(state: Any, after: Any, name: str) -> None:
    for path, (before, now) in jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda x, y: (x, y), state, after), is_leaf=lambda pair: isinstance(pair, tuple)
    ):
        if (before.shape, before.dtype) != (now.shape, now.dtype):
            raise ValueError(
                f"the state of {name!r} changes its type in step_env, at {jax.tree_util.keystr(path)}: {_type_of(before)} from "
                f"reset_env, {_type_of(now)} after a step. They must be the same."
            )


def _a(value: Any) -> str:
    """A value by its type: "a tuple", "an int"."""
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _type_of(tree: Any) -> str:
    """Types of a tree of shapes: float32[3] for one."""
    leaves = [f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(tree)]
    return leaves[0] if len(leaves) == 1 else f"({', '.join(leaves)})"
