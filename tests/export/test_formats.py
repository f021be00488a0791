"""Exports, read by the programs they are for: transformers where llmlab cannot be imported, and llama.cpp."""

import json
import random
import subprocess

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmlab.config.export import ExportOptions
from llmlab.data.tokenizer import chat_template, token_ids, train_tokenizer
from llmlab.errors import LabError
from llmlab.export.export import ROUNDING, export
from llmlab.export.folder import layout, write_folder
from llmlab.export.gguf_file import Conversion, convert, pre_tokenizer, with_own_head
from llmlab.export.selftest import TEXTS, Written, expected, read_by_llama_cpp, read_by_transformers
from llmlab.export.source import Source
from llmlab.models import LabDualHeadConfig, LabDualHeadForCausalLM, LabForSequenceClassification
from llmlab.models.families import FAMILIES
from llmlab.models.load import load_model
from tests.conftest import llmlab, small_config, small_model
from tests.models.test_families import random_options, shaken

WORDS = [
    "Call me Ishmael. Some years ago, the whale and the sea. What is 17 + 25? def add(a, b): return a + b"
] * 9


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(WORDS, 280)


def source_of(model, tokenizer, use="write"):
    return Source("tiny", model.eval(), tokenizer, use)


def lab_model(tokenizer, **options):
    """Returns a model with weights from the width that training gives them."""
    torch.manual_seed(0)
    model = small_model(
        **{"max_seq_len": 160, **options, "vocab_size": len(tokenizer), **token_ids(tokenizer)}
    )
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.1, mean=1.0 if "norm" in name else 0.0)
    return model.eval()


def written(folder, model, tokenizer, use="write", prompts=None):
    plan = layout(source_of(model, tokenizer, use))
    write_folder(plan, folder)
    # of the model as it was, not of the converted one
    asked = expected(source_of(model, tokenizer, use), *([prompts] if prompts else []))
    return Written(folder, plan.source, asked, plan.own_code)


@pytest.mark.slow
def test_ten_random_architectures_of_each_family_and_what_has_none(tokenizer, tmp_path):
    exports = []
    for family in FAMILIES:
        for seed in range(2):  # benchmarks/exports.py: ten
            rng = random.Random(f"{family.model_type}{seed}")
            torch.manual_seed(seed)
            options = random_options(family, rng) | {"vocab_size": len(tokenizer), **token_ids(tokenizer)}
            model = shaken(small_model(**options))
            exports.append(
                written(tmp_path / f"{family.model_type}{seed}", model, tokenizer, prompts=TEXTS[:1])
            )
            assert not exports[-1].own_code
    native = len(exports)
    for positions in ("alibi", "sinusoidal"):
        model = lab_model(tokenizer, positional_encoding=positions)
        exports.append(written(tmp_path / positions, model, tokenizer))
        assert exports[-1].own_code
    backbone = lab_model(tokenizer)
    for name, frozen in (
        ("dual", backbone),
        ("dual-alibi", lab_model(tokenizer, positional_encoding="alibi")),
    ):
        config = LabDualHeadConfig(backbone_config=frozen.config, gating_num_heads=4, gating_size=8)
        dual = LabDualHeadForCausalLM(config, frozen)
        for parameter in [*dual.rm_head.parameters(), *dual.gate.parameters()]:
            torch.nn.init.normal_(parameter, std=0.3)
        exports.append(written(tmp_path / name, dual.eval(), tokenizer))
    reward = LabForSequenceClassification(
        small_config(vocab_size=len(tokenizer), num_labels=1, **token_ids(tokenizer))
    )
    exports.append(written(tmp_path / "reward", shaken(reward), tokenizer, "score"))

    outcomes = read_by_transformers(*exports)
    for export_, outcome in zip(exports, outcomes, strict=True):
        largest = max(prompt.logits.abs().max().item() for prompt in export_.prompts)
        assert outcome.difference < 1e-5 * max(1.0, largest), (export_.place, outcome.difference, largest)
        assert outcome.agreement == 1.0, export_.place
    assert native == 12 and not json.loads((tmp_path / "llama0/config.json").read_text()).get("auto_map")
    assert json.loads((tmp_path / "alibi/config.json").read_text())["auto_map"]["AutoModelForCausalLM"]
    assert (tmp_path / "dual/backbone/config.json").is_file()


@pytest.mark.slow
def test_gguf_files_are_read_by_llama_cpp(tokenizer, tmp_path):
    exports = []
    for name, options in {
        "llama": {},
        "llama-untied": {"tie_word_embeddings": False, "n_kv_heads": 4},
        "qwen2": {"attention_bias": True},
        "mistral": {"sliding_window": 120},
        "stablelm": {"norm_type": "layernorm"},
        "yarn": {"positional_encoding": "yarn", "yarn_factor": 4.0, "yarn_original_max_seq_len": 40},
    }.items():
        one = written(tmp_path / name, lab_model(tokenizer, **options), tokenizer)
        with_own_head(one.source.model)
        write_folder(layout(one.source), one.place)
        exports.append(one)
    kind, splits = "F32", pre_tokenizer(tokenizer)
    files = [one.place.with_suffix(".gguf") for one in exports]
    conversions = [
        Conversion(one.place, file, kind, "tiny", splits) for one, file in zip(exports, files, strict=True)
    ]
    notes = convert(*conversions)
    assert [one.place.name for one, said in zip(exports, notes, strict=True) if said] == ["mistral"]
    read = [Written(file, one.source, one.prompts) for one, file in zip(exports, files, strict=True)]
    for one, outcome in zip(read, read_by_llama_cpp(*read), strict=True):
        assert outcome.difference < ROUNDING["F32"] and outcome.agreement == 1.0, one.place


