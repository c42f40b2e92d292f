"""Probe values: a few outputs of an objective on inputs that never change, kept beside its weights.

A file whose probe values come out the same still means what it meant when it was made, whatever versions read it.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from learned_objectives.core import Objective, Progress, Rollout, Statistics
from learned_objectives.drifts import Drift
from learned_objectives.lpg import LPG
from learned_objectives.mirror import Mirror, ScheduledMirror

LIFETIME = 1_000_000.0
LOG_RATIOS = np.array([-1.0, -0.3, -0.05, 0.0, 0.05, 0.3, 1.0], np.float32)
ADVANTAGES = np.array([-2.0, -0.5, 0.5, 2.0], np.float32)


def probe(objective: Objective | Drift) -> list[float]:
    """At n/N = 0, 1/2 and 1: r A - D(r, A) on a grid, and the settings of a ScheduledMirror; or the targets of an LPG on
    a made-up rollout.

    Raises TypeError for an objective of another kind.
    """
    drift = objective.drift if isinstance(objective, Mirror) else objective
    values = []
    for fraction in (0.0, 0.5, 1.0):
        progress = Progress(jnp.float32(fraction * LIFETIME), jnp.float32(LIFETIME), Statistics.typical())
        if isinstance(drift, Drift):
            log_ratio, advantage = jnp.meshgrid(LOG_RATIOS, ADVANTAGES, indexing="ij")
            values.append(drift.surrogate(log_ratio, advantage, progress))
            if isinstance(objective, ScheduledMirror):
                values += [x for x in objective.settings(progress) if x is not None]
        elif isinstance(objective, LPG):
            targets = objective.targets(_rollout(objective.predictions), progress)
            values += [targets.policy, jnp.exp(targets.prediction)]
        else:
            raise TypeError(f"probe knows drifts, Mirror and LPG, and was given a {type(objective).__name__}.")
    return [float(x) for value in values for x in np.asarray(value, np.float64).ravel()]


def _rollout(predictions: int, steps: int = 6, num_envs: int = 2) -> Rollout:
    """Sines, which any version of NumPy gives alike, with one termination and one truncation."""
    at = np.arange(steps * num_envs).reshape(steps, num_envs)
    wide = at[..., None] + np.linspace(0.0, 3.0, predictions)
    ends = np.zeros((2, steps, num_envs), bool)
    ends[0, 2, 0] = ends[1, 3, 1] = True
    f32 = np.float32
    return Rollout(
        obs=None,
        action=None,
        log_prob=jnp.asarray(-1.0 - 0.5 * np.sin(3.0 * at), f32),
        critic=jnp.asarray(np.sin(wide), f32),
        next_critic=jnp.asarray(np.sin(wide + num_envs), f32),
        reward=jnp.asarray(np.sin(2.0 * at) * (at % 3 == 0), f32),
        terminated=jnp.asarray(ends[0]),
        truncated=jnp.asarray(ends[1]),
    )
