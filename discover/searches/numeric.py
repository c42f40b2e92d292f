"""Programs in NumPy: the value, and the derivative in log r, at many points and for many sets of constants at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from learned_objectives.expressions import CONDITION, CONSTANT, LIMIT, OPERATIONS, SMALL, Code


class Dual(NamedTuple):
    """A value and its derivative in log r; shapes that broadcast to each other."""

    value: np.ndarray
    slope: np.ndarray


def _chosen(takes_first: np.ndarray, is_tie: np.ndarray, a: Dual, b: Dual) -> Dual:
    """One of two values; where they are equal, the mean of the derivatives, as JAX has it."""
    slope = np.where(is_tie, 0.5 * (a.slope + b.slope), np.where(takes_first, a.slope, b.slope))
    return Dual(np.where(takes_first, a.value, b.value), slope)


def _divided(a: Dual, b: Dual) -> Dual:
    is_small = np.abs(b.value) < SMALL
    divisor = np.where(is_small, np.where(b.value < 0, -SMALL, SMALL), b.value)
    value = a.value / divisor
    return Dual(value, (a.slope - value * np.where(is_small, 0.0, b.slope)) / divisor)


def _tanh(a: Dual) -> Dual:
    value = np.tanh(a.value)
    return Dual(value, a.slope * (1.0 - value * value))


def _exp(a: Dual) -> Dual:
    largest = math.log(LIMIT)
    value = np.exp(np.minimum(a.value, largest))
    return Dual(value, np.where(a.value < largest, a.slope * value, 0.0))


def _log(a: Dual) -> Dual:
    inside = np.maximum(a.value, SMALL)
    return Dual(np.log(inside), np.where(a.value > SMALL, a.slope / inside, 0.0))


RULES: dict[str, Callable[..., Dual]] = {
    "+": lambda a, b: Dual(a.value + b.value, a.slope + b.slope),
    "-": lambda a, b: Dual(a.value - b.value, a.slope - b.slope),
    "*": lambda a, b: Dual(a.value * b.value, a.slope * b.value + a.value * b.slope),
    "/": _divided,
    "minus": lambda a: Dual(-a.value, -a.slope),
    "min": lambda a, b: _chosen(a.value < b.value, a.value == b.value, a, b),
    "max": lambda a, b: _chosen(a.value > b.value, a.value == b.value, a, b),
    "square": lambda a: Dual(a.value * a.value, 2.0 * a.value * a.slope),
    "abs": lambda a: Dual(np.abs(a.value), np.sign(a.value) * a.slope),
    "tanh": _tanh,
    "exp": _exp,
    "log": _log,
    "relu": lambda a: Dual(np.maximum(a.value, 0.0), np.where(a.value > 0, a.slope, 0.0)),
    "where": lambda c, a, b: Dual(np.where(c, a.value, b.value), np.where(c, a.slope, b.slope)),
}
CONDITIONS = {"<": lambda a, b: a.value < b.value, ">": lambda a, b: a.value > b.value}


def _limited(found: Dual) -> Dual:
    """As in `learned_objectives.expressions`; few values are so large, so that one comparison is all most of them cost."""
    largest = np.abs(found.value).max(initial=0.0)
    if largest <= LIMIT:
        return found
    inside = np.abs(found.value) <= LIMIT
    return Dual(np.clip(found.value, -LIMIT, LIMIT), np.where(inside, found.slope, 0.0))


def evaluate(code: Code, constants: np.ndarray, variables: Mapping[str, Dual]) -> Dual:
    """The value of code and its derivative in log r, in float64.

    Args:
      code: as of `learned_objectives.parsing.parse`.
      constants: f64[..., K], sets of constants.
      variables: of each name f64[n].

    Returns f64[..., n] each, of shapes that broadcast to that. What overflows is infinite or NaN.
    """
    numbers = iter(np.moveaxis(np.asarray(constants, float), -1, 0)[..., None])
    zero = np.zeros(1)
    stack: list = []
    with np.errstate(all="ignore"):
        for node in code:
            if node == CONSTANT:
                stack.append(Dual(next(numbers), zero))
            elif node in OPERATIONS:
                op = OPERATIONS[node]
                arguments = [stack.pop() for _ in op.takes][::-1]
                if op.gives == CONDITION:
                    stack.append(CONDITIONS[node](*arguments))
                else:
                    stack.append(_limited(RULES[node](*arguments)))
            else:
                stack.append(variables[node])
    return stack.pop()
