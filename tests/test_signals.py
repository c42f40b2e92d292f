"""Tests start their children with default signal dispositions, whatever the shell passed on."""

import subprocess
import sys
from pathlib import Path

ASK = "import signal; print(signal.getsignal(signal.SIGHUP).name, signal.getsignal(signal.SIGINT).__name__)"


def test_children_have_the_default_dispositions():
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["SIG_DFL", "default_int_handler"]


def test_so_they_have_where_the_shell_ignores_signals():
    line = f"trap '' HUP INT; exec '{sys.executable}' -m pytest -q -n 0 '{__file__}' -k default_dispositions"
    done = subprocess.run(
        ["sh", "-c", line], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith(".")  # one test, passed
