"""Continued pretraining: a model of any causal architecture reads on, in a text of its user's."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from llmlab.config import PretrainConfig, SFTConfig, SourceConfig, parse_config
from llmlab.config.loader import load_config
from llmlab.data.packed_text import document_texts, pretrain_data
from llmlab.data.tokenizer import load_tokenizer, opening_token
from llmlab.errors import LabError
from llmlab.models.load import load_model
from llmlab.planning.plan import make_plan
from llmlab.training.callbacks import stop as callbacks
from llmlab.training.engine.reporter import SILENT
from llmlab.training.engine.run import run
from llmlab.training.methods.pretrain import prepare
from tests.conftest import write_rows

PROSE = SourceConfig(name="llmlab:moby-dick", max_rows=20)
LENGTH = 64


def llama(folder, tokenizer, **changes):
    """A tiny Llama of transformers' with a tokenizer."""
    shape = dict(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{**shape, **changes})).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, tokenizer_folder):
    return llama(
        tmp_path_factory.mktemp("llama") / "tiny",
        load_tokenizer(str(tokenizer_folder)),
        tie_word_embeddings=True,
    )


def config(start, folder, **changes):
    values = dict(
        init_from=start,
        datasets=[PROSE],
        eval_fraction=0.1,
        max_steps=4,
        learning_rate=3e-3,
        warmup_steps=0,
        batch_size=4,
        gradient_accumulation_steps=1,
        eval_every=10,
        eval_rows=8,
        save_every=2,
        log_every=1,
        sample_tokens=0,
        output_dir=str(folder),
        report_to=[],
    )
    return PretrainConfig(**{**values, **changes})


def rows_by_hand(start, texts, count):
    """The documents of each of the first rows, laid end to end and cut every `LENGTH` tokens."""
    tokenizer = load_tokenizer(start)
    rows, row = [], []
    for text in texts:
        left = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        while left:
            room = LENGTH - sum(map(len, row))
            row.append(left[:room])
            left = left[room:]
            if sum(map(len, row)) == LENGTH:
                rows.append(row)
                row = []
    return rows[:count]


@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradients_are_those_of_each_document_by_itself(tied, tmp_path, tokenizer_folder):
    start = llama(tmp_path / "a", load_tokenizer(str(tokenizer_folder)), tie_word_embeddings=tied)
    texts = [text[:90] for text in list(document_texts(PROSE))[:12]]
    data = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    job = prepare(config(start, tmp_path / "run", datasets=[data], eval_fraction=0), "cpu", "fp32", SILENT)
    trainer = job.trainer(
        model=job.model,
        args=job.arguments(output_dir=str(tmp_path / "run"), report_to=[], use_cpu=True, bf16=False),
        train_dataset=job.data.train,
        processing_class=job.tokenizer,
    )
    rows = [job.data.train[index] for index in range(4)]
    batch = trainer.data_collator(rows)
    loss = trainer.compute_loss(job.model, batch, num_items_in_batch=(batch["labels"] >= 0).sum())
    loss.backward()

    plain = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    documents = [document for row in rows_by_hand(start, texts, 4) for document in row]
    assert len(documents) > 6
    total = sum(len(document) - 1 for document in documents)
    summed = 0.0
    for document in documents:
        ids = torch.tensor([document])
        logits = plain(ids).logits[0, :-1]
        if len(document) > 1:
            part = F.cross_entropy(logits, ids[0, 1:], reduction="sum") / total
            part.backward()
            summed += part.item()
    assert loss.item() == pytest.approx(summed, abs=1e-6)
    wanted = dict(plain.named_parameters())
    for name, parameter in job.model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, atol=1e-6, rtol=1e-4)


