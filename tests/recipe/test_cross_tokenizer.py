"""`objective.cross_tokenizer`: what a recipe says, what is refused before it is loaded, and what is built."""

import pytest
import torch

from collegium.assembly.cross_tokenizer import boundary_tokens
from collegium.assembly.objective import build_objective
from collegium.assembly.run import Run
from collegium.base.errors import RecipeError, TeacherError
from collegium.base.schedule import Schedule
from collegium.recipe.file import dump_recipe, load_recipe, parse_recipe
from collegium.recipe.recipe import Recipe
from collegium.signals.contracts import Capability
from collegium.teachers.defaults import TeacherDefaults
from collegium.teachers.restricted import RestrictedTeacher
from collegium.training.terms.cross_tokenizer import GoldTerm, UldTerm
from collegium.training.terms.dual_space import DualSpaceTerm
from collegium.training.terms.likelihood import AlmTerm
from tests.support.own_vocabularies import VOCAB_SIZE, aligned_teacher, local_teacher
from tests.support.pico import pico_llama
from tests.support.runs import write_recipe


@pytest.fixture
def path(tmp_path, model_folder):
    return write_recipe(tmp_path, model_folder)


def load(path, terms, *overrides, weight=1):
    return load_recipe(
        path, [f"objective.cross_tokenizer_weight={weight}", f"objective.cross_tokenizer={terms}", *overrides]
    )


def error_of(path, terms, *overrides, weight=1):
    with pytest.raises(RecipeError) as caught:
        load(path, terms, *overrides, weight=weight)
    return str(caught.value)


def test_a_list_of_terms(path):
    recipe = load(
        path,
        "[{kind: uld}, {kind: alm, weight: {initial: 1, final: 0}, importance: {one: 1, two: 3}}]",
        weight="{initial: 0, final: 2}",
    )
    objective = recipe.objective
    assert objective.compares_vocabularies and objective.needs_teachers
    assert list(objective.named_cross_tokenizer) == ["objective.cross_tokenizer.0", "objective.cross_tokenizer.1"]
    assert parse_recipe(dump_recipe(recipe), path) == recipe
    assert not load_recipe(path).objective.compares_vocabularies


@pytest.mark.parametrize(
    ("terms", "weight", "message"),
    [
        ("[{kind: uld}]", 0, "cross_tokenizer and a cross_tokenizer_weight above 0 go together"),
        ("[]", 1, "cross_tokenizer and a cross_tokenizer_weight above 0 go together"),
        ("[{kind: alm, tau: 0}]", 1, "objective.cross_tokenizer.0.tau: "),
        ("[{kind: alm, threshhold: 0.1}]", 1, "threshhold: unknown key; did you mean `threshold`?"),
        ("[{kind: ulm}]", 1, "'uld', 'gold', 'alm', 'dskd'"),
        ("[{kind: gold, matched_weight: 1}]", 1, "give both of matched_weight and unmatched_weight"),
        ("[{kind: uld, importance: {x: 1}}]", 1, "objective.cross_tokenizer.0.importance names ['x'], the "),
    ],
)
def test_what_is_refused(path, terms, weight, message):
    assert message in error_of(path, terms, weight=weight)


@pytest.mark.parametrize(
    ("kind", "mode", "message"),
    [
        (
            "uld",
            "top_k",
            "which cache.mode top_k does not hold: set cache.mode: hidden_states",
        ),
        ("gold", "sampled", "(kind: gold) reads whole distributions, which cache.mode sampled does not hold"),
        (
            "dskd",
            "hidden_states",
            "input embeddings, which no cache holds: set kind: uld, gold or alm",
        ),
        ("dskd", "top_k", "or set objective.cross_tokenizer_weight to 0"),
        ("uld", "hidden_states", None),
        ("alm", "top_k", None),
        ("alm", "sampled", None),
    ],
)
def test_lists_of_a_cache_serve_alm_alone(path, kind, mode, message):
    overrides = ["teachers.0.cached=true", f"cache.mode={mode}"]
    if message is None:
        assert load(path, f"[{{kind: {kind}}}]", *overrides).teachers[0].cached
    else:
        error = error_of(path, f"[{{kind: {kind}}}]", *overrides)
        assert "teacher 'one' is cached, but objective.cross_tokenizer.0" in error and message in error


def test_text_that_the_student_writes_is_refused(path):
    assert "objective.cross_tokenizer cannot" in error_of(path, "[{kind: uld}]", "on_policy={fraction: 0.5}")


def test_without_teachers_there_is_nothing_to_compare(path):
    error = error_of(path, "[{kind: uld}]", "teachers=[]", "objective.kd_weight=0")
    assert "no teachers, but objective.kd_weight, feature_weight or cross_tokenizer_weight" in error


# ---- building


