"""Accelerators: what a machine that has one does in a few minutes, and what the compiler says of TPUs that are not there.

    python -m benchmarks.accelerators --measure                     # this machine's accelerator, within nine minutes
    python -m benchmarks.accelerators --compile v5e:2x2 v5e:4x4     # needs the extra tpu-compile and no accelerator

With --measure each stage runs in a process of its own under a limit of seconds. It prints JSON lines, which are kept even where
the stage fails or runs out of time. Stages compile side by side, as many as the processor and the device's memory allow, and
then measure one at a time, while nothing else runs (`benchmarks.turns`). The report is written after every stage, so an
interrupted run keeps what it measured. A stage that does not fit into the remaining time is skipped and listed as such.

The parent process does not import JAX, so that a stage has the whole device memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import turns
from benchmarks.record import ROOT, commit, machine
from benchmarks.rows import BREAKOUT, CARTPOLE, Row

RECIPES = ("lpo_minatar", "lpo_brax", "ta_lpo", "lpg", "groove", "ta_lpg", "lpg_es")  # at paper scale
TPU = {  # what libtpu needs to know of a machine without a TPU
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

# Updates that are timed, by the number of agents: enough for a second or more on a card.
UPDATES = {1: 40, 2: 2, 64: 40, 1024: 20, 4096: 8}  # two agents: in a dry run


class Stage(NamedTuple):
    """One process: the arguments of `benchmarks.accelerator_stages` or `benchmarks.sides`, and its limit in seconds."""

    name: str
    module: str
    arguments: tuple[str, ...]
    limit: int
    peer: bool = False  # runs with the packages of the peer
    gb: float = 4  # of the device's memory, at most


def stages(tiny: bool, leg: Path | None = None) -> list[Stage]:
    """All stages, the most wanted first. `leg`: a run that the last one goes on with."""
    small = ("--tiny",) if tiny else ()
    ours = "benchmarks.accelerator_stages"
    sizes = (2,) if tiny else (1, 64, 1024)
    rows = [life(row, n) for row in ((CARTPOLE,) if tiny else (CARTPOLE, BREAKOUT)) for n in sizes]
    largest = [] if tiny else [life(CARTPOLE, 4096), life(BREAKOUT, 4096)]
    return [
        Stage("device", ours, ("device", *small), 45, gb=1000),
        *(throughput(side, row) for row in rows for side in ("ours", "rejax")),
        Stage("lpo_minatar", ours, ("search", "lpo_minatar", *small), 90, gb=8),
        Stage("lpo_brax", ours, ("search", "lpo_brax", *small), 150, gb=30),
        Stage("ta_lpg", ours, ("search", "ta_lpg", *small), 90, gb=8),
        Stage("groove", ours, ("search", "groove", *small), 90, gb=30),
        Stage("updates", ours, ("updates", *small), 90, gb=16),
        Stage("probes", ours, ("probes", *small), 90, gb=8),
        Stage("lpg", ours, ("search", "lpg", *small), 90, gb=110),
        Stage("profile", ours, ("profile", *small), 90, gb=60),
        *(throughput("bfloat16", row) for row in rows[-1:]),
        *(throughput("bare", row) for row in rows if row.num_seeds == max(sizes)),
        *(throughput(side, row) for row in largest for side in ("ours", "rejax")),
        *([] if leg is None else [Stage("leg", ours, ("leg", str(leg.resolve())), 600, gb=1000)]),
    ]


def life(row: Row, agents: int) -> Row:
    """The row with so many agents, for so many updates as are timed."""
    return replace(row, num_seeds=agents, total_steps=UPDATES[agents] * row.steps_per_update)


def throughput(side: str, row: Row) -> Stage:
    """One side of a row. Measured on an H200: an agent on Breakout takes our side 22 MB and rejax 31, and an allocation may take
    twice as much from the other processes."""
    name = f"{row.env} x {row.num_seeds}, {side}"
    spec = json.dumps(asdict(row) | {"seed": 0})
    each = 0.001 if row.env == CARTPOLE.env else 0.031 if side == "rejax" else 0.022
    gb = 1 + 2 * row.num_seeds * each
    return Stage(name, "benchmarks.sides", (side, spec), 120, peer=side == "rejax", gb=gb)


def batches(chosen: list[Stage], workers: int, gb: float) -> Iterator[list[Stage]]:
    """Stages that run side by side: in order, as many as there are workers, together at most `gb` of memory or one alone."""
    batch: list[Stage] = []
    for stage in chosen:
        if batch and (len(batch) == workers or sum(s.gb for s in batch) + stage.gb > gb):
            yield batch
            batch = []
        batch.append(stage)
    if batch:
        yield batch


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0; 1 where a stage failed, ran out of time or was skipped, or a recipe did not compile."""
    args = parser().parse_args(argv)
    if not (args.measure or args.compile):
        parser().error(
            "give --measure, to measure this machine's accelerator, or --compile and topologies, to compile for TPUs"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    failed = compile_all(args) if args.compile else 0
    return max(failed, measure_all(args) if args.measure else 0)


def measure_all(args: argparse.Namespace) -> int:
    """Run the stages, and write accelerators.json after each."""
    began = time.monotonic()
    report: dict[str, Any] = {"commit": args.commit or commit(), "machine": machine(), "tiny": args.tiny, "stages": []}
    chosen = [s for s in stages(args.tiny, args.leg) if not args.only or any(word in s.name for word in args.only)]
    for batch in batches(chosen, args.workers, args.gb):
        left, slowest = args.seconds - (time.monotonic() - began), max(stage.limit for stage in batch)

        def measured(stage: Stage, left=left, slowest=slowest, lock=None) -> dict[str, Any]:
            if left <= 10:
                return {"error": "skipped: no time was left"}
            limit = left if args.tiny else min(stage.limit, left)  # at a small size nothing is measured
            patience = left if args.tiny else min(slowest + 60, left)
            return run(stage, limit, args.peer_path, args.out, args.tiny, lock, patience)

        with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(len(batch)) as pool:
            futures = {pool.submit(measured, stage, lock=f"{directory}/lock"): stage for stage in batch}
            for future in as_completed(futures):
                name, found = futures[future].name, future.result()
                report["stages"].append({"stage": name, "side_by_side": len(batch), **found})
                (args.out / "accelerators.json").write_text(json.dumps(report, indent=1) + "\n")
                print(f"{time.monotonic() - began:6.0f} s  {name}: {describe(found)}", flush=True)
    return int(any("error" in stage for stage in report["stages"]))


def compile_all(args: argparse.Namespace) -> int:
    """Compile every recipe for every topology, and a growing search; write accelerators-compiled.json after each."""
    report: dict[str, Any] = {
        "commit": args.commit or commit(),
        "machine": machine(),
        "recipes": [],
        "weak_scaling": [],
    }
    work = [("recipes", (recipe, topology)) for topology in args.compile for recipe in args.recipes]
    work += [("weak_scaling", cell) for cell in growing(args.compile)]
    failed = 0
    for part, cell in work:
        row, sentence = compiled(cell)
        if row is None:
            failed, row = 1, {"recipe": cell[0], "topology": cell[1], "error": sentence}
        report[part].append(row)
        report.setdefault("versions", row.pop("versions", None)) if "versions" in row else None
        (args.out / "accelerators-compiled.json").write_text(json.dumps(report, indent=1) + "\n")
        print(told(row), flush=True)
    return failed


def compiled(cell: tuple[str, ...]) -> tuple[dict[str, Any] | None, str]:
    """The row that `benchmarks.accelerator_compile` printed, or None and its last line of complaint."""
    command = [sys.executable, "-m", "benchmarks.accelerator_compile", *cell]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | TPU, capture_output=True, text=True, check=False)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return (
        (rows[-1], "")
        if rows and not done.returncode
        else (None, (done.stderr.strip().splitlines() or ["no output"])[-1])
    )


