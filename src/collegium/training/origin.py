"""What a run is made from: all that decides its result, as plain values by name, kept in each of its checkpoints.

A step's number means something only together with the text, the order and the models that led to it. So a run
goes on only where each value is the one that it began with; what may change instead is in `docs/resuming.md`.
Weights and text are known by digests of their content, wherever they came from.
"""

import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from collegium.alignment.tokenizer_match import tokenizer_fingerprint
from collegium.base.errors import DataError
from collegium.base.terminal import say
from collegium.models.weight_digest import student_digest
from collegium.signals.contracts import Teacher
from collegium.training.checkpoint_files import has_json, read_json
from collegium.training.description import settings_of
from collegium.training.optimizer_state import kind_of


ORIGIN = "origin"
"""Name of the file in a checkpoint, without its ending."""

SAMPLES_PER_STEP = "samples a step"

_ARGUMENTS = (
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "optim",
    "optim_args",
    "metric_for_best_model",
    "greater_is_better",
    "bf16",
    "fp16",
    "neftune_noise_alpha",
)
"""Arguments that decide the result; the seed does by the order of the samples alone."""

_PACKAGES = ("collegium", "torch", "transformers", "peft")

_OF_ADAPTERS_ONLY = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"}
"""Keys of an adapter's configuration that decide no number."""

_SHOWN = 5
"""Differences that one error lists."""


@dataclass(frozen=True)
class Split:
    """How the samples of a step are divided; any split of the same number gives the same steps.

    Attributes:
        processes: Processes that train together.
        batch_size: Samples of one forward pass.
        accumulation: Forward passes of a step in each process.
    """

    processes: int
    batch_size: int
    accumulation: int

    @property
    def samples_per_step(self) -> int:
        """Samples of a step, over all processes."""
        return self.processes * self.batch_size * self.accumulation


@dataclass(frozen=True)
class Origin:
    """What a run began with.

    Attributes:
        facts: All that must stay, by name, in the order in which it is compared.
        split: May change.
        versions: May change too, at the price of last digits.
    """

    facts: Mapping[str, Any]
    split: Split
    versions: Mapping[str, str]

    @classmethod
    def of(
        cls, args: TrainingArguments, *, processes: int, facts: Mapping[str, Any], given: Mapping[str, Any]
    ) -> "Origin":
        """From the arguments of a trainer, what else it knows of itself, and what takes the arguments' place."""
        split = Split(processes, args.per_device_train_batch_size, args.gradient_accumulation_steps)
        seed = args.seed if args.data_seed is None else args.data_seed
        own = {SAMPLES_PER_STEP: split.samples_per_step, "seed of the order": seed, **_deciding(args)}
        versions = {package: version(package) for package in _PACKAGES}
        return cls(_as_json({**facts, **own, **given}), split, versions)

    def document(self, step: int) -> dict[str, Any]:
        """As JSON, with the position of the checkpoint in samples."""
        samples = step * self.split.samples_per_step
        return {"samples": samples, **asdict(self)}

    def require_same(self, checkpoint: Path) -> None:
        """Compare with what a checkpoint was made from.

        Raises:
            DataError: something is another one now; says both values and what to do.
        """
        if not has_json(checkpoint, ORIGIN):
            say(
                f"{checkpoint}: is of an earlier version, which did not note what it was made from: that text, "
                "tokenizer, teachers, student and settings are the same is not known"
            )
            return
        then = read_json(checkpoint, ORIGIN)
        same_version = then["versions"].get("collegium") == self.versions["collegium"]
        changed = _differences(then["facts"], self.facts, names_may_differ=not same_version)
        if changed:
            raise DataError(f"{checkpoint}: cannot be resumed: {_sentence(changed)}{self._hint(then['facts'])}")
        for name, before in then["versions"].items():
            now = self.versions.get(name)
            if before != now:
                say(f"{checkpoint}: {name} was {before} and is {now} now; last digits may differ")

    def _hint(self, then: Mapping[str, Any]) -> str:
        samples = then.get(SAMPLES_PER_STEP)
        if samples == self.split.samples_per_step:
            return ""
        split = self.split
        return (
            f". A step is now of {split.processes} processes x {split.batch_size} samples x {split.accumulation} "
            f"accumulated: choose them so that their product is {samples}, by per_device_train_batch_size and "
            "gradient_accumulation_steps (training.batch_size and training.gradient_accumulation in a recipe)"
        )


