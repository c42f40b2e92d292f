"""Bytes that the kernels of a life of PPO read and write on an H100: `python -m benchmarks.traffic breakout 1024`.

Needs JAX's CUDA plugin and no GPU (see `benchmarks.accelerator_compile`). One update and the birth of the agents are counted.
Operands and results of every fusion count once each time that it runs; of slices and updates of slices only the slice.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.program import Program, size_of
from benchmarks.rows import BREAKOUT, CARTPOLE

ROWS = {"breakout": BREAKOUT, "cartpole": CARTPOLE}
NO_KERNEL = ("get-tuple-element", "tuple", "parameter", "bitcast", "constant")


class Kernel(NamedTuple):
    name: str
    shape: str
    times: float  # that it runs
    bytes: int  # each time


def compiled(row: Any, agents: int, changes: dict[str, Any], products: str) -> str:
    """The optimised program of lives of PPO side by side, for an H100 and the GPU's plan with changes."""
    import jax
    import jax.numpy as jnp

    import discover
    import envs
    import learned_objectives as lo
    from benchmarks.accelerator_compile import h100
    from discover.agents.agent import Agent
    from discover.devices.parallel import sharded_map
    from discover.devices.plan import GPU

    names = {field.name for field in dataclasses.fields(discover.AgentConfig)}
    given = {name: value for name, value in dataclasses.asdict(row).items() if name in names}
    config = discover.AgentConfig(**given, network="mlp", anneal=False, products=products)
    env, params = envs.make(row.env)
    agent = Agent.fit(env, config, lo.load("ppo"), plan=dataclasses.replace(GPU, **changes))
    task = agent.task(params, row.total_steps)
    program = sharded_map(lambda n, key: agent.train(lo.load("ppo"), task, key, num_updates=n)[1], devices=h100())
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), agents))
    return program.lower(jax.ShapeDtypeStruct((), jnp.int32), keys).compile().as_text()


def kernels(text: str) -> Iterator[Kernel]:
    """Of one turn of every loop of unknown length."""
    program = Program(text)
    found = re.findall(r"^  (?:ROOT )?%([\w.\-]+) = (.*?) [a-z][\w\-]*\(", text, re.MULTILINE)
    sizes = {name: size_of(shape) for name, shape in found}

    def walk(computation: str, times: float) -> Iterator[Kernel]:
        for line in program.computations.get(computation, []):
            match = re.match(r"  (?:ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*?)\)(?:,|$)", line)
            if match is None or match[3] in NO_KERNEL or "done" in match[1]:
                continue
            name, shape, kind, arguments = match.groups()
            if kind == "while":
                condition, body = re.findall(r"(?:condition|body)=%?([\w.\-]+)", line)
                known = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
                turns = int(known[1]) if known else program.turns_of(condition) or 1
                yield from walk(body, times * turns)
            elif kind in ("call", "conditional", "async-start"):
                for called in re.findall(r"(?:to_apply|called_computation|calls)=%?([\w.\-]+)", line):
                    yield from walk(called, times)
                for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
                    for called in re.findall(r"%?([\w.\-]+)", branches):
                        yield from walk(called, times)
            else:
                operands = [sizes.get(x, 0) for x in re.findall(r"%([\w.\-]+)", arguments)]
                yield Kernel(name, shape, times, _traffic(name, line, sizes[name], operands))

    return walk("ENTRY", 1.0)


def _traffic(name: str, line: str, result: int, operands: list[int]) -> int:
    where = name + (re.search(r'op_name="([^"]*)"', line) or [line])[0][-80:]
    if "dynamic_update" in where or "dynamic-update" in where:
        return 2 * sum(x for x in operands if 8 * x < max(operands))
    if "slice" in name or "gather" in name or "/split" in where:
        return 2 * result + sum(x for x in operands if x <= 2 * result)
    if "loop_select" in name:
        return result + sum(min(x, result) for x in operands)
    return result + sum(operands)


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m benchmarks.traffic", description=__doc__)
    p.add_argument("row", choices=ROWS)
    p.add_argument("agents", type=int)
    p.add_argument("--plan", type=json.loads, default={}, help="""changes of the GPU's plan: '{"binary_obs": false}'""")
    p.add_argument("--products", default="float32")
    p.add_argument("--top", type=int, default=20, help="kernels to print (20)")
    args = p.parse_args()
    found = sorted(
        kernels(compiled(ROWS[args.row], args.agents, args.plan, args.products)), key=lambda k: -k.bytes * k.times
    )
    for kernel in found[: args.top]:
        print(
            f"{kernel.bytes * kernel.times / 1e9:8.2f} GB {kernel.times:5.0f} x  {kernel.name:36} {kernel.shape[:80]}"
        )
    by_loop = Counter()
    for kernel in found:
        by_loop[kernel.times] += kernel.bytes * kernel.times / 1e9
    for times, total in by_loop.most_common(6):
        print(f"{total:8.1f} GB in kernels that run {times:.0f} times, {sum(k.times == times for k in found)} of them")
    print(f"{sum(by_loop.values()):8.1f} GB in all, {sum(k.times for k in found):,.0f} kernels")


if __name__ == "__main__":
    main()
