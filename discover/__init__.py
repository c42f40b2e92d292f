"""Discover reinforcement-learning objectives: train with them, search for them, compare them.

import discover
result = discover.train("dpo", env="CartPole-v1", total_steps=500_000, num_seeds=8, seed=0)
discover.meta_train(discover.recipes.lpo_minatar(), out="runs/lpo")  # call again: resumes
discover.evaluate(["ppo", "dpo", "runs/lpo"], envs=["Breakout-MinAtar"], total_steps=1_000_000)
"""

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from discover.console import print_line

if TYPE_CHECKING:
    from discover._api import *  # noqa: F403

# `python -m` puts "-m" there until the module runs.
COMMAND_LINE = sys.argv[0] == "-m" or Path(sys.argv[0]).stem == "discover"


def _refuse_shadow() -> None:
    """A user's package may also have the name `envs`, and may come first on the path."""
    spec = importlib.util.find_spec("envs")
    found = Path(spec.origin) if spec and spec.origin else None
    if found is not None and found.resolve().parents[1] == Path(__file__).resolve().parents[1]:
        return
    _refuse(
        f"`import envs` finds {found or 'a folder without code'}, which is not the envs of this toolkit: rename yours, or run "
        "from another directory."
    )


def _refuse(sentence: str) -> None:
    if COMMAND_LINE:
        print_line(f"discover: {sentence}", error=True)
        raise SystemExit(2)  # no traceback
    raise ImportError(sentence)


def start() -> None:
    """Import the public names, which starts JAX. `import discover` calls this, except on the command line, which first checks
    names without JAX. In a run of several processes it joins the others before anything else.
    """
    from discover.devices import processes, runtime

    runtime.use_every_core()
    if COMMAND_LINE and sys.argv[1:2] in (["meta-train"], ["resume"]) and not {"-h", "--help"} & set(sys.argv):
        try:
            place = processes.place_in(sys.argv)
        except ValueError as error:
            _refuse(str(error))
        else:
            if place is not None:
                processes.join(place)
    from discover import _api

    globals().update({name: getattr(_api, name) for name in _api.__all__})


_refuse_shadow()
if not COMMAND_LINE:
    start()
