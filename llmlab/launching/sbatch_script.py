"""The sbatch script of a job, which also survives its own end.

What it relies on, in the words of sbatch's and scontrol's manuals, and as a cluster was seen to do it:

- `--signal=TERM@N` sends SIGTERM to the processes that `srun` started, N seconds before the time limit, and
  not to the script. They save and end with 143, `srun` returns that, and the script puts itself back into the
  queue (`scontrol requeue`), since Slurm ends a job at its time limit for good.
- A preempted job gets SIGTERM everywhere, the script included, and SIGKILL `KillWait` seconds later (30 where
  nobody changed it). With `--requeue` Slurm puts it back into the queue by itself.
- A job that starts again runs the same lines: `--resume once` resumes, and leaves a finished run as it is.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

from llmlab.config.slurm import SlurmConfig, sbatch_options, variables
from llmlab.errors import LabError
from llmlab.launching.slurm import SlurmJob
from llmlab.launching.srun import PORTS

PLAIN = re.compile(r"[\w.,:/@%+=-]*")  # what a line of the header holds without quotes
AGAIN = 143  # a run that saved and ended on SIGTERM


def script(job: SlurmJob, python: Path) -> str:
    """Returns the text of the sbatch script.

    Args:
        job: to write.
        python: that llmlab is run with.

    Raises:
        LabError: when the header cannot hold a name, or `setup` is no shell code.
    """
    _refuse_bad_setup(job.options.setup)
    shell = "#!/bin/bash -l" if job.options.modules else "#!/bin/bash"
    parts = [
        [shell, *_title()],
        [*(f"#SBATCH {line}" for line in _header(job))],
        [*_software(job.options, python)],
        [*_arguments(job)],
        [*_launch(job, python)],
        [*_again(job)],
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _title() -> Iterator[str]:
    yield "# Written by `llmlab slurm`. Preempted, or shortly before its time limit, the job saves, is queued"
    yield "# again and resumes in the same folder."
    yield "# shellcheck disable=SC2016 # values are quoted so that nothing in them is expanded"


def _header(job: SlurmJob) -> Iterator[str]:
    options = job.options
    yield f"--job-name={job.name}"
    yield f"--chdir={_in_header(str(job.folder), what='the working folder')}"
    yield f"--output={_in_header(job.log, what='`log_folder`', placeholders=True)}"
    yield "--open-mode=append"
    yield "--requeue"
    yield f"--signal=TERM@{options.save_time}"
    yield f"--time={options.time}"
    for name in ("partition", "account", "qos"):
        if value := getattr(options, name):
            yield f"--{name}={value}"
    yield f"--nodes={job.nodes}"
    yield "--ntasks-per-node=1"
    if job.gpus:
        kind = f"{options.gpu_type}:" if options.gpu_type else ""
        yield f"--{'gres=gpu:' if options.gpu_request == 'gres' else 'gpus-per-node='}{kind}{job.gpus}"
    if options.cpus_per_node:
        yield f"--cpus-per-task={options.cpus_per_node}"
    if options.memory_per_node:
        yield f"--mem={options.memory_per_node}"
    if options.exclusive:
        yield "--exclusive"
    if len(job.elements) > 1:
        at_once = f"%{options.at_once}" if options.at_once else ""
        yield f"--array=0-{len(job.elements) - 1}{at_once}"
    if job.after:
        yield f"--dependency=afterok:{job.after}"
        yield "--kill-on-invalid-dep=yes"
    for further in sbatch_options(options.extra or ""):
        name, equals, value = further.partition("=")
        yield f"{name}{equals}{_in_header(value, what='`extra`', placeholders=True)}"


def _software(options: SlurmConfig, python: Path) -> Iterator[str]:
    lines = (
        [f"module load {' '.join(map(shlex.quote, (options.modules or '').split()))}"]
        if options.modules
        else []
    )
    activate = python.with_name("activate")
    if options.venv and activate.is_file():
        lines += ["# shellcheck source=/dev/null", f"source {shlex.quote(str(activate))}"]
    lines += [f"export {n}={shlex.quote(v)}" for n, v in variables(options.environment or "").items()]
    lines += [options.setup.rstrip()] if options.setup else []
    if lines:
        yield from ("set -e  # what is missing here ends the job", *lines, "set +e")


def _arguments(job: SlurmJob) -> Iterator[str]:
    if len(job.elements) == 1:
        yield f"run=({shlex.join(job.elements[0].words)})"
        yield "job=$SLURM_JOB_ID"
        return
    yield "case $SLURM_ARRAY_TASK_ID in"
    for number, element in enumerate(job.elements):
        yield f"    {number}) run=({shlex.join(element.words)}) ;;"
    yield '    *) echo "there is no element $SLURM_ARRAY_TASK_ID" >&2; exit 2 ;;'
    yield "esac"
    yield "job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"


def _launch(job: SlurmJob, python: Path) -> Iterator[str]:
    first, count = PORTS
    yield "starts=${SLURM_RESTART_COUNT:-0}"
    yield 'mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")'
    yield 'echo "$(date "+%F %T") job $job on ${nodes[*]}, started again $starts times"'
    if job.options.cpus_per_node:
        yield "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # srun does not take it from the header"
    together = [f"    --devices {job.devices} --nodes {job.nodes}"]
    if job.nodes > 1:
        yield "# the processes of all nodes meet at the first one, at a port of this job's own"
        yield f"rendezvous=${{nodes[0]}}:$(({first} + SLURM_JOB_ID % {count}))"
        together += ['    --rendezvous "$rendezvous" --job-id "$SLURM_JOB_ID"']
    lines = [
        "srun --ntasks-per-node=1 --kill-on-bad-exit=1",
        f'    {shlex.quote(str(python))} -m llmlab run "${{run[@]}}" --resume once',
        *together,
    ]
    yield " \\\n".join(lines)
    yield "status=$?"


def _again(job: SlurmJob) -> Iterator[str]:
    limit = job.options.requeues
    yield f"# {AGAIN}: saved on SIGTERM, {job.options.save_time} seconds before the time limit, where Slurm"
    yield f"# would not queue the job again. At most {limit} times, preemptions included: it comes to an end."
    yield f'if [ "$status" -eq {AGAIN} ] && [ "$starts" -lt {limit} ]; then'
    yield '    echo "$(date "+%F %T") saved before the time limit, queued again"'
    yield '    scontrol requeue "$job" && sleep 60  # Slurm ends this script meanwhile'
    yield "fi"
    yield f'if [ "$status" -eq {AGAIN} ]; then'
    yield f'    echo "saved, but not queued again ($starts of {limit} times): submit the script to resume"'
    yield "fi"
    yield 'exit "$status"'


def _in_header(value: str, *, what: str, placeholders: bool = False) -> str:
    """Returns a value as a line of the header holds it, in double quotes where needed: no shell reads it."""
    if not value.isprintable() or "\\" in value or (not placeholders and "%" in value):
        raise LabError(
            f"{what} {value!r} holds characters that the header of a job cannot",
            remedy="choose a name without backslashes, percent signs and line breaks",
        )
    quoted = value.replace('"', '\\"')
    return value if PLAIN.fullmatch(value) else f'"{quoted}"'


def _refuse_bad_setup(code: str | None) -> None:
    if not code:
        return
    done = subprocess.run(["bash", "-n"], input=code + "\n", capture_output=True, text=True, check=False)
    if done.returncode:
        fault = done.stderr.strip().splitlines()[0].partition(": ")[2]
        raise LabError(f"`setup` is no shell code: {fault}", remedy="correct it: `llmlab slurm --ask`")
