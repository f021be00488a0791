"""What stands on the page about an evaluation: figures, differences, reliability plots, answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmlab.config.evaluation import PARENT
from llmlab.evaluation.folder import EvaluationFolder
from llmlab.evaluation.subjects import JUDGE
from llmlab.export.facts import public, public_name
from llmlab.statistics import of_share
from llmlab.ui.evaluation import forgetting_lines, interval, judge_lines, p_in_words
from llmlab.ui.figures import measured_title
from llmlab.ui.report.charts import Bar, colour, dash, reliability_chart
from llmlab.ui.report.pages import Chart, Headline, Key, Page, Sample, Table, said
from llmlab.ui.units import duration

SAMPLES, HEADLINES = 6, 4
LONGEST = 1500  # characters of a sample's part


def evaluation_page(folder: EvaluationFolder) -> Page:
    """Returns the page about an evaluation; folders of this machine are left out of its names."""
    record = public(folder.record)
    results = [one for one in record.get("results") or () if one["role"] != "parent"]
    models = {one["role"]: public_name(str(one["name"])) for one in record.get("models") or ()}
    tables = [_figures(results, models), *_differences(record, models), *_judges(results)]
    tables += [Table("The evaluation", (), tuple(_facts(record, folder, models)))]
    return Page(
        title=folder.name,
        subtitle=f"Evaluation · {folder.status}",
        headlines=tuple(_headlines(results, record["config"].get("against") == PARENT)),
        warnings=tuple(_warnings(record)),
        charts=tuple(_charts(results, models)),
        charts_heading="Reliability",
        samples=tuple(_samples(folder, models)),
        tables=tuple(table for table in tables if table.rows),
        repeat=("llmlab run config.json",),
        config=json.dumps(
            {name: value for name, value in record["config"].items() if value not in (None, [])},
            indent=2,
            ensure_ascii=False,
        ),
    )


def _headlines(results: Sequence[Mapping[str, Any]], from_parent: bool) -> Iterator[Headline]:
    """Yields the first figure of each source; beside it what it was before training, where that is known."""
    for one in [one for one in results if one["role"] == "model"][:HEADLINES]:
        there = _beside(results, one) if from_parent else {}
        for name, entry in list(one["figures"].items())[:1]:
            before = f"{there[name]['value']:.4g}" if name in there else ""
            yield Headline(f"{measured_title(name)}, {one['source']}", before, f"{entry['value']:.4g}")


def _beside(results: Sequence[Mapping[str, Any]], one: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the figures of the other model on the same source; none where there is no other."""
    same = (o["figures"] for o in results if o["role"] == "against" and o["source"] == one["source"])
    return next(same, {})


def _warnings(record: Mapping[str, Any]) -> Iterator[str]:
    yield from (record.get("gate") or {}).get("breaches") or ()


def _figures(results: Sequence[Mapping[str, Any]], models: Mapping[str, str]) -> Table:
    both = "against" in models
    rows: list[tuple[str, ...]] = []
    for one in [one for one in results if one["role"] == "model"]:
        name, count = str(one["source"]), f"{one['rows']:,}"
        there = _beside(results, one)
        for figure, entry in one["figures"].items():
            cells = [name, count, measured_title(figure), f"{entry['value']:.4f}", interval(entry)]
            if both:
                other = there.get(figure)
                cells += [f"{other['value']:.4f}", interval(other)] if other else ["", ""]
            rows.append(tuple(cells))
            name = count = ""
    header = (
        "source",
        "rows",
        "figure",
        "value",
        "95 % interval",
        *(("the other", "95 % interval") if both else ()),
    )
    notes = [f"the other: {models['against']}"] if both else []
    notes += [str(note) for one in results if one["role"] == "model" for note in one["notes"]]
    return Table("Figures", header, tuple(rows), tuple(notes))


def _differences(record: Mapping[str, Any], models: Mapping[str, str]) -> Iterator[Table]:
    rows = [
        (
            str(one["source"]),
            measured_title(one["figure"]),
            f"{one['difference']:+.4f}",
            "" if one["low"] is None else f"{one['low']:+.3f} to {one['high']:+.3f}",
            p_in_words(one["p"]),
            str(one["words"]),
        )
        for one in record.get("differences") or ()
    ]
    if rows:
        header = ("source", "figure", "difference", "95 % interval", "p", "")
        heading = f"Less that of {models.get('against', 'the other')}"
        yield Table(heading, header, tuple(rows), tuple(forgetting_lines(record)))
    elif lines := list(forgetting_lines(record)):
        yield Table("Forgetting", (), (("loss", lines[0]),))


