"""Configs as YAML: values mean what they mean in JSON, and what cannot be meant is refused with its line."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.config import load_config, save_config
from llmlab.config.yaml_file import dump_yaml, parse_yaml
from llmlab.errors import LabError
from llmlab.files import BadFile

PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**12), 10**12), st.floats(allow_nan=False, allow_infinity=False)
)
WORDS = (
    "1e-4",
    "no",
    "on",
    "~",
    "null",
    "1:30",
    "2024-01-01",
    "<<",
    "=",
    "0x1f",
    "1_000",
    ".inf",
    "- a",
    "a: b",
)
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20) | st.sampled_from(WORDS)
DATA = st.dictionaries(
    TEXTS,
    st.recursive(
        PLAIN | TEXTS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2),
        max_leaves=5,
    ),
)


@pytest.mark.slow
@settings(max_examples=40)
@given(DATA)
def test_what_is_written_is_read_back(data):
    assert parse_yaml(dump_yaml(data)).data == data


@pytest.mark.slow
@settings(max_examples=40)
@given(DATA.filter(lambda data: "\ufeff" not in str(data)))
def test_json_is_read_as_json_reads_it(data):
    """JSON is a part of YAML 1.2 (https://yaml.org/spec/1.2.2/#13-relation-to-json)."""
    assert parse_yaml(json.dumps(data, ensure_ascii=False)).data == data


@pytest.mark.parametrize(
    "written, value",
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-3", -3),
        ("010", 10),
        ("no", "no"),
        ("on", "on"),
        ("True", True),
        ("2024-01-01", "2024-01-01"),
        ("1:30", "1:30"),
        ("~", None),
        ("'1e-4'", "1e-4"),
        ("&a [1]", [1]),
        ("|\n  two\n  lines", "two\nlines"),
    ],
)
def test_plain_values_are_those_of_yaml_1_2(written, value):
    read = parse_yaml(f"key: {written}").data["key"]
    assert read == value and type(read) is type(value)


def test_anchors_and_merged_blocks_are_written_out():
    text = "base: &base {a: 1, b: 2}\nother:\n  <<: *base\n  b: 3\n"
    assert parse_yaml(text).data["other"] == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a: 1\nb: 2\na: 3", r"names `a` twice, at lines 1 and 3: keep one"),
        ("a:\n\tb: 1", r"a tab at the beginning of line 2: indent with spaces"),
        ("a: b: c", r"not valid YAML \(mapping values are not allowed here at line 1, column 5\)"),
        ("a: [1\nb: 2", r"not valid YAML \(.* at line 2"),
        ("a: !!timestamp 2020-01-01", r"a tag at line 1 \(!!timestamp\): leave it out"),
        ("a: !!python/object/apply:os.system [ls]", r"a tag at line 1 \(!!python"),
        ("a: !!int x", r"a value at line 1 that is no int"),
        ("1: 2", r"a key that is no text at line 1 \('1'\): quote it"),
        ("a: 1\n---\nb: 2", r"a second document \(`---` at line 2\)"),
        ("# nothing", "is empty"),
        ("a: &a [*a]", "holds itself: the anchor at line 1"),
        ("a: 1\nb:\n  <<: 3", r"merges what is no mapping at line 3"),
        ("[" * 5_000, "nested more than 100 deep"),
        ("a: \x01", "not valid YAML"),
        (
            "a: &a [1,1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
            "c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]",
            "more than 10,000 values once its aliases are written out",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_line(text, expected):
    with pytest.raises(BadFile, match=expected):
        parse_yaml(text)


WRITTEN = """\
kind: sft           # comments stay out of the way
name: from-yaml
policy_checkpoint: org/model
datasets:
  - llmlab:spam-mails
  - name: data/own.jsonl
    max_rows: 1k
learning_rate: 1e-4
gradient_checkpointing: on
max_steps: 1_000
weight_decay: 0
"""


def test_a_config_is_the_same_in_yaml_and_in_json(tmp_path):
    (tmp_path / "a.yaml").write_text(WRITTEN)
    config = load_config(tmp_path / "a.yaml")
    assert (config.learning_rate, config.gradient_checkpointing, config.max_steps) == (1e-4, True, 1000)
    assert [source.max_rows for source in config.datasets] == [None, 1000]
    for name in ("b.json", "b.yml"):
        assert load_config(save_config(config, tmp_path / name)) == config
    assert (tmp_path / "b.yml").read_text().startswith("kind: sft\n")


@pytest.mark.parametrize(
    "old, new, expected",
    [
        (
            "learning_rate: 1e-4",
            "learning_rate: fast",
            r"a.yaml, line 8: `learning_rate` 'fast' \(str\) is not a",
        ),
        (
            "max_steps: 1_000",
            "max_step: 3",
            r"a.yaml, line 10: unknown option `max_step`: did you mean `max_steps`",
        ),
        ("max_rows: 1k", "max_row: 3", r"a.yaml, line 7: unknown option `datasets.1.max_row`"),
        ("name: from-yaml", "name: 2024", r"a.yaml, line 2: `name` 2024 \(int\) is not a text"),
        ("kind: sft ", "kind: [sft]", r"a.yaml, line 1: `kind` .* not a text"),
        (
            "kind: sft ",
            "kind: sfd",
            r"a.yaml, line 1: `kind` 'sfd' is not a kind of config: did you mean 'sft'",
        ),
        ("kind: sft ", "\tkind: sft", r"a.yaml: is not valid YAML \(a tab at the beginning of line 1"),
    ],
)
def test_a_fault_is_named_with_its_line(tmp_path, old, new, expected):
    (tmp_path / "a.yaml").write_text(WRITTEN.replace(old, new))
    with pytest.raises(LabError, match=expected):
        load_config(tmp_path / "a.yaml")


def test_several_faults_have_their_own_lines(tmp_path):
    (tmp_path / "a.yaml").write_text("kind: sft\npolicy_checkpoint: m\nmax_steps: 0\nlog_every: x\n")
    with pytest.raises(LabError, match=r"(?s)line 3: `max_steps` 0 .*line 4: `log_every` 'x'"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize("text", ["- 1\n", "just words", "", "kind: sft\nname: \u2028\0"])
def test_what_is_no_config_is_one_message(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(LabError, match=r"a\.yaml"):
        load_config(tmp_path / "a.yaml")
