"""The lab's model as the libraries take it: Auto classes, PEFT, Trainer, TRL, checkpointing, compile,
autocast.
"""

import copy

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from llmlab.models import LabForCausalLM
from llmlab.models.transformer.shapes import to_model_config
from tests.conftest import POSITIONS, small_model, with_positions


@pytest.mark.parametrize("name", POSITIONS)
def test_auto_classes_load_what_was_saved(name, tmp_path):
    model = with_positions(name, tie_word_embeddings=name != "alibi", attention_bias=True)
    ids = torch.randint(0, 97, (2, 20))
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again, LabForCausalLM)
    assert torch.equal(again.eval()(ids).logits, model(ids).logits)
    assert to_model_config(AutoConfig.from_pretrained(tmp_path)) == to_model_config(model.config)
    assert AutoModel.from_pretrained(tmp_path).eval()(ids).last_hidden_state.shape == (2, 20, 32)


def test_attention_kernels_agree():
    for name in POSITIONS:
        model, ids = with_positions(name), torch.randint(0, 97, (2, 20))
        results = []
        for kernel in ("sdpa", "eager"):
            model.set_attn_implementation(kernel)
            results.append(model(ids, output_hidden_states=True))
        torch.testing.assert_close(results[0].logits, results[1].logits, atol=1e-5, rtol=1e-5)
        assert len(results[1].hidden_states) == 3


def test_lora_trains_and_merges_exactly(tmp_path):
    model = small_model()
    ids = torch.randint(0, 97, (4, 16))
    wrapped = get_peft_model(
        model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    ).train()
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = wrapped(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    wrapped.eval()
    before = wrapped(ids).logits
    torch.testing.assert_close(wrapped.merge_and_unload()(ids).logits, before, atol=1e-5, rtol=1e-4)


def test_gradient_checkpointing_gives_the_same_gradients():
    model, ids = small_model().train(), torch.randint(0, 97, (2, 12))
    model(ids, labels=ids).loss.backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(ids, labels=ids).loss.backward()
    for a, b in zip(plain, (p.grad for p in model.parameters()), strict=True):
        torch.testing.assert_close(a, b)


def test_loss_with_and_without_logits():
    model, ids = small_model().train(), torch.randint(0, 97, (2, 12))
    lean = model(ids, labels=ids)
    full = model(ids, labels=ids, skip_logits=False)
    assert lean.logits is None and full.logits.shape == (2, 12, 97)
    torch.testing.assert_close(lean.loss, full.loss)
    assert model.eval()(ids, labels=ids).logits is not None


def test_autocast_trains():
    model, ids = small_model().train(), torch.randint(0, 97, (2, 12))
    exact = model(ids, labels=ids).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(ids, labels=ids).loss
    loss.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=2e-2)
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
def test_compiled_model_agrees(compiler):
    model, ids = small_model(n_layers=1).train(), torch.randint(0, 97, (2, 12))
    plain = model(ids, labels=ids, use_cache=False).loss
    plain.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    compiled = torch.compile(model)
    loss = compiled(ids, labels=ids, use_cache=False).loss
    loss.backward()
    torch.testing.assert_close(loss, plain)
    for a, b in zip(gradients, (p.grad for p in model.parameters()), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.fixture
def lab_model(tokenizer, shape):
    from llmlab.data.tokenizer import token_ids
    from llmlab.models.transformer.shapes import to_lab_config

    return LabForCausalLM(to_lab_config(shape, **token_ids(tokenizer)))


QUESTIONS = [{"role": "user", "content": "Who was the captain?"}]
SAID = [{"role": "assistant", "content": "Ahab."}]
WRONG = [{"role": "assistant", "content": "Nobody knows."}]


def arguments(cls, folder, **changes):
    values = dict(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
    )
    return cls(**{**values, **changes})


def train(trainer):
    weights = [p.detach().clone() for p in trainer.model.parameters() if p.requires_grad]
    assert torch.isfinite(torch.tensor(trainer.train().training_loss))
    after = [p for p in trainer.model.parameters() if p.requires_grad]
    assert any(not torch.equal(a, b) for a, b in zip(weights, after, strict=True))


@pytest.mark.parametrize("packing", [False, True])
def test_trl_sft(lab_model, tokenizer, tmp_path, packing):
    rows = Dataset.from_list([{"messages": QUESTIONS + SAID}] * 16)
    args = arguments(trl.SFTConfig, tmp_path, max_length=64, packing=packing, assistant_only_loss=True)
    train(trl.SFTTrainer(lab_model, args=args, train_dataset=rows, processing_class=tokenizer))


def test_trl_dpo(lab_model, tokenizer, tmp_path):
    rows = Dataset.from_list([{"prompt": QUESTIONS, "chosen": SAID, "rejected": WRONG}] * 8)
    args = arguments(trl.DPOConfig, tmp_path, max_length=64)
    train(
        trl.DPOTrainer(
            lab_model,
            ref_model=copy.deepcopy(lab_model),
            args=args,
            train_dataset=rows,
            processing_class=tokenizer,
        )
    )


def test_trl_grpo(lab_model, tokenizer, tmp_path):
    rows = Dataset.from_list([{"prompt": QUESTIONS}] * 8)
    args = arguments(trl.GRPOConfig, tmp_path, num_generations=4, max_completion_length=8, learning_rate=1e-2)

    def length(completions, **kwargs):
        return [float(len(completion[0]["content"])) for completion in completions]

    train(
        trl.GRPOTrainer(
            lab_model, reward_funcs=length, args=args, train_dataset=rows, processing_class=tokenizer
        )
    )


def test_trl_reward(lab_model, tokenizer, tmp_path):
    lab_model.save_pretrained(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    rows = Dataset.from_list([{"chosen": QUESTIONS + SAID, "rejected": QUESTIONS + WRONG}] * 8)
    args = arguments(trl.RewardConfig, tmp_path / "reward", max_length=64)
    train(trl.RewardTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer))
