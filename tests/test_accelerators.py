"""Programs are counted as by hand, what cannot be compiled is refused in a sentence, and every stage works at a small size."""

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import jax
import jax.numpy as jnp
import pytest

from benchmarks import accelerator_compile, accelerators
from benchmarks.program import Program, jaxpr_flops

HLO = """\
HloModule jit_run, is_scheduled=true

%cond.1 (p.1: (s32[], f32[10])) -> pred[] {
  %p.1 = (s32[], f32[10]) parameter(0)
  %five.1 = s32[]{:T(128)} constant(5), metadata={op_name="x"}
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%i.1, %five.1), direction=LT
}

%cond.2 (p.2: (s32[], s32[])) -> pred[] {
  %p.2 = (s32[], s32[]) parameter(0)
  %i.2 = s32[] get-tuple-element(%p.2), index=0
  %n.2 = s32[] get-tuple-element(%p.2), index=1
  ROOT %lt.2 = pred[]{:T(512)} compare(%i.2, %n.2), direction=LT
}

%body.1 (p.3: (s32[], f32[10])) -> (s32[], f32[10]) {
  %p.3 = (s32[], f32[10]) parameter(0)
  %f.3 = f32[10]{0:T(128)} fusion(%p.3), kind=kLoop, calls=%fused, backend_config={"window_config":{"estimated_cycles":"7"}}
  %r.3 = f32[10]{0:T(128)} all-reduce(%f.3), channel_id=1, to_apply=%sum
  ROOT %t.3 = (s32[], f32[10]) tuple(%i, %r.3)
}

%body.2 (p.4: (s32[], s32[])) -> (s32[], s32[]) {
  %w.4 = (s32[], f32[10]) while(%x), condition=%cond.1, body=%body.1
  ROOT %c.4 = (s32[], s32[]) copy(%p.4), backend_config={"window_config":{"estimated_cycles":"100"}}
}

ENTRY %main.9 (a: f32[10]) -> f32[10] {
  %w.9 = (s32[], s32[]) while(%y), condition=%cond.2, body=%body.2
  ROOT %c.9 = f32[10]{0} copy(%a), backend_config={"window_config":{"estimated_cycles":"1000"}}
}
"""


def test_cycles_and_collectives_count_the_turns_of_loops():
    """A loop of unknown length turns three times, each with a loop of five."""
    program = Program(HLO)
    assert (program.turns_of("cond.1"), program.turns_of("cond.2")) == (5, None)
    assert program.cycles(turns=3) == 1000 + 3 * (100 + 5 * 7)
    assert program.collectives(turns=3) == {"all-reduce": {"count": 15, "bytes": 15 * 40}}


def test_products_are_counted_with_their_loops():
    def fn(x, kernel, n):
        y = jax.lax.scan(lambda c, _: (c @ c, None), x, length=5)[0]  # five products of 4 x 4: 2 x 64 each
        y = jax.lax.fori_loop(0, n, lambda _, c: c @ c, y)  # as many as `turns` says
        image = jax.lax.conv_general_dilated(kernel[None], jnp.ones((1, 1, 2, 3)), (1, 1), "VALID",
                                             dimension_numbers=("NHWC", "HWIO", "NHWC"))  # fmt: skip
        return y, image  # [1, 8, 8, 3] of a kernel 1 x 1 of two channels

    jaxpr = jax.make_jaxpr(fn)(jnp.ones((4, 4)), jnp.ones((8, 8, 2)), jnp.int32(9))
    assert jaxpr_flops(jaxpr.jaxpr, turns=10) == 5 * 128 + 10 * 128 + 2 * (64 * 3) * 2


def test_products_of_vmapped_lives_are_those_of_one_device():
    mesh = jax.sharding.Mesh(jax.devices(), ("lives",))
    spec = jax.sharding.PartitionSpec("lives")
    fn = jax.shard_map(lambda x: x @ x.swapaxes(-1, -2), mesh=mesh, in_specs=spec, out_specs=spec)
    jaxpr = jax.make_jaxpr(fn)(jnp.ones((8, 3, 5)))  # two of eight on each of four devices: 3 x 3 x 5 products each
    assert jaxpr_flops(jaxpr.jaxpr) == 2 * 2 * 45


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        (None, "needs the package libtpu, which is not installed. Install the extra, `pip install 'discover-rl"),
        ("0.0.1", r"compiles for a TPU with libtpu==.*, and 0.0.1 is installed"),
    ],
)
def test_without_the_right_libtpu_nothing_is_compiled(monkeypatch, version, sentence):
    def found(package):
        if version is None:
            raise PackageNotFoundError(package)
        return version

    monkeypatch.setattr(accelerator_compile.importlib.metadata, "version", found)
    with pytest.raises(ValueError, match=sentence):
        accelerator_compile.devices_of("v5e:2x2")


def test_neither_measured_nor_compiled_is_refused(capsys):
    with pytest.raises(SystemExit) as refusal:
        accelerators.main([])
    assert refusal.value.code == 2
    assert (
        "give --measure, to measure this machine's accelerator, or --compile and topologies" in capsys.readouterr().err
    )


@pytest.mark.slow
def test_every_stage_works_at_a_small_size(tmp_path):
    """In processes of their own, on the CPU, without the peer: what a machine with an accelerator would do in nine minutes."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.accelerators",
        "--measure",
        "--tiny",
        "--seconds",
        "1800",
        "--out",
        str(tmp_path),
    ]
    subprocess.run(command, check=False, capture_output=True, cwd=accelerators.ROOT)
    stages = json.loads((tmp_path / "accelerators.json").read_text())["stages"]
    failed = {stage["stage"]: stage["error"] for stage in stages if "skipped" not in stage.get("error", "skipped")}
    assert failed == {}
    measured = [row for stage in stages for row in stage.get("rows", ()) if "recipe" in row]
    assert {row["recipe"] for row in measured} == {"lpo_minatar", "ta_lpg", "lpg", "groove", "lpo_brax"}
