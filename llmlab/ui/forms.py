"""Forms: a config class is walked field by field; every word and rule on the screen comes from the fields."""

from __future__ import annotations

import gc
import re
import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from types import FrameType
from typing import Any, Literal

from rich.console import Console

from llmlab.config.base import KindConfig
from llmlab.config.loader import KINDS
from llmlab.errors import LabError
from llmlab.planning.advice import concerns_about, ways_to_fit
from llmlab.planning.plan import make_plan
from llmlab.screen import LabConsole, styled
from llmlab.ui import drafts
from llmlab.ui.explanations import review, show
from llmlab.ui.fields import ask_option, parse_typed
from llmlab.ui.form_state import ADVANCED, FIXED, FormState, applies, default
from llmlab.ui.plan import in_words, live_figures, plan_rows, plan_table, way_in_words
from llmlab.ui.prompts import (
    EXPLAINS,
    HINT,
    JUMPS,
    Answer,
    Navigation,
    Option,
    Reply,
    ask,
    confirm,
    plain,
    select,
)

KEEP, CHANGE, DRAFT, LEAVE = "keep it", "change an option", "save it as a draft", "discard it"
GO_ON = "go on"
Left = Literal[Navigation.LEAVE]


class Ended(Enum):
    """A form that came to its end without a config."""

    WITHOUT = "a draft was kept, or all was thrown away"


def fill_in(
    config: KindConfig, console: Console | None = None, *, origin: str = "", given: Collection[str] = ()
) -> KindConfig | None:
    """Asks for every option that applies, shows the whole, and returns the config; None when the person
    leaves.

    The values of `config` are offered as they are; Enter keeps one. Escape goes back, "?" explains, Ctrl+C
    leaves and offers to keep what was answered as a draft, which the next form of this kind offers. `origin`
    says where the values come from, a preset or a file; the review shows what differs from it. Options in
    `given` were chosen already: they are not asked for again, and can be changed by name.
    """
    gc.freeze()  # what is loaded stays: looking through it for garbage would hold a question up
    cls = type(config)
    values = {  # what follows from other options is not an answer
        name: default(cls, name) if config.inapplicable(name) else getattr(config, name)
        for name in cls.model_fields
    }
    form = Form(FormState(cls, values, origin, given), console or LabConsole())
    form.console.print(styled("\n[bold]{}[/bold] [dim]Enter keeps a value[/dim]\n", config.TITLE))
    with form.kept_when_the_terminal_closes():
        outcome = form.run()
    if outcome is not None:
        drafts.forget(type(config))
    return outcome


