"""A conformance test that ships with the library: one call tests anyone's environment."""

import inspect
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments.environment import Environment as GymnaxEnvironment
from gymnax.environments.spaces import Box, Discrete

from envs.interface import DEFAULTS, Lifetimes, Named
from envs.plugs import raised
from envs.spaces import MultiDiscrete

MEMBERS = ("reset_env", "step_env", "is_truncated", "observation_space", "action_space", "default_params")
STUBS = ("reset_env", "step_env", "observation_space", "action_space")  # that gymnax's base class does not implement
INFO = ("discount", "terminated", "truncated", "final_observation")


def check(env: Any, params: Any, *, num_steps: int = 20, num_envs: int = 3) -> None:
    """Steps `env` at random under jit, vmap and scan, and raises where the contract is broken.

    The contract: observations float32 of rank >= 1, uint8 of rank 3, or one int32 that numbers a state, as `observation_space`
    says; actions Discrete, MultiDiscrete or Box float32[n]; reward float32[]; flags bool[]; info with a discount that is 0 at
    termination only, and the final observation, which is the observation itself until an end; a state that a scan can carry; a
    time limit `params.max_steps_in_episode` in steps; and the capabilities of `envs.interface`.

    Raises AssertionError with a sentence that names what is broken.
    """
    try:
        _check(env, params, num_steps, num_envs)
    except (AssertionError, jax.errors.JaxRuntimeError):
        raise
    except (Exception, SystemExit) as error:  # whatever a method of the user's raises
        name = getattr(env, "name", type(env).__name__)
        raise AssertionError(f"{name} fails when it is traced: {raised(error)}.") from error


def _check(env: Any, params: Any, num_steps: int, num_envs: int) -> None:
    if fault := missing(env):
        raise AssertionError(f"{fault}.")
    _check_spaces(env, params)
    if any(not hasattr(env, name) for name in (*DEFAULTS, "num_states")):
        env = Named(env, env.name)  # of gymnax's interface alone: its capabilities are the defaults
    _check_types(env, params)
    for fault in capability_faults(env, params):
        _require(False, env, fault)

    # Twenty steps are fast. Nearly all the cost is compilation, and this option halves it.
    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def rollout(key, params):
        keys = jax.random.split(key, num_envs)
        _, state = jax.vmap(env.reset, in_axes=(0, None))(keys, params)
        step_keys = jax.random.split(key, (num_steps, num_envs))
        act = jax.vmap(env.action_space(params).sample)
        step = jax.vmap(env.step, in_axes=(0, 0, 0, None))

        def body(state, keys):
            obs, state, *rest = step(keys, state, act(keys), params)
            return state, (obs, *rest, _usable(env, state, params))

        return jax.lax.scan(body, state, step_keys)[1]

    *values, usable = rollout(jax.random.key(0), params)
    _check_values(env, values)
    _require(bool(usable.all()), env, "gives an action_mask in which no action is valid")
    limit = jnp.ones_like(params.max_steps_in_episode)
    truncated = rollout(jax.random.key(1), params.replace(max_steps_in_episode=limit))[3]
    _require(bool(truncated.all()), env, "does not truncate at params.max_steps_in_episode = 1 step")


def _usable(env: Any, state: Any, params: Any) -> jax.Array:
    """bool[B]: whether every choice has a valid option in each of these states [B]."""
    if env.action_mask is None:
        return jnp.ones(jax.tree.leaves(state)[0].shape[0], bool)
    mask = jax.vmap(env.action_mask, in_axes=(0, None))(state, params)
    ends = np.cumsum(choice_sizes(env.action_space(params)))[:-1]
    return jnp.stack([part.any(-1) for part in jnp.split(mask, ends, axis=-1)]).all(0)


def not_finite(env: Any, *, num_steps: int = 64, num_envs: int = 8) -> str | None:
    """What of an environment is NaN or infinite in some random steps, each environment on a level of its own: "gives rewards that
    are not finite". None if nothing is."""

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def rollout(key):
        def one(key):
            level_key, reset_key, steps_key = jax.random.split(key, 3)
            params = env.default_params if env.sample_level is None else env.sample_level(level_key)
            obs, state = env.reset(reset_key, params)

            def body(carry, key):
                state, seen, rewarded = carry
                action_key, step_key = jax.random.split(key)
                action = env.action_space(params).sample(action_key)
                obs, state, reward, _, _, info = env.step(step_key, state, action, params)
                seen &= jnp.isfinite(obs).all() & jnp.isfinite(info["final_observation"]).all()
                return (state, seen, rewarded & jnp.isfinite(reward)), None

            carry = (state, jnp.isfinite(obs).all(), jnp.bool_(True))
            return jax.lax.scan(body, carry, jax.random.split(steps_key, num_steps))[0][1:]

        return [flags.all() for flags in jax.vmap(one)(jax.random.split(key, num_envs))]

    names = [
        name for name, fine in zip(("observations", "rewards"), rollout(jax.random.key(0)), strict=True) if not fine
    ]
    return f"gives {' and '.join(names)} that are not finite" if names else None


