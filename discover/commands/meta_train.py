"""`discover meta-train` and `discover resume`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro

from discover import config
from discover.commands import parser
from discover.console import print_line
from discover.devices import processes
from discover.names import split_recipe
from discover.progress import bar
from discover.runs.recipes import get
from discover.searches.config import search_config
from discover.searches.family_of import objective_config
from discover.searches.recipe import Recipe


@dataclass(frozen=True)
class MetaTrain:
    """Search for an objective, by evolution or by meta-gradient. The same line again resumes, exactly.

    Example: discover meta-train lpo_minatar --out runs/lpo --search.population 32
    """

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    out: Path | None = None  # the run's own directory: checkpoints, metrics, objective.safetensors
    config: Path | None = None  # a TOML file of the recipe's fields (`discover recipe` prints one); flags override it
    fit: bool = False  # side by side on each device as many lives as its memory holds, whatever chunk the recipe has
    dry_run: bool = False  # only say what it would take: parameters, memory, environment steps, time
    wandb: bool = False  # also log to Weights & Biases
    coordinator: str | None = None  # HOST:PORT of process 0, where no cluster (SLURM, Open MPI, a TPU pod) provides it
    num_processes: int | None = None  # in all, with --coordinator
    process_id: int | None = None  # of this one, from 0, with --coordinator; process 0 alone writes


@dataclass(frozen=True)
class Resume:
    """Continue the run in a directory, with the recipe that is recorded there.

    Example: discover resume runs/lpo
    """

    run: tyro.conf.Positional[Path]  # the directory of a run
    wandb: bool = False  # also log to Weights & Biases
    coordinator: str | None = None  # as of meta-train
    num_processes: int | None = None  # as of meta-train
    process_id: int | None = None  # as of meta-train


CHOICES = {  # parts of the recipe that may be of several classes
    "objective": "the family: lpo, ta_lpo, soft_clip, ta_soft_clip, tuned_ppo, program, lpg, ta_lpg, ppo, dpo, mdpo, or "
    "your module:Name",
    "search": "the outer loop: evolution, rolling, metagrad, whole_life, programs, pbt, map_elites, or yours as module:Class",
}
COMMON = ("out", "config", "generations", "envs", "total_steps", "seed", "dry_run")  # shown first by --help


def parse(words: list[str]) -> MetaTrain:
    """The flags start from the recipe: a name's, a file's, or a file's over a name's."""
    default, words = _start(words)
    grouped = _grouped(default)
    parsed = parser.parse(type(grouped), "meta-train", words, grouped, usage="meta-train RECIPE")
    try:
        return _ungrouped(parsed, default)
    except ValueError as error:
        raise ValueError(f"{str(error).removesuffix('.')}. {parser.see('meta-train')}") from None


def _start(words: list[str]) -> tuple[MetaTrain, list[str]]:
    """What the flags start from, and the words without the recipe's name."""
    try:
        name, words = split_recipe(words)
    except ValueError:
        if not {"-h", "--help"} & set(words):
            raise
        name = None
    recipe = Recipe() if name is None else get(name)
    file = parser.peek(words, "--config")
    recipe, words = _chosen(recipe if file is None else config.read(file, recipe), words)
    return MetaTrain(recipe=recipe), words


def _chosen(recipe: Recipe, words: list[str]) -> tuple[Recipe, list[str]]:
    """The recipe with the objective and the search that --objective and --search name, and the other words."""
    for part, settings in zip(CHOICES, (objective_config, search_config), strict=True):
        while (name := parser.peek(words, f"--{part}")) is not None:
            recipe = dataclasses.replace(recipe, **{part: settings(name, getattr(recipe, part))})
            at = next(i for i, word in enumerate(words) if word.partition("=")[0] == f"--{part}")
            words = words[:at] + words[at + (1 if "=" in words[at] else 2) :]
    return recipe, words


