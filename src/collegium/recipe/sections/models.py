"""Sections of a recipe that say what models there are: teachers, their caches, the student. No torch here."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from collegium.recipe.sections.base import Dtype, Licence, Many, Name, Section, can_be_trained


class ModelSection(Section):
    """Source of a model and the type that holds it."""

    model: str
    """Hub id, local folder, `.gguf` file, or `package:NAME/FILE` inside an installed package."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    trust_remote_code: bool = False
    """Run code that the model's repository ships. Needs `revision` as a full commit hash."""
    dtype: Dtype = "float32"
    """Type of the weights; `auto` is bfloat16 where the device computes in it natively, else float32."""

    @model_validator(mode="after")
    def _remote_code_is_pinned(self) -> Self:
        if self.trust_remote_code and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise ValueError(
                f"trust_remote_code runs code of {self.model!r} on this machine: "
                f"pin `revision` to a full 40-digit commit hash, not {self.revision!r}"
            )
        return self


Temperature = Annotated[float, Field(gt=0)] | Literal["fit"]


class AlignmentSection(Section):
    """Alignment of a teacher whose tokenizer is not the student's."""

    carry: Literal["prefix", "min_ed"] = "prefix"
    """Way in which a token's probability finds its student token: `prefix`: the first that its bytes are cut into.
    `min_ed`: the one spelt most alike, and the text's own next token wherever not one token stands for one."""
    approximate: Literal["none", "split", "inside"] = "inside"
    """For `prefix`, besides what is exact: nothing; where the student's next token is several of the teacher's
    (`split`); those and places inside a token of the teacher's (`inside`). Elsewhere others share its weight."""
    max_unknown: float = Field(default=0.2, ge=0, le=1)
    """`inside`: share of what the teacher may have written that ends at the place, so that nothing is known of
    what follows; above, nothing is carried."""
    entropy: Literal["carried", "span"] = "carried"
    """What sets its weight: the entropy of the carried distribution, or the teacher's own over the tokens of a
    span for each of the student's tokens there, which makes its logits twice."""


class TeachingSection(Section):
    """Common to all teachers."""

    name: Name
    """Name in metrics and tables."""
    domains: Annotated[Many[Name], Field(min_length=1)] | None = None
    """Sources that this teacher is asked about; elsewhere the others share its weight. All if not given."""
    weight_temperature: Temperature = 1.0
    """Divides the logits before the entropy that sets this teacher's weight is taken; `fit`: the one at which
    it is as certain as it is right on a mixture of its domains."""
    target_temperature: Temperature = 1.0
    """Divides the logits of the distribution that is mixed; `fit`: likewise, on `target_domain`."""
    target_domain: Name | None = None
    """Source on which `target_temperature: fit` is fitted: where this teacher is trusted; all if not given."""
    alignment: AlignmentSection = AlignmentSection()
    """Alignment of a teacher with another tokenizer; what each key does is in docs/tokenizers.md."""
    licence: Licence | None = None
    """Its licence, an adapter's too, for the model card; what their own cards on disk say if not given."""

    @model_validator(mode="after")
    def _target_domain_is_used(self) -> Self:
        if self.target_domain is not None and self.target_temperature != "fit":
            raise ValueError("`target_domain` is for `target_temperature: fit` only; set that, or leave it out")
        return self

    @property
    def fitted(self) -> tuple[str, ...]:
        """The temperatures that are to be fitted."""
        return tuple(key for key in ("weight_temperature", "target_temperature") if getattr(self, key) == "fit")

    @property
    def at_one(self) -> Self:
        """The same teacher at temperature 1 for both."""
        plain = {"weight_temperature": 1.0, "target_temperature": 1.0, "target_domain": None}
        return self.model_copy(update=plain)

    @property
    def temperatures(self) -> tuple[float, float]:
        """Temperatures of weight and target, once both are numbers."""
        weight = self.weight_temperature
        target = self.target_temperature
        assert weight != "fit" and target != "fit", "see assembly.calibration"
        return weight, target

    @property
    def is_cached(self) -> bool:
        """True if training reads it from a cache, so that it knows stored text only."""
        return False

    @property
    def references(self) -> dict[str, str]:
        """Models and tokenizers that it names, by key."""
        return {}

    @property
    def cache_path(self) -> str | None:
        """Folder or URL of its cache, if that was made elsewhere."""
        return None


