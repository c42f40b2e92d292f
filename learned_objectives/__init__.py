"""Objectives for reinforcement learning, closed-form and discovered: load one, and use it in your own agent.

    import learned_objectives as lo
    dpo = lo.load("dpo")
    policy_loss = -dpo.surrogate(log_ratio, advantage).mean()  # the one line a PPO changes

Depends on jax, flax, numpy and safetensors, and on nothing else.
"""

from learned_objectives.cards import card
from learned_objectives.core import Objective, Outputs, Progress, Rollout, Statistics
from learned_objectives.disco import Disco, DiscoState, DiscoTargets
from learned_objectives.disco_file import load_disco, load_disco103
from learned_objectives.drifts import DPO, KL, SPO, AsymmetricClip, Clip, Drift, NoDrift, TimedClip, Tsallis
from learned_objectives.interpreted import InterpretedProgram
from learned_objectives.laws import DriftLawError, verify_drift
from learned_objectives.library import (
    ObjectiveFileError,
    available,
    load,
    record,
    register,
    save,
)
from learned_objectives.lpg import LPG, LPGTargets
from learned_objectives.lpo import LPO
from learned_objectives.mirror import Mirror, ScheduledMirror
from learned_objectives.penalised import AdaptiveKLMirror, AveragedKLMirror, DropoutMirror
from learned_objectives.probe import probe
from learned_objectives.programs import Program, ProgramError, SurrogateProgram
from learned_objectives.soft_clip import SoftClip
from learned_objectives.variants import GroupMirror, HLGaussMirror, MunchausenMirror

__all__ = [
    "DPO",
    "KL",
    "LPG",
    "LPO",
    "SPO",
    "AdaptiveKLMirror",
    "AsymmetricClip",
    "AveragedKLMirror",
    "Clip",
    "Disco",
    "DiscoState",
    "DiscoTargets",
    "Drift",
    "DriftLawError",
    "DropoutMirror",
    "GroupMirror",
    "HLGaussMirror",
    "InterpretedProgram",
    "LPGTargets",
    "Mirror",
    "MunchausenMirror",
    "NoDrift",
    "Objective",
    "ObjectiveFileError",
    "Outputs",
    "Program",
    "ProgramError",
    "Progress",
    "Rollout",
    "ScheduledMirror",
    "SoftClip",
    "Statistics",
    "SurrogateProgram",
    "TimedClip",
    "Tsallis",
    "available",
    "card",
    "load",
    "load_disco",
    "load_disco103",
    "probe",
    "record",
    "register",
    "save",
    "verify_drift",
]
