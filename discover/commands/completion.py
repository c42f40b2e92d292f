"""`discover completion`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro

from discover.console import print_line
from discover.light import completion


@dataclass(frozen=True)
class Completion:
    """Print a script that completes commands, flags and names in a shell.

    Example: source <(discover completion bash)
    """

    shell: tyro.conf.Positional[Literal["bash", "zsh"]]  # that the script is for


def run(args: Completion) -> None:
    print_line(completion(args.shell))
