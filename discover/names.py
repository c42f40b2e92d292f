"""Names that a user may mistype: the nearest known ones, and a check of the command line that imports nothing heavy."""

from __future__ import annotations

import difflib
import importlib.metadata
import itertools
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from discover.flags import COMMANDS, flags, renamed, unrecognised

RECIPES = (
    *(
        "quickstart",
        "lpo_minatar",
        "lpo_brax",
        "ta_lpo",
        "lpo_small",
        "ta_lpo_small",
        "soft_clip_small",
        "ta_soft_clip_small",
        "program_small",
        "pbt_small",
        "map_elites_small",
        "whole_life_small",
    ),
    *("lpg", "groove", "ta_lpg", "lpg_es"),
    *("lpg_small", "groove_small", "ta_lpg_small", "lpg_es_small"),
    *("lpg_networks_small", "ta_lpg_networks_small"),
)
FORMULAS = ("a2c", "dpo", "mdpo", "ppo", "ta_ppo")  # objectives that are shipped without a file
ENVIRONMENTS = (
    *("CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0"),
    *(f"{name}-MinAtar" for name in ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")),
    *(f"{name}-bsuite" for name in ("Catch", "DeepSea", "SimpleBandit")),
    *(f"{name}Chain-bsuite" for name in ("Memory", "Umbrella", "Discounting")),
    *(f"{name}-misc" for name in ("FourRooms", "MetaMaze", "PointRobot", "BernoulliBandit", "GaussianBandit")),
    *(f"{name}-misc" for name in ("Reacher", "Swimmer", "Pong", "FrozenLake")),
    *(f"brax/{name}" for name in ("ant", "halfcheetah", "hopper", "humanoid", "humanoidstandup", "pusher", "reacher")),
    *(f"brax/{name}" for name in ("inverted_pendulum", "inverted_double_pendulum", "walker2d")),
    *("craftax/Classic-Symbolic", "craftax/Symbolic"),
    *(f"jumanji/{name}" for name in ("Game2048", "GraphColoring", "Minesweeper", "RubiksCube", "Sudoku", "Tetris")),
    *(f"jumanji/{name}" for name in ("RubiksCube-partly-scrambled", "SlidingTilePuzzle", "Sudoku-very-easy")),
    *(f"jumanji/{name}" for name in ("BinPack", "FlatPack", "JobShop", "Knapsack", "Cleaner", "CVRP", "Maze")),
    *(f"jumanji/{name}" for name in ("MMST", "Snake", "TSP")),
    *(f"xminigrid/{name}-{n}x{n}" for name in ("Empty", "EmptyRandom", "DoorKey") for n in (5, 6, 8, 16)),
    *(f"xminigrid/MemoryS{size}" for size in (8, 16, 32, 64, 128)),
    *(f"xminigrid/{name}UnlockPickUp" for name in ("", "Blocked")),
    *(f"xminigrid/{name}" for name in ("FourRooms", "LockedRoom", "Playground", "Unlock")),
    *(f"navix/{name}-{n}x{n}" for name in ("Empty", "Empty-Random") for n in (5, 6, 8, 16)),
    *(f"navix/{name}-{n}x{n}" for name in ("DoorKey", "DoorKey-Random") for n in (5, 6, 8, 16)),
    *(f"navix/KeyCorridorS{size}" for size in ("3R1", "3R2", "3R3", "4R3", "5R3", "6R3")),
    *(f"navix/SimpleCrossingS{size}" for size in ("9N1", "9N2", "9N3", "11N5")),
    *(f"navix/Dynamic-Obstacles-{size}" for size in ("5x5", "5x5-Random", "6x6", "6x6-Random", "8x8", "16x16")),
    *(f"navix/{name}" for name in ("LavaGapS5", "LavaGapS6", "LavaGapS7", "FourRooms", "DistShift1", "DistShift2")),
    *(f"navix/GoToDoor-{n}x{n}" for n in (5, 6, 8)),
)
LEFT_TO_THE_PARSER = (  # it says more of them
    *("gridworld/", "probe/", "brax/swimmer", "brax/fast", "MNISTBandit-bsuite"),
    *("craftax/Pixels", "craftax/Classic-Pixels"),
    *(f"jumanji/{name}" for name in ("Sokoban", "PacMan", "RobotWarehouse", "MultiCVRP", "Connector")),
    *("jumanji/LevelBasedForaging", "jumanji/SearchAndRescue"),
    *(f"xminigrid/XLand-R{rules}-{n}x{n}" for rules in (1, 2, 4) for n in (9, 11, 13, 15, 17)),
    *(f"xminigrid/XLand-R6-{n}x{n}" for n in (13, 17, 19)),
    *(f"xminigrid/XLand-R9-{n}x{n}" for n in (16, 19, 25)),
)
KINDS = ("objectives", "envs", "recipes")  # that `discover list` takes
SHELLS = ("bash", "zsh")  # that `discover completion` takes
PLUG = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")  # as of envs.plugs, which imports JAX
LISTED = "`discover list` shows them all"
OWN = "module:Name is the form for one of your own"
OWN_BY_PATH = f"{OWN}, and needs no registration"


def unknown(kind: str, name: str, known: Iterable[str], other: str = "") -> ValueError:
    """The error for an unknown name: it names the nearest one, if one is near, all there are, and other forms than a name."""
    known = list(known)
    near = _near(name, known)
    hint = f"did you mean {near!r}? Known" if near else "known"
    return ValueError(f"Unknown {kind} {name!r}; {hint} are {', '.join(known)}{other and f'; {other}'}.")


def _near(name: str, known: Iterable[str]) -> str | None:
    """The known name, as it is spelled, that is `nearest`."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = nearest(name, by_lower)
    return by_lower[near] if near else None


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
    """ValueError for a command, a recipe, an objective, an environment or a flag that does not exist, and for a value that is
    empty. The full parser checks everything else."""
    if not argv or argv[0] in ("-h", "--help", "--version"):
        return
    command, rest = argv[0], argv[1:]
    if command not in COMMANDS:
        raise unknown("command", command, COMMANDS)
    if {"-h", "--help"} & set(rest):
        return
    _refuse_empty(argv)
    if command in CHECKS:
        CHECKS[command](rest)
    if flag := unrecognised(command, rest):
        near = renamed(flag) or nearest(flag, flags(command))
        hint = f" Perhaps you meant {near}." if near else ""
        raise ValueError(f"Unrecognized options: {flag}.{hint} See `discover {command} --help`.")


def _refuse_empty(argv: list[str]) -> None:
    for before, word in itertools.pairwise(argv):
        flag, equals, value = word.partition("=")
        if not word or (flag.startswith("--") and equals and not value):
            raise ValueError(f"{flag or before} is followed by an empty value: give one, or leave it out.")


def _check_meta_train(words: list[str]) -> None:
    for name in _values(split_recipe(words)[1], "--envs"):
        _check_environment(name)


def _check_train(words: list[str]) -> None:
    for name in _values(words, "--objective"):
        _check_objective(name)
    for name in _values(words, "--env"):
        _check_environment(name)


def _check_evaluate(words: list[str]) -> None:
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    if "--envs" not in given and not _free(words):
        raise ValueError(
            "evaluate needs objectives and --envs: for example, `discover evaluate ppo dpo --envs CartPole-v1`."
        )
    for name in itertools.takewhile(lambda word: not word.startswith("-"), words):
        _check_objective(name)
    for name in _values(words, "--envs"):
        _check_environment(name)


def _check_distil(words: list[str]) -> None:
    if not words or words[0].startswith("-"):
        raise ValueError("distil needs an objective first: for example, `discover distil lpo_2026_11`.")
    _check_objective(words[0])


def _check_resume(words: list[str]) -> None:
    for flag in (word.partition("=")[0] for word in words):
        if flag in ("--generations", "--checkpoint-every"):
            run = next(iter(_free(words).values()), "DIRECTORY")
            raise ValueError(
                f"resume uses the recipe in the directory, and takes no {flag}: `discover meta-train RECIPE --out {run} "
                f"{flag} NUMBER` does."
            )


def _check_list(words: list[str]) -> None:
    _check_choice("kind", words, ("all", *KINDS))


def _check_recipe(words: list[str]) -> None:
    if not words:
        raise ValueError(f"recipe needs the name of a recipe: one of {', '.join(RECIPES)}.")
    _check_choice("recipe", words, RECIPES)


def _check_completion(words: list[str]) -> None:
    if not words:
        raise ValueError(f"completion needs a shell: {' or '.join(SHELLS)}.")
    _check_choice("shell", words, SHELLS)


def _check_choice(kind: str, words: list[str], known: Iterable[str]) -> None:
    """Of the first word, if it is no flag."""
    if words and not words[0].startswith("-") and words[0] not in known:
        raise unknown(kind, words[0], known)


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "meta-train": _check_meta_train,
    "train": _check_train,
    "distil": _check_distil,
    "evaluate": _check_evaluate,
    "resume": _check_resume,
    "list": _check_list,
    "recipe": _check_recipe,
    "completion": _check_completion,
}


def split_recipe(words: list[str]) -> tuple[str | None, list[str]]:
    """(the recipe's name, the other words) of the arguments of meta-train, in whatever order they come. The name is None
    where it is left out and there is a --config.

    Raises ValueError if there is no recipe, or an unknown one.
    """
    free = _free(words)
    for at, word in free.items():
        if word in RECIPES:
            return word, words[:at] + words[at + 1 :]
    if any(word.partition("=")[0] == "--config" for word in words) and not _mistyped_recipe(free):
        return None, words
    taken = next((i for i, word in enumerate(words) if word in RECIPES), None)
    if taken is not None and not any(nearest(word, RECIPES) for word in free.values()):
        raise ValueError(
            f"meta-train needs a recipe, and {words[taken]} was taken as the value of {words[taken - 1]}: put the recipe first."
        )
    if not free:
        raise ValueError(f"meta-train needs a recipe: one of {', '.join(RECIPES)}.")
    raise unknown("recipe", max(free.values(), key=_likeness), RECIPES)


def _mistyped_recipe(free: dict[int, str]) -> bool:
    """Whether a word is in the place of a recipe's name, or near one. Others may be further values of a flag."""
    return 0 in free or any(nearest(word, RECIPES) for word in free.values())


def _likeness(word: str) -> float:
    """To the recipe's name that shares most letters with a word."""
    return max(difflib.SequenceMatcher(None, word.lower(), recipe).ratio() for recipe in RECIPES)


def _free(words: list[str]) -> dict[int, str]:
    """The words, by their place, that are neither flags nor the first value of one."""
    return {i: word for i, word in enumerate(words) if not word.startswith("-") and not _is_value(words, i)}


def takes_value(flag: str) -> bool:
    """Whether a flag of meta-train has a value after it; an unknown flag counts as one that has."""
    return flags("meta-train").get(flag.replace("_", "-"), True)


def _is_value(words: list[str], i: int) -> bool:
    """Whether a word follows a flag that takes a value."""
    before = words[i - 1].replace("_", "-") if i else ""
    return before.startswith("--") and "=" not in before and takes_value(before)


def _values(words: list[str], flag: str) -> list[str]:
    """What a flag is given, as `--flag value ...` or `--flag=value`."""
    found = []
    for i, word in enumerate(words):
        if word == flag:
            found.extend(itertools.takewhile(lambda after: not after.startswith("-"), words[i + 1 :]))
        elif word.startswith(f"{flag}="):
            found.append(word.partition("=")[2])
    return found


def _check_environment(name: str) -> None:
    """Only where a known name is near, so that a name of the grid worlds may be."""
    if PLUG.fullmatch(name):
        return
    base = name.partition("@")[0] if name.startswith("brax/") else name
    near = None if base in ENVIRONMENTS or base.startswith(LEFT_TO_THE_PARSER) else _near(base, ENVIRONMENTS)
    if near is not None and name not in _announced("envs"):
        raise ValueError(f"Unknown environment {name!r}; did you mean {near!r}? {LISTED}; {OWN}.")


def _check_objective(word: str) -> None:
    known = objectives()
    is_name = word.replace("_", "").replace("-", "").isalnum()  # a path has dots or slashes, or exists
    if len(known) == len(FORMULAS) or not is_name or word in known or Path(word).exists():
        return
    if word not in _announced("objectives"):
        error = unknown("objective", word, known)
        raise ValueError(
            f"{str(error).removesuffix('.')}, or the path of a .safetensors file, or the directory of a run; {OWN}."
        )


def objectives() -> list[str]:
    """The formulas, and what is shipped with weights."""
    folder = Path(__file__).parents[1] / "learned_objectives" / "weights"
    return sorted((*FORMULAS, *(path.stem for path in folder.glob("*.safetensors"))))


def _announced(kind: str) -> set[str]:
    """The names of the plugs of a kind that installed packages announce (see envs.plugs)."""
    return {point.name for point in importlib.metadata.entry_points(group=f"discover.{kind}")}
