"""Who says what an answer is worth: a model that is here, a served one, or the row's own reference.

A model is asked the same question as in a classification (`QUESTION`). One that is here finds the likeliest
of the four words; a served one says a word. What it says that holds none is "unreadable": it counts as no
verdict, and is a figure of its own.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from llmlab.config.judges import judged_by_reference
from llmlab.data.schemas import user
from llmlab.data.verdicts import QUESTION, UNREADABLE, VERDICTS
from llmlab.endpoint import address_and_model, client_of, told
from llmlab.errors import LabError
from llmlab.evaluation.classification import label_prompt_ids, score_words
from llmlab.journal import Journal
from llmlab.models.identity import known_weights
from llmlab.models.typed import LanguageModel

SAID = "verdicts.jsonl"  # what a served judge said, in an evaluation's folder
AT_ONCE = 8  # requests
RETRIES, TIMEOUT = 5, 120.0  # of a request, each later than the one before; seconds of one
NEGATED = re.compile(r"(?:\bnot|n't|\bneither|\bnor)(?: \w+)? $")


@dataclass(frozen=True)
class Verdict:
    """What an answer is worth.

    Attributes:
        word: one of the four, or "unreadable".
        more: what is kept beside it: `verdicts` (log pi of each) or `judge_said`.
    """

    word: str
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """An answer that is judged: to which text and question, and what would be right."""

    prompt: str
    answer: str
    reference: str

    @property
    def question(self) -> str:
        """What a judge is asked."""
        return QUESTION.replace("{prompt}", self.prompt).replace("{answer}", self.answer)


class Judge(Protocol):
    """Who judges answers."""

    def judge(self, claims: Sequence[Claim]) -> list[Verdict]:
        """Returns what each answer is worth, in order."""


class ByReference:
    """Compares with the reference, to the letter: for rows whose answers are words that the text has.

    An answer is supported where it is the reference, and abstained where it says that the text does not have
    it. Whatever else is said contradicts the reference, or is unsupported where the text does not say.

    Args:
        abstention: the reference of rows whose text does not say.
    """

    def __init__(self, abstention: str):
        self.abstention = abstention.strip()

    def judge(self, claims: Sequence[Claim]) -> list[Verdict]:
        """Returns what each answer is worth."""
        return [Verdict(self._word(one.answer.strip(), one.reference.strip())) for one in claims]

    def _word(self, answer: str, reference: str) -> str:
        if answer in (self.abstention, ""):
            return "abstained"
        if reference == self.abstention:
            return "unsupported"
        return "supported" if answer == reference else "contradicted"


class LocalJudge:
    """A model that is here: the likeliest of the four words behind the question."""

    def __init__(self, model: LanguageModel, tokenizer: Any):
        self.model, self.tokenizer = model, tokenizer

    def judge(self, claims: Sequence[Claim]) -> list[Verdict]:
        """Returns what each answer is worth."""
        return self.ask([one.question for one in claims])

    def ask(self, questions: Sequence[str]) -> list[Verdict]:
        """Returns the likeliest word behind each question, with log pi of all four."""
        seq2seq = self.model.config.is_encoder_decoder
        ids = [label_prompt_ids(self.tokenizer, {"prompt": user(one)}, seq2seq=seq2seq) for one in questions]
        scores = score_words(self.model, self.tokenizer, ids, list(VERDICTS)).double().cpu().tolist()
        found = [dict(zip(VERDICTS, values, strict=True)) for values in scores]
        return [Verdict(max(VERDICTS, key=one.__getitem__), {"verdicts": one}) for one in found]


class ServedJudge:
    """A model behind a server of OpenAI's form: what it says, read.

    What was said once is kept in a file as it comes, and not asked again.

    Args:
        url: of the server, with `#` and the model's name behind it; without, the server's first model.
        max_tokens: of an answer.
        folder: of the evaluation.

    Raises:
        LabError: when the server is not reached, the key is wrong, or there is no such model.
    """

    def __init__(self, url: str, max_tokens: int, folder: Path):
        self.address, self.name = address_and_model(url)
        self.url, self.max_tokens = url, max_tokens
        self.settings: dict[str, Any] = {"temperature": 0, "max_tokens": max_tokens}
        self.client = client_of(self.address, retries=RETRIES, timeout=TIMEOUT)
        self.journal = Journal(folder / SAID)
        self.said: dict[str, str] = {str(row["key"]): str(row["said"]) for row in self.journal.rows()}
        try:
            self._find_model()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes its connections."""
        self.client.close()

    def _find_model(self) -> None:
        """Takes the server's first model where none is named; asks only for that, and whether it is there."""
        from openai import NotFoundError

        patient = self.client.with_options(max_retries=1)
        try:
            with told(self.address, "start the server, or look at the address of `judge`"):
                names = [one.id for one in patient.models.list()]
        except LabError as error:
            if not isinstance(error.__context__, NotFoundError):
                raise
            if not self.name:
                remedy = f"name one: {self.address}#NAME"
                raise LabError("has no list of its models", where=self.address, remedy=remedy) from None
            return
        if not names or (self.name and self.name not in names):
            served = f", but {', '.join(names[:10])}" if names else ""
            raise LabError(f"serves no model {self.name!r}{served}", where=self.address)
        self.name = self.name or names[0]

    def judge(self, claims: Sequence[Claim]) -> list[Verdict]:
        """Returns what each answer is worth."""
        return self.ask([one.question for one in claims])

    def ask(self, questions: Sequence[str]) -> list[Verdict]:
        """Returns what the model says to each question, in order.

        Raises:
            LabError: with exit code 1 when the server refuses or does not answer; what it said until then is
                kept.
        """
        keys = [self._key(one) for one in questions]
        missing = {key: one for key, one in zip(keys, questions, strict=True) if key not in self.said}
        if missing:
            self._ask_anew(missing)
        return [Verdict(read_verdict(self.said[key]), {"judge_said": self.said[key]}) for key in keys]

    def _ask_anew(self, questions: dict[str, str]) -> None:
        failed: LabError | None = None
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            asked = {pool.submit(self._answer, question): key for key, question in questions.items()}
            for one in as_completed(asked):
                if one.cancelled():
                    continue
                try:
                    said = one.result()
                except LabError as error:
                    failed = failed or error
                    pool.shutdown(wait=False, cancel_futures=True)  # those under way are waited for
                    continue
                self.journal.append({"key": asked[one], "model": self.name, "said": said})
                self.said[asked[one]] = said
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if failed:
            raise LabError(
                failed.what,
                where=failed.where,
                remedy=failed.remedy or "the same command goes on",
                exit_code=1,
            )

    def _answer(self, question: str) -> str:
        import openai

        with told(self.address, "the same command goes on once it answers"):
            while True:
                settings = self.settings
                try:
                    answer = self.client.chat.completions.create(
                        model=self.name, messages=[{"role": "user", "content": question}], **settings
                    )
                except openai.BadRequestError as error:
                    if error.param not in settings:
                        raise
                    self.settings = _without(str(error.param), settings)
                else:
                    return answer.choices[0].message.content or ""

    def _key(self, question: str) -> str:
        asked = json.dumps([self.address, self.name, self.max_tokens, question], ensure_ascii=False)
        return hashlib.blake2b(asked.encode(errors="replace"), digest_size=16).hexdigest()


