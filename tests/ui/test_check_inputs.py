"""`check` and `run --dry-run` look for everything a run reads: what cannot run is exit code 2,
with a message.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from llmlab.__main__ import main
from llmlab.config import GRPOConfig, PretrainConfig, SFTConfig, save_config


@pytest.fixture
def place(tmp_path, monkeypatch, tokenizer_folder, shape):
    """A folder with a model that can be trained, a reward model, a folder without weights, and rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, about, weights in (
        ("good", {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, True),
        ("judge", {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, True),
        ("bare", {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, False),
        ("encoder", {"model_type": "bert", "architectures": ["BertForMaskedLM"]}, True),
        ("t5", {"model_type": "t5", "is_encoder_decoder": True}, True),
        ("heads", {"model_type": "llmlab_dual_head", "backbone": "good"}, True),
    ):
        shutil.copytree(tokenizer_folder, tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps(about))
        if weights:
            save_file({"w": torch.zeros(4)}, tmp_path / name / "model.safetensors")
    (tmp_path / "rows.jsonl").write_text(
        '{"prompt": "Who is he?", "completion": "Ahab", "answer": "Ahab"}\n' * 3
    )
    save_config(shape, "model.json")
    save_config(PretrainConfig(model="model.json", datasets=["llmlab:moby-dick"]), "base.json")
    save_config(SFTConfig(policy_checkpoint="good", datasets=["rows.jsonl"]), "sft.json")
    save_config(
        GRPOConfig(policy_checkpoint="good", datasets=["rows.jsonl"], reward_model=["judge"]), "grpo.json"
    )
    return tmp_path


def ended(monkeypatch, capsys, *arguments):
    """Returns exit code and both outputs of the program, in this process."""
    monkeypatch.setattr(sys, "argv", ["llmlab", *arguments])
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    out, err = capsys.readouterr()
    return code, out, err


WAYS = [("check",), ("run", "--dry-run")]


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
@pytest.mark.parametrize("config", ["base.json", "sft.json", "grpo.json"])
def test_what_can_run_passes(place, monkeypatch, capsys, way, config):
    code, out, err = ended(monkeypatch, capsys, way[0], config, *way[1:])
    assert code == 0 and "not checked" not in out, err


@pytest.mark.parametrize("way", [*WAYS, ("run",)], ids=" ".join)
@pytest.mark.parametrize(
    "config, change, message",
    [
        ("base.json", 'datasets=["mytext/"]', "mytext/: there is no such dataset"),
        ("sft.json", 'datasets=["./x.jsonl"]', "./x.jsonl: there is no such file"),
        ("sft.json", 'eval_datasets=["mytext"]', "mytext: there is no such dataset"),
        (
            "base.json",
            'model={"kind": "model", "tokenizer_name": "banana"}',
            "banana: there is no such model",
        ),
        ("base.json", 'model={"kind": "model", "tokenizer_name": "./none"}', "./none: there is no such"),
        ("base.json", "init_from=./none", "./none: there is no such checkpoint"),
        ("base.json", "init_from=none", "none: there is no such model"),
        ("base.json", "init_from=judge", "judge: is a reward model"),
        ("base.json", "init_from=bare", "bare: has no weights"),
        ("base.json", "init_from=encoder", "encoder: is an encoder (bert)"),
        ("base.json", "init_from=t5", "t5: is an encoder-decoder (t5): `pretrain` trains decoders"),
        ("base.json", "init_from=heads", "heads: is a dual-head model"),
        ("sft.json", "policy_checkpoint=./none", "./none: there is no such checkpoint"),
        ("sft.json", "policy_checkpoint=none", "none: there is no such model"),
        ("sft.json", "policy_checkpoint=bare", "bare: has no weights"),
        ("sft.json", "policy_checkpoint=judge", "judge: is a reward model"),
        ("grpo.json", "policy_checkpoint=judge", "judge: is a reward model"),
        ("grpo.json", 'reward_model=["good"]', "good: is not a reward model"),
    ],
)
def test_what_cannot_run_is_refused(place, monkeypatch, capsys, way, config, change, message):
    code, out, err = ended(monkeypatch, capsys, way[0], config, *way[1:], "--set", change)
    assert code == 2 and message in err and "Traceback" not in err, (out, err)
    assert "parameters on" not in err and not (place / "checkpoints").exists()  # before anything is loaded


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_what_only_the_hub_can_have_is_named_as_not_checked(place, monkeypatch, capsys, way):
    changes = ("--set", "policy_checkpoint=some/model", "--set", 'datasets=["some/rows"]')
    code, out, err = ended(monkeypatch, capsys, way[0], "sft.json", *way[1:], *changes)
    assert code == 0, err
    said = " ".join(out.split())
    assert (
        "policy_checkpoint: some/model: not checked (offline)" in said
        and "datasets: some/rows: not checked" in said
    )


@pytest.mark.slow
def test_retries_of_the_hub_client_are_not_shown(place):
    """A hub that refuses the connection: by `check`, and by the client itself,
    as it loads what a run names.
    """
    online = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    program = (
        "import sys; from llmlab.__main__ import main\n"
        "sys.argv = ['llmlab', 'check', 'sft.json', '--set', 'policy_checkpoint=some/model']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "from huggingface_hub.utils import http_backoff\n"
        "try:\n    http_backoff('HEAD', 'http://127.0.0.1:9/x', max_retries=1, base_wait_time=0.01)\n"
        "except Exception:\n    pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=online, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "the hub cannot be reached" in " ".join(done.stdout.split())
    assert (
        "Retry" not in done.stdout + done.stderr
        and "thrown while requesting" not in done.stdout + done.stderr
    )
