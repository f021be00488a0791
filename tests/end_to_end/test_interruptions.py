"""A few kills of a few stages and some fuzzing;
`benchmarks/interruptions.py` and `benchmarks/fuzz.py` do the large numbers.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import PATIENCE

pytestmark = pytest.mark.slow  # trains

ROOT = Path(__file__).parent.parent.parent


def bench(*arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / arguments[0]), *arguments[1:]]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=2 * PATIENCE)


@pytest.mark.parametrize(
    "number, stages", [("KILL", ["pretrain-stream", "ppo"]), ("TERM", ["sft-lora", "grpo"])]
)
def test_interrupted_runs_end_like_uninterrupted_ones(number, stages):
    done = bench("interruptions.py", "--kills", "6", "--signal", number, "--stages", *stages)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert int(re.search(rf"(\d+) x SIG{number}", done.stdout).group(1)) >= 6


def test_no_config_and_no_file_is_a_traceback():
    # 2 seconds are what the program promises; a processor can be three times as slow as another
    done = bench("fuzz.py", "--count", "100", "--workers", "1", "--seed", "5", "--limit", "6")
    assert done.returncode == 0, done.stdout[-3000:]
