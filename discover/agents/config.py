"""What every agent of a run has in common."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from discover.agents.layers import ACTIVATIONS
from discover.agents.recurrent import CELLS

# The clock of a life is in float32 environment steps (`Progress`). Updates have different values of it up to 2^23 updates, and
# the number of updates is recovered from it exactly up to 2^22.
MAX_UPDATES = 2**22


Network = Literal["auto", "mlp", "cnn", "impala", "table", "gru", "mingru"]
NETWORKS: tuple[str, ...] = get_args(Network)
CLIP = {"together": "joint", "apart": "separate"}  # in version 0.1


def migrated_agent(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of agents in a file of any version, as this version has them."""
    return dict(values) | ({"clip": CLIP.get(values["clip"], values["clip"])} if "clip" in values else {})


@dataclass(frozen=True)
class AgentConfig:
    """What every agent of a run has in common. Sizes are per agent."""

    num_envs: int = 4  # B, environments stepped side by side
    num_steps: int = 128  # T, steps per environment between updates
    num_starts: int | None = None  # starts per environment and rollout; None: num_steps, or 1 if resets are expensive
    num_epochs: int = 4  # passes over each rollout
    num_minibatches: int = 4  # gradient steps per pass; must divide num_envs * num_steps
    optimizer: Literal["adam", "sgd", "rmsprop", "lion", "muon"] = "adam"  # of the agent's parameters
    learning_rate: float = 2.5e-4  # of that optimizer, at the start of a life
    anneal: bool = True  # learning rate to zero, linearly over the life
    max_grad_norm: float = 0.5  # global norm
    clip: Literal["joint", "separate"] = "joint"  # over the gradients of both networks, or of each
    adam_b1: float = 0.9  # decay of the first moment; of Lion and Muon, of the momentum
    adam_b2: float = 0.999  # decay of the second moment; of Lion, of the second average of gradients
    adam_eps: float = 1e-5  # added to the root of the second moment
    max_update: float | None = None  # of every element of Adam's direction, before the learning rate; None: as it is
    hidden: tuple[int, ...] = (64, 64)  # layer sizes of the actor and of the critic (separate networks)
    activation: Literal["tanh", "relu", "swish"] = "tanh"  # of the hidden layers
    network: Network = "auto"  # auto: a CNN for images, a table for numbered states; gru, mingru: a recurrent cell too
    sequence: int | None = None  # steps of the sequences in minibatches of recurrent networks; None: num_steps
    products: Literal["float32", "bfloat16"] = "float32"  # factors of dense layers are rounded to; sums are float32
    normalise_obs: bool = False  # by their running mean and deviation
    normalise_reward: bool = False  # by the running deviation of the discounted return

    def __post_init__(self):
        for name in ("num_envs", "num_steps", "num_epochs", "num_minibatches"):
            _require(
                getattr(self, name) >= 1,
                f"{name} must be at least 1, and is {getattr(self, name)}.",
            )
        for name in ("learning_rate", "max_grad_norm", "adam_eps"):
            value = getattr(self, name)
            _require(0 < value < math.inf, f"{name} must be positive and finite, and is {value}.")
        if self.max_update is not None:
            _require(self.max_update > 0, f"max_update must be positive, or None, and is {self.max_update}.")
            _require(self.optimizer == "adam", "max_update is of Adam's direction: choose optimizer 'adam', or None.")
        for name in ("adam_b1", "adam_b2"):
            _require(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1), and is {getattr(self, name)}.")
        _require(
            self.num_starts is None or self.num_starts >= 1,
            f"num_starts must be at least 1, or None, and is {self.num_starts}.",
        )
        _require(
            self.network in NETWORKS,
            f"network must be one of {', '.join(NETWORKS)}, and is {self.network!r}.",
        )
        self._check_sequences()
        _require(self.clip in ("joint", "separate"), f"clip must be joint or separate, and is {self.clip!r}.")
        _require(
            self.products in ("float32", "bfloat16"),
            f"products must be float32 or bfloat16, and is {self.products!r}.",
        )
        optimizers = get_args(get_type_hints(AgentConfig)["optimizer"])
        _require(
            self.optimizer in optimizers,
            f"optimizer must be one of {', '.join(optimizers)}, and is {self.optimizer!r}.",
        )
        _require(
            len(self.hidden) > 0 and all(width >= 1 for width in self.hidden),
            f"hidden must name at least one layer, each at least 1 wide, and is {self.hidden}.",
        )
        _require(
            self.activation in ACTIVATIONS,
            f"activation must be one of {', '.join(ACTIVATIONS)}, and is {self.activation!r}.",
        )
        _require(
            self.steps_per_update % self.num_minibatches == 0,
            f"num_minibatches must divide num_envs * num_steps = {self.steps_per_update}, and {self.num_minibatches} "
            "does not.",
        )

    def _check_sequences(self) -> None:
        if self.network not in CELLS:
            _require(
                self.sequence is None,
                f"sequence is of recurrent networks, and network is {self.network!r}: choose network 'gru', or sequence None.",
            )
            return
        length = self.sequence_length
        _require(
            length >= 1 and self.num_steps % length == 0,
            f"sequence must divide num_steps = {self.num_steps}, the steps of a rollout, and is {length}.",
        )
        count = self.steps_per_update // length
        _require(
            count % self.num_minibatches == 0,
            f"num_minibatches must divide the sequences of a rollout, num_envs * num_steps / sequence = {count}, because a "
            f"recurrent network learns from whole ones, and is {self.num_minibatches}: take fewer minibatches, more "
            "environments or shorter sequences.",
        )

    @property
    def recurrent(self) -> bool:
        return self.network in CELLS

    @property
    def sequence_length(self) -> int:
        """Steps of the sequences that a recurrent network learns from."""
        return self.num_steps if self.sequence is None else self.sequence

    @property
    def steps_per_update(self) -> int:
        """Environment steps in one rollout."""
        return self.num_envs * self.num_steps

    def num_updates(self, total_steps: int, name: str = "total_steps") -> int:
        """Whole rollouts in a life of `total_steps` environment steps. ValueError, about the setting `name`, for none or more
        than MAX_UPDATES."""
        _require(
            total_steps >= self.steps_per_update,
            f"{name} must hold at least one rollout of {self.num_envs} x {self.num_steps} = "
            f"{self.steps_per_update} environment steps, and is {total_steps}.",
        )
        _require(
            total_steps // self.steps_per_update <= MAX_UPDATES,
            f"{name} must hold at most {MAX_UPDATES:,} rollouts of {self.steps_per_update} environment steps, and is "
            f"{total_steps}: make num_envs or num_steps larger.",
        )
        return total_steps // self.steps_per_update


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise ValueError(sentence)
