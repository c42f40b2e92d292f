"""The public names of `discover`."""

from discover import plots, recipes
from discover.agent import Agent, AgentConfig, Task
from discover.comparison import Comparison
from discover.evaluate import evaluate
from discover.evolution import EvolutionConfig
from discover.recipe import Recipe
from discover.run import last_state, meta_train
from discover.setups import LossConfig, usual_setup
from discover.train import TrainResult, train

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