class LocalTeacherSection(ModelSection, TeachingSection):
    """A teacher that runs in this process, now or when its cache is made."""

    kind: Literal["local"] = "local"
    """A model, or an adapter over one."""
    cached: bool = False
    """Read what `collegium cache` stored of it, instead of running it in training."""
    adapter: str | None = None
    """PEFT adapter over `model`: folder, hub id or `package:` reference. The base is loaded once for all."""
    adapter_revision: str | None = None
    """Branch, tag or commit of the adapter on the hub."""
    device_map: str | dict[str, int | str] | None = None
    """Placement over devices, as in `from_pretrained`; None is the training device."""

    @property
    def is_cached(self) -> bool:
        """As `cached` says."""
        return self.cached

    @property
    def references(self) -> dict[str, str]:
        """Its model, and its adapter if it has one."""
        return {"model": self.model} | ({"adapter": self.adapter} if self.adapter else {})


class CachedTeacherSection(TeachingSection):
    """A teacher whose cache was made elsewhere; its model is not needed.

    A cache of lists serves only the temperatures that it was made for.
    """

    kind: Literal["cached"]
    """A folder or URL that `collegium cache` wrote, for the same text and tokenizer."""
    path: str
    """Folder, or URL such as `s3://bucket/caches/web`."""
    tokenizer: str | None = None
    """The teacher's tokenizer (hub id, folder or `.gguf` file), if it is not the student's."""

    @property
    def is_cached(self) -> bool:
        """True: nothing but its cache is known."""
        return True

    @property
    def references(self) -> dict[str, str]:
        """Its tokenizer, if it is not the student's."""
        return {"tokenizer": self.tokenizer} if self.tokenizer else {}

    @property
    def cache_path(self) -> str:
        """Its `path`."""
        return self.path


def kind_of_teacher(section: Any) -> str:
    """`local`, unless the section says otherwise."""
    kind = section.get("kind", "local") if isinstance(section, dict) else getattr(section, "kind", "local")
    return str(kind)


TeacherSection = Annotated[
    Annotated[LocalTeacherSection, Tag("local")] | Annotated[CachedTeacherSection, Tag("cached")],
    Discriminator(kind_of_teacher),
]


class CacheSection(Section):
    """Settings of `collegium cache`: what is kept of teachers that say `cached: true`, and where."""

    directory: str | None = None
    """Folder or URL with a folder for each teacher; by default in the cache, by what decides its content."""
    mode: Literal["top_k", "sampled", "hidden_states"] = "top_k"
    """`top_k`: the most probable tokens (100 bytes a token). `sampled`: tokens drawn from the distribution.
    `hidden_states`: the last hidden states, from which everything follows exactly (2 bytes times the width)."""
    max_kept: int = Field(default=256, ge=1, le=65535)
    """`top_k`: at most this many tokens a position."""
    min_probability: float = Field(default=1e-3, ge=0, lt=1)
    """`top_k`: tokens less probable than this are not kept; they make up the tail."""
    num_samples: int = Field(default=50, ge=1, le=255)
    """`sampled`: draws a position."""
    tail: Literal["bucket", "uniform", "renormalize"] = "bucket"
    """What becomes of the tail: `bucket` claims nothing that is not known of it. `uniform` spreads it evenly;
    `renormalize` gives it to the list, which makes the student overconfident."""
    rows_per_shard: int = Field(default=256, ge=1)
    """Blocks of one file, the unit of resuming."""
    batch_size: int = Field(default=4, ge=1, le=2**16)
    """Blocks that a teacher scores at once."""


class CalibrationSection(Section):
    """Text on which temperatures that say `fit` are fitted."""

    blocks: int = Field(default=8, ge=1)
    """Training blocks of each domain, evenly spaced; held-out text is never used."""


class LoraSection(Section):
    """Train low-rank adapters instead of the student's own weights."""

    rank: int = Field(default=16, ge=1)
    """Rank of the update."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale of the update; it is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the adapter."""
    target_modules: str | Many[str] = "all-linear"
    """Module names, as in PEFT."""


class StudentSection(ModelSection):
    """Common to all students."""

    dtype: Annotated[Dtype, AfterValidator(can_be_trained)] = "float32"
    """Type of the trained weights; `auto` is bfloat16 where the device computes in it natively, else float32."""
    tokenizer: str | None = None
    """Source of the tokenizer; by default the student's model."""
    lora: LoraSection | None = None
    """Train adapters only."""
    licence: Licence | None = None
    """Licence of the model that it begins as, for the model card; what that one's card says if not given."""


