"""What tests of training share: a policy with a habit to unlearn, short configs,
a stopped run.
"""

import pytest

from llmlab.config import GRPOConfig, SFTConfig
from llmlab.runs.folder import RunFolder
from llmlab.training.callbacks import stop as callbacks
from llmlab.training.engine.run import run
from tests.conftest import write_rows


def answering_policy(base_run, folder, answers, steps):
    """A model that has learned to answer "Who is N?" with the given names; returns its folder's name."""
    rows = [{"prompt": f"Who is {i}?", "completion": answer} for i, answer in enumerate(answers)]
    return str(
        run(
            SFTConfig(
                policy_checkpoint=str(base_run.folder),
                datasets=[write_rows(folder / "rows.jsonl", rows)],
                max_steps=steps,
                learning_rate=5e-3,
                batch_size=8,
                gradient_accumulation_steps=1,
                max_length=64,
                eval_every=60,
                output_dir=str(folder / "run"),
                report_to=[],
            )
        ).model
    )


@pytest.fixture(scope="session")
def policy(base_run, tmp_path_factory):
    """A model that answers each question with either name, whichever is right."""
    answers = ["Ahab" if (i * 7919) % 13 < 7 else "Stubb" for i in range(300)]
    return answering_policy(base_run, tmp_path_factory.mktemp("policy"), answers, steps=120)


@pytest.fixture(scope="session")
def short_policy(base_run, tmp_path_factory):
    """As `policy`, with half the training: for runs that are compared with one another."""
    answers = ["Ahab" if i % 2 else "Stubb" for i in range(200)]
    return answering_policy(base_run, tmp_path_factory.mktemp("short"), answers, steps=60)


def grpo_config(policy, folder, **changes):
    rows = [{"prompt": f"Who is {i}?", "answer": "Stubb"} for i in range(80)]
    values = dict(
        policy_checkpoint=policy,
        datasets=[write_rows(folder / "prompts.jsonl", rows)],
        reward_model="exact_match",
        group_size=4,
        batch_size=16,
        mini_batch_size=8,
        iterations=1,
        beta=0.0,
        max_new_tokens=8,
        max_steps=20,
        learning_rate=1e-3,
        warmup_steps=0,
        scheduler="none",
        eval_every=20,
        eval_rows=32,
        eval_fraction=0.2,
        log_every=1,
        save_every=10,
        max_prompt_length=64,
        output_dir=str(folder / "run"),
        report_to=[],
    )
    return GRPOConfig(**{**values, **changes})


def sft_config(base_run, folder, **changes):
    rows = [{"prompt": f"Who is {i}?", "completion": "Ahab"} for i in range(64)]
    values = dict(
        policy_checkpoint=str(base_run.folder),
        datasets=[write_rows(folder / "rows.jsonl", rows)],
        max_steps=8,
        learning_rate=1e-3,
        batch_size=8,
        gradient_accumulation_steps=1,
        max_length=64,
        save_every=4,
        warmup_steps=0,
        log_every=1,
        eval_fraction=0.0,
        output_dir=str(folder / "run"),
        report_to=[],
        scheduler="cosine",
    )
    return SFTConfig(**{**values, **changes})


def stopped_run(base_run, folder, monkeypatch, forwards=6, **changes):
    """A run that was stopped behind step 6, with checkpoints 4 and 6."""
    with monkeypatch.context() as patch:
        left = [forwards]

        def look(self, module, inputs):
            left[0] -= 1
            if left[0] < 0:
                self.received = 15
                raise callbacks.Stopped

        patch.setattr(callbacks.StopOnSignal, "_look", look)
        return RunFolder(run(sft_config(base_run, folder, **changes)).folder)
