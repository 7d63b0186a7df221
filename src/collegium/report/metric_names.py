"""Names of all metrics, spelt here and nowhere else: logs, tables of sums, `evaluation.json` and the console.

A name is a path. Figures of a single teacher are below `teacher/NAME/`, of a rule below `rule/NAME/`, so no name
that a recipe may give meets a metric that is there anyway. Logs put `train/` or `eval/` before a name.
"""

from collections.abc import Mapping
from typing import Final, TypeVar


T = TypeVar("T")

# A student on held-out text.
NLL: Final = "nll"
PERPLEXITY: Final = "perplexity"
BITS_PER_BYTE: Final = "bits_per_byte"
ACCURACY: Final = "accuracy"
ECE: Final = "ece"
KL_COMMON: Final = "kl/common"
KL_OWN: Final = "kl/own"
ENTROPY_OWN: Final = "entropy/own"
AGREEMENT: Final = "agreement"
KL_EXPERT: Final = "kl/expert"
"""In the paper's results: the KL to the teacher that is the expert of the text."""
CONFIDENCE_GAPS: Final = "confidence_gaps"
CONFIDENCE_COUNTS: Final = "confidence_counts"

# Teachers on held-out text, together.
CONFLICT: Final = "conflict"
EFFECTIVE_TEACHERS: Final = "effective_teachers"
ORACLE_DOCUMENT: Final = "oracle/document"
ORACLE_TOKEN: Final = "oracle/token"
PAIRS: Final = "pairs"
PAIR_COUNTS: Final = "pair_counts"

# One teacher, below `teacher/NAME/`.
KL: Final = "kl"
WEIGHT: Final = "weight"
ENTROPY: Final = "entropy"
WEIGHT_NLL: Final = "weight_nll"
NLL_FILLED: Final = "nll_filled"
"""Its loss, with the mean of the others where it says nothing: for paired differences alone, never shown."""
WEIGHT_CROSS_ENTROPY: Final = "weight_cross_entropy"
HEARD: Final = "heard"
EXACT_FRACTION: Final = "exact_fraction"
APPROXIMATE_FRACTION: Final = "approximate_fraction"
INVALID_FRACTION: Final = "invalid_fraction"

# Terms of the loss, and what goes with them.
LOSS: Final = "loss"
KD_LOSS: Final = "kd_loss"
CROSS_ENTROPY: Final = "cross_entropy"
KD_COVERAGE: Final = "kd_coverage"
TARGET_ENTROPY: Final = "target_entropy"
FEATURE_LOSS: Final = "feature_loss"
CROSS_TOKENIZER_LOSS: Final = "cross_tokenizer_loss"
ROUTER_LOSS: Final = "router_loss"
STUDENT_UNCERTAINTY: Final = "student_uncertainty"
COMPARED: Final = "compared"
MATCHED: Final = "matched"
UNMATCHED: Final = "unmatched"
PROJECTED_ACCURACY: Final = "projected_accuracy"
PROJECTED_CROSS_ENTROPY: Final = "projected_cross_entropy"

# Text that the student writes itself.
ON_POLICY_BLOCKS: Final = "on_policy_blocks"
ROLLOUT_TOKENS: Final = "rollout_tokens"
REWARD: Final = "reward"
IMPORTANCE_WEIGHT: Final = "importance_weight"

# Text that the training has read so far; see `read`.
READ: Final = ("blocks", "tokens", "predicted")
"""Blocks, their tokens without padding, and positions that predict one."""

# What `transformers.Trainer` logs by itself.
STEP: Final = "step"
EPOCH: Final = "epoch"
TRAIN_RUNTIME: Final = "train_runtime"
TRAIN_LOSS: Final = "train_loss"
OF_THE_WHOLE_TRAINING: Final = (
    TRAIN_RUNTIME,
    "samples_per_second",
    "steps_per_second",
    "total_flos",
    "train/train_loss",
    EPOCH,
)
"""Endings of what is logged of the whole training, or of the clock."""

