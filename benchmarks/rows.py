"""What is measured: one life of PPO per row, in the same sizes on every side.

Standard library only, because peers import it from environments of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Row:
    """One life, of `num_seeds` agents at once. Separate 64x64 actor and critic, Adam at a constant
    rate (rejax has no schedule), gamma 0.99, lambda 0.95, clip 0.2. Gradients are clipped at 0.5: by
    rejax element by element, by brax by their norm over both networks, by us as `clip` says."""

    env: str  # as `envs.make` names it
    num_seeds: int
    total_steps: int  # environment steps of each agent, in whole rollouts
    num_envs: int
    num_steps: int
    num_epochs: int
    num_minibatches: int
    learning_rate: float
    activation: str
    entropy_coef: float
    value_clip: float | None  # of the value's change within an update; None: plain squares
    normalise: bool  # observations and rewards, by running statistics
    clip: str  # `AgentConfig.clip`
    peers: tuple[str, ...]
    purejaxrl: int  # env steps/s of all agents on another day: reference only

    @property
    def steps_per_update(self) -> int:
        return self.num_envs * self.num_steps

    def shortened(self, divisor: int) -> Row:
        """The same life with fewer rollouts, two at least."""
        updates = max(2, self.total_steps // self.steps_per_update // divisor)
        return replace(self, total_steps=updates * self.steps_per_update)


CARTPOLE = Row(
    env="CartPole-v1",
    num_seeds=1,
    total_steps=976 * 512,  # 500k
    num_envs=4,
    num_steps=128,
    num_epochs=4,
    num_minibatches=4,
    learning_rate=2.5e-4,
    activation="tanh",
    entropy_coef=0.01,
    value_clip=0.2,  # rejax always clips
    normalise=False,
    clip="joint",
    peers=("rejax",),  # the environment alone is done in milliseconds
    purejaxrl=157_000,
)

BREAKOUT = Row(
    env="Breakout-MinAtar",
    num_seeds=1,
    total_steps=262_144,
    num_envs=64,
    num_steps=128,
    num_epochs=4,
    num_minibatches=8,
    learning_rate=1e-3,  # at a constant 5e-3 rejax collapses
    activation="relu",
    entropy_coef=0.01,
    value_clip=0.2,
    normalise=False,
    clip="joint",
    peers=("rejax",),  # the environment alone is done in milliseconds
    purejaxrl=82_000,
)

ANT = Row(
    env="brax/ant@positional",
    num_seeds=1,
    total_steps=65_536,
    num_envs=256,
    num_steps=32,
    num_epochs=4,
    num_minibatches=8,
    learning_rate=3e-4,
    activation="tanh",
    entropy_coef=0.0,
    value_clip=None,  # as in brax; rejax clips all the same
    normalise=True,
    clip="joint",
    peers=("brax", "rejax", "bare"),
    purejaxrl=6_000,
)

ROWS = {
    "cartpole-1": CARTPOLE,
    "cartpole-1-apart": replace(CARTPOLE, clip="separate"),
    "cartpole-16": replace(CARTPOLE, num_seeds=16, total_steps=195 * 512, purejaxrl=156_000),
    "breakout-1": BREAKOUT,
    "breakout-8": replace(BREAKOUT, num_seeds=8, total_steps=65_536, purejaxrl=68_000),
    "ant-1": ANT,
}
