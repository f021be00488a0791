"""Scripts for a cluster: what they ask for, what they start, what is refused; a job that is stopped."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmlab.cli import command_line
from llmlab.config import PretrainConfig, SFTConfig, SourceConfig, preset, save_config
from llmlab.config.slurm import SlurmConfig, kept, seconds_of, with_changes
from llmlab.errors import LabError
from llmlab.launching import sbatch_script
from llmlab.launching.slurm import Element, SlurmJob, elements_of, job_of, python_of
from llmlab.launching.srun import adopt_srun_rank, first_host
from llmlab.runs.folder import RunFolder
from llmlab.training.engine.run import run
from tests.conftest import write_rows
from tests.launching.fake_slurm import FakeSlurm
from tests.waiting import PATIENCE, until

HOSTILE = [
    "a b",
    "it's",
    'say "x"',
    "$(touch pwned)",
    "`touch pwned`",
    "a;b&c|d>e",
    "é*?[a]{b,c}",
    "#c",
    "~",
    "!x",
]


@pytest.fixture(autouse=True)
def own_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMLAB_CONFIG", str(tmp_path / "settings"))


@pytest.fixture
def fake(tmp_path):
    return FakeSlurm(tmp_path / "fake")


def job(*names, options=None, **changes):
    elements = [Element(Path(name), Path(f"runs/{number}"), {"seed": 3}) for number, name in enumerate(names)]
    return SlurmJob(options or SlurmConfig(), elements, **{"folder": Path.cwd(), **changes})


def script(*names, options=None, **changes):
    return sbatch_script.script(job(*names, options=options, **changes), Path("/venv/bin/python"))


def many_scripts():
    """Scripts in which every option has its values, with every hostile text in every place."""
    choices = {
        "partition": ["gpu,long"],
        "account": ["my.account"],
        "qos": ["high"],
        "gpu_type": ["a100"],
        "gpu_request": ["gres"],
        "cpus_per_node": [8],
        "memory_per_node": ["64G", "0"],
        "exclusive": [True],
        "modules": ["cuda/12 gcc", *HOSTILE],
        "environment": [f"A={shlex.quote(text)} B=2" for text in HOSTILE],
        "setup": ["ulimit -n 4096\ncd ."],
        "log_folder": ["my logs", "out#1"],
        "time": ["30", "1-12"],
        "extra": ["--nice=100 '--constraint=a100&x y'", "--comment='say \"x\"'"],
        "at_once": [2],
    }
    for name, values in choices.items():
        for value in values:
            yield script("a.json", options=SlurmConfig(**{name: value}))
            more = SlurmConfig(**{name: value, "requeues": 0, "save_time": 60})
            yield script("a.json", "b.json", options=more, nodes=2, devices=4, gpus=4, after="12_3")
    yield from (script(text, text + "2") for text in HOSTILE)
    yield from (script("a", folder=Path("/work") / text) for text in HOSTILE)


@pytest.mark.slow  # shellcheck reads them all
def test_every_script_is_right_for_bash_and_shellcheck(tmp_path):
    files = []
    for number, text in enumerate(many_scripts()):
        files.append(tmp_path / f"{number}.sh")
        files[-1].write_text(text)
    for file in files:
        done = subprocess.run(["bash", "-n", file], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr + file.read_text()
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[:3000]


def test_what_a_shell_would_obey_arrives_as_it_is(fake, tmp_path, monkeypatch):
    """Names of configs, folders and values of variables, through the script to the started program."""
    for text in HOSTILE:
        folder = tmp_path / text
        folder.mkdir()
        monkeypatch.chdir(folder)
        options = SlurmConfig(environment=f"WORDS={shlex.quote(text)}")
        elements = [Element(Path(f"{text}.json"), Path("runs") / text, {"name": text})]
        file = tmp_path / "job.sh"
        python = tmp_path / text / "python"
        file.write_text(sbatch_script.script(SlurmJob(options, elements, Path.cwd()), python))
        header = [line for line in file.read_text().splitlines() if line.startswith("#SBATCH --chdir=")]
        file.write_text(file.read_text().replace(header[0], f"#SBATCH --chdir={tmp_path}"))
        process = fake.start(file, FAKE_ONLY_LOOKS="1")
        said, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said
        changes = ["--set", f"output_dir=runs/{text}", "--set", f"name={text}"]
        beginning = [str(python), "-m", "llmlab", "run", f"{text}.json", *changes]
        assert fake.command()[: len(beginning)] == beginning
        assert fake.variables()["WORDS"] == text
    assert not list(tmp_path.rglob("pwned"))


def test_a_text_that_looks_like_json_stays_a_text():
    assert Element(Path("a"), Path("123")).words == ["a", "--set", 'output_dir="123"']


def test_each_element_of_an_array_starts_its_own_run(fake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "job.sh"
    file.write_text(script("a.json", "b.json", nodes=2, devices=4, gpus=4))
    array = {"SLURM_ARRAY_JOB_ID": "16", "SLURM_ARRAY_TASK_ID": "1", "FAKE_STATUS": "143"}
    process = fake.start(file, FAKE_ONLY_LOOKS="1", **array)
    process.communicate(timeout=PATIENCE)
    words = fake.command()
    assert words[4:9] == ["b.json", "--set", "output_dir=runs/1", "--set", "seed=3"]
    assert words[9:] == [
        *("--resume", "once", "--devices", "4", "--nodes", "2"),
        *("--rendezvous", "localhost:12017", "--job-id", "17"),
    ]
    assert fake.requeued() == ["requeue 16_1"]  # of the element, not of the whole array


@pytest.mark.parametrize(
    "status, restarts, again", [(143, 0, True), (143, 2, False), (1, 0, False), (0, 0, False)]
)
def test_only_a_saved_run_is_queued_again_and_not_for_ever(
    fake, tmp_path, monkeypatch, status, restarts, again
):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "job.sh"
    file.write_text(script("a.json", options=SlurmConfig(requeues=2)))
    process = fake.start(file, restarts=restarts, FAKE_ONLY_LOOKS="1", FAKE_STATUS=str(status))
    process.communicate(timeout=PATIENCE)
    assert process.returncode == status and bool(fake.requeued()) is again


@pytest.mark.parametrize(
    "folder, options",
    [("/a\nb", {}), ("/a\\b", {}), ("/50%", {}), ("/a", {"log_folder": "a\\b"})],
)
def test_what_a_header_cannot_hold_is_refused(folder, options):
    with pytest.raises(LabError, match="cannot"):
        script("a.json", folder=Path(folder), options=SlurmConfig(**options))


@pytest.mark.parametrize(
    "change, fault",
    [
        ("time=2 days", "no time limit of Slurm"),
        ("time=2:00", "would never train"),
        ("time=0", "no time at all"),
        ("partition=a b", "not made of letters"),
        ("memory_per_node=64 GB", "write 64G"),
        ("environment=1A=2", "not NAME=VALUE"),
        ("environment=A='b", "cannot be split"),
        ("environment=SLURM_JOB_ID=1", "Slurm's own"),
        ("environment=HF_TOKEN=hf_abcdefghijklmnopqrstuvwxyzabcdefghij", "would stand in the script"),
        ("extra=--time=3", "set `time` instead"),
        ("extra=-p gpu", "set `partition` instead"),
        ("extra=--array=0-3", "depends on it"),
        ("extra=nice", "no option of sbatch"),
        ("venv=a\nb", "line break"),
        ("tme=3", "did you mean `time`"),
        ("nodes", "has no value"),
    ],
)
def test_wrong_answers_are_refused(change, fault):
    with pytest.raises(LabError, match=fault):
        with_changes(SlurmConfig(), [change])


def test_times_are_read_as_slurm_reads_them():
    times = {"30": 1800, "2:30": 150, "2:00:00": 7200, "1-12": 129_600, "1-2:30": 95_400, "1-2:3:4": 93_784}
    assert {time: seconds_of(time) for time in times} == times


def test_a_setup_that_is_no_shell_code_is_refused():
    with pytest.raises(LabError, match="`setup` is no shell code"):
        script("a.json", options=SlurmConfig(setup="if true"))


def test_an_environment_without_the_lab_is_refused(tmp_path):
    with pytest.raises(LabError, match="no virtual environment"):
        python_of(SlurmConfig(venv=str(tmp_path)))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
    (tmp_path / "bin/python").chmod(0o755)
    with pytest.raises(LabError, match="llmlab is not installed"):
        python_of(SlurmConfig(venv=str(tmp_path)))


def test_nodes_that_would_not_see_the_run_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, shared = SFTConfig(nodes=2), tmp_path / "shared"
    elements = [Element(Path("shared/a.json"), Path("runs/a"))]
    with pytest.raises(LabError, match="none is named"):
        job_of(SlurmConfig(), [config], elements)
    with pytest.raises(LabError, match="not there"):
        job_of(SlurmConfig(shared_folder=str(shared)), [config], elements)
    shared.mkdir()
    with pytest.raises(LabError, match="working folder is not in the shared"):
        job_of(SlurmConfig(shared_folder=str(shared)), [config], elements)
    assert job_of(SlurmConfig(shared_folder=str(tmp_path)), [config], elements).nodes == 2
    outside = [Element(Path("shared/a.json"), Path("/elsewhere/a"))]
    with pytest.raises(LabError, match="run folder /elsewhere/a is not in"):
        job_of(SlurmConfig(shared_folder=str(tmp_path)), [config], outside)


def test_runs_of_one_job_have_folders_of_their_own():
    config, fixed = SFTConfig(), SFTConfig(name="fixed")
    twice = elements_of([(Path("a.json"), config, Path("x")), (Path("b.json"), config, Path("x"))])
    assert [str(one.run_dir) for one in twice] == ["x", "x-b"]
    seeds = elements_of([(Path("a.json"), config, Path("x"))], [1, 2])
    assert [(str(one.run_dir), one.changes) for one in seeds] == [
        ("x-seed1", {"seed": 1}),
        ("x-seed2", {"seed": 2}),
    ]
    same = elements_of([(Path("a.json"), fixed, Path("x")), (Path("b.json"), fixed, Path("x"))])
    with pytest.raises(LabError, match="two runs"):
        job_of(SlurmConfig(), [fixed, fixed], same)
    with pytest.raises(LabError, match="differ in"):
        job_of(SlurmConfig(), [config, SFTConfig(devices=2)], twice)


@pytest.mark.parametrize(
    "options, config, wanted",
    [
        ({}, {"devices": 2}, ("--gpus-per-node=2", 2)),
        ({}, {"devices": 2, "device": "cpu"}, (None, 2)),
        ({"gpus_per_node": 4, "gpu_type": "a100"}, {"devices": 2}, ("--gpus-per-node=a100:4", 4)),
        ({"gpus_per_node": 4, "gpu_request": "gres"}, {}, ("--gres=gpu:4", 4)),
        ({"gpus_per_node": 0}, {"devices": 2}, (None, 2)),
        ({"gpus_per_node": 4}, {"device": "cpu"}, (None, 1)),
    ],
)
def test_gpus_are_those_of_the_cluster_else_of_the_config(options, config, wanted):
    one = job_of(SlurmConfig(**options), [SFTConfig(**config)], [Element(Path("a"), Path("b"))])
    lines = sbatch_script.script(one, Path("python")).splitlines()
    asked = next((line.split()[1] for line in lines if "gpu" in line and line.startswith("#SBATCH")), None)
    assert (asked, one.devices) == wanted


def test_the_first_node_of_a_list():
    lists = {
        "a": "a",
        "n[1-3]": "n1",
        "gpu[003-010,12],login": "gpu003",
        "r[1-2]n[03,5]": "r1n03",
        "a,b": "a",
    }
    assert {nodes: first_host(nodes) for nodes in lists} == lists


RANK = {
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "1",
}


def test_a_process_of_srun_is_a_rank():
    environment = dict(RANK)
    assert adopt_srun_rank(SFTConfig(), environment)
    added = {name: value for name, value in environment.items() if name not in RANK}
    assert added == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "n1",
        "MASTER_PORT": "12008",
    }
    assert adopt_srun_rank(SFTConfig(devices=2, nodes=2), dict(RANK))
    alone = {**RANK, "CUDA_VISIBLE_DEVICES": "2"}  # each process sees its own device only
    assert adopt_srun_rank(SFTConfig(), alone) and alone["LOCAL_RANK"] == "0"


@pytest.mark.parametrize(
    "changes, config",
    [
        ({"WORLD_SIZE": "4", "RANK": "0"}, {}),  # a launcher was there before
        ({"SLURM_STEP_NUM_TASKS": "1"}, {"devices": 4}),  # one task, which starts four processes
        ({"SLURM_STEP_NUM_TASKS": "2"}, {"devices": 4, "nodes": 2}),  # one task a node
    ],
)
def test_a_process_that_starts_its_own_is_no_rank(changes, config):
    environment = {**RANK, **changes}
    assert not adopt_srun_rank(SFTConfig(**config), environment) and environment == {**RANK, **changes}


def test_a_script_of_a_job_is_no_rank():
    environment = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}
    assert not adopt_srun_rank(SFTConfig(), environment)


def test_the_command(fake, tmp_path, monkeypatch, capsys):
    """Answers are kept, the script goes to stdout, a file or the queue; what cannot be is said."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", [{"text": "Call me Ishmael."}])
    shape = {**preset("tiny").to_json_dict(), "tokenizer_name": "byte", "vocab_size": 512}
    save_config(PretrainConfig(model=shape, datasets=["rows.jsonl"], name="whale"), tmp_path / "base.json")

    def says(*words):
        assert command_line(["slurm", *words]) == 0
        return capsys.readouterr()

    says("--set", "partition=gpu", "--set", "time=2:00:00", "--keep")
    assert kept().partition == "gpu"
    said = says("base.json", "--set", "time=30")
    assert "--time=30\n" in said.out and "--partition=gpu\n" in said.out and not said.err
    assert kept().time == "2:00:00" and not (tmp_path / "logs").exists()
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="there is no `sbatch` here"):
        says("base.json", "-o", "job.sh", "--submit")
    assert (tmp_path / "job.sh").exists() and (tmp_path / "logs").is_dir()
    monkeypatch.setenv("PATH", f"{fake.folder / 'bin'}:{path}")
    monkeypatch.setenv("FAKE_SLURM", str(fake.folder))
    capsys.readouterr()
    said = says("base.json", "--submit", "--after", "4711")
    assert said.out == "17\n" and "squeue -j 17" in said.err
    assert "--dependency=afterok:4711\n" in (fake.folder / "submitted").read_text()
    monkeypatch.setenv("FAKE_REFUSAL", "Invalid account")
    with pytest.raises(LabError, match="Invalid account"):
        says("base.json", "--submit")


