"""The selftest on this machine, on a lab that is broken, and what is kept of it."""

import dataclasses
import json

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from typer.testing import CliRunner

from llmlab.cli import app
from llmlab.config import DPOConfig, ModelConfig, PretrainConfig, SFTConfig
from llmlab.device_store import keep_selftest, kept_attention, kept_selftest
from llmlab.errors import LabError
from llmlab.hardware import device_name
from llmlab.models import LabForCausalLM
from llmlab.models.device import attention_kernel, fastest_kernel, system_of
from llmlab.planning.speed import _file, _records, pace_of
from llmlab.runs.folder import RunFolder
from llmlab.selftest import attention, full, parity
from llmlab.selftest.memory import row_of
from llmlab.selftest.rows import CHECKS, Check, Row
from llmlab.selftest.run import keep as selftest_keep
from llmlab.selftest.run import last_selftest, merged
from llmlab.selftest.setting import Setting, Shape
from llmlab.training.engine.resume import ResumePlan, with_kernel_as_begun
from tests.conftest import llmlab
from tests.selftest.broken import changed


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.slow
def test_the_whole_of_it(tmp_path, cache):
    done = llmlab("selftest", "--device", "cpu", "--quick", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    rows = {row["name"]: row for row in found["rows"]}
    assert {row["check"] for row in found["rows"]} == CHECKS.keys() and found["failed"] == 0
    assert {"parity fp32", "parity bf16", "LoRA fp32", "4 bit fp32", "resume", "decoding: tokens"} <= {
        name for name, row in rows.items() if row["status"] == "passed"
    }
    for name in ("out of memory", "attention: flex", "attention: flash"):
        assert rows[name]["status"] == "not on this device" and rows[name]["found"]
    assert rows["out of memory"]["found"].endswith("this needs a GPU")
    assert sum(name.startswith("memory: ") for name in rows) == 6
    assert rows["attention: auto"]["figures"]["kernel"] == "sdpa"
    assert all(name in done.stderr for name in ("parity bf16", "resume"))
    assert not [*_records(_file(device_name("cpu")))], "the speed of a toy is no measure for plans"
    assert not kept_selftest(device_name("cpu")), "nor is anything else of it"
    keep_selftest(device_name("cpu"), found)
    again = llmlab("selftest", "--device", "cpu", "--last", "--markdown", cwd=tmp_path)
    assert again.returncode == 0 and again.stdout.count("\n| ") == len(rows) + 2
    assert f"| parity fp32 | passed | {rows['parity fp32']['seconds']:.1f} |" in again.stdout


@pytest.mark.slow
def test_what_is_broken_is_reported_and_the_others_are_done(cache, monkeypatch):
    for name, check in {
        "parity": Check("tests.selftest.broken:changed_weight", ""),
        "lora": Check("tests.selftest.broken:raises", ""),
        "4bit": Check("tests.selftest.broken:killed", ""),
        "resume": Check("tests.selftest.broken:hangs", "", limit=1),
        "speed": Check("tests.selftest.broken:passes", ""),
    }.items():
        monkeypatch.setitem(CHECKS, name, check)
    names = ("parity", "lora", "4bit", "resume", "speed")
    line = ["selftest", "--device", "cpu", "--json", *(word for name in names for word in ("--only", name))]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 1, result.output
    found = json.loads(result.stdout)
    assert kept_selftest(device_name("cpu"))["rows"] == found["rows"] and found["file"]
    rows = {(row["check"], row["name"]): row for row in found["rows"]}
    wrong = rows["parity", "parity fp32"]
    assert wrong["status"] == "failed" and "from the formulas in fp64; allowed are" in wrong["found"]
    assert "update the GPU's driver" in wrong["remedy"]
    assert rows["lora", "before"]["status"] == "passed"
    assert rows["lora", "lora"]["found"] == "ZeroDivisionError: a fault of a library"
    assert "in raises" in rows["lora", "lora"]["figures"]["traceback"]
    assert "signal SIGKILL" in rows["4bit", "4bit"]["found"] and "memory" in rows["4bit", "4bit"]["remedy"]
    assert rows["resume", "resume"]["found"] == "did not end within 1 s"
    assert rows["speed", "sound"]["status"] == "passed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "status"),
    [
        (changed, "failed"),
        (lambda model: rounded(model), "failed"),
        (lambda model: model, "passed"),
    ],
    ids=["a weight", "as TF32 rounds", "nothing"],
)
def test_parity_finds_what_is_wrong_in_fp32(change, status, tmp_path, monkeypatch):
    convert = parity.from_hf
    monkeypatch.setattr(parity, "from_hf", lambda peer: change(convert(peer)))
    first = next(parity.check(Setting("cpu", True, tmp_path), ""))
    assert (first.name, first.status) == ("parity fp32", status), first