def saved(model, tokenizer, folder, template=True):
    tokenizer.chat_template = chat_template() if template else None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_an_adapter_is_merged_rounded_and_given_to_ollama(tokenizer, tmp_path):
    base = saved(lab_model(tokenizer), tokenizer, tmp_path / "base")
    adapted = get_peft_model(
        lab_model(tokenizer), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    )
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    done = export(
        str(tmp_path / "adapter"), ExportOptions(to="ollama", quantize="Q8_0", output=str(tmp_path / "out"))
    )
    assert sorted(path.name for path in done.target.iterdir()) == [
        "Modelfile",
        "export.json",
        "model-Q8_0.gguf",
    ]
    assert done.outcome.prompts == 6 and 0 < done.outcome.divergence < 0.05  # nats a token
    modelfile = (done.target / "Modelfile").read_text()
    assert modelfile.startswith("FROM ./model-Q8_0.gguf\n") and 'PARAMETER stop "<|im_end|>"' in modelfile
    assert '{{ else if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n' in modelfile
    check_unpacked(done.target / "model-Q8_0.gguf")


def check_unpacked(file):
    """A GGUF file is read through the cache: its weights to the bit, and its tokenizer."""
    direct = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name)
    splits = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    for _ in range(2):  # unpacked, then found
        model, tokenizer = load_model(str(file))
        weights = model.state_dict()
        assert weights.keys() == direct.state_dict().keys()
        assert all(torch.equal(weights[name], value) for name, value in direct.state_dict().items())
        assert tokenizer("The  whale\n\té 12 <|im_end|>") == splits("The  whale\n\té 12 <|im_end|>")
        assert model.name_or_path == str(file) and not getattr(model, "is_quantized", False)
    half = load_model(str(file), dtype=torch.bfloat16)[0]
    assert all(
        torch.equal(half.state_dict()[name], value.bfloat16()) for name, value in direct.state_dict().items()
    )


@pytest.mark.slow
def test_bad_requests_have_one_message_each(tokenizer, tmp_path):
    folder = saved(lab_model(tokenizer, positional_encoding="alibi"), tokenizer, tmp_path / "alibi")
    (tmp_path / "taken").mkdir()
    for arguments, message in {
        ("--to", "onnx"): "`to` 'onnx' is not one of hf, gguf, ollama",
        ("--quantize", "Q8_0"): "`quantize` applies only when `to` is gguf or ollama",
        ("--to", "gguf", "--quantize", "Q9"): "`quantize`",
        ("-o", "taken"): "taken: already exists",
    }.items():
        outcome = llmlab("export", folder, *arguments, cwd=tmp_path)
        assert outcome.returncode == 2 and message in outcome.stderr, outcome.stderr
        assert len(outcome.stderr.strip().splitlines()) == 1
    for options, message in (
        (ExportOptions(to="gguf"), "llama.cpp reads native language models only"),
        (ExportOptions(alignment=0), "is no dual head"),
    ):
        with pytest.raises(LabError, match=message):
            export(folder, options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alibi", "taken"]


@pytest.mark.slow
def test_an_export_that_reads_otherwise_is_refused_and_removed(tokenizer, tmp_path, monkeypatch):
    """A broken converter, as the peers had them: heads rotated in the wrong order."""
    folder = saved(lab_model(tokenizer), tokenizer, tmp_path / "model")
    real = write_folder

    def broken(plan, place):
        weight = plan.source.model.model.layers[0].self_attn.q_proj.weight
        with torch.no_grad():
            weight.copy_(weight.flip(0))
        real(plan, place)

    monkeypatch.setattr("llmlab.export.export.write_folder", broken)
    with pytest.raises(LabError, match="the self-test failed") as error:
        export(folder, ExportOptions(output=str(tmp_path / "out")))
    assert error.value.exit_code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.slow
@pytest.mark.parametrize("room", [0.5, 1.003], ids=["too small", "full in the middle"])
def test_a_full_disk_leaves_nothing_behind(tokenizer, tmp_path, room):
    model = lab_model(tokenizer, d_ff=4096)
    folder = saved(model, tokenizer, tmp_path / "model")
    place = tmp_path / "disk"
    place.mkdir()
    size = int(sum(weight.numel() * 4 for weight in model.parameters()) * room)
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], capture_output=True
    ).returncode:
        pytest.skip("no right to mount a small disk")
    try:
        with pytest.raises(LabError, match=r"the disk has|cannot be written .*[Nn]o space left") as error:
            export(folder, ExportOptions(output=str(place / "out")))
        assert error.value.exit_code == 2 and list(place.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def test_a_template_that_never_ends_is_refused_before_anything_is_written(tokenizer, tmp_path):
    model = lab_model(tokenizer)
    model.save_pretrained(tmp_path / "model")
    tokenizer.chat_template = (
        "{% for i in range(99999999) %}{% for j in range(99999999) %}x{% endfor %}{% endfor %}"
    )
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(LabError) as error:
        export(str(tmp_path / "model"), ExportOptions(output=str(tmp_path / "out")))
    assert len(str(error.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
