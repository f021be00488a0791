"""Answering a file of prompts: batches as large as fit, halved when they do not, written as they come."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerBase

from llmlab.chat.answers_file import ERROR, FINISH, AnswersFile
from llmlab.chat.batch import MOST, Answered, answer_batch, rows_that_fit
from llmlab.chat.generation import Encoded, encode, is_chat_model
from llmlab.chat.prompts_file import PromptRow
from llmlab.config.chat import ChatSettings
from llmlab.data.rendering import check_parts, render
from llmlab.data.schemas import InvalidRow, user
from llmlab.errors import LabError
from llmlab.models.device import free_bytes
from llmlab.models.typed import LanguageModel


class Listener(Protocol):
    """Who is told how far it is."""

    def answered(self, rows: int, errors: int, batch: int) -> None:
        """Takes rows that were written, how many of them have an error, and the size of the batch."""

    def warn(self, text: str) -> None:
        """Takes a line that deserves attention."""


@dataclass
class Answering:
    """A model that answers rows.

    Attributes:
        model: in evaluation mode.
        tokenizer: its own.
        settings: how it answers.
        most: rows of a batch; 0 for as many as fit.
    """

    model: LanguageModel
    tokenizer: PreTrainedTokenizerBase
    settings: ChatSettings
    most: int = 0
    chats: bool = field(init=False)

    def __post_init__(self) -> None:
        self.chats = is_chat_model(self.tokenizer)

    def prompt(self, row: PromptRow) -> str:
        """Returns the text that the model continues.

        Raises:
            LabError: when the row cannot be rendered.
        """
        if not self.chats:
            if isinstance(row.prompt, str):
                return row.prompt
            raise LabError("a base model continues a text: it has no chat template for messages")
        turns = user(row.prompt) if isinstance(row.prompt, str) else row.prompt
        if self.settings.system_prompt and turns[0]["role"] != "system":
            turns = [{"role": "system", "content": self.settings.system_prompt}, *turns]
        try:
            check_parts(self.tokenizer, turns)
        except InvalidRow as invalid:
            raise LabError(invalid.reason) from None
        return render(self.tokenizer, turns, generate=True)

    def refuse(self, rows: Iterable[PromptRow]) -> None:
        """Refuses conversations for a model that has no chat template.

        Raises:
            LabError: naming the first row.
        """
        if self.chats:
            return
        row = next((row for row in rows if not isinstance(row.prompt, str)), None)
        if row or self.settings.system_prompt:
            raise LabError(
                f"row {row.number} holds messages, and a base model has no chat template"
                if row
                else "a base model has no system prompt",
                where=self.model.config.name_or_path or "",
                remedy="fine-tune it first, or give it texts to continue",
            )

    def answer(self, rows: Iterable[PromptRow], into: AnswersFile, listener: Listener) -> int:
        """Answers rows in their order and writes them batch by batch; returns how many could not be answered.

        A row that cannot be answered (a prompt that is too long, a conversation that the template refuses)
        has the reason in its column `error` and null as its answer.

        Raises:
            LabError: when the model fails, or the file cannot be written; what is written stays.
        """
        waiting = self._encoded(rows)
        errors = 0
        most = self.most or MOST
        while batch := list(itertools.islice(waiting, most)):
            while batch:
                part = batch[: self._fitting(batch, most)]
                asked = [one for one in part if one.encoded]
                try:
                    answers = self._answers(asked)
                except MemoryError:
                    most = max(1, len(asked) // 2)
                    listener.warn(f"out of memory with {len(asked)} prompts at a time: going on with {most}")
                    continue
                into.append([_line(into, one, answers.get(one.row.number)) for one in part])
                failed = sum(not isinstance(answers.get(one.row.number), Answered) for one in part)
                errors += failed
                listener.answered(len(part), failed, len(asked))
                batch = batch[len(part) :]
        return errors

    def _encoded(self, rows: Iterable[PromptRow]) -> Iterator[_Waiting]:
        for row in rows:
            try:
                yield _Waiting(row, encode(self.model, self.tokenizer, self.prompt(row), self.settings), "")
            except LabError as error:
                yield _Waiting(row, None, error.what)  # its remedy is for a chat

    def _fitting(self, batch: Sequence[_Waiting], most: int) -> int:
        """Returns how many of the next rows are answered at once."""
        lengths = [len(one.encoded.ids) + one.encoded.room for one in batch if one.encoded]
        if self.most or not lengths:
            return most
        size = torch.empty(0, dtype=self.model.dtype).element_size()
        fit = rows_that_fit(self.model.config, max(lengths), size, free_bytes(self.model.device))
        return min(most, fit)

    def _answers(self, asked: Sequence[_Waiting]) -> dict[int, Answered | str]:
        """Returns the answers by the numbers of their rows; of a single row that does not fit, the reason.

        Raises:
            MemoryError: when several do not fit together.
        """
        if not asked:
            return {}
        numbers = [one.row.number for one in asked]
        prompts = [one.encoded for one in asked if one.encoded]
        try:
            answered = answer_batch(self.model, self.tokenizer, prompts, numbers, self.settings)
        except MemoryError:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if len(asked) > 1:
                raise
            return {numbers[0]: f"out of memory with this prompt of {len(prompts[0].ids):,} tokens alone"}
        return dict(zip(numbers, answered, strict=True))


@dataclass(frozen=True)
class _Waiting:
    """A row with its prompt as tokens, or why there is none."""

    row: PromptRow
    encoded: Encoded | None
    fault: str


def _line(into: AnswersFile, one: _Waiting, answer: Answered | str | None) -> bytes:
    if isinstance(answer, Answered):
        return into.row(one.row, **{into.column: answer.text, FINISH: answer.finish_reason})
    return into.row(one.row, **{into.column: None, ERROR: answer or one.fault})
