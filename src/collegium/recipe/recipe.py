"""The whole user-facing configuration: what a recipe may say. No torch here.

Sections are frozen and refuse unknown keys; the text under a field documents it. `collegium.assembly` turns
sections into plain arguments, `collegium.recipe.file` reads and writes them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from collegium.base.digest import json_digest
from collegium.recipe.methods import with_method
from collegium.recipe.sections.base import DESCRIBING, Dtype, Many, Name, Section, domains_differ, names_differ
from collegium.recipe.sections.evaluation import EvaluationSection
from collegium.recipe.sections.models import (
    CacheSection,
    CalibrationSection,
    ConfigStudentSection,
    ContinuedStudentSection,
    LayerDropStudentSection,
    LocalTeacherSection,
    PretrainedStudentSection,
    PrunedStudentSection,
    TeacherSection,
)
from collegium.recipe.sections.objective import ObjectiveSection
from collegium.recipe.sections.on_policy import OnPolicySection
from collegium.recipe.sections.sources import Source, TaskSourceSection
from collegium.recipe.sections.tasks import require_unseen


_BY_KIND = Field(discriminator="kind")

MOST = 10**9
"""Of steps; more is a slip of the finger."""

MOST_BLOCKS = 2**16
"""Of a micro-batch."""

MOST_TOKENS = 2**26
"""Of a micro-batch; its numbers alone would take 2 GB."""


def _trackers(given: Any) -> Any:
    """One name may stand for a list of it, and `none` for an empty one."""
    if given in ("none", ["none"]):
        return ()
    return (given,) if isinstance(given, str) else given


class MixingSection(Section):
    """Proportions in which domains are trained on."""

    kind: Literal["natural", "ddk"] = "natural"
    """`natural`: text as it comes; `ddk`: more of domains where the student lags (arXiv:2407.16154)."""
    every: int = Field(default=1000, ge=1)
    """Optimizer steps between measurements, each with proportions of its own."""
    alpha: float = Field(default=0.5, ge=0, le=1)
    """Share of the proportions that follows the discrepancy; the rest is spread evenly."""
    max_ratio: float = Field(default=5.0, gt=0)
    """Larger ratios of the student's perplexity to the target's count as this; they enter as exp(ratio)."""
    blocks: int = Field(default=32, ge=1)
    """Training blocks of each domain that are set aside to be measured; at most a tenth of a domain."""

    @model_validator(mode="before")
    @classmethod
    def _kind_alone(cls, given: Any) -> Any:
        return {"kind": given} if isinstance(given, str) else given


class DataSection(Section):
    """Text, from sources to packed blocks on disk."""

    sources: Annotated[Many[Source], Field(min_length=1), AfterValidator(domains_differ)]
    """One per domain."""
    directory: str | None = None
    """Folder of the prepared text; by default a folder of the cache named by its fingerprint."""
    block_size: int = Field(default=1024, ge=2, le=2**20)
    """Tokens of a block."""
    held_out_documents: int = Field(default=64, ge=1)
    """Documents of each source that are split off before anything else."""
    add_bos: bool | Literal["auto"] = "auto"
    """Begin documents with the tokenizer's BOS; `auto` does what the tokenizer does by itself."""
    add_eos: bool = False
    """End documents with the tokenizer's EOS."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Stop when more than this share of documents cannot be read at all."""
    near_duplicate_threshold: float = Field(default=0.5, gt=0, le=1)
    """Drop training documents that share this part of their 13-grams with held-out text."""
    blocks_per_shard: int = Field(default=4096, ge=1)
    """Blocks of one Arrow file, the unit of resuming."""
    mixing: MixingSection = MixingSection()
    """Proportions of domains: a section with `kind`, or the kind alone."""


