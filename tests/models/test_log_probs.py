"""log pi(y|x) equals the log-softmax of each architecture's own logits, and TRL's figure to the bit."""

import copy

import pytest
import torch
import transformers
from trl.trainer.utils import add_fused_lm_head

from llmlab.models.log_probs import read, score_answers, score_tokens
from tests.conftest import small_model

SMALL = dict(
    vocab_size=97,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=64,
    head_dim=8,
    pad_token_id=0,
)
FAMILIES = {
    "Llama": {},
    "Gemma2": dict(final_logit_softcapping=0.3, query_pre_attn_scalar=8),
    "Cohere": dict(logit_scale=0.2),
    "Granite": dict(logits_scaling=5.0),
    "GPT2": None,
    "lab": None,
}


def model_of(family):
    if family == "lab":
        return small_model()
    config_class = getattr(transformers, f"{family}Config")
    if family == "GPT2":
        config = config_class(vocab_size=97, n_embd=32, n_layer=2, n_head=4)
        return transformers.GPT2LMHeadModel(config).eval()
    return getattr(transformers, f"{family}ForCausalLM")(config_class(**SMALL, **FAMILIES[family])).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_those_of_the_logits_whatever_the_padding(family):
    """Four tokens of an answer behind prompts of five tokens and of two, which are padded on the left."""
    torch.manual_seed(0)
    model = model_of(family)
    for parameter in model.get_output_embeddings().parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    rows = [torch.randint(1, 97, (1, size)) for size in (9, 6)]
    ids = torch.cat([rows[0], torch.nn.functional.pad(rows[1], (3, 0))])
    mask = (ids != 0).long()
    with torch.no_grad():
        wanted = torch.cat(
            [
                (model(row).logits[:, -5:-1] / 0.7).log_softmax(-1).gather(2, row[:, -4:, None]).squeeze(2)
                for row in rows
            ]
        )
        found = score_answers(model, ids, mask, 4, temperature=0.7)
        states = read(model, ids, mask).last_hidden_state[:, -5:-1]
        scores = score_tokens(model, states, ids[:, -4:], mask[:, -4:], temperature=0.7, entropy=True)
        logits = torch.cat([model(row).logits[:, -5:-1] for row in rows]) / 0.7
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert torch.equal(found, scores.log_probs)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(scores.entropy, entropy, atol=1e-4, rtol=1e-4)


def test_they_equal_what_trl_computes_to_the_bit_and_have_its_gradients():
    torch.manual_seed(0)
    model = model_of("Llama")
    ids = torch.randint(1, 97, (3, 9))
    mask = torch.ones_like(ids)
    mask[1, -2:] = 0  # an answer that is shorter
    fused = copy.deepcopy(model)
    add_fused_lm_head(fused)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :-4] = -100
    by_trl = fused(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True).log_probs[:, -4:]
    found = score_answers(model, ids, mask, 4)
    assert torch.equal(found, by_trl) and (found[1, -2:] == 0).all() and (found[1, :2] < 0).all()
    for loss in (found.sum(), by_trl.sum()):
        loss.backward()
    for own, trls in zip(model.parameters(), fused.parameters(), strict=True):
        # with several threads the rows of an embedding's gradient are summed in any order
        torch.testing.assert_close(own.grad, trls.grad, atol=1e-6, rtol=1e-5)
