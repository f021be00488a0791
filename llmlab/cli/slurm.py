"""The command that writes the job of a cluster: slurm."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmlab.cli import completing
from llmlab.cli.options import JsonOption, SetOption, load, print_json
from llmlab.errors import LabError
from llmlab.readable import visible

if TYPE_CHECKING:
    from llmlab.config.slurm import SlurmConfig
    from llmlab.config.training import TrainingConfig
    from llmlab.launching.slurm import SlurmJob


def slurm(
    configs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Config files, or folders of runs to resume; several: an array.",
            autocompletion=completing.configs,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write the script to; left out, stdout.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="1,2,3", help="A run for each of these seeds: an array.")
    ] = None,
    after: Annotated[str, typer.Option(metavar="JOBID", help="Start when that job has ended well.")] = "",
    set_: SetOption = None,
    ask: Annotated[
        bool, typer.Option("--ask", help="Ask about the cluster again, and keep the answers.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep what `--set` changes for the next time.")
    ] = False,
    submit: Annotated[
        bool, typer.Option("--submit", help="Hand the job to the queue; prints its number.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the Slurm job of a config: it saves when it is preempted, and resumes by itself."""
    options = _options(set_ or [], ask=ask, keep=keep)
    if not configs:
        if ask or keep:
            return
        raise LabError("no config is named", remedy="llmlab slurm CONFIG -o job.sh")
    from llmlab.launching import sbatch_script
    from llmlab.launching.slurm import python_of
    from llmlab.launching.slurm import submit as hand_in

    job = _job(options, configs, seeds, after)
    text = sbatch_script.script(job, python_of(options))
    if output:
        from llmlab.files import write_text_atomically

        write_text_atomically(output, text)
        typer.echo(visible(f"{output}: {_in_words(job)}"), err=True)
    if output or submit:
        _make_log_folder(job)
    number = ""
    if submit:
        number = hand_in(text, output)
        if not as_json:
            typer.echo(number)
        log = job.log.replace("%x", job.name).replace("%j", number).replace("%A", number)
        typer.echo(
            visible(f"squeue -j {number} · tail -F {log.replace('%a', '0')} · scancel {number}"), err=True
        )
    if as_json:
        print_json({"job": number or None, "path": output, "script": text})
    elif not output and not submit:
        typer.echo(text, nl=False)


def _options(set_: list[str], *, ask: bool, keep: bool) -> SlurmConfig:
    """Returns what is known of the cluster; asks at a terminal where nothing is kept."""
    from llmlab.config.slurm import SlurmConfig, kept, with_changes
    from llmlab.config.slurm import keep as write

    try:
        answers = kept()
    except LabError:
        if not ask:
            raise
        answers = None
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if ask and not at_terminal:
        raise LabError("stdin is not a terminal", remedy="--set KEY=VALUE --keep keeps answers without one")
    options = with_changes(answers or SlurmConfig(), set_)
    if ask or (answers is None and at_terminal and not set_):
        from llmlab.ui.forms import fill_in

        filled_in = fill_in(options)
        if not isinstance(filled_in, SlurmConfig):
            raise typer.Exit(130)
        options, keep = filled_in, True
    if keep:
        typer.echo(visible(f"kept in {write(options)}"), err=True)
    elif answers is None:
        typer.echo(
            "nothing is known of the cluster: the defaults are used (--ask, or --set and --keep)", err=True
        )
    return options


def _job(options: SlurmConfig, paths: list[Path], seeds: str | None, after: str) -> SlurmJob:
    """Returns the job of these configs; says what may go wrong."""
    from llmlab.launching.slurm import elements_of, job_of, unshared
    from llmlab.training.engine.run_dir import candidate_folders

    configs = [_config(path, after) for path in paths]
    folders = [next(candidate_folders(config, "auto")) for config in configs]
    elements = elements_of(list(zip(paths, configs, folders, strict=True)), _seeds(seeds))
    job = job_of(options, configs, elements, after)
    _refuse_finished(job, configs)
    for folder in unshared(job):
        typer.echo(
            visible(f"warning: {folder} is not in the shared folder {options.shared_folder}"), err=True
        )
    return job


def _config(path: Path, after: str) -> TrainingConfig:
    from llmlab.config.training import TrainingConfig
    from llmlab.models.resolve import with_newest
    from llmlab.training.inputs import check_inputs

    config = load(path, None)
    if not isinstance(config, TrainingConfig):
        raise LabError(
            f"is {'an evaluation' if config.kind == 'evaluation' else 'a model config'} and no training",
            where=str(path),
            remedy="name a training config; `llmlab evaluate` can stand in the script of a job",
        )
    if not after:  # what another job makes is not there yet
        check_inputs(with_newest(config))
    return config


def _refuse_finished(job: SlurmJob, configs: list[TrainingConfig]) -> None:
    """Refuses a folder that holds a finished run: the job would end at once."""
    from llmlab.config import apply_changes
    from llmlab.training.engine.resume import finished_run

    per_config = len(job.elements) // len(configs)
    for number, element in enumerate(job.elements):
        changes = {"output_dir": str(element.run_dir), **element.changes}
        if finished_run(apply_changes(configs[number // per_config], changes)):
            raise LabError(
                "holds a finished run: the job would have nothing to do",
                where=str(element.run_dir),
                remedy="choose another `name` or `output_dir`, or more `max_steps`",
            )


def _seeds(text: str | None) -> list[int]:
    if text is None:
        return []
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) < 2**32 for part in parts):
        raise LabError(f"`--seeds {text}` is no list of seeds", remedy="write --seeds 1,2,3")
    if len(set(parts)) < len(parts):
        raise LabError(f"`--seeds {text}` names a seed twice", remedy="write --seeds 1,2,3")
    return [int(part) for part in parts]


def _make_log_folder(job: SlurmJob) -> None:
    """Makes the folder that Slurm writes to: a job without it would fail and say nothing."""
    folder = job.folder / Path(job.log).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(f"cannot be created ({error.strerror})", where=str(folder)) from None


def _in_words(job: SlurmJob) -> str:
    """Returns what the job asks for, on one line."""
    from llmlab.launching.slurm import hours

    runs = f"{len(job.elements)} runs, each " if len(job.elements) > 1 else ""
    folders = f"to {job.elements[0].run_dir}" + (" ..." if len(job.elements) > 1 else "")
    machines = f"{job.nodes} node{'s' if job.nodes > 1 else ''}"
    gpus = f" of {job.gpus} GPU{'s' if job.gpus > 1 else ''}" if job.gpus else ""
    return f"{runs}{machines}{gpus}, {hours(job.options)}, {folders}"
