"""Configs of other tools become ours: what has a counterpart is converted, what has none is listed."""

import dataclasses
import json

import pytest
from typer.testing import CliRunner

from llmlab.cli import app
from llmlab.config import load_config
from llmlab.config.convert import TOOLS, convert, convert_file
from llmlab.config.convert.rules import To
from llmlab.config.loader import KINDS
from llmlab.config.yaml_file import parse_yaml
from llmlab.errors import LabError

# written after the shape of the tools' own examples: text, tool, options of ours, what is left
TRL_SFT = """\
model_name_or_path: Qwen/Qwen2.5-0.5B
dataset_name: trl-lib/Capybara
learning_rate: 2.0e-4
num_train_epochs: 1
packing: true
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
eos_token: '<|im_end|>'
eval_strategy: steps
eval_steps: 100
use_peft: true
lora_r: 32
lora_target_modules: all-linear
load_in_4bit: true
warmup_ratio: 0.05
"""
TRL_DPO = """\
datasets:
  - path: org/pairs
    name: large
    split: train_prefs
  - path: other/pairs
    columns: [prompt, chosen, rejected]
model_name_or_path: org/sft
beta: 0.05
loss_type: [ipo]
max_steps: 500
bf16: true
lr_scheduler_type: cosine
report_to: [wandb, mlflow]
precompute_ref_log_probs: true
"""
TRL_GRPO = """\
model_name_or_path: org/sft
dataset_name: org/sums
dataset_config: easy
reward_funcs: [my.rewards.exact, think_format_reward]
num_generations: 8
max_completion_length: 256
per_device_train_batch_size: 16
use_vllm: true
"""
LF_SFT = """\
stage: sft
do_train: true
model_name_or_path: Qwen/Qwen3-4B
trust_remote_code: true
finetuning_type: lora
lora_rank: 16
lora_target: q_proj,v_proj
dataset: own_a, own_b
template: qwen3
cutoff_len: 1024
max_samples: 500
val_size: 0.1
output_dir: saves/mine
plot_loss: true
logging_steps: 5
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
warmup_ratio: 0.1
bf16: true
resume_from_checkpoint: null
"""
LF_DPO = LF_SFT.replace("stage: sft", "stage: dpo\npref_beta: 0.2\npref_loss: hinge")
LF_FULL = """\
stage: sft
finetuning_type: full
deepspeed: examples/deepspeed/ds_z3_config.json
model_name_or_path: org/base
dataset: one
"""
LF_PT = LF_SFT.replace("stage: sft", "stage: pt")
AXOLOTL_QLORA = """\
base_model: org/llama-1b
load_in_4bit: true
datasets:
  - path: org/alpaca
    type: alpaca
val_set_size: 0.1
adapter: qlora
sequence_len: 2048
sample_packing: true
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_modules: [q_proj, v_proj]
wandb_project:
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 1
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 2e-4
bf16: auto
gradient_checkpointing: true
attn_implementation: flash_attention_2
warmup_steps: 10
evals_per_epoch: 4
special_tokens:
  pad_token: "<|end|>"
"""
AXOLOTL_DPO = """\
base_model: org/instruct
rl: dpo
rl_beta: 0.3
datasets:
  - path: org/pairs
    type: chat_template.default
    field_chosen: better
    field_rejected: worse
    split: train[:20%]
adapter: lora
lora_target_linear: true
lora_r: 8
lora_alpha: 16
micro_batch_size: 2
gradient_accumulation_steps: 4
learning_rate: 0.0002
fsdp: [full_shard]
"""
AXOLOTL_FULL = """\
base_model: org/base
datasets:
  - path: json
    data_files: data/own.jsonl
    type: chat_template
    field_messages: talk
    message_property_mappings: {role: from, content: value}
learning_rate: 2e-5
flash_attention: true
train_on_inputs: true
wandb_project: mine
"""
CASES = {
    "trl sft": (
        TRL_SFT,
        dict(
            kind="sft", policy_checkpoint="Qwen/Qwen2.5-0.5B", learning_rate=2e-4, epochs=1.0, packing=True,
            batch_size=2, gradient_accumulation_steps=8, eval_every=100, adapter="qlora", lora_r=32,
            lora_targets="all-linear", warmup_ratio=0.05, scheduler="linear", adam_beta2=0.999,
            gradient_checkpointing=True, report_to=[],
        ),
        {"eos_token"},
    ),
    "trl dpo": (
        TRL_DPO,
        dict(
            kind="dpo", beta=0.05, loss_type="ipo", max_steps=500, epochs=None, precision="bf16",
            scheduler="cosine", report_to=["wandb"], reference="sequential", learning_rate=1e-6,
            batch_size=8, mini_batch_size=8, warmup_steps=0,
        ),
        {"datasets.1.columns", "report_to"},
    ),
    "trl grpo": (
        TRL_GRPO,
        dict(
            kind="grpo", group_size=8, max_new_tokens=256, batch_size=16, beta=0.0, iterations=1,
            vllm="colocate",
        ),
        {"reward_funcs"},
    ),
    "llamafactory sft": (
        LF_SFT,
        dict(
            kind="sft", adapter="lora", lora_r=16, lora_alpha=32, lora_dropout=0.0, output_dir="saves/mine",
            lora_targets=["q_proj", "v_proj"], max_length=1024, eval_fraction=0.1, batch_size=1, log_every=5,
            gradient_accumulation_steps=8, learning_rate=1e-4, warmup_ratio=0.1, precision="bf16", epochs=3.0,
        ),
        {"template", "trust_remote_code"},
    ),
    "llamafactory dpo": (
        LF_DPO,
        dict(kind="dpo", beta=0.2, loss_type="hinge", batch_size=8, mini_batch_size=1),
        {"template", "trust_remote_code"},
    ),
    "llamafactory full": (
        LF_FULL,
        dict(adapter="none", parallel="zero3", max_length=2048, batch_size=8),
        {"deepspeed"},
    ),
    "llamafactory pt": (
        LF_PT,
        dict(kind="pretrain", init_from="Qwen/Qwen3-4B"),
        {"template", "trust_remote_code"},
    ),
    "axolotl qlora": (
        AXOLOTL_QLORA,
        dict(
            kind="sft", adapter="qlora", max_length=2048, packing=True, lora_r=32, lora_alpha=16,
            batch_size=2,
            lora_targets=["q_proj", "v_proj"], gradient_accumulation_steps=4, epochs=1.0, scheduler="cosine",
            learning_rate=2e-4, gradient_checkpointing=True, attention_backend="flash", warmup_steps=10,
            eval_fraction=0.1, loss_on="assistant", optimizer="adamw", precision="auto",
        ),
        {"optimizer", "evals_per_epoch", "special_tokens"},
    ),
    "axolotl dpo": (
        AXOLOTL_DPO,
        dict(kind="dpo", beta=0.3, lora_targets="all-linear", lora_r=8, batch_size=8, mini_batch_size=2),
        {"fsdp", "datasets.0.split"},
    ),
    "axolotl full": (
        AXOLOTL_FULL,
        dict(
            kind="sft", adapter="none", attention_backend="flash", loss_on="all", report_to=["wandb"],
            max_length=512,
        ),
        {"wandb_project"},
    ),
}  # fmt: skip
SOURCES = {
    "trl dpo": [("org/pairs", "large", "train_prefs", None), ("other/pairs", None, "train", None)],
    "trl grpo": [("org/sums", "easy", "train", None)],
    "llamafactory sft": [("own_a", None, "train", None), ("own_b", None, "train", None)],
    "axolotl dpo": [("org/pairs", None, "train", {"chosen": "better", "rejected": "worse"})],
    "axolotl full": [("data/own.jsonl", None, "train", {"messages": "talk"})],
}


