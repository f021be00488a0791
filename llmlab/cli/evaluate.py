"""The commands that measure a model: evaluate, and evaluations, which shows what was measured."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmlab.cli import completing
from llmlab.cli.options import (
    CheckpointArgument,
    DeviceOption,
    DtypeOption,
    JsonOption,
    LoadInOption,
    TrustOption,
    parse_changes,
    print_json,
    show,
    trust_names,
    trust_rewards,
)
from llmlab.errors import LabError
from llmlab.readable import visible

if TYPE_CHECKING:
    from llmlab.config.evaluation import EvaluationConfig
    from llmlab.evaluation.folder import EvaluationFolder


def evaluate(
    checkpoint: CheckpointArgument,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="SOURCE",
            help="Dataset to evaluate on; repeat it for more.",
            autocompletion=completing.sources,
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A named list of tasks, or a file of your own; default: standard, without --task.",
            autocompletion=completing.suites,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Another model on the same rows, or `parent`: the differences, with p-values.",
            autocompletion=completing.runs,
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Options of the sources (split, max_rows ...) or of the evaluation (temperature ...).",
            autocompletion=completing.changes,
        ),
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            help="score or generate: how a label or an answer is found.",
            autocompletion=completing.one_of("score|generate"),
        ),
    ] = "score",
    reward: Annotated[
        list[str] | None,
        typer.Option(metavar="REWARD", help="Generate answers and score them with this reward."),
    ] = None,
    harness: Annotated[
        str | None,
        typer.Option(metavar="TASKS", help="Benchmarks of lm-eval by name, with commas: arc_easy,hellaswag."),
    ] = None,
    few_shot: Annotated[
        int | None,
        typer.Option(min=0, help="Solved examples before each question; default: as the benchmark says."),
    ] = None,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Ask benchmarks as a conversation.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="The first rows of each benchmark; default: all.")
    ] = None,
    tasks_folder: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Benchmarks of your own: YAML files for lm-eval.")
    ] = None,
    gate: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Bounds of figures; one that is broken ends with code 1."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Folder name below evaluations/.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Also write the answers as a table.")] = False,
    trust: TrustOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per batch.")] = 16,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Tokens per window or conversation; default: 1,024, or the context length if it is shorter.",
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens between the starts of two windows; default: half a window."),
    ] = None,
    load_in: LoadInOption = "none",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure a model: labels, answers, loss of texts, preferences, benchmarks; each answer is kept."""
    if by not in ("score", "generate"):
        raise LabError(f"`--by` {by!r} is not score or generate")
    if reward and by != "score":
        raise LabError("with `--reward` answers are always generated", remedy="leave out `--by`")
    if reward and (max_length or stride):
        option = "max-length" if max_length else "stride"
        raise LabError(
            f"`--{option}` applies to texts and conversations; these are prompts that are answered",
            remedy="leave it out",
        )
    from llmlab.config.base import validate
    from llmlab.config.evaluation import EvaluationConfig

    sources, changes = _sources(task or [], set_)
    given: dict[str, Any] = {
        "model": checkpoint,
        "against": against,
        "suite": suite,
        "datasets": sources,
        "rewards": list(reward or []),
        "harness": harness,
        "few_shot": few_shot,
        "limit": limit,
        "tasks_folder": str(tasks_folder) if tasks_folder else None,
        "gate": str(gate) if gate else None,
        "name": name,
        "max_length": max_length,
        "stride": stride,
        **changes,
    }
    options = {"by": by, "csv": csv, "batch_size": batch_size, "chat_template": chat_template}
    options |= {"load_in": load_in, "device": device, "dtype": dtype}
    values = {key: value for key, value in given.items() if value not in (None, [])}
    run_evaluation(validate(EvaluationConfig, {**options, **values}), trust=trust, as_json=as_json)


