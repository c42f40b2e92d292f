"""A run survives interruptions, and gives the same file on any number of devices."""

import contextlib
import dataclasses
import functools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import crash
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import discover
import learned_objectives as lo
from discover import cli, recipes
from discover.devices import parallel
from discover.plots import draw_run
from discover.runs import loop as run
from discover.runs import metrics
from discover.runs import record as record_module
from discover.runs.loop import _resuming, gains, last_state, outcome
from discover.runs.record import depends_on
from discover.runs.store import RunError, Store, _check_recipe, open_run
from discover.searches import problem
from discover.searches.registry import search_for

MOMENTS = random.Random(0)
KILLS = (
    crash.Moment(-1, False, MOMENTS.uniform(1.0, 4.0)),
    crash.Moment(1, False, MOMENTS.uniform(0.0, 0.15)),
    crash.Moment(3, True, MOMENTS.uniform(0.0, 0.03)),
    crash.Moment(5, True, MOMENTS.uniform(0.0, 0.06)),
    crash.Moment(16, True, MOMENTS.uniform(0.0, 0.03)),  # the last generation
)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(NamedTuple):
    status: int
    said: str | None
    generations: list[int]  # of the checkpoints
    refusal: str  # the error of a second process before that


def stop(out, number, generation):
    """By a signal; SIGHUP comes from a terminal that is closed."""
    process, terminal = crash.start_in_terminal(out) if number == signal.SIGHUP else (crash.start(out, devices=1), None)
    with process:
        assert crash.Moment(generation, False, 0.0).wait(process, out)
        with pytest.raises(RunError) as refusal, open_run(out, crash.recipe()):
            pass
        if terminal is None:
            process.send_signal(number)
        else:
            os.close(terminal)
        said, _ = process.communicate()
    generations = sorted(int(p.name) for p in (out / "checkpoints").iterdir())
    return Stopped(process.returncode, said, generations, str(refusal.value))


def kill_often(out):
    died = [crash.kill(out, moment, devices=2) for moment in KILLS[:: 1 if crash.LONG else 2]]
    crash.finish(out, devices=2)
    return died


def kill_rolling(out):
    """A search by meta-gradient, killed twice."""
    moments = (crash.Moment(2, False, 0.05), crash.Moment(7, True, 0.01))
    died = [crash.kill(out, moment, devices=2, of="groove_small") for moment in moments]
    crash.finish(out, devices=2, of="groove_small")
    return died


def stop_twice(out):
    stopped = [stop(out, number, 4 * i + 1) for i, number in enumerate(SIGNALS)]
    crash.finish(out, devices=1)
    return dict(zip(SIGNALS, stopped, strict=True))


@pytest.fixture(scope="module")
def children(tmp_path_factory):
    """Runs in processes of their own, begun when a test first asks: name -> (directory, what became of it), once it ended.

    On four devices, on two and on one: what they come to must not depend on it.
    """
    root = tmp_path_factory.mktemp("children")
    crash.recipe()
    jobs = {
        "calm": crash.finish,
        "killed": kill_often,
        "stopped": stop_twice,
        "rolling, killed": kill_rolling,
    }
    return functools.cache(lambda name: (root / name, jobs[name](root / name)))


@pytest.fixture(scope="module")
def calm(children):
    return children("calm")[0]


def test_the_run_of_these_tests_searches(calm):
    norms = [row["mean_norm"] for row in crash.logged(calm)]
    assert len(set(norms)) > 8


def test_every_generation_is_logged_once(calm):
    assert [row["generation"] for row in crash.logged(calm)] == list(range(17))


def test_sigkill_came_every_time(children):
    assert all(children("killed")[1])


def test_killed_and_resumed_on_two_devices_it_exports_the_same_bytes(children, calm):
    assert crash.exported(children("killed")[0]) == crash.exported(calm)  # which had four


def test_killed_and_resumed_it_logs_the_same_rows(children, calm):
    assert crash.logged(children("killed")[0]) == crash.logged(calm)


