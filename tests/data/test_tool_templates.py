"""Tool calls and thoughts through the templates of four families, as the files in `golden/` have them: what
is learned stands between « and ». `python -m tests.data.test_tool_templates` writes them anew.
"""

from pathlib import Path

import pytest

from llmlab.config import SFTConfig, SourceConfig
from llmlab.data.conversations import UNLEARNED, sft_data
from llmlab.data.inspect import sample_pieces
from llmlab.data.pipeline import SourceRows
from llmlab.data.rendering import RefusedByTemplate
from llmlab.data.schemas import InvalidRow
from llmlab.errors import LabError
from tests.tool_templates import FAMILIES

GOLDEN = Path(__file__).parent / "golden"
SAMPLES = Path(__file__).parents[2] / "docs" / "samples"
FILES = ("tools", "parallel_tools", "reasoning")
CASES = [(family, file) for family in FAMILIES for file in FILES]


def rendered(family, file):
    """The rows of a sample as the model sees them, or why it does not take them."""
    tokenizer = FAMILIES[family].tokenizer()
    rows = []
    for _, row in SourceRows.of(SourceConfig(name=str(SAMPLES / f"{file}.jsonl")), ("messages",)):
        try:
            rows.append("".join(f"«{p}»" if learned else p for p, learned in sample_pieces(row, tokenizer)))
        except InvalidRow as invalid:
            rows.append(f"refused: {invalid.reason}")
        except RefusedByTemplate as refusal:
            rows.append(f"refused: {refusal.what}")
    return "\n----\n".join(rows) + "\n"


@pytest.mark.parametrize("family, file", CASES)
def test_what_is_learned_is_that_of_the_golden_file(family, file):
    assert rendered(family, file) == (GOLDEN / f"{family}-{file}.txt").read_text()


@pytest.mark.parametrize("family", FAMILIES)
def test_calls_are_learned_and_what_the_tools_answer_is_not(family):
    for file in ("tools", "parallel_tools"):
        text = rendered(family, file)
        if text.startswith("refused"):
            assert (family, file) == ("llama3.1", "parallel_tools") and "single tool-calls" in text
            continue
        parts = text.replace("»", "«").split("«")
        read, learned = "".join(parts[::2]), "".join(parts[1::2])
        assert '"weather"' in learned and '"Hull"}' in learned and "calm" not in learned
        assert "calm" in read and "a storm" in read.replace("a storm.", "") and '"description"' in read


@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_is_what_transformers_makes_of_it(family):
    tokenizer = FAMILIES[family].tokenizer()
    source = SourceConfig(name=str(SAMPLES / "tools.jsonl"))
    _, row = next(iter(SourceRows.of(source, ("messages",))))
    tools, *messages = row["messages"][0].pop("tools"), *row["messages"]
    theirs = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    bare = rendered(family, "tools").split("\n----\n")[0].replace("«", "").replace("»", "")
    assert bare == theirs


def data(family, file, **changes):
    values = dict(datasets=[str(SAMPLES / f"{file}.jsonl")], eval_fraction=0, packing=False, max_length=4000)
    return sft_data(SFTConfig(**{**values, **changes}), FAMILIES[family].tokenizer())


def test_it_is_told_when_an_answer_is_not_learned():
    prepared = data("qwen3", "reasoning")
    assert len(prepared.train) == 2 and any(UNLEARNED in note for note in prepared.notes)
    assert prepared.notes[0].startswith("kept 1 row: ")
    assert data("qwen3", "messages").notes == []


def test_rows_that_the_template_refuses_end_the_run_or_are_left_out():
    with pytest.raises(LabError, match=r"parallel_tools.jsonl.*row 1: the chat template refuses it"):
        data("llama3.1", "parallel_tools")
    sources = [
        {"name": str(SAMPLES / f"{file}.jsonl"), "bad_rows": "drop"} for file in ("parallel_tools", "tools")
    ]
    kept = data("llama3.1", "tools", datasets=sources, mixture_stop="all_exhausted")
    assert any("single tool-calls" in note for note in kept.notes)


if __name__ == "__main__":
    for family, file in CASES:
        (GOLDEN / f"{family}-{file}.txt").write_text(rendered(family, file))
