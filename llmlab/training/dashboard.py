"""What a person sees of a run: a live panel in a terminal, plain lines elsewhere."""

from __future__ import annotations

import itertools
import time
from typing import Any

import plotext
import psutil
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmlab.readable import ERRORS

REDRAWN = 0.25  # seconds between two drawings of the panel
SHOWN = {
    "loss": "loss",
    "eval_loss": "held-out loss",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "mean_token_accuracy": "token accuracy",
    "accuracy": "pair accuracy",
    "reward": "reward",
    "eval_reward": "held-out reward",
    "group/spread": "spread within groups",
    "group/best": "best of group",
    "group/no_signal": "zero-variance groups",
    "completions/mean_length": "answer length",
    "completions/clipped_ratio": "truncated",
    "kl": "KL to the reference",
    "entropy": "entropy",
    "value_loss": "value loss",
    "explained_variance": "explained variance",
    "clip_ratio/region_mean": "clip fraction",
    "lm_loss": "loss of the answers",
    "preference_loss": "preference loss",
    "reward_accuracy": "reward-head accuracy",
    "reward_margin": "its margin",
    "alpha": "mean alpha",
    "gate_entropy": "entropy of alpha",
    "rewards/accuracies": "preference accuracy",
    "rewards/margins": "reward margin",
}


class Dashboard(TrainerCallback):
    """Loss curve, rate, tokens per second, memory and time left; a line per logged step without a terminal.

    Args:
        title: of the panel.
        console: to draw on.
        hint: the keys that do something.
        flops_per_token: of training, for the share of the device's peak; 0 where it is not known.
        peak: FLOPs a second that the device reached in a matrix product; 0 where it was not measured.
    """

    def __init__(
        self,
        title: str,
        console: Console,
        *,
        hint: str = "",
        flops_per_token: float = 0.0,
        peak: float = 0.0,
    ):
        self.title = title
        self.console = console
        self.live: Live | None = None
        self.losses: list[tuple[int, float]] = []
        self.held_out: list[tuple[int, float]] = []
        self.latest: dict[str, float] = {}
        self.speed = 0.0
        self.flops_per_token = flops_per_token
        self.peak = peak
        self.hint = hint
        self.said = ""
        self.taken: tuple[int, str, str] | None = None
        self.validated = (0, 0)  # batches of the validation that is going on, and all of its
        self._state: Any = None
        self._drawn = float("-inf")  # when
        self._mark = (0.0, 0, 0)
        self._began = (
            time.perf_counter(),
            0,
        )  # training may be over already, and only its last validation be missing

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Opens the panel."""
        self._mark = (time.perf_counter(), state.num_input_tokens_seen, state.global_step)
        self._began = time.perf_counter(), state.global_step
        if self.console.is_terminal:
            self.live = Live(console=self.console, refresh_per_second=4, transient=True)
            self.live.start()
            self._draw(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Moves the bar."""
        if self.live:
            self._draw(state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: object,
    ) -> None:
        """Takes in new figures."""
        figures = {key: value for key, value in (logs or {}).items() if isinstance(value, (int, float))}
        if "eval_reward" in figures:  # what the library calls loss there is none: it is 0 by construction
            figures.pop("eval_loss", None)
        if "loss" in figures:
            now = time.perf_counter()
            began, tokens, _ = self._mark
            if state.num_input_tokens_seen > tokens:
                self.speed = (state.num_input_tokens_seen - tokens) / max(1e-9, now - began)
            self._mark = (now, state.num_input_tokens_seen, state.global_step)
            self.losses.append((state.global_step, figures["loss"]))
        if "eval_loss" in figures:
            self.held_out.append((state.global_step, figures["eval_loss"]))
        self.latest.update({key: value for key, value in figures.items() if key in SHOWN})
        if self.live:
            self._draw(state)
        elif figures.keys() & {"loss", "eval_loss", "eval_reward"}:
            self.console.print(self._line(state, figures), soft_wrap=True, highlight=False)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: object,
    ) -> None:
        """Shows how far a validation is."""
        whole = len(eval_dataloader) if hasattr(eval_dataloader, "__len__") else 0
        self.validated = self.validated[0] + 1, whole
        if self.live:
            self._draw(state)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Ends that."""
        self.validated = (0, 0)

    def say(self, text: str) -> None:
        """Shows a line below the figures, until the next one."""
        self.said = text
        if self.live and self._state is not None:
            self._draw(self._state, at_once=True)

    def sample(self, step: int, prompt: str, answer: str) -> None:
        """Shows what the model says now."""
        self.taken = step, prompt, answer
        if self.live and self._state is not None:
            self._draw(self._state, at_once=True)
        elif not self.live:
            self.console.print(Text("sample  ").append(sampled(prompt, answer, 4 * 80)), soft_wrap=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Closes the panel."""
        self.close()

    def close(self) -> None:
        """Gives the terminal back; may be called more than once."""
        if self.live:
            self.live.stop()
            self.live = None

    def _line(self, state: Any, figures: dict[str, float]) -> str:
        shown = "  ".join(f"{SHOWN[key]} {value:.4g}" for key, value in figures.items() if key in SHOWN)
        speed = f"  {self.speed:,.0f} tokens/s" if "loss" in figures and self.speed else ""
        return (
            f"step {state.global_step}/{state.max_steps}  {shown}{speed}  left {duration(self._left(state))}"
        )

    def _left(self, state: Any) -> float:
        began, first = self._began
        done = state.global_step - first
        return (
            (time.perf_counter() - began) / done * (state.max_steps - state.global_step)
            if done
            else float("nan")
        )

    def _draw(self, state: Any, *, at_once: bool = False) -> None:
        """Builds the panel anew, at most every `REDRAWN` seconds:
        a small model's step takes less time than the panel.
        """
        self._state = state
        now = time.monotonic()
        if not at_once and now - self._drawn < REDRAWN:
            return
        self._drawn = now
        self.live.update(self._panel(state))

    def _share(self) -> float:
        return self.speed * self.flops_per_token / self.peak if self.peak else 0.0

    def _panel(self, state: Any) -> RenderableType:
        width = min(self.console.width, 110)
        table = Table.grid(padding=(0, 3), expand=True)
        table.add_column()
        table.add_column(justify="right")
        cells = [(SHOWN[key], f"{value:.4g}") for key, value in self.latest.items()]
        cells += [
            *([("tokens/s", f"{self.speed:,.0f}")] if self.speed else []),
            *([("of the device's peak", f"{share:.0%}")] if (share := self._share()) else []),
            ("memory", memory_in_use()),
            ("time left", duration(self._left(state))),
        ]
        half = (len(cells) + 1) // 2
        grid = Table.grid(padding=(0, 4))
        for left, right in zip(cells[:half], [*cells[half:], ("", "")], strict=False):
            grid.add_row(left[0], Text(left[1], style="bold"), right[0], Text(right[1], style="bold"))
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            f"step {state.global_step:,} of {state.max_steps:,}",
            ProgressBar(total=max(1, state.max_steps), completed=state.global_step, width=width - 36),
        )
        done, whole = self.validated
        if done:
            bar.add_row("validating", ProgressBar(total=whole or None, completed=done, width=width - 36))
        parts: list[RenderableType] = [bar, grid]
        room = self.console.height - half - 6 - bool(self.hint or self.said) - bool(done)
        if self.taken:
            lines = 3 if room > 12 else 2
            room -= lines
            step, prompt, answer = self.taken
            parts.append(
                Text(f"sample at step {step:,}  ").append(sampled(prompt, answer, lines * (width - 6) - 24))
            )
        if len(self.losses) > 1:
            height = max(5, min(14, room))
            drawing = loss_curve(self.losses, self.held_out, width - 6, height)
            plain = (
                not (self.console.encoding or "").lower().startswith("utf")
            )  # the curve is drawn with braille
            parts.append(Text(drawing.encode("ascii", ERRORS).decode() if plain else drawing))
        if self.said or self.hint:
            parts.append(
                Text(
                    self.said or self.hint,
                    style="yellow" if self.said else "dim",
                    no_wrap=True,
                    overflow="ellipsis",
                )
            )
        return Panel(Group(*parts), title=Text(self.title), width=width, border_style="cyan")


