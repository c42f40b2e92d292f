"""Disco: the update rule of Oh et al. 2025, whose agents predict what the rule gives a meaning to."""

from __future__ import annotations

from typing import NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from flax import struct

from learned_objectives.core import INVALID, Objective, Outputs, Progress, PyTree, Rollout, same_shape
from learned_objectives.disco_values import (
    BINS,
    Moments,
    Values,
    selected,
    signed_log,
    two_hot_cross_entropy,
    values_of,
)
from learned_objectives.recurrent import lstm, sigmoid

SYMBOLS = 600  # of a prediction y or z
CORE, LIFE = 256, 128  # widths of the two recurrent nets
WEIGHTS = {
    "core": (283, 1024),
    "scale": (128, 256),
    "note": (256, 1),
    "y_head": (256, 600),
    "z_head": (256, 600),
    "policy_in": (1, 516, 16),
    "policy_out": (16, 1),
    "y_in": (600, 16),
    "y_out": (16, 1),
    "z_in": (600, 16),
    "z_out": (16, 1),
    "action_in": (1, 18, 16),
    "action_out": (1, 32, 2),
    "life": (144, 512),
    "life_in": (29, 16),
}
WEIGHTS |= {f"life_{part}": WEIGHTS[part] for part in ("y_in", "y_out", "z_in", "z_out", "action_in", "action_out")}
SHAPES = {f"{part}_w": shape for part, shape in WEIGHTS.items()} | {f"{part}_b": s[-1:] for part, s in WEIGHTS.items()}
NO_DRIFT = (
    "a Disco has no {}, because it is a whole update rule: call targets, state = disco.observe(rollout, state, progress) once "
    "per rollout, then disco.loss(outputs, rollout, targets, progress)[0] for the loss to minimise."
)


class DiscoState(NamedTuple):
    """What a rule remembers of one agent's life. At birth all is 0."""

    hidden: jax.Array  # f32[128], of the lifetime LSTM
    cell: jax.Array  # f32[128]
    advantage: Moments  # of advantages
    error: Moments  # of errors of q


class DiscoTargets(NamedTuple):
    policy: jax.Array  # f32[T, B, A], logits of pi-hat
    y: jax.Array  # f32[T, B, 600], logits of y-hat
    z: jax.Array  # f32[T, B, 600], logits of z-hat, for the action taken
    next_policy: jax.Array  # f32[T, B, A], logits of pi at the successor
    q: jax.Array  # f32[T, B], the Retrace target


class Seen(NamedTuple):
    """Probabilities at a rollout's states and at their successors: what the rule reads of an agent."""

    policies: tuple[jax.Array, jax.Array, jax.Array]  # f32[T, B, A]: of the agent, the behaviour, the target network
    next_policy: jax.Array  # f32[T, B, A], of the agent
    y: tuple[jax.Array, ...]  # four f32[T, B, 600]: the agent's, now and next; the target network's, now and next
    z: tuple[jax.Array, ...]  # four f32[T, B, A, 600], likewise


