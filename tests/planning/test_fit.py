"""What fits on a device: the same memory as a plan, limits that are really limits, a config that is really
the one.
"""

import json
import shlex

import pytest
from rich.console import Console

from llmlab.cli import command_line
from llmlab.config import load_config
from llmlab.errors import LabError
from llmlab.planning import speed
from llmlab.planning.data_size import data_size
from llmlab.planning.engines import choose_engine
from llmlab.planning.fit import Question, best, command_of, config_of, fit_rows, largest
from llmlab.planning.largest import largest_model
from llmlab.planning.machines import find_gpu, gpus, machine_with, parse_bytes, usable
from llmlab.training.registry import STAGES
from llmlab.ui.fit import fit_table, legend

QWEN = "Qwen/Qwen2.5-7B"


def rows_of(**asked):
    question = Question(**{"model": QWEN, "machine": machine_with("rtx 4090"), **asked})
    return question, list(fit_rows(question))


def test_cells_are_the_memory_of_a_plan_on_that_card():
    question, rows = rows_of(methods=("sft", "grpo"), lengths=(512, 2048))
    assert [(row.kind, row.adapter) for row in rows[:3]] == [("sft", a) for a in ("none", "lora", "qlora")]
    assert len(rows) == 6
    full, lora, qlora = rows[:3]
    assert full.cells[0].verdict == "does not fit" and full.cells[0].over > 100e9 and full.config is None
    assert 15e9 < lora.cells[1].need.total < 20e9, "the weights in bf16 and little more"
    assert qlora.cells[1].need.total < lora.cells[1].need.total
    cell = lora.cells[1]
    config = config_of(question, "sft", "lora", 2048, 1, cell.checkpointing)
    need = choose_engine(config, devices=1, machine=question.machine).need
    assert need.total == cell.need.total and need.free == question.machine.free


@pytest.mark.parametrize(("kind", "adapter"), [("sft", 1), ("dpo", 2), ("grpo", 2)])
def test_the_longest_row_and_the_largest_batch_are_limits(kind, adapter):
    question, rows = rows_of(methods=(kind,), lengths=(512,))
    row = rows[adapter]

    def fits(length, batch, checkpointing):
        config = config_of(question, kind, row.adapter, length, batch, checkpointing)
        return choose_engine(config, devices=1, machine=question.machine).need.fits

    assert fits(row.longest, 1, True) and not fits(row.longest + 64, 1, True)
    checkpointing = row.config.gradient_checkpointing
    assert fits(row.length, row.batch, checkpointing)
    assert not fits(row.length, 2 * row.batch if kind != "sft" else row.batch + 1, checkpointing)


def test_devices_share_what_one_cannot_hold():
    _, alone = rows_of(model="meta-llama/Llama-3.1-70B", machine=machine_with("h100"), methods=("sft",))
    question, eight = rows_of(
        model="meta-llama/Llama-3.1-70B", machine=machine_with("h100"), devices=8, methods=("sft",)
    )
    assert not alone[1].longest and eight[1].longest > 4096
    assert eight[1].cells[0].need.engine == "fsdp2" and eight[1].config.devices == 8
    console = Console(record=True, width=80)
    console.print(fit_table(question, find_shape("meta-llama/Llama-3.1-70B"), eight))
    shown = console.export_text()
    assert "8 x H100 SXM" in shown and max(map(len, shown.splitlines())) <= 80
    assert any("fsdp2" in line for line in legend(question, eight, {}))


def find_shape(name):
    from llmlab.planning.fit import model_shape

    return model_shape(name)


def test_memory_is_read_as_people_write_it():
    assert parse_bytes("12GB") == 12e9 and parse_bytes("12 GiB") == 12 * 2**30 and parse_bytes("24") == 24e9
    for wrong in ("12 apples", "much", "", "-3GB", "1e99GB"):
        with pytest.raises(LabError, match="no amount of memory"):
            parse_bytes(wrong)
    assert usable(16 * 2**30, ecc=True) < usable(16 * 2**30) < 16 * 2**30
    # as nvidia-smi reports a T4 (15,360 MiB) and torch an RTX 4090 (25.39e9), before CUDA's context
    assert machine_with("T4").free < 15_360 * 2**20
    assert 0.95 * 25.39e9 < machine_with("RTX 4090").free < 25.39e9


