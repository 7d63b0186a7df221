"""A feature term that compares structures of states instead of the states: MGSKD.

Lower layer pairs are compared by relations between tokens and between phrases, the others by those between
documents, and what each says is summed, as in the official code. There are no projections.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from collegium.base.schedule import Schedule
from collegium.losses.features import LayerMap, layer_pairs
from collegium.losses.structure import (
    Items,
    Relations,
    check_relation_heads,
    phrase_items,
    phrase_slots,
    pool,
    sample_loss,
    structure_loss,
    token_items,
)
from collegium.signals.contracts import Batch, Capability
from collegium.signals.inner_states import InnerLayers, InnerStates
from collegium.training.terms.features import FeatureTerm


class StructureTerm(FeatureTerm):
    """Token, phrase and sample relations of hidden states. See `collegium.losses.structure`.

    Args:
        student_size: Student's width and number of layers.
        teacher_sizes: Width and number of layers of each teacher.
        word_starts: True for tokens that begin a word; a phrase reaches from one to the next.
        layer_map: `uniform`, `last`, or pairs (student layer, teacher layer).
        relation_heads: Parts that states are cut into; must divide all widths.
        salient_tokens: Items of a document at which angles are taken (k1).
        neighbours: Items that span angles there (k2).
        lower_pairs: Layer pairs, from the lowest, for tokens and phrases; the others are for samples (M).
        level_weights: Of tokens, phrases and samples.
        importance: See `FeatureTerm`.
        weight: See `FeatureTerm`.

    Raises:
        ValueError: the heads do not divide a width, the layer map does not fit, or the importances do not.
    """

    need = frozenset({Capability.HIDDEN_STATES})

    def __init__(
        self,
        student_size: tuple[int, int],
        teacher_sizes: Sequence[tuple[int, int]],
        word_starts: Bool[Tensor, " V"],
        *,
        layer_map: LayerMap = "uniform",
        relation_heads: int = 64,
        salient_tokens: int = 20,
        neighbours: int = 20,
        lower_pairs: int = 2,
        level_weights: tuple[float, float, float] = (1.0, 1.0, 4.0),
        importance: Sequence[float] | None = None,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(len(teacher_sizes), importance=importance, weight=weight)
        width, depth = student_size
        check_relation_heads(relation_heads, [width, *(size for size, _ in teacher_sizes)])
        self.relations = Relations(relation_heads, salient_tokens, neighbours)
        self.lower_pairs = lower_pairs
        self.level_weights = level_weights
        self.pairs = [sorted(layer_pairs(layer_map, depth, layers)) for _, layers in teacher_sizes]
        self.student_layers = InnerLayers(frozenset(s for pairs in self.pairs for s, _ in pairs))
        self.teacher_layers = tuple(InnerLayers(frozenset(t for _, t in pairs)) for pairs in self.pairs)
        self.register_buffer("word_starts", word_starts, persistent=False)

    def of_teacher(
        self, m: int, student: InnerStates, teacher: InnerStates, batch: Batch, emphasis: Tensor | None
    ) -> Tensor:
        """See `FeatureTerm`; positions where a state of the teacher is not finite are left out."""
        of_token, of_phrase, of_sample = self.level_weights
        begins = cast(Tensor, self.word_starts)[batch.input_ids]
        values = []
        for rank, (s, t) in enumerate(self.pairs[m]):
            ours = student.hidden_states[s]
            theirs = teacher.hidden_states[t]
            tokens = token_items(batch.position_ids, batch.attention_mask & theirs.isfinite().all(-1), emphasis)
            if rank >= self.lower_pairs:
                values.append(of_sample * sample_loss(ours, theirs, tokens, self.relations.num_heads))
                continue
            if of_token > 0:
                values.append(of_token * structure_loss(ours, theirs, tokens, self.relations))
            if of_phrase > 0:
                values.append(of_phrase * self._of_phrases(ours, theirs, tokens, batch, begins))
        return torch.stack(values).sum()

    def _of_phrases(
        self,
        student: Float[Tensor, "B S D"],
        teacher: Float[Tensor, "B S E"],
        tokens: Items,
        batch: Batch,
        begins: Bool[Tensor, "B S"],
    ) -> Float[Tensor, ""]:
        slots = phrase_slots(batch.position_ids, begins)
        ours, theirs = (pool(states, tokens.mask, slots) for states in (student, teacher))
        return structure_loss(ours, theirs, phrase_items(tokens, slots), self.relations)
