"""The commands of `discover`: what each takes, and what it does."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import operator
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from discover import processes
from discover.config import AgentConfig
from discover.console import plain_advice, tell
from discover.modes import plain_jax
from discover.names import LISTED, check_arguments, split_recipe
from discover.recipe import Recipe
from discover.recipes import RECIPES
from discover.recipes import get as get_recipe
from discover.runtime import keep_programs
from discover.settings import flatten
from discover.setups import LossConfig, usual_setup


@dataclass(frozen=True)
class Train:
    """Train fresh agents with an objective, many seeds at once, and show how they learn.

    Example: discover train --objective dpo --env CartPole-v1 --total-steps 500000 --num-seeds 8
    """

    objective: str = "ppo"  # a name (`discover list`), a .safetensors file, or the directory of a run
    env: str = "CartPole-v1"  # a name (`discover list`); sets what --agent.* and --loss.* default to
    total_steps: int = 500_000  # environment steps of each agent
    num_seeds: int = 8  # agents
    seed: int = 0  # agent number i of a seed has the same key, however many there are
    num_evals: int = 20  # points of the learning curve
    chunk: int | None = None  # agents trained side by side on a device; None: as many as suit it
    out: Path | None = None  # a directory for train.jsonl and curve.png
    agent: AgentConfig = dataclasses.field(default_factory=AgentConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)


@dataclass(frozen=True)
class MetaTrain:
    """Search for an objective, by evolution or by meta-gradient. The same line again resumes, exactly.

    Example: discover meta-train lpo_minatar --out runs/lpo --evolution.population 32
    """

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    out: Path | None = None  # the run's own directory: checkpoints, metrics, objective.safetensors
    fit: bool = False  # side by side on each device as many lives as its memory holds, whatever chunk the recipe has
    dry_run: bool = False  # only say what it would take: parameters, memory, environment steps, time
    wandb: bool = False  # also log to Weights & Biases
    coordinator: str | None = None  # HOST:PORT of process 0, where no cluster (SLURM, Open MPI, a TPU pod) tells it
    num_processes: int | None = None  # in all, with --coordinator
    process_id: int | None = None  # of this one, from 0, with --coordinator; process 0 alone writes


@dataclass(frozen=True)
class Resume:
    """Go on with the run in a directory, by the recipe it has there.

    Example: discover resume runs/lpo
    """

    run: tyro.conf.Positional[Path]  # the directory of a run
    wandb: bool = False  # also log to Weights & Biases
    coordinator: str | None = None  # as of meta-train
    num_processes: int | None = None  # as of meta-train
    process_id: int | None = None  # as of meta-train


@dataclass(frozen=True)
class Evaluate:
    """Train objectives side by side in the same environments with the same agents, and compare their returns.

    The same line again, with the same --out, goes on where it stopped; with more objectives or environments it adds them.

    Example: discover evaluate ppo dpo runs/lpo --envs Breakout-MinAtar Asterix-MinAtar --num-seeds 10 --out results
    """

    objectives: tyro.conf.Positional[tuple[str, ...]]  # names, files or directories of runs
    envs: tuple[str, ...]  # names (`discover list`)
    total_steps: tuple[int, ...] = (500_000,)  # environment steps of each agent: one budget, or several
    num_seeds: int = 10  # agents per objective and environment
    seed: int = 0  # agent number i of a seed has the same key, however many there are
    num_evals: int = 20  # points of the learning curves
    chunk: int | None = None  # agents trained side by side on a device; None: as many as suit it
    out: Path | None = None  # a directory for evaluation.json and figures


@dataclass(frozen=True)
class Export:
    """Write the objective of a run to a file that `learned_objectives.load` reads.

    Example: discover export runs/lpo my_lpo.safetensors
    """

    run: tyro.conf.Positional[Path]  # the directory of a run
    file: tyro.conf.Positional[Path]  # to write; must not exist


@dataclass(frozen=True)
class Plot:
    """Draw a run: how its fitness moved, and what it found: a drift beside PPO's, or an LPG's targets.

    Example: discover plot runs/lpo
    """

    run: tyro.conf.Positional[Path]  # the directory of a run
    out: Path | None = None  # where the figures go; default: the run's own directory


@dataclass(frozen=True)
class Quickstart:
    """Discover a drift in minutes, starting from none; compare it with PPO and with nothing; draw it."""

    out: Path = Path("runs/quickstart")  # the run's own directory


@dataclass(frozen=True)
class List:
    """What there is: objectives, environments and recipes."""


def _list(_: List) -> None:
    import envs
    import learned_objectives as lo

    tell("objectives\n  " + "  ".join(lo.available()))
    tell("recipes")
    for name, recipe in RECIPES.items():
        tell(f"  {name:<12} {(recipe.__doc__ or '').splitlines()[0]}")
    tell("environments")
    groups: dict[str, list[str]] = {}
    for name in envs.available():
        groups.setdefault(name.split("/")[0] if "/" in name else name.rsplit("-", 1)[-1], []).append(name)
    for names in groups.values():
        tell("  " + "  ".join(names))


def _train(args: Train) -> None:
    from discover.comparison import count_of
    from discover.statistics import few_seeds_note, iqm_interval
    from discover.train import train

    result = train(
        args.objective,
        args.env,
        total_steps=args.total_steps,
        num_seeds=args.num_seeds,
        seed=args.seed,
        num_evals=args.num_evals,
        chunk=args.chunk,
        agent=args.agent,
        loss=args.loss,
        out=args.out,
        progress=tell,
    )
    final = result.returns[:, -1]
    shown = iqm_interval(final) if len(final) > 1 else f"{final[0]:.1f}"  # a single seed has no interval
    tell(f"final return: mean {final.mean():.2f}, IQM {shown} over {count_of(len(final), 'seed')}")
    if note := few_seeds_note(len(final)):
        tell(note)
    if args.out is not None:
        tell(f"wrote {args.out / 'train.jsonl'} and {args.out / 'curve.png'}")


def _meta_train(args: MetaTrain) -> int:
    from discover.fit import fitted

    recipe = fitted(args.recipe, args.out) if args.fit else args.recipe
    if args.dry_run:
        from discover.dry_run import dry_run

        for line in dry_run(recipe, args.out):
            if processes.first():
                tell(line)
        return 0
    if args.out is None:
        raise ValueError("meta-train needs --out DIRECTORY, the run's own, or --dry-run.")
    return _search(recipe, args.out, args.wandb)


def _resume(args: Resume) -> int:
    from discover.recipe import recipe_in

    return _search(recipe_in(args.run), args.run, args.wandb)


def _search(recipe: Recipe, out: Path, wandb: bool) -> int:
    from discover.run import meta_train

    try:
        result = meta_train(recipe, out, wandb=wandb)
    except processes.LostProcess as error:
        tell(f"discover: {error}", error=True)
        return 1
    if not processes.first():
        return 0 if result.stopped is None else 128 + result.stopped
    if result.stopped is None:
        tell(f"done: {result.out / 'objective.safetensors'}  (discover plot {result.out} draws it)")
        return 0
    return 128 + result.stopped


def _evaluate(args: Evaluate) -> None:
    from discover.evaluate import evaluate

    comparison = evaluate(
        args.objectives,
        args.envs,
        total_steps=args.total_steps,
        num_seeds=args.num_seeds,
        seed=args.seed,
        num_evals=args.num_evals,
        chunk=args.chunk,
        out=args.out,
        progress=tell,
    )
    tell(f"\nIQM of the final return over {args.num_seeds} seeds, with its 95% interval")
    tell(comparison.table())
    if args.out is not None:
        tell(f"wrote {args.out / 'evaluation.json'} and figures beside it")


def _export(args: Export) -> None:
    import learned_objectives as lo

    source = args.run / "objective.safetensors"
    if not source.exists():
        raise ValueError(f"{args.run} holds no objective.safetensors: give the directory of a run.")
    if args.file.suffix != ".safetensors":
        raise ValueError(f"expected the name of a file that ends in .safetensors, and got {args.file}: add the ending.")
    if args.file.exists():
        raise ValueError(f"{args.file} exists already: choose another name, or remove it.")
    if not args.file.parent.is_dir():
        raise ValueError(f"{args.file.parent} is not a directory: make it first.")
    lo.save(lo.load(source), args.file, lo.record(source))
    tell(f'wrote {args.file}: learned_objectives.load("{args.file}")')


def _plot(args: Plot) -> None:
    from discover.plots import draw_run

    if args.out is not None and args.out.is_file():
        raise ValueError(f"{args.out} is a file: choose a directory as --out.")
    for path in draw_run(args.run, args.out or args.run):
        tell(f"wrote {path}")


def _quickstart(args: Quickstart) -> int:
    from discover.quickstart import quickstart

    return quickstart(args.out)


COMMANDS: dict[str, tuple[type, Callable[[Any], int | None]]] = {
    "quickstart": (Quickstart, _quickstart),
    "list": (List, _list),
    "train": (Train, _train),
    "meta-train": (MetaTrain, _meta_train),
    "resume": (Resume, _resume),
    "evaluate": (Evaluate, _evaluate),
    "export": (Export, _export),
    "plot": (Plot, _plot),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command. Exit status: 0, 2 for a mistake of the user's, 128 + n where signal n stopped a run."""
    argv = sys.argv[1:] if argv is None else argv
    status = 1
    try:
        status = _status(argv)
    finally:
        if status and processes.joined():
            _leave(status)
    return status


