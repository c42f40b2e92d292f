"""Environments: gymnax, Brax and other suites, grid worlds and probes behind one interface.

>>> import envs
>>> env, params = envs.make("Breakout-MinAtar")
>>> obs, state = env.reset(key, params)
>>> obs, state, reward, terminated, truncated, info = env.step(key, state, action, params)

Observations are float32 of rank one or more, or in grid worlds one integer; rewards float32, flags bool. `step` starts a new
episode when the old one ends; `info["final_observation"]` is what was seen just before that.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from envs import deferred  # noqa: F401 (before gymnax)

# isort: split
import gymnax

from envs import gridworld, levels, plugs, probes, suites
from envs.adapt import built
from envs.check import check
from envs.interface import Environment, Lifetimes
from envs.minatar.freeway import Freeway
from envs.minatar.seaquest import Seaquest
from envs.spaces import MultiDiscrete
from envs.spelling import did_you_mean
from envs.uniform import Uniform

__all__ = [
    "Environment",
    "Lifetimes",
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
    "suites",
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

LEFT_OUT = {
    "MNISTBandit-bsuite": (
        "it downloads MNIST when it is built; with a network, "
        "envs.Uniform(gymnax.make('MNISTBandit-bsuite')[0]) builds it"
    ),
    **suites.left_out(),
}

# gymnax hashes an environment by identity and takes it as a static argument of jit: a second
# object for the same environment would compile everything a second time.
_built: dict[Any, Any] = {}


_registered: dict[str, Any] = {}

_given: dict[int, tuple[str, Any]] = {}  # objects that came in the place of a name


def available() -> tuple[str, ...]:
    """Names that `make` takes: ours, those that are registered, and those that installed packages announce. Brax names may end in
    a backend: "brax/ant@positional"."""
    return (*_ours(), *_registered, *(name for name in plugs.announced("envs") if not _is_ours(name)))


def _ours() -> tuple[str, ...]:
    grids = (f"gridworld/{name}" for name in levels.available())
    return (*GYMNAX, *suites.names(), *(str(name) for name in probes.PROBES), *grids)


def _is_ours(name: str) -> bool:
    """Whether a name is that of an environment of ours, or belongs to a family of ours."""
    return _is_of_family(name) or name in _ours() or name in LEFT_OUT


def _is_of_family(name: str) -> bool:
    return name.startswith("gridworld/") or suites.of(name) is not None


def register(name: str, build: Callable[..., Any], *, replace: bool = False) -> None:
    """Let `make` know an environment of your own, and with it `train`, `evaluate` and recipes.

    Args:
      name: not taken, not that of a family ("brax/", "gridworld/"), and not a path ("kites:Kite"), which `make` takes anyway.
      build: options -> an environment of the gymnax 1.0 interface, such as its class; or an environment itself. Called once for
        each set of options. Dict and Tuple spaces, scalars and matrices are adapted by `Uniform`; see `check` for the rest of the
        contract, and `Environment` for the capabilities.
      replace: whether a name of yours may stand for another environment from now on. The same class, function or instance may
        always be registered again, also where a notebook's cell defines it again.

    Raises ValueError for a name that is taken.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, and is {name!r}.")
    if not name or _is_ours(name):
        raise ValueError(f"the name {name!r} is taken, or belongs to a family of ours: choose another.")
    if plugs.is_path(name) or name in plugs.announced("envs"):
        raise ValueError(
            f"the name {name!r} is a path, or one that an installed package announces, and stands for that: choose another."
        )
    if not callable(build) and not hasattr(build, "step_env"):
        raise ValueError(f"build must return an environment, or be one, and is a {type(build).__name__}.")
    if not replace and name in _registered and not plugs.same(_registered[name], build):
        raise ValueError(
            f"two environments have the name {name!r}: {plugs.where(_registered[name])}, and {plugs.where(build)}. Choose "
            "another name for one of them, or replace the first: envs.register(..., replace=True)."
        )
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
        base = str(getattr(env, "name", type(env).__name__))
        if _is_of_family(base):
            base = type(env).__name__
        name, number = base, 1
        while name in available() or _is_ours(name) or plugs.is_path(name):
            number += 1
            name = f"{base} ({number})"
        register(name, env)
        _given[id(env)] = name, env  # held, so that no other object gets its id
    return _given[id(env)][0]


