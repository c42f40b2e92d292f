"""Discover reinforcement-learning objectives: train with them, search for them, compare them.

import discover
result = discover.train("dpo", env="CartPole-v1", total_steps=500_000, num_seeds=8, seed=0)
discover.meta_train(discover.recipes.lpo_minatar(), out="runs/lpo")  # call again: resumes
discover.evaluate(["ppo", "dpo", "runs/lpo"], envs=["Breakout-MinAtar"], total_steps=1_000_000)
"""

import importlib.util
import sys
from pathlib import Path

from discover import processes, runtime
from discover.console import tell

runtime.use_every_core()


def _refuse_shadow() -> None:
    """`envs` is a likely name for a user's own package, and theirs may come first on the path."""
    spec = importlib.util.find_spec("envs")
    found = Path(spec.origin) if spec and spec.origin else None
    if found is not None and found.resolve().parents[1] == Path(__file__).resolve().parents[1]:
        return
    _refuse(
        f"`import envs` finds {found or 'a folder without code'}, which is not the envs of this toolkit: rename yours, or run "
        "from another directory."
    )


def _refuse(sentence: str) -> None:
    if _is_command_line():
        tell(f"discover: {sentence}", error=True)
        raise SystemExit(2)  # no traceback
    raise ImportError(sentence)


def _is_command_line() -> bool:
    return sys.argv[0] == "-m" or Path(sys.argv[0]).stem == "discover"


def _meet_others() -> None:
    """Whoever uses this as a library calls `jax.distributed.initialize` before importing it."""
    if _is_command_line() and sys.argv[1:2] == ["meta-train"] and not {"-h", "--help"} & set(sys.argv):
        try:
            place = processes.place_in(sys.argv)
        except ValueError as error:
            _refuse(str(error))
        else:
            if place is not None:
                processes.join(place)


_refuse_shadow()
_meet_others()

from discover import plots, recipes  # noqa: E402
from discover.agent import Agent, AgentConfig, Task  # noqa: E402
from discover.comparison import Comparison  # noqa: E402
from discover.evaluate import evaluate  # noqa: E402
from discover.evolution import EvolutionConfig  # noqa: E402
from discover.recipe import Recipe  # noqa: E402
from discover.run import last_state, meta_train  # noqa: E402
from discover.setups import LossConfig, usual_setup  # noqa: E402
from discover.train import TrainResult, train  # noqa: E402

__all__ = [
    "Agent",
    "AgentConfig",
    "Comparison",
    "EvolutionConfig",
    "LossConfig",
    "Recipe",
    "Task",
    "TrainResult",
    "evaluate",
    "last_state",
    "meta_train",
    "plots",
    "recipes",
    "train",
    "usual_setup",
]