@pytest.mark.parametrize("name", CASES)
def test_a_config_becomes_ours(name, tmp_path):
    text, expected, left = CASES[name]
    file = tmp_path / "theirs.yaml"
    file.write_text(text)
    done = convert_file(file)
    assert done.tool.lower().replace("-", "") == name.split()[0]
    assert {option: getattr(done.config, option) for option in expected} == expected
    assert {one.name for one in done.left} == left and all(one.reason for one in done.left)
    sources = [(one.name, one.subset, one.split, one.columns) for one in done.config.datasets]
    assert sources == SOURCES.get(name, sources)


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_dropped_in_silence(name):
    """Every option that is set is converted, needless or left."""
    data = parse_yaml(CASES[name][0]).data
    done = convert(data, name.split()[0])
    told = {*done.converted, *done.needless, *(one.name.split(".")[0] for one in done.left)}
    assert {option for option, value in data.items() if value is not None} <= told
    assert not set(done.defaults) & set(data)


def test_every_rule_names_an_option_of_ours():
    options = {name for cls in KINDS.values() for name in cls.model_fields}
    for tool in TOOLS.values():
        for name, rule in tool.rules.items():
            assert not isinstance(rule, To) or rule.option in options, name


@pytest.mark.slow
def test_trls_options_and_defaults_are_those_of_the_installed_trl():
    import trl
    from trl.scripts.utils import DatasetMixtureConfig, ScriptArguments

    blocks = {"sft": trl.SFTConfig, "dpo": trl.DPOConfig, "reward": trl.RewardConfig, "grpo": trl.GRPOConfig}
    fields = {kind: {one.name: one for one in dataclasses.fields(cls)} for kind, cls in blocks.items()}
    common = {
        one.name
        for cls in (trl.ModelConfig, ScriptArguments, DatasetMixtureConfig)
        for one in dataclasses.fields(cls)
    }
    known = set().union(
        *fields.values(), common, ("env", "overwrite_output_dir", "group_by_length", "max_prompt_length")
    )
    known |= {"logging_first_step", "tf32"}
    assert TOOLS["trl"].rules.keys() <= known
    for kind in blocks:
        for name, value in {**TOOLS["trl"].defaults[""], **TOOLS["trl"].defaults[kind]}.items():
            assert fields[kind][name].default == value, (kind, name)


