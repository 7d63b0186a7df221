"""Balance among the terms of a loss, on top of the weights that the user gives.

Terms differ in size by orders of magnitude and change at different rates. A balancer gives each a factor
without gradient; the factors are those of the last finished step, so that the loss does not depend on how a
step is cut into micro-batches and ranks.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from collegium.training.module import TrainedModule


class Balancer(TrainedModule):
    """Leaves all terms as they are, and is the base of those that do not.

    Args:
        names: Of the terms.

    Attributes:
        watches: True if `after_step` must be called with the terms' values of each step.
    """

    watches = False

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)

    def factors(self) -> dict[str, Tensor | float]:
        """Factor of each term, without gradient."""
        return dict.fromkeys(self.names, 1.0)

    def penalty(self, terms: Mapping[str, Tensor], share: Tensor) -> Tensor | float:
        """A summand of the loss; its value counts, and its gradient goes to the balancer alone.

        Args:
            terms: Value of each term of a micro-batch, in the loss with the user's weight but no factor.
            share: Part of the step that the micro-batch is.
        """
        return 0.0

    def after_step(self, means: Mapping[str, float]) -> None:
        """Take in the values of a finished step, over all ranks, of the terms that had any weight in it."""


class GradientFree(Balancer):
    """Makes all terms as large as the first of them that is there: cross-entropy, divergence, features.

    ModelOpt's balancer (`LogitsAndIntermediatesLossBalancer`; Minitron, arXiv:2407.14679, section 3.3, alpha =
    L_logits / L_intermediate without gradient): features are scaled to the divergence, then both together to
    the cross-entropy. The user's weights multiply what is balanced.
    """

    watches = True

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self.register_buffer("scales", torch.ones(len(self.names)))

    def factors(self) -> dict[str, Tensor | float]:
        """Those that the last step called for."""
        assert isinstance(self.scales, Tensor)
        return dict(zip(self.names, self.scales.unbind(), strict=True))

    def after_step(self, means: Mapping[str, float]) -> None:
        """Scale features to the divergence, and both to the cross-entropy."""
        assert isinstance(self.scales, Tensor)
        features = [name for name in self.names if name not in ("ce", "kd") and means.get(name, 0.0) > 0.0]
        ce = max(means.get("ce", 0.0), 0.0)
        kd = max(means.get("kd", 0.0), 0.0)
        lead = kd or ce
        scales = {name: lead / means[name] for name in features if lead > 0.0}
        if ce > 0.0 and kd > 0.0:
            together = kd + sum(scales[name] * means[name] for name in features)
            scales = {name: scale * ce / together for name, scale in scales.items()} | {"kd": ce / together}
        for index, name in enumerate(self.names):
            absent = 1.0 if name in ("ce", "kd") else float(self.scales[index])
            self.scales[index] = scales.get(name, absent)


class UncertaintyWeighting(Balancer):
    """Learns a log-variance s of each term: sum of exp(-s) L + s / 2 (Kendall et al., arXiv:1705.07115, eq. 10).

    The paper has exp(-s) / 2 for squared errors and exp(-s) for likelihoods; all terms are treated as the
    latter. The log-variances are trained with the student and dropped with the run.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self.log_variances = nn.Parameter(torch.zeros(len(self.names)))

    def factors(self) -> dict[str, Tensor | float]:
        """exp(-s)."""
        return dict(zip(self.names, self.log_variances.detach().neg().exp().unbind(), strict=True))

    def penalty(self, terms: Mapping[str, Tensor], share: Tensor) -> Tensor:
        """s / 2, and the gradient of exp(-s) L with respect to s at a value of 0."""
        total = 0.5 * share * self.log_variances.sum()
        for s, name in zip(self.log_variances.unbind(), self.names, strict=True):
            weighted = (-s).exp() * terms[name].detach()
            total = total + weighted - weighted.detach()
        return total
