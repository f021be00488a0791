"""A job of a Slurm cluster: which runs it holds, on which machines, and its way into the queue."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmlab.config.slurm import SlurmConfig, seconds_of
from llmlab.config.training import TrainingConfig
from llmlab.errors import LabError
from llmlab.files import in_home

JOB_ID = re.compile(r"\d+(_\d+)?")


@dataclass(frozen=True)
class Element:
    """One run of a job: one element of its array, where there are several.

    Attributes:
        config: the file, or the folder of a run.
        run_dir: the folder that it goes to, the same at every start.
        changes: options of the config that the job sets.
    """

    config: Path
    run_dir: Path
    changes: dict[str, str | int] = field(default_factory=dict)

    @property
    def words(self) -> list[str]:
        """What stands behind `llmlab run` for it."""
        changes = {"output_dir": str(self.run_dir), **self.changes}
        return [
            str(self.config),
            *(w for name, v in changes.items() for w in ("--set", f"{name}={_text(v)}")),
        ]


@dataclass(frozen=True)
class SlurmJob:
    """What a script is written from.

    Attributes:
        options: of the cluster.
        elements: the runs.
        folder: that the job works in.
        nodes: machines.
        devices: processes on each of them.
        gpus: GPUs on each of them; 0 asks for none.
        after: the job that has to end well before this one starts; "" for none.
    """

    options: SlurmConfig
    elements: Sequence[Element]
    folder: Path
    nodes: int = 1
    devices: int = 1
    gpus: int = 0
    after: str = ""

    @property
    def name(self) -> str:
        """The name of the job."""
        names = {element.config.stem for element in self.elements}
        return re.sub(r"[^\w.+-]+", "-", names.pop() if len(names) == 1 else "llmlab").strip("-") or "llmlab"

    @property
    def log(self) -> str:
        """The file that Slurm writes what the job says to, with Slurm's own placeholders."""
        number = "%A_%a" if len(self.elements) > 1 else "%j"
        return f"{self.options.log_folder or 'logs'}/%x-{number}.out"


def elements_of(
    configs: Sequence[tuple[Path, TrainingConfig, Path]], seeds: Sequence[int] = ()
) -> list[Element]:
    """Returns a run for every config and seed, each with a folder that stays the same at every start.

    Args:
        configs: the file of each or the folder of a run, its content, and the folder that it would go to now.
        seeds: of every config; none leaves each its own.

    Raises:
        LabError: when a run that was begun is to have other seeds.
    """
    elements: list[Element] = []
    for path, config, folder in configs:
        if seeds and path.is_dir():
            raise LabError("is a run, which has its seed", where=str(path), remedy="name its config file")
        taken = {element.run_dir for element in elements}
        if folder in taken and not (config.output_dir or config.name):
            folder = folder.with_name(f"{folder.name}-{path.stem}")
        elements += [
            Element(path, folder.with_name(f"{folder.name}-seed{seed}"), {"seed": seed}) for seed in seeds
        ] or [Element(path, folder)]
    return elements


def job_of(
    options: SlurmConfig, configs: Sequence[TrainingConfig], elements: Sequence[Element], after: str = ""
) -> SlurmJob:
    """Returns the job of these runs, in the folder that the program works in.

    Args:
        options: of the cluster.
        configs: of the runs.
        elements: of the job.
        after: the job to wait for; "" for none.

    Raises:
        LabError: when the runs need different machines, would go to the same folder, or the nodes would not
            see what they need.
    """
    if after and not JOB_ID.fullmatch(after):
        raise LabError(f"`--after {after}` is no job", remedy="name it by its number: `squeue` lists them")
    shapes = {(config.nodes, config.devices, config.device == "cpu") for config in configs}
    if len(shapes) > 1 and not (options.nodes and options.gpus_per_node):
        raise LabError(
            "these configs differ in `nodes`, `devices` or `device`, and a job asks once",
            remedy="write a script for each, or set `nodes` and `gpus_per_node` here",
        )
    nodes, devices, on_cpu = shapes.pop()
    gpus = devices if options.gpus_per_node is None else options.gpus_per_node
    gpus = 0 if on_cpu else gpus
    job = SlurmJob(options, elements, Path.cwd(), options.nodes or nodes, gpus or devices, gpus, after)
    folders = [element.run_dir.resolve() for element in elements]
    if twice := {str(folder) for folder in folders if folders.count(folder) > 1}:
        raise LabError(
            "two runs of this job would train in this folder",
            where=sorted(twice)[0],
            remedy="give each config its own `name` or `output_dir`",
        )
    _refuse_unshared(job)
    return job


