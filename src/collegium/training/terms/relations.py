"""Terms of the loss that match attention and relations among tokens. See `losses/relations.py` for their cost.

They need no projections: what is compared is [S S], whatever the widths. Gradients flow through queries, keys and
values, which are read before rotary embedding.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from collegium.base.schedule import Schedule
from collegium.losses.features import LayerMap, block_pairs
from collegium.losses.relations import (
    Scorer,
    attention_divergence,
    attention_score_error,
    relation_divergence,
    relation_heads,
)
from collegium.signals.contracts import Batch, Capability
from collegium.signals.inner_states import AttentionShape, InnerLayers, InnerStates
from collegium.training.terms.features import FeatureTerm, LayerReduction, LayerwiseTerm


AttentionKind = Literal["scores", "divergence"]
Relation = Literal["queries", "keys", "values"]
NumRelationHeads = int | Literal["auto", "attention"]


class AttentionTerm(LayerwiseTerm):
    """Attention of pairs of layers: squared error of scores (TinyBERT) or divergence (MiniLM, MobileBERT).

    Args:
        kind: `scores` before the softmax, or `divergence` after it.
        num_layers: Layers of the student.
        teacher_layers: Layers of each teacher.
        layer_map: `uniform` over layers from 1, `last`, or pairs (student layer, teacher layer).
        layer_reduction: See `LayerwiseTerm`.
        stage_share: See `LayerwiseTerm`.
        importance: See `FeatureTerm`.
        weight: See `FeatureTerm`.

    Raises:
        ValueError: the layer map does not fit, or the importances do not.
    """

    need = frozenset({Capability.ATTENTION})
    takes_emphasis = False

    def __init__(
        self,
        kind: AttentionKind,
        num_layers: int,
        teacher_layers: Sequence[int],
        *,
        layer_map: LayerMap = "uniform",
        layer_reduction: LayerReduction = "mean",
        stage_share: float | None = None,
        importance: Sequence[float] | None = None,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(
            [block_pairs(layer_map, num_layers, layers) for layers in teacher_layers],
            layer_reduction=layer_reduction,
            stage_share=stage_share,
            importance=importance,
            weight=weight,
        )
        self.compare = {"scores": attention_score_error, "divergence": attention_divergence}[kind]

    def of_pair(
        self, m: int, i: int, student: InnerStates, teacher: InnerStates, batch: Batch, emphasis: Tensor | None
    ) -> Tensor:
        """See `LayerwiseTerm`."""
        mine, theirs = (
            Scorer(states.queries[layer], states.keys[layer], states.scales.get(layer))
            for states, layer in zip((student, teacher), self.pairs[m][i], strict=True)
        )
        return self.compare(mine, theirs, batch.position_ids, batch.attention_mask)


class RelationTerm(FeatureTerm):
    """Relations of queries, keys and values among tokens, summed over the kinds (MiniLMv2; MiniLM's for values).

    Args:
        student: Heads of the student's attention and its number of layers, the last of which is matched.
        teachers: Heads and matched layer of each teacher.
        of: What is related to itself.
        num_relation_heads: Heads into which the concatenated ones are split; `auto`: the most, up to 64, that
            divide both widths; `attention`: heads as they are (MiniLM), those of keys and values repeated for
            each head of queries, and means over heads compared where their numbers differ.
        importance: See `FeatureTerm`.
        weight: See `FeatureTerm`.

    Raises:
        ValueError: the number of relation heads does not divide the widths, or the importances do not fit.
    """

    need = frozenset({Capability.ATTENTION})
    takes_emphasis = False

    def __init__(
        self,
        student: tuple[AttentionShape, int],
        teachers: Sequence[tuple[AttentionShape, int]],
        *,
        of: Sequence[Relation] = ("queries", "keys", "values"),
        num_relation_heads: NumRelationHeads = "auto",
        importance: Sequence[float] | None = None,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(len(teachers), importance=importance, weight=weight)
        self.of = tuple(of)
        self.layers = student[1], tuple(layer for _, layer in teachers)
        self.student_layers = InnerLayers(attention=frozenset({student[1]}))
        self.teacher_layers = tuple(InnerLayers(attention=frozenset({layer})) for _, layer in teachers)
        self.num_heads = [
            {x: _number(num_relation_heads, x, student[0], shape) for x in self.of} for shape, _ in teachers
        ]

    def of_teacher(
        self, m: int, student: InnerStates, teacher: InnerStates, batch: Batch, emphasis: Tensor | None
    ) -> Tensor:
        """See `FeatureTerm`."""
        mine = self.layers[0]
        theirs = self.layers[1][m]
        sums = []
        for of in self.of:
            x = getattr(student, of)[mine]
            y = getattr(teacher, of)[theirs]
            num = self.num_heads[m][of]
            if num is None and x.shape[1] != y.shape[1]:
                x = _repeated(x, student.queries[mine])
                y = _repeated(y, teacher.queries[theirs])
            sums.append(
                relation_divergence(x, y, batch.position_ids, batch.attention_mask, num_relation_heads=num)
            )
        return torch.stack(sums).sum()


def _number(num: NumRelationHeads, of: Relation, student: AttentionShape, teacher: AttentionShape) -> int | None:
    if num == "attention":
        return None
    widths = [_width(student, of), _width(teacher, of)]
    try:
        return relation_heads(num, widths)
    except ValueError as error:
        raise ValueError(f"{of} of student and teacher: {error}") from None


def _width(shape: AttentionShape, of: Relation) -> int:
    return shape.head_dim * (shape.num_heads if of == "queries" else shape.num_key_value_heads)


def _repeated(heads: Tensor, queries: Tensor) -> Tensor:
    return heads.repeat_interleave(queries.shape[1] // heads.shape[1], 1)
