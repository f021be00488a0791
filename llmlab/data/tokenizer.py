"""Tokenizers: any Hugging Face one by id or folder, plain bytes, or a byte-level BPE trained here on the
user's text.

The lab's own tokenizers split digits one by one (so that numbers are spelled, not looked up), carry the
ChatML special tokens, and a chat template that marks the assistant's tokens.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmlab.data.rendering import turn_ends
from llmlab.errors import LabError
from llmlab.readable import shortened
from llmlab.trust import TRUSTED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT, TURN_START, TURN_END, PADDING = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
SPECIAL_TOKENS = [PADDING, END_OF_TEXT, TURN_START, TURN_END]
BYTES = 256
MIN_VOCAB = BYTES + len(SPECIAL_TOKENS)


def chat_template(turn_end: str = TURN_END) -> str:
    """Returns the ChatML template; what stands between the generation marks is what the assistant says."""
    return (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' }}"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] + '" + turn_end + "' }}{% endgeneration %}{{ '\\n' }}"
        "{% else %}{{ message['content'] + '" + turn_end + "\\n' }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )


LONG_WORD = re.compile(r"[^\W\d]{1000}|\W{1000}")

# Encoder-decoders read a prompt and write the answer elsewhere: nothing has to mark where one ends and the
# other begins.
READ_TEMPLATE = (
    "{% for message in messages %}"
    "{% if messages | length > 1 %}{{ message['role'] + ': ' }}{% endif %}{{ message['content'] }}"
    "{% if not loop.last %}{{ '\\n' }}{% endif %}"
    "{% endfor %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Returns a byte-level BPE tokenizer learned from `texts` (Sennrich et al. 2016), special tokens
    included.

    Args:
        texts: the corpus.
        vocab_size: size of the vocabulary; 260 (bytes and special tokens) means no merges at all.

    Raises:
        LabError: when `vocab_size` is below 260 or the corpus has too little text to reach it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < MIN_VOCAB:
        raise LabError(
            f"`vocab_size` {vocab_size} is too small for a byte-level tokenizer",
            remedy=f"use {MIN_VOCAB} (bytes only) or more",
        )
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_cut_words(texts), trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise LabError(
            f"this corpus gives only {tokenizer.get_vocab_size():,} tokens, not `vocab_size` {vocab_size:,}",
            remedy=f"use {tokenizer.get_vocab_size()} or more text",
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PADDING,
        eos_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START, TURN_END],
        chat_template=chat_template(),
        clean_up_tokenization_spaces=False,
    )


def _cut_words(texts: Iterable[str]) -> Iterator[str]:
    """Yields texts, cut in words that are longer than any: their pairs are counted in quadratic time."""
    for text in texts:
        start = 0
        for match in LONG_WORD.finditer(text):
            yield text[start : match.end()]
            start = match.end()
        yield text[start:]


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a tokenizer to a new folder, whole or not at all.

    Raises:
        LabError: when the folder holds something (models may read with it) or cannot be written.
    """
    if folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise LabError(
            "already exists", where=str(folder), remedy="choose another folder, or remove this one"
        )
    aside = folder.with_name(f".{folder.name}-{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(aside)
        aside.replace(folder)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        text = getattr(error, "strerror", None) or str(error)
        raise LabError(
            f"cannot be written ({text})", where=str(folder), remedy="free space or choose another place"
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a hub id or folder; `byte` has one token per byte.

    It has a padding token afterwards (its end token where it had none).

    Raises:
        LabError: when there is none of that name, or the hub cannot be reached.
    """
    if name == "byte":
        return train_tokenizer([], MIN_VOCAB)
    from transformers import AutoTokenizer

    is_file = name.endswith(".gguf")
    path = Path(name)
    if not path.exists() and (
        name.startswith((".", "/", "~", "checkpoints/")) or (name.count("/") != 1 and "/" in name)
    ):
        raise LabError(
            f"there is no tokenizer folder {name!r}", remedy="`llmlab tokenizer SOURCE -o FOLDER` trains one"
        )
    try:
        if is_file:
            tokenizer = AutoTokenizer.from_pretrained(_unpacked(path))
        else:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=name in TRUSTED)
    except (
        Exception
    ) as error:  # transformers raises many kinds for one situation: there is no such tokenizer here
        if path.exists():
            raise LabError(f"cannot load a tokenizer from it ({_first_line(error)})", where=name) from None
        raise LabError(
            f"the tokenizer {name!r} is not on this machine and could not be downloaded from the hub",
            remedy="use a local folder, `byte`, or train one with `llmlab tokenizer`",
        ) from None
    if not isinstance(tokenizer.model_max_length, (int, float)):
        value = shortened(repr(tokenizer.model_max_length), 60)
        raise LabError(f"tokenizer_config.json: `model_max_length` is {value}, not a number", where=name)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _unpacked(gguf: Path) -> Path:
    """Returns a folder with the tokenizer of a GGUF file, made once and kept in the cache."""
    import transformers

    from llmlab.data.cache import cached

    def build(folder: Path) -> dict[str, Any]:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        tokenizer.save_pretrained(folder)
        return {"from": str(gguf)}

    file = gguf.resolve()
    stat = file.stat()
    key = {"method": "gguf tokenizer", "file": str(file), "size": stat.st_size, "changed": stat.st_mtime_ns}
    return cached({**key, "transformers": transformers.__version__}, build)[0]


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool = True) -> list[int]:
    """Returns the tokens of a text."""
    ids: list[int] = tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
    return ids


def opening_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Returns the id of the token that a tokenizer puts before a text (Llama's, Gemma's); None for none."""
    ids, bare = text_ids(tokenizer, "a"), text_ids(tokenizer, "a", add_special_tokens=False)
    begins = len(ids) > len(bare) and ids[0] == tokenizer.bos_token_id
    return ids[0] if begins else None


def token_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int | None]:
    """Returns pad, bos and eos ids as a model configuration takes them."""
    return {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def ensure_chat_template(
    tokenizer: PreTrainedTokenizerBase, choice: str = "auto", *, seq2seq: bool = False
) -> list[int]:
    """Gives the tokenizer ChatML where it has no template (or `choice` is "chatml"); returns the ids that end
    an answer.

    Where the vocabulary lacks `<|im_end|>`, the end-of-text token ends a turn, so no embedding has to be
    added. An encoder-decoder (`seq2seq`) reads the plain text of a single message, lines of `role: text`
    of several.
    """
    if seq2seq and choice == "auto":
        tokenizer.chat_template = tokenizer.chat_template or READ_TEMPLATE
        return [tokenizer.eos_token_id]
    has_turn_end = TURN_END in tokenizer.get_vocab()
    if choice == "chatml" or not tokenizer.chat_template:
        tokenizer.chat_template = chat_template(TURN_END if has_turn_end else tokenizer.eos_token)
    return turn_ends(tokenizer)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
