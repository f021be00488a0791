"""An answer ends where the chat template of its family ends a turn: found from the template, learned,
and obeyed.
"""

import json

import pytest
import torch
from typer.testing import CliRunner

from llmlab.chat.session import ChatSession
from llmlab.cli import app
from llmlab.config import DPOConfig, DualHeadConfig, GRPOConfig, PPOConfig, SFTConfig
from llmlab.config.chat import ChatSettings
from llmlab.data.rendering import IGNORE_INDEX, tokenize_conversation, tokenize_pair, turn_ends
from llmlab.evaluation.answers import answer
from llmlab.evaluation.classification import label_ids
from llmlab.models import LabConfig, LabForCausalLM
from llmlab.models.load import load_model
from llmlab.training.engine.reporter import SILENT
from llmlab.training.engine.run import run
from llmlab.training.methods import dpo, dual_head, grpo, ppo, sft
from tests.templates import FAMILIES

OWN = 7  # an end that the model itself brings, as Llama 3's <|eom_id|>


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


def test_the_end_is_found_from_the_template(family):
    tokenizer = family.tokenizer()
    ends = [family.end, family.eos] if family.end else [family.eos]
    assert tokenizer.convert_ids_to_tokens(turn_ends(tokenizer)) == list(dict.fromkeys(ends))


def test_every_answer_is_learned_with_its_end(family):
    tokenizer = family.tokenizer()
    end = tokenizer.convert_tokens_to_ids(family.end or family.eos)
    talk = [("user", "Who?"), ("assistant", "Ahab"), ("user", "Ship?"), ("assistant", "Pequod")]
    messages = [{"role": role, "content": text} for role, text in talk]
    for loss_on in ("assistant", "all"):
        made = tokenize_conversation(tokenizer, messages, loss_on)
        learned = [label for label in made["labels"] if label != IGNORE_INDEX]
        last = (
            learned
            if loss_on == "assistant"
            else [token for token in learned if tokenizer.decode([token]).strip()]
        )
        last = (
            last[:-1] if last[-2] == end else last
        )  # Phi-3 puts the end of text behind a whole conversation
        assert last[-1] == end and "Pequod" in tokenizer.decode(learned)
    learned = [
        label
        for label in tokenize_conversation(tokenizer, messages, "assistant")["labels"]
        if label != IGNORE_INDEX
    ]
    spoken = tokenizer.decode([token for token in learned if token != end]).split()
    assert spoken == ["Ahab", "Pequod"] or "".join(spoken) == "AhabPequod"
    closed = {"glm": 1, "falcon": 1}.get(next(name for name, known in FAMILIES.items() if known == family), 2)
    assert learned.count(end) == closed and learned[-1] == end


def test_answers_of_pairs_and_label_words_end_too(family):
    tokenizer = family.tokenizer()
    end = tokenizer.convert_tokens_to_ids(family.end or family.eos)
    pair = tokenize_pair(tokenizer, [{"role": "user", "content": "Who?"}], "Ahab", "Stubb", 999, 999)
    for ids in (pair["chosen_ids"], pair["rejected_ids"], label_ids(tokenizer, "ham")):
        assert ids[-1] == end and ids.count(end) == 1


def gemma(folder, **changes):
    """A tiny model of Gemma's format that knows no end but its own `<eos>` and one more."""
    tokenizer = FAMILIES["gemma"].tokenizer()
    shape = dict(
        vocab_size=len(tokenizer), d_model=32, n_layers=1, n_heads=2, n_kv_heads=2, d_ff=64, max_seq_len=64
    )
    torch.manual_seed(0)
    model = LabForCausalLM(
        LabConfig(
            **{**shape, **changes}, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id
        )
    )
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, OWN]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder), tokenizer


def write(path, row, count=16):
    path.write_text("".join(json.dumps({**row, "number": number}) + "\n" for number in range(count)))
    return str(path)


@pytest.mark.slow
def test_a_model_of_gemmas_format_stops_behind_its_answer(tmp_path):
    folder, tokenizer = gemma(tmp_path / "model")
    data = write(tmp_path / "hi.jsonl", {"prompt": "Hello", "completion": "Hi!"})
    result = run(
        SFTConfig(
            policy_checkpoint=folder,
            datasets=[data],
            max_steps=30,
            learning_rate=1e-2,
            batch_size=8,
            max_length=64,
            eval_fraction=0,
            gradient_accumulation_steps=1,
            output_dir=str(tmp_path / "run"),
            report_to=[],
            packing=False,
        )
    )
    model, tokenizer = load_model(str(result.folder))
    ends = {tokenizer.convert_tokens_to_ids("<end_of_turn>"), tokenizer.eos_token_id, OWN}
    assert set(model.generation_config.eos_token_id) == ends
    settings = ChatSettings(max_new_tokens=30, temperature=0)
    assert ChatSession(model, tokenizer, settings).reply("Hello", lambda piece: None)[0] == "Hi!"
    assert answer(model, tokenizer, [("", "Hello", "Hi!")], max_new_tokens=30).accuracy == 1
    told = CliRunner().invoke(app, ["generate", str(result.folder), "-p", "Hello", "--set", "temperature=0"])
    assert told.stdout.strip() == "Hi!", told.output
    # the same where neither the model nor its tokenizer says which token ends a turn
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(tmp_path / "silent")
    tokenizer.save_pretrained(tmp_path / "silent")
    model, tokenizer = load_model(str(tmp_path / "silent"))
    assert answer(model, tokenizer, [("", "Hello", "Hi!")], max_new_tokens=30).accuracy == 1


METHODS = {
    "sft": (sft.prepare, SFTConfig, "policy_checkpoint", {"prompt": "Hello", "completion": "Hi!"}, {}),
    "dpo": (
        dpo.prepare,
        DPOConfig,
        "policy_checkpoint",
        {"prompt": "Hello", "chosen": "Hi!", "rejected": "No"},
        {"reference": "live"},
    ),
    "grpo": (
        grpo.prepare,
        GRPOConfig,
        "policy_checkpoint",
        {"prompt": "Hello", "answer": "Hi!"},
        {"reward_model": "length"},
    ),
    "ppo": (
        ppo.prepare,
        PPOConfig,
        "policy_checkpoint",
        {"prompt": "Hello", "answer": "Hi!"},
        {"reward_model": "length"},
    ),
    "dual_head": (
        dual_head.prepare,
        DualHeadConfig,
        "backbone",
        {"prompt": "Hello", "chosen": "Hi!", "rejected": "No"},
        {},
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_stops_at_the_templates_end_and_at_the_models_own(tmp_path, method):
    prepare, config, start, row, more = METHODS[method]
    folder, tokenizer = gemma(tmp_path / "model", n_heads=8, n_kv_heads=8)
    job = prepare(
        config(**{start: folder}, datasets=[write(tmp_path / "a.jsonl", row)], eval_fraction=0, **more),
        "cpu",
        "fp32",
        SILENT,
    )
    ends = {tokenizer.convert_tokens_to_ids("<end_of_turn>"), tokenizer.eos_token_id, OWN}
    assert set(job.model.generation_config.eos_token_id) == ends
    if method == "grpo":
        assert set(job.arguments.keywords["generation_kwargs"]["eos_token_id"]) == ends
    if method == "ppo":
        assert set(job.trainer.keywords["ends"]) == ends
