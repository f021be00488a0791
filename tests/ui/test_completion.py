"""What Tab completes."""

from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from llmlab.config import PretrainConfig, SFTConfig, SourceConfig
from llmlab.ui.completion import Names, completer_of


def completed(completer, typed):
    found = completer.get_completions(Document(typed), CompleteEvent(completion_requested=True))
    return [typed[: len(typed) + one.start_position] + one.text for one in found]


def test_paths_and_names_are_completed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "letters.jsonl").write_text("{}")
    assert completed(Names(lambda: ["llmlab:moby-dick"]), "l") == ["llmlab:moby-dick", "letters.jsonl"]


def test_models_of_the_hubs_cache_are_completed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--some--model").mkdir()
    (tmp_path / "datasets--some--rows").mkdir()
    assert completed(completer_of(SFTConfig, "policy_checkpoint"), "so") == ["some/model"]
    assert "some/rows" in completed(completer_of(SourceConfig), "so")


def test_a_number_is_not_completed():
    assert completer_of(PretrainConfig, "max_steps") is None
