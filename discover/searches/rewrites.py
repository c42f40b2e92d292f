"""Proposals of a distillation: children of its population, and expressions drawn at random."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from discover.searches.fitting import LARGEST
from discover.searches.numeric import evaluate
from discover.searches.program_archive import Archive
from discover.searches.proposers import (
    AT_ONE,
    Node,
    crossed,
    nodes_of,
    operation_changed,
    parent,
    part_lifted,
    part_replaced,
    pick,
    some_constant,
    some_expression,
    start_of,
    text_of,
)
from learned_objectives.expressions import CONDITION, CONSTANT, OPERATIONS

RANDOM = 0.15  # of the proposals; the others are children
SCALED = ("tanh", "relu", "log", "exp", "square", "abs")


def folded(nodes: Sequence[Node]) -> list[Node]:
    """The same program in fewer operations: those on constants alone, and those that change nothing, are left out."""
    found: list[Node] = []
    for node in nodes:
        found.append(node)
        if node in OPERATIONS and CONDITION not in (*OPERATIONS[node].takes, OPERATIONS[node].gives):
            start = start_of(found, len(found) - 1)
            found[start:] = _folded_one(found[start:])
    return found


def _folded_one(nodes: list[Node]) -> list[Node]:
    """Of an expression whose arguments are folded."""
    *inside, node = nodes
    if all(isinstance(each, float) for each in inside):
        value = float(evaluate((*(CONSTANT for _ in inside), str(node)), np.array(inside, float), {}).value.squeeze())
        return [value] if math.isfinite(value) and abs(value) <= LARGEST else nodes
    if len(OPERATIONS[str(node)].takes) == 1:
        return inside if node in ("abs", "relu") and inside[-1] in (node, "square", "exp") else nodes
    second = start_of(inside, len(inside) - 1)
    one, other = inside[:second], inside[second:]
    if (
        (node in ("min", "max") and one == other)
        or (node in ("*", "/") and other == [1.0])
        or (other == [0.0] and node in ("+", "-"))
    ):
        return one
    if (node == "*" and one == [1.0]) or (node == "+" and one == [0.0]):
        return other
    return nodes


def scaled(archive: Archive, nodes: list[Node]) -> list[Node]:
    """f(x) in place of k f(x / k), for one function f in it: near x = 0 both rise as steeply."""
    places = [i for i, node in enumerate(nodes) if node in SCALED]
    if not places:
        return operation_changed(archive, nodes)
    at, k = pick(archive.rng, places), some_constant(archive.rng)
    return [*nodes[:at], k, "/", nodes[at], k, "*", *nodes[at + 1 :]]


def joined(archive: Archive, nodes: list[Node]) -> list[Node]:
    """With another winner: one for each sign of A, the sum, or a bound."""
    other = nodes_of(parent(archive).program)
    if archive.rng.random() < 0.6:
        return ["A", 0.0, "<", *nodes, *other, "where"]
    return [*nodes, *other, pick(archive.rng, ("+", "min", "max"))]


def reductions(nodes: list[Node]) -> list[list[Node]]:
    """All that an operation's argument in its place makes of an expression: smaller ones."""
    found = []
    for end, node in enumerate(nodes):
        if node in OPERATIONS:
            start, last = start_of(nodes, end), end
            for takes in reversed(OPERATIONS[node].takes):
                first = start_of(nodes, last - 1)
                if takes == OPERATIONS[node].gives:
                    found.append([*nodes[:start], *nodes[first:last], *nodes[end + 1 :]])
                last = first
    return found


def reduced(archive: Archive, nodes: list[Node]) -> list[Node]:
    found = reductions(nodes)
    return pick(archive.rng, found) if found else part_replaced(archive, nodes)


CHANGES = (operation_changed, part_replaced, part_replaced, part_lifted, crossed, scaled, joined, reduced)


def child(archive: Archive) -> str:
    """One change of a winner, and with probability a third another one on top of it."""
    nodes = nodes_of(parent(archive).program)
    while True:
        nodes = pick(archive.rng, CHANGES)(archive, nodes)
        if archive.rng.random() >= 1 / 3:
            return text_of(nodes)


def drawn(archive: Archive) -> str:
    """An expression drawn at random: of any form, or of one that a drift may have. x is a step, which is zero at ratio 1.

    relu(x - k f(x / k)) for any function f or a clip,    relu((x - y) A),    k (x y)^2
    """
    rng, steady = archive.rng, [name for name in archive.variables if name not in AT_ONE]
    kind, change = rng.random(), [pick(rng, AT_ONE)]
    factor = pick(rng, (["A"], ["A"], some_expression(rng, steady, 1), []))
    step = [*change, *factor, "*"] if factor else change
    if kind < 0.4:
        k, f = some_constant(rng), pick(rng, (*SCALED, "clip"))
        function = [f] if f != "clip" else [some_constant(rng), "min", -some_constant(rng), "max"]
        return text_of([*step, *step, k, "/", *function, k, "*", "-", "relu"])
    if kind < 0.6:
        return text_of([*change, *some_expression(rng, archive.variables, 2), "-", "A", "*", "relu"])
    if kind < 0.8:
        return text_of([*step, "square", some_constant(rng), "*"])
    return text_of(some_expression(rng, archive.variables, 3))


def proposals(archive: Archive, n: int) -> list[str]:
    """n texts."""
    members = bool(archive.population)
    return [child(archive) if members and archive.rng.random() >= RANDOM else drawn(archive) for _ in range(n)]
