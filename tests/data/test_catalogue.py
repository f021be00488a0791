"""The catalogue: every entry reads rows with the exact columns and types of the real dataset."""

import json

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from llmlab.config import SourceConfig
from llmlab.data.catalogue import CATALOGUE, entry, entry_like, real_id
from llmlab.data.local import SHIPPED
from llmlab.data.opening import open_source
from llmlab.data.packed_text import document_texts
from llmlab.data.parsers import conversations_of_tree, halueval, truthful_qa
from llmlab.data.pipeline import SourceRows
from llmlab.data.schemas import InvalidRow
from llmlab.errors import LabError

S, N, F = Value("string"), Value("int64"), Value("float64")
TURNS = List({"role": S, "content": S})


def labels(*names):
    return ClassLabel(names=list(names))


def turns(*said):
    return [
        {"role": role, "content": text} for role, text in zip(["user", "assistant"] * 9, said, strict=False)
    ]


def glue(columns, names, row, prompt_end, word):
    return (
        {**dict.fromkeys(columns, S), "label": labels(*names), "idx": Value("int32")},
        {**row, "idx": 0},
        prompt_end,
        word,
    )


# dataset (| subset): features, a row, the end of the prompt (or the text), the completion (or the answers)
REAL = {
    "stanfordnlp/imdb": (
        {"text": S, "label": labels("neg", "pos")},
        {"text": "Fine.", "label": 1},
        "Review: Fine.\nSentiment:",
        "positive",
    ),
    "imdb": (
        {"text": S, "label": labels("neg", "pos")},
        {"text": "Bad.", "label": 0},
        "Review: Bad.\nSentiment:",
        "negative",
    ),
    "nyu-mll/glue|cola": glue(
        ["sentence"],
        ["unacceptable", "acceptable"],
        {"sentence": "He go.", "label": 0},
        "He go.\nVerdict:",
        "unacceptable",
    ),
    "glue|sst2": glue(
        ["sentence"],
        ["negative", "positive"],
        {"sentence": "Good", "label": 1},
        "Good\nSentiment:",
        "positive",
    ),
    "nyu-mll/glue|mrpc": glue(
        ["sentence1", "sentence2"],
        ["not_equivalent", "equivalent"],
        {"sentence1": "a", "sentence2": "b", "label": 1},
        "Sentence 2: b\nVerdict:",
        "equivalent",
    ),
    "nyu-mll/glue|qqp": glue(
        ["question1", "question2"],
        ["not_duplicate", "duplicate"],
        {"question1": "a?", "question2": "b?", "label": 0},
        "Question 2: b?\nVerdict:",
        "not_duplicate",
    ),
    "nyu-mll/glue|mnli": glue(
        ["premise", "hypothesis"],
        ["entailment", "neutral", "contradiction"],
        {"premise": "a", "hypothesis": "b", "label": 2},
        "Hypothesis: b\nVerdict:",
        "contradiction",
    ),
    "nyu-mll/glue|qnli": glue(
        ["question", "sentence"],
        ["entailment", "not_entailment"],
        {"question": "a?", "sentence": "b", "label": 1},
        "Sentence: b\nVerdict:",
        "not_entailment",
    ),
    "nyu-mll/glue|rte": glue(
        ["sentence1", "sentence2"],
        ["entailment", "not_entailment"],
        {"sentence1": "a", "sentence2": "b", "label": 0},
        "Sentence 2: b\nVerdict:",
        "entailment",
    ),
    "nyu-mll/glue|wnli": glue(
        ["sentence1", "sentence2"],
        ["not_entailment", "entailment"],
        {"sentence1": "a", "sentence2": "b", "label": 0},
        "Sentence 2: b\nVerdict:",
        "not_entailment",
    ),
    "nyu-mll/glue|stsb": (
        {"sentence1": S, "sentence2": S, "label": Value("float32"), "idx": Value("int32")},
        {"sentence1": "a", "sentence2": "b", "label": 3.8, "idx": 0},
        "Sentence 2: b\nSimilarity:",
        "3.8",
    ),
    "takala/financial_phrasebank|sentences_50agree": (
        {"sentence": S, "label": labels("negative", "neutral", "positive")},
        {"sentence": "Profit rose.", "label": 2},
        "News: Profit rose.\nSentiment:",
        "positive",
    ),
    "zeroshot/twitter-financial-news-sentiment": (
        {"text": S, "label": N},
        {"text": "$X up", "label": 1},
        "Post: $X up\nSentiment:",
        "bullish",
    ),
    "TheFinAI/fiqa-sentiment-classification": (
        {"_id": S, "sentence": S, "target": S, "aspect": S, "score": F, "type": S},
        {"_id": "1", "sentence": "Falls", "target": "X", "aspect": "y", "score": -0.4, "type": "headline"},
        "Statement: Falls\nSentiment:",
        "negative",
    ),
    "cais/mmlu|anatomy": (
        {"question": S, "subject": S, "choices": List(S), "answer": labels("A", "B", "C", "D")},
        {"question": "Which?", "subject": "anatomy", "choices": ["w", "x", "y", "z"], "answer": 2},
        "C. y\nD. z\nAnswer:",
        "C",
    ),
    "truthfulqa/truthful_qa|multiple_choice": (
        {"question": S, "mc1_targets": {"choices": List(S), "labels": List(Value("int32"))}},
        {"question": "Which?", "mc1_targets": {"choices": ["v", "w", "x", "y"], "labels": [1, 0, 0, 0]}},
        "Which?\nA. v\nB. w\nC. x\nD. y\nAnswer:",
        "A",
    ),
    "truthfulqa/truthful_qa|generation": (
        {"question": S, "best_answer": S, "correct_answers": List(S)},
        {"question": "Which?", "best_answer": "This.", "correct_answers": ["This."]},
        "Which?",
        "This.",
    ),
    "virattt/financial-qa-10K": (
        {"question": S, "answer": S, "context": S, "ticker": S, "filing": S},
        {"question": "Who?", "answer": "We.", "context": "We sell.", "ticker": "X", "filing": "2023_10K"},
        "We sell.\n\nWho?",
        "We.",
    ),
    "pminervini/HaluEval|qa": (
        {"knowledge": S, "question": S, "right_answer": S, "hallucinated_answer": S},
        {
            "knowledge": "He has one leg.",
            "question": "Who?",
            "right_answer": "Ahab",
            "hallucinated_answer": "B",
        },
        "Text: He has one leg.\nQuestion: Who?\nAnswer: B\nVerdict:",
        "hallucinated",
    ),
    "pminervini/HaluEval|dialogue": (
        {"knowledge": S, "dialogue_history": S, "right_response": S, "hallucinated_response": S},
        {
            "knowledge": "k",
            "dialogue_history": "[Human]: Who?",
            "right_response": "A",
            "hallucinated_response": "B",
        },
        "Text: k\nConversation: [Human]: Who?\nAnswer: A\nVerdict:",
        "supported",
    ),
    "pminervini/HaluEval|summarization": (
        {"document": S, "right_summary": S, "hallucinated_summary": S},
        {"document": "d", "right_summary": "A", "hallucinated_summary": "B"},
        "Text: d\nAnswer: A\nVerdict:",
        "supported",
    ),
    "TIGER-Lab/MMLU-Pro": (
        {
            "question_id": N,
            "question": S,
            "options": List(S),
            "answer": S,
            "answer_index": N,
            "cot_content": S,
            "category": S,
            "src": S,
        },
        {
            "question_id": 1,
            "question": "Which?",
            "options": list("abcdefghij"),
            "answer": "J",
            "answer_index": 9,
            "cot_content": "",
            "category": "law",
            "src": "",
        },
        "J. j\nAnswer:",
        "J",
    ),
    "LLukas22/fiqa": (
        {"question": S, "answer": S},
        {"question": "Why?", "answer": "Because."},
        "Why?",
        "Because.",
    ),
    "gbharti/finance-alpaca": (
        {"text": S, "instruction": S, "input": S, "output": S},
        {"text": "", "instruction": "Sum up", "input": "a, b", "output": "c"},
        "Sum up\n\na, b",
        "c",
    ),
    "JanosAudran/financial-reports-sec|large_lite": (
        {
            "cik": S,
            "sentence": S,
            "section": N,
            "labels": {"1d": N, "5d": N, "30d": N},
            "filingDate": S,
            "docID": S,
            "sentenceID": S,
            "sentenceCount": N,
        },
        {
            "cik": "1",
            "sentence": "We sell.",
            "section": 0,
            "labels": {"1d": 0, "5d": 0, "30d": 1},
            "filingDate": "",
            "docID": "",
            "sentenceID": "",
            "sentenceCount": 1,
        },
        "We sell.\nMove:",
        "negative",
    ),
    "openai/gsm8k|main": (
        {"question": S, "answer": S},
        {"question": "1+1?", "answer": "It is 2.\n#### 2"},
        "1+1?",
        "It is 2.\n#### 2",
    ),
    "gsm8k|socratic": (
        {"question": S, "answer": S},
        {"question": "1+1?", "answer": "It is 2.\n#### 2"},
        "1+1?",
        "It is 2.\n#### 2",
    ),
    "yale-nlp/FinanceMath": (
        {
            "question_id": S,
            "question": S,
            "tables": List(S),
            "python_solution": S,
            "ground_truth": F,
            "topic": S,
        },
        {
            "question_id": "v-0",
            "question": "How much?",
            "tables": ["| a |"],
            "python_solution": "x = 1",
            "ground_truth": 1.0,
            "topic": "",
        },
        "| a |\n\nHow much?",
        "x = 1",
    ),
    "deepmind/math_dataset|algebra__linear_1d": (
        {"question": S, "answer": S},
        {"question": "b'Solve 2*x = 4.\\n'", "answer": "b'2\\n'"},
        "Solve 2*x = 4.",
        "2",
    ),
    "bigcode/bigcodebench": (
        {
            "task_id": S,
            "complete_prompt": S,
            "instruct_prompt": S,
            "canonical_solution": S,
            "code_prompt": S,
            "test": S,
            "entry_point": S,
            "doc_struct": S,
            "libs": S,
        },
        {
            "task_id": "1",
            "complete_prompt": "def f",
            "instruct_prompt": "Write f",
            "canonical_solution": "  return 1",
            "code_prompt": "",
            "test": "",
            "entry_point": "f",
            "doc_struct": "",
            "libs": "",
        },
        "Write f",
        "  return 1",
    ),
    "AdaptLLM/finance-tasks|FPB": (
        {"id": N, "input": S, "options": List(S), "gold_index": N, "class_id": N},
        {
            "id": 0,
            "input": "Up\nQuestion: sentiment?",
            "options": ["Positive", "Negative"],
            "gold_index": 1,
            "class_id": 1,
        },
        "Question: sentiment?",
        "Negative",
    ),
    "AdaptLLM/finance-tasks|ConvFinQA": (
        {"input": S, "label": S},
        {"input": "What was it?", "label": "12.5"},
        "What was it?",
        "12.5",
    ),
    "sujet-ai/Sujet-Finance-QA-Vision-100k": (
        {"doc_id": S, "question": S, "answer": S},
        {"doc_id": "1", "question": "Total?", "answer": "5"},
        "Total?",
        "5",
    ),
    "tatsu-lab/alpaca": (
        {"instruction": S, "input": S, "output": S, "text": S},
        {"instruction": "Say hi", "input": "", "output": "Hi", "text": "x"},
        "Say hi",
        "Hi",
    ),
}
TEXTS = {
    "ashraq/financial-news-articles": (
        {"title": S, "text": S, "url": S},
        {"title": "News", "text": "It rose.", "url": "u"},
        "News\n\nIt rose.",
    ),
    "HuggingFaceFW/fineweb-edu": (
        {"text": S, "id": S, "score": F},
        {"text": "Web", "id": "1", "score": 3.0},
        "Web",
    ),
    "HuggingFaceFW/fineweb-2|fra_Latn": (
        {"text": S, "id": S, "language": S},
        {"text": "Toile", "id": "1", "language": "fra"},
        "Toile",
    ),
    "PleIAs/common_corpus": (
        {"identifier": S, "collection": S, "text": S},
        {"identifier": "1", "collection": "c", "text": "Open"},
        "Open",
    ),
    "bookcorpus/bookcorpus": ({"text": S}, {"text": "a sentence ."}, "a sentence ."),
    "open-web-math/open-web-math": (
        {"url": S, "text": S, "date": S, "metadata": S},
        {"url": "", "text": "x=1", "date": "", "metadata": ""},
        "x=1",
    ),
    "wikitext|wikitext-2-raw-v1": ({"text": S}, {"text": " = Whale = \n"}, " = Whale = \n"),
    "JanosAudran/financial-reports-sec|small_lite": (
        {"cik": S, "sentence": S, "labels": {"30d": N}},
        {"cik": "1", "sentence": "We sell.", "labels": {"30d": 1}},
        "We sell.",
    ),
    "stanfordnlp/imdb": ({"text": S, "label": labels("neg", "pos")}, {"text": "Fine.", "label": 1}, "Fine."),
}
HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Who?\n\nAssistant: "
PAIRS = {
    "pminervini/HaluEval|qa": (
        {"knowledge": S, "question": S, "right_answer": S, "hallucinated_answer": S},
        {"knowledge": "k", "question": "Who?", "right_answer": "A", "hallucinated_answer": "B"},
        "k\n\nWho?",
        ("A", "B"),
    ),
    "Anthropic/hh-rlhf": (
        {"chosen": S, "rejected": S},
        {"chosen": HH + "Ahab.", "rejected": HH + "Stubb."},
        "Who?",
        ("Ahab.", "Stubb."),
    ),
    "argilla/ultrafeedback-binarized-preferences": (
        {"source": S, "instruction": S, "chosen_response": S, "rejected_response": S, "chosen_avg_rating": F},
        {
            "source": "",
            "instruction": "Q",
            "chosen_response": "A",
            "rejected_response": "B",
            "chosen_avg_rating": 5.0,
        },
        "Q",
        ("A", "B"),
    ),
    "allenai/Dolci-Instruct-DPO": (
        {"chosen": TURNS, "rejected": TURNS, "prompt_id": S},
        {"chosen": turns("Q", "A"), "rejected": turns("Q", "B"), "prompt_id": "1"},
        "Q",
        ("A", "B"),
    ),
    "allenai/Dolci-Think-DPO-7B": (
        {"prompt": S, "chosen": TURNS, "rejected": TURNS, "chosen_model": S},
        {
            "prompt": "Q",
            "chosen": turns("Q", "<think>x</think>A"),
            "rejected": turns("Q", "B"),
            "chosen_model": "m",
        },
        "Q",
        ("<think>x</think>A", "B"),
    ),
}
CHATS = {
    "HuggingFaceTB/smoltalk2|SFT": (
        {"messages": TURNS, "chat_template_kwargs": {"enable_thinking": Value("bool")}, "source": S},
        {"messages": turns("Q", "A"), "chat_template_kwargs": {"enable_thinking": False}, "source": "x"},
    ),
    "HuggingFaceH4/ultrachat_200k": (
        {"prompt": S, "prompt_id": S, "messages": TURNS},
        {"prompt": "Q", "prompt_id": "1", "messages": turns("Q", "A", "R", "B")},
    ),
}
ANSWERS = {
    "openai/gsm8k|main": (
        {"question": S, "answer": S},
        {"question": "?", "answer": "so 1,2\n#### 1,200"},
        "1200",
    ),
    "yale-nlp/FinanceMath": (
        {"question": S, "tables": List(S), "python_solution": S, "ground_truth": F},
        {"question": "?", "tables": [], "python_solution": "", "ground_truth": 0.125},
        "0.125",
    ),
    "deepmind/math_dataset|x": (
        {"question": S, "answer": S},
        {"question": "b'?\\n'", "answer": "b'-3\\n'"},
        "-3",
    ),
}


