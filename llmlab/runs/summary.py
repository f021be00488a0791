"""What is left of a run when it ends: its curve, a sample before and after, tokens, memory.

`run.json` holds it as `summary`; the figures before and after stand in its `metrics`.
"""

from __future__ import annotations

from typing import Any

from llmlab.runs.curves import curves, headline, thinned, tokens_read
from llmlab.runs.folder import RunFolder

POINTS = 100  # of a curve in the record
LONGEST = 2_000  # characters of a prompt, and of an answer


def summarize(run: RunFolder, *, memory: dict[str, Any] | None = None) -> dict[str, Any]:
    """Returns the summary of a run, read from its metrics and samples.

    Args:
        run: its folder.
        memory: `measured` and `predicted` bytes at the peak, and the `place` that they are of.
    """
    lines = run.metrics()
    every = curves(lines)
    shown = [name for name in headline(every) if name in every]
    samples = run.samples()
    ends = {"before": samples[0], "after": samples[-1]} if len(samples) > 1 else {}
    if samples and not ends:
        ends = {"before" if samples[0]["step"] == 0 else "after": samples[0]}
    return {
        "tokens": tokens_read(lines),
        "memory": memory or {},
        "curves": {name: thinned(every[name], POINTS) for name in shown},
        "samples": {when: _shortened(sample) for when, sample in ends.items()},
    }


def _shortened(sample: dict[str, Any]) -> dict[str, Any]:
    prompt, answer = (str(sample.get(name, "")) for name in ("prompt", "answer"))
    return {"step": sample["step"], "prompt": prompt[-LONGEST:], "answer": answer[:LONGEST]}