def texts_of(folder, name):
    rows = [{"text": text} for text in document_texts(PROSE)]
    return write_rows(folder / name, rows)


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"adapter": "lora", "lora_r": 4}], ids=["whole", "lora"])
def test_a_mixture_of_streams_is_resumed_exactly(how, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("llmlab.data.stream.MIN_WINDOW", 20_000)
    monkeypatch.setattr("llmlab.data.stream.ROWS_OF_A_WINDOW", 1)
    streams = [
        SourceConfig(name=texts_of(tmp_path, name), streaming=True, weight=weight)
        for name, weight in (("a.jsonl", 2.0), ("b.jsonl", 1.0))
    ]
    whole = run(config(tiny, tmp_path / "whole", datasets=streams, **how))
    broken = config(tiny, tmp_path / "broken", datasets=streams, **how)
    with monkeypatch.context() as patch:
        left = [2]

        def look(self, module, inputs):
            if module.training:
                left[0] -= 1
            if left[0] < 0:
                self.received = 15
                raise callbacks.Stopped

        patch.setattr(callbacks.StopOnSignal, "_look", look)
        assert run(broken).stopped_by == 15
    saved = load_config_of(tmp_path / "broken")
    assert saved.model is None and saved.init_from == tiny
    again = run(saved)
    file = "adapter_model.safetensors" if how else "model.safetensors"
    one, other = load_file(whole.model / file), load_file(again.model / file)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert whole.metrics == again.metrics
    assert whole.metrics["eval_bits_per_byte"] < whole.metrics["before_eval_bits_per_byte"]


def load_config_of(folder):
    recorded = json.loads((folder / "run.json").read_text())["config"]
    assert "model" not in recorded  # with `init_from` alone a config names no other model
    return parse_config(recorded)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sophia", "muon", "lion", "adafactor"])
def test_every_optimizer_trains_it_further(optimizer, tiny, tmp_path):
    rate = {"adafactor": 0.3}.get(optimizer, 3e-3)
    result = run(config(tiny, tmp_path / "run", optimizer=optimizer, learning_rate=rate, max_steps=6))
    assert result.metrics["eval_loss"] < result.metrics["before_eval_loss"] - 0.01


@pytest.mark.slow
def test_qlora_learns_and_what_it_makes_is_merged_and_tuned(tiny, tmp_path):
    result = run(config(tiny, tmp_path / "run", adapter="qlora", lora_r=8, max_steps=6, learning_rate=1e-2))
    assert result.metrics["eval_loss"] < result.metrics["before_eval_loss"] - 0.005
    model, tokenizer = load_model(str(tmp_path / "run"))
    assert type(model).__name__ == "PeftModelForCausalLM" and tokenizer.chat_template


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_begin_as_the_mean_and_are_learned(tied, tmp_path, tokenizer_folder):
    old = load_tokenizer(str(tokenizer_folder))
    start = llama(tmp_path / "a", old, tie_word_embeddings=tied)
    changes = dict(added_tokens=["Queequeg", "harpooneer", "e"], resize_vocabulary=576, max_steps=2)
    before = load_file(tmp_path / "a" / "model.safetensors")
    job = prepare(config(start, tmp_path / "run", **changes), "cpu", "fp32", SILENT)
    for name in ("model.embed_tokens.weight", *(() if tied else ("lm_head.weight",))):
        table = job.model.state_dict()[name]
        assert table.shape == (576, 32) and torch.equal(table[:512], before[name])
        torch.testing.assert_close(table[512:], before[name].mean(dim=0).expand(64, 32))
    assert len(job.tokenizer) == 514  # "e" was a token before
    result = run(config(start, tmp_path / "run", **changes))
    model, tokenizer = load_model(str(result.folder))
    ids = tokenizer("said Queequeg")["input_ids"]
    assert ids[-1] == 512 and len(ids) < len(old("said Queequeg")["input_ids"])
    learned = model.get_input_embeddings().weight
    assert model.config.vocab_size == 576 and not torch.equal(learned[512], learned[513])
    assert tokenizer.chat_template == old.chat_template  # a base model keeps its own
    tuned = run(
        SFTConfig(
            policy_checkpoint=str(result.folder),
            datasets=[write_rows(tmp_path / "b.jsonl", [{"prompt": "Who?", "completion": "Queequeg"}] * 8)],
            max_steps=1,
            eval_fraction=0,
            max_length=64,
            output_dir=str(tmp_path / "sft"),
            report_to=[],
        )
    )
    assert load_model(str(tuned.folder))[0].config.vocab_size == 576


def test_rows_that_the_embedding_has_already_become_the_mean_too(tmp_path, tokenizer_folder):
    start = llama(tmp_path / "a", load_tokenizer(str(tokenizer_folder)), vocab_size=600)
    before = load_file(tmp_path / "a" / "model.safetensors")["model.embed_tokens.weight"]
    job = prepare(config(start, tmp_path / "run", added_tokens=["Queequeg"]), "cpu", "fp32", SILENT)
    table = job.model.get_input_embeddings().weight
    torch.testing.assert_close(table[512], before[:512].mean(dim=0))
    assert torch.equal(table[513:], before[513:])


def gpt2(folder, tokenizer):
    shape = dict(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=32)
    GPT2LMHeadModel(GPT2Config(**shape)).save_pretrained(folder)


def mamba(folder, tokenizer):
    shape = dict(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, state_size=4)
    MambaForCausalLM(MambaConfig(**shape)).save_pretrained(folder)


def endless(folder, tokenizer):
    llama(folder, tokenizer)
    tokenizer.eos_token = None


REFUSED = {
    "beyond the positions that it learned": (gpt2, dict(max_length=33), "beyond the 32 positions"),
    "documents see each other": (mamba, {}, "mamba models let packed documents attend to each other"),
    "no end of text": (endless, {}, "without an end-of-text token"),
    "too few rows": (llama, dict(resize_vocabulary=100), "`resize_vocabulary` 100 is smaller than the 512"),
    "another architecture": (
        llama,
        dict(model={"kind": "model", "tokenizer_name": "byte"}),
        "leave `model` out",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_further_is_refused(case, tmp_path, tokenizer_folder):
    make, changes, message = REFUSED[case]
    tokenizer = load_tokenizer(str(tokenizer_folder))
    make(tmp_path / "a", tokenizer)
    tokenizer.save_pretrained(tmp_path / "a")
    with pytest.raises(LabError, match=message):
        prepare(config(str(tmp_path / "a"), tmp_path / "run", **changes), "cpu", "fp32", SILENT)


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(adapter="lora"), "`adapter` applies only when `init_from` is given"),
        (dict(max_length=64), "`max_length` applies only when `init_from` is given"),
        (
            dict(init_from="a", adapter="lora", added_tokens=["x"]),
            "`added_tokens` needs embeddings that learn",
        ),
        (dict(init_from="a", added_tokens=["x", "x"]), "holds 'x' twice"),
        (dict(init_from="a", added_tokens=[" "]), "holds an empty word"),
    ],
)
def test_options_that_do_not_go_together_are_refused(values, message):
    with pytest.raises(LabError, match=message):
        parse_config({"kind": "pretrain", **values})


