"""The built-in rewards, each against cases worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.config.base import validate
from llmlab.config.rewards import FUNCTIONS, RewardSource
from llmlab.errors import LabError
from llmlab.rewards import BUILT_IN, Answer
from llmlab.rewards.builtin import final_number

CASES = [
    ("exact_match", " 17\n", "17", "", 1.0),
    ("exact_match", "17.", "17", "", 0.0),
    ("exact_match", "", "", "", 0.0),
    ("numeric_match", "It is 5. So 2+3 is\n#### 5", "we add\n#### 5", "", 1.0),
    ("numeric_match", "The answer is \\boxed{1,200}.", "#### 1200", "", 1.0),
    ("numeric_match", "first 3, then 4", "4", "", 1.0),
    ("numeric_match", "4 then 3", "4", "", 0.0),
    ("numeric_match", "0.50", ".5", "", 1.0),
    ("numeric_match", "none", "4", "", 0.0),
    ("numeric_match", "-7", "7", "", 0.0),
    ("numeric_match", "1e3", "1000", "", 1.0),
    ("numeric_match", "about 12.", "12", "", 1.0),
    ("arithmetic_steps", "3 + 4 = 7, then 7 * 2 = 15", "", "", 0.5),
    ("arithmetic_steps", "12 / 4 = 3", "", "", 1.0),
    ("arithmetic_steps", "5 / 0 = 1", "", "", 0.0),
    ("arithmetic_steps", "no steps at all", "", "", 0.0),
    ("arithmetic_steps", "1,000 - 1 = 999", "", "", 1.0),
    ("label_match", "Spam.", "spam", "", 1.0),
    ("label_match", '"ham"', "ham", "", 1.0),
    ("label_match", "ham and spam", "ham", "", 0.0),
    ("format", "<think>x</think>\n7", "", r"^<think>.*</think>\s*\d+$", 1.0),
    ("format", "7", "", "^<think>", 0.0),
    ("length", "one two three four", "", "4", 1.0),
    ("length", "one two", "", "4", 0.5),
    ("length", "", "", "4", 0.0),
    ("length", "a b c d e f g h i", "", "4", 0.0),
    ("compiles", "```python\ndef f(x):\n    return x\n```", "", "", 1.0),
    ("compiles", "def f(x) return", "", "", 0.0),
    ("compiles", "Here:\n```\nx = 1\n```\nand\n```py\ny = x\n```", "", "", 1.0),
    ("compiles", "", "", "", 0.0),
    ("compiles", "(" * 5000, "", "", 0.0),
    ("compiles", "x\0y", "", "", 0.0),
    ("repetition", "a b c d e f", "", "", 0.0),
    ("repetition", "go on go on go on go on", "", "", pytest.approx(2 / 6 - 1)),
    ("repetition", "short", "", "", 0.0),
]


@pytest.mark.parametrize("name, text, right, setting, worth", CASES)
def test_by_hand(name, text, right, setting, worth):
    assert BUILT_IN[name](Answer(text, "", right, setting)) == worth


@given(st.text(max_size=200), st.text(max_size=50))
def test_any_answer_has_a_finite_worth(text, right):
    for name, function in BUILT_IN.items():
        worth = function(Answer(text, "Q", right, "x+" if name == "format" else ""))
        assert -1 <= worth <= 1


def test_code_is_never_run(tmp_path):
    target = tmp_path / "ran"
    assert BUILT_IN["compiles"](Answer(f"open({str(target)!r}, 'w').close()")) == 1 and not target.exists()


def test_the_last_marked_number_counts():
    assert (
        final_number("#### 3 ... no: #### 4") == 4
        and final_number("\\boxed{1} \\boxed{2}") == 2
        and final_number("") is None
    )


def test_the_config_knows_every_function_and_no_other():
    assert set(FUNCTIONS) == set(BUILT_IN)


@pytest.mark.parametrize(
    "line, expected",
    [
        ("exact_match", dict(name="exact_match", weight=1.0, setting=None)),
        ("format | 0.5 | ^(a|b)$", dict(name="format", weight=0.5, setting="^(a|b)$")),
        ("length | -0.1 | 30", dict(name="length", weight=-0.1, setting="30")),
        ("my.rewards:score | 2", dict(name="my.rewards:score", weight=2.0, setting=None)),
    ],
)
def test_rewards_as_lines(line, expected):
    source = validate(RewardSource, line)
    assert source.model_dump() == expected and validate(RewardSource, source.line()) == source


@pytest.mark.parametrize(
    "line, message",
    [
        ("exact_match | much", "the weight 'much'"),
        ("exact_match | 0", "other than 0"),
        ("exact_match | nan", "other than 0"),
        ("format", "needs a regular expression"),
        ("format | 1 | (", "is not a regular expression"),
        ("length | 1 | some", "not a number of words"),
        ("exact_match | 1 | 5", "takes no setting"),
    ],
)
def test_lines_that_are_none(line, message):
    with pytest.raises(LabError, match=message):
        validate(RewardSource, line)
