"""Known datasets: what each holds, how its rows become canonical, and which stages it serves.

One record a dataset (or a subset of one). A dataset that is not here works just as well through its columns.
Sizes are those published with the datasets, in rows of train / validation / test as far as they exist.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmlab.data import parsers
from llmlab.data.collection import SOURCE, answer_row, pair_row
from llmlab.data.mapping import RowMapping
from llmlab.data.verdicts import QUESTION, VERDICTS

# hub ids of earlier days
ALIASES = {
    "glue": "nyu-mll/glue",
    "imdb": "stanfordnlp/imdb",
    "wikitext": "Salesforce/wikitext",
    "gsm8k": "openai/gsm8k",
    "financial_phrasebank": "takala/financial_phrasebank",
    "math_dataset": "deepmind/math_dataset",
    "bookcorpus": "bookcorpus/bookcorpus",
}
NEGATIVE_POSITIVE = ("negative", "positive")
THREE_WAY = ("negative", "neutral", "positive")


@dataclass(frozen=True)
class Entry:
    """What is known of a dataset.

    Attributes:
        id: on the hub.
        mappings: how its rows can be read, the usual one first.
        rows: their number, in words.
        domain: what it is about.
        stages: kinds of runs that it serves.
        subsets: those there are, or the ones that this entry describes; empty when there is only one.
        splits: those there are.
        streamed: whether it is too large to download whole.
        note: what a person has to know.
        license: the hub's identifier of the licence that its publisher names, "" where it is not known for
            sure.
        language: the hub's code; "" for several.
    """

    id: str
    mappings: tuple[RowMapping, ...]
    rows: str
    domain: str
    stages: tuple[str, ...]
    subsets: tuple[str, ...] = ()
    splits: tuple[str, ...] = ("train",)
    streamed: bool = False
    note: str = ""
    license: str = ""
    language: str = "en"

    @property
    def becomes(self) -> str:
        """The shapes of its rows, in words."""
        return ", ".join(mapping.shape.replace("_", " + ") for mapping in self.mappings)


def _classification(prompt: str, labels: tuple[str, ...], label: str = "label") -> RowMapping:
    return RowMapping("classification", {"label": label}, prompt, labels)


def _text(column: str = "text", prompt: str = "") -> RowMapping:
    return RowMapping("text", {"text": column}, prompt)


def _answer(prompt: str = "question", completion: str = "answer", **columns: str) -> RowMapping:
    return RowMapping("prompt_completion", {"prompt": prompt, "completion": completion, **columns})


def _glue(
    subset: str, prompt: str, labels: tuple[str, ...], rows: str, splits: tuple[str, ...] = ()
) -> Entry:
    return Entry(
        "nyu-mll/glue",
        (_classification(prompt, labels),),
        rows,
        "language",
        ("sft", "evaluate"),
        (subset,),
        splits or ("train", "validation", "test"),
        note="the test split has no labels",
    )


INSTRUCTION = _answer("instruction", "output", input="input")
PREFERENCE = RowMapping("preference", {"chosen": "chosen", "rejected": "rejected", "prompt": "prompt"})
MESSAGES = RowMapping("messages", {"messages": "messages"})
CORPUS, CHAT, TUNE, PAIRS = ("pretrain",), ("sft",), ("sft", "evaluate"), ("dpo", "reward")
READING = "{passage}\n\n{question}"
JUDGING = QUESTION.replace("{prompt}", READING).replace("{answer}", "{claim}")
REWARDED = ("sft", "grpo", "ppo", "evaluate")


def _halueval(subset: str, prompt: str) -> Entry:
    _, _, right, made_up = parsers.HALUEVAL[subset]
    return Entry(
        "pminervini/HaluEval",
        (
            RowMapping("classification", parser=parsers.halueval),
            RowMapping("preference", {"chosen": right, "rejected": made_up}, prompt),
        ),
        "10,000",
        "hallucination",
        ("evaluate", "sft", *PAIRS),
        (subset,),
        ("data",),
        note="an answer that its text supports, and a made-up one",
    )


CATALOGUE: tuple[Entry, ...] = (
    Entry(
        "stanfordnlp/imdb",
        (
            _classification(
                "Is this film review negative or positive?\n\nReview: {text}\nSentiment:", NEGATIVE_POSITIVE
            ),
            _text(),
        ),
        "25,000 / 25,000",
        "film reviews",
        ("sft", "evaluate", "pretrain"),
        splits=("train", "test", "unsupervised"),
        note="sorted by label",
    ),
    _glue(
        "cola",
        "Is this English sentence acceptable?\n\nSentence: {sentence}\nVerdict:",
        ("unacceptable", "acceptable"),
        "8,551 / 1,043",
    ),
    _glue(
        "sst2",
        "Is the sentiment of this sentence negative or positive?\n\nSentence: {sentence}\nSentiment:",
        NEGATIVE_POSITIVE,
        "67,349 / 872",
    ),
    _glue(
        "mrpc",
        "Do these sentences mean the same?\n\nSentence 1: {sentence1}\nSentence 2: {sentence2}\nVerdict:",
        ("not_equivalent", "equivalent"),
        "3,668 / 408",
    ),
    _glue(
        "qqp",
        "Do these questions ask the same?\n\nQuestion 1: {question1}\nQuestion 2: {question2}\nVerdict:",
        ("not_duplicate", "duplicate"),
        "363,846 / 40,430",
    ),
    _glue(
        "mnli",
        "Does the premise entail the hypothesis?\n\nPremise: {premise}\nHypothesis: {hypothesis}\nVerdict:",
        ("entailment", "neutral", "contradiction"),
        "392,702 / 9,815 + 9,832",
        ("train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched"),
    ),
    _glue(
        "qnli",
        "Does the sentence answer the question?\n\nQuestion: {question}\nSentence: {sentence}\nVerdict:",
        ("entailment", "not_entailment"),
        "104,743 / 5,463",
    ),
    _glue(
        "rte",
        "Does the first sentence entail the second?\n\nSentence 1: {sentence1}\nSentence 2:"
        " {sentence2}\nVerdict:",
        ("entailment", "not_entailment"),
        "2,490 / 277",
    ),
    _glue(
        "wnli",
        "Does the first sentence entail the second?\n\nSentence 1: {sentence1}\nSentence 2:"
        " {sentence2}\nVerdict:",
        ("not_entailment", "entailment"),
        "635 / 71",
    ),
    Entry(
        "nyu-mll/glue",
        (RowMapping("prompt_completion", parser=parsers.similarity),),
        "5,749 / 1,500",
        "language",
        TUNE,
        ("stsb",),
        ("train", "validation", "test"),
        note="a score from 0 to 5 with one decimal, as text",
    ),
    Entry(
        "takala/financial_phrasebank",
        (
            _classification(
                "What is the sentiment of this financial news?\n\nNews: {sentence}\nSentiment:", THREE_WAY
            ),
        ),
        "2,264 to 4,846",
        "finance",
        TUNE,
        ("sentences_allagree", "sentences_75agree", "sentences_66agree", "sentences_50agree"),
        license="cc-by-nc-sa-3.0",
    ),
    Entry(
        "zeroshot/twitter-financial-news-sentiment",
        (
            _classification(
                "What is the sentiment of this financial post?\n\nPost: {text}\nSentiment:",
                ("bearish", "bullish", "neutral"),
            ),
        ),
        "9,938 / 2,486",
        "finance",
        TUNE,
        splits=("train", "validation"),
        license="mit",
    ),
    Entry(
        "TheFinAI/fiqa-sentiment-classification",
        (RowMapping("classification", parser=parsers.signed_sentiment),),
        "822 / 117 / 234",
        "finance",
        TUNE,
        splits=("train", "valid", "test"),
        note="a score from -1 to 1: below -0.1 negative, above 0.1 positive",
    ),
    Entry(
        "cais/mmlu",
        (RowMapping("classification", parser=parsers.mmlu),),
        "14,042 test",
        "knowledge",
        TUNE,
        ("all", "one of 57 subjects, as anatomy"),
        ("test", "validation", "dev", "auxiliary_train"),
        license="mit",
    ),
    Entry(
        "TIGER-Lab/MMLU-Pro",
        (RowMapping("classification", parser=parsers.mmlu_pro),),
        "12,000",
        "knowledge",
        TUNE,
        splits=("test", "validation"),
        license="mit",
    ),
    Entry(
        "truthfulqa/truthful_qa",
        (RowMapping("classification", parser=parsers.truthful_qa),),
        "817",
        "truthfulness",
        ("evaluate",),
        ("multiple_choice",),
        ("validation",),
        note="one true choice among others that many people believe (MC1)",
        license="apache-2.0",
    ),
    Entry(
        "truthfulqa/truthful_qa",
        (_answer("question", "best_answer"),),
        "817",
        "truthfulness",
        ("evaluate",),
        ("generation",),
        ("validation",),
        license="apache-2.0",
    ),
    Entry(
        "virattt/financial-qa-10K",
        (RowMapping("prompt_completion", {"completion": "answer"}, "{context}\n\n{question}"),),
        "7,000",
        "finance",
        TUNE,
    ),
    _halueval("qa", "{knowledge}\n\n{question}"),
    _halueval("dialogue", "{knowledge}\n\n{dialogue_history}"),
    _halueval("summarization", "Summarize this text.\n\n{document}"),
    Entry("LLukas22/fiqa", (_answer(),), "14,500 / 2,560", "finance", CHAT, splits=("train", "test")),
    Entry("gbharti/finance-alpaca", (INSTRUCTION,), "68,900", "finance", CHAT),
    Entry(
        "JanosAudran/financial-reports-sec",
        (
            _text("sentence"),
            _classification(
                "How did the share price move within 30 days after this statement?\n\nStatement:"
                " {sentence}\nMove:",
                ("positive", "negative"),
                "labels.30d",
            ),
        ),
        "20.5M / 240k",
        "finance",
        ("pretrain", "sft", "evaluate"),
        ("large_lite", "small_lite", "large_full", "small_full"),
        ("train", "validation", "test"),
    ),
    Entry(
        "ashraq/financial-news-articles", (_text(prompt="{title}\n\n{text}"),), "306,437", "finance", CORPUS
    ),
    Entry(
        "sujet-ai/Sujet-Finance-QA-Vision-100k",
        (_answer(),),
        "107,050",
        "finance",
        CHAT,
        splits=("train", "validation"),
        note="the text side only: questions about images are read without their images",
    ),
    Entry(
        "openai/gsm8k",
        (_answer(), RowMapping("prompt_answer", parser=parsers.gsm8k_answer)),
        "7,473 / 1,319",
        "mathematics",
        REWARDED,
        ("main", "socratic"),
        ("train", "test"),
        license="mit",
    ),
    Entry(
        "yale-nlp/FinanceMath",
        (
            RowMapping("prompt_completion", parser=parsers.finance_math),
            RowMapping("prompt_answer", parser=parsers.finance_math_answer),
        ),
        "200 / 1,000",
        "finance",
        REWARDED,
        splits=("validation", "test"),
        note="the test split keeps its solutions",
    ),
    Entry(
        "deepmind/math_dataset",
        (
            RowMapping("prompt_completion", parser=parsers.math_dataset),
            RowMapping("prompt_answer", parser=parsers.math_dataset_answer),
        ),
        "2M per module",
        "mathematics",
        REWARDED,
        ("one per module, as algebra__linear_1d",),
        ("train", "test"),
    ),
    Entry(
        "bigcode/bigcodebench",
        (_answer("instruct_prompt", "canonical_solution"), _answer("complete_prompt", "canonical_solution")),
        "1,140",
        "code",
        TUNE,
        splits=("v0.1.4", "v0.1.3", "v0.1.2", "v0.1.1", "v0.1.0_hf"),
        license="apache-2.0",
    ),
    Entry(
        "AdaptLLM/finance-tasks",
        (RowMapping("prompt_completion", parser=parsers.finance_task),),
        "23k",
        "finance",
        ("evaluate",),
        ("ConvFinQA", "FPB", "FiQA_SA", "Headline", "NER"),
        ("test",),
    ),
    Entry(
        "HuggingFaceFW/fineweb-edu",
        (_text(),),
        "1.3T tokens",
        "web",
        CORPUS,
        ("sample-10BT", "sample-100BT", "sample-350BT", "default"),
        streamed=True,
        license="odc-by",
    ),
    Entry(
        "HuggingFaceFW/fineweb-2",
        (_text(),),
        "1,800 languages",
        "web",
        CORPUS,
        ("one per language, as fra_Latn",),
        ("train", "test"),
        streamed=True,
        license="odc-by",
        language="",
    ),
    Entry(
        "PleIAs/common_corpus", (_text(),), "2T tokens", "open culture", CORPUS, streamed=True, language=""
    ),
    Entry("bookcorpus/bookcorpus", (_text(),), "74,004,228", "books", CORPUS, note="one row is one sentence"),
    Entry(
        "open-web-math/open-web-math",
        (_text(),),
        "6.3M",
        "mathematics",
        CORPUS,
        streamed=True,
        license="odc-by",
    ),
    Entry(
        "Salesforce/wikitext",
        (_text(),),
        "36,718 / 1,801,350",
        "encyclopedia",
        CORPUS,
        ("wikitext-2-raw-v1", "wikitext-103-raw-v1"),
        ("train", "validation", "test"),
        note="one row is one line; empty ones are left out",
        license="cc-by-sa-3.0",
    ),
    Entry(
        "HuggingFaceTB/smoltalk2",
        (MESSAGES,),
        "several million",
        "conversation",
        CHAT,
        ("SFT", "Mid"),
        note="splits are its sources",
        streamed=True,
    ),
    Entry(
        "HuggingFaceH4/ultrachat_200k",
        (MESSAGES,),
        "207,865 / 23,110",
        "conversation",
        CHAT,
        splits=("train_sft", "test_sft", "train_gen", "test_gen"),
        license="mit",
    ),
    Entry(
        "OpenAssistant/oasst1",
        (RowMapping("messages"),),
        "84,437 / 4,401 messages",
        "conversation",
        CHAT,
        splits=("train", "validation"),
        note="trees of messages; every path to an answer becomes a conversation",
        license="apache-2.0",
        language="",
    ),
    Entry("tatsu-lab/alpaca", (INSTRUCTION,), "52,002", "instructions", CHAT, license="cc-by-nc-4.0"),
    Entry(
        "Anthropic/hh-rlhf",
        (RowMapping("preference", {"chosen": "chosen", "rejected": "rejected"}),),
        "160,800 / 8,552",
        "helpful and harmless",
        PAIRS,
        splits=("train", "test"),
        note="conversations in one string; read into messages",
        license="mit",
    ),
    Entry(
        "argilla/ultrafeedback-binarized-preferences",
        (
            RowMapping(
                "preference",
                {"prompt": "instruction", "chosen": "chosen_response", "rejected": "rejected_response"},
            ),
        ),
        "63,619",
        "conversation",
        PAIRS,
        license="mit",
    ),
    Entry(
        "allenai/Dolci-Think-DPO-7B",
        (PREFERENCE,),
        "150k",
        "reasoning",
        PAIRS,
        note="lengths to 25,000 tokens",
    ),
    Entry("allenai/Dolci-Instruct-DPO", (PREFERENCE,), "259,922", "conversation", PAIRS),
    Entry("llmlab:moby-dick", (_text(),), "136", "prose", CORPUS, note="ships with llmlab", license="pddl"),
    Entry(
        "llmlab:questions",
        (_answer("prompt", "completion"),),
        "400",
        "arithmetic, letters",
        ("evaluate",),
        splits=("train", "test"),
        note="ships with llmlab: the quickstart's held-out questions",
        license="apache-2.0",
    ),
    Entry(
        "llmlab:passages",
        (RowMapping("prompt_completion", {"completion": "answer"}, READING),),
        "6,000 / 600",
        "questions on passages",
        REWARDED,
        splits=("train", "test"),
        note="ships with llmlab: the passage states the answer, or does not say",
        license="pddl",
    ),
    Entry(
        "llmlab:passage-pairs",
        (RowMapping("preference", {"chosen": "answer", "rejected": "rejected"}, READING),),
        "6,000 / 600",
        "questions on passages",
        (*PAIRS, "evaluate"),
        splits=("train", "test"),
        note="ships with llmlab: the passage's answer, and one that it contradicts or does not state",
        license="pddl",
    ),
    Entry(
        "llmlab:passage-claims",
        (RowMapping("classification", {"label": "verdict"}, JUDGING, VERDICTS),),
        "6,000 / 600",
        "answers on passages",
        TUNE,
        splits=("train", "test"),
        note="ships with llmlab: supported, contradicted, unsupported or abstained",
        license="pddl",
    ),
    Entry(
        "llmlab:spam-mails",
        (
            _classification(
                "Is this mail spam or ham?\n\nSubject: {subject}\nMail: {text}\nVerdict:", ("ham", "spam")
            ),
            _text(),
        ),
        "1,600 / 400",
        "mail",
        ("sft", "evaluate", "pretrain"),
        splits=("train", "test"),
        note="ships with llmlab",
        license="pddl",
    ),
    Entry(
        SOURCE,
        (RowMapping("preference", parser=pair_row), RowMapping("prompt_completion", parser=answer_row)),
        "yours",
        "your judgements",
        ("dpo", "reward", "sft", "dual_head"),
        note="what was collected in chat, in preferences/",
        language="",
    ),
)


def real_id(name: str) -> str:
    """Returns the id under which a dataset is found today."""
    return ALIASES.get(name, name)


def entry(name: str, subset: str | None = None) -> Entry | None:
    """Returns what is known of a dataset, or None. GLUE's tasks are told apart by their subset."""
    same = [dataset for dataset in CATALOGUE if dataset.id == real_id(name)]
    if len(same) <= 1:
        return same[0] if same else None
    return next((dataset for dataset in same if subset in dataset.subsets), None)


def entry_like(text: str) -> Entry | None:
    """Returns the entry that `like` names: an id, or an id and a subset after one more slash."""
    dataset = entry(text)
    head, _, subset = text.rpartition("/")
    return dataset or (entry(head, subset) if head else None)


def mapping_for(dataset: Entry | None, needed: tuple[str, ...]) -> RowMapping | None:
    """Returns the mapping of an entry that gives a needed shape; the usual one where none does."""
    if dataset is None:
        return None
    return next((each for each in dataset.mappings if each.serves(needed)), dataset.mappings[0])