def _without(refused: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns settings without one that a model refuses: models that think take no temperature, and call the
    tokens of an answer otherwise.
    """
    kept = {name: value for name, value in settings.items() if name != refused}
    return {**kept, "max_completion_tokens": settings[refused]} if refused == "max_tokens" else kept


def read_verdict(said: str) -> str:
    """Returns the word of the four that an answer gives; "unreadable" where it gives none, several, or a word
    with a "not" before it.

    Thoughts before `</think>` are left out; of several lines the last one with a word counts.
    """
    text = said.rpartition("</think>")[2].lower()
    for line in reversed(text.splitlines()):
        matches = list(re.finditer(rf"\b({'|'.join(VERDICTS)})\b", line))
        if not matches:
            continue
        words = {one[0] for one in matches}
        negated = any(NEGATED.search(line[: one.start()]) for one in matches)
        return UNREADABLE if len(words) > 1 or negated else matches[0][0]
    return UNREADABLE


def judge_identity(name: str, max_tokens: int) -> Any:
    """Returns what the verdicts of a judge depend on beside what it is asked."""
    if name.startswith(("http://", "https://")):
        return [name, max_tokens]
    return known_weights(name) or name


def reference_judge(name: str) -> ByReference | None:
    """Returns the judge that a reference is; None for a judge of another kind."""
    abstention = judged_by_reference(name)
    return None if abstention is None else ByReference(abstention)
