"""Loading a model to use it: quantised, in a number format, on a device, as the options say."""

import typing

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import LoraConfig, get_peft_model
from typer.models import OptionInfo

from llmlab.chat.batch import answer_batch
from llmlab.chat.generation import encode, stream
from llmlab.cli import options
from llmlab.config.base import validate
from llmlab.config.chat import ChatSettings
from llmlab.config.loading import LoadOptions
from llmlab.errors import LabError
from llmlab.models.dual_head import LabDualHeadConfig, LabDualHeadForCausalLM
from llmlab.models.load import load_model
from llmlab.models.loading import load_for_use
from tests.conftest import small_model


@pytest.fixture(scope="module")
def folder(tokenizer_folder, tmp_path_factory):
    from llmlab.data.tokenizer import load_tokenizer

    place = tmp_path_factory.mktemp("load") / "model"
    small_model(vocab_size=512, d_model=64, d_ff=128).save_pretrained(place)
    load_tokenizer(str(tokenizer_folder)).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def heads(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("load") / "heads"
    backbone, tokenizer = load_model(str(folder))
    config = LabDualHeadConfig(backbone.config, str(folder), gating_num_heads=4)
    LabDualHeadForCausalLM(config, backbone).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("load") / "adapter"
    base, tokenizer = load_model(str(folder))
    adapted = get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    for name, weights in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.2)
    adapted.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def layers(model, kind):
    return [name for name, module in model.named_modules() if isinstance(module, kind)]


IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.mark.parametrize("load_in, kind", [("4bit", Linear4bit), ("8bit", Linear8bitLt)])
def test_quantised_weights_say_about_the_same(folder, load_in, kind):
    plain, _ = load_for_use(str(folder), LoadOptions())
    quantised, _ = load_for_use(str(folder), LoadOptions(load_in=load_in))
    assert layers(quantised, kind) and not layers(plain, kind)
    with torch.no_grad():
        wanted, found = (model(IDS).logits for model in (plain, quantised))
    assert 0 < (wanted - found).abs().max() < 0.3 * wanted.abs().max()
    assert torch.isfinite(quantised.generate(IDS, max_new_tokens=3).float()).all()


def test_of_a_dual_head_the_backbone_is_quantised(heads):
    model, _ = load_for_use(str(heads), LoadOptions(load_in="4bit"))
    names = layers(model, Linear4bit)
    assert names and all(name.startswith("backbone.") for name in names)
    assert model.generate(IDS, max_new_tokens=3, do_sample=False).shape == (1, 7)


@pytest.mark.parametrize("load_in", ["none", "4bit", "8bit"])
def test_an_adapter_answers_batches_and_single_prompts_alike(adapter, load_in):
    """It is computed in its own precision, on a base that may be quantised."""
    model, tokenizer = load_for_use(str(adapter), LoadOptions(load_in=load_in))
    assert bool(layers(model, (Linear4bit, Linear8bitLt))) == (load_in != "none")
    settings = ChatSettings(temperature=0, max_new_tokens=8)
    prompts = ["Call me", "The whale is " * 3, "a b c"]
    encoded = [encode(model, tokenizer, prompt, settings) for prompt in prompts]
    together = [one.text for one in answer_batch(model, tokenizer, encoded, range(3), settings)]
    alone = ["".join(stream(model, tokenizer, prompt, settings)) for prompt in prompts]
    if load_in == "8bit":  # looks for outlying columns in the whole batch (Dettmers et al. 2022)
        assert all(together) and all(alone)
    else:
        assert together == alone


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_number_format(folder, dtype):
    model, _ = load_for_use(str(folder), LoadOptions(dtype=dtype))
    assert model.dtype == {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype] and not model.training


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(load_in="2bit"), "`load_in` '2bit' is not"),
        (dict(device="tpu"), "`device` 'tpu' is not"),
        (dict(dtype="int8"), "`dtype` 'int8' is not"),
        (dict(dtype="fp16", device="cpu"), '`dtype` "fp16" needs a GPU'),
    ],
)
def test_what_cannot_be_honoured_is_refused(folder, values, message):
    with pytest.raises(LabError) as caught:
        load_for_use(str(folder), validate(LoadOptions, values))
    assert message.split("'")[0] in str(caught.value)


def test_the_help_of_the_command_line_is_that_of_the_fields():
    for name, annotated in (
        ("load_in", options.LoadInOption),
        ("device", options.DeviceOption),
        ("dtype", options.DtypeOption),
    ):
        info = next(part for part in typing.get_args(annotated) if isinstance(part, OptionInfo))
        field = LoadOptions.options()[name]
        assert info.help == field.description and info.metavar == "|".join(field.choices)
