"""Names that a user may get nearly right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a name nobody knows: the nearest one, and all there are."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.3)
    hint = f"did you mean {by_lower[near[0]]!r}? " if near else ""
    return ValueError(f"Unknown {kind} {name!r}; {hint}Known are {', '.join(by_lower.values())}.")