def test_killed_and_resumed_it_leaves_no_halves(children):
    out = children("killed")[0]
    assert not crash.is_writing(out)
    assert not list(out.glob("*.partial*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_it_with_its_exit_status(children, number):
    assert children("stopped")[1][number].status == 128 + number


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_it_after_a_checkpoint(children, number):
    stopped = children("stopped")[1][number]
    asked = 4 * SIGNALS.index(number) + 1  # the generation in which the signal came, or just after which
    assert stopped.generations[-1] in (asked, asked + 1)
    assert stopped.generations == list(range(max(0, stopped.generations[-1] - 2), stopped.generations[-1] + 1))
    last = f"Stopped after generation {stopped.generations[-1]}, which is saved. The same command continues from it."
    assert stopped.said is None or stopped.said.splitlines()[-1] == last  # of a terminal that is gone, nothing


@pytest.mark.slow
def test_stopped_and_resumed_on_one_device_it_exports_the_same_bytes(children, calm):
    assert crash.exported(children("stopped")[0]) == crash.exported(calm)


@pytest.mark.slow
def test_stopped_and_resumed_it_logs_the_same_rows(children, calm):
    assert crash.logged(children("stopped")[0]) == crash.logged(calm)


@pytest.fixture(scope="module")
def rolling():
    return crash.first(of="groove_small")  # on four devices


@pytest.mark.slow
def test_lives_roll_on_and_levels_are_replayed(rolling):
    rows = rolling.result.rows
    assert sum(row["meta"]["ended"] for row in rows[1:]) > 8  # more than one life in each of eight places
    assert len({row["mean_norm"] for row in rows}) == 17


@pytest.mark.slow
def test_rolling_lives_killed_and_resumed_on_two_devices_export_the_same_bytes(children, rolling):
    out, died = children("rolling, killed")
    assert died == [True] * 2
    assert crash.exported(out) == crash.exported(rolling.result.out)
    assert crash.logged(out) == crash.logged(rolling.result.out)


@pytest.mark.slow
def test_a_look_at_a_run_sees_its_curriculum(rolling):
    search, state = last_state(rolling.result.out)
    assert int(state.generation) == 16
    assert search.recipe.curriculum.kind == "plr"
    assert (np.asarray(state.search.buffers[0].number) > 0).any()
    drawn = {path.name for path in draw_run(rolling.result.out, rolling.result.out / "figures")}
    assert drawn == {"search.png", "credit.png", "targets.png", "favourites.png"}


def test_there_is_nothing_to_see_where_nothing_ran(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        last_state(tmp_path)


@pytest.mark.slow
def test_a_search_by_gradient_compiles_nothing_once_lives_have_ended(rolling):
    assert len({rolling.compilations[generation] for generation in range(8, 17)}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_another_process_is_refused_while_it_goes_on(children, number):
    assert "Another process is running in" in children("stopped")[1][number].refusal


@pytest.fixture(scope="module")
def first():
    return crash.first()


def test_the_first_generation_compiles(first):
    assert first.compilations[0] < first.compilations[1]


def test_the_second_generation_and_all_others_compile_nothing(first):
    late = [count for generation, count in first.compilations.items() if generation >= 1]
    assert len(late) == 16
    assert len(set(late)) == 1


def test_a_resumed_run_compiles_no_life_again(first, tmp_path):
    crash.search(tmp_path / "run", generations=4)
    with crash.Compilations() as compilations:
        crash.search(tmp_path / "run", generations=8)
    assert compilations.count == 0


def test_in_python_it_exports_the_same_bytes(first, calm):
    assert crash.exported(first.result.out) == crash.exported(calm)


def test_generations_may_grow(first, tmp_path):
    crash.search(tmp_path / "run", generations=4)
    crash.search(tmp_path / "run")
    assert crash.exported(tmp_path / "run") == crash.exported(first.result.out)


@pytest.mark.slow
def test_what_a_search_started_from_stays_with_it(tmp_path):
    found, run = tmp_path / "found.safetensors", tmp_path / "run"
    drift = lo.LPO.create(jax.random.key(0), width=32, epsilon=0.3)
    lo.save(drift, found)
    crash.search(run, generations=1, **{"objective.start": found})
    lo.save(drift.replace(epsilon=0.1), found)
    result = crash.search(run, generations=2, **{"objective.start": found})
    assert result.objective.drift.epsilon == 0.3
    found.unlink()
    assert last_state(run)[0].template.drift.epsilon == 0.3
    first, second = (lo.record(run / "objective.safetensors")["start"] for _ in range(2))
    assert first == second


def listing(directory):
    return sorted((str(path), path.stat().st_mtime_ns) for path in directory.rglob("*"))


def test_a_look_leaves_no_trace(first, tmp_path):
    shutil.copytree(first.result.out, tmp_path / "run")
    steps = sorted((tmp_path / "run/checkpoints").iterdir(), key=lambda path: int(path.name))
    damage(steps[-1], "cut")
    (tmp_path / "run/checkpoints/99.orbax-checkpoint-tmp").mkdir()  # as its writer has it half written
    before = listing(tmp_path / "run")
    assert int(last_state(tmp_path / "run")[1].generation) == int(steps[-2].name)
    assert listing(tmp_path / "run") == before


def test_there_is_nothing_to_see_before_the_first_checkpoint(first, tmp_path):
    shutil.copytree(first.result.out, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    with pytest.raises(ValueError, match="holds no checkpoint that can be read"):
        last_state(tmp_path / "run")
    assert not (tmp_path / "run/checkpoints").exists()


def damage(checkpoint, how):
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    for path in files:
        if how == "gone":
            path.unlink()
        else:
            os.truncate(path, path.stat().st_size // 2 if how == "cut" else 0)
    assert files


@pytest.mark.parametrize("how", ["cut", "emptied", "gone"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(first, tmp_path, capsys, how):
    crash.search(tmp_path / "run", generations=4)
    damage(tmp_path / "run" / "checkpoints" / "4", how)
    crash.search(tmp_path / "run")
    notice = capsys.readouterr().err
    assert notice.startswith("The checkpoint of generation 4 is damaged (")
    assert notice.endswith("; trying the one before.\n")
    assert crash.exported(tmp_path / "run") == crash.exported(first.result.out)
    assert crash.logged(tmp_path / "run") == crash.logged(first.result.out)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The directory of a run of two checkpoints, of a state whose arrays are large and small, and that state."""
    out, chance = tmp_path_factory.mktemp("saved"), np.random.default_rng(0)
    state = {
        "large": chance.normal(size=5000).astype(np.float32),
        "small": chance.normal(size=(3, 2)).astype(np.float32),
        "none": np.zeros(0, np.float32),
        "count": np.int32(7),
        "key": np.uint32([1, 2]),
    }
    with open_run(out, crash.recipe()) as store:
        store.save(1, state)
        store.save(2, state)
    return out, state


def gone(path, chance):
    path.unlink()


def cut(path, chance):
    os.truncate(path, chance.randrange(path.stat().st_size))


def flipped(path, chance):
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "times"), [(gone, 1), (cut, 3), (flipped, 12)])
def test_one_damaged_file_of_a_checkpoint_is_noticed_or_harmless(saved, tmp_path, capsys, how, times):
    whole, state = saved
    files = [path.relative_to(whole) for path in (whole / "checkpoints" / "2").rglob("*") if path.is_file()]
    assert len(files) > 5
    fell_back = set()
    for i, path in enumerate(sorted(files) * (times * (4 if crash.LONG else 1))):
        run = tmp_path / str(i)
        shutil.copytree(whole, run)
        how(run / path, random.Random(i))
        step, found = Store(run).restore(state)
        jax.tree.map(np.testing.assert_array_equal, found, state)
        jax.tree.map(lambda x, y: np.testing.assert_equal((x.dtype, x.shape), (y.dtype, y.shape)), found, state)
        said = capsys.readouterr().err
        assert said == "" if step == 2 else said.startswith("The checkpoint of generation 2 is damaged ("), path
        fell_back |= {path} if step == 1 else set()
        shutil.rmtree(run)
    assert len(fell_back) > 2


def test_without_a_readable_checkpoint_it_says_so_and_keeps_what_there_is(first, tmp_path):
    crash.search(tmp_path / "run", generations=4)
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        damage(checkpoint, "cut")
    objective = crash.exported(tmp_path / "run")
    for _ in range(2):
        with pytest.raises(RunError, match=r"^No checkpoint in .* can be read: choose another --out and start again.$"):
            crash.search(tmp_path / "run")
    assert crash.exported(tmp_path / "run") == objective


def mount(*words):
    if os.geteuid() or subprocess.run(["mount", *words]).returncode:
        pytest.skip("only root can mount a disk, and not everywhere")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 kB, and how to make it larger."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", "size=200k", "tmpfs", disk)
    yield disk, lambda: subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
    subprocess.run(["umount", disk], check=True)


@contextlib.contextmanager
def read_only(path):
    """What a disk does when it fails: nothing there can be written any more."""
    mount("--bind", path, path)
    try:
        mount("-o", "remount,bind,ro", path)
        yield
    finally:
        subprocess.run(["umount", path], check=True)


CANNOT = r"Cannot write {} of .*\. When this is solved, the same command continues from the last checkpoint\."


@pytest.mark.parametrize(
    ("step", "sentence", "last"),
    [
        ("log", CANNOT.format("the log"), 4),
        ("save", "Cannot write the checkpoint of generation 5 .*, the same command continues from the one before", 4),
        ("export", CANNOT.format("the objective"), 8),
    ],
)
def test_on_a_disk_that_turns_read_only_it_says_so_and_goes_on_when_it_can(first, tmp_path, step, sentence, last):
    out, write, disk = tmp_path / "run", getattr(Store, step), contextlib.ExitStack()
    crash.search(out, generations=4)

    def fail(*args):
        """Then and not before, for a run that resumes writes its recipe and log."""
        with mock.patch.object(Store, step, write):
            disk.enter_context(read_only(out))
            return write(*args)

    with disk, mock.patch.object(Store, step, fail), pytest.raises(RunError, match=sentence):
        crash.search(out)
    assert last_state(out)[1].generation == last
    assert isinstance(lo.load(out / "objective.safetensors"), lo.Mirror)
    crash.search(out)
    assert crash.exported(out) == crash.exported(first.result.out)
    assert crash.logged(out) == crash.logged(first.result.out)


def test_a_disk_that_is_read_only_from_the_start_is_refused(first, tmp_path):
    shutil.copytree(first.result.out, tmp_path / "run")
    with read_only(tmp_path / "run"), pytest.raises(RunError, match=r"Cannot write to .* \(Read-only file system\)"):
        crash.search(tmp_path / "run")


def leave_room(disk, kilobytes):
    """Threads of a search that failed may still write: the disk cannot become smaller than what is on it."""
    for _ in range(100):
        space = os.statvfs(disk)
        used = (space.f_blocks - space.f_bfree) * space.f_frsize // 1024
        if not subprocess.run(["mount", "-o", f"remount,size={used + kilobytes}k", disk], check=False).returncode:
            return
        time.sleep(0.1)
    raise AssertionError(f"{disk} does not come to rest")


def test_wherever_the_disk_is_full_nothing_is_harmed(first, small_disk, capsys):
    """A little more room at each start, until it is enough: now the recipe, now the log, a checkpoint, or an export fails."""
    disk, enlarge = small_disk
    enlarge()
    out, said = disk / "run", set()
    crash.search(out, generations=4)
    for kilobytes in range(0, 64, 4):
        leave_room(disk, kilobytes)
        try:
            crash.search(out)
            break
        except (RunError, OSError) as error:
            said.add(cli._sentence(error).split(" (")[0])
        enlarge()
        assert isinstance(lo.load(out / "objective.safetensors"), lo.Mirror)
    enlarge()
    crash.search(out)
    assert "damaged" not in capsys.readouterr().err
    assert crash.exported(out) == crash.exported(first.result.out)
    assert crash.logged(out) == crash.logged(first.result.out)
    assert len(said) > 1, said


@pytest.mark.slow
def test_on_a_full_disk_it_says_so_and_goes_on_when_there_is_space(first, small_disk):
    disk, enlarge = small_disk
    with crash.start(disk / "run") as process:
        _, sentence = process.communicate()
    assert process.returncode == 2
    assert sentence.startswith("discover: Cannot write the checkpoint of generation ")
    assert sentence.endswith(
        "(No space left on device). When this is solved, the same command continues from the one before.\n"
    )
    enlarge()
    crash.search(disk / "run")
    assert crash.exported(disk / "run") == crash.exported(first.result.out)


def snapshot(directory):
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in directory.rglob("*")}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 6}, "its seed is 5, and this one's is 6"),
        ({"objective.width": 8, "seed": 6}, "its objective.width is 4, and this one's is 8"),
        ({"agent.num_steps": 64}, "its agent.num_steps is 32, and this one's is 64"),
        ({"search.sigma": 0.2}, "its search.sigma is 1.0, and this one's is 0.2"),
    ],
)
def test_the_run_of_another_recipe_is_refused_and_untouched(first, changes, named):
    before = snapshot(first.result.out)
    with pytest.raises(RunError, match="belongs to another recipe") as refusal:
        crash.search(first.result.out, **changes)
    assert named in str(refusal.value)
    assert snapshot(first.result.out) == before


def test_a_recipe_from_before_a_setting_existed_has_its_default(tmp_path):
    recipe, path = recipes.get("quickstart"), tmp_path / "recipe.json"
    old = recipe.as_dict()
    assert old["agent"].pop("clip") == "joint"
    del old["curriculum"]
    path.write_text(json.dumps(old))
    apart = dataclasses.replace(recipe, agent=dataclasses.replace(recipe.agent, clip="separate"))
    with pytest.raises(RunError, match=r"its agent.clip is 'joint', and this one's is 'separate'"):
        _check_recipe(path, apart)
    _check_recipe(path, recipe)
    assert json.loads(path.read_text()) == json.loads(json.dumps(recipe.as_dict()))


def test_a_directory_that_holds_something_else_is_refused_and_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("Chapter 1")
    before = snapshot(tmp_path)
    with pytest.raises(RunError, match=r"is not empty and holds no run \(thesis.tex is in it\): choose another --out."):
        crash.search(tmp_path)
    assert snapshot(tmp_path) == before


def test_a_file_is_refused_and_untouched(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(RunError, match="notes is a file; --out must name a directory"):
        crash.search(tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "mine"


def test_the_lock_of_a_run_that_ended_holds_nobody_off(first):
    with open_run(first.result.out, crash.recipe()) as store:
        assert store.path == first.result.out


def half_diverge(setting, objective, task, key):
    """In place of a life: one of each pair diverges, for their perturbations are opposite."""
    total = objective.drift.out.sum()
    return jnp.where(total > 0, jnp.nan, total)


@pytest.fixture
def half_diverged(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(problem, "life_fitness", half_diverge)
    result = run.meta_train(crash.recipe(generations=1), tmp_path / "run")
    return result, capsys.readouterr().out


def test_a_candidate_that_diverges_leaves_the_mean_finite(half_diverged):
    result, _ = half_diverged
    template = crash.recipe().template()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.objective))
    assert np.isfinite(result.rows[-1]["mean_norm"])
    assert result.rows[-1]["mean_norm"] != result.rows[0]["mean_norm"]
    assert jax.tree.structure(result.objective) == jax.tree.structure(template)


def test_the_share_that_diverged_is_logged_and_shown(half_diverged):
    result, said = half_diverged
    assert result.rows[-1]["diverged"] == 0.5
    assert "diverged 50%" in said
    assert np.isfinite(list(result.rows[-1]["fitness"][crash.TINY["envs"]].values())).all()


def test_a_generation_that_diverges_as_a_whole_leaves_the_search_where_it_was(first):
    training = crash.sharing_programs(problem.Problem(crash.recipe()))
    training.problem.lives = [lambda *_: jnp.full((2, 2), jnp.nan)]
    before = training.init()
    after, seen = training.generation(before)
    assert seen["diverged"] == 1.0
    assert after.generation == 1
    for name in ("mean", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after.search, name), getattr(before.search, name))


@pytest.fixture(scope="module")
def record(first):
    return lo.record(first.result.out / "objective.safetensors")


def test_the_record_holds_the_recipe(record):
    assert record["recipe"] == json.loads(json.dumps(crash.recipe().as_dict()))
    assert record["seed"] == 5


def test_the_record_holds_how_far_the_run_came(record):
    # 16 generations of 4 candidates; 5 evaluations (at 0, 4, 8, 12 and 16) of 4 lives; 2048 steps in each life.
    assert record["generations"] == 16
    assert record["env_steps"] == (16 * 4 + 5 * 4) * 2048


def test_the_record_holds_whose_mean_it_is(record, first):
    scores = {row["generation"]: row["best_score"] for row in first.result.rows if "evaluation" in row}
    assert record["generation"] == max(scores, key=scores.get)  # the first of those that are equal
    assert record["generation"] > 0


def test_no_environment_outweighs_another_in_the_choice_of_the_best():
    # Of two games the start had learned 10 in the one, and hardly anything in the other. Later means: a fifth more in the
    # one; half less there and six times as much in the other; all but nothing there and two hundred times as much.
    search = search_for(dataclasses.replace(crash.recipe(), envs=("probe/action", "probe/observation_action")))
    state, scores = search.init(), []
    for generation, lives in enumerate(([10, 1], [12, 1], [5, 6], [0.5, 200])):
        state = state.replace(generation=jnp.int32(generation))
        state = search._keep_best(state, state.best, jnp.float32(lives)[:, None] * jnp.ones(2))
        scores.append(float(state.best_score))
    np.testing.assert_allclose(scores, [0, (1 / 6) / 2, (-1 / 2 + 5 / 6) / 2, (-1 / 2 + 5 / 6) / 2], rtol=1e-6)


@pytest.mark.parametrize(("generation", "lives"), [(0, 4), (3, 3 * 4 + 4), (4, 4 * 4 + 8), (16, 16 * 4 + 20)])
def test_environment_steps_count_every_life(first, generation, lives):
    # 4 candidates a generation; evaluations of 4 lives at 0 and at every fourth; 2048 steps in each life.
    assert first.result.rows[generation]["env_steps"] == lives * 2048


def test_environment_steps_are_those_that_were_taken():
    # A life of 1100 steps holds 8 rollouts of 4 x 32. Two lives for each of 4 candidates, in each of two environments.
    c = crash.recipe(total_steps=1100, generations=3)
    evolution = dataclasses.replace(c.search, lives=2)
    c = dataclasses.replace(c, envs=("probe/observation_action", "probe/action"), search=evolution)
    training = search_for(c)
    training.problem.lives = [lambda *_: jnp.zeros((2, 2))] * 2
    state, _ = training.generation(training.init())
    assert training.env_steps(state) == 2 * (4 * 2) * 1024


def test_updates_are_counted_beyond_int32():
    search = search_for(crash.recipe())
    state = search.init()
    for _ in range(3):
        state = state.replace(updates=state.updates + (2**31 - 1))
    assert int(state.updates) == 3 * (2**31 - 1)
    assert search.env_steps(state) == 3 * (2**31 - 1) * search.recipe.agent.steps_per_update
    assert int(parallel.to_default_device(state).updates) == 3 * (2**31 - 1)
    assert all(x.dtype == jnp.int32 for x in jax.tree.leaves(state.updates))


def test_the_record_holds_versions_and_device(record):
    assert record["versions"]["jax"] == jax.__version__
    assert record["versions"]["numpy"] == np.__version__
    assert record["device"] == "cpu (cpu)"


def test_the_log_names_what_its_bits_depend_on(first):
    named = [row.get("depends_on") for row in first.result.rows]
    assert named[1:] == [None] * 16
    assert named[0]["versions"] == lo.record(first.result.out / "objective.safetensors")["versions"]
    assert {"jax", "jaxlib", "numpy", "python", "evosax"} <= named[0]["versions"].keys()
    assert named[0]["device"] == "cpu (cpu)"
    assert named[0]["chunk"] == 1
    assert named[0]["processor"]


def test_the_number_of_devices_is_named_where_bits_depend_on_it():
    recipe = crash.recipe()
    assert "devices" not in depends_on(recipe)
    whole = dataclasses.replace(recipe, search=dataclasses.replace(recipe.search, chunk=None))
    assert depends_on(whole)["devices"] == jax.device_count()


def test_a_run_that_goes_on_elsewhere_says_so_in_its_log(first, tmp_path, monkeypatch):
    crash.search(tmp_path / "run", generations=2)
    monkeypatch.setattr(record_module, "_processor", lambda: "another")
    rows = crash.search(tmp_path / "run", generations=4).rows
    assert [row["depends_on"]["processor"] for row in rows if "depends_on" in row][1:] == ["another"]
    assert "depends_on" in rows[3]


def test_the_record_holds_every_evaluation(record, first):
    logged = {str(r["generation"]): r["evaluation"] for r in first.result.rows if "evaluation" in r}
    assert record["evaluations"] == logged
    assert list(logged) == ["0", "4", "8", "12", "16"]


def test_the_export_is_the_best_mean(first):
    loaded = lo.load(first.result.out / "objective.safetensors")
    jax.tree.map(np.testing.assert_array_equal, loaded, first.result.objective)
    assert loaded.gamma == crash.recipe().loss.gamma


def test_the_export_works_in_a_plain_loss(first, samples):
    drift = lo.load(first.result.out / "objective.safetensors")
    slope = jax.grad(lambda log_ratio: -drift.surrogate(log_ratio, samples[1]).mean())(samples[0])
    assert np.isfinite(slope).all()
    assert slope.any()


@pytest.mark.slow
def test_new_leaves_and_a_new_seed_compile_nothing():
    train = functools.partial(
        discover.train, env="probe/action", total_steps=1024, num_seeds=2, num_evals=2, loss=discover.LossConfig()
    )
    before = train(lo.Mirror(drift=lo.DPO(alpha=2.0, beta=0.6)), seed=0)
    with crash.Compilations() as compilations:
        after = train(lo.Mirror(drift=lo.DPO(alpha=1.0, beta=0.3)), seed=1)
    assert compilations.count == 0
    assert (before.returns != after.returns).any()


@pytest.mark.parametrize("name", ["lpg", "ta_lpg_small"])
def test_an_objective_survives_a_checkpoint(name, tmp_path):
    """An LSTM's too, whose second bias has no element."""
    state = jax.tree.map(np.asarray, recipes.get(name).template())
    with open_run(tmp_path, recipes.get(name)) as store:
        store.save(3, state)
        step, back = store.restore(state)
    assert step == 3
    jax.tree.map(np.testing.assert_array_equal, back, state)


def evaluated(**generations):
    """Rows of a log, by hand: generation -> returns of its lives."""
    return [{"generation": int(g[1:]), "evaluation": {"Kite": returns}} for g, returns in generations.items()]


def test_a_search_that_found_nothing_says_so():
    (line,) = outcome(evaluated(g0=[1.0, 2.0], g4=[0.5, 1.0], g8=[1.0, 1.0]), 0)
    assert line.startswith(
        "Exported: generation 0, the start of the search. None of the 2 later evaluated means scored higher"
    )


@pytest.mark.parametrize("best", [0, 4])
@pytest.mark.parametrize("kept", [{}, {"g8": [1.0]}, {"g0": [1.0], "g8": [1.0]}])
def test_of_a_log_that_is_gone_no_gain_is_told(best, kept):
    if f"g{best}" in kept:
        return
    (line,) = outcome(evaluated(**kept), best)
    assert line == (
        f"Exported: generation {best}. What it gained over the start is not known, since metrics.jsonl, or a part of it, is gone."
    )
    assert gains({int(g[1:]): {"Kite": returns} for g, returns in kept.items()}, best) == {}


def test_a_search_says_what_it_exports_and_its_gain():
    start, best = [1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 4.0, 6.0]  # paired differences 1, 2, 1, 2
    lines = outcome(evaluated(g0=start, g4=best, g8=start), 4)
    said = re.fullmatch(
        r"Exported: generation 4\. Kite: mean return 4\.0, at the start 2\.5, difference \+1\.50 \[\+(.*), \+(.*)\], "
        r"95% interval over 4 lives\.",
        lines[0],
    )
    # Student's t with 3 degrees of freedom: 1.5 -+ 3.182 * 0.577 / 2.
    np.testing.assert_allclose([float(x) for x in said.groups()], [0.58, 2.42], atol=0.05)
    assert lines[1].startswith("The difference is optimistic, since generation 4 is the best of 3 evaluated")


def test_a_gain_within_its_interval_is_doubted():
    lines = outcome(evaluated(g0=[1.0, 4.0], g4=[2.0, 3.1]), 4)
    assert "the search may have found nothing" in lines[1]


def test_lives_that_diverged_have_no_gain():
    assert gains({0: {"Kite": [1.0, 2.0]}, 4: {"Kite": [None, 3.0]}}, 4) == {"Kite": None}
    assert gains({0: {"Kite": [1.0, 2.0]}}, 0) == {"Kite": None}


def test_more_generations_than_asked_for_are_nothing_to_do():
    assert (
        _resuming(Path("runs/x"), 10, 4)
        == "runs/x has 10 generations, more than the 4 asked for: nothing is left to do."
    )
    assert _resuming(Path("runs/x"), 2, 4) == "Resuming runs/x at generation 2 of 4."


def test_every_field_of_the_log_is_documented(first, rolling):
    """Of a search by evolution and of one by meta-gradient, where the Mirror family logs fields of its own, and searches in
    several environments one for each (tests/test_metagrad.py)."""
    of_several = {"meta.reward/{env}"}
    of_mirror = {"meta.kl", "meta.value_loss"}
    found = set()
    for rows, env in (
        (first.result.rows, crash.TINY["envs"]),
        (rolling.result.rows, rolling.result.rows[0]["evaluation"]),
    ):
        found |= {path for row in rows for path in metrics.paths(row, (env,) if isinstance(env, str) else tuple(env))}
    assert found == set(metrics.FIELDS) - of_mirror - of_several
    assert {f"meta.{name}" for name in mirror_metrics()} == of_mirror | {"meta.entropy", "meta.policy_loss"}


def mirror_metrics():
    """Those that its losses return."""
    rollout = lo.Rollout(
        *[jnp.zeros((2, 1))] * 3, *[jnp.zeros((2, 1, 1))] * 2, jnp.zeros((2, 1)), *[jnp.zeros((2, 1), bool)] * 2
    )
    progress, objective = lo.Progress(jnp.float32(1), jnp.float32(2)), lo.Mirror()
    targets = objective.targets(rollout, progress)
    return objective.loss(lo.Outputs(rollout.log_prob, rollout.reward, rollout.critic), rollout, targets, progress)[1]


@pytest.mark.slow
def test_the_last_evaluated_generation_is_exported_if_asked(tmp_path, capsys):
    recipe = dataclasses.replace(crash.recipe(), exported="last", generations=3, evaluate_every=1)
    result = discover.meta_train(recipe, tmp_path / "run")
    assert lo.record(result.out / "objective.safetensors")["generation"] == 3
    search, state = discover.last_state(result.out)
    jax.tree.map(np.testing.assert_array_equal, result.objective, search.mean(state))
    assert "optimistic" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="exported must be 'best' or 'last', and is 'first'"):
        dataclasses.replace(recipe, exported="first")


def test_the_best_score_is_that_of_its_formula(first):
    """In NumPy, from the evaluations in the log."""
    evaluations = [
        (row["best_score"], np.asarray(row["evaluation"][crash.TINY["envs"]]))
        for row in first.result.rows
        if "evaluation" in row
    ]
    start = evaluations[0][1]
    scale = max(abs(start.mean()), start.std())
    x = np.array([(lives.mean() - start.mean()) / scale for _, lives in evaluations])
    expected = np.maximum.accumulate(np.where(x < 0, x, x / (1 + np.maximum(x, 0))))
    np.testing.assert_allclose([score for score, _ in evaluations], expected, atol=1e-4)
