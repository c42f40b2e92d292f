"""The command line as a user meets it: one sentence for every mistake, and the files it promises."""

import contextlib
import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import typing
from importlib.metadata import EntryPoint, version
from pathlib import Path

import crash
import jax
import numpy as np
import pytest
import safetensors.numpy
from tyro._docstrings import get_field_docstring

import envs
import learned_objectives as lo
from discover import cli, names, progress
from discover.commands import meta_train
from discover.flags import flags
from discover.formats import clock
from discover.light import completion
from discover.runs.recipes import RECIPES
from discover.searches.recipe import Recipe
from envs import plugs
from learned_objectives import library

META = "meta-train quickstart --out out"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The working directory of these commands."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(here, capsys):
    """Of a command line that cannot be: the one sentence it is answered with; nothing else changes."""

    def run(line):
        before = snapshot(here)
        status = cli.main(line.split())
        said, sentence = capsys.readouterr()
        assert status == 2, said + sentence
        assert "Traceback" not in said
        assert_one_sentence(sentence)
        assert snapshot(here) == before
        return sentence

    return run


def test_a_mistake_is_a_mistake_in_a_closed_terminal_too(here, monkeypatch):
    terminal, inside = os.openpty()
    os.close(terminal)  # a write to it now fails with EIO
    with open(inside, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        monkeypatch.setattr(sys, "stderr", closed)
        assert cli.main(["train", "--total-steps", "3"]) == 2


def assert_one_sentence(text):
    assert text.startswith("discover: ")
    assert text.endswith("\n")
    assert len(text.splitlines()) == 1
    assert "Traceback" not in text
    assert "---" not in text


def snapshot(directory):
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in directory.rglob("*")}


@pytest.mark.parametrize(
    ("line", "near"),
    [
        ("trian --out out", "train"),
        ("metatrain quickstart --out out", "meta-train"),
        ("train --env CartPol-v1 --out out", "CartPole-v1"),
        ("train --env brax/ants --out out", "brax/ant"),
        ("train --env brax/ant@sprong --out out", "spring"),
        ("train --objective pp0 --out out", "ppo"),
        ("evaluate ppo dpoo --envs CartPole-v1 --out out", "dpo"),
        ("evaluate ppo --envs CartPole-v1 Breakout-MiniAtar --out out", "Breakout-MinAtar"),
        ("meta-train quickstrat --out out", "quickstart"),
        ("meta-train lpo-minatar --out out", "lpo_minatar"),
        (f"{META} --envs CartPol-v1", "CartPole-v1"),
        (f"{META} --search.strategy Open_EZ", "Open_ES"),
        ("recipe lpo_smal", "lpo_small"),
        ("list env", "envs"),
        ("completion bsh", "bash"),
    ],
)
def test_of_an_unknown_name_the_nearest_is_suggested(refused, line, near):
    sentence = refused(line)
    assert "Unknown" in sentence
    assert f"did you mean {near!r}?" in sentence


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "lpg_small --envs Pendulum-v1 --total-steps 2560",
            "Pendulum-v1 are continuous: choose an environment with discrete",
        ),
        ("lpg_small --envs CartPole-v1", "total_steps must be given for CartPole-v1"),
        (
            "lpg_small --envs CartPole-v1 --total-steps 2560 --agent.network table",
            "A table needs observations that number",
        ),
        ("lpg_small --envs gridworld/smal", "did you mean 'gridworld/small'?"),
        ("lpg_small --agent.num-steps 100000", "less than one rollout of 6400000"),
        ("lpg_small --search.estimator standard", "choose 'debiased'"),
        ("lpg_small --search.members 7 --search.chunk 2", "members must be a multiple of its chunk, 2, and is 7"),
        ("groove_small --curriculum.size 8", "curriculum.size must be at least search.members, 32, and is 8"),
        ("groove_small --curriculum.score regrets", "regret"),
        ("ta_lpg_small --curriculum.kind plr", "with evolution choose 'uniform' or 'fixed'"),
    ],
)
def test_searches_that_cannot_be_are_refused(refused, line, sentence):
    assert sentence in refused(f"meta-train {line} --out out")


def test_an_lpg_of_ones_own_is_refused_where_actions_are_continuous(refused):
    lo.save(lo.LPG.groove(jax.random.key(0), hidden=4), "rule.safetensors")
    assert "the actions of Pendulum-v1 are continuous" in refused(
        "train --objective rule.safetensors --env Pendulum-v1 --out out"
    )


def test_the_known_names_are_listed(refused):
    for name in cli.COMMANDS:
        assert name in refused("frobnicate")


