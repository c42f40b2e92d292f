"""What training returns."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from discover.agents.agent import Agent, AgentState, Task


class TrainResult(NamedTuple):
    """What `train` found. `S` seeds, `E` evaluations."""

    returns: np.ndarray  # f32[S, E], mean undiscounted return of the episodes that ended in each stretch;
    # NaN before any has, and once an agent has diverged
    env_steps: np.ndarray  # i64[E], environment steps taken by the end of each stretch
    agent: Agent
    task: Task  # leaves [S, ...] where each seed has a level of its own, as in a distribution of grid worlds
    state: AgentState  # leaves [S, ...]: `agent.evaluate(task, state_of_one_seed, key, ...)` plays it
