"""Recipes: whole, sourced, shipped as files, and within the memory of the card that they name."""

import json
import re
import struct

import pytest

from llmlab.config import load_config
from llmlab.config.recipes import RECIPES, preset_options
from llmlab.errors import LabError
from llmlab.planning.engines import need_in_effect
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


# of the models that the recipes begin with: width, feed-forward width, width of keys and values, vocabulary
SHAPES = {
    "zephyr-7b-dpo-qlora": (4096, 14336, 1024, 32_000),
    "olmo3-think-7b-dpo": (4096, 11008, 4096, 100_278),
    "olmo3-instruct-7b-dpo": (4096, 11008, 4096, 100_278),
    "tulu3-8b-sft": (4096, 14336, 1024, 128_256),
}


def hollow_model(folder, width, wide, narrow, words):
    """Writes a model of 32 blocks that holds nothing: its file has the header and the size of one."""
    heads = dict(num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=narrow // 128)
    shape = dict(hidden_size=width, intermediate_size=wide, vocab_size=words, max_position_embeddings=65_536)
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral", **shape, **heads}))
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
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)  # a hole: it takes no room
    return str(folder)


@pytest.mark.parametrize("name", RECIPES)
def test_it_fits_the_gpus_that_it_names(name, tmp_path):
    """By the memory plan, with a quarter to spare: peaks in bf16 were found up to 17 % above it."""
    recipe = RECIPES[name]
    start = {"policy_checkpoint": hollow_model(tmp_path, *SHAPES[name])} if name in SHAPES else {}
    config = recipe.config(**start)
    need = need_in_effect(config)
    assert need.engine == ("none" if config.devices == 1 else config.parallel)
    assert 5e9 < need.total < recipe.gpu_memory / 1.25
