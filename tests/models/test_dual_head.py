"""The dual head: exact at alignment 0, cached as uncached, causal,
and what is saved finds its backbone again.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

from llmlab.config import preset
from llmlab.data.dual_head import DualHeadCollator
from llmlab.errors import LabError
from llmlab.models import LabConfig, LabDualHeadConfig, LabDualHeadForCausalLM
from llmlab.models.identity import note_base
from llmlab.planning.dual_head import count_dual_head, generation_flops, training_bytes
from llmlab.planning.parameters import count_parameters

SMALL = dict(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
SHAPES = {
    "llama": lambda: LlamaConfig(**SMALL),
    "qwen2, tied": lambda: Qwen2Config(**SMALL, tie_word_embeddings=True),
    "mistral, sliding": lambda: MistralConfig(**SMALL, sliding_window=5),
    "gpt2": lambda: GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2),
    "own": lambda: LabConfig(vocab_size=97, d_model=32, d_ff=48, n_layers=2, n_heads=4, n_kv_heads=2),
}


def backbone(kind="llama", folder=None):
    made = AutoModelForCausalLM.from_config(SHAPES[kind]()).eval()
    with torch.no_grad():
        for parameter in made.parameters():  # far from ties, in which cached and uncached may differ
            if parameter.ndim > 1:
                parameter.mul_(8)
    made.generation_config.eos_token_id = None
    if folder:
        made.save_pretrained(folder)
    return made


def dual_head(own, name="", **options):
    """Heads and gate away from where they begin."""
    made = LabDualHeadForCausalLM(LabDualHeadConfig(own.config, backbone=str(name), **options), own).eval()
    with torch.no_grad():
        for head in (made.lm_head, made.rm_head):
            head.weight.add_(0.1 * torch.randn_like(head.weight))
        made.gate.score.weight.mul_(20)
    return made


@pytest.mark.parametrize("kind", SHAPES)
def test_it_begins_as_its_backbone_and_ends_there_at_alignment_0(kind):
    own = backbone(kind)
    ids = torch.randint(1, 97, (2, 12))
    wanted = own(ids).logits
    fresh = LabDualHeadForCausalLM(LabDualHeadConfig(own.config), own).eval()
    assert torch.allclose(fresh(ids).logits, wanted, atol=1e-5)
    changed = dual_head(own)
    assert torch.equal(changed(ids, alignment=0).logits, wanted)
    assert not torch.allclose(changed(ids).logits, wanted, atol=1e-2)
    nearly = changed(ids, alignment=1e-4).logits  # turning it down ends there, too
    assert torch.allclose(nearly, wanted, atol=1e-2)


@pytest.mark.parametrize("kind", SHAPES)
def test_cached_generation_is_uncached(kind):
    model = dual_head(backbone(kind))
    ids = torch.randint(3, 97, (2, 12))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    given = dict(attention_mask=mask, max_new_tokens=10, do_sample=False, pad_token_id=0)
    for more in ({"alignment": 0.5}, {}, {"alignment": 2.0}, {"num_beams": 3}):
        cached, uncached = (model.generate(ids, use_cache=use, **given, **more) for use in (True, False))
        assert torch.equal(cached, uncached), more


def test_the_gate_sees_no_later_token():
    model = dual_head(backbone())
    ids = torch.randint(3, 97, (2, 12))
    other = ids.clone()
    other[:, 7] = (ids[:, 7] + 1) % 97
    one, two = model(ids).alpha, model(other).alpha
    assert torch.equal(one[:, :7], two[:, :7]) and (one[:, 7:] != two[:, 7:]).any(dim=1).all()
    assert ((one > 0) & (one < 1)).all()


def test_the_formula_on_one_token():
    model = dual_head(backbone())
    ids = torch.randint(3, 97, (1, 5))
    out = model(ids)
    hidden = model.hidden(ids).last_hidden_state
    plain, reward = hidden @ model.lm_head.weight.T, hidden @ model.rm_head.weight.T
    alpha = out.alpha.unsqueeze(-1)
    assert torch.allclose(out.logits, (1 - alpha) * plain + alpha * reward, atol=1e-5)
    assert torch.allclose(model(ids, alignment=2.0).logits, plain + 2 * alpha * (reward - plain), atol=1e-5)
    assert torch.allclose(model(ids, head="reward").logits, reward, atol=1e-5)


def test_saved_without_the_backbone_and_loaded_by_the_library(tmp_path):
    own = backbone("qwen2, tied", tmp_path / "backbone")
    model = dual_head(own, tmp_path / "backbone", rm_bias=True, gating_size=5)
    model.save_pretrained(tmp_path / "heads")
    size = (tmp_path / "heads" / "model.safetensors").stat().st_size
    assert size < 4 * sum(p.numel() for p in model.parameters() if p.requires_grad) + 10_000
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "heads")
    ids = torch.randint(3, 97, (2, 9))
    assert isinstance(again, LabDualHeadForCausalLM) and torch.equal(again(ids).logits, model(ids).logits)


def test_another_backbone_is_refused(tmp_path):
    own = backbone("llama", tmp_path / "backbone")
    dual_head(own, tmp_path / "backbone").save_pretrained(tmp_path / "heads")
    note_base(tmp_path / "heads", str(tmp_path / "backbone"))
    backbone("llama", tmp_path / "backbone")  # drawn anew: the same shape, other weights
    with pytest.raises(LabError, match="heads of another base"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "heads")
    wider = AutoModelForCausalLM.from_config(LlamaConfig(**{**SMALL, "vocab_size": 101}))
    with pytest.raises(LabError, match="`vocab_size` 97 do not fit a backbone with 101"):
        LabDualHeadForCausalLM(LabDualHeadConfig(own.config), wider)
    with pytest.raises(LabError, match=r"`gating_num_heads` 7 does not divide .* 32: use 8"):
        LabDualHeadForCausalLM(LabDualHeadConfig(own.config, gating_num_heads=7), own)


@pytest.mark.parametrize("share", [False, True])
def test_scores_of_a_batch_are_those_of_each_answer_alone(share):
    model = dual_head(backbone())
    rows = []
    for sizes in ((9, 3, 5), (12, 6, 2), (10, 4, 0)):
        prompt, chosen, rejected = (torch.randint(3, 97, (size,)).tolist() for size in sizes)
        rows.append(
            {
                "prompt_ids": prompt,
                "chosen_ids": chosen,
                "chosen_labels": list(chosen),
                "rejected_ids": rejected,
            }
        )
    rows[2]["chosen_labels"][1] = -100
    batch = DualHeadCollator(0, share=share)(rows)
    assert ("attention_mask" in batch) == share
    scores = model(**batch)
    fused, alphas, margins = [], [], []
    for row in rows:
        said = []
        for answer, labels in (
            (row["chosen_ids"], row["chosen_labels"]),
            (row["rejected_ids"], row["rejected_ids"]),
        ):
            ids = torch.tensor([row["prompt_ids"] + answer])
            places = [len(row["prompt_ids"]) + k for k, label in enumerate(labels) if label != -100]
            out, reward = model(ids), model(ids, head="reward").logits.log_softmax(-1)
            said.append(sum((reward[0, place - 1, ids[0, place]] for place in places), torch.tensor(0.0)))
            if answer is row["chosen_ids"]:
                log_probs = out.logits.log_softmax(-1)
                fused += [log_probs[0, place - 1, ids[0, place]] for place in places]
                alphas += [out.alpha[0, place - 1] for place in places]
        if row["rejected_ids"]:
            margins.append(said[0] - said[1])
    assert torch.allclose(scores.fused, torch.stack(fused), atol=1e-4)
    assert torch.allclose(scores.alpha, torch.stack(alphas), atol=1e-5)
    assert torch.allclose(scores.margin, torch.stack(margins), atol=1e-4)


def test_gradients_reach_the_heads_and_the_gate_alone():
    model = dual_head(backbone("qwen2, tied")).train()
    assert not model.backbone.training
    ids = torch.randint(3, 97, (6,)).tolist()
    row = {"prompt_ids": ids, "chosen_ids": ids[:3], "chosen_labels": ids[:3], "rejected_ids": ids[3:]}
    scores = model(**DualHeadCollator(0, share=False)([row]))
    (scores.margin.sum() + scores.fused.sum()).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == {name for name, p in model.named_parameters() if not name.startswith("backbone.")}


def test_slices_change_nothing(monkeypatch):
    model = dual_head(backbone())
    hidden, targets, alpha = torch.randn(300, 32), torch.randint(0, 97, (300,)), torch.rand(200)
    whole = model.log_probs(hidden, targets, alpha)
    (whole[0].sum() + whole[1].sum()).backward()
    wanted = [model.lm_head.weight.grad.clone(), model.rm_head.weight.grad.clone()]
    model.zero_grad()
    monkeypatch.setattr("llmlab.models.dual_head.modeling.slice_rows", lambda *_, **__: 64)
    parts = model.log_probs(hidden, targets, alpha)
    (parts[0].sum() + parts[1].sum()).backward()
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(whole, parts, strict=True))
    found = [model.lm_head.weight.grad, model.rm_head.weight.grad]
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(wanted, found, strict=True))


@pytest.mark.parametrize("options", [{}, {"gating_size": 5, "rm_bias": True, "gating_layer_norm": False}])
def test_counted_parameters_are_the_built_ones(options):
    model = dual_head(backbone(), **options)
    layer_norm = options.get("gating_layer_norm", True)
    made = count_dual_head(
        32,
        97,
        gating_size=options.get("gating_size"),
        layer_norm=layer_norm,
        rm_bias=options.get("rm_bias", False),
    )
    assert made.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_published_arithmetic_of_7b():
    shape = preset("llama-7b")
    made = count_dual_head(shape.d_model, shape.vocab_size)
    assert made.head == 131_072_000 and round(made.gate / 1e6) == 71 and round(made.trained / 1e6) == 333
    assert round(made.trained / (made.trained + count_parameters(shape).total), 3) == 0.047
    alone, both = generation_flops(shape, 1024)
    dual, dpo = training_bytes(shape)
    assert both / alone < 1.1 and dual / dpo < 0.5
