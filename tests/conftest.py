"""Settings that hold before JAX starts, the family of drifts, and strictness for whoever asks."""

import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import learned_objectives as lo

# A shell may pass on ignored signals (nohup, a script's background), which every child would inherit. A handler is not inherited:
# children start with the default dispositions. This process itself goes on ignoring SIGHUP.
for number, handler in ((signal.SIGHUP, lambda *_: None), (signal.SIGINT, signal.default_int_handler)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)

jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
if "XLA_FLAGS" not in os.environ:
    jax.config.update("jax_num_cpu_devices", 4)

# The files that take longest, first: whoever began one of them last would be left with it alone. Those that wait for processes
# of their own leave room for others meanwhile.
LONGEST = ("run", "agent", "processes", "metagrad", "cli", "evaluate", "envs", "brax")


def pytest_configure(config):
    # Two sessions may share the cache. What one reads half-written it compiles again, with a
    # warning that says nothing about the code under test.
    config.addinivalue_line("filterwarnings", "ignore:Error (reading|writing) persistent compilation cache:UserWarning")


def pytest_collection_modifyitems(items):
    rank = {f"test_{name}": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))  # stable: within a file nothing moves


@pytest.fixture
def strict():
    """No implicit broadcast between ranks, no shortened matmuls. Not for gymnax, which promotes."""
    with jax.numpy_rank_promotion("raise"), jax.default_matmul_precision("highest"):
        yield


def searched(seed, **kwargs):
    """An LPO as a search would leave it: its output layer, zero at creation, has moved."""
    key = jax.random.key(seed)
    drift = lo.LPO.create(key, width=16, **kwargs)
    return drift.replace(out=jax.random.normal(jax.random.fold_in(key, 1), (16,)))


# A new drift is one line here, and every law of the family is asked of it.
FAMILY = {
    "none": lo.NoDrift(),
    "clip": lo.Clip(),
    "dpo": lo.DPO(),
    "kl": lo.KL(),
    "lpo": searched(0),
    "lpo-from-none": searched(1, epsilon=None),
    "ta-lpo": searched(2, time_aware=True),
    "ta-lpo-from-none": searched(3, time_aware=True, epsilon=None),
}


@pytest.fixture(params=FAMILY.values(), ids=FAMILY.keys())
def drift(request):
    return request.param


@pytest.fixture
def samples():
    """Log ratios and advantages as training sees them: f32[64] each."""
    log_ratio, advantage = jax.random.normal(jax.random.key(7), (2, 64))
    return 0.5 * log_ratio, advantage


@pytest.fixture
def progress():
    """Thirty per cent of a life."""
    return lo.Progress(jnp.float32(300.0), jnp.float32(1000.0))