def read(tmp_path, key, features, row, needed):
    """The canonical row of a table with the real columns, read as the catalogue reads the dataset."""
    path = tmp_path / "table.parquet"
    Dataset.from_list([row], features=Features(features)).to_parquet(path)
    name, _, subset = key.partition("|")
    source = SourceConfig(name=str(path), like=f"{name}/{subset}" if subset else name)
    return next(made for _, made in SourceRows.of(source, needed))


@pytest.mark.parametrize("key", REAL)
def test_rows_with_a_completion(tmp_path, key):
    features, row, end, completion = REAL[key]
    made = read(tmp_path, key, features, row, ("messages", "prompt_completion"))
    assert made["prompt"][-1]["content"].endswith(end) and made["completion"] == completion
    if "choices" in made:
        assert made["choices"][made["label"]] == completion


@pytest.mark.parametrize("key", TEXTS)
def test_texts(tmp_path, key):
    features, row, text = TEXTS[key]
    assert read(tmp_path, key, features, row, ("text",)) == {"text": text}


@pytest.mark.parametrize("key", PAIRS)
def test_pairs(tmp_path, key):
    features, row, prompt, (chosen, rejected) = PAIRS[key]
    made = read(tmp_path, key, features, row, ("preference",))
    assert (made["prompt"][-1]["content"], made["chosen"], made["rejected"]) == (prompt, chosen, rejected)


