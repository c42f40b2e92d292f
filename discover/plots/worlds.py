"""Figures of grid worlds: a level, an episode, and the levels with the highest probability in a curriculum."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from matplotlib.animation import FuncAnimation
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from matplotlib.text import Text

from discover.plots.style import COLOURS
from discover.searches.curriculum import Buffer, CurriculumConfig, replay_probability
from envs.gridworld import GridState, GridWorld, Level
from envs.interface import Named


def level_picture(env: GridWorld, level: Level, states: GridState | None = None, *, title: str = "") -> Figure:
    """A grid world; with the states [T] of an episode, the way the agent went as well.

    An object's colour and number are its reward; a ring shows where the agent starts, or is at last.
    """
    figure = Figure(figsize=(0.4 + 0.42 * env.width, 0.7 + 0.42 * env.height), layout="constrained")
    _picture(figure.subplots(), env, level, states, title)
    return figure


def grid_world(env: Any) -> GridWorld | None:
    """The grid world that an environment is, under whatever name; None where it is not a grid world, and has no picture."""
    world = env.env if isinstance(env, Named) else env
    return world if isinstance(world, GridWorld) else None


def favourites(env: Any, config: CurriculumConfig, buffer: Buffer, *, count: int = 8) -> Figure:
    """The levels that prioritised replay is likeliest to go back to, and, below them, the least likely ones.

    Raises ValueError if no level has entered the buffer, or if the tasks are no grid worlds.
    """
    world = grid_world(env)
    if world is None:
        raise ValueError(f"favourites are drawn of grid worlds, and these tasks are of {env.name}.")
    if count < 1:
        raise ValueError(f"count must be at least 1, and is {count}.")
    chance = np.asarray(replay_probability(config, buffer))
    held = np.flatnonzero(np.asarray(buffer.number) > 0)
    if not held.size:
        raise ValueError("the buffer is empty: no life has ended yet.")
    order = held[np.argsort(-chance[held], kind="stable")]
    count = min(count, max(1, order.size // 2))
    figure = Figure(figsize=(count * (0.5 + 0.26 * world.width), 2 * (0.7 + 0.28 * world.height)), layout="constrained")
    axes = figure.subplots(2, count, squeeze=False)
    for row, chosen in zip(axes, (order[:count], order[-count:]), strict=True):
        for axis, slot in zip(row, chosen, strict=False):
            level = jax.tree.map(lambda x: x[slot], buffer.task.env_params)  # noqa: B023
            title = f"score {float(buffer.score[slot]):.2g}\nchance {chance[slot]:.1%}"
            _picture(axis, world, level, None, title, numbers=world.width < 7)
    axes[0, 0].set_ylabel("favourites")
    axes[1, 0].set_ylabel("least wanted")
    return figure


def _picture(
    axis: Axes, env: GridWorld, level: Level, states: GridState | None, title: str, numbers: bool = True
) -> None:
    present = np.asarray(level.used)
    cells, position = np.asarray(level.cell), int(level.start)
    if states is not None:
        positions = np.asarray(states.position)
        rows, columns = positions // env.width, positions % env.width
        axis.plot(columns, rows, color=COLOURS[0], alpha=0.5, linewidth=1.5, zorder=2)
        present, cells, position = np.asarray(states.present)[-1], np.asarray(states.cell)[-1], int(positions[-1])
    _draw_level(axis, env, level)
    for artist in _draw_things(axis, env, level, present, cells, position):
        if numbers or not isinstance(artist, Text):
            axis.add_artist(artist)
    axis.set_title(title, fontsize=9)


def level_animation(env: GridWorld, level: Level, states: GridState, *, interval: int = 120) -> FuncAnimation:
    """An episode, states [T], as it goes: `HTML(level_animation(...).to_jshtml())` shows it in a notebook. `interval` in ms."""
    figure = Figure(figsize=(0.4 + 0.42 * env.width, 0.4 + 0.42 * env.height), layout="constrained")
    axis = figure.subplots()
    _draw_level(axis, env, level)
    present, cells, positions = (np.asarray(x) for x in (states.present, states.cell, states.position))
    shown: list[Any] = []

    def frame(t: int):
        for artist in shown:
            artist.remove()
        shown[:] = _draw_things(axis, env, level, present[t], cells[t], int(positions[t]))
        for artist in shown:
            axis.add_artist(artist)
        return shown

    return FuncAnimation(figure, frame, frames=len(positions), interval=interval)


def _draw_level(axis: Axes, env: GridWorld, level: Level) -> None:
    wall = np.flatnonzero(np.asarray(level.wall))
    blocks = [Rectangle((w % env.width - 0.5, w // env.width - 0.5), 1, 1) for w in wall]
    axis.add_collection(PatchCollection(blocks, facecolor="0.25", edgecolor="none"))
    axis.set(xlim=(-0.5, env.width - 0.5), ylim=(env.height - 0.5, -0.5), xticks=[], yticks=[], aspect="equal")
    axis.set_xticks(np.arange(env.width) - 0.5, minor=True)
    axis.set_yticks(np.arange(env.height) - 0.5, minor=True)
    axis.grid(which="minor", color="0.85", linewidth=0.5)
    axis.tick_params(which="minor", length=0)


def _draw_things(axis: Axes, env: GridWorld, level: Level, present, cells, position: int) -> list[Any]:
    """Objects and agent, as artists that are in no axes yet."""
    things: list[Any] = []
    for there, cell, reward in zip(present, cells, np.asarray(level.reward), strict=True):
        if there:
            at = (cell % env.width, cell // env.width)
            things.append(Circle(at, 0.36, facecolor=COLOURS[2] if reward > 0 else COLOURS[1], zorder=3))
            things.append(Text(*at, f"{reward:.1f}", ha="center", va="center", fontsize=7, color="white", zorder=4))
    at = (position % env.width, position // env.width)
    things.append(Circle(at, 0.44, facecolor="none", edgecolor=COLOURS[0], linewidth=2.5, zorder=5))
    return things
