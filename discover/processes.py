"""One run on several processes, each with devices of its own: how they find each other, what they tell each other, and what
one says when another is gone.

All run the same host loop on the same keys. Only what `discover.parallel` shards differs, and what crosses between them is
fitness, or the gradients and states that a step asks for. Process 0 alone reads and writes the run's directory.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from discover.console import tell

PyTree = Any

PATIENCE = 50  # seconds for all processes to arrive
SILENCE = 30  # seconds after which a process that says nothing is taken for dead
LONG = 7 * 24 * 3600 * 1000  # milliseconds: whoever is late is waited for, whoever is dead is noticed
FLAGS = ("--coordinator", "--num-processes", "--process-id")
GONE = (
    "another process of this run has ended or cannot be reached any more, or this one was aborted, as what is above may say. "
    "What was saved is safe: give all of them the same lines again, and they go on from the last checkpoint."
)


_meetings = itertools.count()


class LostProcess(RuntimeError):
    """Another process of the run is gone; the message says what to do."""


class Place(NamedTuple):
    """Where a process stands among the others; None, None, None: for JAX to find out from the cluster."""

    coordinator: str | None
    num_processes: int | None
    process_id: int | None


def place_in(argv: Sequence[str], environment: Any = os.environ) -> Place | None:
    """What a command line, or else the cluster's environment, says of other processes; None if there are none.

    Raises ValueError with a sentence where it makes no sense.
    """
    given = {flag: value for flag, value in ((flag, _value_of(argv, flag)) for flag in FLAGS) if value is not None}
    if not given:
        return Place(None, None, None) if _on_a_cluster(environment) else None
    missing = [flag for flag in FLAGS if flag not in given]
    if missing:
        raise ValueError(f"{', '.join(given)} needs {' and '.join(missing)} beside it, in every process.")
    host, _, port = given["--coordinator"].rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(
            f"--coordinator must be HOST:PORT, an address of process 0 that all can reach, and is {given['--coordinator']!r}."
        )
    number, index = (_whole(given[flag], flag) for flag in FLAGS[1:])
    if number < 1:
        raise ValueError(f"--num-processes must be at least 1, and is {number}.")
    if not 0 <= index < number:
        raise ValueError(f"--process-id must be 0 to {number - 1}, as there are {number} processes, and is {index}.")
    return Place(given["--coordinator"], number, index)


def _value_of(argv: Sequence[str], flag: str) -> str | None:
    for word, after in itertools.zip_longest(argv, argv[1:], fillvalue=""):
        if word in (flag, flag.replace("-", "_").replace("__", "--", 1)):
            return after
        if word.startswith(f"{flag}="):
            return word.split("=", 1)[1]
    return None


def _whole(text: str, flag: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{flag} must be a whole number, and is {text!r}.") from None


def _on_a_cluster(environment: Any) -> bool:
    """Whether SLURM, Open MPI, a TPU pod or JAX's own variables speak of more processes than this one."""
    several = any(
        environment.get(name, "1").isdigit() and int(environment.get(name, "1")) > 1
        for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    )
    pod = "," in environment.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in environment
    return several or pod or "JAX_COORDINATOR_ADDRESS" in environment


def join(place: Place) -> None:
    """Meet the other processes. Before JAX starts, and so before gymnax is imported.

    The work goes on in a child; its parent waits, passes signals on, and puts a sentence where the runtime of JAX, which ends a
    process in which it has lost another, has only a stack of addresses.
    """
    if place.process_id == 0:
        _refuse_taken(str(place.coordinator))
    _guard()
    late = threading.Timer(PATIENCE, _give_up, (place,))
    late.daemon = True
    late.start()
    with contextlib.suppress(AttributeError):  # a JAX that has it by default
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            *place,
            initialization_timeout=10 * PATIENCE,
            heartbeat_timeout_seconds=SILENCE,
            shutdown_timeout_seconds=SILENCE,
        )
    except (ValueError, RuntimeError) as error:  # a cluster that says half of what is needed
        first_line = (str(error).strip().splitlines() or ["no reason is given"])[0].rstrip(".")
        _say(f"the other processes cannot be met ({first_line}): give {', '.join(FLAGS)}.")
        os._exit(2)
    late.cancel()


