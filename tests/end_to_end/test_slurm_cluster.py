"""Jobs on a real Slurm of two nodes: a preempted one ends as if it never was; only on request."""

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmlab.cli import command_line
from llmlab.config import save_config
from llmlab.runs.folder import RunFolder
from tests.waiting import until

pytestmark = [
    pytest.mark.slow,  # trains
    pytest.mark.skipif(
        "LLMLAB_SLURM" not in os.environ,
        reason="starts a cluster: LLMLAB_SLURM=1, as root, with Debian's slurm-wlm and munge",
    ),
]
CLUSTER = Path(__file__).parent / "slurm_cluster.sh"


def slurm(*words):
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: Slurm's sockets lie in it
    with socket.socket() as free:  # it and the two above it
        free.bind(("", 0))
        monkeypatch.setenv("LLMLAB_SLURM_PORT", str(free.getsockname()[1]))
    try:
        subprocess.run(["bash", CLUSTER, "start", folder], check=True)
        monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        monkeypatch.setenv("LLMLAB_CONFIG", str(tmp_path / "settings"))
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        monkeypatch.chdir(tmp_path)
        yield
    finally:
        subprocess.run(["bash", CLUSTER, "stop", folder], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def said_in(log):
    return log.read_text() if log.exists() else slurm("squeue")


def queued(job):
    return slurm("squeue", "-h", "-j", job, "-o", "%T")


def test_a_preempted_job_of_two_nodes_ends_like_one_that_never_was(cluster, base_config, tmp_path, capsys):
    changes = dict(
        max_steps=60, batch_size=4, save_best_only=False, save_every=100, eval_every=100, device="cpu"
    )
    folders = [tmp_path / name for name in ("whole", "preempted")]
    for folder in folders:
        config = save_config(base_config(folder, **changes), folder.with_suffix(".json"))
        options = ("nodes=2", f"shared_folder={tmp_path}", "exclusive=true", "time=30")
        asked = [word for option in options for word in ("--set", option)]
        assert command_line(["slurm", str(config), *asked, "--submit"]) == 0
        job = capsys.readouterr().out.strip()
        log = tmp_path / f"logs/{folder.name}-{job}.out"
        if folder.name == "preempted":
            until(
                lambda folder=folder: len(list(RunFolder(folder).metrics())) > 3, lambda log=log: said_in(log)
            )
            slurm("sbatch", "-p", "urgent", "-N", "2", "--exclusive", "-o", "/dev/null", "--wrap", "true")
        until(lambda job=job: not queued(job), lambda log=log: said_in(log), pause=0.5)
        said = log.read_text()
        assert RunFolder(folder).status == "done", said
    assert "DUE TO PREEMPTION" in said and "started again 1 times" in said and "resuming from" in said
    weights, same = (load_file(folder / "final/model.safetensors") for folder in folders)
    assert weights.keys() == same.keys() and all(torch.equal(weights[name], same[name]) for name in weights)
