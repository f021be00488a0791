"""How many tokens' logits are alive at once in the lab's own losses. No torch.

It follows from the vocabulary and the kind of device alone, never from what happens to be free: sums depend
on where a slice ends, and a run that is resumed has to give the same weights to the bit.
"""

from __future__ import annotations

# values of a slice, and tokens that it has at least. A slice reads the whole output head, with its gradients
# three times: few tokens wait for the memory. Processor: at 50,257 words 512 tokens at once take half of the
# time that 128 take. GPU: 1 GB in fp32; below 1,000 tokens the head's bytes take longer than its products
VALUES = {"cpu": 1 << 23, "gpu": 1 << 28}
FEWEST = {"cpu": 512, "gpu": 1024}
SLICES_ALIVE = 4  # of a dual head, whose two heads and their mixture have logits of their own


def slice_rows(vocabulary: int, *, gpu: bool, alive: int = 1) -> int:
    """Returns the tokens of a slice.

    Args:
        vocabulary: words whose logits a process makes.
        gpu: whether the device has a memory of its own.
        alive: slices' worth of values that are needed together, where it is more than one.
    """
    device = "gpu" if gpu else "cpu"
    return max(FEWEST[device], VALUES[device] // vocabulary) // alive