@pytest.mark.parametrize(
    "words, fault",
    [
        ([], "no config is named"),
        (["gone.json"], "there is no such config file"),
        (["gone.json", "--ask"], "not a terminal"),
        (["model.json"], "is a model config and no training"),
        (["bad.json"], "unknown option"),
        (["lost.json"], "no such file"),
        (["good.json", "--seeds", "1,x"], "no list of seeds"),
        (["good.json", "--seeds", "1,1"], "names a seed twice"),
        (["good.json", "--after", "job"], "is no job"),
        (["done"], "holds a finished run"),
        (["done", "--seeds", "1,2"], "is a run, which has its seed"),
    ],
)
def test_what_the_command_refuses(tmp_path, monkeypatch, words, fault):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", [{"text": "Call me Ishmael."}])
    shape = {**preset("tiny").to_json_dict(), "tokenizer_name": "byte", "vocab_size": 512}
    good = PretrainConfig(model=shape, datasets=["rows.jsonl"], name="whale")
    save_config(good, tmp_path / "good.json")
    save_config(
        good.model_copy(update={"datasets": [SourceConfig(name="./gone.jsonl")]}), tmp_path / "lost.json"
    )
    save_config(preset("tiny"), tmp_path / "model.json")
    (tmp_path / "bad.json").write_text('{"kind": "sft", "no_such": 1}')
    RunFolder.create(tmp_path / "done", {"config": good.to_json_dict()}).update(status="done")
    with pytest.raises(LabError, match=fault):
        command_line(["slurm", *words])


