"""Pages about runs: whole, in one file, and safe whatever a model said."""

import re
from html.parser import HTMLParser

import pytest

from llmlab.config.evaluation import EvaluationConfig
from llmlab.evaluation.run import evaluate
from llmlab.runs.comparison import compare
from llmlab.runs.details import find_run, run_details
from llmlab.ui.report import comparison_page, evaluation_page, run_page, write_page
from llmlab.ui.report.charts import Bar, Line, chart, reliability_chart
from llmlab.ui.report.pages import said
from tests.conftest import write_rows
from tests.runs.made import HOSTILE, make_run

TAGS = {
    *("html", "head", "meta", "title", "style", "body", "main", "header", "h1", "h2", "h3", "p", "dl", "dt"),
    *("dd", "div", "small", "section", "figure", "figcaption", "ul", "li", "details", "summary", "table"),
    *("thead", "tbody", "tr", "th", "td", "article", "pre", "code", "footer"),
    *("svg", "line", "g", "path", "defs", "use", "text", "clippath", "rect"),
}
ATTRIBUTES = {
    *("lang", "charset", "name", "content", "http-equiv", "class", "id", "role", "scope", "tabindex", "open"),
    *("style", "viewbox", "d", "x", "y", "x1", "x2", "y1", "y2", "width", "height", "transform", "clip-path"),
    *("aria-label", "aria-labelledby", "aria-hidden", "xlink:href", "type"),
}


class Reader(HTMLParser):
    """Keeps tags, attributes and text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.texts, self.links, self.ids = [], [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attributes]
        self.links += [value for name, value in attributes if name in ("href", "xlink:href", "src")]
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2):
        make_run(tmp_path / "checkpoints" / f"a{seed}", seed=seed, loss=1.0 / seed, sample=HOSTILE)
    facts = {HOSTILE: HOSTILE}
    record = {"hardware": HOSTILE, "data": facts, "data_rows": [{"source": HOSTILE}], "packages": facts}
    record |= {"validation_rows": facts}
    make_run(
        tmp_path / "checkpoints" / "b $x$ <b>",
        parent=HOSTILE.replace("/", ":"),
        record=record,
        sample=HOSTILE,
    )
    return [run_details(find_run(name)) for name in ("a1", "a2", "b $x$ <b>")]


def pages(runs, tmp_path):
    write_page(run_page(runs[2]), tmp_path / "run.html")
    write_page(comparison_page(compare(runs)), tmp_path / "comparison.html")
    return [(tmp_path / f"{name}.html").read_text() for name in ("run", "comparison")]


def test_nothing_in_a_page_is_what_others_wrote_but_text(runs, tmp_path):
    for page in pages(runs, tmp_path):
        read = Reader(page)
        assert set(read.tags) <= TAGS and set(read.attributes) <= ATTRIBUTES
        assert page.count("<style") == page.count("</style>") == 1 and "<script" not in page
        assert not [sign for sign in page if ord(sign) < 32 and sign != "\n"] and "\u202e" not in page
    assert HOSTILE.split("\x1b")[0] in "".join(Reader(pages(runs, tmp_path)[0]).texts)


def test_a_page_is_whole_and_asks_for_nothing(runs, tmp_path):
    for page in pages(runs, tmp_path):
        read = Reader(page)
        assert "default-src 'none'" in page and len(read.ids) == len(set(read.ids))
        assert all(link.startswith("#") and link[1:] in read.ids for link in read.links)
        assert not re.search(r"@import|url\((?!#)", page) and page.endswith("</html>\n")


def test_a_page_says_what_the_run_came_to(runs, tmp_path):
    text = " ".join(" ".join(Reader(pages(runs, tmp_path)[0]).texts).split())
    for wanted in ("2 → 1", "time 1m05s", "tokens read in training 640", "policy_checkpoint", "config.json"):
        assert wanted in text
    compared = " ".join(" ".join(Reader(pages(runs, tmp_path)[1]).texts).split())
    assert "a1 (2 seeds)" in compared and "0.75 ± 3.2" in compared and "Student" in compared


def test_folders_and_secrets_of_this_machine_stay_here(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_mine")
    make_run(
        tmp_path / "checkpoints" / "c",
        parent=f"{tmp_path.parent}/elsewhere/best",
        record={"hardware": "hf_secret_of_mine", "data": {"source": f"{tmp_path.parent}/data.jsonl"}},
    )
    write_page(run_page(run_details(find_run(str(tmp_path / "checkpoints" / "c")))), tmp_path / "c.html")
    page = (tmp_path / "c.html").read_text()
    assert "hf_secret" not in page and str(tmp_path.parent) not in page and "elsewhere" in page


def test_a_chart_has_the_colours_of_its_page():
    drawn = chart([Line([(0, 1.0, 0.5, 1.5), (9, 2.0, 2.0, 2.0)], number) for number in range(9)], salt="a")
    assert drawn.startswith("<svg viewBox=") and drawn.endswith("</svg>")
    assert {f"var(--s{number})" for number in range(8)} <= set(re.findall(r"var\(--s\d\)", drawn))
    assert not re.findall("#[0-9a-f]{6}", drawn) and "var(--soft)" in drawn and "var(--grid)" in drawn
    assert chart([], salt="b").startswith("<svg")


@pytest.fixture(scope="module")
def evaluation(chat_folder, untrained, tmp_path_factory):
    """Two models, measured on labelled rows that hold what a page must not run."""
    folder = tmp_path_factory.mktemp("evaluation")
    rows = [{"text": f"{HOSTILE} {number}", "label": number % 2} for number in range(24)]
    source = {"name": write_rows(folder / "mails.jsonl", rows), "format": "classification"}
    config = EvaluationConfig(
        model=str(chat_folder),
        against=str(untrained("other", n_layers=1)),
        datasets=[{**source, "labels": ["ham", "spam"]}],
        output_dir=str(folder),
    )
    return evaluate(config)


def test_a_page_about_an_evaluation_is_whole_and_safe(evaluation, tmp_path):
    page = write_page(evaluation_page(evaluation), tmp_path / "e.html").read_text()
    read = Reader(page)
    assert set(read.tags) <= TAGS and set(read.attributes) <= ATTRIBUTES and "<script" not in page
    assert all(link.startswith("#") and link[1:] in read.ids for link in read.links)
    assert HOSTILE.split("\x1b")[0] in "".join(read.texts)
    assert str(evaluation.path.parent) not in page and "default-src 'none'" in page


def test_a_reliability_plot_shows_the_answers_of_every_bin(evaluation):
    page = evaluation_page(evaluation)
    [plot] = page.charts
    results = [one for one in evaluation.record["results"] if one["role"] != "parent"]
    drawn = re.findall(r"<text[^>]*>([^<]+)</text>", plot.svg)
    for one in results:
        assert sum(each["count"] for each in one["reliability"]) == 24
        assert {str(each["count"]) for each in one["reliability"]} <= {text.strip() for text in drawn}
    assert len(plot.table) == 1 + sum(len(one["reliability"]) for one in results)
    assert {"var(--s0)", "var(--s1)"} <= set(re.findall(r"var\(--s\d\)", plot.svg))
    bars = [Bar(0.9, 1.0, 40, 0.95, 0.5, (0.35, 0.65))]
    alone = reliability_chart([bars], salt="a")
    assert "<svg viewBox=" in alone and ">40<" in alone and not re.findall("#[0-9a-f]{6}", alone)


def test_blank_answers_are_told():
    assert said("\n" * 48) == "(48 blank characters)" and said("") == "(nothing)"
    assert said("a\n\n\n\n\nb\n") == "a\n(4 blank lines)\nb"
