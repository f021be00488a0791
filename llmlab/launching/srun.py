"""A process that `srun` started by itself: one rank of a job, in the variables that torch reads.

`torchrun` and `accelerate launch` set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. `srun` says
the same in its own words (SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID), and nothing of where to meet:
that is the first node of the step, at a port that follows from the numbers of job and step.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping

from llmlab.config.training import TrainingConfig

PORTS = (12_000, 20_000)  # the first, and how many: below those that systems give out by themselves


def port_of(job_id: int) -> int:
    """Returns the port at which the processes of a job meet."""
    first, count = PORTS
    return first + job_id % count


def first_host(node_list: str) -> str:
    """Returns the first of a list of nodes as Slurm writes it: `gpu[003-010,12],login` begins with gpu003."""
    depth, end = 0, len(node_list)
    for place, sign in enumerate(node_list):
        depth += (sign == "[") - (sign == "]")
        if sign == "," and not depth:
            end = place
            break
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", node_list[:end])


def adopt_srun_rank(config: TrainingConfig, environment: MutableMapping[str, str]) -> bool:
    """Sets the variables of a rank where `srun` started several processes of this config.

    Returns whether it did. It does not where a launcher has set them; where `srun` started one process; and
    where the config asks for other numbers of devices and nodes than there are processes: then each of these
    starts those of its node.

    Args:
        config: that is run.
        environment: of this process; it is changed.
    """
    number = environment.get("SLURM_STEP_NUM_TASKS", "1")  # outside of `srun` there is none, as in a script
    wanted = config.devices * config.nodes
    if "WORLD_SIZE" in environment or "RANK" in environment or number == "1":
        return False
    if wanted > 1 and wanted != int(number):
        return False
    job = int(environment.get("SLURM_JOB_ID", "0")) + int(environment.get("SLURM_STEP_ID", "0"))
    one_device = "," not in environment.get(
        "CUDA_VISIBLE_DEVICES", ","
    )  # `--gpus-per-task=1`: each sees its own
    environment.update(
        {
            "RANK": environment["SLURM_PROCID"],
            "WORLD_SIZE": number,
            "LOCAL_RANK": "0" if one_device else environment["SLURM_LOCALID"],
            "LOCAL_WORLD_SIZE": tasks_here(environment),
            "MASTER_ADDR": first_host(environment["SLURM_STEP_NODELIST"]),
            "MASTER_PORT": str(port_of(job)),
        }
    )
    return True


def tasks_here(environment: MutableMapping[str, str]) -> str:
    """Returns the number of processes on this node, from a list as `4(x2),3`."""
    counts: list[str] = [
        count
        for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", environment["SLURM_STEP_TASKS_PER_NODE"])
        for _ in range(int(times or 1))
    ]
    return counts[int(environment["SLURM_NODEID"])]
