"""Commands that publish a model: card, push."""

from __future__ import annotations

from typing import Annotated

import typer

from llmlab.cli import completing
from llmlab.cli.options import JsonOption, print_json
from llmlab.errors import LabError
from llmlab.readable import visible

ModelArgument = Annotated[
    str,
    typer.Argument(help="A run, a model folder or a GGUF file.", autocompletion=completing.runs),
]
LicenseOption = Annotated[
    str,
    typer.Option("--license", metavar="ID", help="Licence of the model, as the hub names it: apache-2.0."),
]


def card(model: ModelArgument, license_: LicenseOption = "", as_json: JsonOption = False) -> None:
    """Print the model card: data, method, settings, held-out figures, how to use it, how to repeat it."""
    from llmlab.export.card import model_card
    from llmlab.export.facts import model_facts

    text = model_card(model_facts(model), license_id=license_)
    if as_json:
        print_json({"card": text})
    else:
        typer.echo(visible(text), nl=False)


def push(
    model: ModelArgument,
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository on the hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    revision: Annotated[str, typer.Option(help="The branch to push to; made where there is none.")] = "",
    license_: LicenseOption = "",
    as_is: Annotated[
        bool, typer.Option("--as-is", help="Push a model that only llmlab loads without exporting it.")
    ] = False,
    replace_card: Annotated[
        bool, typer.Option("--replace-card", help="Replace a README.md on the hub that was edited there.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be uploaded.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Upload a model with its card to the Hugging Face Hub; a push that broke off continues where it was."""
    import gc
    import sys

    from llmlab.export.facts import model_facts
    from llmlab.export.hub import Pushed, PushOptions, prepare_push, progress_bars
    from llmlab.export.hub import push as upload
    from llmlab.export.token import find_token
    from llmlab.ui.units import size

    def note(line: str) -> None:
        typer.echo(visible(line), err=True)

    bars = sys.stderr.isatty()
    if bars:
        progress_bars()
    options = PushOptions(repository, private, revision, license_, as_is, replace_card)
    outgoing = prepare_push(model_facts(model), options)
    readme = "the card of `llmlab card`" if outgoing.card else "the README.md of the folder"
    note(f"{len(outgoing.files)} files and {readme}, {size(outgoing.size)}")
    if dry_run and as_json:
        print_json({"files": {name: path.stat().st_size for name, path in outgoing.files.items()}})
    elif dry_run:
        for name, path in outgoing.files.items():
            typer.echo(visible(f"{name}  {size(path.stat().st_size)}"))
    if outgoing.lacks_tokenizer:
        note("warning: there is no tokenizer in this folder, so nobody can use the model without yours")
    if outgoing.left_out:
        note(f"not uploaded: {', '.join(outgoing.left_out)}")
    if dry_run:
        return
    token = find_token()
    pushed: Pushed | LabError
    try:
        pushed = upload(outgoing, options, token, note=note)
    except LabError as error:  # a new one: this one holds on to the bars, which would be drawn below it
        pushed = LabError(error.what, where=error.where, remedy=error.remedy, exit_code=error.exit_code)
    if bars:
        gc.collect()  # closes the bars of an upload that failed
        typer.echo("\r\x1b[J", nl=False, err=True)  # what several bars at once leave below the last one
    if isinstance(pushed, LabError):
        raise pushed
    if pushed.readme == "kept":
        note("the README.md on the hub was edited there and stays as it is (--replace-card replaces it)")
    if as_json:
        print_json({"url": pushed.url, "readme": pushed.readme})
    else:
        typer.echo(visible(pushed.url))