FUSED: Final = "fused"
"""The rule that the recipe fuses teachers by, in measurements of a finished run."""

TARGET: Final = "target"
"""The same where proportions of domains follow it."""

_TEACHER: Final = "teacher/"
_READ: Final = "read/"


def of_teacher(name: str, metric: str) -> str:
    """A metric of one teacher, such as `teacher/NAME/nll`."""
    return f"{_TEACHER}{name}/{metric}"


def heard_with(metric: str) -> str | None:
    """The count by which a teacher's sum is divided, which holds only positions where the teacher speaks."""
    name, _, last = metric.removeprefix(_TEACHER).rpartition("/")
    is_of_heard = metric.startswith(_TEACHER) and last in (NLL, WEIGHT_NLL, ENTROPY, KL)
    return of_teacher(name, HEARD) if is_of_heard else None


def by_teacher(values: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """Values of metrics of single teachers, by teacher and then by the metric's own name."""
    found: dict[str, dict[str, T]] = {}
    for key, value in values.items():
        if key.startswith(_TEACHER):
            name, _, metric = key.removeprefix(_TEACHER).rpartition("/")
            found.setdefault(name, {})[metric] = value
    return found


def kl_of_earlier_results(teacher: str) -> str:
    """The KL to a teacher in results of runs that were made before it had a namespace."""
    return f"kl/{teacher}"


def is_kl(metric: str) -> bool:
    """True for a divergence between a student and others."""
    return metric in (KL_COMMON, KL_OWN) or (metric.startswith(_TEACHER) and metric.endswith(f"/{KL}"))


def rule_nll(rule: str) -> str:
    """Loss of a fused target."""
    return f"rule/{rule}/{NLL}"


def by_rule(values: Mapping[str, T]) -> dict[str, T]:
    """Values of the losses of fused targets, by rule."""
    prefix = "rule/"
    suffix = f"/{NLL}"
    return {
        key.removeprefix(prefix).removesuffix(suffix): value
        for key, value in values.items()
        if key.startswith(prefix) and key.endswith(suffix)
    }


def certainty(stretch: str, part: str) -> str:
    """A part of how often certain teachers are right over a stretch of text: `right`, `chance` or `count`."""
    return f"certain/{stretch}/{part}"


def feature_term(index: int) -> str:
    """A term on inner states, by its place in the recipe."""
    return f"feature/{index}"


def cross_tokenizer_term(index: int) -> str:
    """A term across vocabularies, by its place in the recipe."""
    return f"cross_tokenizer/{index}"


def below(path: str, metric: str) -> str:
    """A metric of part of something, such as of one teacher in one term."""
    return f"{path}/{metric}"


def share_of_domain(domain: str) -> str:
    """A domain's share of the next text."""
    return f"mixing/{domain}"


def perplexity_of_domain(domain: str, who: str) -> str:
    """The perplexity of `student` or `target` that a domain's share follows."""
    return f"mixing/{domain}/{who}_{PERPLEXITY}"


def read(part: str, domain: str | None = None) -> str:
    """The count of a part of `READ`, in all or of one domain."""
    return f"{_READ}{part}" if domain is None else f"{_READ}{domain}/{part}"


def is_read(logged: str) -> bool:
    """True for such a count as the log has it."""
    return logged.startswith(while_training(_READ))


def while_training(metric: str) -> str:
    """A metric of training text as the log has it."""
    return f"train/{metric}"


def while_evaluating(metric: str) -> str:
    """A metric of held-out text as the log has it: the mean over domains."""
    return f"eval/{metric}"


def evaluated(prefix: str, metric: str, domain: str | None = None) -> str:
    """A metric as `transformers.Trainer.evaluate` returns it; the log writes `eval_` as `eval/`.

    Args:
        prefix: Of the evaluation, such as `eval`.
        metric: Its name.
        domain: Whose figure it is; the mean over domains if None.
    """
    return f"{prefix}_{metric}" if domain is None else f"{prefix}_{domain}/{metric}"
