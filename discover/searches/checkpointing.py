"""Reverse mode through long loops: carries are stored at few points, and everything between them is computed again."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def checkpointed_scan(
    step: Callable[[PyTree, jax.Array], tuple[PyTree, PyTree]],
    init: PyTree,
    *,
    length: int,
    base: int = 8,
    policy: Callable[..., bool] | None = None,
) -> tuple[PyTree, PyTree]:
    """`jax.lax.scan(step, init, jnp.arange(length))`, whose reverse mode stores about k log_k N carries for k = `base`.

        scan_N = k_1 segments of k_2 segments of ... of k_L steps,    L = ceil(log_k N),  k_l <= k,  k_1 k_2 ... k_L >= N

    The backward pass stores the carry at the beginning of each segment of the level that it is in, k_1 + ... + k_L at most,
    and computes each step L + 1 times forward and once backward. Where a step costs F forward and R backward, plain reverse
    mode costs F + R and stores what all N steps leave behind; this costs (L + 1) F + R. The result is that of the scan.

    Args:
      step: (carry, i32[] the index from 0) -> (carry, out). The carry keeps its shapes and types.
      init: the first carry.
      length: N, at least 1. It need not be a power of anything.
      base: k, at least 2. A smaller one stores less and computes more often.
      policy: what `jax.checkpoint` may keep of a single step, beside its carry.

    Returns:
      The last carry, and the outs with leaves [N, ...].

    Raises ValueError for a length below 1 and a base below 2.

    References: Griewank 1992, doi:10.1080/10556789208805505, for recursive checkpoints; Chen et al. 2016, arXiv:1604.06174,
    for the recursion with equal segments; Engstrom et al. 2025, arXiv:2503.13751, for gradients of whole trainings by it.
    """
    if not isinstance(length, int) or length < 1:
        raise ValueError(f"length must be a whole number of steps, at least 1, and is {length!r}.")
    sizes = segments(length, base)
    padded = math.prod(sizes) > length

    def one(carry, index):
        if not padded:
            return step(carry, index)
        _, out = jax.eval_shape(step, carry, index)
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), out)
        # The index is the same in all lanes of a vmap, so that this remains a branch there.
        return jax.lax.cond(index < length, step, lambda carry, _: (carry, nothing), carry, index)

    run, span = one, 1
    for number in reversed(sizes):
        run, span = _repeated(run, number, span, policy if span == 1 else None), span * number
    carry, outs = run(init, jnp.int32(0))
    return carry, jax.tree.map(lambda x: x.reshape((-1, *x.shape[len(sizes) :]))[:length], outs)


def _repeated(run: Callable, number: int, span: int, policy: Callable[..., bool] | None) -> Callable:
    """`run` this many times, on indices `span` apart; of the inside of each nothing is stored but what `policy` allows."""
    run = jax.checkpoint(run, prevent_cse=False, policy=policy)  # pyright: ignore[reportPrivateImportUsage]

    def repeated(carry, first):
        return jax.lax.scan(run, carry, first + span * jnp.arange(number, dtype=jnp.int32))

    return repeated


def segments(length: int, base: int) -> tuple[int, ...]:
    """k_1, ..., k_L: as few numbers up to `base` as reach `length` in their product, and as small as they can be.

    Raises ValueError for a base below 2.
    """
    if not isinstance(base, int) or base < 2:
        raise ValueError(f"base must be a whole number, at least 2, and is {base!r}.")
    levels = 1
    while base**levels < length:
        levels += 1
    size = next(k for k in range(1, base + 1) if k**levels >= length)
    sizes = [size] * levels
    for level in range(levels):
        if math.prod(sizes) // size * (size - 1) >= length:
            sizes[level] = size - 1
    return tuple(sizes)
