"""What a compiled program does, read from its jaxpr and from the compiler's own text.

`jaxpr_flops` counts the floating-point operations of products, loops included. `Program` reads the optimised HLO: how often
loops turn, the collectives, and on TPU the cycles that the compiler estimates for every operation.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import cached_property
from typing import Any, NamedTuple

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
}


def jaxpr_flops(jaxpr: Any, turns: float = 1.0) -> float:
    """Floating-point operations of the dot products and convolutions in a jaxpr.

    Within `shard_map` those of one device. A scan counts its length; a while loop, whose length the jaxpr does not have,
    `turns`, and one within another once.
    """
    total = 0.0
    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            (contracting, _), _ = params["dimension_numbers"]
            total += (
                2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(eqn.invars[0].aval.shape[i] for i in contracting)
            )
        elif name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            out_features = kernel[params["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) / out_features
        elif name == "while":
            total += turns * jaxpr_flops(params["body_jaxpr"].jaxpr)
        elif name == "cond":
            total += max(jaxpr_flops(branch.jaxpr, turns) for branch in params["branches"])
        else:
            times = params["length"] if name == "scan" else 1
            total += times * sum(jaxpr_flops(inner, turns) for inner in _inner(params))
    return total


def _inner(params: dict[str, Any]):
    for value in params.values():
        value = getattr(value, "jaxpr", value)
        if hasattr(value, "eqns"):
            yield value


class Operation(NamedTuple):
    """One operation of a computation that is more than arithmetic, or has a cost."""

    kind: str
    cycles: int  # estimated by the compiler; 0 where it gives none
    bytes: int  # of the result
    calls: tuple[str, ...]  # computations that it runs: of a while loop (condition, body)


class Program:
    """The optimised HLO of an executable."""

    def __init__(self, text: str):
        self.text = text

    @cached_property
    def computations(self) -> dict[str, list[str]]:
        """Lines by computation; that of the entry is called "ENTRY"."""
        found: dict[str, list[str]] = {}
        name = None
        for line in self.text.splitlines():
            head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
            if head and not line.startswith(" "):
                name = "ENTRY" if head[1] else head[2]
                found[name] = []
            elif name is not None and line.startswith("  "):
                found[name].append(line)
        return found

    def operations(self, name: str) -> list[Operation]:
        return [op for op in map(_operation, self.computations.get(name, ())) if op is not None]

    def turns_of(self, condition: str) -> int | None:
        """How often a loop turns, if its condition compares a counter from 0 with a constant; None if that is not known."""
        lines = self.computations.get(condition, [])
        constants = dict(re.findall(r"%([\w.\-]+) = s32\[\]\S* constant\((\d+)\)", "\n".join(lines)))
        for line in lines:
            if "direction=LT" in line and (
                known := [c for c in re.findall(r"%([\w.\-]+)[,)]", line) if c in constants]
            ):
                return int(constants[known[-1]])
        return None

    def walk(self, turns: float = 1.0, name: str = "ENTRY", times: float = 1.0):
        """(operation, how often it runs): a loop of unknown length turns `turns` times, and one within another such loop once."""
        for op in self.operations(name):
            yield op, times
            if op.kind == "while":
                condition, body = op.calls
                known = self.turns_of(condition)
                inside = 1.0 if known is None else turns
                yield from self.walk(inside, body, times * (turns if known is None else known))
            elif op.kind in ("call", "conditional", "async-start"):
                for called in op.calls:
                    yield from self.walk(turns, called, times)

    def cycles(self, turns: float = 1.0) -> float:
        """That the compiler estimates for a run, one operation after another."""
        return sum(op.cycles * times for op, times in self.walk(turns))

    def collectives(self, turns: float = 1.0) -> dict[str, dict[str, float]]:
        """By kind: how many run, and the bytes of their results."""
        count, size = Counter(), Counter()
        for op, times in self.walk(turns):
            if op.kind.removesuffix("-start") in COLLECTIVES:
                kind = op.kind.removesuffix("-start")
                count[kind] += times
                size[kind] += times * op.bytes
        return {kind: {"count": count[kind], "bytes": size[kind]} for kind in count}


def _operation(line: str) -> Operation | None:
    found = re.match(r"  (?:ROOT )?%[\w.\-]+ = (.*?) ([a-z][\w\-]*)\(", line)
    if not found:
        return None
    shapes, kind = found.groups()
    cycles = re.search(r'"estimated_cycles":"(\d+)"', line)
    if kind == "while":
        calls = re.search(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)", line)
        names = calls.groups() if calls else ()
    else:
        one = re.findall(r"(?:to_apply|called_computation|true_computation|false_computation)=%?([\w.\-]+)", line)
        several = re.search(r"branch_computations=\{([^}]*)\}", line)
        names = (*one, *(re.findall(r"%?([\w.\-]+)", several[1]) if several else ()))
    return Operation(kind, int(cycles[1]) if cycles else 0, size_of(shapes), tuple(names))


def size_of(shapes: str) -> int:
    return sum(
        BYTES.get(kind, 4) * math.prod(map(int, filter(None, dims.split(","))))
        for kind, dims in re.findall(r"([a-z]\w*)\[([\d,]*)\]", shapes)
    )
