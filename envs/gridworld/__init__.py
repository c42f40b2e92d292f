"""Grid worlds of objects to collect.

Reference: Oh et al. 2020, appendix A.1, arXiv:2007.08794; Jackson et al. 2023, appendix C, arXiv:2310.02782.
"""

from envs.gridworld.level import Level, fill_level, make_level
from envs.gridworld.planning import is_solvable, optimal_return, policy_evaluation, value_iteration
from envs.gridworld.world import ACTIONS, GridState, GridWorld

__all__ = [
    "ACTIONS",
    "GridState",
    "GridWorld",
    "Level",
    "fill_level",
    "is_solvable",
    "make_level",
    "optimal_return",
    "policy_evaluation",
    "value_iteration",
]