@pytest.mark.parametrize("key", CHATS)
def test_conversations(tmp_path, key):
    features, row = CHATS[key]
    assert read(tmp_path, key, features, row, ("messages", "prompt_completion")) == {
        "messages": row["messages"]
    }


@pytest.mark.parametrize("key", ANSWERS)
def test_answers_for_rewards(tmp_path, key):
    features, row, answer = ANSWERS[key]
    assert read(tmp_path, key, features, row, ("prompt_answer",))["answer"] == answer


def test_the_true_choice_and_the_supported_answer_stand_anywhere():
    choices = {"choices": ["true", "b", "c", "d"], "labels": [1, 0, 0, 0]}
    rows = [truthful_qa({"question": f"{n}?", "mc1_targets": choices}) for n in range(400)]
    assert {row["choices"][row["label"]] for row in rows} == set("ABCD")
    assert all(f"{row['completion']}. true" in row["prompt"][0]["content"] for row in rows)
    assert all(60 < sum(row["label"] == place for row in rows) < 140 for place in range(4))
    asked = {"question": "Who?", "right_answer": "Ahab", "hallucinated_answer": "Stubb"}
    rows = [halueval({"knowledge": f"text {n}", **asked}) for n in range(400)]
    for row in rows:
        said = "Ahab" if row["completion"] == "supported" else "Stubb"
        assert f"Answer: {said}\n" in row["prompt"][0]["content"]
    assert 160 < sum(row["completion"] == "supported" for row in rows) < 240
    wrong = {"question": "?", "mc1_targets": {"choices": ["a", "b"], "labels": [1, 1]}}
    with pytest.raises(InvalidRow, match="not one true choice"):
        truthful_qa(wrong)