POSITIVE = {
    "train --out out": (
        "total-steps num-seeds num-evals agent.num-envs agent.num-steps agent.num-epochs agent.num-minibatches "
        "agent.hidden agent.learning-rate agent.max-grad-norm"
    ),
    META: (
        "total-steps generations evaluate-every evaluation-seeds checkpoint-every objective.width agent.num-envs agent.hidden "
        "agent.learning-rate search.population search.lives search.chunk search.sigma search.learning-rate"
    ),
    "evaluate ppo --envs probe/action --out out": "total-steps num-seeds",
}
SIZES = [(f"{line} --{flag}", flag) for line, flags in POSITIVE.items() for flag in flags.split()]


@pytest.mark.parametrize(("line", "flag"), SIZES)
def test_what_must_be_positive_is_named_with_its_value(refused, line, flag):
    name = f"--{flag}" if "." in flag else flag.replace("-", "_")
    for value in ("0", "-1"):
        sentence = refused(f"{line} {value}")
        assert sentence.startswith(f"discover: {name} must")
        assert value in sentence.split(name)[1]


@pytest.mark.parametrize(("line", "flag"), SIZES)
def test_what_is_no_number_is_named_with_its_flag(refused, line, flag):
    sentence = refused(f"{line} many")
    assert f"--{flag}" in sentence
    assert "'many'" in sentence


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            f"{META} --search.population 7",
            "population must be even, because candidates come in pairs, and is 7: try 8",
        ),
        ("train --agent.num-minibatches 3", "num-minibatches must divide num_envs * num_steps = 512, and 3 does not"),
        (
            f"{META} --agent.num-minibatches 3",
            "--agent.num-minibatches must divide num_envs * num_steps = 512, and 3 does not",
        ),
        ("train --total-steps 100 --out out", "at least one rollout of 4 x 128 = 512 environment steps, and is 100"),
        (f"{META} --total-steps 100", "at least one rollout of 4 x 128 = 512 environment steps, and is 100"),
        ("evaluate ppo --envs CartPole-v1 --total-steps 100 --out out", "at least one rollout of 4 x 128"),
        (f"{META} --seed -1", "seed must be in [0, 2^31), and is -1"),
        (f"{META} --learning-rates 0.1 0.2", "one per environment (1), and there are 2"),
        (f"{META} --envs", "envs must name at least one environment"),
        (f"{META} --search.sigma-decay 2", "--search.sigma-decay must be in (0, 1], and is 2.0"),
        (f"{META} --search.shaping best", "Unknown shaping 'best'"),
        ("train --loss.gamma 1.5 --out out", "--loss.gamma must be in [0, 1], and is 1.5"),
        ("train --agent.activation gelu --out out", "Expected one of ('tanh', 'relu', 'swish')"),
        ("train --agent.learning-rate nan --out out", "--agent.learning-rate must be positive and finite, and is nan"),
        ("train --num-seeds 1.5 --out out", "--num-seeds"),
        (
            "train --agnet.num-envs 3 --out out",
            "Unrecognized options: --agnet.num-envs. Perhaps you meant --agent.num-envs",
        ),
        (f"{META} more", "Unrecognized options: more"),
        ("train --env brax/swimmer --out out", "'brax/swimmer' is left out: brax 0.14 gives it"),
        ("train --agent.network cnn --out out", "A CNN needs observations [height, width, channels]"),
        (f"{META} --agent.network cnn", "A CNN needs observations [height, width, channels]"),
        ("train --seed 2147483648 --out out", "seed must be in [0, 2^31), and is 2147483648"),
        (
            "meta-train lpg_small --out x --objective.hidden 0",
            "discover: --objective.hidden must be at least 1, and is 0",
        ),
        (f"{META} --search.strategy ES", "discover: Unknown strategy 'ES'"),
        (
            "train --num-seeds 1000000000 --total-steps 1024 --out out",
            "num_seeds is 1000000000, and that many agents do not",
        ),
        ("train --agent.hidden 1000000 1000000 --out out", "that many agents do not fit into memory"),
        ("evaluate ppo --envs CartPole-v1 --num-seeds 1000000000 --out out", "that many agents do not fit into memory"),
        ("train --env small --out out", "did you mean 'gridworld/small'? `discover list` shows them all"),
        ("train --env CartPol-v1 --out out", "did you mean 'CartPole-v1'? `discover list` shows them all"),
        ("card", "Unknown command 'card'; known are quickstart, list"),
        ("meta-train --agent.normalise-reward lpo_small", "meta-train needs --out DIRECTORY"),
        ("meta-train --agent.no-anneal lpo_small", "meta-train needs --out DIRECTORY"),
        ("meta-train --envs CartPole-v1 Acrobot-v1 lpo_smal --out out", "Unknown recipe 'lpo_smal'"),
        ("meta-train --out lpo_small", "lpo_small was taken as the value of --out: put the recipe first"),
        ("meta-train --out lpo_small --envs CartPole-v1 Acrobot-v1", "lpo_small was taken as the value of --out"),
        ("resume out --generations 5", "`discover meta-train RECIPE --out out --generations NUMBER` does"),
        ("resume --checkpoint-every=5 out", "`discover meta-train RECIPE --out out --checkpoint-every NUMBER` does"),
        ("train --objective=", "--objective is followed by an empty value"),
        (f"train --total-steps 1{'0' * 20} --out out", "must hold at most 4,194,304 rollouts of 512 environment steps"),
    ],
)
def test_what_cannot_be_is_said(refused, line, said):
    assert said in refused(line)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("meta-train", "meta-train needs a recipe: one of quickstart"),
        ("meta-train --out out", "meta-train needs a recipe: one of quickstart"),
        ("meta-train quickstart", "meta-train needs --out DIRECTORY"),
        ("evaluate ppo", "--envs"),
        ("evaluate", "evaluate needs objectives and --envs: for example"),
        ("evaluate --out out", "evaluate needs objectives and --envs: for example"),
        ("evaluate --envs CartPole-v1", "at least one objective, one environment and one budget"),
        ("export", "PATH the directory of a run"),
        ("plot", "PATH the directory of a run"),
        ("recipe", "recipe needs the name of a recipe: one of quickstart, lpo_minatar"),
        ("distil", "distil needs an objective first: for example, `discover distil lpo_2026_11`."),
        ("distil dpoo", "Unknown objective 'dpoo'; did you mean 'dpo'"),
        ("completion", "completion needs a shell: bash or zsh."),
    ],
)
def test_what_is_missing_is_said(refused, line, said):
    assert said in refused(line)


