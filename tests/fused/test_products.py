"""The products of a head by every path that a machine may need."""

import pytest
import torch

from collegium.fused import products


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 4e-3)]
)
def test_products_equal_those_in_float64(dtype, tolerance, with_bias, onednn, monkeypatch):
    if not onednn:
        monkeypatch.setattr(products, "_in_onednn", lambda dtype: False)
    monkeypatch.setattr(products, "TILE_ROWS", 40)
    monkeypatch.setattr(products, "HEAD_TILE_ROWS", 50)
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(9, 6).to(dtype), torch.randn(130, 6).to(dtype), torch.randn(130).to(dtype)
    bias = bias if with_bias else None
    expected = hidden.double() @ weight.double().T + (0.0 if bias is None else bias.double())

    def close(found, reference):
        assert (found.double() - reference).norm() <= tolerance * reference.norm()

    buffer = torch.full_like(expected, torch.nan, dtype=dtype)
    into = products.project(hidden, weight, bias, out=buffer)
    assert into is buffer
    for logits in (into, products.project(hidden, weight, bias)):
        assert logits.dtype == dtype
        close(logits, expected)
    gradient = torch.randn(9, 130).to(dtype)
    close(products.grad_of_hidden(gradient, weight), gradient.double() @ weight.double())
    total = torch.ones(130, 6, dtype=torch.promote_types(dtype, torch.float32))
    products.add_grad_of_weight_(total, gradient, hidden)
    close(total, 1.0 + gradient.double().T @ hidden.double())


@pytest.mark.parametrize("into", [True, False])
def test_bfloat16_without_its_instructions_is_made_in_float32(into, monkeypatch):
    monkeypatch.setattr(products, "_in_onednn", lambda dtype: False)
    hidden, weight = torch.randn(4, 6).bfloat16(), torch.randn(20, 6).bfloat16()
    out = torch.empty(4, 20, dtype=torch.bfloat16) if into else None
    exact = (hidden.float() @ weight.float().T).bfloat16()
    assert torch.equal(products.project(hidden, weight, out=out), exact)