@pytest.mark.parametrize(
    "text, more, expected",
    [
        ("learning_rate: 1\n", (), "is not recognised as a config of another tool: add --from"),
        (TRL_SFT.replace("packing: true\n", ""), (), "does not say which method it is for"),
        (
            TRL_SFT.replace("model_name_or_path: Qwen/Qwen2.5-0.5B", ""),
            (),
            r"`policy_checkpoint` .* is missing",
        ),
        (TRL_SFT.replace("dataset_name: trl-lib/Capybara", ""), (), r"`datasets` \(the data\) is missing"),
        (LF_SFT.replace("stage: sft", "stage: kto"), (), "`stage` 'kto' has no method here"),
        (LF_DPO.replace("hinge", "orpo"), (), "`pref_loss` 'orpo' has no method here"),
        (AXOLOTL_DPO.replace("rl: dpo", "rl: orpo"), (), "`rl` 'orpo' has no method here"),
        (
            AXOLOTL_FULL.replace("path: json\n    data_files: data/own.jsonl\n    ", ""),
            (),
            "the name of a dataset is missing",
        ),
        (AXOLOTL_FULL.replace("2e-5", "2e5x"), (), None),
        (AXOLOTL_FULL + "micro_batch_size: two\n", (), "'two' is not a number"),
        (AXOLOTL_FULL + "trl: [1]\n", (), "a value of another type"),
        (LF_FULL + "learning_rate: -1\n", (), "converted from LLaMA-Factory: `learning_rate` -1"),
        ("kind: sft\nschema_version: 1\n", (), "is a config of llmlab already"),
        ("- 1\n", (), "holds no options"),
        ("a: b: c\n", (), "not valid YAML"),
    ],
)
def test_what_cannot_be_converted_is_one_message(tmp_path, text, more, expected):
    file = tmp_path / "a.yml"
    file.write_text(text)
    if expected is None:
        assert {one.name for one in convert_file(file).left} >= {"learning_rate"}
        return
    with pytest.raises(LabError, match=expected) as refused:
        convert_file(file, *more)
    assert "a.yml" in str(refused.value) and len(str(refused.value).splitlines()) == 1


def test_the_command_writes_a_config_and_lists_what_is_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yml").write_text(AXOLOTL_QLORA)
    line = ["config", "convert", "a.yml", "-o", "ours.yaml"]
    said = CliRunner().invoke(app, line)
    assert said.exit_code == 0 and said.stdout == "ours.yaml\n"
    assert 'not converted: optimizer "adamw_bnb_8bit": llmlab keeps AdamW' in said.stderr
    told = json.loads(CliRunner().invoke(app, [*line, "--json"]).stdout)
    assert {one["name"] for one in told["left"]} == CASES["axolotl qlora"][2]
    assert load_config("ours.yaml") == convert_file(tmp_path / "a.yml").config
    printed = CliRunner().invoke(app, line[:3])
    assert json.loads(printed.stdout)["kind"] == "sft"
