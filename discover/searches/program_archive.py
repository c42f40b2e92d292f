"""The archive of a search for programs: every text that was proposed, what it scored, or why it was refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

LONGEST_REFUSED = 500  # characters of a refused text that are kept


class Entry(NamedTuple):
    """One proposal. A line of the archive's JSON Lines has these fields by name."""

    number: int  # from 0, in the order of the proposals
    generation: int
    by: str  # the name of the proposer, or "reference"
    program: str  # the text; of a refused one, its first 500 characters
    fitness: tuple[float | None, ...] = ()  # mean return by environment; None: diverged, or not trained there
    score: float | None = None  # above PPO, see `ProgramSearch`; None: refused
    refused: str | None = None  # the sentence that says why
    function: str | None = None  # a digest of its values at the probe points

    @property
    def is_scored(self) -> bool:
        return self.score is not None


@dataclass(frozen=True)
class Archive:
    """What a proposer sees."""

    entries: tuple[Entry, ...]
    generation: int  # for which proposals are wanted
    asked: int  # texts that this proposer has given before
    size: int  # of the population
    tournament: int  # members that a parent is the best of
    variables: tuple[str, ...]  # that a program may read
    rng: np.random.Generator  # from the key of the generation: a run that is resumed draws the same numbers

    @property
    def population(self) -> tuple[Entry, ...]:
        """The newest entries with a score: the oldest leaves when a new one arrives."""
        return tuple(e for e in self.entries if e.is_scored)[-self.size :]

    @property
    def best(self) -> Entry | None:
        """The entry of the highest score, the first of equal ones; None before any."""
        scored = [e for e in self.entries if e.is_scored]
        return max(scored, key=lambda e: e.score) if scored else None


def lines(entries: Iterable[Entry]) -> str:
    """JSON Lines."""
    return "".join(json.dumps(entry._asdict()) + "\n" for entry in entries)


def entries_of(text: str) -> tuple[Entry, ...]:
    """The inverse of `lines`."""
    found = (json.loads(line) for line in text.splitlines())
    return tuple(Entry(**{**fields, "fitness": tuple(fields["fitness"])}) for fields in found)


def encode(entries: Sequence[Entry], capacity: int, size: int) -> tuple[np.ndarray, int]:
    """The lines as u8[capacity], and how many bytes of it they fill.

    Where they do not fit, refused entries leave first, then those that have left the population of this `size`; the oldest first.
    The best one stays.
    """
    data = lines(entries).encode()
    if len(data) > capacity:
        data = lines(_newest(entries, capacity, size)).encode()
    found = np.zeros(capacity, np.uint8)
    found[: len(data)] = np.frombuffer(data, np.uint8)
    return found, len(data)


def _newest(entries: Sequence[Entry], capacity: int, size: int) -> list[Entry]:
    """What is kept in three quarters of the capacity, so that the archive is not cut again at once."""
    scored = [e for e in entries if e.is_scored]
    kept = {e.number for e in (*scored[-size:], *([max(scored, key=lambda e: e.score)] if scored else []))}
    room = 3 * capacity // 4 - len(lines(e for e in entries if e.number in kept))
    others = [e for e in reversed(entries) if e.number not in kept]
    for entry in sorted(others, key=lambda e: not e.is_scored):  # stable: the newest first
        room -= len(lines([entry]))
        if room < 0:
            break
        kept.add(entry.number)
    return [e for e in entries if e.number in kept]


def decode(data: np.ndarray, used: int) -> tuple[Entry, ...]:
    return entries_of(bytes(np.asarray(data[:used])).decode())
