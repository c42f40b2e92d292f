"""A drift of few numbers: PPO's clip, with widths, slopes and softness that a search can move."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from learned_objectives import inputs
from learned_objectives.core import Progress
from learned_objectives.drifts import MAX_LOG_RATIO, Drift

NUMBERS = ("width", "slope", "softness", "reach", "back_width", "back_slope")  # of each sign of A
SIGNS = ("positive", "negative")  # advantages
LARGEST = 4.0  # of the exponent of a width


class SoftClip(Drift):
    """PPO's clip in six numbers for each sign of the advantage. All zero, it is PPO's clip.

        D(r, A) = |A| (k h(u; w, t) + k_b h(-u; w_b, 1)),    u = (r - 1) sign(A)

    u > 0 is a step that the advantage asks for, u < 0 one against it. h is a hinge at w, rounded over a part t of its width:

        h(u; w, t) = 0                           u <= w (1 - t)
                     (u - w (1 - t))^2 / (4 w t)   in between
                     u - w                        u >= w (1 + t)

    Of the numbers a = `numbers` at a moment of a life:

        w = epsilon e^(a_width) |A|^(a_reach)    where PPO stops paying for a step; PPO: epsilon
        k = |1 + a_slope|                        1 is flat beyond w, as PPO; more pulls back
        t = min(|a_softness|, 1)                 0 is PPO's kink
        w_b = epsilon e^(a_back_width)           where a step against the advantage is pulled back
        k_b = |a_back_slope|                     by so much more than the gain alone does; PPO: 0

    The exponent of a width, log(w / epsilon) or log(w_b / epsilon), is limited to [-4, 4]. In |A|^(a_reach) alone, |A| is limited
    to [0.01, 100].

    D >= 0, D = 0 and D flat at r = 1 hold for any numbers, since h is zero up to w (1 - t) >= 0.

    The inputs x of a = sum_i x_i row_i are 1; with `time_aware=True` also n/N and log10 N - 5.5, N in environment steps; and
    with `sees_statistics=True` also KL / 0.01, entropy, explained variance and clipped / 0.1 of the agent's last update
    (`Statistics`), each at most 5.
    """

    numbers: jax.Array  # f32[R, 2, 6]; R = 1 + 2 if time-aware + 4 if it sees statistics; axes as in SIGNS and NUMBERS
    time_aware: bool = struct.field(pytree_node=False, default=False)
    epsilon: float = struct.field(pytree_node=False, default=0.2)
    sees_statistics: bool = struct.field(pytree_node=False, default=False)

    @classmethod
    def create(cls, *, time_aware: bool = False, sees_statistics: bool = False, epsilon: float = 0.2) -> SoftClip:
        """PPO's clip."""
        rows = len(inputs.names(time_aware, sees_statistics))
        return cls(jnp.zeros((rows, len(SIGNS), len(NUMBERS))), time_aware, epsilon, sees_statistics)

    def extended(self, *, time_aware: bool = False, sees_statistics: bool = False) -> SoftClip:
        """The same drift with more inputs, on which its numbers do not depend yet. What it sees already stays."""
        new = SoftClip.create(
            time_aware=time_aware or self.time_aware,
            sees_statistics=sees_statistics or self.sees_statistics,
            epsilon=self.epsilon,
        )
        place = {name: row for row, name in enumerate(new.inputs)}
        rows = jnp.array([place[name] for name in self.inputs])
        return new.replace(numbers=new.numbers.at[rows].set(self.numbers))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the R inputs."""
        return inputs.names(self.time_aware, self.sees_statistics)

    @property
    def needs_progress(self) -> bool:  # type: ignore[override]
        return self.time_aware or self.sees_statistics

    @property
    def needs_statistics(self) -> bool:  # type: ignore[override]
        return self.sees_statistics

    def at(self, progress: Progress | None = None) -> jax.Array:
        """f32[..., 2, 6]: the numbers at a moment of a life. `progress` of shape [...]; not read unless it is an input."""
        aware, sees = self.time_aware, self.sees_statistics
        return inputs.combine(self.numbers, progress, time_aware=aware, sees_statistics=sees, owner="SoftClip")

    def __call__(self, log_ratio, advantage, progress=None):
        advantage = jnp.asarray(advantage)
        numbers = jnp.broadcast_to(self.at(progress), (*jnp.shape(log_ratio), len(SIGNS), len(NUMBERS)))
        positive = (advantage >= 0)[..., None]
        width, slope, softness, reach, back_width, back_slope = jnp.moveaxis(
            jnp.where(positive, numbers[..., 0, :], numbers[..., 1, :]), -1, 0
        )
        size = jnp.abs(advantage)
        forward = jnp.where(advantage >= 0, 1.0, -1.0) * jnp.expm1(log_ratio)
        log_size = jnp.log(jnp.clip(size, 1e-2, 1e2))
        edge = self.epsilon * jnp.exp(jnp.clip(width + reach * log_size, -LARGEST, LARGEST))
        back_edge = self.epsilon * jnp.exp(jnp.clip(back_width, -LARGEST, LARGEST))
        ahead = jnp.abs(1.0 + slope) * hinge(forward, edge, jnp.minimum(jnp.abs(softness), 1.0))
        return size * (ahead + jnp.abs(back_slope) * hinge(-forward, back_edge, jnp.ones_like(back_edge)))

    def constant_from(self, advantage):
        """Where the slope is exactly PPO's, beyond the rounded part; a conservative bound over all of a life."""
        exact = not self.needs_progress
        width, slope, _, reach = (self.numbers[0, 0, i] for i in range(4))
        log_size = jnp.log(jnp.clip(jnp.abs(advantage), 1e-2, 1e2))
        edge = 2.0 * self.epsilon * jnp.exp(jnp.clip(width + reach * log_size, -LARGEST, LARGEST))
        flat = exact & (slope == 0.0) & (advantage > 0)
        return jnp.where(flat, jnp.log1p(edge), MAX_LOG_RATIO)

    def table(self, progress: Progress | None = None) -> dict[str, dict[str, float]]:
        """{"positive": {"width": 0.2, ...}, ...}: w, k, t, reach, w_b and k_b of each sign, for readers."""
        found = {}
        for sign, a in zip(SIGNS, self.at(progress), strict=True):
            values = (
                self.epsilon * jnp.exp(jnp.clip(a[0], -LARGEST, LARGEST)),
                jnp.abs(1.0 + a[1]),
                jnp.minimum(jnp.abs(a[2]), 1.0),
                a[3],
                self.epsilon * jnp.exp(jnp.clip(a[4], -LARGEST, LARGEST)),
                jnp.abs(a[5]),
            )
            found[sign] = {name: round(float(value), 4) for name, value in zip(NUMBERS, values, strict=True)}
        return found

    def formulas(self) -> dict[str, str]:
        """{"width, A > 0": "0.2 exp(0.31 + 0.29 n/N)", ...}: of numbers that do not round to 0.00.

        For readers: limits and the factor |A|^reach of a width are left out.
        """
        forms = (
            f"{self.epsilon:g} exp({{}})",
            "|1 + ({})|",
            "min(|{}|, 1)",
            "{}",
            f"{self.epsilon:g} exp({{}})",
            "|{}|",
        )
        found = {}
        for s, sign in enumerate((">", "<")):
            for k, (name, form) in enumerate(zip(NUMBERS, forms, strict=True)):
                if (text := inputs.formula(self.numbers[:, s, k], self.inputs)) != "0":
                    found[f"{name.replace('_', ' ')}, A {sign} 0"] = form.format(text)
        return found

    def validate(self) -> None:
        """Raise ValueError with a sentence if the fields do not fit together, as in a file made by hand."""
        expected = (len(self.inputs), len(SIGNS), len(NUMBERS))
        if jnp.shape(self.numbers) != expected:
            raise ValueError(f"this SoftClip must have numbers of shape {expected}, and has {jnp.shape(self.numbers)}.")


def hinge(u: jax.Array, width: jax.Array, softness: jax.Array) -> jax.Array:
    """0 up to width (1 - softness), u - width from width (1 + softness) on, and a parabola in between: f32[...]."""
    span = width * jnp.maximum(softness, 1e-6)
    return jnp.where(u >= width + span, u - width, jax.nn.relu(u - width + span) ** 2 / (4.0 * span))
