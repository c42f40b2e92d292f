"""The entry of the command line: `discover`, or `python -m discover`. What needs no JAX is answered before it is imported."""

from __future__ import annotations

import sys

import discover
from discover.console import print_line, reader_left
from discover.light import answer
from discover.names import check_arguments


def main(argv: list[str] | None = None) -> int:
    """Run one command. Exit status: 0, 2 for a mistake of the user's, 128 + n where signal n stopped a run."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        check_arguments(argv)
        if (said := answer(argv)) is not None:
            print_line(said)
            return 0
    except ValueError as error:
        print_line(f"discover: {error}", error=True)
        return 2
    except BrokenPipeError:
        return reader_left()
    discover.start()
    from discover import cli

    return cli.main(argv)


if __name__ == "__main__":
    sys.exit(main())