def make(name: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Environment and default parameters; the same name and options give the same object, whose `name` it is.

    A path, "kites:Kite", names a class, a function that builds an environment, or an instance, in a module of the working
    directory or of an installed package. Packages may announce short names for paths: see `envs.plugs`.

    Options go to the environment. Grid worlds ("gridworld/all") take `actions` and `observation`, see `envs.gridworld`; their
    parameters are one level, and `envs.levels` samples others. Brax takes `backend` ("spring"; also spelled
    "brax/ant@spring"), `episode_length` (1000) and `pool_size` (64, see `envs.suites.brax`). Other suites ("jumanji/Snake") take
    the options of their own constructors.

    Raises ValueError, in a sentence, where the name or the backend is unknown or left out, and where what a path names cannot be
    imported, is not an environment, or does not keep the contract.
    """
    name, kwargs = _normalise(name_of(name), kwargs)
    key = name, tuple(sorted((option, _frozen(value)) for option, value in kwargs.items()))
    if key not in _built:
        _built[key] = _build(name, kwargs)
    return _built[key], _built[key].default_params


def code_digest(name: str) -> str | None:
    """A digest of the code of a user's environment, by name; None for an environment of ours."""
    return None if (own := _own(name)) is None else plugs.code_digest(own)


def _build(name, kwargs):
    if (own := _own(name)) is not None:
        return built(own, name, kwargs)
    if name in probes.PROBES:
        return probes.PROBES[name](**kwargs)
    if name.startswith("gridworld/"):
        return _grid(name.removeprefix("gridworld/"), **kwargs)
    if (suite := suites.of(name)) is not None:
        return suite.build(name, kwargs)
    env = OWN[name](**kwargs) if name in OWN else gymnax.make(name, **kwargs)[0]
    return Uniform(env, name=name, binary_obs=name.endswith("-MinAtar"))


def _own(name: str) -> Any | None:
    """What a user's name stands for: registered, by path, or announced by a package. None for a name of ours."""
    if name in _registered:
        return _registered[name]
    if not _is_ours(name):
        return plugs.find("envs", name)
    if rivals := plugs.rivals("envs", name):
        raise ValueError(
            f"{name!r} is an environment of ours, and an installed package announces {rivals[0]} by the same name: remove the "
            "package, or its announcement."
        )
    return None


def _grid(distribution: str, *, actions: str = "cross", observation: str | None = None) -> gridworld.GridWorld:
    env = levels.distribution(distribution).env
    if observation == "index" and distribution in levels.SHUFFLED:
        raise ValueError(
            f"objects move about in 'gridworld/{distribution}', and an index cannot say where: use 'planes'."
        )
    return dataclasses.replace(env, actions=actions, observation=observation or env.observation)


def _normalise(name: str, kwargs: dict) -> tuple[str, dict]:
    """The full name ("brax/ant@spring") and the options that are left."""
    if (suite := suites.of(name)) is None:
        _require_known(name)
        return name, kwargs
    _require_known(suite.base(name))
    return suite.full_name(name, kwargs)


def _require_known(name: str) -> None:
    if why := (LEFT_OUT | suites.left_out()).get(name):
        raise ValueError(f"{name!r} is left out: {why}.")
    own = plugs.is_path(name) or name in _registered
    if not own and name not in _ours() and name not in plugs.announced("envs"):
        raise ValueError(
            f"Unknown environment {name!r}{did_you_mean(name, available())} envs.available() lists them all; module:Name is the "
            "form for one of your own."
        )


def _frozen(value: Any) -> Any:
    """A hashable stand-in; options that cannot be compared by value go by identity."""
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value
