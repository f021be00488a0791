"""Options of sources are honoured, or refused with the reason."""

import json

import numpy as np
import pytest

from llmlab.config import GRPOConfig, PPOConfig, PretrainConfig, SFTConfig, SourceConfig
from llmlab.data.conversations import sft_data
from llmlab.data.packed_text import pretrain_data
from llmlab.data.prompts import prompts_data
from llmlab.data.sources import load_rows
from llmlab.data.tokenizer import load_tokenizer
from llmlab.errors import LabError


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("duplicates, count", [("keep", 5), ("drop", 3)])
def test_doubles_of_texts_are_dropped(tmp_path, duplicates, count):
    path = write(tmp_path / "a.jsonl", [{"text": text} for text in ("Ahab", "Stubb", "Ahab", "Pip", "Stubb")])
    tokenizer = load_tokenizer("byte")
    data = pretrain_data(
        PretrainConfig(datasets=[{"name": path, "duplicates": duplicates}], eval_fraction=0), tokenizer, 64
    )
    ids = np.concatenate([row["input_ids"] for row in data.train])
    assert (ids == tokenizer.eos_token_id).sum() == count
    told = f"left out 2 rows: the same as an earlier row (first: {path}, row 3)"
    assert (told in data.notes) is (duplicates == "drop")


@pytest.mark.parametrize("config", [GRPOConfig, PPOConfig])
@pytest.mark.parametrize("duplicates, count", [("keep", 3), ("drop", 2)])
def test_doubles_of_prompts_are_dropped(tmp_path, config, duplicates, count):
    path = write(
        tmp_path / "a.jsonl", [{"prompt": text, "answer": "x"} for text in ("Who?", "Where?", "Who?")]
    )
    made = config(datasets=[{"name": path, "duplicates": duplicates}], eval_fraction=0)
    assert prompts_data(made, load_tokenizer("byte")).facts["train_prompts"] == count


@pytest.mark.parametrize("option, value", [("split", "tset"), ("subset", "main")])
@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("kind", ["sft", "pretrain", "grpo"])
def test_splits_and_subsets_that_files_do_not_have_are_refused(tmp_path, option, value, folder, kind):
    path = write(tmp_path / "rows" / "a.jsonl", [{"prompt": "Who?", "completion": "Ahab"}])
    source = {
        "name": str(tmp_path / "rows") if folder else path,
        option: value,
        "format": "text" if kind == "pretrain" else "auto",
    }
    source |= {"columns": {"text": "completion"}} if kind == "pretrain" else {}
    tokenizer = load_tokenizer("byte")
    with pytest.raises(LabError, match=f"`{option}` '{value}'"):
        match kind:
            case "sft":
                sft_data(SFTConfig(datasets=[source]), tokenizer)
            case "pretrain":
                pretrain_data(PretrainConfig(datasets=[source]), tokenizer, 64)
            case "grpo":
                prompts_data(GRPOConfig(datasets=[source]), tokenizer)


def test_a_split_of_a_folder_is_its_files_of_that_name(tmp_path):
    for name in ("train", "test"):
        write(tmp_path / "rows" / f"{name}-00000.jsonl", [{"text": name}])
    assert load_rows(SourceConfig(name=str(tmp_path / "rows"), split="test"))["text"] == ["test"]