def truncated(path):
    lo.save(lo.Mirror(drift=lo.DPO()), path)
    os.truncate(path, path.stat().st_size - 4)


def foreign(path):
    safetensors.numpy.save_file({"weight": np.zeros(3, np.float32)}, path)


def newer(path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "SCHEMA", 99)
        lo.save(lo.Mirror(drift=lo.DPO()), path)


def text(path):
    path.write_text("alpha = 2")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (truncated, "is not a complete safetensors file"),
        (foreign, "is a safetensors file, but learned_objectives did not write it"),
        (newer, "has schema 99, and this version reads up to 2: update learned_objectives"),
        (text, "is not a complete safetensors file"),
        (Path.mkdir, "is a directory without objective.safetensors"),
        (lambda path: None, "There is no file mine.safetensors"),
    ],
    ids=["truncated", "foreign", "newer", "text", "directory", "missing"],
)
@pytest.mark.parametrize(
    "line",
    [
        "train --out out --objective mine.safetensors",
        "evaluate ppo mine.safetensors --envs CartPole-v1 --out out",
    ],
)
def test_a_file_that_is_no_objective_is_refused(refused, here, made, said, line):
    made(here / "mine.safetensors")
    assert said in refused(line)


WRITERS = ["train --env probe/action --out", "evaluate ppo --envs probe/action --out", "meta-train quickstart --out"]


@pytest.mark.parametrize("line", [*WRITERS, "quickstart --out"])
@pytest.mark.parametrize("out", ["/proc/mine", "notes", "notes/mine"])
def test_an_out_that_cannot_be_is_refused(refused, here, line, out):
    (here / "notes").write_text("mine")
    sentence = refused(f"{line} {out}")
    assert "Cannot write to" in sentence or "notes is a file" in sentence


@pytest.mark.parametrize("line", ["meta-train quickstart --out thesis", "quickstart --out thesis"])
def test_an_out_that_holds_something_else_is_refused(refused, here, line):
    (here / "thesis").mkdir()
    (here / "thesis" / "chapter1.tex").write_text("mine")
    assert "thesis is not empty and holds no run (chapter1.tex is in it): choose another --out." in refused(line)


def test_weights_and_biases_are_asked_for_before_anything_is_made(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "wandb is not installed: `pip install wandb`, or leave --wandb out." in refused(f"{META} --wandb")


@pytest.fixture
def a_run(here):
    """A copy of a run that ended."""
    shutil.copytree(crash.first().result.out, here / "run")
    return here / "run"


def test_another_recipe_in_a_run_is_refused(refused, a_run):
    line = " ".join(crash.arguments("run", **{"objective.width": 5}))
    assert "run belongs to another recipe: its objective.width is 4, and this one's is 5." in refused(line)


def test_an_export_does_not_overwrite(refused, a_run, here):
    (here / "mine.safetensors").write_text("mine")
    assert "mine.safetensors exists already" in refused("export run mine.safetensors")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("export run nowhere/mine.safetensors", "nowhere is not a directory: make it first."),
        ("export run /proc/mine.safetensors", "/proc"),
        ("export run mine.txt", "expected the name of a file that ends in .safetensors, and got mine.txt"),
        ("plot run --out run/recipe.json", "run/recipe.json is a file: choose a directory as --out."),
        ("export empty mine.safetensors", "empty holds no objective.safetensors: give the directory of a run."),
        ("export nowhere mine.safetensors", "nowhere holds no objective.safetensors"),
        ("plot empty", "empty holds no run with an evaluated objective"),
        ("plot nowhere", "nowhere holds no run with an evaluated objective"),
        ("plot run --out run/recipe.json/figures", "Not a directory"),
    ],
)
def test_a_run_is_asked_for(refused, a_run, here, line, said):
    (here / "empty").mkdir()
    assert said in refused(line)