def _leave(status: int) -> None:
    """At once: at the usual end a process waits for the others, who may be waiting for it."""
    if sys.exc_info()[0] is not None:
        traceback.print_exc()
    sys.stdout.flush()
    if processes.first():
        time.sleep(2)  # whoever loses sight of the first process is aborted: let the others leave before
    os._exit(status)


def _status(argv: list[str]) -> int:
    try:
        return _main(argv)
    except BrokenPipeError:  # `discover list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (ValueError, OSError) as error:
        if "DISCOVER_DEBUG" in os.environ:
            raise
        tell(f"discover: {_sentence(error)}", error=True)
        return 2
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        tell(f"discover: out of memory ({_sentence(error)[:120]}): make sizes or the chunk smaller.", error=True)
        return 2
    except OverflowError as error:
        tell(f"discover: a number is too large ({_sentence(error)})", error=True)
        return 2
    except KeyboardInterrupt:
        tell("discover: interrupted.", error=True)
        return 128 + signal.SIGINT


@plain_jax()
@plain_advice()
def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        tell(_usage())
        return 0
    check_arguments(argv)
    name, rest = argv[0], argv[1:]
    keep_programs()
    arguments, command = COMMANDS[name]
    default, rest = _default(name, rest)
    parsed = _parse(arguments, name, rest, default)
    _refuse_absurd(dataclasses.asdict(parsed))
    return command(parsed) or 0


