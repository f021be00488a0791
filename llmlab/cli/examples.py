"""Two examples of every command, shown at the end of its `--help`; nowhere else is a second copy."""

from __future__ import annotations

import typer

EXAMPLES: dict[str, tuple[str, str]] = {
    "new": (
        "llmlab new sft",
        "llmlab new dpo --preset 1b --yes --set policy_checkpoint=sft -o dpo.yaml",
    ),
    "schema": ("llmlab schema sft", "llmlab schema model > model.schema.json"),
    "check": ("llmlab check model_configs/sft.json", "llmlab check sft.yaml --set batch_size=8 --measure"),
    "methods": ("llmlab methods", "llmlab methods --json"),
    "recipes": ("llmlab recipes", "llmlab recipes --json"),
    "run": ("llmlab run sft.yaml", "llmlab run checkpoints/sft --set max_steps=2000 --json"),
    "slurm": ("llmlab slurm sft.json -o job.sh", "llmlab slurm sft.json --seeds 1,2,3 --submit"),
    "chat": ("llmlab chat checkpoints/sft", "llmlab chat sft --against dpo --blind"),
    "generate": (
        "llmlab generate sft --prompt 'Who is Ahab?'",
        "llmlab generate sft --input prompts.jsonl --output answers.jsonl",
    ),
    "serve": ("llmlab serve sft", "llmlab serve sft --port 8080 --load-in 4bit"),
    "merge": ("llmlab merge sft", "llmlab merge sft -o merged"),
    "export": ("llmlab export sft --to hf", "llmlab export sft --to gguf --quantize Q4_K_M -o export"),
    "card": ("llmlab card sft", "llmlab card sft --license apache-2.0 > README.md"),
    "push": ("llmlab push sft me/my-model --dry-run", "llmlab push sft me/my-model --private"),
    "fit": (
        "llmlab fit Qwen/Qwen2.5-7B-Instruct --memory 12GB",
        'llmlab fit Qwen/Qwen2.5-1.5B --gpu "RTX 4090" --data rows.jsonl --method sft',
    ),
    "evaluate": (
        "llmlab evaluate sft --task llmlab:spam-mails --set split=test",
        "llmlab evaluate dpo --suite standard --against parent --gate gate.json",
    ),
    "evaluations": ("llmlab evaluations", "llmlab evaluations sft-standard --csv"),
    "assess": (
        "llmlab assess answers.jsonl --categories right,wrong,made-up",
        "llmlab assess sft --pairs --assessor anna",
    ),
    "tokenizer": (
        "llmlab tokenizer mytexts/ --vocab-size 4096",
        "llmlab tokenizer llmlab:moby-dick -o checkpoints/tokenizer",
    ),
    "quickstart": ("llmlab quickstart", "llmlab quickstart --minutes 20 --seed 1 -o checkpoints/longer"),
    "info": ("llmlab info sft", "llmlab info checkpoints/quickstart/grpo --json"),
    "doctor": ("llmlab doctor", "llmlab doctor --json"),
    "selftest": ("llmlab selftest", "llmlab selftest --only parity --only attention --json"),
    "completion": (
        "llmlab completion bash > ~/.local/share/bash-completion/completions/llmlab",
        "llmlab completion zsh > ~/.zfunc/_llmlab",
    ),
    "config convert": (
        "llmlab config convert axolotl.yml -o sft.json",
        "llmlab config convert trl.yaml --kind sft --json",
    ),
    "data inspect": (
        "llmlab data inspect llmlab:spam-mails",
        "llmlab data inspect own.jsonl --tokenizer sft --set format=messages",
    ),
    "data clean": (
        "llmlab data clean mails.jsonl -o clean.jsonl",
        "llmlab data clean texts/ -o clean.jsonl --against test.jsonl --language en",
    ),
    "data overlap": (
        "llmlab data overlap train.jsonl test.jsonl",
        """llmlab data overlap texts/ '{"name": "llmlab:spam-mails", "split": "test"}'""",
    ),
    "data catalog": ("llmlab data catalog", "llmlab data catalog finance"),
    "preferences list": (
        "llmlab preferences list",
        "llmlab preferences list --model sft --verdict bad --since 2026-11-27",
    ),
    "preferences show": ("llmlab preferences show last", "llmlab preferences show 3fa9 --json"),
    "preferences edit": (
        "llmlab preferences edit 3fa9",
        "llmlab preferences edit 3fa9 --verdict good --note 'short, and right'",
    ),
    "preferences delete": ("llmlab preferences delete 3fa9", "llmlab preferences delete last --yes"),
    "preferences export": (
        "llmlab preferences export -o pairs.jsonl",
        "llmlab preferences export --as labels -o kto.jsonl --model sft",
    ),
    "runs list": ("llmlab runs list", "llmlab runs list --kind dpo --tag keep --json"),
    "runs show": ("llmlab runs show sft", "llmlab runs show sft --json"),
    "runs compare": ("llmlab runs compare sft dpo", "llmlab runs compare a b c --html compared.html"),
    "runs report": ("llmlab runs report sft", "llmlab runs report sft -o sft.html"),
    "runs again": (
        "llmlab runs again sft --set learning_rate=1e-5",
        "llmlab runs again sft --set seed=2 --name sft-seed2",
    ),
    "runs rename": ("llmlab runs rename sft spam", "llmlab runs rename checkpoints/sft spam-v2"),
    "runs delete": ("llmlab runs delete sft", "llmlab runs delete sft --yes"),
    "runs tag": ("llmlab runs tag sft keep", "llmlab runs tag sft keep paper"),
    "runs untag": ("llmlab runs untag sft keep", "llmlab runs untag sft keep paper"),
    "runs verify": ("llmlab runs verify sft", "llmlab runs verify sft --json"),
    "cache list": ("llmlab cache list", "llmlab cache list --json"),
    "cache verify": ("llmlab cache verify", "llmlab cache verify dpo.json --pairs 64"),
    "cache clear": ("llmlab cache clear", "llmlab cache clear 3fa9 --yes"),
}


def add_examples(app: typer.Typer, group: str = "") -> None:
    """Puts the examples of each command, and of the commands of each group, below its help.

    Raises:
        KeyError: when a command has none.
    """
    for command in app.registered_commands:
        name = command.name or (command.callback.__name__ if command.callback else "")
        lines = EXAMPLES[f"{group} {name}".strip()]
        command.epilog = "\n\n".join(("Examples:", *lines)).replace("[", "\\[")  # no markup
    for inner in app.registered_groups:
        if inner.typer_instance:
            add_examples(inner.typer_instance, f"{group} {inner.name}".strip())
