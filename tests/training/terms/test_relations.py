"""Terms on attention, relations and hidden states in the whole objective: values, gradients, stages, refusals."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models import codegen

from collegium.assembly.features import build_feature_term
from collegium.base.errors import DataError, TeacherError
from collegium.losses.features import block_pairs, squared_error
from collegium.losses.relations import Scorer, attention_divergence, relation_divergence
from collegium.models.inner_states import AttentionShape, recording
from collegium.models.pretrained import trunk_of
from collegium.recipe.sections.features import AttentionMapsSection, RelationsSection
from collegium.signals.inner_states import InnerLayers
from collegium.teachers.local import LocalTeacher
from collegium.training.objective import Objective
from collegium.training.terms.features import FeatureMapTerm, HiddenStatesTerm
from collegium.training.terms.relations import AttentionTerm, RelationTerm
from tests.support.objectives import assert_same, batch_of, counts_of, run, student_with, teachers_of
from tests.support.pico import pico_llama


SHAPE = AttentionShape(4, 2, 8)
TERMS = {
    "tinybert": lambda: HiddenStatesTerm((32, 2), [(32, 2)] * 2, shared_projection=True, layer_reduction="sum"),
    "before_norm": lambda: HiddenStatesTerm((32, 2), [(32, 2)] * 2, final_norm=False, layer_norm=False),
    "feature_maps": lambda: FeatureMapTerm((32, 2), [(32, 2)] * 2, stage_share=0.5),
    "scores": lambda: AttentionTerm("scores", 2, [2, 2], layer_reduction="sum"),
    "maps": lambda: AttentionTerm("divergence", 2, [2, 2], layer_map="last"),
    "relations": lambda: RelationTerm((SHAPE, 2), [(SHAPE, 2), (SHAPE, 1)], importance=[3.0, 1.0]),
    "value_relations": lambda: RelationTerm(
        (SHAPE, 2), [(SHAPE, 2)] * 2, of=("values",), num_relation_heads="attention"
    ),
}


def objective_of(term):
    return Objective(["t1", "t2"], kd_weight=0.0, ce_weight=0.0, feature_weight=1.0, features=[term])


def states_of(model, layers, batch):
    with recording(model, layers) as read:
        trunk_of(model)(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
    return read.states()


@pytest.mark.parametrize("name", TERMS)
def test_any_split_into_micro_batches(name):
    teachers, counts = teachers_of(1, 2), counts_of(batch_of())

    def model():
        torch.manual_seed(5)
        return student_with(objective_of(TERMS[name]()))

    whole = run(model(), batch_of(), teachers)
    parts = [run(model(), batch_of(range(i, i + 1)), teachers, counts) for i in range(4)]
    grads = {key: sum(part[1][key] for part in parts) for key in parts[0][1]}
    assert whole[0] > 0 and any(key.startswith("student") and grad.any() for key, grad in whole[1].items())
    assert_same(whole, (sum(loss for loss, _ in parts), grads), tolerance=1e-8)


def test_relations_are_the_sum_of_their_kinds_and_the_mean_over_teachers():
    batch, teachers = batch_of(), teachers_of(1, 2)
    loss, _ = run(student_with(objective_of(TERMS["relations"]())), batch, teachers)
    layers = InnerLayers(attention=frozenset({1, 2}))
    mine = states_of(pico_llama(0, dtype=torch.float64), layers, batch)
    expected = 0.0
    for beta, teacher, layer in zip((0.75, 0.25), teachers, (2, 1), strict=True):
        theirs = states_of(teacher._base.model, layers, batch)
        for of, num in (("queries", 32), ("keys", 16), ("values", 16)):
            x, y = getattr(mine, of)[2], getattr(theirs, of)[layer]
            places = batch.position_ids, batch.attention_mask
            expected += beta * relation_divergence(x, y, *places, num_relation_heads=num)
    torch.testing.assert_close(loss, expected.detach() / batch.attention_mask.sum())


def test_attention_takes_each_models_own_scale():
    batch, teachers = batch_of(), teachers_of(1, 1)
    loss, _ = run(student_with(objective_of(TERMS["maps"]())), batch, teachers)
    layers = InnerLayers(attention=frozenset({2}))
    scorers = [
        Scorer(states.queries[2], states.keys[2], 8**-0.5)
        for states in (
            states_of(model, layers, batch)
            for model in (pico_llama(0, dtype=torch.float64), teachers[0]._base.model)
        )
    ]
    expected = attention_divergence(*scorers, batch.position_ids, batch.attention_mask)
    torch.testing.assert_close(loss, expected.detach() / batch.attention_mask.sum())


def test_one_projection_for_all_layers_and_the_sum_over_them():
    batch, teachers = batch_of(), teachers_of(1, 2)
    term = TERMS["tinybert"]()
    assert [len(projections) for projections in term.projections] == [1, 1]
    loss, grads = run(student_with(objective_of(term)), batch, teachers)
    assert sum("projections" in name and bool(grad.any()) for name, grad in grads.items()) == 2
    layers = InnerLayers(frozenset({0, 1, 2}))
    mine = states_of(pico_llama(0, dtype=torch.float64), layers, batch).hidden_states
    expected = 0.0
    for (projection,), teacher in zip(term.projections, teachers, strict=True):
        theirs = states_of(teacher._base.model, layers, batch).hidden_states
        for i in range(3):
            error = squared_error(projection(mine[i]), theirs[i], batch.attention_mask, normalize=True)
            expected += 0.5 * error.detach()
    torch.testing.assert_close(loss, expected / batch.attention_mask.sum())


def test_before_the_final_norm():
    batch, teachers = batch_of(), teachers_of(1)
    term = HiddenStatesTerm((32, 2), [(32, 2)], layer_map="last", final_norm=False, layer_norm=False)
    objective = Objective(["t1"], kd_weight=0.0, ce_weight=0.0, feature_weight=1.0, features=[term])
    loss, _ = run(student_with(objective), batch, teachers)
    models = pico_llama(0, dtype=torch.float64), teachers[0]._base.model
    x, y = (states_of(model, InnerLayers(frozenset({2})), batch).before_norm[2] for model in models)
    expected = squared_error(term.projections[0][0](x), y, batch.attention_mask, normalize=False)
    torch.testing.assert_close(loss, expected.detach() / batch.attention_mask.sum())


def test_layers_come_in_one_after_another():
    term = FeatureMapTerm((32, 4), [(24, 4)], stage_share=0.6)
    reached = []
    for term.progress in (0.0, 0.14, 0.15, 0.31, 0.46, 0.6, 1.0):
        reached.append(term.reached(4))
    assert reached == [1, 1, 2, 3, 4, 4, 4]
    assert FeatureMapTerm((32, 4), [(24, 4)]).reached(4) == 4
    with pytest.raises(ValueError, match="stage_share is 0"):
        FeatureMapTerm((32, 4), [(24, 4)], stage_share=0.0)


def test_projections_not_yet_used_have_a_gradient_of_0_and_are_not_exported(tmp_path):
    term = FeatureMapTerm((32, 2), [(24, 2)], stage_share=1.0)
    objective = Objective(["t1"], kd_weight=0.0, ce_weight=1.0, feature_weight=1.0, features=[term])
    model = student_with(objective)
    _, grads = run(model, batch_of(), teachers_of(1, width=24))
    first, second = (grads[f"objective.features.0.projections.0.{i}.weight"] for i in range(2))
    assert first.any() and not second.any()
    model.student.save_pretrained(tmp_path)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert exported.keys() == pico_llama(0).state_dict().keys()


@pytest.mark.parametrize("name", ["feature_maps", "scores", "maps", "relations"])
def test_no_emphasis(name):
    with pytest.raises(ValueError, match="weighs all positions alike"):
        TERMS[name]()(None, [], batch_of(), torch.ones(4, 32))


def test_pairs_of_blocks():
    assert block_pairs("uniform", 3, 6) == ((1, 2), (2, 4), (3, 6))
    assert block_pairs("uniform", 4, 1) == ((1, 1), (2, 1), (3, 1), (4, 1))
    assert block_pairs("last", 3, 6) == ((3, 6),)
    with pytest.raises(ValueError, match="layer 0 is the embedding output; layers begin at 1"):
        block_pairs(((0, 1),), 3, 6)


def test_a_number_of_relation_heads_that_does_not_fit():
    with pytest.raises(ValueError, match="keys of student and teacher: num_relation_heads is 32, .* widths 16"):
        RelationTerm((SHAPE, 2), [(SHAPE, 2)], num_relation_heads=32)


def test_what_cannot_be_built_is_refused_by_name():
    config = codegen.CodeGenConfig(vocab_size=64, n_embd=32, n_layer=1, n_head=4, rotary_dim=4)
    strange = AutoModelForCausalLM.from_config(config)
    teacher = LocalTeacher("odd", strange, vocab_size=64, fingerprint="")
    section = AttentionMapsSection(kind="attention_maps")
    with pytest.raises(TeacherError, match="'odd': objective.feature.0 reads queries, keys and values, but"):
        build_feature_term(section, "objective.feature.0", pico_llama(0), [teacher])
    with pytest.raises(DataError, match="objective.feature: CodeGenForCausalLM .* layer 1 has no queries"):
        build_feature_term(section, "objective.feature", strange, teachers_of(1))
    relations = RelationsSection(kind="relations", layer={"t1": 3})
    with pytest.raises(DataError, match="layer 3 of teacher 't1' is asked for, which has 2"):
        build_feature_term(relations, "objective.feature", pico_llama(0), teachers_of(1))
    relations = RelationsSection(kind="relations", num_relation_heads=7)
    with pytest.raises(DataError, match="objective.feature: queries of .* is 7, which must divide the widths 32"):
        build_feature_term(relations, "objective.feature", pico_llama(0), teachers_of(1))
