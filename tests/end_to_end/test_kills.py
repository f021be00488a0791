"""A few SIGKILLs of a sequential DPO run;
`benchmarks/kills.py --fill 50 --train 50` does the large number.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import PATIENCE

pytestmark = pytest.mark.slow  # trains

ROOT = Path(__file__).parent.parent.parent


def test_killed_runs_end_like_uninterrupted_ones():
    command = [sys.executable, str(ROOT / "benchmarks" / "kills.py"), "--fill", "2", "--train", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=2 * PATIENCE)
    assert done.returncode == 0, done.stderr[-3000:]
    filling, training = map(
        int, re.search(r"(\d+) kills while filling, (\d+) while training", done.stdout).groups()
    )
    assert filling >= 2 and training >= 2
