"""What `DistillationTrainer` replaces of `transformers.Trainer` is listed, and still there as it was."""

import inspect
import itertools

import pytest
import transformers
from transformers import Trainer

from collegium.training.overrides import PRIVATE_OVERRIDES
from collegium.training.trainer import DistillationTrainer


def parameters_of(method):
    """Names and defaults as they stand in a signature, without `self` and types."""
    _, *parameters = inspect.signature(method).parameters.values()
    return ", ".join(
        str(parameter.replace(annotation=inspect.Parameter.empty)).replace(" ", "") for parameter in parameters
    )


def complaint(owner, name):
    """A sentence on one entry of the table; None if upstream and override are as it says."""
    listed = PRIVATE_OVERRIDES[name]
    if not hasattr(owner, name):
        return (
            f"transformers {transformers.__version__} has no Trainer.{name} any more, which DistillationTrainer "
            f"overrides because {listed.reason}. Find the call that took its place."
        )
    found = parameters_of(getattr(owner, name))
    if found != listed.parameters:
        return (
            f"transformers {transformers.__version__} changed Trainer.{name} from ({listed.parameters}) to "
            f"({found}). DistillationTrainer overrides it because {listed.reason}. Read what changed, adapt the "
            "override, then src/collegium/training/overrides.py."
        )
    return None


@pytest.mark.parametrize("name", PRIVATE_OVERRIDES)
def test_upstream_still_has_the_signature_that_is_overridden(name):
    sentence = complaint(Trainer, name)
    assert sentence is None, sentence
    assert parameters_of(getattr(DistillationTrainer, name)) == PRIVATE_OVERRIDES[name].parameters


def test_every_private_override_is_listed():
    ours = itertools.takewhile(lambda owner: owner is not Trainer, DistillationTrainer.__mro__)
    names = {name for owner in ours for name in vars(owner)}
    own = {name for name in names if name.startswith("_") and not name.startswith("__")}
    overridden = {name for name in own if hasattr(Trainer, name)}
    assert overridden == set(PRIVATE_OVERRIDES), (
        f"{sorted(overridden ^ set(PRIVATE_OVERRIDES))}: DistillationTrainer overrides a private method of "
        "transformers.Trainer without a line in src/collegium/training/overrides.py, or the line has no override"
    )


def test_a_change_upstream_is_reported_in_a_sentence():
    class Changed:
        def _get_grad_norm(self, model, norm_type=2.0): ...

    assert "from (model, grad_norm=None) to (model, norm_type=2.0)" in complaint(Changed, "_get_grad_norm")
    assert "has no Trainer._save any more" in complaint(Changed, "_save")