def growing(topologies: list[str]) -> list[tuple[str, ...]]:
    """`lpo_minatar` with four pairs a device and lives of 262,144 steps, on 1, 4 and 16 chips of v5e, if they are asked for."""
    sizes = ("--pairs-per-device", "4", "--chunk", "4", "--total-steps", "262144")
    chips = [("v5e:2x2", "1"), ("v5e:2x2", "4"), ("v5e:4x4", "16")]
    return [("lpo_minatar", topology, *sizes, "--devices", n) for topology, n in chips if topology in topologies]


def told(row: dict[str, Any]) -> str:
    """A line of the table of what was compiled."""
    name = f"{row['recipe']:12} {row['topology']:8}"
    if "error" in row:
        return f"{name} {row['error']}"
    parts = [
        f"{name} {row['devices']:3} chips",
        f"chunk {row['chunk']}",
        f"{row['memory'] / 1e9:.2f} GB a chip",
        f"{row['flops_a_turn'] / 1e9:.3g} GFLOP and {row['bytes_a_turn'] / 1e9:.3g} GB a turn of every loop"
        if row["bytes_a_turn"]
        else "operations not told",
        ", ".join(f"{kind} {x['count']:.0f} x" for kind, x in row["collectives"].items()) or "no collective",
        f"{row['results']:,} bytes of results",
        f"compiled in {row['compile_s']:.0f} s",
    ]
    if "estimated_s" in row:
        parts.append(f"a step {row['estimated_s']:.3g} s by estimated cycles, {row['peak_s']:.2g} s at the peak rate")
    return "  ".join(parts)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.accelerators",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--measure", action="store_true", help="measure this machine's accelerator, in stages")
    p.add_argument(
        "--compile",
        nargs="+",
        metavar="TOPOLOGY",
        help="compile for devices that need not be there: v5e:2x2 v5e:4x4 h100",
    )
    p.add_argument(
        "--recipes", nargs="+", default=list(RECIPES), metavar="RECIPE", help="with --compile (all at paper scale)"
    )
    p.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="a directory (benchmarks/results)")
    p.add_argument("--seconds", type=float, default=540, help="for all stages together (540)")
    p.add_argument("--only", nargs="+", metavar="WORD", help="the stages whose names contain one of these")
    p.add_argument(
        "--leg", type=Path, metavar="RUN", help="a run to go on with in the time that is left; it comes back in --out"
    )
    p.add_argument(
        "--workers", type=int, default=max(2, min(8, (os.cpu_count() or 2) // 2)), help="stages side by side"
    )
    p.add_argument("--gb", type=float, default=120, help="of the device's memory, for all stages side by side (120)")
    p.add_argument("--tiny", action="store_true", help="small sizes, to see that every stage works; never to be quoted")
    p.add_argument("--peer-path", help="PYTHONPATH that has rejax and its gymnax; without it rejax is skipped")
    p.add_argument("--commit", help="of this code, where it is not a checkout")
    return p


def run(
    stage: Stage,
    limit: float,
    peer_path: str | None,
    out: Path,
    tiny: bool = False,
    lock: str | None = None,
    patience: float | None = None,
) -> dict[str, Any]:
    """The rows that the stage printed and its seconds, and `error` where it did not end well.

    A stage that has compiled by its limit may wait `patience` seconds in all for its turn to measure.
    """
    if stage.peer and not peer_path:
        return {"error": "skipped: --peer-path was not given"}
    path = [str(ROOT), peer_path if stage.peer else os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in path if p)}
    environment |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_PYTHON_CLIENT_MEM_FRACTION": ".93"}
    if lock:
        environment[turns.VARIABLE] = lock
    if tiny:  # quickly compiled, for nothing is timed
        environment["XLA_FLAGS"] = environment.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
    command = [sys.executable, "-m", stage.module, *stage.arguments]
    if stage.name == "leg":
        command += ["--out", str(out.resolve()), "--seconds", str(limit - 30)]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        child = subprocess.Popen(
            command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        watch = threading.Timer(limit, lambda: stop(child, lock))
        watch.start()
        try:
            out, err = child.communicate(timeout=max(limit, patience or 0))
        except subprocess.TimeoutExpired:
            child.kill()
            out, err = child.communicate()
        watch.cancel()
        if child.returncode < 0:
            err += f"\nno end after {time.monotonic() - began:.0f} s"
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    found: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1), "rows": rows}
    if child.returncode:
        found["error"] = " | ".join(err.strip().splitlines()[-3:])[-600:]
    return found


def stop(child: subprocess.Popen, lock: str | None) -> None:
    """End a stage at its limit, unless it has compiled and waits for its turn to measure."""
    if lock is None or not turns.ready(lock, child.pid).exists():
        child.kill()


def describe(found: dict[str, Any]) -> str:
    rows = [json.dumps(row) for row in found.get("rows", [])]
    return "; ".join(rows + ([f"FAILED, {found['error']}"] if "error" in found else []))


if __name__ == "__main__":
    sys.exit(main())
