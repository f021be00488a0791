"""The screens of an evaluation: how far it is, what it says, and the list of those that there are."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmlab.config.judges import judged_by_reference
from llmlab.evaluation.folder import EvaluationFolder
from llmlab.evaluation.subjects import GENERAL, JUDGE
from llmlab.screen import screen
from llmlab.ui.figures import measured_title

if TYPE_CHECKING:
    from llmlab.evaluation.progress import Progress
    from llmlab.evaluation.seeds import Compared

BAR = 20


@contextmanager
def telling() -> Iterator[Callable[[Progress], None] | None]:
    """Yields a function that shows how far an evaluation is, at a terminal."""
    console = screen()
    if not sys.stderr.isatty():
        yield None
        return
    with console.status("loading the model") as status:

        def tell(at: Progress) -> None:
            far = f"{at.done:,} of {at.total:,} answers" if at.total else "its rows are read"
            status.update(f"{at.model} · {at.source}: {far}")

        yield tell


def figures_json(folder: EvaluationFolder) -> list[dict[str, Any]]:
    """Returns the figures of the evaluated model, an object a source, with intervals and differences."""
    record = folder.record
    rows = []
    judges = [
        {"judge": one["model"], "labels": one["source"], "rows": one["rows"], "figures": one["figures"]}
        for one in record.get("results") or ()
        if one["role"] == JUDGE
    ]
    for one in _of_the_model(record):
        figures = one["figures"]
        between = [part for part in record["differences"] if part["source"] == one["source"]]
        rows.append(
            {
                "source": one["source"],
                "rows": one["rows"],
                **{name: entry["value"] for name, entry in figures.items()},
                **one["reading"],
                **{name: one[name] for name in ("labels", "confusion", "reliability") if name in one},
                "intervals": {name: [entry["low"], entry["high"]] for name, entry in figures.items()},
                **({"differences": between} if between else {}),
                **({"judges": judges} if judges and one["measure"] == "judged" else {}),
                "evaluation": str(folder.path),
            }
        )
    return rows


def evaluated(folder: EvaluationFolder) -> RenderableType:
    """Returns what an evaluation says: figures, differences, forgetting, calibration, the gate."""
    record = folder.record
    own = _of_the_model(record)
    if not own:
        return Text(f"{folder.path}: {folder.status}, no figures yet")
    others = {
        (one["source"], name): entry["value"]
        for one in record["results"]
        if one["role"] == "against"
        for name, entry in one["figures"].items()
    }
    parts: list[RenderableType] = [_figures_table(record, own, others)]
    parts += _mean_over_sources(own)
    if record.get("differences"):
        parts += differences(record)
    parts += [
        Text(line, style="yellow" if line.endswith(": worse") else "dim") for line in forgetting_lines(record)
    ]
    parts += [Text(f"{name}: {text}", style="dim") for name, text in judge_lines(record)]
    for one in own:
        parts += _about_source(one)
    if gate := record.get("gate"):
        parts += [Text(line, style="red") for line in gate["breaches"]]
        if gate["passed"]:
            parts.append(Text("the gate holds", style="green"))
    parts.append(Text(f"saved in {folder.path}", style="dim"))
    return Group(*parts)


def _of_the_model(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in record.get("results") or () if one["role"] == "model" and not _is_general(one)]


def _is_general(one: dict[str, Any]) -> bool:
    return bool(one["source"] == GENERAL)


def _figures_table(
    record: dict[str, Any], own: list[dict[str, Any]], others: dict[tuple[str, str], float]
) -> Table:
    models = {one["role"]: one["name"] for one in record["models"]}
    table = Table("source", "rows", "figure", title_justify="left", title=models["model"])
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("95 % interval", no_wrap=True)
    if others:
        table.add_column("the other", justify="right", no_wrap=True)
    for one in own:
        name, rows = one["source"], f"{one['rows']:,}"
        for figure, entry in one["figures"].items():
            cells = [name, rows, measured_title(figure), f"{entry['value']:.4f}", interval(entry)]
            if others:
                there = others.get((one["source"], figure))
                cells.append("" if there is None else f"{there:.4f}")
            table.add_row(*cells)
            name = rows = ""
    return table


def interval(entry: dict[str, Any]) -> str:
    """Returns the 95 % interval of a figure in words; with repeats also the spread over seeds."""
    text = "" if entry.get("low") is None else f"{entry['low']:.4f} to {entry['high']:.4f}"
    if seeds := entry.get("seeds"):
        text += f" (spread of {len(seeds['values'])} seeds {seeds['spread']:.4f})"
    return text


def _mean_over_sources(own: list[dict[str, Any]]) -> Iterator[Text]:
    """Yields the mean and spread of a figure over sources, where several have it."""
    for figure in dict.fromkeys(name for one in own for name in one["figures"]):
        values = [one["figures"][figure]["value"] for one in own if figure in one["figures"]]
        if len(values) > 1:
            mean, spread = np.mean(values), np.std(values)
            yield Text(
                f"mean of {measured_title(figure)} over {len(values)} sources {mean:.4f}, spread {spread:.4f}"
            )


def differences(record: dict[str, Any]) -> Iterator[RenderableType]:
    """Yields what the model has more or less than the other one, and how many rows it takes to tell."""
    other = next(one["name"] for one in record["models"] if one["role"] == "against")
    table = Table("source", "figure", title=f"less that of {other}", title_justify="left")
    table.add_column("difference", justify="right", no_wrap=True)
    table.add_column("95 % interval", no_wrap=True)
    table.add_column("p", no_wrap=True)
    table.add_column("", no_wrap=True)
    name, unclear = "", []
    for one in record["differences"]:
        span = "" if one["low"] is None else f"{one['low']:+.3f} to {one['high']:+.3f}"
        word = one["words"] if " " not in one["words"] else ""
        cells = [one["source"] if one["source"] != name else "", measured_title(one["figure"])]
        cells += [f"{one['difference']:+.4f}", span, p_in_words(one["p"]), word]
        table.add_row(*cells, style="bold" if word else "")
        name = one["source"]
        if not word:
            unclear.append(f"{name}, {measured_title(one['figure'])}: {one['words']}")
    yield table
    yield from (Text(line, style="dim") for line in unclear)


def p_in_words(value: float) -> str:
    """Returns a p-value as it is shown."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def forgetting_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """Yields the loss on a general text beside that of the parent; of another tokenizer, bits per byte."""
    for one in (record.get("forgetting") or ())[:1]:
        values = [
            entry["figures"][one["figure"]]["value"]
            for name in (one["against"], one["model"])
            for entry in record["results"]
            if _is_general(entry) and entry["model"] == name
        ]
        if len(values) == 2:
            before, after = values
            yield (
                f"forgetting: {measured_title(one['figure'])} on a general text {before:.4f} before"
                f" ({one['against']}), {after:.4f} after: {one['words']}"
            )


def judge_lines(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields which judge gave the verdicts, and how far it agrees with labels, or that nobody has measured
    it.
    """
    judged = [one for one in record.get("results") or () if one["measure"] == "judged"]
    checks = [one for one in record.get("results") or () if one["role"] == JUDGE]
    for one in checks:
        figures = one["figures"]
        text = f"{one['model']} agrees with {figures['accuracy']['value']:.1%}"
        labels = str(one["source"]).removeprefix("judge on ")
        text += f" ({_shares(figures['accuracy'])}) of {one['rows']:,} labels of {labels}"
        if "kappa" in figures:
            text += f", kappa {figures['kappa']['value']:.2f}"
        yield "judge", text
    config = record.get("config") or {}
    named = config.get("judge")
    if judged and not checks and named and judged_by_reference(str(named)) is None:
        yield (
            "judge",
            f"{named}, whose agreement with labels was not measured: name some with `judge_check`",
        )


