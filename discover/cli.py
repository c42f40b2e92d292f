"""The command line: finds the command, runs it, and turns every mistake of the user's into one sentence."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator

import jax

from discover.commands import completion, distil, evaluate, export, meta_train, parser, plot, quickstart, recipe, train
from discover.commands import list as list_
from discover.commands.command import Command
from discover.console import plain_advice, print_line, reader_left
from discover.devices import processes
from discover.devices.modes import plain_jax
from discover.devices.runtime import keep_programs
from discover.light import answer
from discover.names import LISTED, check_arguments
from discover.settings import as_dict
from envs import plugs

COMMANDS = {
    "quickstart": Command(quickstart.Quickstart, quickstart.run),
    "list": Command(list_.List, list_.run),
    "recipe": Command(recipe.ShowRecipe, recipe.run),
    "train": Command(train.Train, train.run, train.parse),
    "meta-train": Command(meta_train.MetaTrain, meta_train.run, meta_train.parse),
    "resume": Command(meta_train.Resume, meta_train.resume),
    "evaluate": Command(evaluate.Evaluate, evaluate.run),
    "distil": Command(distil.Distil, distil.run),
    "export": Command(export.Export, export.run),
    "plot": Command(plot.Plot, plot.run),
    "completion": Command(completion.Completion, completion.run),
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
    if processes.is_primary():
        time.sleep(2)  # a process that loses its connection to process 0 is aborted, so the others exit first
    os._exit(status)


def _status(argv: list[str]) -> int:
    try:
        return _main(argv)
    except BrokenPipeError:  # `discover list | head`
        return reader_left()
    except (ValueError, OSError) as error:
        if "DISCOVER_DEBUG" in os.environ:
            raise
        print_line(f"discover: {_sentence(error)}", error=True)
        return 2
    except SystemExit as error:
        if not plugs.is_raised_by_user(error):
            raise
        print_line(f"discover: {plugs.raised(error)}: the code of a plug must not end the process.", error=True)
        return 2
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print_line(f"discover: out of memory ({_sentence(error)[:120]}): make sizes or the chunk smaller.", error=True)
        return 2
    except OverflowError as error:
        print_line(f"discover: a number is too large ({_sentence(error)})", error=True)
        return 2
    except KeyboardInterrupt:
        print_line("discover: interrupted.", error=True)
        return 128 + signal.SIGINT


@plain_jax()
@plain_advice()
def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print_line(_usage())
        return 0
    check_arguments(argv)
    if (said := answer(argv)) is not None:
        print_line(said)
        return 0
    name, words = argv[0], argv[1:]
    keep_programs()
    command = COMMANDS[name]
    with _working_directory_on_path():
        parsed = command.parse(words) if command.parse else parser.parse(command.arguments, name, words)
        parser.refuse_absurd(as_dict(parsed))
        return command.run(parsed) or 0


@contextlib.contextmanager
def _working_directory_on_path() -> Iterator[None]:
    """At the end of it, where it hides nothing: a plug `kites:Kite` may be in a file there."""
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.append(here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def _usage() -> str:
    lines = ["usage: discover COMMAND ...", ""]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<11} {(command.arguments.__doc__ or '').splitlines()[0]}")
    return "\n".join([*lines, "", "`discover COMMAND --help` explains each. `discover --version` prints the version."])


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}. Check the path and the space left on the disk."
    return " ".join(str(error).split()).replace("envs.available() lists them all", LISTED)
