"""Positions whose logits are alive at once, by the size of a vocabulary and the kind of device."""

import torch


BUFFER_BYTES = {"cpu": 24 * 2**20, "cuda": 128 * 2**20}
"""Size of one [n V] buffer on each kind of device, from which the chunk size follows.

On a CPU the C library keeps freed buffers below 32 MB; above, every one is mapped and cleared again,
which cost a third of the time of a measurement. A GPU wants larger products.
"""

MIN_CHUNK_SIZE = 128
"""Below, a product waits for the head's weights: with 64 positions each takes 1.2 times as long."""


def default_chunk_size(vocab_size: int, device: torch.device) -> int:
    """Positions whose float32 logits fill one buffer of `BUFFER_BYTES`; at least `MIN_CHUNK_SIZE`."""
    return max(MIN_CHUNK_SIZE, BUFFER_BYTES.get(device.type, BUFFER_BYTES["cuda"]) // (4 * vocab_size))
