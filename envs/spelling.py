"""Near names for a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest known one, or a full stop."""
    lower = {name.lower(): name for name in known}
    word = word.lower()
    inside = [name for name in lower if len(word) > 2 and word in name]
    for candidates, cutoff in ((lower, 0.8), (inside, 0.0), (lower, 0.6)):
        if near := difflib.get_close_matches(word, candidates, n=1, cutoff=cutoff):
            return f"; did you mean {lower[near[0]]!r}?"
    return "."
