"""Text to the code of a program: a tokenizer, and a parser that limits its depth."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from learned_objectives.expressions import (
    CALLS,
    CONSTANT,
    INFIX,
    LARGEST,
    MINUS,
    NUMBER,
    OPERATIONS,
    VARIABLES,
    Code,
    write,
)

LONGEST = 4000  # characters of a text; more than `write` makes of NODES
NODES = 200  # variables, constants and operations of an expression
NESTING = 32  # parentheses, calls and signs within each other


class ProgramError(ValueError):
    """A text or a structure that is no program; the message has what was expected, what was found, and where."""


_TOKEN = re.compile(
    r"(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)|(?P<name>[A-Za-z_][A-Za-z_0-9]*)|(?P<symbol>[-+*/<>(),#])"
)


class Token(NamedTuple):
    kind: str  # number, name, symbol, or end
    text: str
    at: int  # the first of its characters, from 1

    def __str__(self) -> str:
        return f"{shortened(self.text)} at character {self.at}" if self.kind != "end" else "the end of the text"


def shortened(text: str) -> str:
    """At most 20 characters of a text, as Python writes a string: without control characters."""
    return ascii(text if len(text) <= 20 else f"{text[:17]}...")


def tokens(text: Any) -> list[Token]:
    """ProgramError for what is no text, too long, or has a character that the language has not."""
    if not isinstance(text, str):
        raise ProgramError(f"a program must be a text, and is of type {type(text).__name__}.")
    if len(text) > LONGEST:
        raise ProgramError(f"a program must have at most {LONGEST} characters, and this one has {len(text)}.")
    found, at = [], 0
    while at < len(text):
        if text[at] in " \t\r\n":
            at += 1
            continue
        match = _TOKEN.match(text, at)
        if match is None:
            raise ProgramError(
                f"expected a number, a name, an operator or a parenthesis, and found {shortened(text[at])} at character "
                f"{at + 1}."
            )
        found.append(Token(match.lastgroup or "", match.group(), at + 1))
        at = match.end()
    return [*found, Token("end", "", len(text) + 1)]


class _Parser:
    """Recursive descent by the powers of operators. `code` and `constants` are what has been read."""

    def __init__(self, text: Any, is_structure: bool):
        self.tokens, self.at, self.is_structure = tokens(text), 0, is_structure
        self.code: list[str] = []
        self.constants: list[float] = []

    @property
    def next(self) -> Token:
        return self.tokens[self.at]

    def take(self, symbol: str | None = None) -> Token:
        """The next token. ProgramError where another symbol is wanted."""
        token = self.next
        if symbol is not None and token.text != symbol:
            raise ProgramError(f"expected {symbol!r}, and found {token}.")
        self.at += 1
        return token

    def put(self, node: str, token: Token) -> None:
        if len(self.code) == NODES:
            raise ProgramError(
                f"a program must have at most {NODES} variables, constants and operations, and this one has more, from {token}."
            )
        self.code.append(node)

    def expression(self, power: int, depth: int) -> str:
        """The type of what follows, up to an operator that binds less than `power`."""
        left_token = self.next
        left = self.operand(depth)
        while INFIX.get(self.next.text, 0) >= power:
            operator = self.take()
            right_token = self.next
            right = self.expression(INFIX[operator.text] + 1, depth)
            self.require(NUMBER, left, left_token, f"on the left of {operator}")
            self.require(NUMBER, right, right_token, f"on the right of {operator}")
            self.put(operator.text, operator)
            left = OPERATIONS[operator.text].gives
        return left

    def require(self, wanted: str, found: str, token: Token, where: str) -> None:
        if wanted != found:
            raise ProgramError(f"expected a {wanted} {where}, and found a {found}, which begins with {token}.")

    def operand(self, depth: int) -> str:
        """The type of a number, a variable, a call, a parenthesis, or any of them after a minus."""
        token = self.take()
        if depth > NESTING:
            raise ProgramError(f"a program must have at most {NESTING} levels of nesting, and has more at {token}.")
        if token.kind == "number" and not self.is_structure:
            self.put(CONSTANT, token)
            self.constants.append(_constant(token))
            return NUMBER
        if token.text == CONSTANT and self.is_structure:
            self.put(CONSTANT, token)
            return NUMBER
        if token.kind == "name":
            return self.named(token, depth)
        if token.text == "-":
            return self.negated(token, depth)
        if token.text == "(":
            kind = self.expression(1, depth + 1)
            self.take(")")
            return kind
        wanted = "'#'" if self.is_structure else "a number"
        raise ProgramError(f"expected {wanted}, a variable or a function, and found {token}.")

    def negated(self, token: Token, depth: int) -> str:
        """What follows a minus. Of a constant it is the sign."""
        start, follows = len(self.code), self.next
        self.require(NUMBER, self.operand(depth + 1), follows, f"after {token}")
        if self.code[start:] == [CONSTANT] and not self.is_structure:
            self.constants[-1] = -self.constants[-1] + 0.0  # no negative zero
        else:
            self.put(MINUS, token)
        return NUMBER

    def named(self, token: Token, depth: int) -> str:
        if token.text in VARIABLES:
            self.put(token.text, token)
            return NUMBER
        if token.text not in CALLS:
            raise ProgramError(
                f"expected a variable ({', '.join(VARIABLES)}) or a function ({', '.join(CALLS)}), and found {token}."
            )
        call = CALLS[token.text]
        self.take("(")
        for number, wanted in enumerate(call.takes):
            if number:
                self.take(",")
            first = self.next
            found = self.expression(1, depth + 1)
            self.require(wanted, found, first, f"as argument {number + 1} of {token}")
        self.take(")")
        self.put(token.text, token)
        return call.gives

    def whole(self) -> None:
        """Read all of the text, which must be a number."""
        first = self.next
        self.require(NUMBER, self.expression(1, 0), first, "as the value of a program")
        if self.next.kind != "end":
            raise ProgramError(f"expected an operator or the end of the text, and found {self.next}.")


def _constant(token: Token) -> float:
    value = float(np.float32(min(float(token.text), 2.0 * LARGEST)))
    if value > LARGEST:
        raise ProgramError(f"a constant must have a size of at most {LARGEST:g}, and one is {token}.")
    return value


def parse(text: Any) -> tuple[Code, tuple[float, ...]]:
    """(code, constants, rounded to float32) of a text. ProgramError, in a sentence, for any other."""
    parser = _Parser(text, is_structure=False)
    parser.whole()
    return tuple(parser.code), tuple(parser.constants)


@lru_cache(maxsize=4096)
def _parse_structure(structure: str) -> Code:
    parser = _Parser(structure, is_structure=True)
    parser.whole()
    code = tuple(parser.code)
    if write(code) != structure:
        raise ProgramError(f"a structure must be written as {shortened(write(code))}, and is {shortened(structure)}.")
    return code


def parse_structure(structure: Any) -> Code:
    """Code of a text with `#` for each constant, as `write` gives it. ProgramError for any other."""
    if not isinstance(structure, str) or len(structure) > LONGEST:
        tokens(structure)  # raises
    return _parse_structure(structure)