def test_every_entry_is_tried():
    tried = {
        tuple(key.partition("|")[::2]) for group in (REAL, TEXTS, PAIRS, CHATS, ANSWERS) for key in group
    }
    tried |= {("OpenAssistant/oasst1", ""), *((name, "") for name in SHIPPED)}
    tried |= {("llmlab:preferences", "")}  # in test_collection.py
    found = {id(entry(name, subset)) for name, subset in tried}
    assert [known.id for known in CATALOGUE if id(known) not in found] == []


TREE = [
    ("1", None, "prompter", "Who?"),
    ("2", "1", "assistant", "Ahab."),
    ("3", "1", "assistant", "Stubb."),
    ("4", "2", "prompter", "And?"),
    ("5", "4", "assistant", "The whale."),
    ("6", "3", "prompter", "No."),
    ("7", None, "prompter", "Alone?"),
]


def test_message_trees_become_every_conversation_that_ends_with_an_answer(tmp_path):
    rows = [
        dict(zip(("message_id", "parent_id", "role", "text"), row, strict=True), lang="en") for row in TREE
    ]
    said = [[turn["content"] for turn in row["messages"]] for row in conversations_of_tree(rows)]
    assert sorted(said) == [["Who?", "Ahab.", "And?", "The whale."], ["Who?", "Stubb."]]
    path = tmp_path / "tree.parquet"
    Dataset.from_list(rows).to_parquet(path)
    opened = open_source(SourceConfig(name=str(path)), ("messages", "prompt_completion"))
    assert len(list(SourceRows(opened))) == 2


