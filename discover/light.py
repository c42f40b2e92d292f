"""Answers of the command line that need no JAX: its version, and scripts that complete a line in a shell."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

from discover.flags import COMMANDS, flags
from discover.names import ENVIRONMENTS, KINDS, RECIPES, SHELLS, objectives

PATHS = ("resume", "export", "plot")  # commands whose arguments are paths


def answer(argv: list[str]) -> str | None:
    """The answer to a line that needs no JAX; None for any other line."""
    if argv[:1] == ["--version"]:
        return version()
    if argv[:1] == ["completion"] and len(argv) == 2 and argv[1] in SHELLS:
        return completion(argv[1])
    return None


def version() -> str:
    return f"discover-rl {_version('discover-rl')}, jax {_version('jax')}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def completion(shell: str) -> str:
    """The script for bash; zsh reads the same one through its bashcompinit."""
    script = BASH
    for mark, text in (
        ("COMMANDS", " ".join((*COMMANDS, "--help", "--version"))),
        ("FLAGS", _cases({name: (*flags(name), "--help") for name in COMMANDS})),
        ("WORDS", _cases(_words())),
        ("SWITCHES", "|".join(sorted({flag for name in COMMANDS for flag, value in flags(name).items() if not value}))),
        ("VALUES", _cases(_values())),
        ("PATHS", "|".join(PATHS)),
    ):
        script = script.replace(f"@{mark}@", text)
    return ZSH + script if shell == "zsh" else script


def _words() -> dict[str, Iterable[str]]:
    """What may stand in a command without a flag."""
    return {
        "meta-train|recipe": RECIPES,
        "distil|evaluate": objectives(),
        "list": KINDS,
        "completion": SHELLS,
    }


def _values() -> dict[str, Iterable[str]]:
    """What the flags of commands take, where that is a name."""
    return {
        '"train --env"|"evaluate --envs"|"meta-train --envs"': ENVIRONMENTS,
        '"train --objective"': objectives(),
    }


def _cases(words: dict[str, Iterable[str]]) -> str:
    return "\n".join(f'        {pattern}) candidates="{" ".join(names)}" ;;' for pattern, names in words.items())


ZSH = """#compdef discover
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
autoload -Uz bashcompinit && bashcompinit
"""

BASH = r"""# Completion for the command line of discover.
_discover() {
    local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}" command="${COMP_WORDS[1]}"
    local candidates="" flag="" i
    COMPREPLY=()
    if (( COMP_CWORD == 1 )); then
        COMPREPLY=( $(compgen -W "@COMMANDS@" -- "$current") )
        return
    fi
    for (( i = COMP_CWORD - 1; i > 1; i-- )); do
        case "${COMP_WORDS[i]}" in
        --*) flag="${COMP_WORDS[i]}"; break ;;
        esac
    done
    case "$command $flag" in
@VALUES@
    esac
    if [[ "$current" == -* ]]; then
        candidates=""
    elif [[ -n "$candidates" ]]; then
        COMPREPLY=( $(compgen -W "$candidates" -- "$current") )
        return
    elif [[ -n "$flag" && "$previous" == "$flag" ]]; then
        case "$flag" in
        @SWITCHES@) ;;
        *) return ;;
        esac
    fi
    if [[ "$current" != -* ]]; then
        case "$command" in
        @PATHS@) return ;;
@WORDS@
        esac
    fi
    if [[ -z "$candidates" ]]; then
        case "$command" in
@FLAGS@
        esac
    fi
    COMPREPLY=( $(compgen -W "$candidates" -- "$current") )
}
complete -o default -F _discover discover"""