def facts_of(
    student: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    teachers: Sequence[Teacher],
    text: str | None,
    parts: Mapping[str, object],
) -> dict[str, Any]:
    """What is compared of the objects that a training is made of.

    Args:
        student: Before training. Adapters that are trained count by their settings: their weights, drawn at
            random, are in the checkpoint.
        tokenizer: The student's.
        teachers: Each by its name.
        text: Digest of the training blocks.
        parts: Other objects by name, whose settings count.
    """
    facts = {"text": text, "tokenizer": tokenizer_fingerprint(tokenizer)}
    for teacher in teachers:
        facts[f"teacher {teacher.name!r}"] = teacher.fingerprint
        facts |= settings_of(dict(teacher.settings), f"teacher {teacher.name!r}")
    adapters = student.peft_config if isinstance(student, PeftModel) else {}
    prefix = getattr(student.base_model, "prefix", None) if adapters else None
    facts["student before training"] = student_digest(student, without=prefix)
    for name, config in adapters.items():
        kept = {key: value for key, value in config.to_dict().items() if key not in _OF_ADAPTERS_ONLY}
        facts |= settings_of(kept, f"adapter {name!r}")
    for name, part in parts.items():
        facts |= settings_of(part, name)
    return facts


def given_parts(optimizer: Optimizer | None, scheduler: LRScheduler | None) -> dict[str, Any]:
    """Settings of an optimizer and a scheduler that were made by the caller, in place of the arguments'."""
    facts: dict[str, Any] = {}
    if optimizer is not None:
        facts["optim"] = kind_of(optimizer)
        facts["number of parameter groups"] = len(optimizer.param_groups)
        for number, group in enumerate(optimizer.param_groups):
            settings = {key: value for key, value in group.items() if key not in ("params", "initial_lr")}
            facts |= settings_of(settings, f"optimizer group {number}")
    if scheduler is not None:
        facts["lr_scheduler_type"] = f"{type(scheduler).__module__}.{type(scheduler).__qualname__}"
    return facts


def _as_json(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The same as it is read again: lists for tuples, text for what JSON does not know."""
    return dict(json.loads(json.dumps(facts, default=str)))


def _deciding(args: TrainingArguments) -> dict[str, Any]:
    values = {name: getattr(args, name) for name in _ARGUMENTS}
    return {name: value.value if isinstance(value, enum.Enum) else value for name, value in values.items()}


def _differences(then: Mapping[str, Any], now: Mapping[str, Any], *, names_may_differ: bool) -> list[str]:
    """In words, each value that is another one; another version of collegium may know other names."""
    names = [name for name in now if name in then] if names_may_differ else [*now, *(then.keys() - now.keys())]
    changed = {name: None for name in names if then.get(name, ...) != now.get(name, ...)}
    # Where a whole object is another one, its parts are not worth a word.
    whole = [name for name in changed if not any(name.startswith(f"{other}.") for other in changed)]
    return [f"{name} was {_shown(then, name)} and is {_shown(now, name)} now" for name in whole]


def _shown(facts: Mapping[str, Any], name: str) -> str:
    """A value; of an object in its place the kind."""
    if name in facts:
        return "none" if facts[name] is None else str(facts[name])
    is_there = any(other.startswith(f"{name}.") for other in facts)
    return str(facts.get(f"{name}.kind", "set")) if is_there else "absent"


def _sentence(changed: Sequence[str]) -> str:
    more = f", and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    put_back = "put it back" if len(changed) == 1 else "put them back"
    return f"{'; '.join(changed[:_SHOWN])}{more}: {put_back}, or start again in another output_dir"
