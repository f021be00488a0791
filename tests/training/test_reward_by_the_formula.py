"""The score of a reward model is that of the last real token, however it is padded;
its loss and gradients are the formula's.
"""

import pytest
import torch
import trl
from transformers import AutoModelForSequenceClassification, LlamaConfig
from trl.trainer.reward_trainer import DataCollatorForPreference

from llmlab.training.trainers.reward import RewardTrainer
from tests.conftest import POSITIONS, position_options, small_config

PAD, END = 0, 2
PAIRS = [
    ([5, 6, 7], [8, 9, 10, 11, END], [12, END]),
    ([20, 21], [22, END], [23, 24, 25, 26, 27, END]),
    ([30], [31, 32], [33]),
]


def scorer(kind, pad):
    """A reward model of random weights: a Llama, or this package's with positions of a kind."""
    if kind == "llama":
        config = LlamaConfig(
            vocab_size=97,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            initializer_range=0.2,
        )
    else:
        config = small_config(**position_options(kind))
    config.num_labels, config.pad_token_id = 1, pad
    return AutoModelForSequenceClassification.from_config(config).eval()


@pytest.mark.parametrize("pad", [PAD, END])
@pytest.mark.parametrize("kind", ["llama", *POSITIONS])
def test_a_score_is_that_of_the_last_real_token_on_either_side_of_the_padding(kind, pad):
    """A tokenizer without a padding token pads with the end of a text,
    which then does not count as a token in any batch.
    """
    model = scorer(kind, pad)
    texts = [prompt + answer for prompt, *answers in PAIRS for answer in answers]
    width = max(map(len, texts)) + 3
    with torch.no_grad():
        alone = torch.cat([model(input_ids=torch.tensor([text])).logits[:, 0] for text in texts])
        last = [len(text) - 1 - (pad == END and text[-1] == END) for text in texts]
        hidden = [model.base_model(input_ids=torch.tensor([text])).last_hidden_state[0] for text in texts]
        by_hand = torch.cat([model.score(states[place]) for states, place in zip(hidden, last, strict=True)])
        torch.testing.assert_close(alone, by_hand, atol=1e-5, rtol=1e-5)
        for side in ("right", "left"):
            rows = [[pad] * (width - len(text)) for text in texts]
            seen = [[0] * len(row) for row in rows]
            ones = [[1] * len(text) for text in texts]
            if side == "right":
                ids, mask = (
                    [t + r for t, r in zip(texts, rows, strict=True)],
                    [o + z for o, z in zip(ones, seen, strict=True)],
                )
            else:
                ids, mask = (
                    [r + t for t, r in zip(texts, rows, strict=True)],
                    [z + o for o, z in zip(ones, seen, strict=True)],
                )
            together = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).logits[:, 0]
            torch.testing.assert_close(
                together, alone, atol=1e-5, rtol=1e-4, msg=lambda text, side=side: f"{side}: {text}"
            )
    assert alone.std() > 1e-3


@pytest.mark.parametrize("centering", [0.0, 0.3])
def test_loss_and_gradients_are_those_of_the_formula(tmp_path, centering):
    """Bradley and Terry: -log sigmoid(r+ - r-) + c (r+ + r-)^2, each pair alone and in double precision."""
    torch.manual_seed(0)
    model = scorer("llama", PAD)
    rows = [{"chosen_ids": prompt + good, "rejected_ids": prompt + bad} for prompt, good, bad in PAIRS]
    trainer = RewardTrainer(
        model=model,
        train_dataset=_dataset(rows),
        processing_class=_tokenizer(),
        args=trl.RewardConfig(
            output_dir=str(tmp_path),
            center_rewards_coefficient=centering or None,
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            remove_unused_columns=False,
        ),
    )
    batch = DataCollatorForPreference(pad_token_id=PAD)(rows)
    trainer.model.eval()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    gradients = {name: p.grad.double() for name, p in trainer.model.named_parameters()}
    double = scorer("llama", PAD).double()
    double.load_state_dict({name: value.double() for name, value in trainer.model.state_dict().items()})
    reward = lambda ids: double(input_ids=torch.tensor([ids])).logits[0, 0]  # noqa: E731
    wanted = 0
    for row in rows:
        good, bad = reward(row["chosen_ids"]), reward(row["rejected_ids"])
        wanted = wanted + (torch.log1p(torch.exp(bad - good)) + centering * (good + bad) ** 2) / len(rows)
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-5)
    for name, parameter in double.named_parameters():
        assert (gradients[name] - parameter.grad).norm() <= 1e-4 * parameter.grad.norm() + 1e-8, name


def _dataset(rows):
    from datasets import Dataset

    return Dataset.from_list(rows)


def _tokenizer():
    from llmlab.data.tokenizer import load_tokenizer

    return load_tokenizer("byte")