def recipe_of(terms, **objective):
    return Recipe.model_validate(
        {
            "name": "pico",
            "student": {"kind": "pretrained", "model": "student"},
            "teachers": [{"name": "t7", "model": "a"}, {"name": "t8", "model": "b"}],
            "data": {"sources": [{"kind": "files", "name": "text", "path": "text"}]},
            "objective": {
                "kd_weight": 0.0,
                "cross_tokenizer_weight": 1.0,
                "cross_tokenizer": terms,
                **objective,
            },
            "training": {"max_steps": 1},
        }
    )


def build(terms, teachers=None, **objective):
    teachers = teachers or [aligned_teacher(7), local_teacher(8, VOCAB_SIZE)]
    run = Run(recipe_of(terms, **objective))
    return build_objective(run.derive(student=pico_llama(0, vocab_size=VOCAB_SIZE), teachers=teachers))


ALL = [
    {"kind": "uld", "temperature": 2.0, "weight": {"shape": "linear", "initial": 1.0, "final": 0.0}},
    {"kind": "gold", "beta": 0.2, "merge": "first", "matched_weight": 2.0, "unmatched_weight": 0.5},
    {"kind": "alm", "tau": 7.0, "threshold": 0.3, "importance": {"t7": 3.0, "t8": 1.0}},
    {"kind": "dskd", "temperature": 3.0},
]


def test_what_is_built_is_what_the_recipe_says():
    objective = build(ALL, balance="gradient_free")
    uld, gold, alm, dskd = objective.cross_tokenizer.terms
    assert isinstance(uld, UldTerm) and uld.temperature == 2.0 and uld.weight == Schedule("linear", 1.0, 0.0)
    assert isinstance(gold, GoldTerm) and (gold.beta, gold.merge, gold.part_weights) == (0.2, "first", (2.0, 0.5))
    assert isinstance(alm, AlmTerm) and (alm.tau, alm.threshold, alm.betas) == (7.0, 0.3, [0.75, 0.25])
    assert isinstance(dskd, DualSpaceTerm) and dskd.temperature == 3.0
    shapes = [tuple(teacher["query"].weight.shape) for teacher in dskd.projections]
    assert shapes == [(80, 64), (64, 64)]
    assert objective.need == {Capability.FULL_VOCAB, Capability.SAMPLES}
    assert objective.balancer.names == ("kd", "ce", *(f"cross_tokenizer/{i}" for i in range(4)))
    assert objective.watches >= {"cross_tokenizer/0", "cross_tokenizer/3"}


def test_boundaries_are_of_teachers_with_another_tokenizer():
    aligned = aligned_teacher(7)
    alm = build([{"kind": "alm"}], [aligned, local_teacher(8, VOCAB_SIZE)]).cross_tokenizer.terms[0]
    assert torch.equal(alm.boundary, boundary_tokens(aligned.aligner.student.pieces))
    assert torch.equal(alm.boundary_0, boundary_tokens(aligned.aligner.teacher.pieces)) and alm.boundary_1 is None
    pieces = aligned.aligner.teacher.pieces
    found = {pieces[token_id] for token_id in alm.boundary_0.tolist()}
    assert {None, b" ", b"\n", b"\t"} <= found
    assert all(piece is None or piece[:1].isspace() for piece in found)
    assert not any(piece.startswith(b" ") for i, piece in enumerate(pieces) if piece and i not in alm.boundary_0)
    without = build([{"kind": "alm", "debias": False}]).cross_tokenizer.terms[0]
    same = build([{"kind": "alm"}], [local_teacher(7, VOCAB_SIZE), local_teacher(8, VOCAB_SIZE)])
    assert without.boundary is None and same.cross_tokenizer.terms[0].boundary is None


def test_a_teacher_of_some_domains_with_another_tokenizer_is_refused():
    teachers = [RestrictedTeacher(aligned_teacher(7), [0]), local_teacher(8, VOCAB_SIZE)]
    with pytest.raises(TeacherError, match="teacher 't7' has another tokenizer and is asked about some domains"):
        build([{"kind": "uld"}], teachers)


class Remote(TeacherDefaults):
    """A teacher that gives distributions and runs elsewhere."""

    name, fingerprint = "t7", "remote"
    provides = frozenset({Capability.FULL_VOCAB, Capability.SAMPLES})


def test_dskd_needs_a_teacher_that_runs_here():
    with pytest.raises(TeacherError, match=r"'t7': objective.cross_tokenizer.0 \(kind: dskd\) reads hidden"):
        build([{"kind": "dskd"}], [Remote(), local_teacher(8, VOCAB_SIZE)])
    assert build([{"kind": "uld"}], [Remote(), local_teacher(8, VOCAB_SIZE)]).cross_tokenizer is not None


def test_a_teacher_without_whole_distributions_is_refused():
    class Lists(Remote):
        provides = frozenset({Capability.TOP_K, Capability.SAMPLES})

    with pytest.raises(TeacherError, match="'t7' provides samples, top_k, but the objective needs full_vocab"):
        build([{"kind": "uld"}], [Lists(), local_teacher(8, VOCAB_SIZE)])
    assert build([{"kind": "alm"}], [Lists(), local_teacher(8, VOCAB_SIZE)]).need == {Capability.SAMPLES}
