"""Every method of the literature: its page, its recipe, its row; and its loss against a few independent lines."""

import re
from pathlib import Path

import pytest
import torch

from collegium.assembly.objective import build_objective
from collegium.assembly.run import Run
from collegium.recipe.methods import METHODS
from collegium.recipe.recipe import Recipe
from collegium.signals.contracts import predicted_positions
from tests.support.objectives import batch_of, run, student_with, teachers_of
from tests.support.pico import pico_llama


ROOT = Path(__file__).parents[2]
V = 260


def recipe_of(method):
    return Recipe.model_validate(
        {
            "name": method,
            "method": method,
            "student": {"kind": "pretrained", "model": "student"},
            "teachers": [] if method == "ce" else [{"name": "t1", "model": "t"}],
            "data": {"sources": [{"kind": "files", "name": "text", "path": "text"}]},
            "training": {"max_steps": 1},
        }
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_a_page_a_recipe_and_a_row(method):
    page = (ROOT / "docs" / "methods" / f"{method}.md").read_text(encoding="utf-8")
    recipe = (ROOT / "recipes" / "methods" / f"{method}.yaml").read_text(encoding="utf-8")
    assert re.search(rf"^method: {method}$", recipe, re.M)
    assert re.search(rf"^# {method}\b", page, re.M | re.I)
    assert all(f"## {part}" in page for part in ("Formula", "Source", "Recipe"))
    assert f"| [{method}](methods/{method}.md) |" in (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


def kl(p, q):
    return (p * (p.log() - q.log())).sum(-1)


def decoupled(p, q, labels):
    gold = torch.nn.functional.one_hot(labels, V).bool()
    pairs = [torch.stack([d[gold], d[~gold].view(len(d), -1).sum(-1)], -1) for d in (p, q)]
    others = [d[~gold].view(len(d), -1) / d[~gold].view(len(d), -1).sum(-1, keepdim=True) for d in (p, q)]
    return kl(*pairs) + kl(*others)


def adaptive(p, q, labels):
    order = p.argsort(-1, descending=True)
    tail = p.gather(-1, order).cumsum(-1) > 0.5
    tail[:, 0] = False
    gap = (p - q).abs().detach().gather(-1, order)
    head_gap, tail_gap = (gap * ~tail).sum(-1), (gap * tail).sum(-1)
    return (head_gap * kl(p, q) + tail_gap * kl(q, p)) / (head_gap + tail_gap)


def alpha_beta(p, q, labels, a=0.2, b=0.7):
    return -(p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)).sum(-1) / (a * b)


def todi(p, q, labels):
    p, q = (d.log().div(2.0).softmax(-1) for d in (p, q))
    share = (p / (p + q)).detach()
    return (share * p * (p / q).log() + (1 - share) * q * (q / p).log()).sum(-1)


def taid(p, q, labels):
    share = float(torch.tensor(0.4))  # a buffer of float32
    blend = ((1 - share) * q.detach().log() + share * p.log()).softmax(-1)
    return -(blend * q.log()).sum(-1)


def sorted_distance(p, q, labels):
    return (p.sort(-1).values - q.sort(-1).values).abs().sum(-1)


def chunk_likelihood(p, q, labels):
    """One tokenizer: a chunk is a position."""
    x, y = ((d.gather(-1, labels[:, None]).squeeze(-1).log() / 100 - 1e-6).exp() for d in (p, q))
    return x * (x / y).log() + (1 - x) * ((1 - x) / (1 - y)).log()


REFERENCES = {
    # method: (weight of the divergence, of the cross-entropy, the divergence of p and q)
    "ce": (0.0, 1.0, None),
    "kd": (0.5, 0.5, lambda p, q, y: kl(p, q)),
    "minitron": (1.0, 0.0, lambda p, q, y: kl(p, q)),
    "ebkd": (0.5, 0.5, lambda p, q, y: kl(p, q)),
    "ca_mkd": (0.5, 0.5, lambda p, q, y: kl(p, q)),
    "fusellm": (0.1, 0.9, lambda p, q, y: kl(p, q)),
    "ae_kd": (0.47, 0.53, lambda p, q, y: kl(p, q)),
    "bayes": (0.5, 0.5, lambda p, q, y: kl(p, q)),
    "incremental": (1.0, 0.0, lambda p, q, y: kl(p, q)),
    "ddk": (1 / 6, 5 / 6, lambda p, q, y: kl(p, q)),
    "dkd": (1.0, 1.0, decoupled),
    "distillm": (1.0, 0.0, lambda p, q, y: kl(q, 0.1 * q + 0.9 * p)),
    "distillm2": (1.0, 0.0, lambda p, q, y: kl(p, 0.1 * p + 0.9 * q)),
    "akl": (1.0, 0.0, adaptive),
    "abkd": (1.0, 0.0, alpha_beta),
    "todi": (0.5, 0.5, todi),
    "taid": (1.0, 0.0, taid),
    "gkd": (1.0, 0.0, lambda p, q, y: 0.5 * kl(p, 0.5 * (p + q)) + 0.5 * kl(q, 0.5 * (p + q))),
    "minillm": (0.5, 0.5, lambda p, q, y: kl(p, q)),
    "uld": (1.5, 1.0, sorted_distance),
    "gold": (1.0, 0.0, lambda p, q, y: 0.5 * kl(p, 0.5 * (p + q)) + 0.5 * kl(q, 0.5 * (p + q))),
    "alm": (1.0, 0.0, chunk_likelihood),
}
"""On text of the corpus, after any warm-up."""


@pytest.mark.parametrize("method", REFERENCES)
def test_loss_and_gradient_with_one_teacher(method):
    kd_weight, ce_weight, divergence = REFERENCES[method]
    teachers = [] if method == "ce" else teachers_of(1)
    objective = build_objective(
        Run(recipe_of(method)).derive(student=pico_llama(0, dtype=torch.float64), teachers=teachers)
    )
    model, batch = student_with(objective), batch_of()
    model.objective.set_progress(0.3)
    model.objective.chunk_size = 11
    loss, gradients = run(model, batch, teachers)

    positions = predicted_positions(batch)
    inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    model.zero_grad()
    q = model.student(**inputs).logits.flatten(0, 1)[positions.index].softmax(-1)
    expected = -ce_weight * q.gather(-1, positions.labels[:, None]).log().mean()
    if divergence is not None:
        with torch.no_grad():
            p = teachers[0]._base.model(**inputs).logits.flatten(0, 1)[positions.index].softmax(-1)
        expected = expected + kd_weight * divergence(p, q, positions.labels).mean()
    expected.backward()
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-10)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-8, atol=1e-11)