def missing(env: Any) -> str | None:
    """Which methods an environment lacks: "Kite lacks reset_env". One that gymnax's base class only declares is lacking too."""
    lacking = [member for member in MEMBERS if not _has(env, member)]
    return f"{type(env).__name__} lacks {' and '.join(lacking)}" if lacking else None


def _has(env: Any, member: str) -> bool:
    """Properties are not called, because their own AttributeError would pass for a missing member."""
    found = inspect.getattr_static(env, member, None)
    if found is None:
        return hasattr(env, member)  # of another object that this one stands for
    return member not in STUBS or found is not vars(GymnaxEnvironment)[member]


def info_fault(info: Any) -> str | None:
    """What is wrong with the last value of `step_env`."""
    if isinstance(info, Mapping):
        return None
    found = "None" if info is None else f"a {type(info).__name__}"
    return f"returns {found} as info, which must be a dictionary, and may be empty"


def capability_faults(env: Any, params: Any) -> Iterator[str]:
    """What is wrong with the capabilities that an environment states, from tracing alone: "has the lifetimes (1, 2), ..."."""
    for name in ("expensive_reset", "binary_obs"):
        if not isinstance(value := getattr(env, name), bool):
            yield f"has {name} {value!r}, and it must be True or False"
    if not (env.lifetimes is None or isinstance(env.lifetimes, Lifetimes)):
        yield f"has the lifetimes {env.lifetimes!r}, and they must be envs.Lifetimes or None"
    yield from _states_fault(env, params)
    yield from _level_fault(env, params)
    yield from _optimal_return_fault(env, params)
    yield from _mask_fault(env, params)


def _states_fault(env, params):
    with jax.ensure_compile_time_eval():
        space = env.observation_space(params)
    wanted = space.n if isinstance(space, Discrete) else None
    if env.num_states != wanted:
        yield f"has num_states {env.num_states!r}, and by its observation space {space} it must be {wanted}"


def _level_fault(env, params):
    if env.sample_level is None:
        return
    if not callable(env.sample_level):
        yield f"has sample_level {env.sample_level!r}, and it must be a function of a key, or None"
        return
    keys = jax.random.split(jax.random.key(0), 2)
    try:
        levels = jax.eval_shape(jax.vmap(env.sample_level), keys)
    except (Exception, SystemExit) as error:  # whatever the user's function raises
        yield f"has a sample_level that cannot be mapped over keys by jax.vmap ({type(error).__name__}: {_line(error)})"
        return
    found, wanted = _types(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), levels)), _types(params)
    if jax.tree.structure(levels) != jax.tree.structure(params) or found != wanted:
        yield f"draws levels {found} with sample_level, and they must have the structure and types of default_params, {wanted}"


def _optimal_return_fault(env, params):
    if env.optimal_return is None:
        return
    if not callable(env.optimal_return):
        yield f"has optimal_return {env.optimal_return!r}, and it must be a function of the parameters, or None"
        return
    try:
        value = jax.eval_shape(env.optimal_return, params)
    except (Exception, SystemExit) as error:  # whatever the user's function raises
        yield f"has an optimal_return that cannot be traced ({type(error).__name__}: {_line(error)})"
        return
    if _type(value) != "float32[]":
        yield f"gives optimal_return as {_type(value)}, not float32[]"


def _mask_fault(env, params):
    if env.action_mask is None:
        return
    if not callable(env.action_mask):
        yield f"has action_mask {env.action_mask!r}, and it must be a function of a state and the parameters, or None"
        return
    sizes = choice_sizes(env.action_space(params))
    if sizes is None:
        yield "has an action_mask, and its actions are continuous: only those of Discrete and MultiDiscrete spaces can be invalid"
        return
    _, state = jax.eval_shape(env.reset_env, jax.random.key(0), params)
    try:
        found = jax.eval_shape(env.action_mask, state, params)
    except (Exception, SystemExit) as error:  # whatever the user's function raises
        yield f"has an action_mask that cannot be traced ({type(error).__name__}: {_line(error)})"
        return
    if _type(found) != f"bool[{sum(sizes)}]":
        yield f"gives action_mask as {_type(found)}, not bool[{sum(sizes)}], a flag for each action"


def choice_sizes(space: Any) -> tuple[int, ...] | None:
    """Options of each choice of an action: (A,) of a Discrete space; None of a continuous one."""
    if isinstance(space, Discrete):
        return (int(space.n),)
    return space.sizes if isinstance(space, MultiDiscrete) else None


