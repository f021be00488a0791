"""vLLM as the engine of GRPO and PPO: what is refused, how weights get there, and runs that learn by it.

`vllm` itself is not among the packages of the tests: where it is there (its build for processors will do),
the last test lets it write the answers.
"""

import importlib.util
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llmlab.config import (
    GRPOConfig,
    ModelConfig,
    PPOConfig,
    PretrainConfig,
    SFTConfig,
    apply_changes,
    save_config,
)
from llmlab.config.base import validate
from llmlab.config.loader import parse_config
from llmlab.errors import LabError
from llmlab.models.load import load_model
from llmlab.models.resolve import ModelRef, resolve_model
from llmlab.models.transformer.config import LabConfig
from llmlab.models.transformer.shapes import to_lab_config
from llmlab.runs.folder import RunFolder
from llmlab.training.engine.run import run
from llmlab.training.vllm import family_in_vllm, refuse_vllm
from llmlab.training.vllm_engine import VLLMAnswers, _number
from tests.conftest import write_rows
from tests.training.stages import ending, stop_after
from tests.training.vllm_server import served


def config(cls, policy, folder, **changes):
    rows = [{"prompt": f"Who is {i}?", "answer": "Stubb"} for i in range(80)]
    values = dict(
        policy_checkpoint=policy,
        datasets=[write_rows(folder / "prompts.jsonl", rows)],
        reward_model="exact_match",
        batch_size=16,
        mini_batch_size=8,
        max_new_tokens=8,
        max_prompt_length=48,
        learning_rate=2e-3,
        warmup_steps=0,
        max_steps=8,
        eval_every=100,
        eval_fraction=0.1,
        eval_rows=8,
        log_every=1,
        sample_tokens=0,
        report_to=[],
        output_dir=str(folder / cls.KIND),
    )
    own = dict(group_size=4, beta=0.0, iterations=1) if cls is GRPOConfig else dict(ppo_epochs=1, kl_coef=0.0)
    return cls(**{**values, **own, **changes})


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(vllm="colocate", adapter="qlora"), "vLLM is given whole weights"),
        (dict(vllm="colocate", vllm_port=9000), "`vllm_port` applies only when `vllm` is server"),
        (dict(vllm="colocate", vllm_tensor_parallel=2, devices=3), "does not divide the 3 devices"),
        (dict(vllm="on"), "is not one of off, colocate, server"),
        (dict(vllm="off", use_vllm=True), "`use_vllm` is the older name"),
    ],
)
@pytest.mark.parametrize("cls", [GRPOConfig, PPOConfig])
def test_options_that_do_not_fit(cls, values, message):
    with pytest.raises(LabError, match=message):
        validate(cls, {"kind": cls.KIND, **values})


def test_a_switch_of_older_configs_is_read():
    for switch, mode in ((True, "colocate"), (False, "off")):
        assert parse_config({"kind": "grpo", "use_vllm": switch}).vllm == mode


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
@pytest.mark.parametrize("cls", [GRPOConfig, PPOConfig])
def test_without_vllm_nothing_is_loaded(cls, tmp_path):
    here = config(cls, "no/such-model", tmp_path, vllm="colocate", reward_model="no/such-reward")
    with pytest.raises(LabError, match=r"vllm is not installed.*pip install 'llmlab\[vllm\]'"):
        run(here)
    assert not (tmp_path / cls.KIND).exists()


def test_what_vllm_cannot_do_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("llmlab.training.vllm.installed", lambda: True)
    policy = ModelRef("m", "org/model", "hub")
    server = config(GRPOConfig, "org/model", tmp_path, vllm="server", vllm_port=9)
    with pytest.raises(LabError, match="from GPU to GPU, and this run computes on cpu"):
        refuse_vllm(server, policy, "cpu")
    with pytest.raises(
        LabError, match=r"no vLLM server answers at http://127.0.0.1:9 .*vllm serve org/model"
    ):
        refuse_vllm(server, policy, "cuda")
    here = config(GRPOConfig, "org/model", tmp_path, vllm="colocate")
    refuse_vllm(here, policy, "cpu")
    alibi = dict(d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, positional_encoding="alibi", max_seq_len=64)
    to_lab_config(ModelConfig(**alibi)).save_pretrained(tmp_path / "alibi")
    with pytest.raises(LabError, match="no such architecture: `positional_encoding` 'alibi'"):
        refuse_vllm(here, ModelRef("a", str(tmp_path / "alibi"), "folder"), "cpu")
    relu = to_lab_config(ModelConfig(d_model=64, n_heads=4, n_kv_heads=2, activation="relu"))
    with pytest.raises(LabError, match="vLLM computes arcee"):
        family_in_vllm(relu)
    assert family_in_vllm(LabConfig()).model_type in ("llama", "mistral", "qwen2")


def test_seeds_are_of_63_bits_and_of_one_answer():
    numbers = [_number((42, 1, step, row)) for step in range(50) for row in range(50)]
    assert len(set(numbers)) == 2500 and min(numbers) >= 0 and max(numbers) < 2**63


