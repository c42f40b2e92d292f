"""Seaquest of MinAtar: gymnax's game, frame for frame, in buffers as small as its rules allow."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.minatar import seaquest

from envs.interface import Capabilities
from envs.minatar import entities as en

# Buffer -> (its count, its slots). The game can fill this many slots, in parameters that `Params` lets through:
#   f_bullets, 2: one is fired every 5 frames, and gone on its 10th.
#   divers, 2: one comes every 30 frames, and is gone on its 60th, after 10 moves of 6 frames each.
#   e_fish and e_subs, 30: one enemy a frame where the spawn speed is 1, gone on its 30th. Before that, say that the move
#     interval comes down to 2 in frame T, no later than the sixth surfacing. Until then spawns are 15 frames or more apart and
#     enemies gone on their 60th: 4 at most. These are gone by T + 33, after an old interval and 9 moves of 3 frames. The spawn
#     speed is at least 14 at T, and 1 from T + 26 on at the earliest, as surfacing takes 2 frames: few have come by T + 33.
#   e_bullets, 14: a sub fires every 11 frames, and a bullet is gone on its 10th at the latest, ahead of its sub: one for each
#     sub from before T, at most 4. A later sub fires in its 11th and 22nd frames, in columns 3 and 7 of its way, and the bullets
#     are gone on their 7th and 3rd: 10 at most where each frame brings a sub.
BUFFERS = {
    "f_bullets": ("f_bullet_count", 3),
    "e_bullets": ("e_bullet_count", 16),
    "e_fish": ("e_fish_count", 32),
    "e_subs": ("e_subs_count", 32),
    "divers": ("divers_count", 3),
}


LONG = 2 ** en.BITS["shot"] - 1
RANGES = {
    "init_spawn_speed": (20, LONG),
    "init_move_interval": (0, 5),
    "diver_spawn_speed": (30, LONG),
    "diver_move_interval": (0, 5),
    "shot_cool_down": (5, LONG),
    "enemy_shot_interval": (10, LONG),
}


@struct.dataclass
class Params(seaquest.EnvParams):
    """gymnax's parameters and defaults. Those that could crowd the board are constants of the program, and checked.

    Raises ValueError, in a sentence, for one beyond `RANGES`.
    """

    init_spawn_speed: int = struct.field(pytree_node=False, default=20)
    init_move_interval: int = struct.field(pytree_node=False, default=5)
    diver_spawn_speed: int = struct.field(pytree_node=False, default=30)
    diver_move_interval: int = struct.field(pytree_node=False, default=5)
    shot_cool_down: int = struct.field(pytree_node=False, default=5)
    enemy_shot_interval: int = struct.field(pytree_node=False, default=10)

    def __post_init__(self):
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(
                    f"{name} must be from {low} to {high}, or Seaquest's buffers could overflow, and is {value}: "
                    "envs.Uniform(gymnax.make('Seaquest-MinAtar')[0]) takes any."
                )


class Seaquest(Capabilities, seaquest.MinSeaquest):
    """gymnax's `MinSeaquest`: the same keys give the same steps, bit for bit, in a small part of the time.

    The state is gymnax's without the slots that are never used: see `BUFFERS`.
    """

    binary_obs = True

    @property
    def default_params(self) -> Params:
        return Params()

    def reset_env(self, key, params):
        """(obs, state) at the start of an episode."""
        _require_own(params)
        _, state = super().reset_env(key, params)
        state = state.replace(**{name: getattr(state, name)[:slots] for name, (_, slots) in BUFFERS.items()})
        return self.get_obs(state, params), state

    def step_env(self, key, state, action, params):
        """(obs, state, reward, terminated, info)."""
        _require_own(params)
        ours, shots, fish, subs, divers = (_read(state, name) for name in BUFFERS)
        state, fish, subs, divers = _spawn(key, state, fish, subs, divers, params)
        state, ours = _act(state, ours, self.action_set[action], params)

        ours = en.fly(ours)
        ours, fish, reward_fish = en.collide(ours, fish)
        ours, subs, reward_subs = en.collide(ours, subs)

        for moves in (False, True):
            divers = en.move(divers, params.diver_move_interval) if moves else divers
            picked = seaquest._pick_up_divers(divers.alive, _at(divers, state), state.diver_count)
            divers = divers._replace(alive=divers.alive & ~picked)
            state = state.replace(diver_count=state.diver_count + picked.sum(dtype=jnp.int32))

        hit = _hit(subs, state)
        subs = en.move(subs, state.move_speed)
        hit |= _hit(subs, state)
        ours, subs, reward = en.collide(ours, subs)
        shoots = subs.alive & (subs.shot == 0)
        subs = subs._replace(shot=jnp.where(shoots, params.enemy_shot_interval, jnp.maximum(subs.shot - 1, 0)))
        shots = jax.tree.map(
            lambda old, new: jnp.concatenate([old, new]), shots, en.Entities(shoots, subs.x, subs.y, subs.right)
        )

        hit |= _hit(shots, state)
        shots = en.fly(shots)
        hit |= _hit(shots, state)

        hit |= _hit(fish, state)
        fish = en.move(fish, state.move_speed)
        hit |= _hit(fish, state)
        ours, fish, reward_late = en.collide(ours, fish)
        for (name, (count, slots)), entities in zip(BUFFERS.items(), (ours, shots, fish, subs, divers), strict=True):
            state = state.replace(**dict(zip((name, count), en.write(entities, slots), strict=True)))

        state, reward_surface, out = self._step_timers(state, params)
        state = state.replace(time=state.time + 1)
        done = self.is_terminal(state, params) | hit | out
        state = state.replace(terminal=done)
        reward = reward_fish + reward_subs + reward + reward_late + reward_surface
        return (
            jax.lax.stop_gradient(self.get_obs(state, params)),
            jax.lax.stop_gradient(state),
            reward.astype(jnp.float32),
            done,
            {"discount": self.discount(state, params)},
        )

    def get_obs(self, state, params=None, key=None):
        """f32[10, 10, 10]: row, column, channel."""
        params = self.default_params if params is None else params
        ours, shots, fish, subs, divers = (_read(state, name) for name in BUFFERS)
        line = np.arange(en.SIZE)
        # gymnax's indexing: the column before the first is the last, and that after the last is none
        back = jnp.where(state.sub_or, (state.sub_x - 1) % en.SIZE, state.sub_x + 1)
        oxygen = line < jnp.maximum(state.oxygen, 0) * 10 // params.max_oxygen
        rescued = (line >= 9 - state.diver_count) & (line < 9)
        rows = [
            jnp.where(line == state.sub_y, 1 << state.sub_x, 0),
            jnp.where(line == state.sub_y, 1 << back, 0),
            en.rows(ours),
            en.rows(fish, behind=1) | en.rows(subs, behind=1) | en.rows(divers, behind=1),
            en.rows(shots),
            en.rows(fish),
            en.rows(subs),
            jnp.where(line == 9, jnp.where(oxygen, 1 << line, 0).sum(), 0),
            jnp.where(line == 9, jnp.where(rescued, 1 << line, 0).sum(), 0),
            en.rows(divers),
        ]
        # a sum, and no stack: XLA would evaluate that once for each of the thousand cells
        bits = en.total(jnp.where(line == channel, row[:, None], 0) for channel, row in enumerate(rows))
        return (bits[:, None, :] >> line[:, None] & 1).astype(jnp.float32)

    def state_space(self, params):
        """gymnax's, with as many slots as there are."""
        space = super().state_space(params).spaces
        for name, (count, slots) in BUFFERS.items():
            box = space[name]
            space[name] = spaces.Box(box.low, box.high, (slots, box.shape[1]))
            space[count] = spaces.Discrete(slots + 1)
        return spaces.Dict(space)


