"""vLLM with the policy's weights: TRL's engine, whose answers are drawn by a seed for each row.

TRL gives the weights of every update to vLLM, merged where there is an adapter, put together where they are
sharded. Here their names become those of the native family (Llama, Qwen2 ...) that computes the lab's model,
and each answer is a request of its own with a seed that follows from run, step and row. So the same numbers
are drawn whatever the batch, the processes and the stop. The probabilities they are drawn from are vLLM's:
they depend in their last bits on what it computes together, so that an answer can differ where two tokens are
nearly as likely. A resumed run is therefore not the same to the bit, as it is without vLLM.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import save_file
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from trl.generation.vllm_generation import VLLMGeneration

from llmlab.errors import LabError
from llmlab.models import LabForCausalLM
from llmlab.models.adapters import is_adapted, without_adapter
from llmlab.models.resolve import ModelRef
from llmlab.models.transformer.config import LabConfig
from llmlab.models.transformer.context import context_length
from llmlab.models.typed import LanguageModel
from llmlab.training import compat
from llmlab.training.rollouts import Seeds
from llmlab.training.vllm import Answering, family_in_vllm, server_url

compat.check(compat.VLLM)

REQUESTS = 64  # that are sent to a server at once
Drawn = tuple[list[list[int]], list[list[float | None]]]


class VLLMAnswers(VLLMGeneration):
    """TRL's engine for a policy of the lab.

    Args:
        model: the policy, with an adapter or without.
        accelerator: of the trainer.
        tokenizer: of the policy.
        how: answers are written.

    Raises:
        LabError: when vLLM does not start, or has no such architecture.
    """

    def __init__(
        self,
        model: LanguageModel,
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
        how: Answering,
    ):
        base, config = without_adapter(model), how.config
        self.base, self.how = base, how
        self.family = family_in_vllm(base.config) if isinstance(base, LabForCausalLM) else None
        # on processors vLLM packs a tied head once and does not see that the embedding changes
        tied = bool(base.config.get_text_config().tie_word_embeddings)
        self.unties = config.vllm == "colocate" and accelerator.device.type == "cpu" and tied
        self.step = -1  # whose weights vLLM has
        longest = context_length(base)
        fits = config.max_prompt_length + config.max_new_tokens
        name = model.name_or_path
        with tempfile.TemporaryDirectory(prefix="llmlab-vllm-") as folder:
            if config.vllm == "colocate":
                model.name_or_path = self._readable(how.policy, tokenizer, model, Path(folder))
            try:
                super().__init__(
                    model,
                    accelerator,
                    tokenizer,
                    mode=config.vllm,
                    server_base_url=server_url(config),
                    group_port=config.vllm_weights_port,
                    tensor_parallel_size=config.vllm_tensor_parallel,
                    gpu_memory_utilization=config.vllm_memory,
                    max_model_length=min(fits, longest) if longest else fits,
                )
            except Exception as error:  # of vLLM, its kernels, its server: any
                raise LabError(
                    f"vLLM does not start: {str(error).strip() or type(error).__name__}",
                    remedy='change that, or set `vllm` to "off"',
                    exit_code=1,
                ) from error
            finally:
                model.name_or_path = name

    def _readable(
        self, policy: ModelRef, tokenizer: PreTrainedTokenizerBase, model: LanguageModel, folder: Path
    ) -> str:
        """Returns where vLLM reads the model from: where it came from, or a folder with a copy of it."""
        if self.family is None and policy.kind in ("folder", "hub") and not self.unties:
            return str(policy.path) if policy.kind == "folder" else policy.where
        base_config = self.base.config
        config = copy.deepcopy(base_config)
        if self.family:
            config = self.family.make_config(cast(LabConfig, base_config))
        config.tie_word_embeddings = config.tie_word_embeddings and not self.unties
        weights = {
            weight_name: weight.detach().cpu().clone()
            for name, parameter in _plain(model)
            for weight_name, weight in self._renamed(name, parameter.data)
        }
        config.architectures = [type(self.base).__name__] if self.family is None else _architecture(config)
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return str(folder)

    def _renamed(self, name: str, weight: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
        weights = {name: weight}
        if self.family:
            weights = self.family.rename(cast(LabConfig, self.base.config), weights)
        if self.unties and name.endswith("embed_tokens.weight"):
            weights["lm_head.weight"] = weight
        return list(weights.items())

    def _iter_named_params(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields the weights under the names that vLLM has for them."""
        for name, weight in super()._iter_named_params():
            yield from self._renamed(name, weight)

    def sync_weights(self) -> None:
        """Gives vLLM the weights as they are now; every process has to call it."""
        if self.mode == "colocate" and self.accelerator.device.type == "cpu":
            # there vLLM packs them for its kernels as it loads them, and TRL's way finds none to write over;
            # it may keep some until all are there, when an adapter is no longer merged into them
            copies = ((name, weight.clone()) for name, weight in self._iter_named_params())
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": copies})
            self.llm.reset_prefix_cache()
        else:
            super().sync_weights()

    def answers(self, prompts: list[list[int]], seeds: Seeds, step: int) -> Drawn:
        """Returns the token ids of an answer to each prompt, its end included, and their log-probabilities.

        Args:
            prompts: token ids, those of this process.
            seeds: of the answers.
            step: updates so far; where they are others than at the last answers, vLLM is given the weights.
        """
        if step != self.step:
            self.sync_weights()
            self.step = step
        numbers = [_number(seed) for seed in seeds]
        return self._here(prompts, numbers) if self.mode == "colocate" else self._elsewhere(prompts, numbers)

    def _here(self, prompts: list[list[int]], numbers: list[int]) -> Drawn:
        from vllm import SamplingParams

        rows = list(zip(prompts, numbers, strict=True))
        group, place = [rows], 0
        if self.tensor_parallel_size > 1:  # the devices of a group compute the answers of all its processes
            group, place = [[]] * self.tensor_parallel_size, torch.distributed.get_rank(group=self.tp_group)
            torch.distributed.all_gather_object(group, rows, group=self.tp_group)
        together = [row for part in group for row in part]
        outputs = self.llm.generate(
            [{"prompt_token_ids": prompt} for prompt, _ in together],
            sampling_params=[SamplingParams(**self._parameters(), seed=number) for _, number in together],
            use_tqdm=False,
        )
        first = sum(len(part) for part in group[:place])
        written = [output.outputs[0] for output in outputs[first : first + len(rows)]]
        drawn = [
            [token[i].logprob for token, i in zip(each.logprobs, each.token_ids, strict=True)]
            for each in written
        ]
        return [list(each.token_ids) for each in written], drawn

    def _elsewhere(self, prompts: list[list[int]], numbers: list[int]) -> Drawn:
        rows = gather_object([list(zip(prompts, numbers, strict=True))])  # of each process
        answers: list[Any] = [None]
        if self.accelerator.is_main_process:
            with ThreadPoolExecutor(REQUESTS) as pool:
                answers[0] = list(pool.map(self._ask, [row for part in rows for row in part]))
        broadcast_object_list(answers, from_process=0)
        first = sum(len(part) for part in rows[: self.accelerator.process_index])
        own = answers[0][first : first + len(prompts)]
        return [ids for ids, _ in own], [drawn for _, drawn in own]

    def _ask(self, row: tuple[list[int], int]) -> tuple[list[int], list[float | None]]:
        prompt, number = row
        parameters = self._parameters()
        stop = parameters.pop("stop_token_ids")
        result = self.vllm_client.generate(
            [prompt], **parameters, generation_kwargs={"seed": number, "stop_token_ids": stop}
        )
        logprobs: Any = result["logprobs"]  # (1, tokens, 1)
        return result["completion_ids"][0], [tops[0] for tops in logprobs[0]]

    def _parameters(self) -> dict[str, Any]:
        return dict(
            n=1,
            temperature=self.how.temperature,
            top_p=self.how.config.top_p,
            top_k=self.how.config.top_k,
            max_tokens=self.how.config.max_new_tokens,
            logprobs=0,  # of the token that was drawn
            stop_token_ids=self.how.ends,
        )


def _plain(model: LanguageModel) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yields the weights below an adapter, under the names that they have without it."""
    for name, parameter in model.named_parameters():
        if is_adapted(model):
            if model.prefix in name:
                continue
            name = name.removeprefix("base_model.model.").replace(".base_layer", "")
        yield name, parameter


def _architecture(config: PreTrainedConfig) -> list[str]:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return [model.__name__]


def _number(seed: tuple[int, int, int, int]) -> int:
    """Returns a seed as the one number of 63 bits that vLLM takes."""
    return int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(1))
