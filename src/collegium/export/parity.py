"""Measures how far an exported model is from its original, over the same tokens.

Top-1 agreement says how often both would write the same token; the mean KL says how far the distributions
are apart where they do. Both models read each segment of held-out text from its beginning, by themselves:
programs outside of this one know no packed blocks. Cost: one forward pass of each over a few thousand tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from collegium.base.progress import Phase
from collegium.losses.divergences import forward_kl
from collegium.losses.precision import full_precision


Logits = Callable[[Sequence[int]], Tensor]
"""Reads tokens from the beginning of a text; logits [S V] at each of them."""


@dataclass(frozen=True)
class Parity:
    """Figures over positions.

    Attributes:
        top1_agreement: Share of positions at which both have the same most probable token.
        mean_kl: Mean of KL(original || exported), in nats.
        max_kl: The largest of them.
        positions: Number of positions.
        segments: Number of stretches of text that were read.
    """

    top1_agreement: float
    mean_kl: float
    max_kl: float
    positions: int
    segments: int

    def figures(self) -> dict[str, float | int]:
        """All of it, for JSON."""
        return asdict(self)


def parity_figures(
    original_logits: Float[Tensor, "n V"], exported_logits: Float[Tensor, "n V"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """At each position: 1 where the most probable tokens are the same, else 0; and KL(original || exported).

    Where several tokens share the first place, the one with the smallest id counts. Figures of logits that are
    not finite are NaN.
    """
    original = full_precision(original_logits).log_softmax(-1)
    exported = full_precision(exported_logits).log_softmax(-1)
    finite = original_logits.isfinite().all(-1) & exported_logits.isfinite().all(-1)
    nan = torch.full_like(original[:, 0], torch.nan)
    same = (original.argmax(-1) == exported.argmax(-1)).to(original.dtype)
    kl = forward_kl(exported, original).clamp_min(0.0)  # rounding leaves -1e-10 where both are the same
    return torch.where(finite, same, nan), torch.where(finite, kl, nan)


@torch.no_grad()
def measure_parity(
    segments: Sequence[Sequence[int]], original: Logits, exported: Logits, *, vocab_size: int
) -> Parity:
    """Both models over all segments.

    Args:
        segments: Token ids, each read from its beginning; of two tokens or more.
        original: The model that was exported.
        exported: What another program reads of it.
        vocab_size: Logits beyond it are padding and cut.
    """
    parts = []
    total = sum(map(len, segments))
    with Phase("comparing it with the student on held-out text", total=total, unit="tokens") as phase:
        for tokens in segments:
            # The last token predicts nothing that is in the text.
            pair = [model(tokens)[: len(tokens) - 1, :vocab_size] for model in (original, exported)]
            parts.append(torch.stack(parity_figures(*pair)).double())
            phase.advance(len(tokens))
    same, kl = torch.cat(parts, dim=1)
    return Parity(
        top1_agreement=same.mean().item(),
        mean_kl=kl.mean().item(),
        max_kl=kl.max().item(),
        positions=len(kl),
        segments=len(segments),
    )
