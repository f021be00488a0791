"""A file of prompts: each answer is that of the prompt alone, and a stopped run goes on where it was."""

import json
import os
import subprocess
import sys

import pytest
import torch

from llmlab.chat.answer_job import AnswerJob
from llmlab.chat.answering import Answering
from llmlab.chat.answers_file import AnswersFile
from llmlab.chat.batch import MOST, answer_batch, rows_that_fit
from llmlab.chat.generation import encode, stream
from llmlab.chat.prompts_file import PromptRow, PromptsFile
from llmlab.config.chat import BatchOptions, ChatSettings
from llmlab.config.loading import LoadOptions
from llmlab.errors import LabError
from llmlab.models.load import load_model
from tests.conftest import POSITIONS, llmlab, position_options, write_rows
from tests.waiting import PATIENCE, until

PROMPTS = ["Call", "The whale " * 9, "a b c", "Who is Ahab? " * 3, "Ishmael", "x y " * 18]
GREEDY = ChatSettings(temperature=0, max_new_tokens=24)
DRAWN = ChatSettings(temperature=1.0, top_p=0.95, max_new_tokens=24, seed=3)


@pytest.fixture(scope="module")
def loaded(chat_folder):
    model, tokenizer = load_model(str(chat_folder))
    return model.eval(), tokenizer


def alone(model, tokenizer, prompt, settings):
    return "".join(stream(model, tokenizer, prompt, settings))


