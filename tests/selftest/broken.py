"""Checks of a lab that is broken in some way, and one that is not; the selftest's process imports them."""

import os
import signal
import time

from llmlab.selftest import parity
from llmlab.selftest.rows import Row


def changed_weight(setting, part):
    convert = parity.from_hf
    parity.from_hf = lambda peer: changed(convert(peer))
    try:
        yield from parity.check(setting, part)
    finally:
        parity.from_hf = convert


def changed(model):
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] += 0.05
    return model


def raises(setting, part):
    yield Row("before", "passed", "a row that was there already")
    raise ZeroDivisionError("a fault of a library")


def killed(setting, part):
    os.kill(os.getpid(), signal.SIGKILL)
    yield Row("never", "passed", "")


def hangs(setting, part):
    time.sleep(600)
    yield Row("never", "passed", "")


def passes(setting, part):
    yield Row("sound", "passed", "the checks behind a broken one are done")