def _refuse_unshared(job: SlurmJob) -> None:
    """Refuses a shared folder that is not there, and runs that not all nodes would see."""
    name = job.options.shared_folder
    if name and not in_home(name).is_dir():
        raise LabError(
            "this shared folder is not there",
            where=name,
            remedy="set `shared_folder` to one that every node sees",
        )
    if job.nodes == 1:
        return
    if not name:
        raise LabError(
            f"a job of {job.nodes} nodes needs a folder that all of them see, and none is named",
            remedy="--set shared_folder=FOLDER",
        )
    used = {"the working folder": job.folder}
    used |= {f"the config {element.config}": element.config for element in job.elements}
    used |= {f"the run folder {element.run_dir}": element.run_dir for element in job.elements}
    for what, path in used.items():
        if not path.resolve().is_relative_to(in_home(name).resolve()):
            raise LabError(
                f"{what} is not in the shared folder {name}: {job.nodes} nodes would not all see it",
                remedy="work there, or set `output_dir` to a folder in it",
            )


def unshared(job: SlurmJob) -> list[Path]:
    """Returns the run folders of a job that are not in the shared folder, where one is named."""
    name = job.options.shared_folder
    if not name:
        return []
    shared = in_home(name).resolve()
    return [e.run_dir for e in job.elements if not e.run_dir.resolve().is_relative_to(shared)]


def python_of(options: SlurmConfig) -> Path:
    """Returns the Python that the job runs llmlab with.

    Raises:
        LabError: when the virtual environment is none, or llmlab is not installed in it.
    """
    if not options.venv:
        return Path(sys.executable).absolute()
    python = in_home(options.venv).absolute() / "bin" / "python"
    if not python.is_file():
        raise LabError(
            "is no virtual environment (no bin/python)", where=options.venv, remedy="correct `venv`"
        )
    test = "import importlib.util as u; raise SystemExit(u.find_spec('llmlab') is None)"
    try:
        done = subprocess.run([python, "-c", test], cwd="/", capture_output=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LabError(f"its Python does not run ({error})", where=options.venv) from None
    if done.returncode:
        raise LabError(
            "llmlab is not installed in this virtual environment",
            where=options.venv,
            remedy=f"{python} -m pip install llmlab, or correct `venv`",
        )
    return python


def submit(text: str, file: Path | None) -> str:
    """Hands a script to the queue and returns the number of the job.

    Args:
        text: of the script.
        file: that it was written to, if it was.

    Raises:
        LabError: when there is no sbatch here, or it refuses; with its words.
    """
    command = ["sbatch", "--parsable", *([str(file)] if file else [])]
    try:
        done = subprocess.run(
            command, input=None if file else text, capture_output=True, text=True, check=False
        )
    except OSError as error:
        where = f"; the script is {file}" if file else ""
        raise LabError(
            f"there is no `sbatch` here ({error.strerror}){where}",
            remedy="submit it where the cluster's commands are: sbatch FILE",
        ) from None
    if done.returncode:
        raise LabError(
            f"sbatch: {(done.stderr or done.stdout).strip()}", remedy="`llmlab slurm --ask` changes it"
        )
    return done.stdout.strip().partition(";")[0]


def hours(options: SlurmConfig) -> str:
    """Returns the time limit in words, since 2:00 is two minutes to Slurm."""
    minutes, seconds = divmod(seconds_of(options.time), 60)
    parts = ((minutes // 1440, "d"), (minutes // 60 % 24, "h"), (minutes % 60, "min"), (seconds, "s"))
    return " ".join(f"{number} {unit}" for number, unit in parts if number)


def _text(value: str | int) -> str:
    """Returns a value as `--set` reads it back: a text that would be read as JSON in quotes."""
    if isinstance(value, int):
        return str(value)
    try:
        json.loads(value)
    except ValueError:
        return value
    return json.dumps(value)
