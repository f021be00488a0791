"""Batches for the dual head: which hidden states stand before which tokens of which answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llmlab.data.rendering import IGNORE_INDEX

if TYPE_CHECKING:
    from torch import Tensor

PAYS = 0.85  # sharing a prompt takes a dense attention mask: it has to save at least this much


class DualHeadCollator:
    """Makes a batch of pairs, and of answers that stand alone.

    Rows have `prompt_ids`, `chosen_ids`, `chosen_labels` (-100 where nothing is learned) and `rejected_ids`
      (empty for an answer alone). The batch: - `input_ids` (R, T): each prompt with its chosen answer, then
      each prompt with its rejected one; or, where prompts are shared and that is less work, each prompt once
      with both answers behind it. Padding is on the right. Then also `position_ids` (R, T), in which the
      second answer begins where the first does, and `attention_mask` (R, 1, T, T), added to the scores, by
      which the answers do not see each other.
    - `labels` (N,): the tokens of the chosen answers; `chosen_at` (N,): where in the flattened rows the
      hidden state before each stands; `chosen_row` (N,): its row.
    - `rejected_ids`, `rejected_at`, `rejected_row` (M,): of the rejected answers.
    - `paired` (B,): whether a row is a pair. The first B of the R rows hold the chosen answers.

    Args:
        pad_token_id: fills rows up.
        share: whether prompts may be shared.
    """

    def __init__(self, pad_token_id: int, *, share: bool):
        self.pad_token_id, self.share = pad_token_id, share

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Returns the batch of `rows`."""
        import torch

        parts = [
            [np.asarray(row[name], np.int64) for name in ("prompt_ids", "chosen_ids", "rejected_ids")]
            for row in rows
        ]
        separate = [np.concatenate([prompt, chosen]) for prompt, chosen, _ in parts]
        separate += [np.concatenate([prompt, rejected]) for prompt, _, rejected in parts if len(rejected)]
        shared = [np.concatenate(row) for row in parts]
        together = self.share and len(shared) * max(map(len, shared)) < PAYS * len(separate) * max(
            map(len, separate)
        )
        sequences = shared if together else separate
        longest = max(map(len, sequences))
        ids = np.full((len(sequences), longest), self.pad_token_id, np.int64)
        for index, sequence in enumerate(sequences):
            ids[index, : len(sequence)] = sequence
        positions: dict[str, list[np.ndarray]] = {
            name: []
            for name in ("labels", "chosen_at", "chosen_row", "rejected_ids", "rejected_at", "rejected_row")
        }
        second = len(rows)  # the row of the next rejected answer, where prompts are not shared
        for index, ((prompt, chosen, rejected), row) in enumerate(zip(parts, rows, strict=True)):
            labels = np.asarray(row["chosen_labels"], np.int64)
            before = len(prompt) + np.arange(len(chosen)) - 1  # of the hidden state that predicts each token
            learned = (labels != IGNORE_INDEX) & (before >= 0)
            positions["labels"].append(labels[learned])
            positions["chosen_at"].append(index * longest + before[learned])
            positions["chosen_row"].append(np.full(learned.sum(), index))
            if not len(rejected):
                continue
            before = len(prompt) + np.arange(len(rejected)) - 1
            if together:
                before[1:] += len(
                    chosen
                )  # the first token is predicted by the prompt, the others by the answer itself
            place = index if together else second
            predicted = before >= 0
            positions["rejected_ids"].append(rejected[predicted])
            positions["rejected_at"].append(place * longest + before[predicted])
            positions["rejected_row"].append(np.full(predicted.sum(), index))
            second += 1
        flat = {name: np.concatenate([np.empty(0, np.int64), *values]) for name, values in positions.items()}
        batch = {"input_ids": ids, **flat, "paired": np.array([len(part[2]) > 0 for part in parts])}
        tensors = {name: torch.from_numpy(value) for name, value in batch.items()}
        if together:
            tensors["position_ids"], tensors["attention_mask"] = shared_prompt_mask(parts, longest)
        return tensors


def shared_prompt_mask(parts: list[list[np.ndarray]], longest: int) -> tuple[Tensor, Tensor]:
    """Returns `position_ids` (B, T) and the additive mask (B, 1, T, T) of rows of prompt,
    first and second answer.
    """
    import torch

    segments = np.full((len(parts), longest), 3, np.int64)  # 0 prompt, 1 and 2 the answers, 3 padding
    positions = np.zeros((len(parts), longest), np.int64)
    for index, (prompt, first, second) in enumerate(parts):
        ends = np.cumsum([len(prompt), len(first), len(second)])
        for segment, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            segments[index, start:end] = segment
        positions[index, : ends[1]] = np.arange(ends[1])
        positions[index, ends[1] : ends[2]] = len(prompt) + np.arange(len(second))
    part = torch.from_numpy(segments)
    seen = (part[:, :, None] == part[:, None, :]) | (part[:, None, :] == 0)
    seen &= torch.ones(longest, longest, dtype=torch.bool).tril()
    mask = torch.zeros(seen.shape).masked_fill_(~seen, torch.finfo(torch.float32).min)
    return torch.from_numpy(positions), mask.unsqueeze(1)
