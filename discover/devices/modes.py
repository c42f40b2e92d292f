"""JAX as this toolkit is made for, whatever a user's process has set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

# Setting -> the value under which lives run. Environments of gymnax and Brax promote types, NaN marks a return that is not known
# yet, and a life without jit takes hours.
PLAIN = {
    "jax_enable_x64": False,
    "jax_debug_nans": False,
    "jax_debug_infs": False,
    "jax_disable_jit": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
}


@contextlib.contextmanager
def plain_jax() -> Iterator[None]:
    """Float32 throughout, jitted, with standard promotion and without a check for NaN. Also a decorator.

    `train`, `evaluate`, `meta_train` and what else starts lives run in it, so that they give the same bits under
    `JAX_ENABLE_X64=1`, `jax_debug_nans`, `jax.disable_jit` and strict promotion as without. The settings of the caller hold again
    afterwards. Functions that a user jits, as the methods of `Agent` and all of `learned_objectives`, run under the user's. One
    that is also called by itself, as `Agent.evaluate`, runs in it where nothing traces it: see `is_traced`.
    """
    with contextlib.ExitStack() as stack:
        for name, value in PLAIN.items():
            if getattr(jax.config, name) != value:
                stack.enter_context(getattr(jax, name.removeprefix("jax_"))(value))
        yield


def is_traced(tree: Any) -> bool:
    """Whether any leaf is an argument of a function that jit, vmap or grad is about to transform."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))
