"""`discover train`."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path

from discover.agents.config import AgentConfig
from discover.agents.setups import LossConfig, usual_setup
from discover.commands import parser
from discover.console import print_line
from discover.progress import bar, reached


@dataclass(frozen=True)
class Train:
    """Train fresh agents with an objective, many seeds at once, and show how they learn.

    Example: discover train --objective dpo --env CartPole-v1 --total-steps 500000 --num-seeds 8
    """

    objective: str = "ppo"  # a name (`discover list`), a .safetensors file, or the directory of a run
    env: str = "CartPole-v1"  # a name (`discover list`); sets what --agent.* and --loss.* default to
    total_steps: int = 500_000  # environment steps of each agent
    num_seeds: int = 8  # agents
    seed: int = 0  # agent number i of a seed has the same key, however many there are
    num_evals: int = 20  # points of the learning curve
    chunk: int | None = None  # agents trained side by side on a device; None: as many as suit it
    out: Path | None = None  # a directory for train.jsonl and curve.png
    agent: AgentConfig = dataclasses.field(default_factory=AgentConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)


def parse(words: list[str]) -> Train:
    """The flags start from the usual setup of the environment."""
    env = parser.peek(words, "--env") or Train.env
    setup = usual_setup(env)
    return parser.parse(Train, "train", words, Train(env=env, agent=setup.agent, loss=setup.loss))


def run(args: Train) -> None:
    from discover.evaluation.train import train
    from discover.results.comparison import count_of
    from discover.results.statistics import few_seeds_note, iqm_interval

    stretches = itertools.count(1)
    total = min(args.num_evals, args.agent.num_updates(args.total_steps))

    def said(line: str) -> None:
        print_line(line)
        reached(next(stretches), total)

    with bar("evaluation"):
        result = train(
            args.objective,
            args.env,
            total_steps=args.total_steps,
            num_seeds=args.num_seeds,
            seed=args.seed,
            num_evals=args.num_evals,
            chunk=args.chunk,
            agent=args.agent,
            loss=args.loss,
            out=args.out,
            progress=said,
        )
    final = result.returns[:, -1]
    shown = iqm_interval(final) if len(final) > 1 else f"{final[0]:.1f}"  # a single seed has no interval
    print_line(f"final return: mean {final.mean():.2f}, IQM {shown} over {count_of(len(final), 'seed')}")
    if note := few_seeds_note(len(final)):
        print_line(note)
    if args.out is not None:
        print_line(f"wrote {args.out / 'train.jsonl'} and {args.out / 'curve.png'}")
