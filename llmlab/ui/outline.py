"""What will be trained on what, in lines."""

from __future__ import annotations

from collections.abc import Iterator

from llmlab.training.engine.reporter import Outline
from llmlab.ui.plan import forecast_lines

# how the attention kernel was chosen
CHOSEN = {"config": "", "auto": " (auto)", "selftest": " (auto: the fastest here)"}


def outline_lines(outline: Outline) -> Iterator[tuple[str, bool]]:
    """Yields each line about what will be trained on what, and whether it deserves attention."""
    trained, total = outline.trained_parameters, outline.parameters
    share = f", {trained:,} trained ({trained / total:.2%})" if trained != total else ""
    chosen = CHOSEN[outline.attention_by]
    how = f"on {outline.device} in {outline.precision}, {outline.attention} attention{chosen}"
    batch = f"effective batch {outline.batch} (batch x accumulation x devices)"
    yield f"{total:,} parameters{share} {how}; {batch}", False
    facts = (
        f"{name.replace('_', ' ')} {value:,}" if isinstance(value, int) else f"{name} {value}"
        for name, value in outline.data.items()
    )
    yield f"data: {', '.join(facts)}", False
    for name, read, held_out in outline.validation:
        which = f"all {held_out:,}" if read == held_out else f"the first {read:,} of {held_out:,}"
        of = f" of {name}" if len(outline.validation) > 1 else ""
        yield f"validation: {which} held-out rows{of}", False
    if suite := outline.suite:
        when = f"before the first step, every {suite.every:,} steps, after the last one"
        yield f"evaluation: {suite.name}, {suite.answers:,} answers; {when}", False
    yield from ((note, True) for note in outline.notes)
    if outline.mixture:
        yield "mixture: " + ", ".join(f"{name} {part:.1%}" for name, part in outline.mixture), False
    yield from forecast_lines(outline.plan)