@pytest.mark.slow
@pytest.mark.parametrize("cls, adapter", [(GRPOConfig, "none"), (GRPOConfig, "lora"), (PPOConfig, "lora")])
def test_a_run_learns_from_the_answers_of_a_server(cls, adapter, policy, tmp_path, monkeypatch):
    """The server begins with weights of its own: all that it answers follows from those that it got."""
    model = load_model(policy)[0]
    family = family_in_vllm(model.config)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(family.make_config(model.config)).save_pretrained(tmp_path / "served")
    rate = {"none": 2e-3, "lora": 5e-3}[adapter]
    with served(tmp_path / "served", monkeypatch) as server:
        port = server.server_address[1]
        result = run(
            config(cls, policy, tmp_path, vllm="server", vllm_port=port, adapter=adapter, learning_rate=rate)
        )
        # once for each batch of answers, the validations at the begin and at the end
        rounds = 9 if cls is GRPOConfig else 5
        assert server.updates == rounds
        asked = server.requests[8:]  # behind the first validation
        assert {(body["temperature"], body["top_p"], body["max_tokens"]) for body in asked} == {(1.0, 1.0, 8)}
        assert len({body["seed"] for body in server.requests[8:24]}) == 16, "each answer has its own seed"
        trained = load_model(str(result.folder))[0]
        ids = torch.tensor([[5, 6, 7, 8]])
        if adapter == "none":
            with torch.no_grad():
                assert torch.allclose(server.model(ids).logits, trained.eval()(ids).logits, atol=1e-4)
    lines = [line for line in RunFolder(result.folder).metrics() if "reward" in line]
    assert max(line["reward"] for line in lines[3:]) > lines[0]["reward"] + 0.1
    if cls is GRPOConfig:  # TRL compares the server's log-probabilities with the policy's own
        assert max(line["sampling/sampling_logp_difference/max"] for line in lines) < 1e-3


@pytest.mark.slow
def test_a_stopped_run_goes_on(policy, tmp_path, monkeypatch):
    """To the bit where the server computes each answer by itself, as the one of the tests does."""
    native = family_in_vllm(load_model(policy)[0].config).make_config(load_model(policy)[0].config)
    AutoModelForCausalLM.from_config(native).save_pretrained(tmp_path / "served")
    endings = []
    with served(tmp_path / "served", monkeypatch) as server:
        few = dict(max_steps=5, iterations=2, save_every=2, save_best_only=False, eval_fraction=0.0)
        few |= dict(vllm="server", vllm_port=server.server_address[1])
        for name in ("whole", "again"):
            here = config(GRPOConfig, policy, tmp_path, **few, output_dir=str(tmp_path / name))
            if name == "again":
                stop_after(monkeypatch, 10)
                assert run(here).stopped_by
                stop_after(monkeypatch, 10_000)
            run(here)
            endings.append(ending(tmp_path / name))
    assert all(torch.equal(value, endings[1][0][name]) for name, value in endings[0][0].items())


@pytest.mark.slow
def test_the_copy_that_vllm_reads_is_the_policy(policy, tmp_path):
    """A lab model as its native family, with a tied head untied for processors."""
    model, tokenizer = load_model(policy)
    engine = VLLMAnswers.__new__(VLLMAnswers)
    engine.base, engine.family, engine.unties = model, family_in_vllm(model.config), True
    folder = engine._readable(resolve_model(policy), tokenizer, model, tmp_path)
    native = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.allclose(native(ids).logits, model.eval()(ids).logits, atol=1e-5)
    stored = load_file(tmp_path / "model.safetensors")
    assert torch.equal(stored["lm_head.weight"], stored["model.embed_tokens.weight"])
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [type(native).__name__]


@pytest.fixture(scope="session")
def wide_policy(shape, tmp_path_factory):
    """A model whose heads are as wide as vLLM's kernels for processors need: 32."""
    folder = tmp_path_factory.mktemp("wide")
    rows = [{"prompt": f"Who is {i}?", "completion": "Ahab" if i % 2 else "Stubb"} for i in range(200)]
    model = apply_changes(shape, {"d_model": 128, "n_heads": 4, "n_kv_heads": 2})
    shared = dict(batch_size=8, gradient_accumulation_steps=1, report_to=[], learning_rate=5e-3)
    base = PretrainConfig(
        model=model, datasets=["llmlab:moby-dick"], max_steps=30, output_dir=str(folder / "base"), **shared
    )
    answers = write_rows(folder / "rows.jsonl", rows)
    made = SFTConfig(
        policy_checkpoint=str(run(base).folder),
        datasets=[answers],
        max_steps=80,
        max_length=64,
        output_dir=str(folder / "policy"),
        **shared,
    )
    return str(run(made).folder)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_itself_writes_the_answers(tmp_path, wide_policy):
    """In a process of its own, which vLLM keeps to the end."""
    path = save_config(config(GRPOConfig, wide_policy, tmp_path, vllm="colocate"), tmp_path / "grpo.json")
    command = [sys.executable, "-m", "llmlab", "run", str(path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    lines = [line for line in RunFolder(tmp_path / "grpo").metrics() if "reward" in line]
    assert max(line["sampling/sampling_logp_difference/mean"] for line in lines) < 0.02, (
        "the weights are there"
    )
    assert max(line["reward"] for line in lines[5:]) > lines[0]["reward"]
