"""The code of programs: its operations, its text, and its value at arrays.

Code is postfix: a tuple of names of variables and operations, with `#` for each constant. An operation follows its arguments, and
a subexpression is one stretch of the tuple, so nothing here recurses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LARGEST = 1e6  # of |a constant|; one beyond it counts as this, in values and in texts
LIMIT = (
    1e12  # of |a value| and |a derivative|; 200 LIMIT^2 / SMALL^2, the largest sum of derivatives, is finite in float32
)
SMALL = 1e-6  # a divisor has at least this size, and a logarithm at least this argument

NUMBER, CONDITION = "number", "condition"  # the types
VARIABLES = ("log_r", "r1", "A", "t", "log_N")
OF_TIME = frozenset({"t", "log_N"})
CONSTANT, MINUS = "#", "minus"  # in code
Code = tuple[str, ...]


class Operation(NamedTuple):
    takes: tuple[str, ...]  # types of the arguments
    gives: str  # type of the value
    power: int  # how strongly an infix operator binds; 0: written as a call
    compute: Callable[..., jax.Array]


def divided(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b, where b is at least 1e-6 from 0 on its side."""
    return a / jnp.where(jnp.abs(b) < SMALL, jnp.where(b < 0, -SMALL, SMALL), b)


_ONE, _TWO = (NUMBER,), (NUMBER, NUMBER)
UNARY_POWER = 4
OPERATIONS: dict[str, Operation] = {
    "<": Operation(_TWO, CONDITION, 1, lambda a, b: a < b),
    ">": Operation(_TWO, CONDITION, 1, lambda a, b: a > b),
    "+": Operation(_TWO, NUMBER, 2, lambda a, b: a + b),
    "-": Operation(_TWO, NUMBER, 2, lambda a, b: a - b),
    "*": Operation(_TWO, NUMBER, 3, lambda a, b: a * b),
    "/": Operation(_TWO, NUMBER, 3, divided),
    MINUS: Operation(_ONE, NUMBER, UNARY_POWER, lambda a: -a),
    "min": Operation(_TWO, NUMBER, 0, jnp.minimum),
    "max": Operation(_TWO, NUMBER, 0, jnp.maximum),
    "square": Operation(_ONE, NUMBER, 0, jnp.square),
    "abs": Operation(_ONE, NUMBER, 0, jnp.abs),
    "tanh": Operation(_ONE, NUMBER, 0, jnp.tanh),
    "exp": Operation(_ONE, NUMBER, 0, lambda a: jnp.exp(jnp.minimum(a, math.log(LIMIT)))),
    "log": Operation(_ONE, NUMBER, 0, lambda a: jnp.log(jnp.maximum(a, SMALL))),
    "relu": Operation(_ONE, NUMBER, 0, jax.nn.relu),
    "where": Operation((CONDITION, NUMBER, NUMBER), NUMBER, 0, jnp.where),
}
INFIX = {name: op.power for name, op in OPERATIONS.items() if 0 < op.power < UNARY_POWER}
CALLS = {name: op for name, op in OPERATIONS.items() if op.power == 0}


def write(code: Sequence[str], constants: Sequence[float] | None = None) -> str:
    """The text of code, with the fewest parentheses. Without constants, each is `#`."""
    numbers = iter(() if constants is None else constants)
    stack: list[tuple[str, int]] = []  # (text, power)
    for node in code:
        if node not in OPERATIONS:
            is_number = node == CONSTANT and constants is not None
            stack.append((_digits(next(numbers)) if is_number else node, UNARY_POWER))
            continue
        op = OPERATIONS[node]
        arguments = [stack.pop() for _ in op.takes][::-1]
        if not op.power:
            stack.append((f"{node}({', '.join(text for text, _ in arguments)})", UNARY_POWER))
        elif node == MINUS:
            stack.append((f"-{_within(arguments[0], UNARY_POWER)}", UNARY_POWER))
        else:
            left, right = _within(arguments[0], op.power), _within(arguments[1], op.power + 1)
            stack.append((f"{left} {node} {right}", op.power))
    return stack.pop()[0]


def _within(part: tuple[str, int], power: int) -> str:
    text, own = part
    return text if own >= power else f"({text})"


def _digits(value: Any) -> str:
    """The shortest decimal number that float32 reads as this one."""
    value = np.clip(np.float32(value), np.float32(-LARGEST), np.float32(LARGEST))
    if value == np.round(value):
        return str(int(value))
    return str(value)


@jax.custom_vjp
def limited(x: jax.Array) -> jax.Array:
    """x, and its derivative, within [-1e12, 1e12]. In reverse mode alone: `jax.jvp` does not go through it."""
    return jnp.clip(x, -LIMIT, LIMIT)


def _limited_forward(x):
    return limited(x), jnp.abs(x) <= LIMIT


def _limited_backward(inside, tangent):
    return (jnp.where(inside, jnp.clip(tangent, -LIMIT, LIMIT), 0.0),)


limited.defvjp(_limited_forward, _limited_backward)


def evaluate(code: Code, constants: jax.Array, variables: Mapping[str, jax.Array]) -> jax.Array:
    """The value of code, f32[...]: constants f32[K], variables f32[...] or f32[], those that the code reads.

    Every value and the derivative in every variable is limited to 1e12 in size, so both are finite where constants and variables
    are.
    """
    constants = jnp.clip(constants, -LARGEST, LARGEST)
    numbers = iter(limited(constants[i]) for i in range(code.count(CONSTANT)))
    held = {name: limited(value) for name, value in variables.items()}
    stack: list[jax.Array] = []
    for node in code:
        if node not in OPERATIONS:
            stack.append(next(numbers) if node == CONSTANT else held[node])
            continue
        op = OPERATIONS[node]
        arguments = [stack.pop() for _ in op.takes][::-1]
        value = op.compute(*arguments)
        stack.append(value if op.gives == CONDITION else limited(value))
    return stack.pop()