def _parse(arguments: type, name: str, rest: list[str], default: Any) -> Any:
    """tyro's parser, with what it says about a mistake brought from a box of many lines to one."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            words = "meta-train RECIPE" if name == "meta-train" else name
            return tyro.cli(arguments, prog=f"discover {words}", args=rest, default=default)
    except SystemExit as stop:
        if not stop.code:
            raise
        lines = [line.strip("│╭╮╰╯─ ") for line in said.getvalue().splitlines()[1:]]
        lines = ["" if set(line) == {"-"} else line for line in lines]  # the box, where output is not UTF-8
        sentence = " ".join(itertools.takewhile(bool, itertools.dropwhile(operator.not_, lines))).removesuffix(".")
        near = [line.split()[0] for line in _after("Perhaps you meant:", lines) if line.startswith("--")]
        hint = f" Perhaps you meant {' or '.join(near[:3])}." if near else ""
        raise ValueError(f"{_by_flag(sentence, default)}.{hint} See `discover {name} --help`.") from None


def _by_flag(sentence: str, default: Any) -> str:
    """tyro names the part of the settings that refused one of its fields ("Error parsing recipe.agent: num_envs must"): the flag
    instead, where the sentence begins with a field."""
    found = re.match(r"Error parsing (?:recipe\.)?(\w+): (?:\1\.)?(\w+)(.*)", sentence)
    if found is None:
        return sentence
    part, name, rest = found.groups()
    is_field = hasattr(getattr(getattr(default, "recipe", default), part, None), name)
    return f"--{part}.{name}".replace("_", "-") + rest if is_field else name + rest


def _after(mark: str, lines: list[str]) -> list[str]:
    """The lines of tyro's box after this one."""
    return lines[lines.index(mark) + 1 :] if mark in lines else []


def _refuse_absurd(values: dict[str, Any]) -> None:
    """Numbers that no array can be sized or filled with. Steps and seeds say themselves what they may be."""
    for path, value in flatten(values).items():
        name = path.removeprefix("recipe.")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and number >= 2**31 and name not in ("total_steps", "seed"):
                raise ValueError(f"{name} must be less than 2^31, and is {number}.")
            if isinstance(number, float) and float(np.finfo(np.float32).max) < abs(number) < np.inf:
                raise ValueError(f"{name} must be less than 3.4e38, and is {number}.")


def _default(name: str, rest: list[str]) -> tuple[Any, list[str]]:
    """What the flags start from, where that depends on other arguments: the recipe, or the environment's usual setup."""
    if name == "meta-train":
        try:
            recipe, rest = split_recipe(rest)
        except ValueError:
            if not {"-h", "--help"} & set(rest):
                raise
            return MetaTrain(recipe=Recipe()), rest
        return MetaTrain(recipe=get_recipe(recipe)), rest
    if name == "train":
        env = _peek(rest, "--env") or Train.env
        setup = usual_setup(env)
        return Train(env=env, agent=setup.agent, loss=setup.loss), rest
    return None, rest


def _peek(argv: list[str], flag: str) -> str | None:
    for i, word in enumerate(argv):
        if word.startswith(f"{flag}="):
            return word.split("=", 1)[1]
        if word == flag and i + 1 < len(argv):
            return argv[i + 1]
    return None


def _usage() -> str:
    lines = ["usage: discover COMMAND ...", ""]
    for name, (arguments, _) in COMMANDS.items():
        lines.append(f"  {name:<11} {(arguments.__doc__ or '').splitlines()[0]}")
    return "\n".join([*lines, "", "`discover COMMAND --help` explains each."])


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}. Check the path and the space left on the disk."
    return " ".join(str(error).split()).replace("envs.available() lists them all", LISTED)
