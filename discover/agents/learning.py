"""What an agent makes of one rollout: epochs of minibatches, a gradient step on each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from optax import contrib

from discover.agents.config import AgentConfig
from discover.agents.networks import Networks
from discover.agents.recurrent import sequences
from discover.devices import team
from learned_objectives import Objective, Outputs, Progress, Rollout

PyTree = Any


def _adam(c: AgentConfig) -> optax.GradientTransformation:
    # The root's epsilon, far below rounding, keeps its derivative finite where a gradient has always been zero.
    return optax.scale_by_adam(c.adam_b1, c.adam_b2, c.adam_eps, eps_root=1e-16)


def _muon(c: AgentConfig) -> optax.GradientTransformation:
    """Muon for matrices and Adam for all other parameters, as optax has it, with its learning rate taken out."""
    rule = contrib.muon(1.0, beta=c.adam_b1, adam_b1=c.adam_b1, adam_b2=c.adam_b2, adam_eps_root=1e-16)
    return optax.chain(rule, optax.scale(-1.0))


# The direction of a gradient step. References: Kingma & Ba 2015 (Adam), arXiv:1412.6980; Chen et al. 2023 (Lion),
# arXiv:2302.06675; Jordan et al. 2024 (Muon), kellerjordan.github.io/posts/muon.
OPTIMIZERS: dict[str, Callable[[AgentConfig], optax.GradientTransformation]] = {
    "adam": _adam,
    "sgd": lambda c: optax.identity(),
    "rmsprop": lambda c: optax.scale_by_rms(c.adam_b2, c.adam_eps),
    "lion": lambda c: optax.scale_by_lion(c.adam_b1, c.adam_b2),
    "muon": _muon,
}


@dataclass(frozen=True)
class Learner:
    """Gradient steps on an objective, for one agent."""

    networks: Networks
    config: AgentConfig
    shards: int = 1  # devices that share this life; see `learn` for what each of them does
    row_shards: int = 1  # those that share its environments, and with them the rows of a rollout
    flat_rows: bool = False  # whether minibatches are gathered from observations as vectors: see `minibatches`

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """The direction of a step; its length, the learning rate, is the task's."""
        c = self.config
        rule = OPTIMIZERS[c.optimizer](c)
        return rule if c.max_update is None else optax.chain(rule, optax.clip(c.max_update))

    @property
    def trained(self) -> Networks:
        """The networks as they see a minibatch: rows of steps, or sequences."""
        return self.networks.unrolled or self.networks

    def init(self, params: PyTree) -> PyTree:
        """The optimiser's state: one for all parameters, or one for each network if their gradients are clipped apart."""
        if self.config.clip == "separate":
            return {name: self.optimizer.init(self._packed(own)[0]) for name, own in params.items()}
        return self.optimizer.init(self._packed(params)[0])

    def direction(self, grads: PyTree, opt_state: PyTree, params: PyTree) -> PyTree:
        """The direction of the next step on these gradients, clipped as `learn` clips them: a tree as of the parameters."""
        if self.config.clip == "separate":
            return {name: self._direction(grads[name], opt_state[name], params[name]) for name in params}
        return self._direction(grads, opt_state, params)

    def _direction(self, grads, opt_state, params):
        vector, unpack = self._packed(params)
        return unpack(self.optimizer.update(self._clipped(self._packed(grads)[0]), opt_state, vector)[0])

    def _clipped(self, grads: PyTree) -> PyTree:
        """Gradients whose norm is at most `max_grad_norm`."""
        # optax.clip_by_global_norm divides and multiplies every leaf; one shared factor rounds in one place, which
        # keeps the result the same whatever the number of devices.
        shrink = jnp.minimum(1.0, self.config.max_grad_norm / (norm(grads) + 1e-12))
        return jax.tree.map(lambda g: g * shrink, grads)

    def learn(
        self,
        objective: Objective,
        progress: Progress,
        params: PyTree,
        opt_state: PyTree,
        experience: tuple[Rollout, PyTree],
        rate: jax.Array,
        key: jax.Array,
    ) -> tuple[PyTree, PyTree, dict[str, jax.Array]]:
        """All gradient steps on one rollout and its targets, leaves [T, B, ...]: (params, opt_state, metrics of every step).

        Devices that share a life each run the networks on their rows of every minibatch, and synchronise twice a gradient step.
        If the gradients of actor and critic are clipped separately, the networks are independent until the next rollout: the
        first device trains the actor, the second the critic, and they synchronise once.
        """
        if self.config.clip == "separate":
            require_separable(objective)
        flat = self._rows(experience)
        order = self._order(key)
        if self.config.clip == "joint":
            return self._learn_together(objective, progress, params, opt_state, flat, rate, order)
        return self._learn_apart(objective, progress, params, opt_state, flat, rate, order)

    def _rows(self, experience: tuple[Rollout, PyTree]) -> tuple[Rollout, PyTree]:
        """What minibatches are made of: steps [T * B, ...]; of recurrent networks sequences [L, T / L * B, ...]."""
        if not self.config.recurrent:
            return jax.tree.map(lambda x: team.by_device(x, self.row_shards), experience)
        rollout, targets = jax.tree.map(lambda x: sequences(x, self.config.sequence_length), experience)
        before = jax.tree.map(lambda x: x[:1], rollout.obs.hidden)  # the rest is computed again
        return rollout._replace(obs=rollout.obs._replace(hidden=before)), targets

    def _order(self, key: jax.Array) -> jax.Array | None:
        """i32[gradient steps, rows of a minibatch]; None where every minibatch is the whole rollout, and nothing to shuffle."""
        c = self.config
        if c.num_minibatches == 1:
            return None
        rows = c.steps_per_update // (c.sequence_length if c.recurrent else 1)
        order = permutations(key, c.num_epochs, rows, self.row_shards)
        order = order.reshape(c.num_epochs * c.num_minibatches, -1)
        if self.row_shards > 1:  # the same rows, wherever they lie
            order = jnp.asarray(team.row_by_device(c.num_steps, c.num_envs, self.row_shards))[order]
        return order

    def _learn_together(self, objective, progress, params, opt_state, flat, rate, order):
        vector, unpack = self._packed(params)
        take, take_inputs = (self._minibatches(tree) for tree in (flat, (flat[0].obs, flat[0].action)))

        def slope(vector, index):
            batch = take(index)
            rows = take_inputs(None if index is None else team.local_shard(index, self.shards))
            mine = team.local_shard(rows, self.shards) if index is None else rows
            outputs, backward = jax.vjp(lambda v: self._outputs(unpack(v), *mine), vector)

            def loss(outputs):
                return objective.loss(outputs, *batch, progress)

            # The objective gets whole minibatches. Each device ran the networks on some of their rows.
            slopes, metrics = jax.grad(loss, has_aux=True)(team.all_gather(outputs, self.shards))
            (grads,) = backward(team.local_shard(slopes, self.shards))
            return team.all_reduce_sum(grads, self.shards), metrics

        (vector, opt_state), metrics = self._run_gradient_steps(slope, vector, opt_state, rate, order)
        return unpack(vector), opt_state, metrics

    def _learn_apart(self, objective, progress, params, opt_state, flat, rate, order):
        def actor_loss(actor, rollout, targets):
            log_prob, entropy = self._policy({"actor": actor}, rollout.obs, rollout.action)
            return objective.actor_loss(log_prob, entropy, rollout, targets, progress)

        def critic_loss(critic, rollout, targets):
            critic = self.trained.critic({"critic": critic}, rollout.obs)
            return objective.critic_loss(critic, rollout, targets, progress)

        take = self._minibatches(flat)

        def learn(name, loss):
            vector, unpack = self._packed(params[name])

            def slope(vector, index):
                return jax.grad(lambda v: loss(unpack(v), *take(index)), has_aux=True)(vector)

            (vector, state), metrics = self._run_gradient_steps(slope, vector, opt_state[name], rate, order)
            return (unpack(vector), state), metrics

        tasks = [lambda: learn("actor", actor_loss), lambda: learn("critic", critic_loss)]
        (actor, of_actor), (critic, of_critic) = team.run_split(tasks, self.shards)
        params, opt_state = ({"actor": a, "critic": c} for a, c in zip(actor, critic, strict=True))
        return params, opt_state, of_actor | of_critic

    def _run_gradient_steps(
        self, slope: Callable, params: PyTree, opt_state: PyTree, rate: jax.Array, order: jax.Array | None
    ):
        """Gradient steps, whose slope(params, rows of the minibatch) is (gradients, metrics): ((params, opt_state), metrics)."""
        c = self.config

        def step(carry, index):
            params, opt_state = carry
            grads, metrics = slope(params, index)
            direction, opt_state = self.optimizer.update(self._clipped(grads), opt_state, params)
            params = jax.tree.map(lambda p, d: p - rate * d, params, direction)
            return (params, opt_state), metrics

        return jax.lax.scan(step, (params, opt_state), order, length=c.num_epochs * c.num_minibatches)

    def _minibatches(self, tree: PyTree) -> Callable[[jax.Array | None], PyTree]:
        if self.config.recurrent:
            return lambda index: tree if index is None else jax.tree.map(lambda x: x[:, index], tree)
        return minibatches(tree, self.flat_rows)

    def _packed(self, params: PyTree) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
        """Parameters as gradient steps take them, and the way back: for Adam in one vector, so that its arithmetic is three
        kernels and not three for every layer. Plain descent has none, and its tables are large."""
        return ravel_pytree(params) if self.config.optimizer == "adam" else (params, lambda same: same)

    def _outputs(self, params: PyTree, obs: PyTree, action: PyTree) -> Outputs:
        return Outputs(*self._policy(params, obs, action), self.trained.critic(params, obs))

    def _policy(self, params: PyTree, obs: PyTree, action: PyTree) -> tuple[jax.Array, jax.Array]:
        """(log pi(a|s), entropy)."""
        policy = self.trained.actor(params, obs)
        return policy.log_prob(action), policy.entropy()


