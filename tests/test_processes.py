"""Several processes are one run: they find each other, end in the same bits as one, and none waits for the dead."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from unittest import mock

import crash
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from discover.devices import parallel, processes

COORDINATOR = ["--coordinator", "10.0.0.1:1234"]


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ([*COORDINATOR, "--num-processes", "2", "--process-id", "1"], ("10.0.0.1:1234", 2, 1)),
        (["--coordinator=host:80", "--num-processes=1", "--process-id=0"], ("host:80", 1, 0)),
        (["--coordinator", "[::1]:80", "--num_processes", "3", "--process_id", "2"], ("[::1]:80", 3, 2)),
        (["--out", "runs/a"], None),
    ],
)
def test_a_place_is_read_off_the_command_line(line, place):
    assert processes.place_in(line, {}) == place


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({"SLURM_STEP_NUM_TASKS": "8"}, True),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, True),
        ({}, False),
    ],
)
def test_a_cluster_speaks_for_itself(environment, several):
    assert processes.place_in([], environment) == ((None, None, None) if several else None)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (COORDINATOR, "--coordinator also needs --num-processes and --process-id"),
        (["--process-id", "0"], "--process-id also needs --coordinator and --num-processes"),
        (
            [*COORDINATOR, "--num-processes", "2", "--process-id", "2"],
            "must be 0 to 1, as there are 2 processes, and is 2",
        ),
        (
            [*COORDINATOR, "--num-processes", "2", "--process-id", "-1"],
            "must be 0 to 1, as there are 2 processes, and is -1",
        ),
        ([*COORDINATOR, "--num-processes", "0", "--process-id", "0"], "--num-processes must be at least 1, and is 0"),
        ([*COORDINATOR, "--num-processes", "two", "--process-id", "0"], "must be a whole number, and is 'two'"),
        (["--coordinator", "host", "--num-processes", "2", "--process-id", "0"], "must be HOST:PORT"),
        (["--coordinator", "host:99999", "--num-processes", "2", "--process-id", "0"], "must be HOST:PORT"),
        (["--coordinator", ":80", "--num-processes", "2", "--process-id", "0"], "must be HOST:PORT"),
    ],
)
def test_a_place_that_cannot_be_is_refused(line, sentence):
    with pytest.raises(ValueError, match="--") as refusal:
        processes.place_in(line, {})
    assert sentence in str(refusal.value)


def join_alone(port, process_id):
    """`join` by itself, without what `import discover` does, which starts JAX; with two seconds of patience in place of fifty."""
    script = (
        "import sys, types; package = sys.modules['discover'] = types.ModuleType('discover'); "
        f"package.__path__ = [{os.path.dirname(os.path.dirname(processes.__file__))!r}]; "
        "from discover.devices import processes as p; p.JOIN_TIMEOUT_S = 2; "
        f"p.join(p.Place('127.0.0.1:{port}', 2, {process_id}))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=crash.REPO, env=crash.environment(), capture_output=True, text=True)
    assert done.returncode == 2
    return done.stderr.strip().splitlines()[-1]


def test_nobody_waits_for_a_coordinator_that_does_not_answer():
    assert join_alone(free_port(), 1).startswith("discover: waited 2 s for all 2 processes to connect to 127.0.0.1:")


def test_nobody_waits_for_those_who_never_come():
    assert join_alone(free_port(), 0).startswith("discover: waited 2 s for all 2 processes to connect to 127.0.0.1:")


def test_a_port_that_is_taken_is_named():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert join_alone(port, 0).startswith(
            f"discover: process 0 cannot listen at port {port} (Address already in use)"
        )


def test_nobody_waits_for_a_coordinator_that_hears_and_does_not_answer():
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        assert join_alone(mute.getsockname()[1], 1).startswith("discover: waited 2 s for all 2 processes to connect to")


def line_of_process(out, port, process_id):
    """The command line itself: (its exit status, what it said, seconds)."""
    place = ("--coordinator", f"127.0.0.1:{port}", "--num-processes", "2", "--process-id", str(process_id))
    began = time.monotonic()
    with crash.start(out, devices=1, place=place) as process:
        _, said = process.communicate(timeout=120)
    return process.returncode, said, time.monotonic() - began


def test_a_process_id_out_of_range_is_one_sentence(tmp_path):
    status, said, _ = line_of_process(tmp_path / "run", free_port(), 2)
    assert status == 2
    assert said == "discover: --process-id must be 0 to 1, as there are 2 processes, and is 2.\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not crash.LONG, reason="takes a minute")
def test_a_coordinator_that_does_not_answer_is_a_sentence_within_a_minute(tmp_path):
    status, said, seconds = line_of_process(tmp_path / "run", free_port(), 1)
    assert status == 2
    assert (
        said.strip().splitlines()[-1].startswith("discover: waited 50 s for all 2 processes to connect to 127.0.0.1:")
    )
    assert seconds < 60


@pytest.mark.parametrize("devices", [1, 2, 3, 4])
@pytest.mark.parametrize("chunk", [1, 2])
def test_more_devices_than_the_items_divide_over_change_nothing(devices, chunk):
    """Five items: the last one is repeated, and the repeats are forgotten."""
    items = jax.random.normal(jax.random.key(0), (5, 7))
    program = parallel.sharded_map(lambda w, x: jnp.tanh(w @ x).sum(), chunk=chunk, devices=jax.devices()[:devices])
    weights = jax.random.normal(jax.random.key(1), (7, 7))
    expected = np.tanh(np.asarray(items, np.float64) @ np.asarray(weights, np.float64).T).sum(-1)
    np.testing.assert_allclose(program(weights, items), expected, rtol=1e-5)
    alone = parallel.sharded_map(lambda w, x: jnp.tanh(w @ x).sum(), chunk=chunk, devices=jax.devices()[:1])
    # A single chunk needs no loop, which XLA may compile to other roundings on some processors.
    np.testing.assert_allclose(program(weights, items), alone(weights, items), rtol=1e-6)


def test_what_two_processes_cannot_share_evenly_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    half = [mock.Mock(process_index=i // 2) for i in range(4)]
    monkeypatch.setattr(jax, "devices", lambda: half)
    assert parallel.devices_for(6) == [half[0], half[2]]
    with pytest.raises(ValueError, match="3 parts cannot be shared evenly by 2 processes: choose a population"):
        parallel.devices_for(3)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_both(stack, out, **changes):
    port = free_port()
    return [
        stack.enter_context(
            crash.start(
                out / str(i) if i else out,  # only the first one's is made
                devices=2,
                place=("--coordinator", f"127.0.0.1:{port}", "--num-processes", "2", "--process-id", str(i)),
                **changes,
            )
        )
        for i in range(2)
    ]


def finish_both(out, **changes):
    with ExitStack() as stack:
        both = start_both(stack, out, **changes)
        said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    return said


@pytest.mark.slow
def test_whoever_is_killed_the_other_ends_with_a_sentence_and_both_resume_to_the_bits_of_one(tmp_path):
    out = tmp_path / "run"
    for generation, victim in ((3, 0), (8, 1))[: None if crash.LONG else 1]:
        with ExitStack() as stack:
            both = start_both(stack, out)
            assert crash.Moment(generation, False, 0.0).wait(both[0], out)
            both[victim].send_signal(signal.SIGKILL)
            _, said = both[1 - victim].communicate(timeout=120)
            assert both[1 - victim].returncode == 1
        assert said.strip().splitlines()[-1] == f"discover: {processes.LOST_PROCESS}"
    (first, _), (second, _) = finish_both(out)
    assert "Resuming" in first
    assert "generation" not in second  # the first speaks for both
    assert crash.exported(out) == crash.exported(crash.first().result.out)
    assert crash.logged(out) == crash.logged(crash.first().result.out)


@pytest.mark.slow
def test_both_stop_when_one_is_told_to(tmp_path):
    out = tmp_path / "run"
    with ExitStack() as stack:
        both = start_both(stack, out, generations=1000)
        assert crash.Moment(2, False, 0.0).wait(both[0], out)
        both[1].send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=120) for process in both]
        assert [process.returncode for process in both] == [128 + signal.SIGTERM] * 2
    assert "Stopped after generation" in said[0][0]