def test_names_of_earlier_days_and_subsets():
    assert real_id("imdb") == "stanfordnlp/imdb" and entry("glue", "rte").subsets == ("rte",)
    assert entry_like("nyu-mll/glue/sst2").subsets == ("sst2",) and entry_like("gsm8k").id == "openai/gsm8k"
    assert entry("glue", "nothing") is None and entry("some/other") is None


def test_what_is_said_by_hand_wins(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps({"body": f"mail {i}", "kind": i % 2, "text": "x"}) + "\n" for i in range(4))
    )
    by_hand = SourceConfig(
        name=str(path),
        format="classification",
        columns={"label": "kind"},
        labels=["ham", "spam"],
        prompt="Mail: {body}\nVerdict:",
    )
    rows = [row for _, row in SourceRows.of(by_hand, ("prompt_completion",))]
    assert (
        rows[1]["prompt"][0]["content"] == "Mail: mail 1\nVerdict:"
        and [r["completion"] for r in rows] == ["ham", "spam"] * 2
    )
    mapped = SourceConfig(name=str(path), columns={"prompt": "body", "completion": "text"})
    assert next(r for _, r in SourceRows.of(mapped, ("prompt_completion",)))["completion"] == "x"
    assert list(document_texts(SourceConfig(name=str(path), columns={"text": "body"}))) == [
        f"mail {i}" for i in range(4)
    ]


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(columns={"prompt": "nope"}), "there is no column 'nope': there are body, kind"),
        (dict(prompt="Mail: {nope}"), "there is no column 'nope'"),
        (dict(format="preference"), "needs a column for chosen and rejected; the columns are body, kind"),
        (dict(format="text"), "needs a column for text"),
        (dict(like="some/thing"), "'some/thing' is not in the catalogue"),
        (dict(), "columns of no known shape"),
    ],
)
def test_hands_that_err(tmp_path, changes, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "mail", "kind": 1}\n')
    with pytest.raises(LabError, match=message):
        open_source(SourceConfig(name=str(path), **changes), ("text", "preference"))


def test_a_subset_that_does_not_exist_lists_those_that_do(monkeypatch):
    def refuse(*_, **__):
        raise ValueError("BuilderConfig 'sst5' not found. Available: ['cola', 'sst2']")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(LabError, match="its subsets are cola, sst2, mrpc"):
        open_source(SourceConfig(name="glue", subset="sst5"), ("prompt_completion",))