def _require_own(params):
    if not isinstance(params, Params):
        kind = f"{type(params).__module__}.{type(params).__qualname__}"
        raise ValueError(f"Seaquest takes its own parameters, env.default_params, and these are {kind}.")


def _read(state, name):
    buffer, count = getattr(state, name), getattr(state, BUFFERS[name][0])
    return en.Entities(jnp.arange(buffer.shape[0]) < count, *buffer.T)


def _at(entities, state):
    return (entities.x == state.sub_x) & (entities.y == state.sub_y)


def _hit(entities, state):
    return jnp.any(entities.alive & _at(entities, state))


def _spawn(key, state, fish, subs, divers, params):
    """With gymnax's random numbers."""
    key_enemy, key_diver = jax.random.split(key)
    key_kind, key_row = jax.random.split(key_enemy)
    values = jax.random.uniform(key_kind, (2,))
    right, is_sub = values[0] < 0.5, values[1] < 1.0 / 3.0
    y = jax.random.randint(key_row, (), 1, 9)
    due = state.e_spawn_timer == 0
    opposed = [jnp.any(enemy.alive & (enemy.y == y) & (enemy.right != right)) for enemy in (subs, fish)]
    comes = due & ~(opposed[0] | opposed[1])
    enemy = jnp.where(right, 0, 9), y, right.astype(jnp.int32), state.move_speed
    subs = en.append(subs, comes & is_sub, *enemy, params.enemy_shot_interval)
    fish = en.append(fish, comes & ~is_sub, *enemy)

    key_direction, key_row = jax.random.split(key_diver)
    right = jax.random.bernoulli(key_direction)
    y = jax.random.randint(key_row, (), 1, 9)
    diver_due = state.d_spawn_timer == 0
    divers = en.append(
        divers, diver_due, jnp.where(right, 0, 9), y, right.astype(jnp.int32), params.diver_move_interval
    )
    state = state.replace(
        e_spawn_timer=jnp.where(due, state.e_spawn_speed, state.e_spawn_timer),
        d_spawn_timer=jnp.where(diver_due, params.diver_spawn_speed, state.d_spawn_timer),
    )
    return state, fish, subs, divers


def _act(state, bullets, action, params):
    left, up, right, down, fire = (action == number for number in range(1, 6))
    x = jnp.clip(state.sub_x + jnp.where(right, 1, 0) - jnp.where(left, 1, 0), 0, 9)
    y = jnp.clip(state.sub_y + jnp.where(down, 1, 0) - jnp.where(up, 1, 0), 0, 8)
    facing = right | (state.sub_or & ~left)
    fire &= state.shot_timer == 0
    bullets = en.append(bullets, fire, x, y, facing.astype(jnp.int32))
    timer = jnp.where(fire, params.shot_cool_down, state.shot_timer)
    return state.replace(sub_x=x, sub_y=y, sub_or=facing, shot_timer=timer), bullets
