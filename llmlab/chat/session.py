"""A conversation with a model that is loaded here."""

from __future__ import annotations

from collections.abc import Generator

from transformers import PreTrainedTokenizerBase

from llmlab.chat.choices import Choice, Tokens
from llmlab.chat.conversation import Conversation
from llmlab.chat.generation import encode, is_chat_model, model_arguments, stream
from llmlab.chat.pieces import Piece
from llmlab.config.base import validate
from llmlab.config.chat import ChatSettings
from llmlab.config.loading import LoadOptions
from llmlab.data.rendering import render
from llmlab.data.tokenizer import text_ids
from llmlab.errors import LabError
from llmlab.models import LabDualHeadForCausalLM
from llmlab.models.transformer.context import context_length
from llmlab.models.typed import LanguageModel


class ChatSession(Conversation):
    """One conversation with one model.

    A model with a chat template is chatted with; a base model continues the text it is given.

    Args:
        model: to talk to.
        tokenizer: its own.
        settings: how it answers.
        name: shown; left out, the model's own.
        plain: of a dual head, whether its backbone alone is talked to.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: ChatSettings,
        *,
        name: str = "",
        plain: bool = False,
    ):
        super().__init__(name or model.config.name_or_path or "", settings, chats=is_chat_model(tokenizer))
        self.model, self.tokenizer, self.plain = model.eval(), tokenizer, plain
        self.asked = ""  # the prompt of the last answer

    def beside(self, name: str, options: LoadOptions | None = None) -> ChatSession:
        """Returns a session of the same settings with another model, loaded as `options` say; the backbone of
        a dual head is in memory already.
        """
        from llmlab.models.load import is_backbone_of
        from llmlab.models.loading import load_for_use

        if is_backbone_of(name, self.model):
            return ChatSession(self.model, self.tokenizer, self.settings, name=name, plain=True)
        options = options or validate(LoadOptions, {"device": self.model.device.type})
        model, tokenizer = load_for_use(name, options)
        return ChatSession(model, tokenizer, self.settings, name=name)

    def prompt(self, said: str) -> str:
        """Returns the text that the model continues when `said` comes next.

        Raises:
            LabError: when it is no text.
        """
        self.refuse_no_text(said)
        if not self.chats:
            return said
        said_now = {"role": "user", "content": said}
        return render(self.tokenizer, [*self._system(), *self.messages, said_now], generate=True)

    def _system(self) -> list[dict[str, str]]:
        prompt = self.settings.system_prompt
        return [{"role": "system", "content": prompt}] if prompt else []

    @property
    def fused(self) -> bool:
        """Whether there is an alignment to turn."""
        return isinstance(self.model, LabDualHeadForCausalLM) and not self.plain

    def pieces(self, said: str) -> Generator[Piece, None, object]:
        """Yields the answer piece by piece; closing the iterator stops the model.

        Raises:
            LabError: when the prompt is empty of tokens, or has more than the model reads.
        """
        settings = self.settings.model_copy(update={"alignment": 0.0}) if self.plain else self.settings
        self.asked, self.spoken = self.prompt(said), []
        return stream(self.model, self.tokenizer, self.asked, settings, self.spoken)

    def tokens(self) -> Tokens:
        """Returns how long the conversation is; of a base model the last text and what followed."""
        if not self.chats:
            text = "".join(one["content"] for one in self.messages[-2:])
        elif not self.messages:
            text = ""
        else:
            text = render(self.tokenizer, [*self._system(), *self.messages], generate=False)
        ids = text_ids(self.tokenizer, text, add_special_tokens=not self.chats) if text else []
        return Tokens(len(ids), context_length(self.model))

    def why(self, count: int) -> list[Choice]:
        """Returns the tokens of the last answer and the likeliest in their place.

        Raises:
            LabError: when there is no answer, or it was loaded as text.
        """
        from llmlab.chat.alternatives import choices

        if not (self.spoken and self.messages):
            raise LabError("there is no answer that was given here", remedy="say something first")
        prompt = encode(self.model, self.tokenizer, self.asked, self.settings).ids
        settings = self.settings.model_copy(update={"alignment": 0.0}) if self.plain else self.settings
        arguments = model_arguments(self.model, settings)
        return choices(self.model, self.tokenizer, prompt, self.spoken, count, **arguments)
