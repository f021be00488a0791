"""What the lab relies on in bitsandbytes: loaded only where something is quantised,
one 4-bit product in training and evaluation.
"""

import subprocess
import sys

import bitsandbytes.nn.modules as bnb_modules
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers import BitsAndBytesConfig

from llmlab.models.load import load_model

pytestmark = pytest.mark.slow  # trains

WITHOUT_QUANTISATION = """
import sys
import torch
import llmlab.chat.session, llmlab.training.engine.run
import llmlab.training.methods.dpo, llmlab.training.methods.grpo, llmlab.training.methods.ppo
from llmlab.models.load import load_model

model, _ = load_model(sys.argv[1])
model(torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
print([name for name in sys.modules if name.startswith("bitsandbytes")])
"""

LOADED = """
import llmlab, logging
import bitsandbytes
bitsandbytes.nn
logging.getLogger("bitsandbytes.backends.cpu.ops").warning("Failed to load CPU gemm_4bit_forward")
"""

A_PART_FIRST = """
import llmlab, sys
from bitsandbytes.optim import AdamW
import bitsandbytes
import bitsandbytes.optim
modules = {id(module) for name, module in sys.modules.items() if name == "bitsandbytes.optim"}
print(bitsandbytes.optim.AdamW is AdamW, bitsandbytes.optim.__spec__.name, len(modules))
"""


def python(program, *arguments):
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )


def test_nothing_loads_it_where_nothing_is_quantised(base_run):
    done = python(WITHOUT_QUANTISATION, base_run.model)
    assert (
        done.stdout.splitlines()[-1] == "['bitsandbytes']"
    )  # the name alone, which stands in for the package


def test_its_warnings_do_not_reach_the_screen():
    assert python(LOADED).stderr == ""


def test_a_part_of_it_is_imported_once():
    assert python(A_PART_FIRST).stdout.split() == ["True", "bitsandbytes.optim", "1"]


@pytest.fixture
def quantised(base_run, monkeypatch):
    """A 4-bit model as it is on a processor with AVX512-BF16: there every layer offers the bf16 product."""
    monkeypatch.setattr(bnb_modules, "has_avx512bf16", lambda: True)
    options = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    assert Linear4bit(64, 64).support_avx512bf16_for_cpu, (
        "the switch has another name now: see equal_4bit_products"
    )
    return load_model(str(base_run.model), quantization_config=options, device_map={"": "cpu"})[0]


def test_4bit_products_are_those_of_training_on_every_processor(quantised):
    ids = torch.arange(16).reshape(2, 8)
    with torch.no_grad():
        in_training = quantised.train()(ids).logits
        in_evaluation = quantised.eval()(ids).logits
    torch.testing.assert_close(in_evaluation, in_training, atol=1e-6, rtol=1e-6)


def test_gradients_pass_through_4bit_layers_after_an_evaluation(quantised):
    ids = torch.arange(8)[None]

    def gradient():
        embeddings = quantised.get_input_embeddings()(ids).detach().requires_grad_()
        quantised.train()(inputs_embeds=embeddings, labels=ids).loss.backward()
        return embeddings.grad

    before = gradient()
    with torch.no_grad():
        quantised.eval()(ids)
    assert before.abs().max() > 0
    torch.testing.assert_close(gradient(), before, atol=1e-6, rtol=1e-6)