class Form:
    """A walk through the options of a config class, a review, and the way out.

    Args:
        state: its answers.
        console: where it is shown.
    """

    def __init__(self, state: FormState, console: Console):
        self.state, self.console = state, console
        self._begun = self._draft_offered = False

    def run(self) -> KindConfig | None:
        """Returns the config that the person keeps; None when they leave."""
        while True:
            outcome = self.offer_draft() or self.walk() or self.finish()
            if isinstance(outcome, KindConfig):
                return outcome
            if outcome is Ended.WITHOUT or not self.stays():
                return None

    def offer_draft(self) -> Left | None:
        """Offers the answers of a form of this kind that was left, once."""
        if self._draft_offered or not (draft := drafts.kept(self.state.cls)):
            return None
        question = confirm("There is a draft of this form. Continue with it?")
        reply = ask(question, back=False)
        if not isinstance(reply, Answer):
            return Navigation.LEAVE
        self._draft_offered = True
        if reply.value:
            self.state.values.update(draft)
        return None

    def walk(self) -> Left | None:
        """Asks from the position on to the end; a step back goes to the question before."""
        if not self._begun:
            self._begun = True
            self.state.forward()
        while (name := self.state.position) is not None:
            reply = self.ask(name, back=name != self.state.steps()[0])
            if reply is Navigation.LEAVE:
                return reply
            if reply is Navigation.REST:
                self.state.to_the_end()
            elif reply is Navigation.FIND:
                if self._change_one() is Navigation.LEAVE:
                    return Navigation.LEAVE
            elif reply is Navigation.BACK:
                self.state.backward()
            else:
                self.state.forward()
        return None

    def ask(self, name: str, *, back: bool) -> Navigation | None:
        """Asks for one option and takes the answer; returns where the person goes instead."""
        state = self.state
        if name == ADVANCED:
            question = confirm("Show the advanced options too?", default=state.advanced)
            wish = ask(question, below=lambda _: HINT.replace(EXPLAINS, "").replace(JUMPS, ""), back=back)
            if isinstance(wish, Navigation):
                return wish
            state.advanced = wish.value
            return None
        return self._take(name, state.offered(name), back=back, jumps=True)

    def below(self, name: str, standing: object) -> str:
        """Returns the lines below a question: what the answers so far amount to, the one that stands there
        included; or why it does not go together with them, where it is one of those that do not.
        """
        value: Any = self.state.values[name] if standing is None else standing
        try:
            if isinstance(standing, str):
                value = parse_typed(self.state.cls, name, standing)
        except LabError:
            return HINT
        try:
            config = self.state.config(**{name: value})
            warnings = [f"warning: {in_words(concern)}" for concern in concerns_about(config, name)]
            return "\n".join([*live_figures(config), *warnings, HINT])
        except LabError as error:
            named = self._named_in(error)
            return f"{str(error).splitlines()[0]}\n{HINT}" if name in named or not named else HINT

    def finish(self) -> KindConfig | Ended | Left:
        """Shows the whole, lets single options be changed, and returns the config."""
        while True:
            config = self._made()
            if isinstance(config, Navigation):
                return config
            self._show(config)
            ways = {f"make it fit: {way_in_words(way)}": way.changes for way in ways_to_fit(config)}
            reply = ask(select("What now?", plain([*ways, KEEP, CHANGE, DRAFT, LEAVE])))
            if reply is Navigation.BACK:
                self.state.backward()
                left = self.walk()
            elif isinstance(reply, Navigation):
                return Navigation.LEAVE
            elif reply.value in ways:
                self.state.values.update(ways[reply.value])
                left = None
            elif reply.value == CHANGE:
                left = self._change_one()
            else:
                return self._end(reply.value, config)
            if left:
                return left

    def stays(self) -> bool:
        """Asks what is to become of the answers; returns whether the person stays."""
        if not self.state.has_answers():
            return False
        reply = ask(select("Leave the form?", plain([DRAFT, GO_ON, LEAVE])), back=False)
        choice = (
            reply.value if isinstance(reply, Answer) else DRAFT
        )  # left twice: nothing is lost all the same
        if choice == GO_ON:
            return True
        self._leave_with(choice)
        return False

    @contextmanager
    def kept_when_the_terminal_closes(self) -> Iterator[None]:
        """Keeps what was answered as a draft when SIGHUP or SIGTERM ends the program meanwhile."""

        def end(number: int, frame: FrameType | None) -> None:
            if self.state.has_answers():
                drafts.keep(self.state.cls, self.state.values)
            raise SystemExit(128 + number)

        before = {number: signal.signal(number, end) for number in (signal.SIGHUP, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _made(self) -> KindConfig | Left:
        """Returns the config of the answers; options that do not go together are asked for again."""
        while True:
            try:
                return self.state.config()
            except LabError as error:
                self.console.print(str(error), style="red")
                named = self._named_in(error)
            for name in named or self.state.cls.model_fields:
                if self._take(name, self.state.values[name]) is Navigation.LEAVE:
                    return Navigation.LEAVE

    def _named_in(self, error: LabError) -> list[str]:
        """Returns the options that an error is about."""
        named = re.findall(r"`(\w+)`", str(error))
        return [name for name in dict.fromkeys(named) if name in self.state.cls.model_fields]

    def _show(self, config: KindConfig) -> None:
        self.console.print(review(config, self.state.origin))
        if config.kind not in KINDS:  # nothing that is run
            return
        try:
            plan = make_plan(config)
            if any(plan_rows(plan)):
                self.console.print(plan_table(plan))
        except LabError as error:  # of a model on the disk: an option can be changed, and nothing is lost
            self.console.print(str(error), style="yellow")

    def _change_one(self) -> Left | None:
        """Lets the person choose an option by name and title, and asks for it."""
        options = [
            Option(f"{name}  ({info.title}: {show(self.state.values[name])})", name)
            for name, info in self.state.cls.options().items()
            if name not in FIXED and applies(info, self.state.values)
        ]
        question = select("Which one? (type to search)", options, use_search_filter=True, use_jk_keys=False)
        picked: Reply[str] = ask(question)
        if isinstance(picked, Answer):
            reply = self._take(picked.value, self.state.values[picked.value])
        else:
            reply = picked
        return Navigation.LEAVE if reply is Navigation.LEAVE else None

    def _take(self, name: str, offered: Any, *, back: bool = True, jumps: bool = False) -> Navigation | None:
        """Asks for one option; returns where the person goes instead of answering."""
        state = self.state
        below = partial(self.below, name)
        reply = ask_option(
            state.cls,
            name,
            offered,
            self.console,
            back=back,
            below=below,
            origin=state.origin,
            jumps=jumps,
        )
        if isinstance(reply, Navigation):
            return reply
        state.take(name, reply.value)
        return None

    def _end(self, choice: str, config: KindConfig) -> KindConfig | Ended:
        if choice == KEEP:
            return config
        self._leave_with(choice)
        return Ended.WITHOUT

    def _leave_with(self, choice: str) -> None:
        if choice == DRAFT:
            draft = drafts.keep(self.state.cls, self.state.values)
            self.console.print(f"draft saved as {draft}: the next form of this kind offers it")
        else:
            drafts.forget(self.state.cls)