def _judges(results: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """Yields the agreement of each judge with labels, a table a judge and source."""
    for one in [one for one in results if one["role"] == JUDGE]:
        rows = [
            (measured_title(name), f"{entry['value']:.4f}", interval(entry))
            for name, entry in one["figures"].items()
        ]
        labels = str(one["source"]).removeprefix("judge on ")
        heading = f"{public_name(str(one['model']))} as a judge, on {one['rows']:,} labels of {labels}"
        yield Table(heading, ("figure", "value", "95 % interval"), tuple(rows))


def _facts(
    record: Mapping[str, Any], folder: EvaluationFolder, models: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    yield from ((role, name) for role, name in models.items())
    if started := record.get("started"):
        yield "begun", str(started)
    if seconds := record.get("seconds"):
        yield "time", duration(seconds)
    yield from judge_lines(record)
    for name, version in {"llmlab": record.get("llmlab"), **(record.get("packages") or {})}.items():
        yield str(name), str(version)


def _charts(results: Sequence[Mapping[str, Any]], models: Mapping[str, str]) -> Iterator[Chart]:
    """Yields a reliability plot of each classification by score, of both models where there are two."""
    for number, one in enumerate(results):
        if one["role"] == "model" and one.get("reliability"):
            same = [o for o in results if o["role"] == "against" and o["source"] == one["source"]]
            yield _reliability([one, *(o for o in same if o.get("reliability"))], models, str(number))


def _reliability(found: Sequence[Mapping[str, Any]], models: Mapping[str, str], salt: str) -> Chart:
    series = [[_bar(each) for each in one["reliability"]] for one in found]
    names = [models.get(str(one["role"]), str(one["model"])) for one in found]
    errors = [
        f"{name}: calibration error {entry['value']:.3f} ({entry['low']:.3f} to {entry['high']:.3f})"
        if (entry := one["figures"]["calibration_error"])["low"] is not None
        else f"{name}: calibration error {entry['value']:.3f}"
        for name, one in zip(names, found, strict=True)
    ]
    keys = tuple(Key(text, colour(place), dash(place)) for place, text in enumerate(errors))
    rows = [
        (
            name,
            f"{one.low:.0%} to {one.high:.0%}",
            f"{one.count:,}",
            f"{one.confidence:.1%}",
            f"{one.accuracy:.1%}",
            f"{one.ends[0]:.1%} to {one.ends[1]:.1%}",
        )
        for name, bars in zip(names, series, strict=True)
        for one in bars
    ]
    heading = f"{found[0]['source']}: how often it is right when it says how sure it is"
    header = ("model", "probability", "answers", "mean", "right", "95 % interval")
    return Chart(
        heading,
        reliability_chart(series, salt=f"reliability-{salt}"),
        keys,
        f"{heading}; {'; '.join(errors)}",
        (header, *rows),
    )


def _bar(each: Mapping[str, Any]) -> Bar:
    ends = of_share(round(each["accuracy"] * each["count"]), each["count"])
    shown = (float(ends.low or 0), float(1 if ends.high is None else ends.high))
    return Bar(each["low"], each["high"], each["count"], each["confidence"], each["accuracy"], shown)


def _samples(folder: EvaluationFolder, models: Mapping[str, str]) -> Iterator[Sample]:
    """Yields the first answers of the model to its sources, in turn."""
    by_source: dict[str, list[dict[str, Any]]] = {}
    name = (folder.record.get("models") or [{}])[0].get("name")
    for one in folder.answers():
        if one["model"] == name and one["measure"] not in ("text", "conversation", "benchmark"):
            by_source.setdefault(one["source"], []).append(one)
    each = max(1, SAMPLES // max(1, len(by_source)))
    for source, answers in by_source.items():
        for one in sorted(answers, key=lambda one: int(one["row"]))[:each]:
            prompt = one["prompt"] if isinstance(one["prompt"], str) else one["prompt"][-1]["content"]
            worth = one.get("verdict") or ("right" if one["score"] == 1 else f"reference: {one['reference']}")
            yield Sample(
                f"{source}, row {one['row']} ({worth})",
                said(str(prompt)[-LONGEST:]),
                said(str(one["answer"])[:LONGEST]),
            )
