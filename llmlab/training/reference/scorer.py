"""The frozen reference by itself: loaded alone, asked what is not known yet, and freed before the policy is
there.

Rafailov et al. 2023, eq. 7 needs log ref(y|x), the sum over the tokens of the answer, of a model that never
changes: it is computed once, in whatever order is fast, and found by content later
(`data/reference_cache.py`).
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from datasets import Dataset
from peft import PeftModel, prepare_model_for_kbit_training
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmlab.config import DPOConfig
from llmlab.data.pairs import dpo_data
from llmlab.data.rendering import IGNORE_INDEX
from llmlab.data.tokenizer import ensure_chat_template, load_tokenizer
from llmlab.data.tokens import tokenizer_hash
from llmlab.errors import LabError
from llmlab.models.device import choose_device, choose_precision
from llmlab.models.identity import weights_fingerprint
from llmlab.models.load import load_model
from llmlab.models.log_probs import score_labels
from llmlab.models.policy import loading_kwargs
from llmlab.models.typed import moved
from llmlab.runs.folder import find_model
from llmlab.training.engine.distributed import processes
from llmlab.training.engine.memory import free_memory
from llmlab.training.engine.reporter import Reporter
from llmlab.training.padding_free import packed_log_probs
from llmlab.training.reference.cache import SUMS, Item, ReferenceCache, item_key, nearest_difference

ANSWERS = ("chosen", "rejected")
PART_ITEMS = 256  # values written at once: what a kill loses at most
PART_SECONDS = 30.0
TOLERANCE = (
    0.5  # of a recomputed log-probability of an answer: 16 bit products round to a few hundredths a token
)
TOKENS_AT_ONCE = 4096  # in one pass, where the config names no number of pairs


@dataclass
class Filled:
    """What filling a cache did.

    Attributes:
        computed: items that were not in the cache.
        cached: items that were.
        seconds: wall time, loading included.
        memory: bytes in use before the reference was loaded, at its peak, and after it was freed.
        left: items without values, which the run does not read.
    """

    computed: int
    cached: int
    seconds: float
    memory: tuple[int, int, int]
    left: int = 0

    def note(self) -> str:
        """Returns the line for the screen and the record."""
        unread = f", {self.left:,} that this run does not read left out" if self.left else ""
        if not self.computed:
            count = f"{self.cached:,} pairs cached, none computed{unread}"
            return f"reference: {count}; the reference was not loaded"
        before, peak, after = (f"{value / 1e9:.2f}" for value in self.memory)
        return (
            f"reference: {self.computed:,} pairs computed in {self.seconds:.0f} s, {self.cached:,}"
            f" cached{unread}; memory {before} GB before, {peak} GB with it, {after} GB after it was freed"
        )


@dataclass(frozen=True)
class Scoring:
    """How a reference computes.

    Attributes:
        device: where.
        precision: of its products.
        pad: id that fills rows.
        per_pass: items in one pass; None for as many as fill `TOKENS_AT_ONCE` tokens.
        packed: whether sequences share rows.
    """

    device: str
    precision: str
    pad: int
    per_pass: int | None = None
    packed: bool = True

    @classmethod
    def of(
        cls, config: DPOConfig, tokenizer: PreTrainedTokenizerBase, device: str, precision: str
    ) -> Scoring:
        """Returns what a config says."""
        assert isinstance(tokenizer.pad_token_id, int)
        return cls(
            device, precision, tokenizer.pad_token_id, config.reference_batch_size, config.padding_free
        )


def description(
    config: DPOConfig, tokenizer: PreTrainedTokenizerBase, precision: str, stores: str = SUMS
) -> dict[str, Any]:
    """Returns everything beside the token ids that the values of a reference depend on."""
    name = config.reference_checkpoint or config.policy_checkpoint
    return {
        "reference": weights_fingerprint(name),
        "name": str(name),
        "quantisation": config.quantised if config.adapter != "none" else "none",
        "precision": precision,
        "frozen_dtype": str(loading_kwargs(config, "cpu", precision)["dtype"]),
        "tokenizer": tokenizer_hash(tokenizer)[:16],
        "template": hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:16],
        "max_length": config.max_length,
        "max_prompt_length": config.max_prompt_length,
        "stores": stores,
    }


def load_reference(config: DPOConfig, device: str, precision: str) -> PreTrainedModel:
    """Returns the reference as training with `reference: live` would have it: same numbers, quantisation and
    kernels.

    Raises:
        LabError: when it does not load.
    """
    name = config.reference_checkpoint or config.policy_checkpoint
    kwargs = loading_kwargs(config, device, precision)
    model, _ = load_model(name, **kwargs)
    if config.adapter != "none" and config.quantised != "none" and not isinstance(model, PeftModel):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    elif "device_map" not in kwargs:
        moved(model, device)
    return model.eval().requires_grad_(False)


def with_reference(
    datasets: dict[str, Dataset],
    read: dict[str, Sequence[int]],
    config: DPOConfig,
    tokenizer: PreTrainedTokenizerBase,
    device: str,
    precision: str,
    reporter: Reporter,
) -> tuple[dict[str, Dataset], str]:
    """Returns pairs with the columns `ref_chosen_logps` and `ref_rejected_logps`, and a note on how they were
    got.

    Only what the run reads and the cache does not hold is computed; for that the reference is loaded, alone,
    and freed.

    Args:
        datasets: pairs by name.
        read: indices of the pairs of each that the run reads; what is not known of all others is NaN.
        config: of the run.
        tokenizer: of policy and reference.
        device: where the reference computes.
        precision: of its products.
        reporter: told of progress, faults and notes.

    Raises:
        LabError: when the reference does not load or gives values that are no numbers.
    """
    cache_key = description(config, tokenizer, precision)
    keys = {name: [item_key(item) for item in pairs_of(rows)] for name, rows in datasets.items()}
    with ReferenceCache.open(Path(config.cache_dir), cache_key) as cache:
        filled = fill(
            cache,
            [item for name, indices in read.items() for item in pairs_of(datasets[name].select(indices))],
            [keys[name][index] for name, indices in read.items() for index in indices],
            lambda: load_reference(config, device, precision),
            Scoring.of(config, tokenizer, device, precision),
            reporter,
        )
    filled.left = len({key for part in keys.values() for key in part if key not in cache})
    scored = {}
    unknown = [math.nan] * len(ANSWERS)
    for name, rows in datasets.items():
        values = [cache.get(key) if key in cache else unknown for key in keys[name]]
        columns = {
            f"ref_{answer}_logps": [float(value[index]) for value in values]
            for index, answer in enumerate(ANSWERS)
        }
        table = rows.with_format("arrow")[:]
        import pyarrow as pa

        for column, numbers in columns.items():
            table = table.append_column(column, pa.array(numbers, pa.float32()))
        scored[name] = Dataset(table)
    return scored, filled.note()


def pairs_of(rows: Dataset) -> Iterator[Item]:
    """Yields prompt, chosen and rejected ids of every pair."""
    for row in rows:
        yield row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]


def fill(
    cache: ReferenceCache,
    items: list[Item],
    keys: list[bytes],
    load: Callable[[], PreTrainedModel],
    how: Scoring,
    reporter: Reporter,
) -> Filled:
    """Computes and stores the values of all items that the cache does not hold.

    Args:
        cache: to fill.
        items: prompt and answers as token ids.
        keys: of the items.
        load: loads the reference; called only when something is missing.
        how: the reference computes.
        reporter: told of progress, faults and notes.

    Raises:
        LabError: when the reference gives values that are no numbers, or the disk is full.
    """
    began = time.perf_counter()
    for fault in cache.faults:
        reporter.warning(fault)
    missing = cache.missing(keys)
    if not len(cache) and (other := nearest_difference(cache.folder.parent, cache.description)):
        reporter.warning(f"reference cache: {other}")
    before = memory_now(how.device)
    peak = before
    mine = missing[int(_rank()) :: processes()]
    if missing:
        model = load()
        peak = memory_now(how.device)
        order = sorted(
            mine, key=lambda index: -sum(map(len, items[index]))
        )  # the longest first: memory fails at once or never
        done_keys: list[bytes] = []
        done_values: list[Any] = []
        written = time.perf_counter()
        with reporter.counting("reference", "pairs", len(mine)) as advance:
            for part in _passes(order, items, how.per_pass):
                values = reference_values(
                    model, [items[index] for index in part], how, stores=cache.description.get("stores", SUMS)
                )
                done_keys += [keys[index] for index in part]
                done_values += values
                peak = max(peak, memory_now(how.device))
                advance(len(part))
                if len(done_keys) >= PART_ITEMS or time.perf_counter() - written > PART_SECONDS:
                    _write_part(cache, done_keys, done_values)
                    done_keys, done_values, written = [], [], time.perf_counter()
        _write_part(cache, done_keys, done_values)
        del model
        free_memory()
    barrier()
    cache.read()
    left = cache.missing(keys)
    if left:
        raise LabError(
            f"{len(left):,} pairs have no reference values",
            where=str(cache.folder),
            exit_code=1,
            remedy="run it again: they are computed then",
        )
    return Filled(
        computed=len(missing),
        cached=len(set(keys)) - len(missing),
        seconds=time.perf_counter() - began,
        memory=(before, peak, memory_now(how.device)),
    )


def recompute(config: DPOConfig, count: int) -> tuple[int, float]:
    """Computes some of a config's cached pairs again; returns how many, and the largest difference to what is
    stored.

    Raises:
        LabError: when none of its pairs is cached.
    """
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    tokenizer = load_tokenizer(find_model(config.policy_checkpoint))
    ensure_chat_template(tokenizer)
    data = dpo_data(config, tokenizer)
    with ReferenceCache.open(Path(config.cache_dir), description(config, tokenizer, precision)) as cache:
        pass  # all of it is read
    items_by_key = {
        item_key(item): item for rows in (data.train, *data.eval.values()) for item in pairs_of(rows)
    }
    keys = [key for key in items_by_key if key in cache]
    if not keys:
        other = nearest_difference(cache.folder.parent, cache.description)
        raise LabError(
            "holds none of this config's pairs" + (f" ({other})" if other else ""), where=config.cache_dir
        )
    keys = [keys[index * len(keys) // min(count, len(keys))] for index in range(min(count, len(keys)))]
    how = Scoring.of(config, tokenizer, device, precision)
    model = load_reference(config, device, precision)
    largest = 0.0
    for part in _passes(
        list(range(len(keys))), [items_by_key[key] for key in keys], config.reference_batch_size
    ):
        items = [items_by_key[keys[index]] for index in part]
        values = reference_values(model, items, how)
        for index, value in zip(part, values, strict=True):
            largest = max(
                largest,
                *(abs(new - float(old)) for new, old in zip(value, cache.get(keys[index]), strict=True)),
            )
    return len(keys), largest


@torch.no_grad()
def reference_values(
    model: PreTrainedModel,
    items: Sequence[Item],
    how: Scoring,
    *,
    stores: str = SUMS,
) -> list[Any]:
    """Returns log ref(y|x) of every answer of each item: sums over its tokens, or with `stores: tokens` each
    token's.

    Prompt and padding never count. Sequences share rows of the longest one's width when `how.packed`.
    """
    sequences = [(list(item[0]), list(answer)) for item in items for answer in item[1:]]
    width, device = max(len(prompt) + len(answer) for prompt, answer in sequences), model.device
    ids = torch.full((len(sequences), width), how.pad)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORE_INDEX)
    for row, (prompt, answer) in enumerate(sequences):
        length = len(prompt) + len(answer)
        ids[row, :length] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : length] = torch.tensor(answer)
        mask[row, :length] = 1
    labels[:, 0] = IGNORE_INDEX  # the first token of a sequence follows from nothing
    ids, mask, labels = (part.to(device) for part in (ids, mask, labels))
    kind = torch.bfloat16 if how.precision == "bf16" else torch.float16
    with torch.autocast(device.type, dtype=kind, enabled=how.precision != "fp32"):
        if how.packed:
            log_probs = packed_log_probs(model, ids, mask, labels)
        else:
            log_probs = score_labels(model, ids, labels, attention_mask=mask)
    log_probs = log_probs.float()
    if stores == SUMS:  # added up as TRL's trainer does: whole rows, zeros included
        answers = iter(log_probs.sum(dim=1).tolist())
    else:
        answers = iter(
            row[max(0, len(prompt) - 1) : len(prompt) + len(answer) - 1].numpy()
            for row, (prompt, answer) in zip(log_probs.cpu(), sequences, strict=True)
        )
    return [[next(answers) for _ in item[1:]] for item in items]


def _passes(order: list[int], items: list[Item], per_pass: int | None) -> Iterator[list[int]]:
    part: list[int] = []
    tokens = 0
    for index in order:
        size = sum(len(items[index][0]) + len(answer) for answer in items[index][1:])
        full = len(part) >= per_pass if per_pass else tokens + size > TOKENS_AT_ONCE
        if part and full:
            yield part
            part, tokens = [], 0
        part.append(index)
        tokens += size
    if part:
        yield part


def _write_part(cache: ReferenceCache, keys: list[bytes], values: list[Any]) -> None:
    try:
        cache.append(keys, values)
    except ValueError as error:
        raise LabError(
            str(error), where=str(cache.folder), exit_code=1, remedy="look at the reference, or use fp32"
        ) from None
    except OSError as error:
        there = cache.folder.is_dir()
        raise LabError(
            f"writing failed ({error.strerror})" if there else "was deleted while it was being filled",
            where=str(cache.folder),
            exit_code=1,
            remedy=(
                "free space and start again: what was written is kept"
                if there
                else "start again: it is filled again"
            ),
        ) from None


def memory_now(device: str) -> int:
    """Returns the bytes in use: on the GPU, or of this process."""
    return torch.cuda.memory_allocated() if device == "cuda" else psutil.Process().memory_info().rss


def _rank() -> str:
    import os

    return os.environ.get("RANK", "0")


def barrier() -> None:
    """Waits until every process of the job is here; returns at once where there is only one."""
    if processes() > 1:
        torch.distributed.barrier()