def full(*args, **_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_on_a_full_disk_an_export_leaves_nothing(refused, a_run, monkeypatch):
    monkeypatch.setattr(os, "replace", full)
    assert "No space left on device. Check the path" in refused("export run mine.safetensors")


def test_a_mistake_of_ours_can_be_debugged(monkeypatch):
    monkeypatch.setenv("DISCOVER_DEBUG", "1")
    with pytest.raises(ValueError, match="Unknown command"):
        cli.main(["trian"])


def process(*command, **options):
    command = [str(word) for word in command]
    return subprocess.run(command, capture_output=True, text=True, env=crash.environment(), **options)


DISCOVER = Path(sys.executable).with_name("discover")


MISTAKE = ("train", "--num-seeds", "many")


@pytest.fixture(scope="module")
def mistaken():
    """A mistake in a process of its own."""
    return process(sys.executable, "-m", "discover", *MISTAKE)


def test_a_mistake_in_a_process_of_its_own(mistaken):
    assert mistaken.returncode == 2
    assert mistaken.stdout == ""
    assert_one_sentence(mistaken.stderr)


def test_envs_of_the_users_own_are_noticed(here):
    (here / "envs").mkdir()
    (here / "envs" / "__init__.py").write_text("")
    done = process(sys.executable, "-m", "discover", "list", cwd=here)
    assert done.returncode == 2
    assert_one_sentence(done.stderr)
    assert "which is not the envs of this toolkit: rename yours" in done.stderr


def test_a_reader_that_leaves_is_no_mistake():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([DISCOVER, "list"], stdout=write, stderr=subprocess.PIPE, text=True, env=crash.environment())
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_discover_and_its_module_and_main_are_the_same(mistaken, capsys):
    assert cli.main(["list"]) == 0
    assert process(DISCOVER, "list").stdout == capsys.readouterr().out
    assert cli.main([*MISTAKE]) == mistaken.returncode
    assert mistaken.stderr == capsys.readouterr().err


def test_list_shows_what_there_is(capsys):
    cli.main(["list"])
    listed = capsys.readouterr().out
    for name in ("ppo", "dpo", "quickstart", "lpo_minatar", "CartPole-v1", "Breakout-MinAtar", "brax/ant"):
        assert name in listed


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_without_a_command_it_lists_them(capsys, words):
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(capsys, name):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert not stop.value.code
    assert f"usage: discover {name}" in capsys.readouterr().out


def test_a_recipe_explains_its_flags(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["meta-train", "lpo_minatar", "--help"])
    assert not stop.value.code
    assert "(default: 800)" in capsys.readouterr().out


def is_png(path):
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


SMALL = ["--total-steps", "1024", "--num-seeds", "2", "--out", "out"]


@pytest.mark.slow
def test_train_writes_its_curve(here, capsys):
    assert cli.main(["train", "--objective", "dpo", "--env", "probe/action", "--num-evals", "2", *SMALL]) == 0
    rows = [json.loads(line) for line in (here / "out" / "train.jsonl").read_text().splitlines()]
    assert [row["env_steps"] for row in rows] == [512, 1024]
    assert all(len(row["returns"]) == 2 for row in rows)
    assert is_png(here / "out" / "curve.png")
    assert "final return: mean" in capsys.readouterr().out


@pytest.mark.slow
def test_a_single_seed_has_no_interval(here, capsys):
    line = "train --env probe/action --total-steps 512 --num-seeds 1 --num-evals 1"
    assert cli.main(line.split()) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("final return")]
    assert re.fullmatch(r"final return: mean \S+, IQM \S+ over 1 seed", line)


@pytest.mark.slow
@pytest.mark.filterwarnings("always:This LPG")
def test_advice_is_a_plain_sentence(here, capsys):
    line = "train --objective lpg --env CartPole-v1 --total-steps 64 --num-seeds 1 --num-evals 1 --agent.num-steps 16"
    assert cli.main(line.split()) == 0
    assert_one_sentence(capsys.readouterr().err)


@pytest.mark.parametrize(
    "words", [["train", "--out", ""], ["train", "--objective", ""], ["plot", ""], ["plot", "run", "--out="]]
)
def test_an_empty_value_is_refused(here, capsys, words):
    assert cli.main(words) == 2
    sentence = capsys.readouterr().err
    assert_one_sentence(sentence)
    assert "is followed by an empty value: give one, or leave it out." in sentence
    assert not list(here.iterdir())