def _grouped(default: MetaTrain) -> Any:
    """The same settings as a dataclass that tyro shows in groups: the common flags, the recipe, its parts, and the run."""
    recipe = default.recipe
    own = [f.name for f in dataclasses.fields(recipe)]
    parts = [name for name in own if dataclasses.is_dataclass(getattr(recipe, name))]
    plain = [name for name in own if name not in (*COMMON, *parts)]
    run = [f.name for f in dataclasses.fields(default) if f.name not in ("recipe", *COMMON)]
    common = [_flag(default if hasattr(default, name) else recipe, name) for name in COMMON]
    common += [(f"{name}_name", None, Annotated[str | None, _choice(name, help)]) for name, help in CHOICES.items()]
    fields = [
        *common,
        ("recipe", _group("The other fields of the recipe.", [_flag(recipe, name) for name in plain])),
        *(_part(name, getattr(recipe, name)) for name in parts),
        ("run", _group("How the search is run.", [_flag(default, name) for name in run])),
    ]
    return _group(MetaTrain.__doc__ or "", fields)


def _group(summary: str, fields: list[tuple]) -> Any:
    """An instance of a new dataclass with these fields: (name, value), or (name, value, type)."""
    made = dataclasses.make_dataclass(
        "Group",
        [(name, kind[0] if kind else type(value), _constant(value)) for name, value, *kind in fields],
        frozen=True,
    )
    made.__doc__ = summary
    return made()


def _choice(name: str, help: str) -> Any:
    """A flag that `_chosen` has taken before the parser runs; the parser shows its help."""
    return tyro.conf.arg(name=name, prefix_name=False, help=help)


def _part(name: str, settings: Any) -> tuple:
    """A part of the recipe: its fields are flags, unless it is an objective that is given by its path alone."""
    hidden = any(not field.metadata.get("recorded", True) for field in dataclasses.fields(settings))
    return (name, settings, tyro.conf.Fixed[type(settings)]) if hidden else (name, settings)


def _constant(value: Any) -> Any:
    return dataclasses.field(default_factory=lambda: value)


def _flag(settings: Any, name: str) -> tuple[str, Any, Any]:
    """A field as a flag without a prefix."""
    kind = get_type_hints(type(settings), include_extras=True)[name]
    shown = tyro.conf.arg(prefix_name=False, help=config.help_of(type(settings), name))
    return name, getattr(settings, name), Annotated[kind, shown]


def _ungrouped(grouped: Any, default: MetaTrain) -> MetaTrain:
    values = vars(grouped) | vars(grouped.recipe) | vars(grouped.run)
    own = {f.name: values[f.name] for f in dataclasses.fields(default.recipe)}
    rest = {f.name: values[f.name] for f in dataclasses.fields(default) if f.name != "recipe"}
    return MetaTrain(recipe=dataclasses.replace(default.recipe, **own), **rest)


def run(args: MetaTrain) -> int:
    from discover.runs.fit import fitted

    recipe = fitted(args.recipe, args.out) if args.fit else args.recipe
    if args.dry_run:
        from discover.runs.dry_run import dry_run

        for line in dry_run(recipe, args.out):
            if processes.is_primary():
                print_line(line)
        return 0
    if args.out is None:
        raise ValueError("meta-train needs --out DIRECTORY, the run's own, or --dry-run.")
    return _search(recipe, args.out, args.wandb, args.config)


def resume(args: Resume) -> int:
    from discover.searches.recipe import recipe_in

    return _search(recipe_in(args.run), args.run, args.wandb)


def _search(recipe: Recipe, out: Path, wandb: bool, file: Path | None = None) -> int:
    from discover.runs.loop import meta_train

    try:
        with bar("generation"):
            text = None if file is None else config.read_text(file)
            result = meta_train(recipe, out, wandb=wandb, config=text)
    except processes.LostProcess as error:
        print_line(f"discover: {error}", error=True)
        return 1
    if not processes.is_primary():
        return 0 if result.stopped is None else 128 + result.stopped
    if result.stopped is None:
        print_line(f"done: {result.out / 'objective.safetensors'}  (discover plot {result.out} draws it)")
        return 0
    return 128 + result.stopped
