"""What every field of a run's `metrics.jsonl` means. One line of that file is one step of the search; line 0 is before the first.

A field is null where there is no finite number. `{env}` stands for the name of an environment of the recipe. Read a run with

    import pandas as pd
    rows = pd.read_json("runs/lpo/metrics.jsonl", lines=True)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

FIELDS = {
    # Of every line.
    "generation": "steps of the search done: generations, or meta-gradients",
    "env_steps": "environment steps so far that agents learned from, evaluations and antagonists included",
    "seconds": "wall time of this step and its evaluation; compilation included where it happened",
    "loop_seconds": "of these seconds, those in which no program of lives was started or waited for: the loop's own share",
    "steps_per_second": "environment steps since the line before, per second",
    "mean_norm": "Euclidean norm of the leaves of the mean, the objective at the centre of the search",
    # Of the first line, and of lines after which the run went on elsewhere.
    "depends_on": "versions, device, processor, compiler flags, commit and chunk: what the bits of the run depend on",
    # Of lines with an evaluation of the mean, every `evaluate_every` steps.
    "evaluation.{env}": "list: return of each evaluation life of the mean. Tasks are the same at every evaluation, lives are not",
    "best_score": (
        "score of the exported mean; 0 is the start. It is the mean over environments of x where x < 0 and of x / (1 + x) "
        "elsewhere, so that gains are bounded by 1 and losses are not; x is the mean return minus that of generation 0, over the "
        "larger of the size of that return and the deviation of its lives"
    ),
    # Of evolution.
    "fitness.{env}.mean": "over the candidates that did not diverge, before shaping",
    "fitness.{env}.std": "their standard deviation",
    "fitness.{env}.best": "the highest of them",
    "diverged": "share of the candidates that diverged in some environment",
    "sigma": "standard deviation of the perturbations",
    # Of meta-gradients: means over members, and over the updates of a window where there are several.
    "meta.meta_loss": "the loss whose gradient is the meta-gradient, regularisers included",
    "meta.critic_loss": "half the mean square error of the outer critic, before its fit",
    "meta.reward": "reward per environment step of the agents as they came out of the window",
    "meta.reward/{env}": "the same by environment, where there are several",
    "meta.gradient_norm": "Euclidean norm of the meta-gradient; null where no group had a finite one, and the step was skipped",
    "meta.dropped_fraction": "share of the groups of members without a finite gradient",
    "meta.ended": "members whose life ended, and which were replaced",
    "meta.diverged": "members that diverged, and which were replaced",
    "meta.entropy": "of the agents' policies, in nats",
    "meta.kl": "of Mirror: mean estimate of KL(old policy || policy), in nats",
    "meta.policy_loss": "the agents' policy loss; of Mirror without the entropy bonus",
    "meta.value_loss": "of Mirror: the value loss, before its weight",
    "meta.prediction_loss": "of LPG: KL of the agents' predictions to their targets, in nats",
    "meta.prediction_entropy": "of LPG: entropy of the agents' predictions, in nats",
    "meta.policy_target_square": "of LPG: mean square of the policy targets",
    "meta.prediction_target_square": "of LPG: mean sum of squares of the prediction targets",
}


def paths(row: Mapping[str, Any], envs: tuple[str, ...]) -> Iterator[str]:
    """The names, as `FIELDS` has them, of all fields in one line."""
    for name, value in row.items():
        if name in ("fitness", "evaluation"):
            for env, inner in value.items():
                assert env in envs, env
                yield from (
                    [f"{name}.{{env}}.{key}" for key in inner] if isinstance(inner, dict) else [f"{name}.{{env}}"]
                )
        elif name == "meta":
            yield from ("meta.reward/{env}" if key.startswith("reward/") else f"meta.{key}" for key in value)
        else:
            yield name