def test_train_on_a_full_disk(here, capsys, monkeypatch):
    monkeypatch.setattr(Path, "write_text", full)
    assert cli.main(["train", "--objective", "dpo", "--env", "probe/action", "--num-evals", "2", *SMALL]) == 2
    assert_one_sentence(capsys.readouterr().err)


def test_evaluate_writes_and_prints_its_comparison(here, capsys):
    lo.save(lo.DPO(alpha=1.0), "mine.safetensors")  # of one kind with dpo, and so of one program
    assert cli.main(["evaluate", "dpo", "mine.safetensors", "--envs", "probe/action", *SMALL]) == 0
    result = json.loads((here / "out" / "evaluation.json").read_text())
    assert [cell["objective"] for cell in result["cells"]] == ["dpo", "mine.safetensors"]
    assert np.shape(result["cells"][1]["returns"]) == (2, 2)
    assert is_png(here / "out" / "probe_action.png")
    said = capsys.readouterr().out.splitlines()
    (at,) = [i for i, line in enumerate(said) if line.split() == ["environment", "dpo", "mine.safetensors"]]
    assert said[at + 1].startswith("probe/action  ")
    assert "Fewer than 8 seeds (here 2)" in " ".join(said[at + 2 :])  # seeds


def test_export_writes_what_load_reads(here, a_run, capsys):
    assert cli.main(["export", "run", "mine.safetensors"]) == 0
    assert lo.record(here / "mine.safetensors") == lo.record(a_run / "objective.safetensors")
    assert isinstance(lo.load(here / "mine.safetensors").drift, lo.LPO)
    assert 'learned_objectives.load("mine.safetensors")' in capsys.readouterr().out


@pytest.mark.slow
def test_plot_draws_the_search_and_the_drift(here, a_run, capsys):
    assert cli.main(["plot", "run"]) == 0
    assert is_png(a_run / "search.png")
    assert is_png(a_run / "drift.png")
    assert capsys.readouterr().out.splitlines() == ["wrote run/search.png", "wrote run/drift.png"]


@pytest.mark.slow
def test_plot_draws_elsewhere_if_asked(here, a_run):
    assert cli.main(["plot", "run", "--out", "figures"]) == 0
    assert is_png(here / "figures" / "drift.png")
    assert not (a_run / "drift.png").exists()


def test_meta_train_says_what_it_made(here, capsys, monkeypatch):
    monkeypatch.setattr("discover.searches.registry.OuterLoop", crash.sharing_programs)
    assert cli.main(crash.arguments("run", generations=1)) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "done: run/objective.safetensors  (discover plot run draws it)"
    assert said[2].startswith(
        ("Exported: generation 1. probe/observation_action: mean return", "Exported: generation 0, the start")
    )


def test_a_run_is_resumed_by_its_directory(here, capsys, monkeypatch):
    monkeypatch.setattr("discover.searches.registry.OuterLoop", crash.sharing_programs)
    assert cli.main(crash.arguments("run", generations=1)) == 0
    first = (here / "run" / "objective.safetensors").read_bytes()
    assert cli.main(["resume", "run"]) == 0
    assert "Resuming run at generation 1 of 1." in capsys.readouterr().out
    assert (here / "run" / "objective.safetensors").read_bytes() == first


def test_what_holds_no_run_is_not_resumed(refused):
    assert "nowhere holds no run" in refused("resume nowhere")


@pytest.fixture
def without_a_cache():
    """JAX as a user's process has it, which these tests do not."""
    ours = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", ours)