def _types(params):
    """Of a pytree of parameters, by path: ".gust float32[], .limit int32[]"."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return ", ".join(
        f"{jax.tree_util.keystr(path)} {jnp.result_type(x)}{list(jnp.shape(x))}".strip() for path, x in leaves
    )


def _line(error):
    return " ".join(str(error).split())


def _check_spaces(env, params):
    space = env.observation_space(params)
    _require(
        isinstance(space, Discrete)
        or (isinstance(space, Box) and len(space.shape) >= 1 and space.dtype == jnp.float32)
        or (isinstance(space, Box) and len(space.shape) == 3 and space.dtype == jnp.uint8),
        env,
        f"needs a Discrete, a float32 Box of rank >= 1 or a uint8 Box of rank 3 as observation space, not {space}",
    )
    space = env.action_space(params)
    box = isinstance(space, Box) and len(space.shape) == 1 and space.dtype == jnp.float32
    _require(
        box or isinstance(space, Discrete | MultiDiscrete),
        env,
        f"needs a Discrete, a MultiDiscrete or a float32 Box of rank 1 as action space, not {space}",
    )


def _check_types(env, params):
    """Shapes and dtypes, from tracing alone."""
    key = jax.random.key(0)
    obs, state = jax.eval_shape(env.reset, key, params)
    action = jax.eval_shape(env.action_space(params).sample, key)
    inner = jax.eval_shape(env.step_env, key, state, action, params)
    count = len(inner) if isinstance(inner, tuple | list) else 1
    _require(count == 5, env, f"returns {count} values from step_env; the contract is 5")
    if fault := info_fault(inner[4]):
        _require(False, env, f"{fault} (step_env)")
    out = jax.eval_shape(env.step, key, state, action, params)
    _require(len(out) == 6, env, f"returns {len(out)} values from step; the contract is 6")
    next_obs, next_state, reward, terminated, truncated, info = out
    absent = [name for name in INFO if name not in info]
    _require(not absent, env, f"leaves {', '.join(absent)} out of info")

    space = env.observation_space(params)
    seen, kind = ((), "int32") if isinstance(space, Discrete) else (space.shape, jnp.dtype(space.dtype).name)
    for what, value, shape, dtype in (
        ("the observation of reset", obs, seen, kind),
        ("the observation of step", next_obs, seen, kind),
        ("the final observation", info["final_observation"], seen, kind),
        ("reward", reward, (), "float32"),
        ("terminated", terminated, (), "bool"),
        ("truncated", truncated, (), "bool"),
        ("discount", info["discount"], (), "float32"),
    ):
        found, expected = _type(value), f"{dtype}{list(shape)}"
        _require(found == expected, env, f"gives {what} as {found}, not {expected}")
    _check_carry(env, state, next_state)


def _check_carry(env, state, next_state):
    before, after = jax.tree.structure(state), jax.tree.structure(next_state)
    _require(before == after, env, f"turns a state {before} into {after}; a scan cannot carry it")
    leaves = jax.tree_util.tree_leaves_with_path(state)
    for (path, old), new in zip(leaves, jax.tree.leaves(next_state), strict=True):
        name = jax.tree_util.keystr(path)
        old, new = _type(old, weak=True), _type(new, weak=True)
        _require(old == new, env, f"has state{name} {old} at reset and {new} after a step")


def _check_values(env, out):
    """Laws between outputs, over a rollout [num_steps, num_envs]."""
    obs, reward, terminated, truncated, info = jax.tree.map(np.asarray, out)
    final, going_on = info["final_observation"], ~(terminated | truncated)
    for what, value in (("observation", obs), ("final observation", final), ("reward", reward)):
        _require(np.isfinite(value).all(), env, f"gives a {what} that is not finite")
    _require(
        not env.binary_obs or bool(np.isin(obs, (0, 1)).all()),
        env,
        "has binary_obs, and gives an observation with numbers other than 0 and 1",
    )
    _require(
        np.array_equal(final[going_on], obs[going_on]),
        env,
        "gives a final observation that is not the observation, although no episode ended",
    )
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        _require(np.array_equal(info[name], flag), env, f"gives info[{name!r}] unlike the {name} flag")
    _require(
        np.array_equal(info["discount"], 1.0 - terminated),
        env,
        "gives a discount that is not 0 at termination and 1 elsewhere",
    )


def _type(value, weak=False):
    if not isinstance(value, jax.ShapeDtypeStruct):
        return f"a {type(value).__name__}"
    suffix = " (weak)" if weak and value.weak_type else ""
    return f"{value.dtype}{list(value.shape)}{suffix}"


def _require(condition, env, sentence):
    if not condition:
        raise AssertionError(f"{env.name} {sentence}.")