class Disco(Objective):
    """An update rule that reads policies, predictions and values of an agent, and gives targets for all of them.

        L = mean[KL(pi_hat || pi) + KL(y_hat || y) + KL(z_hat || z_a) + (1 - terminated) KL(pi' || p_a)] + w mean[H(q_hat, q_a)]

    Of each state an agent gives a policy pi, a prediction y of 600 symbols, and for each action a prediction z of 600 symbols, a
    policy p of the next step and a value q in 601 bins. pi' is pi at the successor, q_hat the Retrace target in two bins, H a
    cross-entropy, w `value_weight`. pi_hat, y_hat and z_hat come from an LSTM that runs backward over the trajectory,

        core_t = LSTM(x_t | x_{t+1}, ..., x_T) * (W h + b),

    with 27 inputs x and the hidden state h of a second LSTM, which steps once per update of the agent. An episode's end resets
    the first. The targets are constants in the agent's gradient. Where a search differentiates them, no gradient flows through
    the policies among their inputs.

    It has a state, DiscoState, which one agent carries through its life, and needs discrete actions. Take one gradient step per
    rollout: the rule was searched so. The target network's parameters follow the agent's once per update, 0.9 old + 0.1 new.

    `learned_objectives.load_disco103` reads the rule that its authors published.

    Reference: Oh et al. 2025, Nature, doi 10.1038/s41586-025-09761-x.
    """

    core_w: jax.Array  # f32[27 + 256, 4 * 256], gates in the order i, g, f, o
    core_b: jax.Array  # f32[4 * 256]
    scale_w: jax.Array  # f32[128, 256], from h to the factor of the core
    scale_b: jax.Array  # f32[256]
    note_w: jax.Array  # f32[256, 1], one number for the lifetime LSTM
    note_b: jax.Array  # f32[1]
    y_head_w: jax.Array  # f32[256, 600]
    y_head_b: jax.Array  # f32[600]
    z_head_w: jax.Array  # f32[256, 600]
    z_head_b: jax.Array  # f32[600]
    policy_in_w: jax.Array  # f32[1, 2 * 258, 16]
    policy_in_b: jax.Array  # f32[16]
    policy_out_w: jax.Array  # f32[16, 1]
    policy_out_b: jax.Array  # f32[1]
    y_in_w: jax.Array  # f32[600, 16], the core's reading of a prediction y
    y_in_b: jax.Array  # f32[16]
    y_out_w: jax.Array  # f32[16, 1]
    y_out_b: jax.Array  # f32[1]
    z_in_w: jax.Array  # f32[600, 16], of a prediction z
    z_in_b: jax.Array  # f32[16]
    z_out_w: jax.Array  # f32[16, 1]
    z_out_b: jax.Array  # f32[1]
    action_in_w: jax.Array  # f32[1, 2 * 9, 16], the stream of every action
    action_in_b: jax.Array  # f32[16]
    action_out_w: jax.Array  # f32[1, 2 * 16, 2]
    action_out_b: jax.Array  # f32[2]
    life_w: jax.Array  # f32[16 + 128, 4 * 128], the lifetime LSTM
    life_b: jax.Array  # f32[4 * 128]
    life_in_w: jax.Array  # f32[29, 16]
    life_in_b: jax.Array  # f32[16]
    life_y_in_w: jax.Array  # its readings, in shapes as above
    life_y_in_b: jax.Array
    life_y_out_w: jax.Array
    life_y_out_b: jax.Array
    life_z_in_w: jax.Array
    life_z_in_b: jax.Array
    life_z_out_w: jax.Array
    life_z_out_b: jax.Array
    life_action_in_w: jax.Array
    life_action_in_b: jax.Array
    life_action_out_w: jax.Array
    life_action_out_b: jax.Array
    gamma: float = struct.field(pytree_node=False, default=0.997)  # discount per environment step
    trace: float = struct.field(pytree_node=False, default=0.95)  # lambda of Retrace
    moment_decay: float = struct.field(pytree_node=False, default=0.99)  # per update
    value_weight: float = struct.field(pytree_node=False, default=0.2)

    @property
    def critic_width(self) -> int:
        return 0  # it has heads

    def heads(self, num_actions: int) -> dict[str, tuple[int, ...]]:
        of_action = {"z": SYMBOLS, "aux_pi": num_actions, "q": BINS}
        return {"y": (SYMBOLS,)} | {name: (num_actions, size) for name, size in of_action.items()}

    @property
    def target_share(self) -> float:
        return 0.9

    @property
    def needs_discrete_actions(self) -> bool:
        return True

    def targets(self, rollout: Rollout, progress: Progress) -> NoReturn:
        """Raises TypeError with what to call: its targets depend on its state."""
        raise TypeError(
            "a Disco has a state: call targets, state = disco.observe(rollout, state, progress) once per rollout."
        )

    @property
    def surrogate(self) -> NoReturn:
        """Raises AttributeError with what to call: only mirror learning has a surrogate."""
        raise AttributeError(NO_DRIFT.format("surrogate"))

    @property
    def drift(self) -> NoReturn:
        """Raises AttributeError with what to call: only mirror learning has a drift."""
        raise AttributeError(NO_DRIFT.format("drift"))

    @staticmethod
    def init_state() -> DiscoState:
        zeros = jnp.zeros(LIFE, jnp.float32)
        return DiscoState(zeros, zeros, Moments.zeros(), Moments.zeros())

    def observe(self, rollout: Rollout, state: DiscoState, progress: Progress) -> tuple[DiscoTargets, DiscoState]:
        return self.teach(rollout, rollout.critic["logits"], state)

    def teach(self, rollout: Rollout, behaviour: jax.Array, state: DiscoState) -> tuple[DiscoTargets, DiscoState]:
        """Targets of a trajectory that another policy may have acted in, logits `behaviour` f32[T, B, A]; and the state after it.

        `rollout.critic` and `rollout.next_critic` hold the agent's heads now, and under "target" those of the target network.
        """
        values, moments = self.values(rollout, behaviour, state)
        seen = _seen(rollout, behaviour)
        x, stream = self._inputs("", rollout, seen, values)
        core = self._core(x, rollout) * self._dense("scale", state.hidden)
        y, z = self._dense("y_head", core), self._dense("z_head", core)
        targets = DiscoTargets(
            self._policy_target(core, stream),
            y,
            z,
            jax.lax.stop_gradient(rollout.next_critic["logits"]),
            values.q_target,
        )
        hidden, cell = self._live(state, rollout, seen, values, core, y)
        return targets, DiscoState(hidden, cell, *moments)

    def values(
        self, rollout: Rollout, behaviour: jax.Array, state: DiscoState
    ) -> tuple[Values, tuple[Moments, Moments]]:
        """The value part, and the moments of advantages and errors after this rollout; arguments as of `teach`."""
        moments = (state.advantage, state.error)
        return values_of(rollout, behaviour, moments, gamma=self.gamma, trace=self.trace, decay=self.moment_decay)

    def loss(self, outputs: Outputs, rollout: Rollout, targets: DiscoTargets, progress: Progress):
        """`outputs.critic` holds the agent's heads now, at the states of `rollout`."""
        terms, value = self.losses(outputs.critic, rollout, targets)
        metrics = {name: term.mean() for name, term in terms.items()} | {"value_loss": value.mean()}
        metrics["entropy"] = outputs.entropy.mean()
        return sum(term.mean() for term in terms.values()) + self.value_weight * value.mean(), metrics

    def losses(self, heads: PyTree, rollout: Rollout, targets: DiscoTargets) -> tuple[dict[str, jax.Array], jax.Array]:
        """f32[...] per step: the four divergences, and the cross-entropy of q without its weight."""
        same_shape(heads["logits"], targets.policy)
        of_action = {name: _at(heads[name], rollout.action) for name in ("z", "aux_pi", "q")}
        going_on = 1.0 - rollout.terminated
        terms = {
            "policy_loss": _divergence(_valid(targets.policy, heads["logits"]), heads["logits"]),
            "y_loss": _divergence(targets.y, heads["y"]),
            "z_loss": _divergence(targets.z, of_action["z"]),
            "next_policy_loss": going_on * _divergence(targets.next_policy, of_action["aux_pi"]),
        }
        return terms, two_hot_cross_entropy(of_action["q"], targets.q)

    def validate(self) -> None:
        """Raise ValueError with a sentence if an array has another shape, as in a file made by hand."""
        for name, shape in SHAPES.items():
            found = jnp.shape(getattr(self, name))
            if found != shape:
                raise ValueError(f"the {name} of this Disco should have shape {shape}, and has {found}.")

    def _dense(self, part: str, x: jax.Array) -> jax.Array:
        weights = getattr(self, f"{part}_w")
        return x @ weights.reshape(weights.shape[-2:]) + getattr(self, f"{part}_b")

    def _reading(self, part: str, probabilities: jax.Array) -> jax.Array:
        """The one number that a net reads in a prediction f32[..., 600]: f32[...]."""
        return self._dense(f"{part}_out", jax.nn.relu(self._dense(f"{part}_in", probabilities)))[..., 0]

    def _inputs(self, part: str, rollout: Rollout, seen: Seen, values: Values) -> tuple[jax.Array, jax.Array]:
        """x f32[T, B, 27], and the stream of every action f32[T, B, A, 2]. `part`: "", or "life_" for the lifetime's nets."""
        z = [self._reading(f"{part}z", p) for p in seen.z]
        stream = self._stream(part, rollout.action, seen, values, z[0], z[2])
        pi, mu, target_pi = (selected(p, rollout.action) for p in seen.policies)
        x = [
            *(pi, mu, signed_log(rollout.reward), 1.0 - rollout.terminated),
            *(signed_log(v) for v in (values.value, values.next_value, values.advantage)),
            *(values.normalised_advantage, target_pi),
            *(self._reading(f"{part}y", p) for p in seen.y),
        ]
        for now, after in (z[:2], z[2:]):
            x += [
                selected(now, rollout.action),
                *((p * e).sum(-1) for p, e in ((seen.policies[0], now), (seen.next_policy, after))),
                *(now.max(-1), after.max(-1)),
            ]
        x = jnp.stack(x, axis=-1)
        return jnp.concatenate([x, stream.mean(2), selected(stream, rollout.action)], axis=-1), stream

    def _stream(self, part: str, action, seen: Seen, values: Values, z, target_z) -> jax.Array:
        """f32[T, B, A, 2]: nine channels of every action, through two layers that see the mean over actions too."""
        one_hot = jax.nn.one_hot(action, z.shape[-1])
        numbers = (z, target_z, signed_log(values.q), signed_log(values.over), values.normalised_over, one_hot)
        x = jnp.stack([*seen.policies, *numbers], axis=-1)
        for layer in ("action_in", "action_out"):
            x = jax.nn.relu(self._dense(part + layer, _with_mean(x)))
        return x

    def _core(self, x: jax.Array, rollout: Rollout) -> jax.Array:
        """f32[T, B, 256]: hidden states of the LSTM that runs from T to 1."""
        i, g, f, o = jnp.split(jnp.arange(4 * CORE), 4)
        order = jnp.concatenate([i, f, g, o])
        weights, bias = self.core_w[:, order], _forgetting(self.core_b, CORE)[order]
        return lstm(x, rollout.terminated | rollout.truncated, weights[:-CORE], bias, weights[-CORE:])

    def _policy_target(self, core: jax.Array, stream: jax.Array) -> jax.Array:
        """Logits f32[T, B, A] of pi_hat."""
        core = jnp.broadcast_to(core[..., None, :], (*stream.shape[:-1], CORE))
        hidden = jax.nn.relu(self._dense("policy_in", _with_mean(jnp.concatenate([core, stream], axis=-1))))
        return self._dense("policy_out", hidden)[..., 0]

    def _live(self, state: DiscoState, rollout, seen: Seen, values: Values, core, y) -> tuple[jax.Array, jax.Array]:
        """(h, c) f32[128] of the lifetime LSTM after this update."""
        x, _ = self._inputs("life_", rollout, seen, values)
        more = self._dense("note", core), self._reading("life_y", jax.nn.softmax(y))[..., None]
        x = self._dense("life_in", jnp.concatenate([x, *more], axis=-1)).mean((0, 1))
        gates = jnp.concatenate([x, state.hidden]) @ self.life_w + _forgetting(self.life_b, LIFE)
        i, g, f, o = jnp.split(gates, 4)
        cell = sigmoid(f) * state.cell + sigmoid(i) * jnp.tanh(g)
        return sigmoid(o) * jnp.tanh(cell), cell


