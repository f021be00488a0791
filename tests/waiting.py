"""Waits that come to an end: a test that waits for what never comes fails and says so."""

import os
import time

PATIENCE = float(
    os.environ.get("LLMLAB_PATIENCE", "300")
)  # seconds until a test that waits for something gives up


def until(condition, said=lambda: "", pause=0.02):
    """Waits until a condition holds; `said` is shown where it never does."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < PATIENCE, f"waited {PATIENCE:g} s in vain\n{said()}"
        time.sleep(pause)
