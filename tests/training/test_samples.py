"""Samples: what a model says as it learns, taken without changing anything of the run."""

import json

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from llmlab.config import SFTConfig
from llmlab.data.pipeline import Prepared
from llmlab.models.load import load_model
from llmlab.runs.folder import RunFolder, read_json
from llmlab.runs.manifest import MANIFEST
from llmlab.training.callbacks.samples import Samples, opening
from llmlab.training.callbacks.stop import Stopped
from llmlab.training.engine.run import run
from llmlab.ui.samples import sampled


def sft(base_run, folder, **more):
    data = folder / "talk.jsonl"
    data.write_text(
        "".join(json.dumps({"prompt": f"Who is {i}?", "completion": "Ahab"}) + "\n" for i in range(60))
    )
    return SFTConfig(
        **{
            **dict(
                policy_checkpoint=str(base_run.folder),
                datasets=[str(data)],
                max_steps=6,
                eval_every=3,
                batch_size=4,
                gradient_accumulation_steps=1,
                eval_fraction=0.2,
                max_length=48,
                log_every=1,
                report_to=[],
                learning_rate=5e-3,
                warmup_steps=0,
                save_best_only=False,
                sample_tokens=8,
                output_dir=str(folder / "run"),
            ),
            **more,
        }
    )


@pytest.mark.slow
def test_a_stop_in_the_last_sample_loses_neither_sample_nor_best(base_run, tmp_path, monkeypatch):
    whole = run(
        sft(base_run, tmp_path, learning_rate=0.3, eval_every=2)
    )  # which gets worse: `best/` is earlier
    answer, folder = Samples.answer, tmp_path / "stopped"

    def stopped(self):
        if len(self.folder.samples()) == 3:  # of steps 0, 2, 4
            monkeypatch.setattr(Samples, "answer", answer)
            raise Stopped
        return answer(self)

    monkeypatch.setattr(Samples, "answer", stopped)
    config = sft(base_run, tmp_path, learning_rate=0.3, eval_every=2, output_dir=str(folder))
    assert run(config).model is None and RunFolder(folder).record["status"] == "stopped"
    again = run(config)
    assert RunFolder(folder).samples() == RunFolder(whole.folder).samples()
    kept = [read_json(path / "best" / MANIFEST) for path in (whole.folder, again.folder)]
    assert kept[0]["step"] == kept[1]["step"] < 6 and kept[0]["eval_loss"] == kept[1]["eval_loss"]


@pytest.mark.slow
def test_a_sample_at_every_validation_is_the_models_greedy_answer(base_run, tmp_path, told):
    result = run(sft(base_run, tmp_path), reporter=told)
    taken = RunFolder(result.folder).samples()
    assert [line["step"] for line in taken] == [0, 3, 6] and len({line["prompt"] for line in taken}) == 1
    assert taken[0]["prompt"].rstrip().endswith("assistant") and "Who is" in taken[0]["prompt"]
    model, tokenizer = load_model(str(result.folder / "final"))
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": taken[0]["prompt"].split("user")[1].split("assistant")[0].strip()}],
        add_generation_prompt=True,
        return_tensors="pt",
    )["input_ids"]
    said = []
    for _ in range(8):  # the definition of greedy: the likeliest token, again and again
        with torch.no_grad():
            token = model(input_ids=ids).logits[0, -1].argmax().item()
        if token in model.generation_config.eos_token_id:
            break
        said.append(token)
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    assert taken[-1]["answer"] == tokenizer.decode(said, skip_special_tokens=True)
    assert "sample  " in told.text


@pytest.mark.slow
def test_samples_change_nothing(base_run, tmp_path):
    made = [
        run(
            sft(
                base_run,
                tmp_path,
                sample_tokens=tokens,
                adapter="lora",
                lora_dropout=0.3,
                output_dir=str(tmp_path / str(tokens)),
            )
        )
        for tokens in (0, 8)
    ]
    one, other = (load_file(result.folder / "final" / "adapter_model.safetensors") for result in made)
    assert not RunFolder(made[0].folder).samples() and len(RunFolder(made[1].folder).samples()) == 3
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert made[0].metrics["train_loss"] == made[1].metrics["train_loss"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"input_ids": list(range(40))}, list(range(16))),
        ({"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}, [5, 6]),
        ({"input_ids": [5, 6, 7], "labels": [8, 9]}, [5, 6, 7]),  # of an encoder-decoder
        ({"input_ids": list(range(40)), "labels": list(range(40))}, list(range(16))),
        ({"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4]}, [1, 2]),
        ({"prompt_ids": [], "chosen_ids": [3, 4], "chosen_labels": [-100, 4], "rejected_ids": []}, [3]),
    ],
)
def test_the_prompt_is_what_precedes_the_first_answer(row, expected):
    assert opening(Prepared(Dataset.from_list([row]), {"a": Dataset.from_list([row])}), None) == expected
    assert opening(Prepared(Dataset.from_list([row]), {}), None) == []


def test_a_long_sample_is_cut_where_it_matters_least():
    text = sampled("the beginning " * 50, "the answer\nof two lines " * 50, 120).plain
    assert (
        len(text) <= 124
        and text.startswith("...")
        and "the answer of two lines" in text
        and text.endswith("...")
    )
    assert sampled("short", "words", 120).plain == "short → words"
