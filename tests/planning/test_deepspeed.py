"""The settings that DeepSpeed gets: those of the config, and a file that adds to them or is refused."""

import json

import pytest

from llmlab.config import SFTConfig
from llmlab.errors import LabError
from llmlab.planning.deepspeed import deepspeed_settings
from llmlab.planning.engines import usable
from llmlab.planning.plan import make_plan
from llmlab.ui.plan import plan_rows
from tests.conftest import write_rows


def config(tmp_path, file=None, **changes):
    values = dict(parallel="zero3", policy_checkpoint="nobody/knows-this", devices=4, max_steps=10)
    values["datasets"] = [write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}])]
    if file is not None:
        (tmp_path / "settings.json").write_text(file if isinstance(file, str) else json.dumps(file))
        values["deepspeed_config"] = str(tmp_path / "settings.json")
    return SFTConfig(**{**values, **changes})


def test_they_follow_from_the_config(tmp_path):
    settings = deepspeed_settings(
        config(tmp_path, batch_size=2, gradient_accumulation_steps=3, max_grad_norm=0.5), 4
    )
    assert settings["train_batch_size"] == 2 * 3 * 4 and settings["gradient_clipping"] == 0.5
    assert settings["zero_optimization"]["stage"] == 3
    assert settings["zero_optimization"]["offload_param"] == {"device": "none"}
    moved = deepspeed_settings(config(tmp_path, parallel="zero2", cpu_offload=True), 4)
    assert moved["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert "offload_param" not in moved["zero_optimization"]


def test_a_file_adds_and_repeats(tmp_path):
    file = {"zero_optimization": {"stage": 3, "sub_group_size": 5}, "wall_clock_breakdown": True}
    file["train_batch_size"] = "auto"
    settings = deepspeed_settings(config(tmp_path, file), 4)
    assert settings["zero_optimization"]["sub_group_size"] == 5 and settings["wall_clock_breakdown"]
    assert settings["zero_optimization"]["contiguous_gradients"] and settings["train_batch_size"] != "auto"


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ({"train_batch_size": 7}, "`train_batch_size` is 7, but `batch_size` of the config decides"),
        ({"gradient_clipping": 3.0}, "`max_grad_norm`"),
        ({"zero_optimization": {"stage": 2}}, "`zero_optimization.stage` is 2, but `parallel`"),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, "`cpu_offload`"),
        ({"zero_optimization": 3}, "`zero_optimization`"),
        ({"bf16": {"enabled": True}}, "`precision`"),
        ({"optimizer": {"type": "AdamW"}}, "`optimizer.type` cannot be set"),
        ({"scheduler": {}}, "`scheduler` cannot be set"),
        ("[1]", "cannot be read"),
        ("{", "cannot be read"),
    ],
)
def test_a_file_that_contradicts_is_refused(tmp_path, file, said):
    with pytest.raises(LabError, match=r"settings\.json") as refused:
        deepspeed_settings(config(tmp_path, file), 4)
    assert said in str(refused.value)


def test_a_file_that_is_not_there_is_said_and_the_plan_shows_the_settings(tmp_path):
    with pytest.raises(LabError, match="No such file"):
        make_plan(config(tmp_path, deepspeed_config=str(tmp_path / "nothing.json")))
    shown = dict(plan_rows(make_plan(config(tmp_path))))
    assert json.loads(shown["DeepSpeed"])["zero_optimization"]["stage"] == 3


def test_optimizers_that_need_whole_matrices_have_other_engines(tmp_path):
    assert usable(config(tmp_path, optimizer="muon")) == ("ddp", "fsdp2")
    assert usable(config(tmp_path, optimizer="lion")) == ("ddp", "fsdp2", "zero2", "zero3")