def test_kept_answers_that_are_damaged_are_asked_again(tmp_path):
    for content in ("{", '{"kind": "slurm", "time": "2 days"}', "[1]"):
        (tmp_path / "settings").mkdir(exist_ok=True)
        (tmp_path / "settings/slurm.json").write_text(content)
        with pytest.raises(LabError, match="--ask"):
            kept()


@pytest.mark.slow
def test_a_job_that_is_stopped_and_queued_again_ends_like_one_that_never_was(
    base_config, fake, tmp_path, monkeypatch
):
    """At its time limit, with a DataLoader worker that gets the signals; a finished run is left as it is."""
    changes = dict(max_steps=30, dataloader_workers=1, save_best_only=False, save_every=25, eval_every=25)
    whole = run(base_config(tmp_path / "whole", **changes))
    config = save_config(base_config(tmp_path / "stopped", **changes), tmp_path / "base.json")
    monkeypatch.chdir(tmp_path)
    assert command_line(["slurm", str(config), "-o", "job.sh", "--set", "requeues=3"]) == 0
    folder, file = RunFolder(tmp_path / "stopped"), tmp_path / "job.sh"
    process = fake.start(file)
    until(lambda: len(list(folder.metrics())) > 2 or process.poll() is not None)
    fake.terminate()
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143 and fake.requeued() == ["requeue 17"], said
    assert folder.status == "stopped" and folder.checkpoints(), said
    process = fake.start(file, restarts=1)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and "resuming from" in said, said
    weights, same = (load_file(path / "final/model.safetensors") for path in (whole.folder, folder.path))
    assert weights.keys() == same.keys() and all(torch.equal(weights[name], same[name]) for name in weights)
    again = run(base_config(folder.path, **changes), resume="once")
    assert again.folder == folder.path and not list(tmp_path.glob("stopped-*"))