def test_compiled_programs_are_kept_in_the_users_cache(without_a_cache, here, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    assert cli.main(["list"]) == 0
    assert Path(jax.config.jax_compilation_cache_dir).parent == here / "cache" / "discover"


def test_a_cache_of_the_users_own_is_left_alone(here, monkeypatch):
    ours = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    assert cli.main(["list"]) == 0
    assert jax.config.jax_compilation_cache_dir == ours


def test_a_user_who_wants_no_cache_has_none(without_a_cache):
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        assert cli.main(["list"]) == 0
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert jax.config.jax_compilation_cache_dir is None


def test_a_user_without_a_home_has_no_cache(without_a_cache, monkeypatch):
    def without_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", without_home)
    assert cli.main(["list"]) == 0
    assert jax.config.jax_compilation_cache_dir is None


def fields_without_help(kind):
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from fields_without_help(hints[field.name])
        elif not get_field_docstring(kind, field.name, ()):
            yield f"{kind.__name__}.{field.name}"


def test_every_flag_has_a_help_text():
    assert [name for command in cli.COMMANDS.values() for name in fields_without_help(command.arguments)] == []


def test_names_known_without_jax_are_the_real_ones():
    assert tuple(cli.COMMANDS) == tuple(names.COMMANDS)
    assert tuple(RECIPES) == names.RECIPES
    assert sorted(library.CLOSED_FORMS) == sorted(names.FORMULAS)
    assert set(names.ENVIRONMENTS) == {
        name for name in envs.available() if not name.startswith(("gridworld/", "probe/"))
    }
    assert {*names.LEFT_TO_THE_PARSER} == {"gridworld/", "probe/", *envs.LEFT_OUT}


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_flags_known_without_jax_are_those_of_the_parser(command, capsys):
    # The help of meta-train has the flags of one family and one search. These lines have all of ours.
    families = (
        "quickstart",
        "quickstart --objective dpo",
        "quickstart --objective soft_clip",
        "quickstart --objective tuned_ppo",
        "lpo_small",
        "lpg_small",
        "program_small",
        "pbt_small",
        "map_elites_small",
        "whole_life_small",
    )
    for words in families if command == "meta-train" else ("",):
        with pytest.raises(SystemExit):
            cli.main([command, *words.split(), "--help"])
    shown = set(re.findall(r"--[a-z][a-z0-9.-]*", capsys.readouterr().out.replace("_", "-"))) - {"--help"}
    known = set(flags(command))
    assert known <= shown
    assert {flag for flag in shown if "." in flag.rstrip(".")} <= known


@pytest.mark.parametrize(
    "line",
    [
        "trian",
        "meta-train lpo_minata --out x",
        "evaluate pppo --envs CartPole-v1",
        "train --objective pppo",
        "train --num-sedes 3",
        "meta-train quickstart --agent.lerning-rate=0.1",
        "train --objective=pppo",
        "train --env=CartPol-v1",
        "evaluate ppo --envs CartPole-v1 brax/ants",
        "meta-train --envs CartPol-v1 lpo_small",
    ],
)
def test_a_mistyped_name_is_answered_before_jax_is_imported(line):
    code = (
        f"import sys; sys.argv = ['discover', *{line.split()!r}]; from discover.__main__ import main; status = main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print('jax' in sys.modules); sys.exit(status)"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert "did you mean" in done.stderr or "Perhaps you meant" in done.stderr


@pytest.mark.parametrize(
    ("words", "rest"),
    [
        ("quickstart --out x", "--out x"),
        ("--dry-run quickstart", "--dry-run"),
        ("--out x --search.population 8 quickstart --wandb", "--out x --search.population 8 --wandb"),
        ("--envs CartPole-v1 Acrobot-v1 quickstart", "--envs CartPole-v1 Acrobot-v1"),
        ("--name lpg quickstart", "--name lpg"),
        ("--seed=3 quickstart", "--seed=3"),
        ("--agent.normalise-reward quickstart", "--agent.normalise-reward"),
        ("--agent.normalise_reward quickstart", "--agent.normalise_reward"),
        ("--objective.no-see-gamma quickstart", "--objective.no-see-gamma"),
    ],
)
def test_the_recipe_may_stand_anywhere(words, rest):
    assert names.split_recipe(words.split()) == ("quickstart", rest.split())


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("Kite", None),
        ("ant", "brax/ant"),
        ("metatrain", None),
        ("breakout", "Breakout-MinAtar"),
        ("CartPol-v1", "CartPole-v1"),
        ("§", None),
    ],
)
def test_suggestions_are_near(name, near):
    known = ["CartPole-v1", "Catch-bsuite", "Breakout-MinAtar", "brax/ant"]
    found = names.nearest(name, [candidate.lower() for candidate in known])
    assert found == (None if near is None else near.lower())


def test_a_flag_that_does_not_exist_gets_the_near_ones(refused):
    assert "Perhaps you meant --search.sigma" in refused(f"{META} --serch.sigma 3")


