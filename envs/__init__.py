"""Where agents live: gymnax, Brax, grid-world and probe environments behind one interface.

>>> import envs
>>> env, params = envs.make("Breakout-MinAtar")
>>> obs, state = env.reset(key, params)
>>> obs, state, reward, terminated, truncated, info = env.step(key, state, action, params)

Observations are float32 of rank one or more, or in grid worlds one integer; rewards float32, flags bool. `step` starts a new
episode when the old one ends; `info["final_observation"]` is what was seen just before that.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterable
from typing import Any

import gymnax

from envs import gridworld, levels, probes
from envs.adapt import adapted
from envs.check import check
from envs.freeway import Freeway
from envs.seaquest import Seaquest
from envs.spaces import MultiDiscrete
from envs.uniform import Uniform

__all__ = [
    "MultiDiscrete",
    "Uniform",
    "available",
    "check",
    "gridworld",
    "levels",
    "make",
    "name_of",
    "probes",
    "register",
]

GYMNAX = (
    "CartPole-v1",
    "Pendulum-v1",
    "Acrobot-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "Asterix-MinAtar",
    "Breakout-MinAtar",
    "Freeway-MinAtar",
    "Seaquest-MinAtar",
    "SpaceInvaders-MinAtar",
    "Catch-bsuite",
    "DeepSea-bsuite",
    "MemoryChain-bsuite",
    "UmbrellaChain-bsuite",
    "DiscountingChain-bsuite",
    "SimpleBandit-bsuite",
    "FourRooms-misc",
    "MetaMaze-misc",
    "PointRobot-misc",
    "BernoulliBandit-misc",
    "GaussianBandit-misc",
    "Reacher-misc",
    "Swimmer-misc",
    "Pong-misc",
    "FrozenLake-misc",
)

# gymnax's rules in programs that are cheaper to compile and to step
OWN = {"Freeway-MinAtar": Freeway, "Seaquest-MinAtar": Seaquest}

BRAX = (
    "brax/ant",
    "brax/halfcheetah",
    "brax/hopper",
    "brax/humanoid",
    "brax/humanoidstandup",
    "brax/inverted_pendulum",
    "brax/inverted_double_pendulum",
    "brax/pusher",
    "brax/reacher",
    "brax/walker2d",
)

BACKENDS = ("spring", "generalized", "positional", "mjx")

LEFT_OUT = {
    "MNISTBandit-bsuite": (
        "it downloads MNIST when it is built; with a network, "
        "envs.Uniform(gymnax.make('MNISTBandit-bsuite')[0]) builds it"
    ),
    "brax/swimmer": (
        "brax 0.14 gives it the generalized and mjx backends only, and calls "
        "jnp.clip(a_min=...), which jax 0.10 removed"
    ),
    "brax/fast": "it is a stand-in for brax's own tests, without physics",
}

# gymnax hashes an environment by identity and takes it as a static argument of jit: a second
# object for the same environment would compile everything a second time.
_built: dict[Any, Any] = {}


_registered: dict[str, Callable[..., Any]] = {}

_given: dict[int, tuple[str, Any]] = {}  # objects that came in the place of a name


def available() -> tuple[str, ...]:
    """Names that `make` takes. Brax names may end in a backend: "brax/ant@positional"."""
    grids = (f"gridworld/{name}" for name in levels.available())
    return (*GYMNAX, *BRAX, *(str(name) for name in probes.PROBES), *grids, *_registered)


def register(name: str, build: Callable[..., Any]) -> None:
    """Let `make` know an environment of your own, and with it `train`, `evaluate` and recipes.

    Args:
      name: not taken, and not that of a family ("brax/", "gridworld/").
      build: options -> an environment of the gymnax 1.0 interface, or an environment itself. Called once for each set of options.
        Dict and Tuple spaces, scalars and matrices are adapted by `Uniform`; see `check` for the rest of the contract.

    Registering a name of yours again replaces what it stands for. Raises ValueError for a name that is taken.
    """
    taken = name in LEFT_OUT or (name in available() and name not in _registered)
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, and is {name!r}.")
    if not name or name.startswith(("brax/", "gridworld/")) or taken:
        raise ValueError(f"the name {name!r} is taken, or belongs to a family of ours: choose another.")
    if not callable(build):
        if not hasattr(build, "step_env"):
            raise ValueError(f"build must return an environment, or be one, and is a {type(build).__name__}.")
        instance = build
        build = lambda: instance
    _registered[name] = build
    for key in [key for key in _built if key[0] == name]:
        del _built[key]


def name_of(env: Any) -> str:
    """The name of an environment: of a name itself, of an object the one under which it is registered here, once for each object.

    Raises TypeError for what is neither.
    """
    if isinstance(env, str):
        return env
    if not hasattr(env, "step_env") or isinstance(env, type):
        raise TypeError(
            f"expected the name of an environment, or an environment of gymnax's interface, and got {env!r}."
        )
    if id(env) not in _given:
        name, number = str(getattr(env, "name", type(env).__name__)), 1
        while name in available() or name in LEFT_OUT:
            number += 1
            name = f"{env.name} ({number})"
        register(name, env)
        _given[id(env)] = name, env  # held, so that no other object gets its id
    return _given[id(env)][0]


def make(name: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Environment and default parameters; the same name and options give the same object.

    Options go to the environment. Grid worlds ("gridworld/all") take `actions` and `observation`, see `envs.gridworld`; their
    parameters are one level, and `envs.levels` samples others. Brax takes `backend` ("spring"; also spelled
    "brax/ant@spring"), `episode_length` (1000) and `pool_size` (64, see `envs.brax`).

    Raises ValueError, in a sentence, where the name or the backend is unknown or left out.
    """
    name, kwargs = _normalise(name_of(name), kwargs)
    key = name, tuple(sorted((option, _frozen(value)) for option, value in kwargs.items()))
    if key not in _built:
        _built[key] = _build(name, kwargs)
    return _built[key], _built[key].default_params


