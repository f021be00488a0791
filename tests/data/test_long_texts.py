"""Long documents stay whole: tokens of a text in pieces are those of the whole text,
and no end of text stands within one.
"""

import json
import random

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llmlab.config import PretrainConfig, SourceConfig
from llmlab.data.packed_text import document_texts, pretrain_data
from llmlab.data.text import encode_texts
from llmlab.data.tokenizer import load_tokenizer

# how GPT-4, Llama 3 and Qwen cut texts into words
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KINDS = {
    "llama3": (
        models.BPE(),
        None,
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
    ),
    "gpt2": (models.BPE(), None, pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "metaspace": (models.BPE(unk_token="<unk>"), normalizers.NFKC(), pre_tokenizers.Metaspace()),
    "whole": (
        models.BPE(unk_token="<unk>"),
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        None,
    ),
    "unigram": (models.Unigram(), None, pre_tokenizers.Metaspace()),
    "wordpiece": (
        models.WordPiece(unk_token="<unk>"),
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
    ),
}


@pytest.fixture(scope="module", params=[*KINDS, "own"])
def reader(request, tokenizer):
    if request.param == "own":
        return tokenizer
    model, normalizer, words = KINDS[request.param]
    made = Tokenizer(model)
    if normalizer:
        made.normalizer = normalizer
    if words:
        made.pre_tokenizer = words
    trainer = {"Unigram": trainers.UnigramTrainer, "WordPiece": trainers.WordPieceTrainer}.get(
        type(model).__name__, trainers.BpeTrainer
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet() if request.param in ("llama3", "gpt2") else []
    texts = [text[:300] for text in document_texts(SourceConfig(name="llmlab:moby-dick", max_rows=10))]
    more = {"unk_token": "<unk>"} if request.param == "unigram" else {}
    made.train_from_iterator(
        texts,
        trainer(
            vocab_size=500,
            special_tokens=["<unk>", "<|end|>"],
            initial_alphabet=alphabet,
            show_progress=False,
            **more,
        ),
    )
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")


def nasty(seed):
    """A text of long runs, of blanks, digits, letters, line ends, and of characters of many bytes."""
    draw = random.Random(seed)
    kinds = [
        lambda n: " " * n,
        lambda n: "\n" * n,
        lambda n: " \n\t " * n,
        lambda n: "7" * n,
        lambda n: "a" * n,
        lambda n: "é́ü" * n,
        lambda n: "鯨" * n,
        lambda n: "🐳👨‍👩‍👧" * n,
        lambda n: "the white whale, ".upper() * n,
        lambda n: "Call me Ishmael. " * n,
        lambda n: "don't won't we'll " * n,
        lambda n: "<|end|>" * (n % 3),
        lambda n: "\r\n" * n,
        lambda n: "x+=-*/" * n,
    ]
    return "".join(draw.choice(kinds)(draw.choice([1, 2, 3, 7, 40, 150])) for _ in range(40))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_pieces_do_not_show_in_the_tokens(reader, seed):
    text = nasty(seed)
    wanted = reader(text, add_special_tokens=False)["input_ids"]
    for piece, overlap in ((50, 30), (333, 100), (2000, 200)):
        assert encode_texts(reader, [text, "short"], piece=piece, overlap=overlap)[0].tolist() == wanted


def test_pieces_are_left_where_words_meet(tokenizer, monkeypatch):
    """Memory is bounded: of prose no more than a piece and its overlap are ever tokenised at once."""
    from llmlab.data import text

    sizes, words = [], text._words
    monkeypatch.setattr(
        text,
        "_words",
        lambda backend, whole, start, end: sizes.append(end - start) or words(backend, whole, start, end),
    )
    prose = "\n\n".join(document_texts(SourceConfig(name="llmlab:moby-dick", max_rows=30)))
    made = text.encode_texts(tokenizer, [prose], piece=5000, overlap=500)[0]
    assert len(sizes) > 10 and max(sizes) == 5500
    assert made.tolist() == tokenizer(prose, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", ["jsonl", "txt"])
@pytest.mark.parametrize("streaming", [False, True])
def test_documents_stay_whole_up_to_the_context(tmp_path, kind, streaming):
    documents = [
        "\n\n".join(f"{name} {number} goes to sea." for number in range(3000))
        for name in ("Ahab", "Stubb", "Pip")
    ]
    if kind == "jsonl":
        (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    for name, text in zip("abc", documents, strict=True) if kind == "txt" else ():
        (tmp_path / f"{name}.txt").write_text(text)
    tokenizer = load_tokenizer("byte")
    length = 131_072
    config = PretrainConfig(
        datasets=[{"name": str(tmp_path), "streaming": streaming}], eval_fraction=0, packing="best_fit"
    )
    rows = list(pretrain_data(config, tokenizer, length).train) if not streaming else []
    if streaming:
        for row in pretrain_data(config, tokenizer, length).train:
            rows.append(row)
            if len(rows) == 3:
                break
    ids = np.concatenate([row["input_ids"] for row in rows])
    assert (ids == tokenizer.eos_token_id).sum() == 3
    assert sorted(size for row in rows for size in row["seq_lengths"]) == sorted(
        len(text) + 1 for text in documents
    )


def test_a_text_file_in_several_rows_has_one_end(tmp_path):
    text = "\n\n".join("word " * 900 for _ in range(30))
    (tmp_path / "a.txt").write_text(text)
    tokenizer = load_tokenizer("byte")
    data = pretrain_data(
        PretrainConfig(datasets=[str(tmp_path / "a.txt")], eval_fraction=0.2), tokenizer, 1024
    )
    ids = np.concatenate([row["input_ids"] for row in data.train])
    assert data.eval and (ids == tokenizer.eos_token_id).sum() <= 1
