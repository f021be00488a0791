"""What is compiled computes the same: `compile` in training; flex attention by its definition, without
PyTorch's compiler.

On processors PyTorch compiles flex attention into something else (2.13: NaN, or off by 0.3, for a Llama of
transformers as well) and has no backward pass of it: it is for GPUs, and refused elsewhere.
"""

import pytest
import torch
from safetensors.torch import load_file

from llmlab.errors import LabError
from llmlab.runs.folder import RunFolder
from llmlab.training.engine.run import run
from tests.conftest import small_model


@pytest.mark.slow
def test_a_compiled_run_is_the_plain_one(base_config, tmp_path, compiler):
    found = []
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        short = dict(
            max_steps=4,
            batch_size=2,
            eval_fraction=0.0,
            log_every=1,
            save_every=4,
            sample_tokens=0,
            warmup_steps=0,
        )
        run(base_config(folder, compile=compiled, **short))
        found.append(
            [(line["loss"], line["grad_norm"]) for line in RunFolder(folder).metrics() if "grad_norm" in line]
        )
    assert len(found[0]) == 4 and found[1] == [pytest.approx(part, rel=1e-5) for part in found[0]]
    weights = [load_file(tmp_path / name / "final" / "model.safetensors") for name in ("False", "True")]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_a_compiler_that_fails_is_one_message(base_config, tmp_path):
    import torch._inductor.config as inductor

    torch.compiler.reset()
    # torch's own way: what monkeypatch puts back is hidden from then on
    broken = inductor.patch({"cpp.cxx": ("/bin/false",), "force_disable_caches": True})
    with broken, pytest.raises(LabError, match=r"torch\.compile failed") as error:
        run(base_config(tmp_path / "run", compile=True, eval_fraction=0.0, sample_tokens=0))
    assert "set `compile` to false" in error.value.remedy and error.value.exit_code == 1
    assert RunFolder(tmp_path / "run").record["status"] == "failed"


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 5}, {"positional_encoding": "alibi"}])
def test_flex_attention_sees_what_eager_attention_sees(changes):
    model = small_model(**changes)
    ids = torch.randint(3, 97, (2, 24))
    packed = dict(
        input_ids=ids, position_ids=torch.tensor([[*range(9), *range(15)], [*range(20), *range(4)]])
    )
    padded = dict(input_ids=ids, attention_mask=torch.tensor([[0] * 7 + [1] * 17, [1] * 24]))
    for inputs in (packed, padded):
        logits = []
        for kernel in ("eager", "flex_attention"):
            model.set_attn_implementation(kernel)
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                logits.append(
                    model(**inputs, use_cache=False).logits[
                        inputs.get("attention_mask", torch.ones_like(ids)) > 0
                    ]
                )
        torch.testing.assert_close(logits[1], logits[0], atol=1e-4, rtol=1e-4)