def _refuse_taken(coordinator: str) -> None:
    """A port that is in use, in which the runtime would end without a word."""
    port = int(coordinator.rpartition(":")[2])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            _say(f"process 0 cannot listen at port {port} ({error.strerror}): choose another --coordinator.")
            raise SystemExit(2) from None


def _say(sentence: str) -> None:
    tell(f"discover: {sentence}", error=True)


def _give_up(place: Place) -> None:
    where = place.coordinator or "the coordinator that the cluster names"
    count = f"all {place.num_processes} processes" if place.num_processes else "all processes"
    _say(
        f"waited {PATIENCE} s for {count} to meet at {where}: see that process 0 runs there, that its port can be reached, and "
        "that every other one has been started."
    )
    os._exit(2)


def _guard() -> None:
    """Fork: the child returns, the parent ends as the child does, or with a sentence where that was aborted."""
    watched, held = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(held)
        os.setpgrp()  # else Ctrl-C in a terminal would come twice
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # and whoever is not in front there must not read
        threading.Thread(target=_end_with_parent, args=(watched,), daemon=True).start()
        return
    os.close(watched)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda number, _frame: os.kill(child, number))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == -signal.SIGABRT:
        _say(GONE)
        os._exit(1)
    os._exit(status if status >= 0 else 128 - status)


def _end_with_parent(watched: int) -> None:
    os.read(watched, 1)  # the end of the file: whoever held the other end is gone
    os.kill(os.getpid(), signal.SIGKILL)


def joined() -> bool:
    """Whether this process has met others. Does not start JAX."""
    return jax.distributed.is_initialized()


def several() -> bool:
    return jax.process_count() > 1


def first() -> bool:
    """Whether this process is the one that reads and writes."""
    return jax.process_index() == 0


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """What the runtime raises when another process is gone becomes a LostProcess."""
    try:
        yield
    except Exception as error:
        words = ("Gloo", "UNAVAILABLE", "coordination service", "Connection closed by peer", "NCCL")
        lost = several() and not isinstance(error, LostProcess) and any(word in str(error) for word in words)
        if lost and "DISCOVER_DEBUG" not in os.environ:
            raise LostProcess(GONE) from None
        raise


def told(tree: PyTree) -> PyTree:
    """What process 0 has; the others' is of the same shapes and types, and is forgotten."""
    if not several():
        return tree
    from jax.experimental import multihost_utils

    meet()
    return multihost_utils.broadcast_one_to_all(tree)


def gathered(x: jax.Array) -> np.ndarray:
    """The whole of an array of which each process has a part. All must ask for it."""
    from jax.experimental import multihost_utils

    jax.block_until_ready(x)
    meet()
    return multihost_utils.process_allgather(x, tiled=True)


def meet() -> None:
    """Wait until all have come here. What crosses between devices gives up after half a minute, and lives, or compilers, may
    differ by more than that."""
    from orbax.checkpoint import multihost

    multihost.get_barrier_sync_fn()(key=f"discover-{next(_meetings)}", timeout_ms=LONG)


def largest(number: int) -> int:
    """Over all processes."""
    return int(max(_of_all(number))) if several() else number


def agree(what: str, number: int) -> None:
    """Raises ValueError, in every process, unless all have the same number; `what` names it."""
    if several():
        theirs = _of_all(number)
        other = [i for i, each in enumerate(theirs) if each != theirs[0]]
        if other:
            raise ValueError(f"Process {other[0]} has another {what} than process 0: give all processes the same line.")


def _of_all(number: int) -> list[int]:
    from jax.experimental import multihost_utils

    meet()
    return [int(x) for x in np.ravel(multihost_utils.process_allgather(np.int32(number)))]