def _shares(entry: Mapping[str, Any]) -> str:
    """Returns an interval of a share in percent."""
    return "" if entry.get("low") is None else f"{entry['low']:.1%} to {entry['high']:.1%}"


def _about_source(one: dict[str, Any]) -> Iterator[RenderableType]:
    if one.get("confusion"):
        labels = [*one["labels"], "other"]
        confusion = Table("label \\ prediction", *labels, title=one["source"], title_justify="left")
        for label, row in zip(one["labels"], one["confusion"], strict=True):
            confusion.add_row(label, *(f"{count:,}" for count in row))
        yield confusion
    if one.get("reliability"):
        yield reliability_table(one)
    if how := one["reading"]:
        step = f" every {how['stride']:,}" if "stride" in how else ""
        share = f"{how['share_read']:.1%} of {how['tokens']:,} tokens read"
        yield Text(f"{one['source']}: windows of {how['window']:,} tokens{step}, {share}", style="dim")
    yield from (Text(note, style="yellow") for note in one["notes"])


def reliability_table(one: dict[str, Any]) -> Table:
    """Returns how sure a classifier was and how often it was right; each bar is the share that was right, `|`
    where it would be if the probabilities were what they say.
    """
    table = Table("probability", "answers", "mean", "right", title_justify="left")
    table.title = f"{one['source']}: how often it is right when it says how sure it is"
    table.add_column("0 % to 100 % right", no_wrap=True)
    for each in one["reliability"]:
        bar = list("█" * round(each["accuracy"] * BAR) + " " * (BAR - round(each["accuracy"] * BAR)))
        bar[min(BAR - 1, int(each["confidence"] * BAR))] = "|"
        span = f"{each['low']:.0%} to {each['high']:.0%}"
        table.add_row(
            span, f"{each['count']:,}", f"{each['confidence']:.1%}", f"{each['accuracy']:.1%}", "".join(bar)
        )
    return table