def test_the_version_is_that_of_the_installed_packages(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"discover-rl {version('discover-rl')}, jax {jax.__version__}\n"


@pytest.mark.parametrize("line", ["--version", "completion bash", "completion zsh"])
def test_what_needs_no_jax_is_answered_without_it(line):
    code = (
        f"import sys; sys.argv = ['discover', *{line.split()!r}]; from discover.__main__ import main; status = main()"
    )
    done = process(sys.executable, "-c", f"{code}; sys.exit(status or 'jax' in sys.modules)")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.fixture(scope="module")
def completed():
    """What the printed script completes a line to, in a real bash; the last word is the one at the cursor."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")

    def run(*words):
        array = " ".join(f"'{word}'" for word in ("discover", *words))
        ask = f'COMP_WORDS=({array}); COMP_CWORD={len(words)}; _discover; printf "%s\\n" "${{COMPREPLY[@]}}"'
        done = subprocess.run([bash, "-c", f"{completion('bash')}\n{ask}"], capture_output=True, text=True, check=True)
        assert not done.stderr
        return done.stdout.split()

    return run


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("meta", ["meta-train"]),
        ("--v", ["--version"]),
        ("meta-train quick", ["quickstart"]),
        ("meta-train --out x quick", ["quickstart"]),
        ("meta-train --dry-run groove_", ["groove_small"]),
        ("recipe lpg_es", ["lpg_es", "lpg_es_small"]),
        ("meta-train lpg --search.sigma-", ["--search.sigma-decay", "--search.sigma-floor"]),
        ("train --env Acro", ["Acrobot-v1"]),
        ("train --objective dp", ["dpo"]),
        ("evaluate pp", ["ppo"]),
        ("evaluate ppo --envs CartPole-v1 brax/an", ["brax/ant"]),
        ("evaluate ppo --envs CartPole-v1 --num-s", ["--num-seeds"]),
        ("list e", ["envs"]),
        ("completion z", ["zsh"]),
        ("meta-train --out |", []),  # a path: left to the shell
        ("plot |", []),
    ],
)
def test_bash_completes_a_line(completed, line, words):
    assert completed(*line.replace("|", "").split(" ")) == words


def test_bash_completes_every_name(completed):
    assert completed("") == [*cli.COMMANDS, "--help", "--version"]
    assert completed("meta-train", "") == [*RECIPES]
    assert completed("train", "--env", "") == [*names.ENVIRONMENTS]
    assert completed("evaluate", "") == sorted(lo.available())
    for command in cli.COMMANDS:
        assert completed(command, "--") == [*flags(command), "--help"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_reads_its_script(here):
    (here / "script").write_text(completion("zsh"))
    done = subprocess.run(["zsh", "-fc", "source ./script && which _discover"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("kind", "known"), [("objectives", lo.available()), ("envs", envs.available()), ("recipes", RECIPES)]
)
def test_one_kind_is_listed_a_name_on_a_line(capsys, kind, known):
    assert cli.main(["list", kind]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(known)


def test_a_printed_recipe_is_run_from_its_file(here, capsys, monkeypatch):
    monkeypatch.setattr("discover.searches.registry.OuterLoop", crash.sharing_programs)
    command, name, *flags = crash.arguments("run", generations=1)
    cli.main(["recipe", name])
    text = capsys.readouterr().out
    (here / "mine.toml").write_text(text)
    assert cli.main([command, "--config", "mine.toml", *flags]) == 0
    made = json.loads((here / "run" / "recipe.json").read_text())
    assert made == json.loads(json.dumps(crash.recipe(generations=1).as_dict()))
    assert (here / "run" / "config.toml").read_text() == text


def started_from(line):
    """The recipe that a line of meta-train gives."""
    return meta_train.parse(line.split()).recipe


def test_flags_win_over_a_file_and_a_file_over_a_name(here):
    (here / "mine.toml").write_text("generations = 7\nseed = 5\n[search]\nsigma = 0.5\n")
    base = RECIPES["quickstart"]()
    search = dataclasses.replace(base.search, sigma=0.5)
    expected = dataclasses.replace(base, generations=9, seed=5, search=search)
    for line in ("quickstart --config mine.toml --generations 9", "--generations 9 --config=mine.toml quickstart"):
        assert started_from(line) == expected


def test_a_file_without_a_name_starts_from_the_defaults(here):
    (here / "mine.toml").write_text('name = "mine"\n')
    line = "--envs CartPole-v1 Acrobot-v1 --config mine.toml"
    assert started_from(line) == Recipe(name="mine", envs=("CartPole-v1", "Acrobot-v1"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[agent]\nlerning_rate = 1.0",
            "mine.toml: unknown key agent.lerning_rate; did you mean 'agent.learning_rate'?",
        ),
        ("[agent]\nnum_envs = 'many'", "mine.toml: agent.num_envs must be a whole number, and is 'many', a string."),
        ("[agent]\nnum_envs = 0", "mine.toml: agent.num_envs must be at least 1, and is 0."),
        ("generations = 1\nenvs = ", "mine.toml: this is not TOML: Invalid value (at line 2, the last)."),
    ],
)
def test_a_mistake_in_a_file_is_one_sentence(refused, here, text, said):
    (here / "mine.toml").write_text(text)
    for line in ("meta-train --config mine.toml --out out", "meta-train quickstart --config mine.toml --out out"):
        assert said in refused(line)


def test_a_file_that_is_not_there_is_said(refused):
    assert "No such file or directory: mine.toml" in refused("meta-train --config mine.toml --out out")


@pytest.mark.parametrize("words", ["quickstrat --config mine.toml", "--config mine.toml quickstrat"])
def test_a_mistyped_recipe_beside_a_file_is_unknown(words):
    with pytest.raises(ValueError, match="Unknown recipe 'quickstrat'; did you mean 'quickstart'"):
        names.split_recipe(words.split())


def test_the_help_of_meta_train_is_in_groups_with_the_common_flags_first(capsys):
    with pytest.raises(SystemExit):
        cli.main(["meta-train", "lpg", "--help"])
    shown = capsys.readouterr().out
    shown_flags = re.findall(r"^\W*--([a-z][a-z-]*)", shown, re.MULTILINE)
    assert shown_flags[:7] == ["out", "config", "generations", "envs", "total-steps", "seed", "dry-run"]
    boxes = re.findall(r"(\w+) options ", shown)
    parts = [name for name, value in vars(Recipe()).items() if dataclasses.is_dataclass(value)]
    assert boxes == ["recipe", *parts, "run"]


def test_a_plug_in_the_working_directory_is_found(here, monkeypatch):
    (here / "a_plug_of_mine.py").write_text("class Kite:\n    pass\n")
    found, before = [], [*sys.path]
    run = lambda _: found.append(plugs.resolve("a_plug_of_mine:Kite"))
    monkeypatch.setitem(cli.COMMANDS, "list", cli.COMMANDS["list"]._replace(run=run))
    assert cli.main(["list"]) == 0
    assert found[0].__name__ == "Kite"
    assert sys.path == before
    del sys.modules["a_plug_of_mine"]


@pytest.mark.parametrize("name", ["kites:Kite", "a.b_c:D.e", "CartPole:v1", "a:b:c", "a", "a:", ":a", "a/b:c", "1a:b"])
def test_the_quick_checks_know_a_path_as_envs_does(name):
    assert bool(names.PLUG.fullmatch(name)) == plugs.is_path(name)


@pytest.mark.parametrize(
    "line",
    [
        "train --env CartPole:v1 --objective ppo:PPO",
        "evaluate ppo:PPO --envs CartPole:v1 brax:ant",
        "meta-train quickstart --envs CartPole:v1",
    ],
)
def test_a_path_passes_the_quick_checks(line):
    names.check_arguments(line.split())


def test_an_announced_name_passes_the_quick_checks(monkeypatch):
    announced = {"discover.envs": "CartPole-v11", "discover.objectives": "ppoo"}
    monkeypatch.setattr(
        names.importlib.metadata, "entry_points", lambda group: [EntryPoint(announced[group], "kites:Kite", group)]
    )
    names.check_arguments(["train", "--env", "CartPole-v11", "--objective", "ppoo"])


def test_the_usage_names_the_recipe(capsys):
    with pytest.raises(SystemExit):
        cli.main(["meta-train", "--help"])
    assert "usage: discover meta-train RECIPE" in capsys.readouterr().out


def in_a_terminal(*command):
    """What a command of Python's writes to a terminal of its own, and its exit status."""
    ours, theirs = os.openpty()
    environment = crash.environment() | {"TERM": "xterm", "COLUMNS": "90"}
    child = subprocess.Popen(
        [sys.executable, *command], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, close_fds=True
    )
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # EIO: the child has left
        while read := os.read(ours, 4096):
            written += read
    os.close(ours)
    return written.decode(), child.wait()


BAR = """
from discover.console import print_line
from discover.progress import bar, reached

with bar("cell"):
    for done in range(3):
        print_line(f"line {done}")
        reached(done, 2)
print_line("the end")
"""


def test_a_terminal_has_a_bar_below_the_lines():
    written, status = in_a_terminal("-c", BAR)
    assert status == 0
    assert re.search(r"line 0\s", written)
    assert "2/2 cells" in written
    assert re.search(r"cells/s|s/cell", written)
    assert " left" in written
    assert written.rstrip().endswith("the end")


def test_elsewhere_lines_are_all_there_is():
    done = process(sys.executable, "-c", BAR)
    assert (done.stdout, done.stderr) == ("line 0\nline 1\nline 2\nthe end\n", "")


@pytest.mark.parametrize(
    ("seconds", "left", "since", "shown"),
    [
        (0.0, 3.0, 0.0, ""),
        (4.0, 10.0, 0.0, "4.0 s/cell  0m40s left"),
        (4.0, 10.0, 15.0, "4.0 s/cell  0m25s left"),
        (4.0, 1.0, 15.0, "4.0 s/cell  0m00s left"),
        (0.25, 10.0, 0.0, "4.0 cells/s  0m02s left"),
    ],
)
def test_the_pace_has_a_rate_and_the_time_left(seconds, left, since, shown):
    assert progress.pace(seconds, left, since, "cell") == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(59.4, "0m59s"), (3600, "1h00m"), (47 * 3600, "47h00m"), (6122.76 * 3600, "255d02h")]
)
def test_long_times_are_in_days(seconds, shown):
    assert clock(seconds) == shown
