"""From a searched drift to formulas: a front of size against error."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import learned_objectives as lo
from discover.agents.objectives import identity, resolve_objective
from discover.formats import write_text
from discover.plots.fronts import size_and_error
from discover.searches.distillation import DistilConfig, Distillation, Formula, Generation
from discover.searches.fitting import Samples, error_of, samples_of
from learned_objectives.parsing import parse

FILE = "front.json"


class Distilled(NamedTuple):
    """A formula of a front."""

    text: str
    operations: int
    error: float  # at the samples that it was fitted to
    error_elsewhere: float  # at other log r and A

    @property
    def program(self) -> lo.Program:
        return lo.Program.parse(self.text)


@dataclass(frozen=True)
class Front:
    """Formulas for a drift: each has a smaller error than all that are smaller.

    The error is the root mean square of the difference in values and in slopes, each over the root mean square of the drift's
    own: 0 for the drift itself, 1 for the formula 0.
    """

    objective: str  # what was distilled
    identity: str  # of it, a digest
    variables: tuple[str, ...]  # that the drift depends on
    settings: dict[str, Any]
    proposed: int  # texts
    fitted: int  # structures whose constants were fitted
    formulas: tuple[Distilled, ...]  # from the smallest on

    def table(self) -> str:
        rows = [f"{f.operations:>10}  {f.error:>9.2g}  {f.error_elsewhere:>9.2g}  {f.text}" for f in self.formulas]
        return "\n".join([f"{'operations':>10}  {'error':>9}  {'elsewhere':>9}  formula", *rows])

    def save(self, path: Path) -> None:
        fields = dataclasses.asdict(self) | {"formulas": [each._asdict() for each in self.formulas]}
        write_text(path, json.dumps(fields, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> Front:
        """The front of a file that `save` wrote. ValueError, in a sentence, for another file."""
        try:
            fields = json.loads(Path(path).read_text())
            formulas = tuple(Distilled(**each) for each in fields["formulas"])
            return cls(**fields | {"formulas": formulas, "variables": tuple(fields["variables"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} cannot be read as a front of formulas: {error}.") from None


def distil(
    objective: str | os.PathLike | lo.Objective,
    config: DistilConfig | None = None,
    *,
    out: str | os.PathLike | None = None,
    progress: Callable[[str], None] | None = None,
) -> Front:
    """Formulas of few operations that have the values and the slopes of an objective's drift: a front of size against error.

    The drift is sampled at |log r| <= 1 and |A| <= 2.5, and where it depends on them at several n/N and N. Programs evolve, their
    constants are fitted by least squares, and every formula of the front is a drift by `verify_drift`. The same settings give the
    same front.

    Args:
      objective: a Mirror, a drift, a name, a file, or the directory of a run.
      config: default, `DistilConfig()`.
      out: a directory for front.json, front.png, and a file N.safetensors for each formula of N operations: the objective with
        that formula as its drift.
      progress: a function of a line, called every ten generations.

    Raises ValueError, in a sentence, for an objective without a drift, and for a drift that reads statistics, is zero, or is not
    finite.
    """
    config = config or DistilConfig()
    found = resolve_objective(objective)
    if not isinstance(found, lo.Mirror):
        raise ValueError(f"a {type(found).__name__} has no drift to distil: give a Mirror or a drift.")
    samples, elsewhere = samples_of(found.drift), samples_of(found.drift, elsewhere=True)
    last = Generation(0, 0, 0, ())
    for last in Distillation(samples, config).generations():
        if progress is not None:
            progress(_line(last, config))
    front = Front(
        objective=os.fspath(objective) if isinstance(objective, str | os.PathLike) else type(found.drift).__name__,
        identity=identity(found),
        variables=samples.names,
        settings=dataclasses.asdict(config),
        proposed=last.proposed,
        fitted=last.fitted,
        formulas=tuple(_distilled(each, elsewhere) for each in last.front),
    )
    if out is not None:
        _write(front, found, Path(out))
    return front


def _line(found: Generation, config: DistilConfig) -> str:
    best = f"{found.front[-1].error:.2g}" if found.front else "none"
    return (
        f"generation {found.number}/{config.generations}: {found.fitted} formulas fitted, {len(found.front)} on the front, "
        f"least error {best}"
    )


def _distilled(formula: Formula, elsewhere: Samples) -> Distilled:
    code, constants = parse(formula.text)
    return Distilled(*formula, error_of(code, np.array(constants), elsewhere))


def _write(front: Front, objective: lo.Mirror, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for each in front.formulas:
        how = {"distilled": {"objective": front.objective, "identity": front.identity, **each._asdict()}}
        lo.save(objective.replace(drift=each.program), out / f"{each.operations}.safetensors", how)
    front.save(out / FILE)
    sizes, errors = [f.operations for f in front.formulas], [f.error for f in front.formulas]
    size_and_error({front.objective: (sizes, errors)}).savefig(out / "front.png", dpi=150)
