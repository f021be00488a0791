"""The chat: streaming equals generating, commands do what they say, base models are completed."""

import io
import json
import time

import pytest
from rich.console import Console

from llmlab.chat.generation import stream
from llmlab.chat.session import ChatSession
from llmlab.chat.terminal import talk
from llmlab.config.chat import ChatSettings
from llmlab.errors import LabError
from llmlab.models.load import load_model


@pytest.fixture
def session(base_run):
    model, tokenizer = load_model(str(base_run.folder))
    return ChatSession(model, tokenizer, ChatSettings(max_new_tokens=12, temperature=0))


@pytest.fixture
def console():
    return Console(record=True, width=100)


@pytest.mark.slow
def test_a_base_model_continues_the_text(session):
    assert not session.chats and session.prompt("Call me") == "Call me"
    pieces = []
    answer, stopped = session.reply("Call me", pieces.append)
    ids = session.tokenizer("Call me", return_tensors="pt")["input_ids"]
    whole = session.model.generate(ids, do_sample=False, max_new_tokens=12)[0, ids.shape[1] :]
    assert "".join(pieces) == session.tokenizer.decode(whole, skip_special_tokens=True)
    assert not stopped and answer == "".join(pieces).strip()


def test_closing_the_stream_stops_the_model(session):
    settings = ChatSettings(max_new_tokens=10_000, temperature=1.0)
    pieces = stream(session.model, session.tokenizer, "The whale", settings)
    passes = []
    session.model.register_forward_hook(lambda *_: passes.append(1))
    next(pieces)
    pieces.close()  # returns only when the generating thread has ended
    done = len(passes)
    time.sleep(0.2)
    assert 1 <= len(passes) == done < 1000


def test_seed_repeats_an_answer(session):
    settings = ChatSettings(max_new_tokens=12, temperature=1.0, seed=5)
    said = lambda given: "".join(stream(session.model, session.tokenizer, "The", given))  # noqa: E731
    assert len({said(settings) for _ in range(3)}) == 1
    assert len({said(settings.model_copy(update={"seed": seed})) for seed in range(5)}) > 1, "it does draw"


def test_commands(session, console, tmp_path):
    session.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    session.chats = True
    session.command("/system Speak like a sailor.", console)
    session.command("/set temperature 0.25", console)
    assert session.settings.temperature == 0.25
    assert session.prompt("Ahoy") == "system: Speak like a sailor.\nuser: Ahoy\n"
    session.messages = [{"role": "user", "content": "hi"}]
    session.command(f"/save {tmp_path}/talk.jsonl", console)
    assert json.loads((tmp_path / "talk.jsonl").read_text()) == {"role": "user", "content": "hi"}
    session.command("/reset", console)
    assert session.messages == []
    session.command("/set", console)
    session.command("/help", console)
    shown = console.export_text()
    assert "top_p" in shown and "/quit" in shown
    assert session.command("/quit", console) is False


@pytest.mark.parametrize(
    "line, expected",
    [
        ("/set temperature hot", "is not a number"),
        ("/set temprature 1", "did you mean `temperature`?"),
        ("/set top_p 3", "at most 1"),
        ("/sett", "no command"),
        ("/save", "needs a file name"),
        ("/system be kind", "a base model has no system prompt"),
    ],
)
def test_wrong_commands_say_why(session, console, line, expected):
    with pytest.raises(LabError, match=expected.replace("?", r"\?")):
        session.command(line, console)


def test_an_answer_ends_where_the_positions_do_and_a_prompt_that_does_not_fit_is_refused(session):
    settings = ChatSettings(max_new_tokens=10_000, temperature=1.0, seed=1)
    session.model.generation_config.eos_token_id = None
    count = len(session.tokenizer("Call me Ishmael")["input_ids"])
    seen = []
    session.model.register_forward_hook(lambda *_: seen.append(1))
    list(stream(session.model, session.tokenizer, "Call me Ishmael", settings))
    assert len(seen) == 64 - count, "64 positions"
    for prompt in ("whale " * 64, "a" * 1_000_000, "\U0001f40b" * 100):
        with pytest.raises(
            LabError,
            match=r"the prompt has (more than )?[\d,]+ tokens, and the model reads 64 with its answer",
        ):
            next(stream(session.model, session.tokenizer, prompt, settings))


def test_what_comes_by_a_pipe_is_read_line_by_line_within_bounds(session, monkeypatch, capsys):
    def piped(content):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), "utf-8"))
        talk(session, Console(quiet=True))
        return capsys.readouterr().out

    assert len(piped(b"Call me\n\nIshmael").splitlines()) >= 2
    with pytest.raises(
        LabError, match=r"line 2 of standard input is not UTF-8 text \(invalid start byte at byte 3\)"
    ):
        piped(b"Call me\nab\xff\n")
    with pytest.raises(LabError, match="line 1 of standard input has more than 10,000,000 bytes"):
        piped(b"a" * 10_000_001)
    with pytest.raises(LabError, match="what was said is not UTF-8 text"):
        session.prompt("a\udcff")
