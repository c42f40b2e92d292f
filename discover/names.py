"""Names that a user may mistype: the nearest known ones, and a check of the command line that imports nothing heavy."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable
from pathlib import Path

COMMANDS = ("quickstart", "list", "train", "meta-train", "resume", "evaluate", "export", "plot")
RECIPES = (
    *("quickstart", "lpo_minatar", "lpo_brax", "ta_lpo", "lpo_small", "ta_lpo_small"),
    *("lpg", "groove", "ta_lpg", "lpg_es"),
    *("lpg_small", "groove_small", "ta_lpg_small", "lpg_es_small"),
)
FORMULAS = ("a2c", "dpo", "mdpo", "ppo")  # objectives that are shipped without a file
SWITCHES = (
    "--fit",
    "--dry-run",
    "--wandb",
    "--no-fit",
    "--no-dry-run",
    "--no-wandb",
)  # flags of meta-train without a value


def unknown(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for an unknown name: it names the nearest one, if one is near, and all there are."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = nearest(name, by_lower)
    hint = f"did you mean {by_lower[near]!r}? " if near else ""
    return ValueError(f"Unknown {kind} {name!r}; {hint}Known are {', '.join(by_lower.values())}.")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a mistyped one most likely means; None if none is near.

    One that shares nearly all letters comes first, then one that contains the mistyped name, then one that shares most letters.
    """
    name, known = name.lower(), list(known)
    inside = [candidate for candidate in known if len(name) > 2 and name in candidate]
    for candidates, cutoff in ((known, 0.8), (inside, 0.0), (known, 0.6)):
        if close := difflib.get_close_matches(name, candidates, n=1, cutoff=cutoff):
            return close[0]
    return None


def check_arguments(argv: list[str]) -> None:
    """ValueError for a command, a recipe or an objective that does not exist. The full parser checks everything else."""
    if not argv or argv[0] in ("-h", "--help"):
        return
    command, rest = argv[0], argv[1:]
    if command not in COMMANDS:
        raise unknown("command", command, COMMANDS)
    if {"-h", "--help"} & set(rest):
        return
    if command == "meta-train":
        split_recipe(rest)
    if command == "train":
        for flag, value in itertools.pairwise(rest):
            if flag == "--objective":
                _check_objective(value)
    if command == "evaluate":
        for word in rest[: next((i for i, word in enumerate(rest) if word.startswith("-")), len(rest))]:
            _check_objective(word)


def split_recipe(words: list[str]) -> tuple[str, list[str]]:
    """(the recipe's name, the other words) of the arguments of meta-train, in whatever order they come.

    Raises ValueError if there is no recipe, or an unknown one.
    """
    free = [i for i, word in enumerate(words) if not word.startswith("-") and not _is_value(words, i)]
    named = [i for i in free if words[i] in RECIPES]
    if not named and not free:
        raise ValueError(f"meta-train needs a recipe: one of {', '.join(RECIPES)}.")
    at = (named or free)[0]
    if words[at] not in RECIPES:
        raise unknown("recipe", words[at], RECIPES)
    return words[at], words[:at] + words[at + 1 :]


def _is_value(words: list[str], i: int) -> bool:
    """Whether a word follows a flag that takes a value."""
    before = words[i - 1] if i else ""
    return before.startswith("--") and "=" not in before and before not in SWITCHES


def _check_objective(word: str) -> None:
    folder = Path(__file__).parents[1] / "learned_objectives" / "weights"
    shipped = [path.stem for path in folder.glob("*.safetensors")]
    is_name = word.replace("_", "").replace("-", "").isalnum()  # a path has dots or slashes, or exists
    if shipped and is_name and word not in (*FORMULAS, *shipped) and not Path(word).exists():
        error = unknown("objective", word, sorted((*FORMULAS, *shipped)))
        raise ValueError(
            f"{str(error).removesuffix('.')}, or the path of a .safetensors file, or the directory of a run."
        )