def rounded(model):
    """Weights with the 11 bits that TF32 and fp16 keep."""
    for weight in model.parameters():
        weight.data = weight.data.half().float()
    return model


@pytest.mark.slow
def test_a_kernel_that_lets_documents_see_each_other_is_found_and_not_chosen(tmp_path, monkeypatch):
    kernel = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def leaks(module, query, key, value, mask, **kwargs):
        return kernel(module, query, key, value, None, **kwargs)  # causal, over all of a row

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", leaks)
    rows = {row.name: row for row in attention.check(Setting("cpu", True, tmp_path), "")}
    wrong = rows["attention: sdpa"]
    assert wrong.status == "failed" and wrong.found.startswith("padded rows: states are")
    assert rows["attention: eager"].status == "passed"
    assert rows["attention: auto"].status == "failed", "nothing that is right has the memory that is planned"


class OnGPU(Setting):
    on_gpu = True


@pytest.mark.slow
@pytest.mark.parametrize("lies", [False, True], ids=["as promised", "not as promised"])
def test_a_batch_that_does_not_fit_is_met_and_handled(lies, tmp_path, monkeypatch):
    """On a processor whose memory is said to be full where there are more than 8 rows."""
    monkeypatch.setattr(full, "ROWS", 32)
    monkeypatch.setattr(full, "SHAPE", Shape(32, 2, 4, 2, 64, 512, 32, 32))
    monkeypatch.setattr(full, "_limit", lambda device, share: None)
    monkeypatch.setattr(full, "_memory", lambda device: 10**11)
    forward = LabForCausalLM.forward

    def within(self, input_ids=None, **kwargs):
        if len(input_ids) > 8:
            raise ValueError("no kernel") if lies else torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(LabForCausalLM, "forward", within)
    rows = full.check(OnGPU("cpu", False, tmp_path), "")
    stop = next(rows)
    if lies:
        assert stop.status == "failed" and "ended with ValueError: no kernel, not" in stop.found
        return
    halve = next(rows)
    assert (stop.status, halve.status) == ("passed", "passed"), (stop, halve)
    assert "became 8 x 4: the same rows an update" in halve.found


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--device", "tpu"], "device"),
        (["--only", "attentoin"], "there is no check 'attentoin': did you mean attention?"),
        (["--json", "--markdown"], "two ways to print one result"),
        (["--last"], "no selftest of this device is kept: `llmlab selftest` does one"),
        pytest.param(
            ["--device", "cuda", "--only", "parity"],
            "`device` 'cuda' is not on this machine",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_bad_input(line, message, cache):
    result = CliRunner().invoke(app, ["selftest", *line])
    assert isinstance(result.exception, LabError) and result.exception.exit_code == 2
    assert message in str(result.exception)


@pytest.mark.slow
def test_a_run_says_its_memory_and_feeds_the_plans(base_config, tmp_path, cache):
    config = base_config(tmp_path / "run", max_steps=3, device="cpu", eval_fraction=0.0)
    assert pace_of(config).basis == "flops"
    row = row_of("memory: base", config, kept=True)
    measured, predicted = row.figures["measured"], row.figures["predicted"]
    assert row.status in ("passed", "slow", "failed") and measured > 1e8 and predicted > 1e8
    assert f"({measured / predicted - 1:+.0%})" in row.found and "kept for plans" in row.found
    pace = pace_of(config)
    assert pace.basis == "measured" and f"{pace.speed:,.0f} tokens/s" in row.found


def keep(kernel, **other):
    system = {"device": device_name("cuda"), "torch": torch.__version__, "driver": ""}
    keep_selftest(device_name("cuda"), {"attention": {**system, "kernel": kernel} | other})


def test_the_fastest_kernel_is_taken_where_it_was_measured(cache, monkeypatch):
    monkeypatch.setattr("llmlab.models.device.driver_version", lambda: "")
    shape = ModelConfig()
    packed, padded = PretrainConfig(model=shape), SFTConfig(packing=False)
    assert attention_kernel(packed, "cuda") is None
    keep("flex_attention")
    assert attention_kernel(packed, "cuda") == "flex_attention"
    assert attention_kernel(packed, "cpu") is None, "another device"
    for other in (
        padded,
        DPOConfig(),
        PretrainConfig(model=shape.model_copy(update={"dropout": 0.1})),
        PretrainConfig(model=shape.model_copy(update={"positional_encoding": "alibi"})),
        SFTConfig(policy_checkpoint="gpt2"),  # whose class takes no such kernel, or is not known here
    ):
        assert fastest_kernel(other, "cuda") is None
    assert attention_kernel(PretrainConfig(model=shape, attention_backend="sdpa"), "cuda") == "sdpa"
    for stale in ({"torch": "1.0"}, {"driver": "1"}, {"device": "another"}):
        keep("flex_attention", **stale)
        assert attention_kernel(packed, "cuda") is None
    keep("flash_attention_2")
    assert fastest_kernel(PretrainConfig(model=shape, precision="fp32"), "cuda") is None


@pytest.mark.parametrize(
    ("begun", "kept", "backend"),
    [("sdpa", "flex_attention", "sdpa"), ("flex_attention", "flex_attention", "auto"),
     ("flex_attention", "sdpa", "flex"), ("sdpa", "sdpa", "auto"), ("eager", "sdpa", "auto")],
)  # fmt: skip
def test_a_run_is_resumed_with_the_kernel_it_began_with(begun, kept, backend, cache, tmp_path, base_run):
    keep(kept)
    folder = RunFolder.create(tmp_path / "run", {"attention": begun, "device": "cuda"}, needed_bytes=0)
    checkpoint = RunFolder(base_run.folder).checkpoints()[0]
    plan = ResumePlan(folder.path, checkpoint)
    config = PretrainConfig(model=ModelConfig())
    assert with_kernel_as_begun(config, plan, "cuda").attention_backend == backend
    assert with_kernel_as_begun(config, ResumePlan(folder.path), "cuda") is config
    assert with_kernel_as_begun(config, plan, "cpu") is config


def test_what_is_kept_is_of_one_torch_and_a_damaged_file_is_none(cache):
    name = device_name("cpu")
    with pytest.raises(LabError, match="no selftest of this device is kept"):
        last_selftest(name)
    machine = {"torch": "2", "driver": "", "device": "cpu", "name": name, "precision": "fp32"}
    machine |= {"transformers": "5", "cuda": "", "memory": 1, "threads": 1, "load": 0.0, "llmlab": "0"}
    rows = [vars(Row(check, "passed", "", check=check)) for check in ("speed", "parity")]
    file = keep_selftest(name, {"machine": machine, "rows": rows, "at": 1.0, "seconds": 1.0, "quick": False})
    found = last_selftest(name)
    found.rows = [Row("parity fp32", "failed", "new", check="parity")]
    names = [row["name"] for row in merged(kept_selftest(name), found)]
    assert names == ["parity fp32", "speed"], "in the order of the checks, those done now in place of the old"
    system = system_of("cpu")
    found.machine = dataclasses.replace(found.machine, torch=system.torch, driver=system.driver)
    for kernel in ("eager", "sdpa"):
        done = Row("attention: auto", "passed", "", figures={"kernel": kernel}, check="attention")
        selftest_keep(dataclasses.replace(found, rows=[done]))
        assert kept_attention(system) == kernel
    selftest_keep(found)
    assert kept_attention(system) == "sdpa", "what other checks find leaves it as it is"
    kept = kept_selftest(name)
    kept["machine"]["torch"] = "3"
    assert [row["name"] for row in merged(kept, found)] == ["parity fp32"]
    file.write_text('{"rows": [{"name"')
    assert kept_selftest(name) == {} and kept_attention(system_of("cpu")) is None
