"""What the model says as it learns: after every validation the greedy answer to one held-out prompt,
the same each time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from llmlab.data.pipeline import Prepared
from llmlab.data.rendering import decode_answer, render
from llmlab.models.typed import LanguageModel
from llmlab.runs.folder import RunFolder
from llmlab.training.callbacks.stop import Stopped

OPENING = 16  # tokens of a held-out text that a base model continues from


def opening(data: Prepared, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the tokens of a held-out prompt: what precedes the first answer of a row, or how a text begins;
    none where nothing is held out.
    """
    for rows in data.eval.values():
        for row in rows.select(range(min(len(rows), 1))):
            if "prompt" in row:
                text = render(tokenizer, row["prompt"], generate=True)
                tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
                return tokens
            parts = {
                name: [int(token) for token in row[name]] for name in row if name.endswith(("ids", "labels"))
            }
            if parts.get("prompt_ids"):
                return parts["prompt_ids"]
            ids = parts.get("chosen_ids") or parts.get("input_ids") or []
            labels = parts.get("chosen_labels") or parts.get("labels") or []
            if labels and len(labels) != len(ids):  # an encoder-decoder: the prompt is a sequence by itself
                return ids
            return ids[: next((place for place, label in enumerate(labels) if label >= 0), 0) or OPENING]
    return []


class Samples(TrainerCallback):
    """Lets the model answer after every validation, and keeps the answers in `samples.jsonl`.

    Nothing of the run changes by it: the answer is greedy, so no random number is drawn.

    Args:
        folder: of the run.
        model: that learns.
        tokenizer: of the model.
        prompt: tokens that it continues from.
        length: tokens of an answer, at most.
        show: takes step, prompt and answer.
    """

    def __init__(
        self,
        folder: RunFolder,
        model: LanguageModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt: list[int],
        length: int,
        show: Callable[[int, str, str], None],
    ):
        self.folder, self.model, self.tokenizer = folder, model, tokenizer
        self.prompt, self.length, self.show = prompt, length, show

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Makes up for a sample that a stop broke off."""
        if state.global_step and any(
            line["step"] == state.global_step and any(key.startswith("eval_") for key in line)
            for line in self.folder.metrics()
        ):
            self.on_evaluate(args, state, control)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Takes a sample, one a step."""
        taken = self.folder.samples()
        if not self.prompt or (taken and taken[-1]["step"] == state.global_step):
            return
        try:
            answer = self.answer()
        except Stopped:
            if state.global_step >= state.max_steps:
                raise  # no forward pass comes after this one
            return  # the next forward pass is stopped as well; the evaluation before this is complete
        prompt = str(self.tokenizer.decode(self.prompt, skip_special_tokens=True))
        self.folder.log_sample({"step": state.global_step, "prompt": prompt, "answer": answer})
        self.show(state.global_step, prompt, answer)

    def answer(self) -> str:
        """Returns the greedy answer."""
        model, was = self.model, self.model.training
        ids = torch.tensor([self.prompt], device=model.device)
        greedy = GenerationConfig(
            max_new_tokens=self.length,
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=model.generation_config.eos_token_id,
        )
        model.eval()
        try:
            with torch.no_grad():
                out = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=greedy
                )
        finally:
            model.train(was)
        new = out[0, 1 if model.config.is_encoder_decoder else ids.shape[1] :]
        return decode_answer(self.tokenizer, new.tolist(), greedy.eos_token_id)