def over_seeds_view(compared: Compared) -> RenderableType:
    """Returns figures over several evaluations: mean, interval over seeds, spread, each value."""
    table = Table("source", "figure", title=f"{len(compared.names)} evaluations", title_justify="left")
    for column in ("mean", "95 % over seeds", "spread"):
        table.add_column(column, no_wrap=True)
    table.add_column("values")
    source = ""
    for one in compared.figures:
        ends = "" if one.low is None else f"{one.low:.4f} to {one.high:.4f}"
        values = " ".join(f"{value:.3f}" for value in one.values)
        name = one.source if one.source != source else ""
        table.add_row(name, measured_title(one.figure), f"{one.mean:.4f}", ends, f"{one.spread:.4f}", values)
        source = one.source
    seeds = ", ".join(
        f"{name} (seed {'?' if seed is None else seed})"
        for name, seed in zip(compared.names, compared.seeds, strict=True)
    )
    parts: list[RenderableType] = [table, Text(f"in this order: {seeds}", style="dim")]
    if compared.differing:
        words = f"their training differs in more than the seed: {', '.join(compared.differing)}"
        parts.append(Text(words, style="yellow"))
    return Group(*parts)


def evaluations_table(folders: list[EvaluationFolder]) -> RenderableType:
    """Returns the evaluations that there are, newest first."""
    if not folders:
        return Text("no evaluations yet: `llmlab evaluate MODEL` makes one")
    table = Table("evaluation", "model", "status", "begun", "figures", title_justify="left")
    for folder in folders:
        one = folder.summary()
        begun = one["started"]
        try:
            begun = f"{datetime.fromisoformat(begun).astimezone():%d %b %H:%M}"
        except ValueError:
            begun = ""
        first: dict[str, str] = {}
        for name, value in one["figures"].items():
            source, figure = name.split("/", 1)
            if source != GENERAL:
                first.setdefault(source, f"{source} {value:.4g} ({measured_title(figure)})")
        table.add_row(one["name"], one["model"], one["status"], begun, "\n".join(first.values()))
    return table
