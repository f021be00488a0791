"""The command that prints a shell's completion script: completion.

The scripts ask the program for the next words as typer's own do (`_LLMLAB_COMPLETE`). They differ from
typer's in what `--set key=value` needs: Bash breaks words at `=`, no space follows a `key=`, and each Tab
starts the program once.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from llmlab.cli.completing import one_of
from llmlab.errors import LabError

VARIABLE = "_LLMLAB_COMPLETE"  # of typer, made from the program's name

BASH = r"""_llmlab_completion() {
    local IFS=$'\n' line="${COMP_LINE:0:COMP_POINT}" place=-1 word before
    [[ $line == *[[:space:]] ]] && place=9999  # a new word
    mapfile -t COMPREPLY < <(COMP_WORDS="$line" COMP_CWORD=$place _LLMLAB_COMPLETE=complete_bash \
        "${1/#\~/$HOME}" 2>/dev/null)
    [[ ${#COMPREPLY[@]} -eq 1 && -z ${COMPREPLY[0]} ]] && COMPREPLY=()
    word="${line##*[[:space:]]}"
    [[ $word == --*=* ]] && word="${word#*=}"
    before="${word%"${word##*[=:]}"}"  # what Bash takes for words of their own
    [[ -n $before && $word != "${COMP_WORDS[COMP_CWORD]}" ]] && COMPREPLY=("${COMPREPLY[@]#"$before"}")
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2>/dev/null
    return 0
}
complete -o default -o nosort -F _llmlab_completion llmlab
"""

ZSH = r"""#compdef llmlab
_llmlab() {
    local -a lines whole opened
    local line word
    lines=("${(@f)$(_LLMLAB_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args \
        _TYPER_COMPLETE_ARGS="${(j: :)words[1,CURRENT]}" ${~words[1]} 2>/dev/null)}")
    for line in $lines; do
        word="${line%%$'\t'*}"
        [[ -z $word ]] && continue
        [[ $line == *$'\t'* ]] && line="${word//:/\\:}:${line#*$'\t'}" || line="${word//:/\\:}"
        [[ $word == *= ]] && opened+=("$line") || whole+=("$line")
    done
    if (( $#whole + $#opened )); then
        _describe llmlab whole -- opened -S ''
    else
        _files
    fi
}
if [[ ${funcstack[1]} == _llmlab ]]; then _llmlab "$@"; else compdef _llmlab llmlab; fi
"""

FISH = r"""function __llmlab_complete
    set -l found (env _LLMLAB_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args \
        _TYPER_COMPLETE_ARGS=(commandline -cp | string collect) (commandline -opc)[1] 2>/dev/null \
        | string match -r '.+')
    if test (count $found) -gt 0
        printf '%s\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete --command llmlab --no-files --arguments '(__llmlab_complete)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
SHELLS = "|".join(SCRIPTS)


def completion(
    shell: Annotated[str, typer.Argument(metavar=SHELLS, help="The shell.", autocompletion=one_of(SHELLS))],
) -> None:
    """Print the script that lets a shell complete commands, options, configs, runs and `--set key=value`."""
    if shell not in SCRIPTS:
        raise LabError(f"there is no completion for {shell!r}", remedy=f"use one of {', '.join(SCRIPTS)}")
    typer.echo(SCRIPTS[shell], nl=False)


def is_completing() -> bool:
    """Returns whether a shell asks for completions, and tells typer the shells if so."""
    if VARIABLE not in os.environ:
        return False
    from typer.completion import get_completion_inspect_parameters

    get_completion_inspect_parameters()  # the public function that registers them
    return True
