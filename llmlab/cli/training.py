"""Commands that train: run, tokenizer, merge, quickstart."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from llmlab.cli import completing
from llmlab.cli.options import (
    JsonOption,
    SetOption,
    TrustOption,
    load_for_run,
    print_json,
    show,
    trust_names,
    trust_rewards,
)
from llmlab.errors import LabError
from llmlab.readable import visible


def run(
    config: Annotated[
        Path,
        typer.Argument(
            help="A config file, or the folder of a run to resume.", autocompletion=completing.configs
        ),
    ],
    set_: SetOption = None,
    resume: Annotated[
        str,
        typer.Option(
            help="auto, once (a finished run is left as it is), never, or a checkpoint folder.",
            autocompletion=completing.one_of("auto|once|never"),
        ),
    ] = "auto",
    fresh_optimizer: Annotated[
        bool, typer.Option("--fresh-optimizer", help="Resume with an optimizer that begins anew.")
    ] = False,
    devices: Annotated[
        int | None, typer.Option(help="Devices of this machine that train together, one process each.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(help="Machines that train together.")] = None,
    rendezvous: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where several machines meet: the same on all of them.")
    ] = "",
    job_id: Annotated[str, typer.Option(help="Name of the meeting, the same on all machines.")] = "llmlab",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan.")] = False,
    trust: TrustOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train, or evaluate, as a config says; progress on stderr, the result on stdout."""
    from llmlab.config.evaluation import EvaluationConfig
    from llmlab.config.training import TrainingConfig
    from llmlab.launching.srun import adopt_srun_rank

    changes = list(set_ or [])
    changes += [f"{name}={value}" for name, value in (("devices", devices), ("nodes", nodes)) if value]
    loaded = load_for_run(config, changes)
    if isinstance(loaded, EvaluationConfig):
        from llmlab.cli.evaluate import run_evaluation

        if resume != "auto" or fresh_optimizer or rendezvous:
            option = "resume" if resume != "auto" else "rendezvous" if rendezvous else "fresh-optimizer"
            raise LabError(
                f"`--{option}` is for training; an evaluation continues where it stopped",
                remedy="leave it out",
            )
        run_evaluation(loaded, trust=trust, as_json=as_json, dry_run=dry_run)
        return
    if not isinstance(loaded, TrainingConfig):
        raise LabError(
            "is a model config and cannot be run",
            where=str(config),
            remedy='name it as `model` in a "pretrain" config',
        )
    adopt_srun_rank(loaded, os.environ)
    if rendezvous and loaded.nodes == 1:
        raise LabError("`--rendezvous` is for several machines", remedy="set `nodes`, or leave it out")
    if dry_run:
        from llmlab.planning.plan import make_plan
        from llmlab.training.inputs import check_inputs
        from llmlab.ui.inputs import unchecked_line
        from llmlab.ui.plan import plan_table
        from llmlab.ui.preflight import watched_lines

        watched_lines(loaded)  # a suite or a figure that is not there is refused
        if as_json:
            print_json({"plan": make_plan(loaded), "unchecked": check_inputs(loaded)})
            return
        show(plan_table(make_plan(loaded)))
        for unchecked in check_inputs(loaded):
            typer.echo(visible(unchecked_line(unchecked)))
        return
    from llmlab.config.rollouts import RolloutConfig
    from llmlab.config.suites import watched_tasks
    from llmlab.launching.start import several_processes, start
    from llmlab.libraries import importing, quiet_libraries
    from llmlab.models.hub import HubAnswer
    from llmlab.screen import warn

    with importing():
        from llmlab.evaluation.watching import Evaluator
        from llmlab.training.engine.distributed import destroy_process_group, is_main
        from llmlab.training.engine.job import exit_code
        from llmlab.training.engine.run import run as train
        from llmlab.training.inputs import check_inputs
        from llmlab.training.rewards import weighted
    from llmlab.trust import TRUSTED
    from llmlab.ui.inputs import unchecked_line
    from llmlab.ui.reporters import result_line, run_reporter

    quiet_libraries(warn)
    trust_names(trust)
    rewards = list(loaded.reward_model) if isinstance(loaded, RolloutConfig) else []
    trust_rewards([*rewards, *(reward for task in watched_tasks(loaded) for reward in task.rewards)])
    if several_processes(loaded):
        options = [("--set", change) for change in changes]
        options += [("--trust", name) for name in sorted(TRUSTED)]
        arguments = [str(config), "--resume", resume, *(part for option in options for part in option)]
        arguments += ["--fresh-optimizer"] if fresh_optimizer else []
        code = start(loaded, [*arguments, *(["--json"] if as_json else [])], rendezvous, job_id)
        raise typer.Exit(code)
    for unchecked in check_inputs(loaded):
        if (
            is_main() and unchecked.answer is HubAnswer.UNREACHABLE
        ):  # the libraries will ask again, for a minute
            typer.echo(visible(f"{unchecked_line(unchecked)}; trying anyway"), err=True)
    try:
        reporter = run_reporter()
        evaluator = Evaluator(weighted) if loaded.evaluation_suite else None
        result = train(
            loaded, resume=resume, reporter=reporter, fresh_optimizer=fresh_optimizer, evaluator=evaluator
        )
        if is_main():
            typer.echo(result.to_json() if as_json else visible(result_line(result)))
    finally:
        destroy_process_group()
    raise typer.Exit(exit_code(result))


