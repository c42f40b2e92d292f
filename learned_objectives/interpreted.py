"""Programs as arrays: one compiled interpreter evaluates any of them, so a population of different programs is one objective."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from learned_objectives.core import same_shape
from learned_objectives.drifts import Drift
from learned_objectives.expressions import (
    CONDITION,
    CONSTANT,
    LARGEST,
    LIMIT,
    OPERATIONS,
    VARIABLES,
    Code,
    limited,
    write,
)
from learned_objectives.parsing import NODES, ProgramError, parse
from learned_objectives.programs import Program, variables

COPY = 0  # the operation code of a = a; the others follow, in the order of OPERATIONS
NAMES = ("copy", *OPERATIONS)
MOST_ARGUMENTS = 3
OTHERS = VARIABLES[2:]  # than log_r and r1
STEEPEST = LIMIT**2  # of |a derivative in log r|; its product with a value is finite in float32


class Arrays(NamedTuple):
    """A program as an `InterpretedProgram` holds it: whole numbers, as NumPy arrays of float32."""

    opcodes: np.ndarray  # f32[L]: of NAMES
    arguments: np.ndarray  # f32[L, 3]: registers
    constants: np.ndarray  # f32[K]


def assemble(code: Code, constants: tuple[float, ...], length: int, count: int) -> Arrays:
    """The arrays of code in `length` instructions and `count` constants. Equal subexpressions without constants are one.

    ProgramError where it does not fit.
    """
    if len(constants) > count:
        raise ProgramError(f"a program must have at most {count} constants here, and this one has {len(constants)}.")
    stack: list[int] = []
    known: dict[tuple[str, ...], int] = {}
    instructions: list[tuple[int, list[int]]] = []
    number = 0
    for node in code:
        if node in OPERATIONS:
            arguments = [stack.pop() for _ in OPERATIONS[node].takes][::-1]
            same = (node, *map(str, arguments))
            if same not in known:
                known[same] = len(VARIABLES) + count + len(instructions)
                instructions.append((NAMES.index(node), arguments))
            stack.append(known[same])
        elif node == CONSTANT:
            stack.append(len(VARIABLES) + number)
            number += 1
        else:
            stack.append(VARIABLES.index(node))
    if len(instructions) > length:
        raise ProgramError(
            f"a program must have at most {length} different operations here, and this one has {len(instructions)}."
        )
    result = stack.pop()
    while len(instructions) < length:  # the last instruction has the value
        instructions.append((COPY, [result]))
    arrays = Arrays(np.zeros(length), np.zeros((length, MOST_ARGUMENTS)), np.zeros(count))
    for i, (opcode, arguments) in enumerate(instructions):
        arrays.opcodes[i] = opcode
        arrays.arguments[i, : len(arguments)] = arguments
    arrays.constants[: len(constants)] = constants
    return Arrays(*(x.astype(np.float32) for x in arrays))


def disassemble(arrays: Arrays) -> tuple[Code, tuple[float, ...]]:
    """The inverse of `assemble`. ProgramError for arrays that are of no program."""
    opcodes, arguments, constants = arrays
    parts: list[tuple[tuple[str, ...], tuple[float, ...]]] = [((name,), ()) for name in VARIABLES]
    parts += [((CONSTANT,), (float(value),)) for value in constants]
    for i, opcode in enumerate(opcodes):
        if opcode not in range(len(NAMES)):
            raise ProgramError(
                f"an operation code must be one of 0 to {len(NAMES) - 1}, and that of {i} is {opcode:g}."
            )
        takes = 1 if opcode == COPY else len(OPERATIONS[NAMES[int(opcode)]].takes)
        wrong = [x for x in arguments[i, :takes] if x not in range(len(parts))]
        if wrong:
            raise ProgramError(
                f"an argument of operation {i} must be one of 0 to {len(parts) - 1}, and is {wrong[0]:g}."
            )
        found = [parts[int(x)] for x in arguments[i, :takes]]
        name = () if opcode == COPY else (NAMES[int(opcode)],)
        code = sum((code for code, _ in found), ()) + name
        if len(code) > NODES:
            raise ProgramError(f"a program must have at most {NODES} variables, constants and operations.")
        parts.append((code, sum((numbers for _, numbers in found), ())))
    return parts[-1]


class InterpretedProgram(Drift):
    """A `Program` as arrays, so that programs of different structure are one pytree and one compiled function.

    The registers are the variables (log_r, r1, A, t, log_N), K constants, and the values of L instructions. Instruction i applies
    the operation `opcodes[i]` to the registers `arguments[i]`, and the value of the program is that of the last one. Whole
    numbers are float32, as a file has them. `program()` is the program that it holds, and `str` its text. A `Program` takes less
    time, and is compiled anew for each structure.

    A gradient step on the leaves is of use for the constants alone: it would change operations.

    Raises ProgramError for a program that does not fit, and ValueError if it is timed and called without a progress.
    """

    opcodes: jax.Array  # f32[L]
    arguments: jax.Array  # f32[L, 3]
    constants: jax.Array  # f32[K]
    timed: bool = struct.field(pytree_node=False, default=False)  # whether t and log_N may be read

    @classmethod
    def of(
        cls, program: Program | str, *, length: int = 32, constants: int = 16, timed: bool | None = None
    ) -> InterpretedProgram:
        """A program in `length` instructions with so many constants. `timed`: default, whether it reads the time."""
        program = program if isinstance(program, Program) else Program.parse(program)
        timed = program.needs_progress if timed is None else timed
        if program.needs_progress and not timed:
            raise ProgramError(f"a program must read neither t nor log_N here, and this one does: {program}.")
        arrays = assemble(*parse(str(program)), length, constants)
        return cls(*map(jnp.asarray, arrays), timed)

    @property
    def needs_progress(self) -> bool:  # type: ignore[override]
        return self.timed

    def program(self) -> Program:
        """The program that these arrays are. Of a population, take one member first."""
        code, constants = disassemble(Arrays(*map(np.asarray, (self.opcodes, self.arguments, self.constants))))
        return Program.parse(write(code, constants))

    def __str__(self) -> str:
        return str(self.program())

    def __call__(self, log_ratio, advantage, progress=None):
        same_shape(log_ratio, advantage)
        inputs = variables(log_ratio, advantage, progress, timed=self.timed, owner="a timed InterpretedProgram")
        others = jnp.stack([jnp.broadcast_to(inputs.get(name, 0.0), jnp.shape(log_ratio)).ravel() for name in OTHERS])
        value = _interpret(self.opcodes, self.arguments, self.constants, others, inputs["log_r"].ravel())
        return value.reshape(jnp.shape(log_ratio))

    def validate(self) -> None:
        """Raise ValueError with a sentence if the fields do not fit together, as in a file made by hand."""
        shapes = [jnp.shape(x) for x in (self.opcodes, self.arguments, self.constants)]
        length, count = (len(jnp.ravel(x)) for x in (self.opcodes, self.constants))
        wanted = [(length,), (length, MOST_ARGUMENTS), (count,)]
        if shapes != wanted or not length:
            raise ProgramError(
                f"this InterpretedProgram must have arrays of shapes [L], [L, 3] and [K], and has {shapes}."
            )
        if not np.isfinite(self.constants).all():
            raise ProgramError(f"the constants of this InterpretedProgram must be finite, and are {self.constants}.")
        if self.program().needs_progress and not self.timed:
            raise ProgramError("this InterpretedProgram reads the time and is not timed.")


@jax.custom_vjp
def _interpret(
    opcodes: jax.Array, arguments: jax.Array, constants: jax.Array, others: jax.Array, log_ratio: jax.Array
) -> jax.Array:
    """The value of the last instruction: f32[L], f32[L, 3], f32[K], f32[3, N], f32[N] -> f32[N]. `others`: A, t and log_N.

    An agent needs the derivative in log r alone. It is computed forward, along with the value, because reverse mode would keep,
    and add to, all registers at every instruction. The other derivatives are those of reverse mode; code that does not use them
    does not compute them.
    """
    return _values(opcodes, arguments, constants, others, log_ratio)


def _values(opcodes, arguments, constants, others, log_ratio):
    registers = _registers(constants, others, log_ratio, len(opcodes))

    def step(registers, instruction):
        opcode, places, at = instruction
        value = limited(jax.lax.select_n(opcode, *_results(*registers[places])))
        return jax.lax.dynamic_update_index_in_dim(registers, value, at, 0), None

    return jax.lax.scan(step, registers, _instructions(opcodes, arguments, len(registers)))[0][-1]


def _values_and_slopes(opcodes, arguments, constants, others, log_ratio):
    """The value, and its derivative in log r, limited to 1e12 and 1e24 in size at each instruction."""
    values = _registers(constants, others, log_ratio, len(opcodes))
    slopes = jnp.zeros_like(values).at[0].set(1.0).at[1].set(jnp.exp(log_ratio))

    def step(carry, instruction):
        values, slopes = carry
        opcode, places, at = instruction
        found = jax.jvp(_results, tuple(values[places]), tuple(slopes[places]))
        value, slope = (jax.lax.select_n(opcode, *each) for each in found)
        both = limited(value), jnp.where(jnp.abs(value) <= LIMIT, jnp.clip(slope, -STEEPEST, STEEPEST), 0.0)
        put = jax.lax.dynamic_update_index_in_dim
        return tuple(put(x, y, at, 0) for x, y in zip(carry, both, strict=True)), None

    (values, slopes), _ = jax.lax.scan(step, (values, slopes), _instructions(opcodes, arguments, len(values)))
    return values[-1], slopes[-1]


def _forward(*inputs):
    value, slope = _values_and_slopes(*inputs)
    return value, (inputs, slope)


def _backward(kept, tangent):
    (opcodes, arguments, *rest), slope = kept
    _, pullback = jax.vjp(lambda *xs: _values(opcodes, arguments, *xs), *rest)
    constants, others, _ = pullback(tangent)
    return jnp.zeros_like(opcodes), jnp.zeros_like(arguments), constants, others, tangent * slope


_interpret.defvjp(_forward, _backward)


def _registers(constants: jax.Array, others: jax.Array, log_ratio: jax.Array, length: int) -> jax.Array:
    """f32[5 + K + L, N]: the inputs, and zeros for the values of instructions."""
    given = [log_ratio[None], jnp.expm1(log_ratio)[None], others]
    constants = jnp.clip(constants, -LARGEST, LARGEST)
    held = jnp.broadcast_to(constants[:, None], (len(constants), len(log_ratio)))
    return jnp.concatenate([limited(jnp.concatenate([*given, held])), jnp.zeros((length, len(log_ratio)))])


def _instructions(opcodes: jax.Array, arguments: jax.Array, registers: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The codes, the places of the arguments, and the place of the value: i32[L], i32[L, 3], i32[L]."""
    places = jnp.arange(registers - len(opcodes), registers)
    return opcodes.astype(jnp.int32), arguments.astype(jnp.int32), places


def _results(a: jax.Array, b: jax.Array, c: jax.Array) -> list[jax.Array]:
    """What each operation gives, in the order of NAMES. A condition is 1 or 0."""
    found = [a]
    for op in OPERATIONS.values():
        arguments = (a, b, c)[: len(op.takes)]
        if op.takes[0] == CONDITION:
            arguments = (a > 0.5, *arguments[1:])
        found.append(op.compute(*arguments).astype(jnp.float32))
    return found
