"""Proposers of programs, functions of (archive, n) that return at most n texts: mutation, random texts, a file, a user's own."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from discover.plugins import Registry, returned
from discover.searches.program_archive import Archive, Entry
from envs import plugs
from learned_objectives.expressions import CONDITION, CONSTANT, NUMBER, OPERATIONS, write
from learned_objectives.parsing import parse

Node = str | float  # a variable or an operation; a constant
Proposer = Callable[[Archive, int], Sequence[str]]

REPLAY = "replay:"  # before the path of a file
LARGEST_FILE = 2**26  # bytes
CONSTANTS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.6, 1.0, 2.0, 3.0)
AT_ONE = ("log_r", "r1")  # variables that are zero at ratio 1
BY_TYPES: dict[tuple, list[str]] = {}  # operations by the types they take and give
for _name, _op in OPERATIONS.items():
    BY_TYPES.setdefault((_op.takes, _op.gives), []).append(_name)


def nodes_of(text: str) -> list[Node]:
    """The postfix nodes of a text."""
    code, constants = parse(text)
    numbers = iter(constants)
    return [next(numbers) if node == CONSTANT else node for node in code]


def text_of(nodes: Sequence[Node]) -> str:
    """The inverse of `nodes_of`."""
    code = [CONSTANT if isinstance(node, float) else node for node in nodes]
    return write(code, [node for node in nodes if isinstance(node, float)])


def start_of(nodes: Sequence[Node], end: int) -> int:
    """Where the subexpression begins whose last node is at `end`."""
    wanted, at = 1, end + 1
    while wanted:
        at -= 1
        node = nodes[at]
        wanted += (len(OPERATIONS[node].takes) if node in OPERATIONS else 0) - 1
    return at


def type_of(node: Node) -> str:
    return OPERATIONS[node].gives if node in OPERATIONS else NUMBER


def pick(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    return options[int(rng.integers(len(options)))]


def some_constant(rng: np.random.Generator) -> float:
    return float(f"{pick(rng, CONSTANTS) * math.exp(0.3 * rng.normal()):.2g}")


def some_expression(rng: np.random.Generator, variables: Sequence[str], depth: int, kind: str = NUMBER) -> list[Node]:
    """Any expression of a type, at most `depth` operations deep, and one more for a condition."""
    if kind == CONDITION:
        left, right = (some_expression(rng, variables, depth - 1) for _ in range(2))
        return [*left, *right, pick(rng, "<>")]
    if depth <= 0 or rng.random() < 0.2:
        return [some_constant(rng)] if rng.random() < 0.3 else [pick(rng, variables)]
    name = pick(rng, [name for name, op in OPERATIONS.items() if op.gives == NUMBER])
    arguments = (some_expression(rng, variables, depth - 1, takes) for takes in OPERATIONS[name].takes)
    return [*(node for argument in arguments for node in argument), name]


def some_drift(rng: np.random.Generator, variables: Sequence[str], depth: int) -> list[Node]:
    """A drift by its form, for most draws: saturation, a clip, a square, and what sums, bounds and choices make of them."""
    steady = [name for name in variables if name not in AT_ONE]  # the same at all ratios
    kind = int(rng.integers(7 if depth > 0 else 3))
    if kind == 0:  # relu(x - k tanh(x / k)) of a step x
        x, k = _some_step(rng, steady), some_constant(rng)
        return [*x, k, *x, k, "/", "tanh", "*", "-", "relu"]
    if kind == 1:  # relu((y - max(min(y, w), -v)) A), as PPO
        y = pick(rng, AT_ONE)
        return [y, y, some_constant(rng), "min", -some_constant(rng), "max", "-", "A", "*", "relu"]
    if kind == 2:
        return [*_some_step(rng, steady), "square", some_constant(rng), "*"]
    one = some_drift(rng, variables, depth - 1)
    if kind == 3:
        return [*one, *some_expression(rng, steady, 1), pick(rng, ("abs", "relu", "exp")), "*"]
    other = some_drift(rng, variables, depth - 1)
    if kind == 4:
        return [*some_expression(rng, steady, 0, CONDITION), *one, *other, "where"]
    if kind == 5:
        return ["A", 0.0, pick(rng, "<>"), *one, *other, "where"]
    return [*one, *other, pick(rng, ("+", "min", "max"))]


def _some_step(rng: np.random.Generator, steady: Sequence[str]) -> list[Node]:
    """An expression that is zero at ratio 1, most often times A."""
    step = [pick(rng, AT_ONE)]
    return [*step, "A", "*"] if rng.random() < 0.8 else [*step, *some_expression(rng, steady, 1), "*"]


def random_texts(archive: Archive, n: int) -> list[str]:
    """Half of them drifts by their form, half any expressions."""
    rng, variables = archive.rng, archive.variables
    draw = lambda: some_drift(rng, variables, 2) if rng.random() < 0.5 else some_expression(rng, variables, 4)
    return [text_of(draw()) for _ in range(n)]


def parent(archive: Archive) -> Entry:
    """The best of a few members of the population, drawn at random."""
    members = archive.population
    drawn = [pick(archive.rng, members) for _ in range(archive.tournament)]
    return max(drawn, key=lambda entry: entry.score)


def mutated_texts(archive: Archive, n: int) -> list[str]:
    """Children of winners of tournaments. Reference: Real et al. 2019, arXiv:1802.01548, and Co-Reyes et al. 2021."""
    if not archive.population:
        return random_texts(archive, n)
    return [text_of(_child(archive, nodes_of(parent(archive).program))) for _ in range(n)]


def _child(archive: Archive, nodes: list[Node]) -> list[Node]:
    """One change, and with probability a third another one on top of it."""
    while True:
        nodes = pick(archive.rng, CHANGES)(archive, nodes)
        if archive.rng.random() >= 1 / 3:
            return nodes


def _stretch(rng: np.random.Generator, nodes: list[Node], kind: str | None = None) -> tuple[int, int] | None:
    """A subexpression of a type, [start, end), drawn at random; None without one."""
    ends = [i for i, node in enumerate(nodes) if kind is None or type_of(node) == kind]
    if not ends:
        return None
    end = pick(rng, ends)
    return start_of(nodes, end), end + 1


def _constant_moved(archive: Archive, nodes: list[Node]) -> list[Node]:
    places = [i for i, node in enumerate(nodes) if isinstance(node, float)]
    if not places:
        return operation_changed(archive, nodes)
    at, rng = pick(archive.rng, places), archive.rng
    value = nodes[at] * math.exp(0.3 * rng.normal()) if rng.random() < 0.9 else some_constant(rng)
    return [*nodes[:at], float(f"{np.clip(value, -1e6, 1e6):.3g}"), *nodes[at + 1 :]]


def operation_changed(archive: Archive, nodes: list[Node]) -> list[Node]:
    """Another operation of the same types, or another variable."""
    at = int(archive.rng.integers(len(nodes)))
    node = nodes[at]
    if isinstance(node, float):
        return _constant_moved(archive, nodes)
    options = archive.variables
    if node in OPERATIONS:
        options = BY_TYPES[OPERATIONS[node].takes, OPERATIONS[node].gives]
    return [*nodes[:at], pick(archive.rng, options), *nodes[at + 1 :]]


def part_replaced(archive: Archive, nodes: list[Node]) -> list[Node]:
    start, end = _stretch(archive.rng, nodes) or (0, len(nodes))
    new = some_expression(archive.rng, archive.variables, 2, type_of(nodes[end - 1]))
    return [*nodes[:start], *new, *nodes[end:]]


def part_lifted(archive: Archive, nodes: list[Node]) -> list[Node]:
    """A subexpression takes the place of a larger one of its type."""
    start, end = _stretch(archive.rng, nodes) or (0, len(nodes))
    inner = _stretch(archive.rng, nodes[start:end], type_of(nodes[end - 1])) or (0, end - start)
    return [*nodes[:start], *nodes[start + inner[0] : start + inner[1]], *nodes[end:]]


def crossed(archive: Archive, nodes: list[Node]) -> list[Node]:
    """A subexpression of another winner takes the place of one of the same type."""
    other = nodes_of(parent(archive).program)
    start, end = _stretch(archive.rng, nodes) or (0, len(nodes))
    found = _stretch(archive.rng, other, type_of(nodes[end - 1]))
    return nodes if found is None else [*nodes[:start], *other[slice(*found)], *nodes[end:]]


def _joined(archive: Archive, nodes: list[Node]) -> list[Node]:
    """The drift with another one: their sum, bound, or one for each sign of A."""
    rng = archive.rng
    other = some_drift(rng, archive.variables, 1)
    first, second = (nodes, other) if rng.random() < 0.5 else (other, nodes)
    if rng.random() < 0.5:
        return ["A", 0.0, "<", *first, *second, "where"]
    return [*first, *second, pick(rng, ("+", "min", "max"))]


CHANGES = (_constant_moved, _constant_moved, operation_changed, part_replaced, part_lifted, crossed, _joined)
PROPOSERS = Registry(
    "proposers",
    "proposer",
    {"mutation": mutated_texts, "random": random_texts},
    "a function of (archive, n) that returns texts",
)


def replayed_texts(texts: Sequence[str], archive: Archive, n: int) -> list[str]:
    return list(texts[archive.asked : archive.asked + n])


def require_proposer(name: str) -> None:
    """ValueError, in a sentence, for what is no name of a proposer, no path `package.module:function`, and no `replay:FILE`. The
    file need not be there: a recipe may be read where its run is not."""
    if not (isinstance(name, str) and name.startswith(REPLAY)):
        PROPOSERS.require(name)


def proposer_of(name: str) -> Proposer:
    """The proposer of a name, as `require_proposer` takes it. ValueError, in a sentence, for a file that cannot be read."""
    if name.startswith(REPLAY):
        return partial(replayed_texts, _proposals(Path(name.removeprefix(REPLAY))))
    return PROPOSERS.require(name)


def _proposals(path: Path) -> list[str]:
    """The texts of a file: JSON Lines, of strings or of objects with a `program`, as an archive has; or plain lines."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"{path} has more than {LARGEST_FILE} bytes: give a smaller file of proposals.")
        rows = path.read_text(errors="replace").splitlines()
    except OSError as error:
        raise ValueError(f"{path} cannot be read as a file of proposals: {error.strerror}.") from None
    return [_proposal(row) for row in rows if row.strip()]


def _proposal(row: str) -> str:
    try:
        found = json.loads(row)
    except (ValueError, RecursionError):
        return row
    found = found.get("program") if isinstance(found, dict) else found
    return found if isinstance(found, str) else row


def ask(proposer: Proposer, archive: Archive, n: int, seconds: float) -> tuple[list[Any], str | None]:
    """(at most n proposals, None), or ([], a sentence) where the proposer fails, returns no list, or takes too long.

    It runs in a thread of its own, which cannot be ended: one that hangs goes on in the background until the process ends.
    """
    answer: list[tuple[str, Any]] = []

    def run():
        try:
            answer.append(("gave", proposer(archive, n)))
        except BaseException as error:  # whatever a user's code raises, SystemExit too
            answer.append(("raised", error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    where = plugs.where(proposer)
    if not answer:
        return [], f"The proposer returned nothing within {seconds:g} s ({where})."
    how, found = answer[0]
    if how == "raised":
        return [], f"The proposer failed: {type(found).__name__}: {' '.join(str(found).split())[:300]} ({where})."
    if not isinstance(found, list | tuple):
        return [], f"The proposer must return a list of texts, and returned {returned(found)[:300]} ({where})."
    return list(found[:n]), None
