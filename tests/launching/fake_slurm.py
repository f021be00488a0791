"""Small programs in the place of `sbatch`, `srun` and `scontrol`: a queue of one machine."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

SBATCH = """#!/bin/bash
[ -n "$FAKE_REFUSAL" ] && { echo "sbatch: error: $FAKE_REFUSAL" >&2; exit 1; }
if [ $# -gt 1 ]; then cp "${@: -1}" "$FAKE_SLURM/submitted"; else cat > "$FAKE_SLURM/submitted"; fi
echo "17;cluster"
"""
SRUN = """#!/bin/bash
printf '%s\\n' "$@" > "$FAKE_SLURM/srun"
while [[ $1 == --* ]]; do shift; done
printf '%s\\0' "$@" > "$FAKE_SLURM/command"
env -0 > "$FAKE_SLURM/environment"
[ -n "$FAKE_ONLY_LOOKS" ] && exit "${FAKE_STATUS:-0}"
export SLURM_STEP_NUM_TASKS=1 SLURM_PROCID=0 SLURM_STEP_ID=0
setsid "$@" & echo $! > "$FAKE_SLURM/group"
wait $!
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then printf '%s\\n' ${3//,/ }; else echo "$@" >> "$FAKE_SLURM/requeued"; exit 1; fi
"""


class FakeSlurm:
    """A folder of programs, and what was asked of them.

    Args:
        folder: for both.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        programs = folder / "bin"
        programs.mkdir(parents=True)
        for name, code in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
            (programs / name).write_text(code)
            (programs / name).chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "FAKE_SLURM": str(folder),
            "OMP_NUM_THREADS": "1",
        }

    def start(self, script: Path, *, restarts: int = 0, **environment: str) -> subprocess.Popen[str]:
        """Starts a job's script as Slurm does, in the folder of its header; a copy, as Slurm keeps one."""
        lines = script.read_text().splitlines()
        chdir = next(line for line in lines if line.startswith("#SBATCH --chdir=")).partition("=")[2]
        kept = self.folder / "job"
        kept.write_text(script.read_text())
        slurm = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "localhost,other", **environment}
        slurm |= {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
        return subprocess.Popen(
            ["bash", str(kept)],
            cwd=chdir.strip('"'),
            env={**self.environment, **slurm},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def command(self) -> list[str]:
        """Returns the words that `srun` was to start."""
        return (self.folder / "command").read_text().split("\0")[:-1]

    def variables(self) -> dict[str, str]:
        """Returns the environment that `srun` was called in."""
        pairs = (self.folder / "environment").read_text().split("\0")[:-1]
        return dict(pair.split("=", 1) for pair in pairs)

    def requeued(self) -> list[str]:
        """Returns what `scontrol` was told, beside showing names."""
        file = self.folder / "requeued"
        return file.read_text().splitlines() if file.exists() else []

    def terminate(self) -> None:
        """SIGTERM for every process that `srun` started, twice, as when a job ends."""
        group = int((self.folder / "group").read_text())
        for _ in range(2):
            os.killpg(group, signal.SIGTERM)
