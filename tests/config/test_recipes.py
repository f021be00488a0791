"""Recipes: whole, sourced, shipped as files, and within the memory of the card that they name."""

import json
import re
import struct

import pytest

from llmlab.config import load_config
from llmlab.config.recipes import RECIPES, preset_options
from llmlab.errors import LabError
from llmlab.planning.memory import predicted
from llmlab.planning.plan import make_plan
from llmlab.screen import LabConsole
from llmlab.ui.plan import plan_table

# rows of an update, of the publications that the recipes name
PUBLISHED = {
    "olmo3-think-7b-dpo": 128,
    "olmo3-instruct-7b-dpo": 128,
    "zephyr-7b-dpo-qlora": 32,
    "tulu3-8b-sft": 128,
    "fineweb-edu-1b": 1024,
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_whole(name, request):
    recipe = RECIPES[name]
    config = recipe.config()
    rows = config.micro_batch_size * config.accumulation_steps * config.devices * config.nodes
    assert rows == PUBLISHED[name]
    assert load_config(request.config.rootpath / "model_configs" / f"{name}.json") == config
    assert config.to_json_dict() == type(config)(**config.to_json_dict()).to_json_dict()
    for sentence in (recipe.hardware, recipe.data, recipe.source):
        assert re.fullmatch(r"[A-Z\d].{10,}\.", sentence)
    gpus = config.devices * config.nodes
    assert ("One GPU" in recipe.hardware) == (gpus == 1) and str(config.devices) in f"{recipe.hardware} 1"
    low, high = config.usual_rates
    assert low <= config.learning_rate <= high
    console = LabConsole(width=200)
    with console.capture() as shown:
        console.print(plan_table(make_plan(config)))
    assert "effective batch" in shown.get()


def test_presets_are_found_by_name():
    assert preset_options("dpo", "zephyr-7b-dpo-qlora")["beta"] == 0.01
    assert preset_options("dpo", "1b")["mini_batch_size"] == 4
    for kind, name, message in (
        ("sft", "zephyr-7b-dpo-qlora", "is for dpo"),
        ("dpo", "zephyr-dpo-qlora", "did you mean zephyr-7b-dpo-qlora"),
        ("dpo", "70b", "the presets are 100m"),
    ):
        with pytest.raises(LabError, match=message):
            preset_options(kind, name)


def test_seven_billion_weights_and_an_adapter_fit_one_card_of_12_gb(tmp_path):
    """By the header of a file of the size of Mistral 7B, which holds nothing."""
    width, narrow, wide, words = 4096, 1024, 14336, 32000
    shape = dict(hidden_size=width, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8)
    shape |= dict(intermediate_size=wide, vocab_size=words, max_position_embeddings=32768)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mistral", **shape}))
    block = {"self_attn.q_proj": (width, width), "self_attn.k_proj": (narrow, width)}
    block |= {"self_attn.v_proj": (narrow, width), "self_attn.o_proj": (width, width)}
    block |= {"mlp.gate_proj": (wide, width), "mlp.up_proj": (wide, width), "mlp.down_proj": (width, wide)}
    tensors = {f"model.layers.{i}.{name}.weight": size for i in range(32) for name, size in block.items()}
    tensors |= {"model.embed_tokens.weight": (words, width), "lm_head.weight": (words, width)}
    header, end = {}, 0
    for name, (rows, columns) in tensors.items():
        begin, end = end, end + 2 * rows * columns
        header[name] = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)  # a hole: it takes no room
    recipe = RECIPES["zephyr-7b-dpo-qlora"]
    needed = predicted(recipe.config(policy_checkpoint=str(tmp_path)))
    assert 5e9 < needed.total < recipe.gpu_memory
