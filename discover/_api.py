"""The public names of `discover`."""

from discover import plots
from discover.agents.agent import Agent, AgentConfig, Task
from discover.agents.setups import LossConfig, usual_setup
from discover.agents.trained import TrainResult
from discover.evaluation.distil import Front, distil
from discover.evaluation.evaluate import evaluate
from discover.evaluation.train import train
from discover.results.comparison import Comparison
from discover.runs import recipes
from discover.runs.loop import last_state, meta_train
from discover.searches.config import SearchConfig
from discover.searches.distillation import DistilConfig
from discover.searches.evolution import EvolutionConfig
from discover.searches.families import LPGConfig, LPOConfig
from discover.searches.family import ObjectiveConfig
from discover.searches.map_elites import MapElitesConfig
from discover.searches.metagrad import MetaGradConfig
from discover.searches.pbt import PBTConfig
from discover.searches.problem import Problem
from discover.searches.recipe import Recipe
from discover.searches.rolling_search import RollingConfig
from discover.searches.search import Search
from discover.searches.whole_life import WholeLifeConfig

__all__ = [
    "Agent",
    "AgentConfig",
    "Comparison",
    "DistilConfig",
    "EvolutionConfig",
    "Front",
    "LPGConfig",
    "LPOConfig",
    "LossConfig",
    "MapElitesConfig",
    "MetaGradConfig",
    "ObjectiveConfig",
    "PBTConfig",
    "Problem",
    "Recipe",
    "RollingConfig",
    "Search",
    "SearchConfig",
    "Task",
    "TrainResult",
    "WholeLifeConfig",
    "distil",
    "evaluate",
    "last_state",
    "meta_train",
    "plots",
    "recipes",
    "train",
    "usual_setup",
]