class PretrainedStudentSection(StudentSection):
    """A student that exists already."""

    kind: Literal["pretrained"]
    """Start from this model's weights."""


class ConfigStudentSection(StudentSection):
    """A student with random weights."""

    kind: Literal["config"]
    """Start from a configuration; `model` names the folder or hub id that holds it."""
    overrides: dict[str, int | float | bool | str | list[int | float | str] | None] = Field(default_factory=dict)
    """Fields of the configuration to change, such as `num_hidden_layers: 6`; lists for each layer follow that."""

    @model_validator(mode="after")
    def _runs_no_remote_code(self) -> Self:
        if self.trust_remote_code:
            raise ValueError("trust_remote_code cannot be used with `kind: config`; leave it out")
        return self


class ContinuedStudentSection(Section):
    """The student of a finished run, which learns on."""

    kind: Literal["continued"]
    """Start from what an earlier run made; what it forgets of that is reported."""
    run: str
    """Folder of the earlier run."""
    dtype: Annotated[Dtype, AfterValidator(can_be_trained)] = "float32"
    """Type of the trained weights, as for other students."""
    lora: LoraSection | None = None
    """Train adapters only."""
    tokenizer: None = None
    """The earlier student's own."""
    licence: Licence | None = None
    """Licence of the earlier student, for the model card; what its card says if not given."""

    @property
    def model(self) -> str:
        """The earlier student."""
        return f"{self.run.rstrip('/')}/student"

    @property
    def revision(self) -> None:
        """A folder has none."""
        return

    @property
    def trust_remote_code(self) -> bool:
        """Never: what was trusted is in the folder."""
        return False


class LayerDropStudentSection(StudentSection):
    """A student made of some layers of a model."""

    kind: Literal["layer_drop"]
    """Keep some layers of `model`, and everything else of it."""
    keep_layers: Many[int] | None = None
    """Layers to keep, from 0. Which ones decides everything: choose them by measured loss."""
    num_layers: int | None = Field(default=None, ge=1)
    """Or: how many to keep, dropping greedily the one whose loss on calibration text is least."""
    calibration_blocks: int = Field(default=8, ge=1)
    """Training blocks on which the greedy choice is measured."""

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> Self:
        if (self.keep_layers is None) == (self.num_layers is None):
            raise ValueError("give either keep_layers (which ones) or num_layers (how many, chosen by loss)")
        return self


class PrunedStudentSection(StudentSection):
    """A student cut out of a model, in width and depth (Minitron)."""

    kind: Literal["pruned"]
    """Keep the most important parts of `model`, as calibration text shows them; it may be a teacher's model."""
    hidden_size: int | None = Field(default=None, ge=1)
    """Channels to keep; Llama wants a multiple of the heads. What is not given of the sizes stays."""
    intermediate_size: int | None = Field(default=None, ge=1)
    """Neurons of each layer's MLP to keep."""
    num_heads: int | None = Field(default=None, ge=1)
    """Query heads of each layer to keep, as many for each key-value head; their dimension stays."""
    num_key_value_heads: int | None = Field(default=None, ge=1)
    """Key-value heads of each layer to keep, with all of their query heads unless num_heads says fewer."""
    num_layers: int | None = Field(default=None, ge=1)
    """Layers to keep."""
    depth_criterion: Literal["loss", "block_influence"] = "loss"
    """Rule by which layers are chosen: `loss` drops greedily the one whose loss on calibration text is least, in
    (L^2 - n^2) / 2 passes; `block_influence` those that turn their input least, in one."""
    calibration_blocks: int = Field(default=32, ge=1)
    """Training blocks on which importance is measured."""

    @model_validator(mode="after")
    def _something_is_cut(self) -> Self:
        if not any(size is not None for size in self.sizes.values()):
            raise ValueError(f"give at least one size to cut: {', '.join(self.sizes)}")
        heads = self.num_heads
        groups = self.num_key_value_heads
        if heads is not None and groups is not None and heads % groups:
            raise ValueError(
                f"num_heads must be a multiple of num_key_value_heads, got {heads} and {groups}: each "
                "key-value head serves as many query heads"
            )
        return self

    @property
    def sizes(self) -> dict[str, int | None]:
        """Sizes to cut to; None stays."""
        return {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_heads": self.num_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "num_layers": self.num_layers,
        }
