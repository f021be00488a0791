"""The screen of an assessment, with prompt_toolkit: one item at a time, a key is a judgement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prompt_toolkit.application import Application
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import ConditionalContainer, FormattedTextControl, HSplit, Layout, Window
from prompt_toolkit.output import Output
from prompt_toolkit.widgets import TextArea
from rich.cells import set_cell_size

from llmlab.errors import LabError
from llmlab.evaluation.assessment import EQUAL, FIRST, SECOND, UNSURE, Session, keys_of
from llmlab.evaluation.judged_items import Item
from llmlab.readable import printable
from llmlab.ui.lines import wrapped

RESERVED = "nzvjkq"
PAIR_KEYS = {"1": FIRST, "2": SECOND, "=": EQUAL, "e": EQUAL, "u": UNSURE}
OF_PAIRS = "1 the first is better · 2 the second · = equal · u unsure"
OTHER_KEYS = "n note · z undo · Tab later · v reference · ↑↓ scroll · q leave"
BESIDE = 110  # columns from which on two answers stand beside each other
BAR = 20
HEADER, FOOTER = 2, 3  # lines
QUICK = 0.05  # seconds until a lone Escape is one

Line = StyleAndTextTuples


class AssessScreen:
    """An assessment on the screen.

    Args:
        session: what is judged.
        title: of the evaluation.
        assessor: who judges.
        keyboard: where keys come from; left out, the terminal.
        output: where it is drawn; left out, the terminal.
    """

    def __init__(
        self,
        session: Session,
        title: str,
        assessor: str,
        *,
        keyboard: Input | None = None,
        output: Output | None = None,
    ):
        self.session, self.title, self.assessor = session, title, assessor
        self.top, self.shows_reference, self.message = 0, True, ""
        self.drawn: tuple[tuple[str, int, bool], list[Line]] | None = None
        pairs = session.judgements.mode == "pairs"
        self.keys = PAIR_KEYS if pairs else keys_of(session.categories, RESERVED)
        self.note = TextArea(height=1, prompt="note: ", multiline=False, accept_handler=self._take_note)
        self.app: Application[None] = Application(
            layout=self._layout(),
            key_bindings=self._bindings(),
            full_screen=True,
            input=keyboard,
            output=output,
        )
        self.app.ttimeoutlen = QUICK

    def run(self) -> None:
        """Judges until everything is judged and the person leaves, or before."""
        self.app.run()

    # What is drawn

    def _layout(self) -> Layout:
        writing = has_focus(self.note)
        self.body = Window(FormattedTextControl(self._body, focusable=True), always_hide_cursor=True)
        parts = [
            Window(FormattedTextControl(self._header), height=HEADER),
            self.body,
            ConditionalContainer(self.note, filter=writing),
            ConditionalContainer(Window(FormattedTextControl(self._footer), height=FOOTER), filter=~writing),
        ]
        return Layout(HSplit(parts), focused_element=self.body)

    @property
    def size(self) -> tuple[int, int]:
        """Columns, and lines of the body."""
        size = self.app.output.get_size()
        return size.columns, max(1, size.rows - HEADER - FOOTER)

    def _header(self) -> Line:
        done, count = self.session.done, len(self.session.items)
        filled = round(BAR * done / count)
        bar = printable("█" * filled + "░" * (BAR - filled))
        about = f"{done} of {count} {bar} {done / count:.0%} · {self.title} · {self.assessor}"
        width = self.size[0]
        return [
            ("bold", set_cell_size(printable(about), width) + "\n"),
            ("fg:ansibrightblack", printable("─" * width)),
        ]

    def _footer(self) -> Line:
        line = self.message or (f"note: {self.session.note}" if self.session.note else "")
        verdicts = OF_PAIRS if self.keys is PAIR_KEYS else self._category_keys()
        width = self.size[0] - 1
        return [
            ("fg:ansiyellow", set_cell_size(printable(line), width) + "\n"),
            ("bold", set_cell_size(printable(verdicts), width) + "\n"),
            ("fg:ansibrightblack", set_cell_size(printable(OTHER_KEYS), width)),
        ]

    def _category_keys(self) -> str:
        letters = {name: key for key, name in reversed(self.keys.items())}
        return " · ".join(f"{letters[name]} {name}" for name in self.session.categories)

    def _body(self) -> Line:
        lines = self._lines()
        height = self.size[1]
        self.top = max(0, min(self.top, len(lines) - height))
        shown = lines[self.top : self.top + height]
        if len(lines) > self.top + height:
            shown[-1] = [
                ("fg:ansiyellow", printable(f"… {len(lines) - self.top - height + 1} more lines: ↓"))
            ]
        return [part for line in shown for part in (*line, ("", "\n"))][:-1]

    def _lines(self) -> list[Line]:
        """Returns the lines of what is shown; they are made anew where it changes, not with every key."""
        item, width = self.session.item, self.size[0] - 1
        shown = (item.key if item else "", width, self.shows_reference)
        if self.drawn is None or self.drawn[0] != shown:
            self.drawn = (shown, self._made(item, width))
        return self.drawn[1]

    def _made(self, item: Item | None, width: int) -> list[Line]:
        if item is None:
            done = f"All {len(self.session.items)} are judged. z takes the last one back, q leaves."
            return [[("bold", text)] for text in wrapped(done, width)]
        lines = _asked(item.prompt, width)
        texts = [one.answer for one in item.answers]
        if self.keys is not PAIR_KEYS:
            lines += _block("answer", "fg:ansigreen bold", texts[0], width)
        elif width >= BESIDE:
            lines += _beside(texts[0], texts[1], width)
        else:
            lines += _block("1", "fg:ansigreen bold", texts[0], width)
            lines += _block("2", "fg:ansigreen bold", texts[1], width)
        if item.reference and self.shows_reference:
            lines += _block("reference", "fg:ansicyan", item.reference, width)
        return lines

    # What keys do

    def _bindings(self) -> KeyBindings:
        keys = KeyBindings()
        reading = ~has_focus(self.note)

        def on(*names: str, **how: Any) -> Callable[[Callable[[], None]], None]:
            def add(act: Callable[[], None]) -> None:
                def pressed(event: KeyPressEvent) -> None:
                    self.message = ""
                    try:
                        act()
                    except LabError as error:
                        self.message = f"not kept: {error.what}"

                for name in names:
                    keys.add(name, filter=how.get("filter", reading))(pressed)

            return add

        for key, verdict in self.keys.items():
            on(key)(lambda verdict=verdict: self._judge(verdict))  # type: ignore[misc]
        on("z", "backspace")(self._undo)
        on("tab")(self._later)
        on("v")(self._toggle_reference)
        on("n")(self._write_note)
        on("down", "j")(lambda: self._scroll(1))
        on("up", "k")(lambda: self._scroll(-1))
        on("pagedown", " ")(lambda: self._scroll(self.size[1] - 1))
        on("pageup")(lambda: self._scroll(1 - self.size[1]))
        on("home")(lambda: self._scroll(-self.top))
        on("end")(lambda: self._scroll(len(self._lines())))
        on("q", "c-d")(lambda: self.app.exit())
        on("c-c", filter=Condition(lambda: True))(lambda: self.app.exit())
        on("escape", filter=has_focus(self.note))(self._leave_note)
        return keys

    def _judge(self, verdict: str) -> None:
        if self.session.item is not None:
            self.session.judge(verdict)
            self.message, self.top = f"{verdict}; z takes it back", 0

    def _undo(self) -> None:
        verdict = self.session.undo()
        self.message, self.top = f"taken back: {verdict}" if verdict else "nothing was judged yet", 0

    def _later(self) -> None:
        self.session.later()
        self.top = 0

    def _toggle_reference(self) -> None:
        self.shows_reference = not self.shows_reference
        self.message = "" if self.shows_reference else "the reference is hidden: v shows it"

    def _scroll(self, lines: int) -> None:
        self.top = max(0, self.top + lines)

    def _write_note(self) -> None:
        if self.session.item is not None:
            self.note.text = self.session.note
            self.note.buffer.cursor_position = len(self.note.text)
            self.app.layout.focus(self.note)

    def _take_note(self, _: object) -> bool:
        try:
            self.session.write_note(self.note.text.strip())
        except LabError as error:
            self.message = str(error)
        self._leave_note()
        return True

    def _leave_note(self) -> None:
        self.app.layout.focus(self.body)


def _asked(prompt: Any, width: int) -> list[Line]:
    """Returns the lines of what was asked: a text, or the turns of a conversation."""
    if isinstance(prompt, str):
        return _block("prompt", "fg:ansiblue", prompt, width)
    turns = [turn for turn in prompt if isinstance(turn, dict)]
    return [
        line
        for turn in turns
        for line in _block(str(turn.get("role")), "fg:ansiblue", str(turn.get("content") or ""), width)
    ]


def _block(title: str, style: str, text: str, width: int) -> list[Line]:
    lines: list[Line] = [[(style, printable(title))]]
    lines += [[("", line)] for line in wrapped(text, width)]
    return [*lines, [("", "")]]


def _beside(one: str, other: str, width: int) -> list[Line]:
    """Returns the lines of two answers in two columns."""
    half = (width - 3) // 2
    columns = wrapped(one, half), wrapped(other, half)
    bar = printable(" │ ")
    title = [("fg:ansigreen bold", set_cell_size("1", half)), ("", bar), ("fg:ansigreen bold", "2")]
    lines: list[Line] = [[*title]]
    for row in range(max(map(len, columns))):
        left, right = (column[row] if row < len(column) else "" for column in columns)
        lines.append([("", set_cell_size(left, half) + bar + right)])
    return [*lines, [("", "")]]
