"""The command that writes a model for other programs: export."""

from __future__ import annotations

from typing import Annotated

import typer

from llmlab.cli.completing import one_of
from llmlab.cli.options import CheckpointArgument, JsonOption, TrustOption, trust_names
from llmlab.readable import visible


def export(
    checkpoint: CheckpointArgument,
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="FORMAT", help="hf, gguf or ollama.", autocompletion=one_of("hf|gguf|ollama")
        ),
    ] = "hf",
    output: Annotated[str | None, typer.Option("--output", "-o", help="The folder that is made.")] = None,
    quantize: Annotated[
        str, typer.Option(metavar="TYPE", help="Of a GGUF file: F32, F16, BF16, Q8_0, Q4_0, Q4_K_M ...")
    ] = "auto",
    dtype: Annotated[
        str,
        typer.Option(help="Of a Hugging Face folder: float32, bfloat16, float16, or auto: as it was saved."),
    ] = "auto",
    alignment: Annotated[
        float | None,
        typer.Option(help="Of a dual head: the plain model at this alignment (0: its backbone)."),
    ] = None,
    trust: TrustOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a model for other programs, and test it by reading it back with them."""
    import json
    from dataclasses import asdict

    from llmlab.config.base import validate
    from llmlab.config.export import ExportOptions
    from llmlab.runs.folder import find_model
    from llmlab.screen import screen, warn

    given = {"to": to, "output": output, "quantize": quantize, "dtype": dtype, "alignment": alignment}
    options = validate(ExportOptions, given)
    find_model(checkpoint)  # a wrong name is refused before torch is loaded
    trust_names(trust)
    from llmlab.libraries import importing, quiet_libraries

    with importing():
        from llmlab.export.export import export as write

    quiet_libraries(warn)
    console = screen()
    done = write(checkpoint, options, lambda text: console.print(text, style="dim"))
    if as_json:
        facts = {**asdict(done), "target": str(done.target)}
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    test = done.outcome
    typer.echo(visible(f"{done.target}: {done.description}"))
    typer.echo(visible(f"read by: {', '.join(done.programs)}"))
    typer.echo(
        f"self-test: {test.prompts} prompts, the largest difference of logits {test.difference:.1e}, the same"
        f" likeliest token at {test.agreement:.1%} of the positions, {test.same_answers:.0%} of the greedy"
        " answers the same"
    )
    for note in done.notes:
        typer.echo(visible(f"note: {note}"))
