"""Settings that hold before JAX starts, the family of drifts, and strictness for the tests that ask for it."""

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
# Most of the time of these tests is compilation, which is shorter at this level. The long tests compile as a user's process does.
if "XLA_FLAGS" not in os.environ and "DISCOVER_LONG_TESTS" not in os.environ:
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    jax.config.update("jax_num_cpu_devices", 4)

# The files that take longest, first: the process that began one of them last would run it alone. Those that wait for processes
# of their own leave room for others.
LONGEST = ("run", "agent", "processes", "metagrad", "cli", "evaluate", "envs", "brax", "docs")


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


def softened(seed, **kwargs):
    """A SoftClip as a search would leave it."""
    start = lo.SoftClip.create(**kwargs)
    return start.replace(numbers=0.3 * jax.random.normal(jax.random.key(seed), start.numbers.shape))


# A new drift is one line here, and every law of the family is asked of it.
FAMILY = {
    "none": lo.NoDrift(),
    "clip": lo.Clip(),
    "asymmetric-clip": lo.AsymmetricClip(jnp.float32(0.7), jnp.float32(-0.4)),
    "timed-clip": lo.TimedClip(),
    "dpo": lo.DPO(),
    "spo": lo.SPO(),
    "tsallis-0": lo.Tsallis(jnp.float32(0.5), 0.0),
    "tsallis-1": lo.Tsallis(jnp.float32(0.5), 1.0),
    "tsallis-2": lo.Tsallis(jnp.float32(0.5), 2.0),
    "tsallis-half": lo.Tsallis(jnp.float32(0.5), 0.5),
    "kl": lo.KL(),
    "lpo": searched(0),
    "lpo-from-none": searched(1, epsilon=None),
    "ta-lpo": searched(2, time_aware=True),
    "ta-lpo-from-none": searched(3, time_aware=True, epsilon=None),
    "soft-clip-start": lo.SoftClip.create(),
    "soft-clip": softened(4),
    "ta-soft-clip": softened(5, time_aware=True),
    "statistics-soft-clip": softened(6, sees_statistics=True),
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
    return lo.Progress(jnp.float32(300.0), jnp.float32(1000.0), lo.Statistics.typical())
