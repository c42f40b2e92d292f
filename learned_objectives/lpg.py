"""LPG, TA-LPG and GROOVE's variant: what to predict, and what to do, from a recurrent network to be searched."""

from __future__ import annotations

from typing import Literal, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from flax import struct

from learned_objectives.core import Objective, Progress, Rollout, require, same_shape
from learned_objectives.recurrent import gru, lstm

GATES = {"lstm": 4, "gru": 3}
TENS = 10.0  # log N is shown in tens, else it alone would shut every gate: searches begin with, and perturb, all weights alike
NO_DRIFT = (
    "an LPG has no {}, because it is a whole update rule: call targets = lpg.targets(rollout, progress) once per rollout, then "
    "lpg.loss(learned_objectives.Outputs(log_prob, entropy, critic), rollout, targets, progress)[0] for the loss to minimise."
)


class LPGTargets(NamedTuple):
    policy: jax.Array  # f32[T, B], pi-hat: how much more of this action
    prediction: jax.Array  # f32[T, B, M], log y-hat: what the agent should predict here


class LPG(Objective):
    """Learned Policy Gradient: the update rule itself, with its own notion of value.

    A recurrent network runs backward over each trajectory, from x_T to x_1:

        (pi_hat_t, y_hat_t) = U(x_t | x_{t+1}, ..., x_T),    x_t = [r, d, gamma, pi(a|s), phi(y(s)), phi(y(s'))]
        L = -mean[log pi(a|s) pi_hat] + prediction_coef mean[KL(y(s) || y_hat)]

    y is the agent's prediction, a categorical distribution over M symbols that mean whatever the search makes them mean; it
    takes the place of a value. d is a termination, after which phi(y(s')) is zero; a truncation only ends the trajectory.
    The state of the network is zero at T and behind every end of an episode, so no target sees across one. U's outputs
    are targets: the agent's gradient does not enter them, while the search's does, through their inputs as well.

    In an agent of your own, whose network gives log pi(a|s), the entropy of pi, and M logits in place of a value, on whole
    rollouts in time order:

        rule = learned_objectives.load("lpg")
        rollout = Rollout(obs, action, log_prob, critic, next_critic, reward, terminated, truncated)  # [T, B]
        progress = Progress(step, lifetime)  # in environment steps
        targets = rule.targets(rollout, progress)  # once per rollout
        loss, metrics = rule.loss(Outputs(log_prob, entropy, critic), rollout, targets, progress)  # of the agent as it is now

    Take one gradient step per rollout, on the whole of it: its target for pi does not shrink as pi moves, so several epochs step
    too far. A rule also fits the optimiser and the learning rates it was searched with; `learned_objectives.card` names them.

    `time_aware=True` is TA-LPG: x_t gets n/N and log N besides, of the agent's life in environment steps; log N in tens, which
    is a matter of units alone.

    Reference: Oh et al. 2020, section 3, arXiv:2007.08794; Jackson et al. 2023, section 2.2, arXiv:2310.02782; Jackson et al.
    2024, eq. 9, arXiv:2402.05828. pi_hat has the papers' sign: positive makes an action likelier.
    """

    embed: jax.Array  # f32[M, 16], phi: a dense layer, relu, a dense layer to a number
    embed_bias: jax.Array  # f32[16]
    embed_out: jax.Array  # f32[16]
    embed_out_bias: jax.Array  # f32[]
    kernel: jax.Array  # f32[I, gates * hidden], I inputs
    recurrent: jax.Array  # f32[hidden, gates * hidden]
    bias: jax.Array  # f32[gates * hidden]
    recurrent_bias: jax.Array  # f32[hidden], of a GRU's candidate; f32[0] in an LSTM
    policy_head: jax.Array  # f32[hidden]
    policy_bias: jax.Array  # f32[]
    prediction_head: jax.Array  # f32[hidden, M]
    prediction_bias: jax.Array  # f32[M]
    predictions: int = struct.field(pytree_node=False, default=30)  # M
    hidden: int = struct.field(pytree_node=False, default=256)
    cell: Literal["lstm", "gru"] = struct.field(pytree_node=False, default="lstm")
    time_aware: bool = struct.field(pytree_node=False, default=False)
    see_gamma: bool = struct.field(pytree_node=False, default=True)  # whether gamma is an input; GROOVE has none
    gamma: float = struct.field(pytree_node=False, default=0.99)  # discount per environment step
    prediction_coef: float = struct.field(pytree_node=False, default=0.5)  # alpha_y

    @classmethod
    def create(
        cls,
        key: jax.Array,
        *,
        predictions: int = 30,
        hidden: int = 256,
        cell: Literal["lstm", "gru"] = "lstm",
        time_aware: bool = False,
        see_gamma: bool = True,
        **knobs: float,
    ) -> LPG:
        """An update rule that has not been searched: random weights, heads near zero."""
        if cell not in GATES:
            raise ValueError(f"cell must be 'lstm' or 'gru', and is {cell!r}.")
        for name, size in (("predictions", predictions), ("hidden", hidden)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, and is {size}.")
        shapes = _shapes(predictions, hidden, cell, time_aware, see_gamma)
        keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))

        def normal(name: str, scale: float = 1.0) -> jax.Array:
            fan_in = shapes[name][0]
            return scale * jax.random.normal(keys[name], shapes[name]) / fan_in**0.5

        leaves = {name: jnp.zeros(shape) if name.endswith("bias") else normal(name) for name, shape in shapes.items()}
        if cell == "lstm":  # the forget gate begins open
            leaves["bias"] = leaves["bias"].at[hidden : 2 * hidden].set(1.0)
        leaves |= {name: 0.1 * leaves[name] for name in ("policy_head", "prediction_head")}
        return cls(
            **leaves,
            predictions=predictions,
            hidden=hidden,
            cell=cell,
            time_aware=time_aware,
            see_gamma=see_gamma,
            **knobs,
        )

    @classmethod
    def groove(cls, key: jax.Array, *, time_aware: bool = False, **sizes) -> LPG:
        """The variant of GROOVE's code: a GRU, M = 8, and no gamma among the inputs."""
        return cls.create(key, **({"predictions": 8, "cell": "gru", "see_gamma": False} | sizes), time_aware=time_aware)

    @property
    def critic_width(self) -> int:
        return self.predictions

    @property
    def needs_discrete_actions(self) -> bool:
        return True  # pi(a|s) is among the inputs

    @property
    def surrogate(self) -> NoReturn:
        """Raises AttributeError with what to call: only mirror learning has a surrogate."""
        raise AttributeError(NO_DRIFT.format("surrogate"))

    @property
    def drift(self) -> NoReturn:
        """Raises AttributeError with what to call: only mirror learning has a drift."""
        raise AttributeError(NO_DRIFT.format("drift"))

    def targets(self, rollout: Rollout, progress: Progress) -> LPGTargets:
        end = rollout.terminated | rollout.truncated
        net = (self._inputs(rollout, progress), end, self.kernel, self.bias, self.recurrent)
        states = lstm(*net) if self.cell == "lstm" else gru(*net, self.recurrent_bias)
        states = jax.nn.relu(states)
        policy = states @ self.policy_head + self.policy_bias
        prediction = jax.nn.log_softmax(states @ self.prediction_head + self.prediction_bias)
        return LPGTargets(policy, prediction)

    def _inputs(self, rollout: Rollout, progress: Progress) -> jax.Array:
        """x: f32[T, B, I]."""
        shape = rollout.reward.shape
        alive = 1.0 - rollout.terminated
        x = [
            rollout.reward,
            rollout.terminated.astype(rollout.reward.dtype),
            jnp.exp(rollout.log_prob),
            self.reading(rollout.critic),
            self.reading(rollout.next_critic) * alive,
        ]
        if self.see_gamma:
            x.append(jnp.full(shape, self.gamma, rollout.reward.dtype))
        if self.time_aware:
            progress = require(progress, "TA-LPG")
            x += [jnp.broadcast_to(t, shape) for t in (progress.fraction, progress.log_lifetime / TENS)]
        return jnp.stack(x, axis=-1)

    def reading(self, logits: jax.Array) -> jax.Array:
        """phi(y), the one number that the rule itself reads in a prediction f32[..., M] of logits: f32[...]."""
        hidden = jax.nn.relu(jax.nn.softmax(logits) @ self.embed + self.embed_bias)
        return hidden @ self.embed_out + self.embed_out_bias

    def actor_loss(self, log_prob, entropy, rollout: Rollout, targets: LPGTargets, progress: Progress):
        same_shape(log_prob, targets.policy)
        policy_loss = -(log_prob * targets.policy).mean()
        metrics = {
            "policy_loss": policy_loss,
            "entropy": entropy.mean(),
            "policy_target_square": (targets.policy**2).mean(),
        }
        return policy_loss, metrics

    def critic_loss(self, critic, rollout: Rollout, targets: LPGTargets, progress: Progress):
        same_shape(critic, targets.prediction)
        log_y = jax.nn.log_softmax(critic)
        prediction_loss = (jnp.exp(log_y) * (log_y - targets.prediction)).sum(-1).mean()
        metrics = {
            "prediction_loss": prediction_loss,
            "prediction_entropy": -(jnp.exp(log_y) * log_y).sum(-1).mean(),
            "prediction_target_square": jnp.exp(2 * targets.prediction).sum(-1).mean(),
        }
        return self.prediction_coef * prediction_loss, metrics

    def validate(self) -> None:
        """Raise ValueError with a sentence if the fields do not fit together, as in a file made by hand."""
        if self.cell not in GATES:
            raise ValueError(f"an LPG has a cell 'lstm' or 'gru', and this one {self.cell!r}.")
        shapes = _shapes(self.predictions, self.hidden, self.cell, self.time_aware, self.see_gamma)
        for name, shape in shapes.items():
            if jnp.shape(getattr(self, name)) != shape:
                raise ValueError(
                    f"the {name} of this LPG should have shape {shape}, and has {jnp.shape(getattr(self, name))}."
                )


def _shapes(predictions: int, hidden: int, cell: str, time_aware: bool, see_gamma: bool) -> dict[str, tuple[int, ...]]:
    inputs = 5 + see_gamma + 2 * time_aware
    return {
        "embed": (predictions, 16),
        "embed_bias": (16,),
        "embed_out": (16,),
        "embed_out_bias": (),
        "kernel": (inputs, GATES[cell] * hidden),
        "recurrent": (hidden, GATES[cell] * hidden),
        "bias": (GATES[cell] * hidden,),
        "recurrent_bias": (hidden,) if cell == "gru" else (0,),
        "policy_head": (hidden,),
        "policy_bias": (),
        "prediction_head": (hidden, predictions),
        "prediction_bias": (predictions,),
    }
