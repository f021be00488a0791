"""Numbers as people write them, in `--set`, forms and lines; rules of a text in words."""

import pytest

from llmlab.cli import parse_changes
from llmlab.config import KINDS, GRPOConfig, PretrainConfig, SFTConfig, SourceConfig, apply_changes
from llmlab.config.base import in_words
from llmlab.errors import LabError
from llmlab.ui.explanations import explanation
from llmlab.ui.fields import parse_typed

WHOLE = {
    "4,000": 4000,
    "4k": 4000,
    "4 K": 4000,
    "1.5k": 1500,
    "1e3": 1000,
    "1_000": 1000,
    "1,000,000": 10**6,
    "2M": 2 * 10**6,
}
REALS = {"1e-3": 1e-3, "0.5": 0.5, ".5": 0.5, "5e-6": 5e-6, "1_0": 10.0}


@pytest.mark.parametrize("text, value", WHOLE.items())
def test_whole_numbers(text, value):
    assert parse_typed(SFTConfig, "max_steps", text) == value
    made = apply_changes(SFTConfig(warmup_steps=0), parse_changes([f"max_steps={text}"])).max_steps
    assert made == value and isinstance(made, int)


@pytest.mark.parametrize("text, value", REALS.items())
def test_real_numbers(text, value):
    assert parse_typed(SFTConfig, "learning_rate", text) == value
    assert apply_changes(SFTConfig(), parse_changes([f"learning_rate={text}"])).learning_rate == value


def test_nested_options_and_lines():
    config = apply_changes(PretrainConfig(model={"kind": "model"}), parse_changes(["model.vocab_size=152k"]))
    assert config.model.vocab_size == 152_000
    mixture = SFTConfig(datasets=["a | | 70%", "b | | 1,000"]).datasets
    assert [source.weight for source in mixture] == [0.7, 1000]
    assert GRPOConfig(reward_model=["exact_match | 1e1"]).reward_model[0].weight == 10


def test_percentages_where_a_share_is_asked_for():
    assert parse_typed(SFTConfig, "eval_fraction", "20%") == 0.2
    assert apply_changes(SFTConfig(), parse_changes(["eval_fraction=2.5%"])).eval_fraction == 0.025
    assert parse_typed(SourceConfig, "weight", "70 %") == 0.7
    for name in ("learning_rate", "max_steps"):
        with pytest.raises(LabError, match=name):
            parse_typed(SFTConfig, name, "20%")
    with pytest.raises(LabError, match=r"eval_fraction.*less than 1"):
        parse_typed(SFTConfig, "eval_fraction", "120%")


@pytest.mark.parametrize(
    "text",
    ["1.000", "4,00", "1.5", "4kk", "k", "1e", "0x10", "1,0000", "٣", "1e-3", "4 000 k k", "9" * 60 + "k"],
)
def test_what_could_mean_something_else_is_refused(text):
    with pytest.raises(LabError, match="max_steps"):
        parse_typed(SFTConfig, "max_steps", text)
    with pytest.raises(LabError, match="max_steps"):
        apply_changes(SFTConfig(warmup_steps=0), parse_changes([f"max_steps={text}"]))


def test_texts_stay_texts():
    assert parse_typed(SFTConfig, "name", "4k") == "4k"
    assert apply_changes(SFTConfig(), parse_changes(["name=1_000"])).name == "1_000"
    assert parse_changes(["a=0.5", "b=[1e3]"]) == {"a": 0.5, "b": [1000.0]}


def test_pattern_rules_are_told_in_words():
    with pytest.raises(
        LabError, match=r"`name` 'my run' is not made of letters, digits and \. \+ - _ \(no spaces\)"
    ):
        apply_changes(SFTConfig(), {"name": "my run"})
    assert "letters, digits and . + - _" in str(explanation(SFTConfig, "name").renderable)
    patterns = {
        rule.pattern
        for cls in KINDS.values()
        for field in cls.model_fields.values()
        for rule in field.metadata
        if getattr(rule, "pattern", None)
    }
    assert patterns and all("^" not in in_words(pattern) for pattern in patterns)