@pytest.mark.slow
def test_a_config_that_names_both_models_of_one_architecture_still_runs(
    base_run, base_config, shape, tmp_path
):
    both = base_config(tmp_path / "run", init_from=str(base_run.model), max_steps=2, warmup_steps=0)
    result = run(both)
    recorded = parse_config(json.loads((result.folder / "run.json").read_text())["config"])
    assert recorded.model == shape and recorded.learning_rate == both.learning_rate
    other = shape.model_copy(update={"d_ff": 64})
    with pytest.raises(LabError, match="is not of the architecture in `model`"):
        run(base_config(tmp_path / "other", init_from=str(base_run.model), model=other))


def test_rows_are_the_context_of_the_model_up_to_a_bound(tiny, tmp_path, told, tokenizer_folder):
    assert len(prepare(config(tiny, tmp_path), "cpu", "fp32", told).data.train[0]["input_ids"]) == LENGTH
    assert told.text == ""
    longer = llama(tmp_path / "long", load_tokenizer(str(tokenizer_folder)), max_position_embeddings=131_072)
    long = config(longer, tmp_path / "run")
    assert make_plan(long).tokens.tokens == 4 * 4 * 4096
    assert len(prepare(long, "cpu", "fp32", told).data.train[0]["input_ids"]) == 4096
    assert "rows of 4,096 tokens (the model's context is 131,072)" in told.text
    assert make_plan(config(longer, tmp_path / "run", max_length=512)).tokens.tokens == 4 * 4 * 512


def test_documents_begin_as_the_tokenizer_begins_them(tokenizer_folder, tmp_path):
    """Once a document, however many pieces a long file is read in."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_tokenizer(str(tokenizer_folder))
    assert opening_token(tokenizer) is None
    first = tokenizer.convert_tokens_to_ids("<|im_start|>")
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", first)]
    )
    assert opening_token(tokenizer) == first
    (tmp_path / "long.txt").write_text("\n\n".join("the whale and the ship " * 100 for _ in range(30)))
    (tmp_path / "short.txt").write_text("the sea")
    given = PretrainConfig(
        datasets=[str(tmp_path / name) for name in ("long.txt", "short.txt")],
        eval_fraction=0,
        mixture_stop="all_exhausted",
    )
    rows = pretrain_data(given, tokenizer, 64, begin=first).train
    ids = [token for row in rows for token in row["input_ids"]]
    closed = [place for place, token in enumerate(ids) if token == tokenizer.eos_token_id]
    begun = [place for place, token in enumerate(ids) if token == first]
    assert len(begun) == len(closed) and begun[0] == 0


def test_a_saved_config_is_read_again_as_it_was(tmp_path):
    from llmlab.config import save_config

    made = PretrainConfig(init_from="some/model", adapter="lora")
    assert made.learning_rate == 2e-4 and PretrainConfig(init_from="some/model").learning_rate == 5e-5
    assert load_config(save_config(made, tmp_path / "a.json")).to_json_dict() == made.to_json_dict()
