"""Freeway of MinAtar: gymnax's game, frame for frame, with all cars moved at once."""

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments.minatar import freeway

from envs.interface import Capabilities

SIZE, CARS, CHANNELS = 10, 8, 7
COLUMN, START = 4, 9  # the chicken's column, and the row it starts from


class Freeway(Capabilities, freeway.MinFreeway):
    """gymnax's `MinFreeway`: the same keys give the same steps, bit for bit.

    gymnax goes through the cars one by one, in code written out eight times over, which takes seconds to compile wherever the
    game is stepped or reset. A hit sends the chicken to its start whatever its place in that order, so all cars may move at once.
    """

    binary_obs = True

    def step_env(self, key, state, action, params):
        """(obs, state, reward, terminated, info)."""
        state, reward, won = freeway.step_agent(self.action_set[action], state, params)
        speed = _speeds(key)
        cars = state.cars.at[:, 2:].set(jnp.stack([jnp.abs(speed), speed], axis=1))
        state = _move(state.replace(cars=jnp.where(won, cars, state.cars)))
        state = state.replace(time=state.time + 1)
        done = self.is_terminal(state, params)
        state = state.replace(terminal=done)
        return (
            jax.lax.stop_gradient(self.get_obs(state)),
            jax.lax.stop_gradient(state),
            reward.astype(jnp.float32),
            done,
            {"discount": self.discount(state, params)},
        )

    def reset_env(self, key, params):
        """(obs, state) at the start of an episode."""
        speed = _speeds(key)
        cars = jnp.stack([jnp.zeros_like(speed), jnp.arange(1, CARS + 1), jnp.abs(speed), speed], axis=1)
        state = freeway.EnvState(pos=START, cars=cars, move_timer=params.player_speed, time=0, terminal=False)
        return self.get_obs(state), state

    def get_obs(self, state, params=None, key=None):
        """f32[10, 10, 7]: row, column, channel."""
        x, row, _, speed = state.cars.T
        back = (x - jnp.sign(speed)) % SIZE
        line, channel = np.arange(SIZE), np.arange(CHANNELS)
        # i32[8, 7]: the columns of a car and of its trail, which is in the channel of its speed, as bits
        bits = jnp.where(channel == 1, 1 << x[:, None], 0)
        bits |= jnp.where(channel == 1 + jnp.abs(speed)[:, None], 1 << back[:, None], 0)
        bits = jnp.where((row[:, None] == line)[..., None], bits[:, None], 0)
        bits = jnp.bitwise_or.reduce(bits, axis=0)  # i32[10, 7]
        bits |= jnp.where((line == state.pos)[:, None] & (channel == 0), 1 << COLUMN, 0)
        return (bits[:, None] >> line[:, None] & 1).astype(jnp.float32)


def _speeds(key):
    """i32[8]: how many frames each car waits between moves, below 0 for one that goes left; drawn as gymnax draws them."""
    key_speed, key_direction = jax.random.split(key)
    speed = jax.random.randint(key_speed, (CARS,), 1, 6)
    return speed * jax.random.choice(key_direction, jnp.array([-1, 1]), (CARS,))


def _move(state):
    """The cars, and the chicken back where one is in its place before or after."""
    x, row, timer, speed = state.cars.T
    moves = timer == 0
    after = jnp.where(moves, (x + jnp.where(speed > 0, 1, -1)) % SIZE, x)
    hit = (row == state.pos) & ((x == COLUMN) | moves & (after == COLUMN))
    timer = jnp.where(moves, jnp.abs(speed), timer - 1)
    return state.replace(
        pos=jnp.where(hit.any(), START, state.pos),
        cars=jnp.stack([after, row, timer, speed], axis=1),
        move_timer=state.move_timer - (state.move_timer > 0),
    )
