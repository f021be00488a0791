"""Every option of a source changes what every kind of run learns from, or is refused with a reason:
none is ignored.
"""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from llmlab.config import SourceConfig
from llmlab.config.loader import kind_class
from llmlab.data.conversations import sft_data
from llmlab.data.packed_text import pretrain_data
from llmlab.data.pairs import dpo_data, dual_head_data
from llmlab.data.prompts import prompts_data
from llmlab.data.tokenizer import ensure_chat_template, load_tokenizer
from llmlab.errors import LabError

ROWS = {
    "pretrain": {"text": "Call me Ishmael {n}.", "other": "It is a whale {n}."},
    "sft": {"prompt": "Who is {n}?", "completion": "Ahab {n}", "other": "Pip {n}"},
    "dpo": {"prompt": "Who is {n}?", "chosen": "Ahab {n}", "rejected": "No {n}", "other": "Pip {n}"},
    "grpo": {"prompt": "Who is {n}?", "answer": "Ahab {n}", "other": "Pip {n}"},
}
ROWS |= {"reward": ROWS["dpo"], "dual_head": ROWS["dpo"], "ppo": ROWS["grpo"]}
READ = {
    "pretrain": lambda *args: pretrain_data(*args, 64),
    "sft": sft_data,
    "dpo": dpo_data,
    "reward": dpo_data,
    "grpo": prompts_data,
    "ppo": prompts_data,
    "dual_head": dual_head_data,
}
OPTIONS = {  # a value that matters, and what is learned from where it is left out
    "subset": "main",
    "split": "tset",
    "weight": 0.0,
    "streaming": True,
    "max_rows": 3,
    "format": "classification",
    "like": "stanfordnlp/imdb",
    "columns": "other",
    "prompt": "Say: {other}",
    "labels": ["ham", "spam"],
    "bad_rows": "drop",
    "duplicates": "drop",
}


def what_is_learned_from(kind, source, tokenizer):
    """Returns the rows, the stream, or the words of the refusal."""
    second = str(Path(source["name"]).with_name("more.jsonl"))
    try:
        config = kind_class(kind)(
            datasets=[source, second],
            eval_fraction=0.0,
            mixture_stop="all_exhausted",
            **({"packing": False} if kind == "sft" else {}),
        )
        data = READ[kind](config, tokenizer).train
    except (LabError, ValidationError) as error:
        return str(error)
    return (
        [json.dumps(row, default=lambda value: value.tolist()) for row in data]
        if hasattr(data, "features")
        else "streamed"
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ROWS)
def test_none_is_ignored(kind, tmp_path):
    assert OPTIONS.keys() == SourceConfig.options().keys() - {"name"}
    tokenizer = load_tokenizer("byte")
    ensure_chat_template(tokenizer)
    ignored, unnamed = [], []
    for option, value in OPTIONS.items():
        (folder := tmp_path / option).mkdir()
        for name, first in (("rows", 0), ("more", 50)):
            rows = [
                {column: text.format(n=n) for column, text in ROWS[kind].items()}
                for n in range(first, first + 9)
            ]
            if option == "duplicates" and name == "rows":
                rows += rows[:4]
            if option == "bad_rows" and name == "rows":
                rows[2] = {**rows[2], next(iter(ROWS[kind])): 5}
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if option == "like" and kind == "pretrain":
            value = "nyu-mll/glue/sst2"  # whose text is in another column
        if option == "columns":
            part = [name for name in ROWS[kind] if name != "other"][-1]
            value = {**{name: name for name in ROWS[kind] if name != "other"}, part: "other"}
        plain = what_is_learned_from(kind, {"name": str(folder / "rows.jsonl")}, tokenizer)
        changed = what_is_learned_from(kind, {"name": str(folder / "rows.jsonl"), option: value}, tokenizer)
        if plain == changed:
            ignored.append(option)
        elif option == "streaming" and "streamed" in changed:
            continue  # as a stream, or refused where rows must be stored
        elif (
            isinstance(changed, str) and changed != "streamed" and option not in (*changed.split("`"), "like")
        ):
            unnamed.append((option, changed))
    assert not ignored and not unnamed


@pytest.mark.parametrize(
    "beside", [{"format": "text"}, {"columns": {"text": "text"}}, {"prompt": "Say {text}"}]
)
def test_two_ways_to_read_are_refused(tmp_path, beside):
    (tmp_path / "rows.jsonl").write_text('{"text": "Call me Ishmael."}\n' * 3)
    source = {"name": str(tmp_path / "rows.jsonl"), "like": "stanfordnlp/imdb", **beside}
    with pytest.raises(LabError, match=f"`like` and `{next(iter(beside))}` both set"):
        pretrain_data(
            kind_class("pretrain")(datasets=[source], eval_fraction=0.0), load_tokenizer("byte"), 64
        )