def _build(name, kwargs):
    if name in _registered:
        env = _registered[name](**kwargs)
        if not hasattr(env, "step_env"):
            raise ValueError(f"{name!r} was registered with what builds a {type(env).__name__}, and no environment.")
        return adapted(env, name)
    if name in probes.PROBES:
        return probes.PROBES[name](**kwargs)
    if name.startswith("gridworld/"):
        return _grid(name.removeprefix("gridworld/"), **kwargs)
    if name.startswith("brax/"):
        from envs.brax import Brax  # brax takes seconds to import, and few runs need it

        task, backend = name.removeprefix("brax/").split("@")
        return Brax(task, backend=backend, **kwargs)
    env = OWN[name](**kwargs) if name in OWN else gymnax.make(name, **kwargs)[0]
    return Uniform(env, name=name)


def _grid(distribution: str, *, actions: str = "cross", observation: str | None = None) -> gridworld.GridWorld:
    env = levels.distribution(distribution).env
    if observation == "index" and distribution in levels.SHUFFLED:
        raise ValueError(
            f"objects move about in 'gridworld/{distribution}', and an index cannot say where: use 'planes'."
        )
    return dataclasses.replace(env, actions=actions, observation=observation or env.observation)


def _normalise(name: str, kwargs: dict) -> tuple[str, dict]:
    """The full name ("brax/ant@spring") and the options that are left."""
    if not name.startswith("brax/"):
        _require_known(name)
        return name, kwargs
    base, _, suffix = name.partition("@")
    _require_known(base)
    kwargs = dict(kwargs)
    option = kwargs.pop("backend", None)
    if suffix and option and suffix != option:
        raise ValueError(f"{name!r} and backend={option!r} ask for two different backends.")
    backend = suffix or option or BACKENDS[0]
    if backend not in BACKENDS:
        raise ValueError(
            f"Unknown backend {backend!r} for {base!r}{_did_you_mean(backend, BACKENDS)} "
            f"The backends are {', '.join(BACKENDS)}."
        )
    return f"{base}@{backend}", kwargs


def _require_known(name: str) -> None:
    if name in LEFT_OUT:
        raise ValueError(f"{name!r} is left out: {LEFT_OUT[name]}.")
    if name not in available():
        raise ValueError(
            f"Unknown environment {name!r}{_did_you_mean(name, available())} envs.available() lists them all."
        )


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    lower = {name.lower(): name for name in known}
    word = word.lower()
    inside = [name for name in lower if len(word) > 2 and word in name]
    for candidates, cutoff in ((lower, 0.8), (inside, 0.0), (lower, 0.6)):
        if near := difflib.get_close_matches(word, candidates, n=1, cutoff=cutoff):
            return f"; did you mean {lower[near[0]]!r}?"
    return "."


def _frozen(value: Any) -> Any:
    """A hashable stand-in; options that cannot be compared by value go by identity."""
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value
