"""Runs configs one after another in each process of a job: `torchrun -m tests.training.several PLAN RESULT`.

Starting processes and importing the libraries takes longer than a short run does, so one job does many. PLAN
is a JSON list of {"config": ..., "resume": ..., "broken": a word of rows that cannot be computed} and of
{"copy": [from, to]}; RESULT gets, from the main process, a list of {"error": text, "engine": words} in its
order, null for a copy.
"""

import faulthandler
import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path

from llmlab.config import parse_config
from llmlab.errors import LabError
from llmlab.libraries import importing, quiet_libraries

with importing():
    import torch
    from accelerate import PartialState
    from accelerate.utils import DistributedType
    from transformers.integrations import unset_hf_deepspeed_config

    from llmlab.evaluation.watching import Evaluator
    from llmlab.training.engine.distributed import destroy_process_group
    from llmlab.training.engine.reporter import Silent
    from llmlab.training.engine.run import run
    from llmlab.training.rewards import weighted
    from tests.training.broken import broken


class Words(Silent):
    """Keeps the notes of a run."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def main():
    faulthandler.register(signal.SIGUSR1)  # where it stands, of a job that hangs
    quiet_libraries(print)
    results, connected = [], False
    for part in json.loads(Path(sys.argv[1]).read_text()):
        if "copy" in part:
            torch.distributed.barrier()
            if os.environ["RANK"] == "0":
                shutil.copytree(*part["copy"])
            torch.distributed.barrier()
            results.append(None)
            continue
        words, error = Words(), ""
        if connected:  # accelerate keeps the engine of the run before
            PartialState().distributed_type = DistributedType.MULTI_CPU
            for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
                del os.environ[name]  # which transformers sets
            unset_hf_deepspeed_config()
        connected = True
        try:
            config = parse_config(part["config"])
            with broken(part.get("broken"), part["config"].get("policy_checkpoint")):
                run(config, resume=part.get("resume", "auto"), reporter=words, evaluator=Evaluator(weighted))
        except LabError as refused:
            error = str(refused)
        except Exception:
            error = traceback.format_exc()
        engine = next((note for note in words.notes if "over" in note and "processes" in note), "")
        results.append({"error": error, "engine": engine})
        if os.environ["RANK"] == "0":
            Path(sys.argv[2]).write_text(json.dumps(results))
        if error.startswith("Traceback"):  # the others may wait for this one: nothing more can be done
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
    destroy_process_group()


if __name__ == "__main__":
    main()