def require_separable(objective: Objective) -> None:
    """ValueError where the networks cannot be trained apart."""
    if not getattr(objective, "separable", False):
        raise ValueError(
            f"{type(objective).__name__} has a loss of its own, which may tie the networks to one another, so that their "
            "gradients are clipped as one: choose clip='together', or give it an actor_loss and a critic_loss instead."
        )


def minibatches(tree: PyTree, flat: bool) -> Callable[[jax.Array | None], PyTree]:
    """index -> those rows of every leaf [N, ...]; None: all of them.

    `flat`: rows are gathered as vectors. A TPU's memory has tiles of 8 x 128 numbers: it pads images of few channels, and its
    compiler refuses gathers of many of them (measured by compiling `lpo_minatar` for v5e).
    """
    if not flat:
        return lambda index: tree if index is None else jax.tree.map(lambda x: x[index], tree)
    vectors = jax.tree.map(lambda x: x.reshape(len(x), -1) if x.ndim > 2 else x, tree)

    def take(index):
        if index is None:
            return tree
        return jax.tree.map(lambda v, x: v[index].reshape(*index.shape, *x.shape[1:]), vectors, tree)

    return take


def norm(tree: PyTree) -> jax.Array:
    """f32[]: the global norm, differentiable at zero. Summed along rows first, where there are any, which XLA's CPU backend can
    vectorise."""
    squares = [(x * x).sum(0).sum() for x in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares) + 1e-30)


def permutations(key: jax.Array, count: int, size: int, shards: int = 1) -> jax.Array:
    """i32[count, size]: independent random orders of range(size).

    Sorts one array of random high bits over index low bits, four times faster on CPU than sorting pairs. Only where at least 16
    random bits are left. Rows with equal random bits keep the order of their indices: at 2^16 rows, the most, 63 % of the rows
    share theirs with another, but one pair in 2^16 only has equal bits, so that its order differs from random that rarely.
    `shards` devices share the sorting if `count` is a multiple of `shards`.
    """
    index_bits = max(size - 1, 1).bit_length()
    if index_bits > 16:
        keys = jax.random.split(key, count)
        return jax.vmap(lambda k: jax.random.permutation(k, size))(keys)
    mask = jnp.uint32(2**index_bits - 1)
    words = (jax.random.bits(key, (count, size)) & ~mask) | jnp.arange(size, dtype=jnp.uint32)
    shards = shards if count % shards == 0 else 1
    words = team.all_gather(jnp.sort(team.local_shard(words, shards), axis=-1), shards)
    return (words & mask).astype(jnp.int32)