def test_cards_are_found_by_any_of_their_names():
    names = ("rtx 4090", "NVIDIA GeForce RTX 4090", "4090", "RTX4090")
    assert {find_gpu(name).name for name in names} == {"RTX 4090"}
    assert find_gpu("NVIDIA H100 80GB HBM3").name == "H100 SXM" and find_gpu("A100").memory == 80
    with pytest.raises(LabError, match="did you mean RTX 4080"):
        find_gpu("RTX 4080 Super Duper")
    assert len(gpus()) > 40 and len({gpu.name for gpu in gpus()}) == len(gpus())
    for gpu in gpus():
        assert 8 <= gpu.memory <= 192 and 20 <= gpu.bf16 <= 2500 and 250 <= gpu.bandwidth <= 8000, gpu.name


def test_the_largest_model_fits_and_the_next_does_not():
    machine = machine_with("rtx 4090")
    found = largest_model(machine)
    assert found.need.total < 0.9 * machine.free and found.tokens == 20 * found.parameters
    assert found.flops == 6 * found.parameters * found.tokens
    assert 0.9e9 < found.parameters < 1.5e9, "16 bytes a parameter, and half-precision copies"
    assert found.seconds == pytest.approx(found.tokens / found.pace.speed)
    assert largest_model(machine, devices=8).parameters > 5 * found.parameters
    with_less = largest_model(machine, changes={"optimizer": "lion", "beta": 0.1})  # one state, not two
    assert with_less.parameters > 1.1 * found.parameters
    assert largest_model(machine_with(memory="900MB")) is None


def test_the_largest_number_is_found():
    for limit in range(9):
        assert largest(7, lambda n, limit=limit: n <= limit) == min(limit, 7)
    assert largest(0, lambda n: True) == 0


def test_data_is_counted_without_the_models_tokenizer(tmp_path):
    question = Question(QWEN, machine_with("rtx 4090"), sources=("llmlab:spam-mails",))
    config = config_of(question, "sft", "none", 1024, 1, False)
    assert data_size(config, STAGES["sft"].shapes) is None
    amount = data_size(config, STAGES["sft"].shapes, bytes_a_token=4)
    rows = list(fit_rows(question, {"sft": amount}))
    seconds = rows[1].data_seconds
    assert 150 < amount.rows < 500 and seconds > amount.tokens / rows[1].pace.speed
    assert rows[4].data_seconds is None  # DPO: nothing was counted for it


def test_the_command_writes_the_config_that_is_saved(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["fit", QWEN, "--gpu", "rtx 3090", "--method", "dpo", "--length", "1024", "--save", "mine"]
    command_line([*arguments, "--set", "beta=0.2", "--json"])
    told = json.loads(capsys.readouterr().out)
    saved = load_config(tmp_path / "model_configs" / "mine.json")
    assert told["saved"] == "model_configs/mine.json" and saved.kind == "dpo" and saved.adapter == "lora"
    assert saved.beta == 0.2 and saved.policy_checkpoint == QWEN
    _, *words = shlex.split(told["command"].replace("mine.json", "again.json"))
    command_line(words)
    assert load_config(tmp_path / "model_configs" / "again.json") == saved
    rows = {row["adapter"]: row for row in told["rows"]}
    assert rows["none"]["command"] is None and "adapter=qlora" in rows["qlora"]["command"]


def test_a_new_model_is_planned_from_its_shape():
    _, rows = rows_of(model="small", machine=machine_with(memory="8GiB"))
    assert [(row.kind, row.adapter) for row in rows] == [("pretrain", "none")]
    assert best(rows).longest == 512 and "model=" in command_of(rows[0].config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["qwen2.5-7b-instrct"], "not known here: did you mean"),
        (["mistralai/Mixtral-8x7B-v0.1"], "mixture of experts"),
        ([QWEN, "--gpu", "RTX 40900"], "did you mean RTX 4090"),
        ([QWEN, "--gpu", "T4", "--memory", "3GB"], "name only one"),
        ([QWEN, "--method", "model"], "no method of training"),
        ([QWEN, "--method", "sft", "--set", "beta=1"], "unknown option `beta`"),
        (["meta-llama/Llama-3.1-405B", "--gpu", "T4", "--save", "x"], "nothing fits"),
    ],
)
def test_what_cannot_be_told_is_refused(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LabError, match=message):
        command_line(["fit", *arguments])
    assert not list(tmp_path.iterdir())


def test_speeds_are_said_to_be_estimated_until_they_are_measured():
    question, rows = rows_of(methods=("sft",), machine=machine_with("a100"))
    pace = rows[1].pace
    assert pace.basis == "flops" and pace.share == speed.UTILISATION["gpu"]
    faster = rows_of(methods=("sft",), machine=machine_with("h100"))[1][1].pace
    assert faster.speed / pace.speed == pytest.approx(989 / 312, rel=0.01)
    assert any("estimated from FLOPs" in line for line in legend(question, rows, {}))
    _, unknown = rows_of(methods=("sft",), machine=machine_with(memory="24GB"))
    assert unknown[1].pace is None
