"""Softmaxes and everything after them in at least float32, whatever the model's own type."""

import torch
from torch import Tensor


def full_precision(logits: Tensor) -> Tensor:
    """Convert to float32 at least: a softmax in half precision has a floor of 2e-2 nats at V = 248k."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