def loss_curve(
    losses: list[tuple[int, float]], held_out: list[tuple[int, float]], width: int, height: int
) -> str:
    """Returns the curves as a drawing of `width` x `height` characters."""
    losses, held_out = (
        thinned(points, 2 * width) for points in (losses, held_out)
    )  # braille has two dots a column
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(width, height)
    plotext.plot([s for s, _ in losses], [v for _, v in losses], label="loss", marker="braille")
    if held_out:
        plotext.scatter([s for s, _ in held_out], [v for _, v in held_out], label="held-out loss", marker="x")
    plotext.xlabel("step")
    return plotext.uncolorize(plotext.build())


def thinned(points: list[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """Returns at most `most` points: each the mean of as many neighbours, at the last one's step."""
    if len(points) <= most:
        return points
    edges = [index * len(points) // most for index in range(most + 1)]
    parts = (points[start:end] for start, end in itertools.pairwise(edges))
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def sampled(prompt: str, answer: str, length: int) -> Text:
    """Returns the end of a prompt and the beginning of its answer, of about `length` characters together."""
    prompt, answer = (" ".join(text.split()) for text in (prompt, answer))
    kept = max(length // 3, length - len(answer))
    prompt = prompt if len(prompt) <= kept else f"...{prompt[3 - kept :]}"
    left = max(8, length - len(prompt))
    answer = answer if len(answer) <= left else f"{answer[: left - 3]}..."
    return Text(prompt, style="dim").append(" → ").append(answer, style="bold not dim")


def duration(seconds: float) -> str:
    """Returns seconds as `2h05m`, `3m20s` or `14s`."""
    if seconds != seconds:
        return "?"
    seconds = int(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 60}m{seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"


def memory_in_use() -> str:
    """Returns the memory of the device, or of this process on the CPU."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB (GPU)"
    return f"{psutil.Process().memory_info().rss / 1e9:.1f} GB"
