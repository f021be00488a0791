"""Model cards: what they say of a run and what they do with names that others chose."""

import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from llmlab.cli import command_line
from llmlab.config import parse_config
from llmlab.config.loader import KINDS
from llmlab.data.catalogue import CATALOGUE
from llmlab.export.card import is_own_card, model_card
from llmlab.export.facts import model_facts, public_name
from llmlab.export.markdown import escape, fenced
from llmlab.runs.record import RECORD

HOSTILE = [
    "](javascript:alert(1))",
    "[x](javascript:alert(1))",
    "<script>alert(1)</script>",
    "`code` ``` ~~~",
    "a | b",
    "![x](http://evil.example/x.png)",
    "http://evil.example www.evil.example <http://evil.example> me@evil.example",
    "# head",
    "1. one",
    "- item\n\n---\nlicense: mit",
    "**bold** _em_ ~~no~~",
    "</details><b>",
    "&lt;b&gt; &#60;script&#62;",
    "\x1b[31mred\u202e",
    "[ref]: http://evil.example",
    "\\](javascript:alert(1))",
    "{{ 7 * 7 }} {% raw %}",
]


def html_of(text):
    """As the hub renders it: GitHub's Markdown with bare addresses as links."""
    return MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(text)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_shown_and_does_nothing(name):
    html = html_of(f"| a | b |\n| --- | --- |\n| {escape(name)} | end |\n\n# {escape(name)}\n")
    assert set(re.findall(r"<(\w+)", html)) == {"table", "thead", "tr", "th", "tbody", "td", "h1"}
    assert html.count("<td>") == 2 and "\x1b" not in html and "\u202e" not in html
    letters = "".join(re.findall(r"\w+", name))
    shown = re.search("<h1>(.*)</h1>", html)[1]
    for entity, sign in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        shown = shown.replace(entity, sign)
    assert "".join(re.findall(r"\w+", shown)) == letters


def test_a_code_block_cannot_be_left():
    text = "```\n</code></pre><script>x</script>\n````"
    tokens = [token for token in MarkdownIt().parse(fenced(text)) if token.type != "text"]
    assert [token.type for token in tokens] == ["fence"] and tokens[0].content == text + "\n"


@pytest.mark.slow
def test_the_card_of_a_run(base_run, capsys):
    command_line(["card", str(base_run.folder)])
    content = capsys.readouterr().out
    card = ModelCard(content)
    assert card.data.language == ["en"] and card.data.pipeline_tag == "text-generation"
    assert card.data.license is None and set(card.data.tags) == {"llmlab", "pretrain"}
    measured = {result.metric_type: result.metric_value for result in card.data.eval_results}
    metrics = base_run.metrics
    assert measured["bits_per_byte"] == pytest.approx(metrics["eval_bits_per_byte"], abs=1e-5)
    html = html_of(card.text)
    before, after = metrics["before_eval_bits_per_byte"], metrics["eval_bits_per_byte"]
    assert f"<td>{before:.4g}</td>\n<td>{after:.4g}</td>" in html
    assert "<td>llmlab:moby-dick</td>" in html and "<td>pddl</td>" in html and "<td>42</td>" in html
    assert "<td>Learning rate (learning_rate)</td>\n<td>0.003</td>" in html
    assert "threads</td>" in html  # the processor by its name
    config = json.loads(re.search(r"```json\n(.*?)\n```", content, re.S)[1])
    again = parse_config(config)
    assert (again.kind, again.max_steps, again.datasets[0].max_rows) == ("pretrain", 30, 20)
    assert str(base_run.folder.parent) not in content and "output_dir" not in config
    assert is_own_card(content) and not is_own_card(content.replace("0.003", "0.004"))


def make_run(folder, config, parent, **record):
    """A finished run as the disk has it: its record and a model folder."""
    model = folder / "final"
    model.mkdir(parents=True)
    (model / "config.json").write_text(
        json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    )
    (model / "chat_template.jinja").write_text("{{ messages }}")
    contents = {"config": config, "parent": parent, "result": "final", "status": "done", **record}
    (folder / RECORD).write_text(json.dumps(contents))
    return folder


