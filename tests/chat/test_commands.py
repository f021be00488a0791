"""Commands of the chat on a model that truly trained: what they show is what the model computes."""

import io
import json
import os

import pytest
import torch
from rich.console import Console

from llmlab.chat.arena import BOTH_BAD, FIRST, SECOND, SKIP, TIE, Arena
from llmlab.chat.choices import Tokens, tokens_line
from llmlab.chat.loop import Chat
from llmlab.chat.session import ChatSession
from llmlab.chat.terminal import _print_answers, talk
from llmlab.config import SourceConfig
from llmlab.config.chat import ChatSettings
from llmlab.data.collection import Collection
from llmlab.data.inspect import inspect
from llmlab.errors import LabError
from llmlab.models.load import load_model
from tests.end_to_end.terminal import ENTER, UP, Terminal

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture
def session(base_run):
    model, tokenizer = load_model(str(base_run.folder))
    tokenizer.chat_template = TEMPLATE
    return ChatSession(model, tokenizer, ChatSettings(max_new_tokens=6, temperature=0), name="base")


@pytest.fixture
def console():
    return Console(record=True, width=100)


def say(session, text):
    return session.reply(text, lambda piece: None)[0]


def test_why_is_the_models_own_softmax(session, console):
    say(session, "Call me")
    ids = session.tokenizer(session.asked, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = session.model(input_ids=torch.tensor([[*ids, *session.spoken]])).logits[0]
    choices = session.why(4)
    assert len(choices) == len(session.spoken) == 6
    for place, (token, choice) in enumerate(zip(session.spoken, choices, strict=True), len(ids) - 1):
        probabilities = logits[place].softmax(-1)
        assert choice.probability == pytest.approx(probabilities[token].item(), rel=1e-5)
        best = probabilities.topk(4)
        assert [p for _, p in choice.alternatives] == pytest.approx(best.values.tolist(), rel=1e-5)
        assert [t for t, _ in choice.alternatives] == [session.tokenizer.decode([i]) for i in best.indices]
        assert choice.alternatives[0][1] == choice.probability, "greedy"
    session.command("/why 4", console)
    assert f"{choices[0].probability:.1%}" in console.export_text()


def test_tokens_are_those_of_the_template(session):
    assert session.tokens() == Tokens(0, 64)
    say(session, "Call me")
    text = session.tokenizer.apply_chat_template(session.messages, tokenize=False)
    count = len(session.tokenizer(text, add_special_tokens=False)["input_ids"])
    assert session.tokens() == Tokens(count, 64)
    assert tokens_line(Tokens(16, 64)) == "16 of 64 tokens (25.0% of the context), 48 left"


def test_undo_regenerate_and_edit(session, console):
    chat = Chat([session], console, _print_answers)
    with pytest.raises(LabError, match="nothing was said yet"):
        chat.handle("/regenerate")
    chat.handle("one")
    chat.handle("two")
    asked, before = session.asked, [*session.messages]
    chat.handle("/regenerate")
    assert session.asked == asked and session.messages == before, "greedy"
    chat.handle("/edit")
    assert chat.draft == "two" and session.messages == before, "nothing is lost before it is sent"
    chat.handle("three")
    assert [one["content"] for one in session.messages if one["role"] == "user"] == ["one", "three"]
    chat.handle("/undo")
    assert session.messages == before[:2]
    with pytest.raises(LabError, match="no answer that was given here"):
        chat.handle("/why")


def test_what_was_saved_is_loaded(session, console, tmp_path):
    say(session, "one")
    before = [*session.messages]
    session.command(f"/save {tmp_path}/talk.jsonl", console)
    session.command("/reset", console)
    session.command(f"/load {tmp_path}/talk.jsonl", console)
    assert session.messages == before
    row = {"messages": [{"role": "system", "content": "Be brief."}, *before]}
    (tmp_path / "row.jsonl").write_text(json.dumps(row))
    session.command(f"/load {tmp_path}/row.jsonl", console)
    assert session.messages == before and session.settings.system_prompt == "Be brief."


USER, ANSWER = '{"role": "user", "content": "a"}\n', '{"role": "assistant", "content": "b"}\n'


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", "holds no message"),
        ("hello", "line 1: is no JSON"),
        ("[1]", "line 1: is no message"),
        (USER + USER, "line 2: is a message of the user, where the assistant's is expected"),
        (USER + "\n" + '{"role": "assistant"}', "line 3: is no message with a role and a text"),
        (ANSWER, "where the user's is expected"),
        (USER, "ends without an answer"),
        (None, "no such file"),
    ],
)
def test_a_file_that_is_no_conversation_changes_nothing(session, console, tmp_path, text, expected):
    say(session, "one")
    before = [*session.messages]
    if text is not None:
        (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(LabError, match=expected):
        session.command(f"/load {tmp_path}/a.jsonl", console)
    assert session.messages == before


@pytest.mark.parametrize("line", ["/why 0", "/why many", "/why 21"])
def test_why_takes_a_number(session, console, line):
    say(session, "one")
    with pytest.raises(LabError, match="a number from 1 to 20"):
        session.command(line, console)


def test_commands_in_a_pipe(session, monkeypatch, capsys, tmp_path):
    def piped(text):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        talk(session, Console(quiet=True))
        return capsys.readouterr().out.splitlines()

    (tmp_path / "talk.jsonl").write_text(USER + ANSWER)
    answer, again, tokens = piped("Call me\n/regenerate\n/tokens\n")
    assert answer == again and "of the context" in tokens
    assert len(piped("one\n/no command\n/quit\nnever\n")) == 2, "what is no command is said"
    piped(f"/load {tmp_path}/talk.jsonl\none\ntwo\n")
    assert [one["content"] for one in session.messages[:3]] == ["a", "b", "two"], "each line by itself"
    with pytest.raises(LabError, match="/edit needs a terminal"):
        piped("one\n/edit\n")


@pytest.fixture
def arena(session, tmp_path):
    other = ChatSession(session.model, session.tokenizer, session.settings, name="other")
    other.adopt(session.settings.model_copy(update={"repetition_penalty": 5.0}))
    return Arena([session, other], Collection(tmp_path / "votes.jsonl"))


def test_votes_are_rows_of_preference_data(arena):
    orders = set()
    for turn, choice in enumerate((FIRST, SECOND, TIE, SKIP, BOTH_BAD)):
        for one in arena.shuffle():
            one.messages = one.messages[:2]  # the context is short
            say(one, f"q{turn}")
        first, second = arena.answers
        assert first != second
        before = [*arena.sessions[0].messages[:-1]]
        arena.vote(choice)
        assert arena.sessions[0].messages == arena.sessions[1].messages == [
            *before, {"role": "assistant", "content": second if choice == SECOND else first}
        ]  # fmt: skip
        if choice in (FIRST, SECOND):
            mark = arena.collection.marks()[-1]
            better, worse = (first, second) if choice == FIRST else (second, first)
            assert (mark.verdict, mark.prompt) == ("better", before)
            assert (mark.chosen, mark.rejected) == (better, worse)
            assert {mark.chosen_model, mark.rejected_model} == {"base", "other"}
    assert [mark.verdict for mark in arena.collection.marks()] == ["better", "better", "equal", "bad", "bad"]
    assert sum(arena.wins) == 2 and arena.marks == 5 and arena.equal == 2
    arena.rewrite(1, "as it should be")
    assert (
        arena.collection.marks()[-1].chosen == "as it should be" == arena.sessions[0].messages[-1]["content"]
    )
    orders |= {tuple(one.name for one in arena.shuffle()) for _ in range(40)}
    assert len(orders) == 2
    inspected = inspect(SourceConfig(name=str(arena.collection.path)), arena.sessions[0].tokenizer).to_json()
    assert inspected["shape"] == "preference"


def test_votes_that_cannot_be_kept_are_refused_first(arena, tmp_path):
    arena.collection = Collection(tmp_path)
    with pytest.raises(LabError, match="is a folder"):
        arena.refuse()
    (tmp_path / "old.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    arena.collection = Collection(tmp_path / "old.jsonl")
    with pytest.raises(LabError, match="is no collection of preferences"):
        arena.refuse()


@pytest.fixture
def chat(session, console, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Chat([session], console, _print_answers)


def test_an_answer_is_marked_rewritten_and_compared_with_the_one_before(chat, session, console):
    collection = chat.marks.collection
    with pytest.raises(LabError, match="no answer that was given here"):
        chat.handle("/good")
    session.command("/system Be brief.", console)
    chat.handle("one")
    said = session.messages[-1]["content"]
    chat.handle("/bad too long")
    chat.handle("/good")
    (mark,) = collection.marks()
    assert (mark.verdict, mark.chosen, mark.chosen_model) == ("good", said, "base"), "the newest label counts"
    assert [turn["role"] for turn in mark.prompt] == ["system", "user"]
    with pytest.raises(LabError, match="no other answer to the last message"):
        chat.handle("/better")
    session.command("/set repetition_penalty 5", console)
    chat.handle("/regenerate")
    again = session.messages[-1]["content"]
    assert again != said
    chat.handle("/worse because it repeats")
    assert (collection.marks()[-1].chosen, collection.marks()[-1].rejected) == (said, again)
    chat.handle("/unmark")
    chat.handle("/better")
    assert [(mark.chosen, mark.rejected) for mark in collection.marks()[1:]] == [(again, said)]
    chat.handle("/rewrite A whale.")
    mark = collection.marks()[-1]
    assert (mark.verdict, mark.chosen, mark.rejected) == ("rewritten", "A whale.", again)
    assert session.messages[-1]["content"] == "A whale."
    chat.handle("/rewrite The whale.")
    with pytest.raises(LabError, match="both answers are the same"):
        chat.handle(f"/rewrite {again}")
    assert [mark.chosen for mark in collection.marks()[2:]] == ["The whale."], "in the place of the first"
    chat.handle("/bad")
    assert collection.marks()[-1].rejected == again, "what the model said, not what the person wrote"
    chat.handle("two")
    with pytest.raises(LabError, match="no other answer to the last message"):
        chat.handle("/better")
    with pytest.raises(LabError, match="needs a terminal"):
        chat.handle("/rewrite")


def test_of_two_models_one_answer_is_better_and_both_go_on_from_it(session, console, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = ChatSession(session.model, session.tokenizer, session.settings, name="other")
    chat = Chat([session, other], console, _print_answers)
    other.adopt(session.settings.model_copy(update={"repetition_penalty": 5.0}))
    chat.handle("one")
    first, second = (one.messages[-1]["content"] for one in chat.sessions)
    with pytest.raises(LabError, match="needs the number of an answer"):
        chat.handle("/better")
    chat.handle("two")
    with pytest.raises(LabError, match="have read different conversations"):
        chat.handle("/better 1")
    chat.handle("/reset")
    with pytest.raises(LabError, match="no answer that was given here"):
        chat.handle("/good 1")
    other.adopt(session.settings.model_copy(update={"repetition_penalty": 5.0}))
    chat.handle("one")
    chat.handle("/better 1 at first")
    chat.handle("/better 2 yes")
    chat.handle("/bad 1 no")
    better, bad = chat.marks.collection.marks()
    assert (bad.rejected, bad.rejected_model, bad.note) == (first, "base", "no")
    assert (better.chosen, better.rejected, better.chosen_model, better.note) == (
        second,
        first,
        "other",
        "yes",
    )
    assert session.messages == other.messages and session.messages[-1]["content"] == second
    chat.handle("/undo")
    with pytest.raises(LabError, match="no answer that was given here"):
        chat.handle("/good 1")


@pytest.fixture
def terminal(base_run, tmp_path):
    """Starts `llmlab chat` in a terminal of its own."""

    def start(*arguments):
        environment = {**os.environ, "LLMLAB_STATE": str(tmp_path / "state")}
        line = ("chat", str(base_run.folder), "--set", "max_new_tokens=4", *arguments)
        screen = Terminal(*line, folder=tmp_path, environment=environment)
        screen.see(r"(?m)^text")
        return screen

    return start


@pytest.mark.slow
def test_a_line_of_two_lines_is_edited_and_kept_for_the_next_session(terminal, tmp_path):
    screen = terminal()
    screen.send("Call me", "\x1b\r", "Ishmael", ENTER)
    screen.see(r"model (.|\n)*\ntext")
    assert "Ishmael" in screen.send("/edit", ENTER).splitlines()[-1], "in the input line again"
    screen.send(" now", ENTER)
    screen.see(r"model(.|\n)*model(.|\n)*\ntext")
    screen.send("/save talk.jsonl", ENTER)
    screen.see("2 messages")
    screen.send("/quit", ENTER)
    said = json.loads((tmp_path / "talk.jsonl").read_text().splitlines()[0])["content"]
    assert said == "Call me\nIshmael now"
    kept = tmp_path / "state" / "chat_history"
    assert "+Call me\n+Ishmael now\n" in kept.read_text() and kept.stat().st_mode & 0o077 == 0
    assert "/quit" in terminal().send(UP)


@pytest.mark.slow
def test_two_hidden_models_are_named_at_the_end(terminal, base_run, tmp_path):
    screen = terminal("--against", str(base_run.folder), "--blind", "--set", "temperature=1.5")
    screen.send("Call me", ENTER)
    assert base_run.folder.name not in screen.see("which is better").replace(str(tmp_path), "")
    screen.send("1", ENTER)
    screen.send("/quit", ENTER)
    assert base_run.folder.name in screen.see("1 marks added to preferences/collected.jsonl")
    row = json.loads((tmp_path / "preferences" / "collected.jsonl").read_text())
    assert row["prompt"][0]["content"] == "Call me" and row["chosen"] != row["rejected"]


@pytest.mark.slow
def test_keys_judge_and_an_answer_is_rewritten_in_the_input_line(terminal, tmp_path):
    screen = terminal()
    screen.send("Call me", ENTER)
    screen.see(r"model (.|\n)*\ntext")
    screen.send("\x1bg")
    screen.see("noted: good")
    screen.send("\x1bw")
    screen.send("\x15", "Ishmael.", ENTER)
    screen.see("noted: rewritten")
    screen.send("/rewrite", ENTER, "\x03")
    screen.see("nothing was changed")
    screen.send("/quit", ENTER)
    rows = [
        json.loads(line) for line in (tmp_path / "preferences" / "collected.jsonl").read_text().splitlines()
    ]
    assert [(row["verdict"], row["chosen"]) for row in rows[1:]] == [("rewritten", "Ishmael.")]
    assert rows[0]["chosen"] == rows[1]["rejected"]


@pytest.mark.parametrize(
    "arguments, expected",
    [(["--blind"], "compares two models"), (["--blind", "--against", "x"], "stdin is not a terminal")],
)
def test_blind_needs_two_models_and_a_person(arguments, expected, monkeypatch, base_run):
    from llmlab.cli import command_line

    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(LabError, match=expected):
        command_line(["chat", str(base_run.folder), *arguments])
