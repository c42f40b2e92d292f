"""One run on several processes, each with its own devices: joining, broadcasts and barriers, and lost connections.

All processes run the same host loop on the same keys. Only what `discover.devices.parallel` shards differs. They exchange
fitness, or the gradients and states that a step needs. Only process 0 reads and writes the run's directory.
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

from discover.console import print_line

PyTree = Any

JOIN_TIMEOUT_S = 50  # seconds for all processes to arrive
HEARTBEAT_TIMEOUT_S = 30  # seconds without a heartbeat after which a process counts as lost
BARRIER_TIMEOUT_MS = 7 * 24 * 3600 * 1000  # milliseconds at a barrier; the heartbeat detects lost processes
FLAGS = ("--coordinator", "--num-processes", "--process-id")
LOST_PROCESS = (
    "the connection to another process of this run was lost, or this process was aborted; the lines above may say why. "
    "Saved checkpoints are safe: start all processes again with the same commands, and they resume from the last one."
)


_barriers = itertools.count()


class LostProcess(RuntimeError):
    """The connection to another process was lost. The message says what to do."""


class Place(NamedTuple):
    """The position of a process among the others; None, None, None: JAX asks the cluster."""

    coordinator: str | None
    num_processes: int | None
    process_id: int | None


def place_in(argv: Sequence[str], environment: Any = os.environ) -> Place | None:
    """The position given on a command line, or else by the cluster's environment; None for a single process.

    Raises ValueError for incomplete or impossible values.
    """
    given = {flag: value for flag, value in ((flag, _value_of(argv, flag)) for flag in FLAGS) if value is not None}
    if not given:
        return Place(None, None, None) if _on_a_cluster(environment) else None
    missing = [flag for flag in FLAGS if flag not in given]
    if missing:
        raise ValueError(f"{', '.join(given)} also needs {' and '.join(missing)}, in every process.")
    host, _, port = given["--coordinator"].rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(
            "--coordinator must be HOST:PORT, an address of process 0 that all processes can reach, and is "
            f"{given['--coordinator']!r}."
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
    """Whether SLURM, Open MPI, a TPU pod or JAX's own variables describe more than one process."""
    multiple = any(
        environment.get(name, "1").isdigit() and int(environment.get(name, "1")) > 1
        for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    )
    pod = "," in environment.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in environment
    return multiple or pod or "JAX_COORDINATOR_ADDRESS" in environment


def join(place: Place) -> None:
    """Connect to the other processes. Must run before JAX starts, and so before gymnax is imported.

    The work runs in a child process. The parent waits and forwards signals. JAX's runtime aborts a process that loses another one
    and prints only a stack trace; the parent then prints a sentence.
    """
    if place.process_id == 0:
        _refuse_taken(str(place.coordinator))
    _supervise()
    late = threading.Timer(JOIN_TIMEOUT_S, _give_up, (place,))
    late.daemon = True
    late.start()
    with contextlib.suppress(AttributeError):  # a JAX that has it by default
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            *place,
            initialization_timeout=10 * JOIN_TIMEOUT_S,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
            shutdown_timeout_seconds=HEARTBEAT_TIMEOUT_S,
        )
    except (ValueError, RuntimeError) as error:  # the cluster's variables are incomplete
        first_line = (str(error).strip().splitlines() or ["no reason given"])[0].rstrip(".")
        _print_error(f"the other processes cannot be reached ({first_line}): give {', '.join(FLAGS)}.")
        os._exit(2)
    late.cancel()


def _refuse_taken(coordinator: str) -> None:
    """Refuse a port that is in use: the runtime would abort without a message."""
    port = int(coordinator.rpartition(":")[2])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            _print_error(f"process 0 cannot listen at port {port} ({error.strerror}): choose another --coordinator.")
            raise SystemExit(2) from None


def _print_error(sentence: str) -> None:
    print_line(f"discover: {sentence}", error=True)


def _give_up(place: Place) -> None:
    where = place.coordinator or "the coordinator that the cluster names"
    count = f"all {place.num_processes} processes" if place.num_processes else "all processes"
    _print_error(
        f"waited {JOIN_TIMEOUT_S} s for {count} to connect to {where}: check that process 0 runs there, that its port can be "
        "reached, and that all other processes were started."
    )
    os._exit(2)


def _supervise() -> None:
    """Fork. The child returns; the parent exits with the child's status, and prints a sentence if the child was aborted."""
    translate_disconnects, held = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(held)
        os.setpgrp()  # else Ctrl-C in a terminal would come twice
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a background process group must not read from it
        threading.Thread(target=_end_with_parent, args=(translate_disconnects,), daemon=True).start()
        return
    os.close(translate_disconnects)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda number, _frame: os.kill(child, number))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == -signal.SIGABRT:
        _print_error(LOST_PROCESS)
        os._exit(1)
    os._exit(status if status >= 0 else 128 - status)


def _end_with_parent(translate_disconnects: int) -> None:
    os.read(translate_disconnects, 1)  # end of file: the parent has ended
    os.kill(os.getpid(), signal.SIGKILL)


def joined() -> bool:
    """Whether this process has joined others. Does not start JAX."""
    return jax.distributed.is_initialized()


def is_multiprocess() -> bool:
    return jax.process_count() > 1


def is_primary() -> bool:
    """Whether this is process 0, which reads and writes the run's directory."""
    return jax.process_index() == 0


@contextlib.contextmanager
def translate_disconnects() -> Iterator[None]:
    """Raise LostProcess for the errors that the runtime raises when a connection is lost."""
    try:
        yield
    except Exception as error:
        words = ("Gloo", "UNAVAILABLE", "coordination service", "Connection closed by peer", "NCCL")
        lost = is_multiprocess() and not isinstance(error, LostProcess) and any(word in str(error) for word in words)
        if lost and "DISCOVER_DEBUG" not in os.environ:
            raise LostProcess(LOST_PROCESS) from None
        raise


def broadcast_from_first(tree: PyTree) -> PyTree:
    """The tree of process 0, in every process. All pass trees of the same shapes and types."""
    if not is_multiprocess():
        return tree
    from jax.experimental import multihost_utils

    barrier()
    return multihost_utils.broadcast_one_to_all(tree)


def all_gather_to_host(x: jax.Array) -> np.ndarray:
    """The whole of an array that is sharded over processes. Every process must call this."""
    from jax.experimental import multihost_utils

    jax.block_until_ready(x)
    barrier()
    return multihost_utils.process_allgather(x, tiled=True)


def barrier() -> None:
    """Wait until all processes arrive. Collectives time out after half a minute, and lives or compilations may differ by more."""
    from orbax.checkpoint import multihost

    multihost.get_barrier_sync_fn()(key=f"discover-{next(_barriers)}", timeout_ms=BARRIER_TIMEOUT_MS)


def max_over_processes(number: int) -> int:
    """The maximum over all processes."""
    return int(max(_of_all(number))) if is_multiprocess() else number


def assert_equal_across_processes(what: str, number: int) -> None:
    """Raise ValueError in every process unless all pass the same number. `what` names it in the message."""
    if is_multiprocess():
        theirs = _of_all(number)
        other = [i for i, each in enumerate(theirs) if each != theirs[0]]
        if other:
            raise ValueError(
                f"Process {other[0]} has a different {what} than process 0: give all processes the same command."
            )


def _of_all(number: int) -> list[int]:
    from jax.experimental import multihost_utils

    barrier()
    return [int(x) for x in np.ravel(multihost_utils.process_allgather(np.int32(number)))]