def _sources(lines: list[str], set_: list[str] | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Returns the sources that lines name, with the changes that are theirs, and the changes of the
    evaluation.
    """
    from llmlab.cli.options import option_changes, source_config
    from llmlab.config.evaluation import EvaluationConfig

    of_evaluation = {*EvaluationConfig.model_fields}
    pairs = set_ or []
    own = [pair for pair in pairs if pair.partition("=")[0].strip() in of_evaluation]
    others = [pair for pair in pairs if pair not in own]
    if others and not lines:
        first = next(iter(parse_changes(others)))
        raise LabError(
            f"`--set {first}` is an option of a source, and none is named",
            remedy="name it with --task; the sources of a suite are as its file says",
        )
    sources = [source_config(line, others or None).model_dump(exclude_unset=True) for line in lines]
    return sources, option_changes(EvaluationConfig, own)


def run_evaluation(
    config: EvaluationConfig, *, trust: list[str] | None, as_json: bool, dry_run: bool = False
) -> None:
    """Evaluates as a config says, shows the result, and ends with code 1 where the gate is broken.

    Args:
        config: of the evaluation.
        trust: names of code that may run.
        as_json: whether the result is one line of JSON.
        dry_run: whether only what it would read is looked at.

    Raises:
        LabError: when something cannot be used, or a figure is beyond its bound.
    """
    from llmlab.config.gate import load_gate
    from llmlab.config.suites import tasks_of, with_benchmarks
    from llmlab.evaluation.benchmarks import check_benchmarks
    from llmlab.models.resolve import with_newest
    from llmlab.runs.folder import find_model

    config = with_benchmarks(with_newest(config))
    rewards = [reward for task in tasks_of(config) for reward in task.rewards]
    if config.gate:
        load_gate(config.gate)
    trust_names(trust)
    check_benchmarks(config)
    others = [config.against] if config.against not in (None, "parent") else []
    for one in [config.model, *others, *(reward.name for reward in rewards if reward.kind == "model")]:
        find_model(str(one))  # a wrong name is refused before torch is loaded
    if dry_run:
        from llmlab.screen import LabConsole
        from llmlab.ui import preflight

        if as_json:
            print_json(preflight.checked(config))
        else:
            preflight.show(config, LabConsole())
        return
    from llmlab.libraries import importing, quiet_libraries
    from llmlab.screen import warn

    with importing():
        from llmlab.evaluation.run import evaluate as evaluate_config
        from llmlab.evaluation.run import passing
        from llmlab.training.rewards import refuse_untrusted, weighted
        from llmlab.ui.evaluation import evaluated, figures_json, telling
    quiet_libraries(warn)
    if rewards:
        trust_rewards(rewards)
        refuse_untrusted(rewards)
    with telling() as tell:
        folder: EvaluationFolder = evaluate_config(config, weighted, tell)
    with passing(folder):
        if as_json:
            print_json(figures_json(folder))
        else:
            show(evaluated(folder))


def evaluations(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="An evaluation, to show its figures; several, for mean and spread over seeds.",
            autocompletion=completing.evaluations,
        ),
    ] = None,
    csv: Annotated[
        bool, typer.Option("--csv", help="Write the answers of that evaluation as a table.")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Write a page about that evaluation, report.html in its folder.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List what was evaluated, show one evaluation again, or several with mean and spread."""
    from llmlab.evaluation.folder import all_evaluations, find_evaluation

    if (csv or report) and len(names or ()) != 1:
        option = "`--csv` writes the answers of" if csv else "`--report` writes a page about"
        raise LabError(f"{option} one evaluation", remedy="name it")
    folders = [find_evaluation(name) for name in names or ()]
    if csv or report:
        _write(folders[0], csv, report, as_json)
    elif as_json:
        print_json(_evaluations_json(folders))
    else:
        from llmlab.ui import evaluation as view

        if len(folders) > 1:
            from llmlab.evaluation.seeds import over_seeds

            show(view.over_seeds_view(over_seeds(folders)))
        else:
            show(view.evaluated(folders[0]) if folders else view.evaluations_table(all_evaluations()))


def _write(folder: EvaluationFolder, csv: bool, report: bool, as_json: bool) -> None:
    """Writes the answers as a table, or the page, or both, and says where."""
    paths = [folder.write_csv()] if csv else []
    if report:
        from llmlab.ui.report import REPORT, evaluation_page, write_page

        paths.append(write_page(evaluation_page(folder), folder.path / REPORT))
    if as_json:
        print_json({"path": paths[-1]})
    else:
        typer.echo(visible("\n".join(map(str, paths))))


def _evaluations_json(folders: list[EvaluationFolder]) -> Any:
    """Returns the list of all evaluations, the record of one, or the figures of several over seeds."""
    if len(folders) == 1:
        return folders[0].record
    if folders:
        from llmlab.evaluation.seeds import over_seeds

        return asdict(over_seeds(folders))
    from llmlab.evaluation.folder import all_evaluations

    return [one.summary() for one in all_evaluations()]
