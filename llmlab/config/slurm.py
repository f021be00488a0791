"""What a cluster wants to know of a job: asked once, kept for every script that `llmlab slurm` writes."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, model_validator

from llmlab.config.base import KindConfig, as_number, members, validate
from llmlab.config.options import option
from llmlab.errors import LabError
from llmlab.files import read_object, settings_folder, write_text_atomically
from llmlab.trust import secret_in

FILE = "slurm.json"
TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::([0-5]?\d))?(?::([0-5]?\d))?")
TIME_EXAMPLES = "write 30 (minutes), 2:00:00 (hours) or 1-12:00:00 (days and hours)"
MEMORY = re.compile(r"\d+[KMGT]?")
NAMES = re.compile(r"[\w.,@+-]+")  # of partitions, accounts: what a header takes without quotes
VARIABLE = re.compile(r"[A-Za-z_]\w*")
OURS = {  # options of sbatch that the script sets itself -> the option to set instead
    **dict.fromkeys(("-p", "--partition"), "partition"),
    **dict.fromkeys(("-A", "--account"), "account"),
    **dict.fromkeys(("-q", "--qos"), "qos"),
    **dict.fromkeys(("-t", "--time"), "time"),
    **dict.fromkeys(("-N", "--nodes"), "nodes"),
    **dict.fromkeys(("-G", "--gpus", "--gpus-per-node", "--gpus-per-task", "--gres"), "gpus_per_node"),
    **dict.fromkeys(("-c", "--cpus-per-task"), "cpus_per_node"),
    **dict.fromkeys(("--mem", "--mem-per-cpu", "--mem-per-gpu"), "memory_per_node"),
    **dict.fromkeys(("-o", "--output", "-e", "--error"), "log_folder"),
    "--exclusive": "exclusive",
    "--signal": "save_time",
}
FIXED = {  # options of sbatch that nobody changes: the script depends on them
    *("-n", "--ntasks", "--ntasks-per-node", "-a", "--array", "-d", "--dependency", "--requeue"),
    *("--no-requeue", "--open-mode", "-D", "--chdir", "-J", "--job-name", "--wrap"),
}


def seconds_of(time: str) -> int:
    """Returns the seconds of a time limit as Slurm writes it.

    The forms are those of sbatch's manual: minutes, minutes:seconds, hours:minutes:seconds, days-hours,
    days-hours:minutes and days-hours:minutes:seconds.

    Raises:
        ValueError: when it is none of them.
    """
    match = TIME.fullmatch(time.strip())
    if not match:
        raise ValueError(f"`time` {time!r} is no time limit of Slurm: {TIME_EXAMPLES}")
    days, *numbers = match.groups()
    parts = [int(number) for number in numbers if number is not None]
    if days is not None:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    return int(days or 0) * 86_400 + hours * 3600 + minutes * 60 + seconds


def _time(value: str) -> str:
    if seconds_of(value) == 0:
        raise ValueError(f"`time` {value!r} is no time at all: {TIME_EXAMPLES}")
    return value.strip()


def _names(value: str | None) -> str | None:
    if value is not None and not NAMES.fullmatch(value):
        raise ValueError(f"{value!r} is not made of letters, digits and . , @ + - _ (no spaces)")
    return value


def _memory(value: str | None) -> str | None:
    if value is not None and not MEMORY.fullmatch(value):
        raise ValueError(f"`memory_per_node` {value!r} is no size: write 64G, or 500M")
    return value


def _one_line(value: str | None) -> str | None:
    if value is not None and not value.isprintable():
        raise ValueError(f"{value!r} holds a line break, or what cannot be printed")
    return value


def variables(text: str) -> dict[str, str]:
    """Returns the variables of a line as a shell takes them: `A=1 'B=two words'`.

    Raises:
        ValueError: when a part is no NAME=VALUE, or holds a secret.
    """
    values = {}
    for part in _words("environment", text):
        name, equals, value = part.partition("=")
        if not equals or not VARIABLE.fullmatch(name):
            raise ValueError(f"`environment` {part!r} is not NAME=VALUE")
        if name.startswith("SLURM_"):
            raise ValueError(f"`environment` sets {name}, which is Slurm's own")
        if secret := secret_in(value):
            raise ValueError(
                f"`environment` holds {secret}, which would stand in the script: export it where you submit,"
                " the job gets that environment"
            )
        values[name] = value
    return values


def _environment(value: str | None) -> str | None:
    variables(value or "")
    return value


def sbatch_options(text: str) -> list[str]:
    """Returns further options of sbatch, one a line of the header: `--nice=10 --constraint="a&b"`.

    Raises:
        ValueError: when one is no option, or one that the script sets by itself.
    """
    options = _words("extra", text)
    for word in options:
        name = word.partition("=")[0]
        short = name[:2] if not name.startswith("--") else name
        if not re.fullmatch(r"--[a-z][a-z-]*|-[A-Za-z]\S*", name):
            raise ValueError(f"`extra` {word!r} is no option of sbatch: write --name=value, without spaces")
        if instead := OURS.get(short):
            raise ValueError(f"`extra` {word!r}: set `{instead}` instead")
        if short in FIXED:
            raise ValueError(f"`extra` {word!r} is set by the script, which depends on it")
        _one_line(word)
    return options


def _extra(value: str | None) -> str | None:
    sbatch_options(value or "")
    return value


def _words(name: str, text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ValueError(f"`{name}` {text!r} cannot be split into words ({error})") from None


Names = Annotated[str | None, AfterValidator(_names)]
Line = Annotated[str | None, AfterValidator(_one_line)]
MORE = "More of the job"
SOFTWARE = "Software"


class SlurmConfig(KindConfig):
    """What is asked once of a cluster, for every job."""

    KIND: ClassVar[str] = "slurm"
    TITLE: ClassVar[str] = "Jobs of a Slurm cluster"
    kind: Literal["slurm"] = "slurm"

    partition: Names = option(
        None, "Partition", "Where the job is queued (`sinfo` lists them); left out, the cluster's default."
    )
    account: Names = option(None, "Account", "What the job is charged to; left out, your default.")
    qos: Names = option(None, "QOS", "Quality of service; left out, your default.", advanced=True)
    time: Annotated[str, AfterValidator(_time)] = option(
        "24:00:00",
        "Time limit",
        "Of one start of the job: 30 is minutes, 2:00:00 hours, 1-12:00:00 a day and a half. A run that needs"
        " longer saves, is queued again and resumes.",
    )
    nodes: int | None = option(
        None, "Nodes", "Machines of a job; left out, the config's `nodes`.", ge=1, le=4096
    )
    gpus_per_node: int | None = option(
        None,
        "GPUs per node",
        "One process each; left out, the config's `devices`; 0 for a cluster without GPUs.",
        ge=0,
        le=1024,
    )
    gpu_type: Names = option(
        None, "GPU type", "As the cluster names it (`sinfo -o %G`), for example a100.", advanced=True
    )
    gpu_request: Literal["gpus-per-node", "gres"] = option(
        "gpus-per-node",
        "GPU request",
        "How the header asks for GPUs.",
        choices={"gpus-per-node": "--gpus-per-node=4", "gres": "--gres=gpu:4, for older clusters"},
        advanced=True,
    )
    cpus_per_node: int | None = option(
        None, "CPUs per node", "Left out, the cluster's default, which is often one.", ge=1, le=4096
    )
    memory_per_node: Annotated[str | None, AfterValidator(_memory)] = option(
        None, "Memory per node", "As 64G; 0 is all of it; left out, the cluster's default."
    )
    exclusive: bool = option(False, "Exclusive", "Share the nodes with no other job.", advanced=True)
    modules: Line = option(
        None, "Modules", "Environment modules to load, separated by spaces.", section=SOFTWARE
    )
    venv: Line = option(
        None,
        "Virtual environment",
        "Folder of the one that llmlab is installed in; left out, the one that writes the script.",
        section=SOFTWARE,
    )
    environment: Annotated[str | None, AfterValidator(_environment)] = option(
        None,
        "Environment",
        "Variables as a shell takes them: HF_HOME=/scratch/hf 'NAME=two words'.",
        section=SOFTWARE,
    )
    setup: str | None = option(
        None,
        "Commands before",
        "Shell commands that the job runs first, as they are.",
        advanced=True,
        section=SOFTWARE,
    )
    shared_folder: Line = option(
        None,
        "Shared folder",
        "A folder that every node sees; what a job reads and writes has to be in it.",
    )
    log_folder: Line = option("logs", "Log folder", "Where Slurm writes what a job says.", advanced=True)
    save_time: int = option(
        120,
        "Time to save",
        "How long before its time limit a job is told to save (SIGTERM); as long as a checkpoint needs.",
        unit="seconds",
        typical="60 to 600",
        advanced=True,
        section=MORE,
        ge=10,
        le=65_535,
    )
    requeues: int = option(
        20,
        "Starts again",
        "How often a job that came to its time limit is queued again; preemptions are counted, too.",
        advanced=True,
        section=MORE,
        ge=0,
        le=1000,
    )
    at_once: int | None = option(
        None, "At once", "Elements of an array that run at the same time, at most.", advanced=True, ge=1,
        section=MORE,
    )  # fmt: skip
    extra: Annotated[str | None, AfterValidator(_extra)] = option(
        None,
        "Further options",
        "Of sbatch, as a shell takes them: --nice=100 --constraint='a100&nvlink'.",
        advanced=True,
        section=MORE,
    )

    @model_validator(mode="after")
    def _check_time(self) -> SlurmConfig:
        if seconds_of(self.time) <= self.save_time:
            raise ValueError(
                f"`time` {self.time} is {seconds_of(self.time)} seconds, and a job is told to save"
                f" {self.save_time} seconds before its end: it would never train ({TIME_EXAMPLES})"
            )
        return self

    @model_validator(mode="after")
    def _check_gpu_type(self) -> SlurmConfig:
        if self.gpu_type and self.gpus_per_node == 0:
            raise ValueError("`gpu_type` applies only when `gpus_per_node` is not 0: remove it")
        return self


def kept_file() -> Path:
    """Returns the file that the answers are kept in."""
    return settings_folder() / FILE


def kept() -> SlurmConfig | None:
    """Returns the answers that were kept; None where there are none.

    Raises:
        LabError: when they are damaged.
    """
    path = kept_file()
    remedy = "`llmlab slurm --ask` asks again"
    try:
        data = read_object(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LabError(str(reason), where=str(path), remedy=remedy) from None
    try:
        return validate(SlurmConfig, data, where=str(path))
    except LabError as error:
        raise LabError(error.what, where=error.where, remedy=remedy) from None


def with_changes(config: SlurmConfig, pairs: list[str]) -> SlurmConfig:
    """Returns the config with `NAME=VALUE` pairs; texts are taken as they are, an empty one and `null`
    stand for none.

    Raises:
        LabError: when one is unknown or does not validate.
    """
    data = {name: getattr(config, name) for name in config.model_fields_set}
    aliases = {alias: name for name, info in SlurmConfig.options().items() for alias in info.aliases}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise LabError(f"`--set {pair}` has no value", remedy="write --set key=value")
        name = aliases.get(key.strip(), key.strip())
        data[name] = _typed(name, value)
    return validate(SlurmConfig, data)


def _typed(name: str, value: str) -> object:
    field = SlurmConfig.model_fields.get(name)
    if field is None:
        return value
    optional = field.default is None
    if optional and value in ("", "null", "none"):
        return None
    if bool in members(field.annotation):
        return {"true": True, "false": False}.get(value.lower(), value)
    return as_number(SlurmConfig, name, value)


def keep(config: SlurmConfig) -> Path:
    """Writes the answers and returns the file.

    Raises:
        LabError: when it cannot be written.
    """
    path = kept_file()
    write_text_atomically(path, json.dumps(config.to_json_dict(), indent=2, ensure_ascii=False) + "\n")
    return path