def together(model, tokenizer, prompts, settings, rows=None):
    encoded = [encode(model, tokenizer, prompt, settings) for prompt in prompts]
    return [
        one.text for one in answer_batch(model, tokenizer, encoded, rows or range(len(prompts)), settings)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("positions", POSITIONS)
def test_greedy_answers_of_a_batch_are_those_of_each_prompt_alone(untrained, positions):
    model, tokenizer = load_model(str(untrained(**position_options(positions))))
    settings = GREEDY.model_copy(update={"max_new_tokens": 40})  # the longest prompts have less room
    wanted = [alone(model, tokenizer, prompt, settings) for prompt in PROMPTS]
    assert together(model, tokenizer, PROMPTS, settings) == wanted
    assert len({*wanted}) == len(PROMPTS)


def test_a_penalty_does_not_fall_on_padding(loaded):
    settings = GREEDY.model_copy(update={"repetition_penalty": 1.7})
    model, tokenizer = loaded
    wanted = [alone(model, tokenizer, prompt, settings) for prompt in PROMPTS]
    assert together(model, tokenizer, PROMPTS, settings) == wanted
    assert wanted != [alone(model, tokenizer, prompt, GREEDY) for prompt in PROMPTS]


def test_a_drawn_answer_depends_on_its_row_alone(loaded):
    model, tokenizer = loaded
    wanted = together(model, tokenizer, PROMPTS, DRAWN)
    for rows in ([2], [5, 1], [0, 4, 3]):
        assert together(model, tokenizer, [PROMPTS[row] for row in rows], DRAWN, rows) == [
            wanted[row] for row in rows
        ]
    assert together(model, tokenizer, PROMPTS[:1], DRAWN, [0]) == [alone(model, tokenizer, PROMPTS[0], DRAWN)]
    same = together(model, tokenizer, ["The"] * 4, DRAWN)
    assert len({*same}) > 1, "rows are drawn apart"


def test_how_an_answer_ended(loaded):
    model, tokenizer = loaded
    encoded = [encode(model, tokenizer, "Call me", GREEDY)]
    [whole] = answer_batch(model, tokenizer, encoded, [0], GREEDY)
    assert (whole.finish_reason, whole.tokens) == ("length", 24)
    ids = torch.tensor([encoded[0].ids])
    ids = model.generate(ids, do_sample=False, max_new_tokens=24)[0, ids.shape[1] :].tolist()
    before = model.generation_config.eos_token_id
    try:
        model.generation_config.eos_token_id = [ids[5]]
        [ended] = answer_batch(model, tokenizer, encoded, [0], GREEDY)
    finally:
        model.generation_config.eos_token_id = before
    assert ended.finish_reason == "stop" and ended.tokens <= 6 and whole.text.startswith(ended.text)


class Told:
    def __init__(self):
        self.batches, self.warnings = [], []

    def answered(self, rows, errors, batch):
        self.batches.append(batch)

    def warn(self, text):
        self.warnings.append(text)


def rows_of(count):
    rows = [
        {"prompt": text, "label": i} if i % 2 else {"id": f"r{i}", "messages": [turn(text)]}
        for i, text in enumerate(PROMPTS * count)
    ]
    return rows[:count]


def turn(text, role="user"):
    return {"role": role, "content": text}


def job(folder, source, target, settings=GREEDY, **batch):
    made = AnswerJob(str(folder), source, target, settings, LoadOptions(), BatchOptions(**batch))
    made.refuse()
    return made


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_keep_their_columns_and_order(chat_folder, loaded, tmp_path):
    source, target = tmp_path / "p.jsonl", tmp_path / "a.jsonl"
    rows = [*rows_of(7), {"prompt": "x " * 500}, {"prompt": ""}]
    write_rows(source, rows)
    made, told = job(chat_folder, source, target, batch_size=4), Told()
    assert made.run(lambda: loaded, told) == 1
    answers = read(target)
    for number, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        assert answer["id"] == row.get("id", number) and row.items() <= answer.items()
        if "error" in answer:
            assert number == 7 and "reads 96 with its answer" in answer["error"]
            continue
        text = row.get("prompt") or (row["messages"][0]["content"] if "messages" in row else "")
        asked = loaded[1].apply_chat_template([turn(text)], add_generation_prompt=True, tokenize=False)
        assert answer["completion"] == alone(*loaded, asked, GREEDY)
    assert told.batches == [4, 3, 1]


def test_a_run_goes_on_where_it_was_stopped(chat_folder, loaded, tmp_path):
    source, target, whole = (tmp_path / name for name in ("p.jsonl", "a.jsonl", "b.jsonl"))
    write_rows(source, rows_of(9))
    settings = DRAWN.model_copy(update={"seed": None})  # is drawn once, and kept
    job(chat_folder, source, target, settings, batch_size=2).run(lambda: loaded, Told())
    whole.write_bytes(target.read_bytes())
    lines = whole.read_bytes().splitlines(keepends=True)
    kept = b"".join(lines[:4]).replace(b'"label"', b'"label" ')  # as nothing of ours writes it
    target.write_bytes(kept + lines[4][:17])
    again = job(chat_folder, source, target, settings, batch_size=3)
    assert (again.count, again.done) == (9, 4)
    again.run(lambda: loaded, Told())
    assert target.read_bytes() == kept + b"".join(lines[4:])
    with source.open("a") as file:  # prompts that were added are answered, too
        file.write(json.dumps({"prompt": "more"}) + "\n")
    more = job(chat_folder, source, target, settings)
    assert (more.count, more.done) == (10, 9)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(settings=DRAWN), r"`settings.temperature` was 0.0 and is 1.0"),
        (dict(column="said"), r'`column` was "completion" and is "said"'),
        (dict(model="other"), r"`model` was "),
        (dict(rows=[{"prompt": "Call"}]), "line 2 is no answer to that row"),
        (dict(rows=rows_of(4)[::-1]), "line 1 is no answer to that row"),
        (dict(note=False), "already exists, and no a.jsonl.settings.json says how it was made"),
    ],
)
def test_answers_of_something_else_are_not_mixed_in(
    chat_folder, loaded, untrained, tmp_path, change, message
):
    source, target = tmp_path / "p.jsonl", tmp_path / "a.jsonl"
    write_rows(source, [{"prompt": "Call"}, *rows_of(3)])
    job(chat_folder, source, target).run(lambda: loaded, Told())
    before = target.read_bytes()
    if "rows" in change:
        write_rows(source, change["rows"])
    if "note" in change:
        (tmp_path / "a.jsonl.settings.json").unlink()
    model = untrained("other", d_ff=32) if "model" in change else chat_folder
    with pytest.raises(LabError, match=message):
        job(
            model,
            source,
            target,
            change.get("settings", GREEDY),
            **{name: value for name, value in change.items() if name == "column"},
        )
    assert target.read_bytes() == before


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "holds no rows"),
        (b"id,prompt\n1,hello\n", "line 1: is not valid JSON"),
        (b'{"prompt": "a"}\n[1]\n', "line 2: is a list, not a JSON object"),
        (b'{"prompt": "a"}\n\n{"question": "b"}\n', "line 3: has neither `prompt` nor `messages`"),
        (b'{"prompt": "a", "messages": []}\n', "has both `prompt` and `messages`"),
        (b'{"prompt": 7}\n', "`prompt` is a whole number, not a text or a list of messages"),
        (b'{"messages": "hi"}\n', "`messages` is a text, not a list of messages"),
        (b'{"messages": [{"role": "user"}]}\n', "a turn of 'user' has no text"),
        (
            b'{"messages": [{"role": "user", "content": "a", "name": 3}]}\n',
            "the `name` of a turn of 'user' is",
        ),
        (b'{"messages": [{"role": "user", "content": [3]}]}\n', "a part of type 'a whole number'"),
        (b'{"messages": [{"role": "assistant", "content": "b"}]}\n', "does not end with a message to answer"),
        (b'{"prompt": "a", "completion": "b"}\n', "has a column `completion`, which the output adds"),
        (b'{"prompt": "\\ud800"}\n', "`prompt` is not UTF-8 text"),
        (b'{"prompt": "a\xff"}\n', "is not UTF-8 text"),
        (b'{"prompt": ' + b"[" * 100_000 + b"\n", "line 1: is no JSON that can be read"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_loaded(tmp_path, content, message):
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(LabError, match=message.replace("?", r"\?")):
        job(tmp_path / "no_model", tmp_path / "p.jsonl", tmp_path / "a.jsonl")
    assert [file.name for file in tmp_path.iterdir()] == ["p.jsonl"]


def test_a_base_model_takes_texts_alone(loaded):
    model, tokenizer = loaded
    template, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        rows = rows_in_memory({"messages": [turn("hi")]})
        with pytest.raises(LabError, match="row 0 holds messages, and a base model has no chat template"):
            Answering(model, tokenizer, GREEDY).refuse(rows)
        answering = Answering(model, tokenizer, GREEDY)
        [row] = rows_in_memory({"prompt": "Call me"})
        assert answering.prompt(row) == "Call me"
    finally:
        tokenizer.chat_template = template


def rows_in_memory(*rows):
    return [PromptRow(i, row, row.get("prompt") or row["messages"]) for i, row in enumerate(rows)]


class Full:
    """A model on a device that holds two rows."""

    def __init__(self, model, most):
        self.model, self.most, self.sizes = model, most, []

    def __getattr__(self, name):
        return getattr(self.model, name)

    def generate(self, input_ids, **kwargs):
        self.sizes.append(len(input_ids))
        if len(input_ids) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return self.model.generate(input_ids=input_ids, **kwargs)


def test_a_batch_that_does_not_fit_is_halved_and_no_row_is_lost(loaded, tmp_path):
    model, tokenizer = loaded
    source, target = tmp_path / "p.jsonl", tmp_path / "a.jsonl"
    write_rows(source, rows_of(11))
    answers = AnswersFile(target, "completion")
    full, told = Full(model, 2), Told()
    assert Answering(full, tokenizer, GREEDY, most=8).answer(PromptsFile(source), answers, told) == 0
    assert full.sizes[:3] == [8, 4, 2] and {*full.sizes[2:]} == {1, 2} and len(told.warnings) == 2
    assert [row["id"] for row in read(target)] == [row.get("id", i) for i, row in enumerate(rows_of(11))]
    nothing, told = Full(model, 0), Told()
    target.unlink()
    assert Answering(nothing, tokenizer, GREEDY, most=2).answer(PromptsFile(source), answers, told) == 11
    assert "out of memory with this prompt of" in read(target)[0]["error"]


def test_how_many_rows_fit(loaded):
    model, _ = loaded
    fit = [rows_that_fit(model.config, 96, 4, free) for free in (0, 1 << 18, 1 << 20, 1 << 22, 1 << 40)]
    assert fit == sorted(fit) and fit[0] == 1 and fit[-1] == MOST and len({*fit}) > 2


def test_a_full_disk_loses_no_row_that_was_written(tmp_path):
    """The kernel's own full device: nothing can be written, and one message says so."""
    answers = AnswersFile(tmp_path / "a.jsonl", "completion")
    answers.append([b'{"id": 0}\n'])
    with pytest.raises(LabError, match=r"cannot be written .*the rows before are complete") as caught:
        AnswersFile(tmp_path / "full", "completion").path.symlink_to("/dev/full")
        AnswersFile(tmp_path / "full", "completion").append([b"{}\n"])
    assert caught.value.exit_code == 1 and answers.path.read_bytes() == b'{"id": 0}\n'


def test_two_processes_do_not_write_one_file(tmp_path):
    answers = AnswersFile(tmp_path / "a.jsonl", "completion")
    with answers.lock(), pytest.raises(LabError, match="another process is writing it"), answers.lock():
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_killed_run_is_taken_up_again(chat_folder, loaded, tmp_path):
    source, target, whole = (tmp_path / name for name in ("p.jsonl", "a.jsonl", "b.jsonl"))
    write_rows(source, rows_of(12))
    more = ["--batch-size", "1", "--set", "temperature=0", "--set", "max_new_tokens=60"]
    command = ["generate", str(chat_folder), "--input", "p.jsonl", "--output", "a.jsonl", *more]
    process = subprocess.Popen(
        [sys.executable, "-m", "llmlab", *command],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    until(lambda: target.exists() and target.read_bytes().count(b"\n") >= 2)
    process.kill()
    process.communicate(timeout=PATIENCE)
    before = target.read_bytes()
    before = before[: before.rfind(b"\n") + 1]
    assert 2 <= before.count(b"\n") < 12
    result = llmlab(*command, cwd=tmp_path)
    assert result.returncode == 0 and "12 rows in a.jsonl" in result.stderr and not result.stdout
    settings = GREEDY.model_copy(update={"max_new_tokens": 60})
    job(chat_folder, source, whole, settings).run(lambda: loaded, Told())
    assert target.read_bytes().startswith(before) and target.read_bytes() == whole.read_bytes()