class TrainingSection(Section):
    """The optimizer's loop."""

    max_steps: int | None = Field(default=None, ge=1, le=MOST)
    """Optimizer steps; or give num_epochs."""
    num_epochs: float | None = Field(default=None, gt=0, le=100_000)
    """Passes over the prepared text."""
    batch_size: int = Field(default=8, ge=1, le=MOST_BLOCKS)
    """Blocks a device and micro-batch."""
    gradient_accumulation: int = Field(default=1, ge=1, le=MOST_BLOCKS)
    """Micro-batches of one optimizer step."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Peak learning rate of AdamW."""
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "cosine"
    """Shape after warm-up."""
    warmup_steps: int = Field(default=0, ge=0, le=MOST)
    """Steps from 0 to the peak."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay of matrices; norms and biases have none."""
    adam_beta2: float = Field(default=0.95, gt=0, lt=1)
    """Second moment's decay."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradient clipping; 0 is none."""
    learn_prompts: bool = False
    """Learn the tokens of prompts too, of which a small student may need more than the answers have; measurements
    leave them out all the same."""
    precision: Dtype = "float32"
    """Type of the student's matrix products (autocast); the loss is always in float32."""
    chunk_size: int | None = Field(default=None, ge=1, le=2**24)
    """Positions whose logits are alive at once; by default what fits in 24 MB a buffer."""
    gradient_checkpointing: bool = False
    """Recompute the student's activations in backward."""
    save_every: int = Field(default=500, ge=1, le=MOST)
    """Steps between checkpoints; there is always one at the end."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints to keep."""
    evaluate_every: int | None = Field(default=None, ge=1, le=MOST)
    """Steps between evaluations on held-out text."""
    log_every: int = Field(default=1, ge=1, le=MOST)
    """Steps between log lines."""
    num_workers: int | None = Field(default=None, ge=0, le=256)
    """Data loader processes, which read caches ahead; by default 2 where a GPU would wait for a cache, else 0."""
    report_to: Annotated[Many[str], BeforeValidator(_trackers)] = ()
    """Trackers, as in transformers: wandb, tensorboard, trackio, ...; one, a list, or none."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.max_steps is None) == (self.num_epochs is None):
            raise ValueError("give either max_steps or num_epochs")
        return self


class Recipe(Section):
    """One run."""

    name: Name
    """Name of the run."""
    output_dir: str | None = None
    """Run folder; `runs/NAME` if not given."""
    method: str | None = None
    """A method of the literature, whose values stand wherever this recipe says nothing: see `docs/methods`."""
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Seed of initial weights, order and dropout."""
    student: Annotated[
        PretrainedStudentSection
        | ConfigStudentSection
        | LayerDropStudentSection
        | PrunedStudentSection
        | ContinuedStudentSection,
        _BY_KIND,
    ]
    """The model that is trained."""
    teachers: Annotated[Many[TeacherSection], AfterValidator(names_differ)] = ()
    """The models it learns from; none for cross-entropy alone."""
    cache: CacheSection = CacheSection()
    """Caches of teachers on disk."""
    calibration: CalibrationSection = CalibrationSection()
    """Text on which temperatures are fitted."""
    data: DataSection
    """The text."""
    objective: ObjectiveSection = ObjectiveSection()
    """The loss."""
    on_policy: OnPolicySection | None = None
    """Text that the student writes itself, judged by its teachers; none if not given."""
    training: TrainingSection
    """The optimizer's loop."""
    evaluation: EvaluationSection = EvaluationSection()
    """The measurement."""

    @model_validator(mode="before")
    @classmethod
    def _filled_by_method(cls, given: Any) -> Any:
        return with_method(given) if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _teachers_fit_objective(self) -> Self:
        objective = self.objective
        names = {teacher.name for teacher in self.teachers}
        if not names and objective.needs_teachers:
            raise ValueError(
                "no teachers, but objective.kd_weight, feature_weight or cross_tokenizer_weight is above 0: "
                "add teachers, or set all of them to 0 for cross-entropy alone"
            )
        tables: dict[str, Mapping[str, Any] | None] = {"objective.weighting.values": objective.weighting.values}
        for key, feature in objective.named_features.items():
            tables[f"{key}.importance"] = feature.importance
            if feature.kind == "relations" and isinstance(feature.layer, dict):
                tables[f"{key}.layer"] = feature.layer
        tables |= {f"{key}.importance": term.importance for key, term in objective.named_cross_tokenizer.items()}
        for key, table in tables.items():
            if table is not None and set(table) != names:
                raise ValueError(
                    f"{key} names {sorted(table)}, the teachers are {sorted(names)}: give one for each"
                )
        if objective.dynamic is not None and objective.dynamic.adoption is not None and len(self.teachers) != 2:
            raise ValueError(
                f"objective.dynamic.adoption weighs two teachers, the smaller first, but there are {len(names)}"
            )
        return self

    @model_validator(mode="after")
    def _caches_hold_what_is_read(self) -> Self:
        objective = self.objective
        features = objective.named_features if objective.matches_features else {}
        weights = dict.fromkeys(features, "feature_weight")
        weights |= dict.fromkeys(objective.named_cross_tokenizer, "cross_tokenizer_weight")
        for teacher in self.teachers:
            if not teacher.is_cached:
                continue
            mode = self.cache.mode if teacher.kind == "local" else None
            for key, term in (features | objective.named_cross_tokenizer).items():
                if lacking := term.lacks(mode):
                    raise ValueError(
                        f"teacher {teacher.name!r} is cached, but {key} (kind: {term.kind}) reads "
                        f"{lacking[0]}: set {lacking[1]}, run the teacher (kind: local, cached: false), or set "
                        f"objective.{weights[key]} to 0"
                    )
        return self

    @model_validator(mode="after")
    def _routes_lead_somewhere(self) -> Self:
        routes = self.objective.weighting.domains
        if routes is None:
            return self
        if set(routes) != set(self.domains):
            raise ValueError(
                f"objective.weighting.domains names {sorted(routes)}, the sources of data are "
                f"{list(self.domains)}: give a teacher for each"
            )
        names = sorted(teacher.name for teacher in self.teachers)
        unknown = sorted(set(routes.values()) - set(names))
        if unknown:
            raise ValueError(f"objective.weighting.domains leads to {unknown}, the teachers are {names}")
        return self

    @model_validator(mode="after")
    def _a_batch_fits_into_memory(self) -> Self:
        tokens = self.training.batch_size * self.data.block_size
        if tokens > MOST_TOKENS:
            raise ValueError(
                f"training.batch_size x data.block_size is {tokens:,} tokens in one micro-batch, over "
                f"{MOST_TOKENS:,}: give a smaller batch_size, and a larger gradient_accumulation if a step is to "
                "have as many"
            )
        return self

    @model_validator(mode="after")
    def _tasks_are_unseen(self) -> Self:
        sources = [source for source in self.data.sources if isinstance(source, TaskSourceSection)]
        require_unseen(sources, self.evaluation.tasks)
        return self

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the sources, in the order in which batches number them."""
        return tuple(sorted(source.name for source in self.data.sources))

    @property
    def local_teachers(self) -> tuple[LocalTeacherSection, ...]:
        """The teachers whose models are named, whether they run in training or are cached."""
        return tuple(self.placed_local_teachers.values())

    @property
    def placed_local_teachers(self) -> dict[int, LocalTeacherSection]:
        """The same, by their places in `teachers`, with which overrides name them."""
        return {i: one for i, one in enumerate(self.teachers) if isinstance(one, LocalTeacherSection)}

    @property
    def teachers_to_cache(self) -> tuple[LocalTeacherSection, ...]:
        """The teachers whose caches `collegium cache` makes."""
        return tuple(teacher for teacher in self.local_teachers if teacher.cached)

    @model_validator(mode="after")
    def _domains_are_sources(self) -> Self:
        names = [source.name for source in self.data.sources]
        for teacher in self.teachers:
            own = teacher.domains or names
            if unknown := [name for name in own if name not in names]:
                raise ValueError(
                    f"teacher {teacher.name!r} is for domains {unknown}, the sources are {names}: name these"
                )
            if teacher.target_domain not in (None, *own):
                raise ValueError(
                    f"teacher {teacher.name!r} has target_domain {teacher.target_domain!r}, "
                    f"its domains are {list(own)}: give one of these"
                )
        return self

    @model_validator(mode="after")
    def _on_policy_can_be_judged(self) -> Self:
        section = self.on_policy
        objective = self.objective
        if section is None:
            return self
        stored = [t.name for t in self.teachers if t.is_cached]
        if stored:
            raise ValueError(
                f"on_policy: teacher {stored[0]!r} is read from a cache, which knows nothing of what the student "
                "will write: run the teacher (`kind: local`, `cached: false`), or leave on_policy out"
            )
        restricted = [teacher.name for teacher in self.teachers if teacher.domains]
        if section.teacher_share > 0 and restricted:
            raise ValueError(
                f"on_policy.teacher_share has all teachers write, but teacher {restricted[0]!r} is asked in its "
                "domains only: set teacher_share to 0, or leave out teachers[].domains"
            )
        if not objective.distils:
            raise ValueError("on_policy has teachers judge the student's text: set objective.kd_weight above 0")
        if section.loss == "policy_gradient" and objective.label_smoothing > 0:
            raise ValueError(
                "objective.label_smoothing would spread the policy gradient over the vocabulary: set it to 0, "
                "or on_policy.loss to divergence"
            )
        for key, clashes in {
            "weighting": objective.weighting.kind in ("min_norm", "router"),
            "dynamic": objective.dynamic is not None,
            "balance": objective.balance == "uncertainty",
            "conflict_limit": objective.conflict_limit is not None,
            "cross_tokenizer": objective.compares_vocabularies,
        }.items():
            if clashes:
                raise ValueError(
                    f"on_policy weighs teachers and positions of text that is not written yet by itself, which "
                    f"objective.{key} cannot: leave it out, or on_policy"
                )
        length = section.prompt_length + section.max_new_tokens
        if length > self.data.block_size:
            raise ValueError(
                f"on_policy.prompt_length + max_new_tokens is {length}, longer than data.block_size "
                f"{self.data.block_size}: shorten one of them, or take larger blocks"
            )
        return self

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return Path(self.output_dir or f"runs/{self.name}")

    @property
    def deciding(self) -> dict[str, Any]:
        """All that decides the result: not names and folders, nor how training is watched and measured."""
        watching = {"num_workers", "report_to", "log_every", "save_every", "keep_checkpoints", "evaluate_every"}
        neutral: Any = {
            "student": DESCRIBING,
            "teachers": {"__all__": DESCRIBING},
            "data": {"directory": True, "sources": {"__all__": DESCRIBING}},
            "cache": {"directory", "batch_size", "rows_per_shard"},
            "training": watching | {"chunk_size"},
        }
        neutral |= dict.fromkeys(("name", "output_dir", "evaluation"), True)
        return self.model_dump(mode="json", exclude=neutral)

    @property
    def fingerprint(self) -> str:
        """Identity of what decides the result."""
        return json_digest(self.deciding)[:16]
