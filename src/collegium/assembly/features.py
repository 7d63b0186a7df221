"""Terms on inner states: where the kind of a section meets its class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from collegium.alignment.tokenizer_match import vocab_size_of
from collegium.base.errors import DataError, TeacherError
from collegium.models.inner_states import attention_shape
from collegium.models.pretrained import causal_lm_of
from collegium.models.words import word_starts
from collegium.recipe.sections.features import (
    AttentionMapsSection,
    AttentionScoresSection,
    FeatureMapsSection,
    FeatureSection,
    HiddenStatesSection,
    RelationsSection,
    StructureSection,
)
from collegium.recipe.sections.schedule import schedule_of
from collegium.signals.contracts import Teacher
from collegium.signals.inner_states import AttentionShape, UnderlyingModel
from collegium.training.terms.features import FeatureMapTerm, FeatureTerm, HiddenStatesTerm
from collegium.training.terms.relations import AttentionTerm, RelationTerm
from collegium.training.terms.structure import StructureTerm


if TYPE_CHECKING:
    from collegium.assembly.run import Run

Student = PreTrainedModel | PeftModel


@dataclass(frozen=True)
class KnownTeacher:
    """A teacher whose inner states can be matched, with the model that gives them."""

    teacher: Teacher
    model: UnderlyingModel

    @property
    def name(self) -> str:
        """Name of the teacher."""
        return self.teacher.name


def build_features(run: "Run") -> list[FeatureTerm]:
    """Build the terms on inner states, with projections that fit these models; none if they have no weight.

    Raises:
        TeacherError: a teacher does not give what a term reads.
        DataError: a setting does not fit the models.
    """
    section = run.recipe.objective
    if not section.matches_features:
        return []
    named = section.named_features
    tokenizer = run.tokenizer if any(isinstance(f, StructureSection) for f in named.values()) else None
    return [
        build_feature_term(feature, key, run.student, run.teachers, tokenizer) for key, feature in named.items()
    ]


def build_feature_term(
    section: FeatureSection,
    key: str,
    student: Student,
    teachers: Sequence[Teacher],
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> FeatureTerm:
    """Build one term; `key` is its place in the recipe. The tokenizer says where words begin, for phrases."""
    models = [(teacher, teacher.underlying_model) for teacher in teachers]
    known = [KnownTeacher(teacher, model) for teacher, model in models if model is not None]
    if len(known) != len(teachers):
        raise TeacherError("feature_weight needs the inner states of local teachers; set it to 0")
    if section.needs_attention:
        _check_attention(key, known)
    try:
        term = _term(section, student, known, tokenizer)
    except (ValueError, DataError) as error:
        raise DataError(f"{key}: {error}") from error
    _check_layers(section, key, term, known)
    return term


def _term(
    section: FeatureSection,
    student: Student,
    teachers: Sequence[KnownTeacher],
    tokenizer: PreTrainedTokenizerBase | None,
) -> FeatureTerm:
    text = causal_lm_of(student).config.get_text_config()
    size = (text.hidden_size, text.num_hidden_layers)
    sizes = [(teacher.model.hidden_size, teacher.model.num_layers) for teacher in teachers]
    weight = schedule_of(section.weight)
    importance = _importance(section, teachers)
    match section:
        case HiddenStatesSection():
            return HiddenStatesTerm(
                size,
                sizes,
                layer_map=section.layer_map,
                layer_norm=section.layer_norm,
                shared_projection=section.shared_projection,
                final_norm=section.final_norm,
                layer_reduction=section.layer_reduction,
                importance=importance,
                weight=weight,
            )
        case FeatureMapsSection():
            return FeatureMapTerm(
                size,
                sizes,
                layer_map=section.layer_map,
                factors=(section.map_factor, section.mean_factor, section.variance_factor),
                stage_share=section.stage_share,
                importance=importance,
                weight=weight,
            )
        case StructureSection():
            assert tokenizer is not None, "given wherever a recipe is trained"
            return StructureTerm(
                size,
                sizes,
                word_starts(tokenizer, vocab_size_of(tokenizer)),
                layer_map=section.layer_map,
                relation_heads=section.relation_heads,
                salient_tokens=section.salient_tokens,
                neighbours=section.neighbours,
                lower_pairs=section.lower_pairs,
                level_weights=section.level_weights,
                importance=importance,
                weight=weight,
            )
        case _:
            return _attention_term(section, student, teachers)


def _attention_term(
    section: AttentionScoresSection | AttentionMapsSection | RelationsSection,
    student: Student,
    teachers: Sequence[KnownTeacher],
) -> FeatureTerm:
    depth = causal_lm_of(student).config.get_text_config().num_hidden_layers
    weight = schedule_of(section.weight)
    importance = _importance(section, teachers)
    match section:
        case AttentionScoresSection() | AttentionMapsSection():
            attention_shape(student)  # refuses an attention that is not known
            scores = isinstance(section, AttentionScoresSection)
            return AttentionTerm(
                "scores" if scores else "divergence",
                depth,
                [teacher.model.num_layers for teacher in teachers],
                layer_map=section.layer_map,
                layer_reduction=section.layer_reduction,
                stage_share=None if isinstance(section, AttentionScoresSection) else section.stage_share,
                importance=importance,
                weight=weight,
            )
        case RelationsSection():
            return RelationTerm(
                (attention_shape(student), depth),
                [(_shape(t), section.layer_of(t.name, t.model.num_layers)) for t in teachers],
                of=section.of,
                num_relation_heads=section.num_relation_heads,
                importance=importance,
                weight=weight,
            )


def _importance(section: FeatureSection, teachers: Sequence[KnownTeacher]) -> list[float] | None:
    if section.importance is None:
        return None
    return [section.importance[teacher.name] for teacher in teachers]


def _shape(teacher: KnownTeacher) -> AttentionShape:
    assert teacher.model.attention is not None, "see _check_attention"
    return teacher.model.attention


def _check_attention(key: str, teachers: Sequence[KnownTeacher]) -> None:
    for known in teachers:
        teacher = known.teacher
        if teacher.is_cached:
            raise TeacherError(
                f"teacher {teacher.name!r}: {key} reads queries, keys and values, which no cache holds: run the "
                "teacher (cached: false), or use kind: hidden_states"
            )
        if known.model.attention is None:
            raise TeacherError(
                f"teacher {teacher.name!r}: {key} reads queries, keys and values, but how its attention lays them "
                "out is not known here: use kind: hidden_states"
            )


def _check_layers(section: FeatureSection, key: str, term: FeatureTerm, teachers: Sequence[KnownTeacher]) -> None:
    """See that each teacher has, and gives, the layers that a term reads."""
    before_norm = isinstance(section, HiddenStatesSection) and not section.final_norm
    for known, layers in zip(teachers, term.teacher_layers, strict=True):
        teacher = known.teacher
        model = known.model
        if teacher.is_cached and ((before_norm and not model.before_norm) or layers.hidden - model.hidden_layers):
            raise TeacherError(
                f"teacher {teacher.name!r}: {key} matches its layers {sorted(layers.hidden)}, its cache knows "
                f"{sorted(model.hidden_layers) or 'none'}: set {key}.layer_map to last (after the final norm) and "
                "make the cache with cache.mode: hidden_states, or run the teacher (cached: false)"
            )
        if beyond := [layer for layer in layers.attention if layer > model.num_layers]:
            raise DataError(
                f"{key}: layer {max(beyond)} of teacher {teacher.name!r} is asked for, which has "
                f"{model.num_layers}: give a number up to that, or a share below 1"
            )