def tokenizer(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Text to learn from: files, folders, hub ids, llmlab:moby-dick.",
            autocompletion=completing.sources,
        ),
    ],
    vocab_size: Annotated[int, typer.Option(help="Size of the vocabulary.")] = 8192,
    output: Annotated[Path, typer.Option("-o", "--output", help="The tokenizer's folder.")] = Path(
        "checkpoints/tokenizer"
    ),
    as_json: JsonOption = False,
) -> None:
    """Train a byte-level BPE tokenizer on your text."""
    from llmlab.config import SourceConfig
    from llmlab.config.base import validate
    from llmlab.data.packed_text import document_texts
    from llmlab.data.tokenizer import save_tokenizer, train_tokenizer

    parsed = [validate(SourceConfig, source) for source in sources]
    trained = train_tokenizer((text for source in parsed for text in document_texts(source)), vocab_size)
    save_tokenizer(trained, output)
    if as_json:
        print_json({"path": output, "tokens": len(trained)})
    else:
        typer.echo(visible(f"{output}: {len(trained):,} tokens"))


def merge(
    checkpoint: Annotated[
        str,
        typer.Argument(help="A run with an adapter, or its folder.", autocompletion=completing.runs),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for the merged model.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Add an adapter's weights to its base: a plain model folder that needs no adapter."""
    from llmlab.runs.folder import find_model

    find_model(checkpoint)
    from llmlab.libraries import quiet_libraries
    from llmlab.models.merge import merge as merge_adapter
    from llmlab.screen import warn

    quiet_libraries(warn)
    *notes, path = merge_adapter(checkpoint, output)
    if as_json:
        print_json({"path": path, "notes": notes})
        return
    for line in (*notes, path):
        typer.echo(visible(line))


def quickstart(
    minutes: Annotated[float, typer.Option(help="Approximate duration.")] = 5.0,
    model: Annotated[
        str | None,
        typer.Option(
            help="Fine-tune this model with LoRA instead of training a new one.",
            autocompletion=completing.runs,
        ),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for configs, data and runs.")] = Path(
        "checkpoints/quickstart"
    ),
    seed: Annotated[
        int, typer.Option(help="Seed of the weights, the order and the training questions.")
    ] = 42,
    as_json: JsonOption = False,
) -> None:
    """The whole pipeline on what ships: train, fine-tune, align, compare."""
    from llmlab.files import read_object
    from llmlab.quickstart import RECORD_FILE
    from llmlab.quickstart import quickstart as whole_pipeline
    from llmlab.screen import screen

    console = screen()
    out = console if as_json else None
    whole_pipeline(output, minutes=minutes, model=model, console=console, seed=seed, out=out)
    if as_json:
        print_json(read_object(output / RECORD_FILE))