def _forgetting(bias: jax.Array, size: int) -> jax.Array:
    """The bias of gates in the order i, g, f, o, with 1 more for f."""
    return bias.at[2 * size : 3 * size].add(1.0)


def _with_mean(x: jax.Array) -> jax.Array:
    """f32[T, B, A, 2 C]: channels f32[T, B, A, C], then their mean over actions."""
    return jnp.concatenate([x, jnp.broadcast_to(x.mean(2, keepdims=True), x.shape)], axis=-1)


def _seen(rollout: Rollout, behaviour: jax.Array) -> Seen:
    now, after = rollout.critic, rollout.next_critic
    views = (now, after, now["target"], after["target"])
    policies = (now["logits"], behaviour, now["target"]["logits"], after["logits"])
    *policies, next_policy = (jax.nn.softmax(jax.lax.stop_gradient(logits)) for logits in policies)
    y, z = (tuple(jax.nn.softmax(view[name]) for view in views) for name in ("y", "z"))
    return Seen(tuple(policies), next_policy, y, z)


def _at(x: jax.Array, action: jax.Array) -> jax.Array:
    """x[a]: f32[..., N] of f32[..., A, N] and i32[...]."""
    return jnp.take_along_axis(x, action[..., None, None], axis=-2)[..., 0, :]


def _valid(target: jax.Array, logits: jax.Array) -> jax.Array:
    """A target policy without the actions that are not valid by the agent's logits, both f32[..., A]."""
    return jnp.where(logits > INVALID / 2, target, INVALID)


def _divergence(target: jax.Array, logits: jax.Array) -> jax.Array:
    """KL(softmax target || softmax logits): f32[...] of f32[..., N] each."""
    log_p, log_q = jax.nn.log_softmax(target), jax.nn.log_softmax(logits)
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)
