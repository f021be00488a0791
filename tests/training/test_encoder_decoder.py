"""T5 and BART: fine-tuned on prompts and answers, whole and with an adapter; measured, chatted with;
refused elsewhere.
"""

import random
import re

import pytest
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

from llmlab.chat.generation import stream
from llmlab.config import DPOConfig, SFTConfig, SourceConfig
from llmlab.config.chat import ChatSettings
from llmlab.data.sources import load_rows
from llmlab.data.tokenizer import save_tokenizer, train_tokenizer
from llmlab.errors import LabError
from llmlab.evaluation.sources import measure
from llmlab.models.load import load_model
from llmlab.training.engine.run import run
from tests.conftest import write_rows

pytestmark = pytest.mark.slow  # trains


@pytest.fixture(scope="module")
def sentences():
    """Passages of the novel with either word in them, and which."""
    text = " ".join(row["text"] for row in load_rows(SourceConfig(name="llmlab:moby-dick")))
    found = {
        word: re.findall(rf"[^.]{{10,60}}\b{word}\b[^.]{{0,40}}", text)[:400] for word in ("whale", "ship")
    }
    rows = [{"text": " ".join(s.split()), "label": word} for word, some in found.items() for s in some]
    random.Random(0).shuffle(rows)
    return rows


@pytest.fixture(scope="module", params=["t5", "bart"])
def model(request, sentences, tmp_path_factory):
    """A small untrained model with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp(request.param) / "model"
    tokenizer = train_tokenizer((row["text"] for row in sentences), 600)
    ids = dict(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    if request.param == "t5":
        made = T5ForConditionalGeneration(
            T5Config(
                vocab_size=len(tokenizer),
                d_model=64,
                d_ff=128,
                d_kv=16,
                num_layers=2,
                num_heads=4,
                dropout_rate=0.0,
                decoder_start_token_id=tokenizer.pad_token_id,
                **ids,
            )
        )
    else:
        made = BartForConditionalGeneration(
            BartConfig(
                vocab_size=len(tokenizer),
                d_model=64,
                encoder_layers=2,
                decoder_layers=2,
                encoder_attention_heads=4,
                dropout=0.0,
                decoder_attention_heads=4,
                encoder_ffn_dim=128,
                decoder_ffn_dim=128,
                max_position_embeddings=256,
                init_std=0.05,
                decoder_start_token_id=tokenizer.eos_token_id,
                forced_eos_token_id=None,
                **ids,
            )
        )
    save_tokenizer(tokenizer, folder)
    made.save_pretrained(folder)
    return str(folder)


def config(model, source, folder, **changes):
    values = dict(
        policy_checkpoint=model,
        datasets=[source],
        max_steps=150,
        learning_rate=2e-3,
        batch_size=16,
        warmup_steps=10,
        gradient_accumulation_steps=1,
        max_length=64,
        packing=False,
        eval_every=50,
        eval_fraction=0.05,
        output_dir=str(folder / "run"),
        report_to=[],
    )
    return SFTConfig(**{**values, **changes})


def source(path, rows):
    return {"name": write_rows(path, rows), "format": "classification", "labels": ["whale", "ship"]}


def test_it_learns_labels_and_says_them(model, sentences, tmp_path):
    held_out = SourceConfig(**source(tmp_path / "test.jsonl", sentences[:120]))
    result = run(config(model, source(tmp_path / "rows.jsonl", sentences[120:]), tmp_path))
    assert result.metrics["eval_loss"] < 0.5 * result.metrics["before_eval_loss"]
    trained, tokenizer = load_model(str(result.model))
    scored, said = (
        measure(trained, tokenizer, held_out, by=by).figures["accuracy"] for by in ("score", "generate")
    )
    assert scored > 0.8 and abs(scored - said) < 0.05
    prompt = "the ship sailed on"
    assert "".join(
        stream(trained, tokenizer, prompt, ChatSettings(temperature=0, max_new_tokens=5))
    ).strip() in (
        "whale",
        "ship",
    )


def test_an_adapter_trains_it_too(model, sentences, tmp_path):
    rows = source(tmp_path / "rows.jsonl", sentences)
    result = run(
        config(
            model, rows, tmp_path, adapter="lora", lora_targets="attention", learning_rate=1e-2, max_steps=60
        )
    )
    assert result.metrics["eval_loss"] < result.metrics["before_eval_loss"]
    load_model(str(result.model))


def test_what_it_cannot_do_is_refused(model, sentences, tmp_path):
    rows = source(tmp_path / "rows.jsonl", sentences[:50])
    for changes, message in (
        (dict(packing=True), "rows cannot be packed"),
        (dict(loss_on="all"), "`loss_on`"),
    ):
        with pytest.raises(LabError, match=message):
            run(config(model, rows, tmp_path, **changes))
    pairs = write_rows(tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 20)
    with pytest.raises(LabError, match=r"is an encoder-decoder \(.*`dpo` trains decoders"):
        run(DPOConfig(policy_checkpoint=model, datasets=[pairs], max_steps=2, cache_dir=str(tmp_path / "c")))
    with pytest.raises(LabError, match="measured on decoders"):
        measure(*load_model(model), SourceConfig(name=pairs))
