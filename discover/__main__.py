"""The entry of the command line: `discover`, or `python -m discover`. Mistyped names are answered before JAX is imported."""

from __future__ import annotations

import sys

import discover
from discover.console import tell
from discover.names import check_arguments


def main(argv: list[str] | None = None) -> int:
    """Run one command. Exit status: 0, 2 for a mistake of the user's, 128 + n where signal n stopped a run."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        check_arguments(argv)
    except ValueError as error:
        tell(f"discover: {error}", error=True)
        return 2
    discover.start()
    from discover import cli

    return cli.main(argv)


if __name__ == "__main__":
    sys.exit(main())
