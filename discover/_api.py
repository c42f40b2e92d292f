"""The public names of `discover`."""

from discover import plots
from discover.agents.agent import Agent, AgentConfig, Task
from discover.agents.setups import LossConfig, usual_setup
from discover.agents.trained import TrainResult
from discover.evaluation.evaluate import evaluate
from discover.evaluation.train import train
from discover.results.comparison import Comparison
from discover.runs import recipes
from discover.runs.loop import last_state, meta_train
from discover.searches.config import SearchConfig
from discover.searches.evolution import EvolutionConfig
from discover.searches.families import LPGConfig, LPOConfig
from discover.searches.family import ObjectiveConfig
from discover.searches.metagrad import MetaGradConfig
from discover.searches.problem import Problem
from discover.searches.recipe import Recipe
from discover.searches.rolling_search import RollingConfig
from discover.searches.search import Search
from discover.searches.whole_life import WholeLifeConfig

__all__ = [
    "Agent",
    "AgentConfig",
    "Comparison",
    "EvolutionConfig",
    "LPGConfig",
    "LPOConfig",
    "LossConfig",
    "MetaGradConfig",
    "ObjectiveConfig",
    "Problem",
    "Recipe",
    "RollingConfig",
    "Search",
    "SearchConfig",
    "Task",
    "TrainResult",
    "WholeLifeConfig",
    "evaluate",
    "last_state",
    "meta_train",
    "plots",
    "recipes",
    "train",
    "usual_setup",
]
