"""What TensorBoard is told of a run beside its figures, and what the record says of where to look."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from llmlab.runs.details import find_run, run_details
from llmlab.training.engine.run import run


@pytest.mark.slow
def test_tensorboard_says_what_the_run_is(base_config, tmp_path):
    result = run(base_config(tmp_path / "run", max_steps=4, report_to=["tensorboard"]))
    events = EventAccumulator(str(result.folder / "tensorboard"))
    events.Reload()
    details = run_details(find_run(str(result.folder)))
    record = details.record

    def scalar(name):
        (point,) = events.Scalars(f"run/{name}")
        return point.value

    assert scalar("parameters") == record["parameters"] and scalar("share_trained") == 1.0
    assert scalar("rows_per_update") == 8 and scalar("token_budget") == 8 * 4 * 64
    (point,) = events.Tensors("run/text_summary")
    text = point.tensor_proto.string_val[0].decode()
    for fact in (f"`{record['attention']}`", f"| device | `{record['hardware']}` |", "moby-dick"):
        assert fact in text
    assert events.SummaryMetadata("run/text_summary").plugin_data.plugin_name == "text"
    assert [point.step for point in events.Scalars("eval/loss")] == [0, 4]
    assert details.trackers == {"tensorboard": f"tensorboard --logdir {result.folder / 'tensorboard'}"}
    assert details.tokens == 8 * 4 * 64 and details.memory.measured > 1e8 and details.memory.predicted > 1e7