def test_the_stages_of_a_lineage_oldest_first(tmp_path):
    shared = {"policy_checkpoint": "HuggingFaceTB/SmolLM2-135M", "output_dir": str(tmp_path / "sft")}
    sft = make_run(
        tmp_path / "sft",
        {"kind": "sft", "datasets": ["tatsu-lab/alpaca", str(tmp_path / "own.jsonl")], **shared},
        "HuggingFaceTB/SmolLM2-135M",
        metrics={"before_eval_loss": 2.0, "eval_loss": 1.5},
        seconds=3725,
        device="cuda",
        hardware="NVIDIA H100",
        processes=2,
        seed=7,
    )
    dpo = make_run(
        tmp_path / "dpo",
        {
            "kind": "dpo",
            "datasets": ["Anthropic/hh-rlhf"],
            "policy_checkpoint": str(sft / "final"),
            "beta": 0.3,
        },
        str(sft / "final"),
        metrics={"eval_rewards/accuracies": 0.75, "eval_loss": float("nan")},
    )
    content = model_card(model_facts(str(dpo)), repo_id="me/mine", license_id="apache-2.0")
    card = ModelCard(content)
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M" and card.data.license == "apache-2.0"
    assert card.data.datasets == ["tatsu-lab/alpaca", "Anthropic/hh-rlhf"]
    assert [result.metric_type for result in card.data.eval_results] == ["rewards/accuracies"]
    titles = [KINDS[kind].TITLE for kind in ("sft", "dpo")]
    html = html_of(card.text)
    assert re.findall(r"<h3>\d\. (.*)</h3>", html) == titles
    assert "<td>2 x NVIDIA H100</td>" in html and "<td>1 h 2 min</td>" in html and "<td>7</td>" in html
    assert "<td>cc-by-nc-4.0</td>" in html and "<td>own.jsonl</td>" in html and "not known" in html
    assert "(beta)</td>\n<td>0.3</td>" in html
    assert 'from_pretrained("me/mine")' in card.text and "apply_chat_template" in card.text
    assert str(tmp_path) not in content


def test_a_run_with_hostile_names(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "wandb-secret-of-mine")
    config = {
        "kind": "sft",
        "datasets": [{"name": name, "prompt": name} for name in [*HOSTILE, "wandb-secret-of-mine"]],
        "policy_checkpoint": HOSTILE[0],
    }
    for entry in config["datasets"]:
        entry["columns"] = {"completion": "x"}
    run = make_run(tmp_path / "`run` <b>](javascript:x)", config, HOSTILE[2], hardware=HOSTILE[1], seconds=1)
    content = model_card(model_facts(str(run)))
    assert "wandb-secret-of-mine" not in content
    header = yaml.safe_load(content.split("---\n")[1])
    assert "license" not in header and "datasets" not in header and "base_model" not in header
    html = html_of(ModelCard(content).text)
    allowed = "table thead tbody tr th td h1 h2 h3 p pre code details summary"
    tags = set(re.findall(r"<(\w+)", html))
    assert tags <= set(allowed.split()), tags - set(allowed.split())
    assert html.count("<table>") == 4 and html.count("<details>") == html.count("</details>") == 1


def test_models_without_a_run(native_folder, tmp_path, monkeypatch):
    content = model_card(model_facts(str(native_folder)))
    assert "no record of a run is with it" in content and 'from_pretrained("OWNER/tiny-llama")' in content
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    content = model_card(model_facts(str(tmp_path / "tiny.gguf")), repo_id="me/tiny")
    assert "library_name: gguf" in content and "llama-cli -hf me/tiny" in content


def test_a_model_with_its_own_code_and_a_scorer(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    config = {"model_type": "llmlab", "auto_map": {"AutoModelForCausalLM": "modeling.X"}}
    (folder / "config.json").write_text(json.dumps(config))
    assert "trust_remote_code=True" in model_card(model_facts(str(folder)))
    config = {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}
    (folder / "config.json").write_text(json.dumps(config))
    content = model_card(model_facts(str(folder)))
    assert "pipeline_tag: text-classification" in content and "AutoModelForSequenceClassification" in content


def test_paths_lose_the_folders_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert public_name(str(tmp_path / "data" / "x.jsonl")) == "data/x.jsonl"
    assert public_name("/home/someone/checkpoints/base/best") == "base/best"
    assert public_name("/home/someone/mails.jsonl") == public_name("~/mails.jsonl") == "mails.jsonl"
    assert public_name("data/x.jsonl") == "data/x.jsonl" and public_name("a / b") == "a / b"


def test_licences_are_the_hubs_identifiers():
    known = {entry.license for entry in CATALOGUE if entry.license}
    assert known <= {"mit", "apache-2.0", "odc-by", "pddl", "cc-by-sa-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-3.0"}
    shipped = {entry.id for entry in CATALOGUE if entry.id.startswith("llmlab:")} - {"llmlab:preferences"}
    assert all(entry.license for entry in CATALOGUE if entry.id in shipped)  # what a person judged is theirs
