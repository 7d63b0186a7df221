"""What a model says of a document does not depend on what else is in its block, its batch, or was read before."""

import copy

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    BertGenerationConfig,
    BertGenerationDecoder,
    FalconConfig,
    FalconForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
)

from collegium.base.errors import DataError
from collegium.models.documents import states_by_document
from collegium.models.head import ProjectionHead
from collegium.models.inner_states import recording
from collegium.models.pretrained import last_hidden_states, reads_documents_alone
from collegium.models.probe import BlockShape, check_model
from collegium.models.rotary import document_lengths
from collegium.signals.inner_states import InnerLayers


SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.5,
    "max_position_embeddings": 16,
}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.0, 1.0, 1.0],
    "long_factor": [2.0, 3.0, 5.0, 7.0],
    "rope_theta": 10_000.0,
    "original_max_position_embeddings": 16,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
PER_LAYER = {"full_attention": DYNAMIC, "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0}}

BY_LENGTH = {
    "dynamic": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, rope_parameters=DYNAMIC)),
    "longrope": lambda: Phi3ForCausalLM(
        Phi3Config(**SMALL | {"max_position_embeddings": 64}, rope_parameters=LONG)
    ),
    "longrope of experts": lambda: PhimoeForCausalLM(
        PhimoeConfig(
            **SMALL | {"max_position_embeddings": 64},
            num_local_experts=2,
            rope_parameters=LONG | {"short_mscale": 1.0, "long_mscale": 1.5},
        )
    ),
    "dynamic in some layers": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **SMALL,
            head_dim=8,
            sliding_window=8,
            layer_types=["sliding_attention", "full_attention"],
            rope_parameters=PER_LAYER,
        )
    ),
}

ROWS = [[5, 40, 3], [20, 12, 16], [48]]
"""Documents of three blocks: below and above the 16 positions that the models were made for."""


def made(make):
    torch.manual_seed(0)
    return make().eval()


def block(rows, seed=0):
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in rows])
    return torch.randint(3, 90, positions.shape, generator=torch.Generator().manual_seed(seed)), positions


@torch.no_grad()
def check_documents(model, plain, rows=ROWS, seed=0):
    """Compare each document of a packed batch with what transformers says of the document alone."""
    tokens, positions = block(rows, seed)
    logits = ProjectionHead.from_model(model, 96)(last_hidden_states(model, tokens, positions))
    for index, row in enumerate(rows):
        start = 0
        for length in row:
            place = slice(start, start + length)
            alone = copy.deepcopy(plain)(input_ids=tokens[index : index + 1, place], use_cache=False).logits[0]
            near = 1e-4 * float(alone.abs().max())
            assert torch.allclose(logits[index, place], alone, atol=near), (index, place)
            start += length


@pytest.mark.parametrize("make", BY_LENGTH.values(), ids=BY_LENGTH)
def test_rotary_embeddings_follow_each_document(make):
    model = made(make)
    plain = copy.deepcopy(model)
    check_model(model, 90, name="t", shape=BlockShape(3, 48))
    assert not reads_documents_alone(model)
    check_documents(model, plain)
    check_documents(model, plain, [[10, 10], [7, 13]], seed=1)  # after longer ones
    check_documents(model, plain, [[17, 3]], seed=2)


@torch.no_grad()
def test_without_that_they_follow_the_longest():
    model = made(BY_LENGTH["dynamic"])
    tokens, positions = block(ROWS)
    batch = last_hidden_states(model, tokens, positions)[0, :5]
    alone = last_hidden_states(copy.deepcopy(model), tokens[:1, :5], positions[:1, :5])[0]
    assert (batch - alone).abs().max() > 0.1


def test_lengths_of_documents():
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 0, 0, 1, 2, 3], [7, 0, 1, 2, 3, 4]])
    expected = [[3, 3, 3, 2, 2, 1], [1, 1, 4, 4, 4, 4], [8, 5, 5, 5, 5, 5]]
    assert document_lengths(positions).tolist() == expected


def attention(module, query, key, value, attention_mask, *, scaling=None, position_ids=None, mixes=None, **_):
    """Attention that keeps documents apart in batches of one row, as FlashAttention does; or as `mixes` says."""
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
    rows, length = query.shape[0], query.shape[2]
    mask = torch.ones(length, length, dtype=torch.bool).tril().expand(rows, 1, -1, -1)
    if position_ids is not None and not (mixes or (lambda rows, _: rows > 1))(rows, length):
        document = (position_ids.diff(prepend=position_ids[:, :1] - 1) != 1).cumsum(-1)
        mask = mask & (document[:, None, :, None] == document[:, None, None, :])
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling).transpose(1, 2), None


def leaking(mixes=None, spoil=None):
    """A model with such attention; its mask is None, as that of FlashAttention is."""

    def attend(*args, **options):
        output, weights = attention(*args, **options, mixes=mixes)
        return (output if spoil is None else spoil(output)), weights

    AttentionInterface.register("stand_in", attend)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMALL | {"max_position_embeddings": 256})).eval()
    plain = copy.deepcopy(model)
    model.set_attn_implementation("stand_in")
    return model, plain


def test_attention_that_mixes_documents_in_batches_of_rows_is_found_and_put_right(caplog):
    model, plain = leaking()
    check_model(model, 90, name="flash", shape=BlockShape(1, 48))
    assert not reads_documents_alone(model), "one row is right"
    check_model(model, 90, name="flash", shape=BlockShape(3, 48))
    assert reads_documents_alone(model)
    assert "flash: LlamaForCausalLM (attention: stand_in) lets the documents" in caplog.text
    check_documents(model, plain)


@pytest.mark.parametrize(
    ("mixes", "shape", "passes"),
    [
        (lambda rows, length: rows >= 4, BlockShape(4, 48), BlockShape(3, 48)),
        (lambda rows, length: length >= 100, BlockShape(2, 128), BlockShape(2, 64)),
    ],
    ids=["rows", "length"],
)
def test_what_happens_only_at_the_shape_of_the_run_is_found(mixes, shape, passes):
    model, _ = leaking(mixes)
    check_model(model, 90, name="t", shape=passes)
    assert not reads_documents_alone(model)
    check_model(model, 90, name="t", shape=shape)
    assert reads_documents_alone(model)


def test_rows_that_see_each_other_are_refused():
    model, _ = leaking(spoil=lambda output: output + output.mean(0, keepdim=True))
    with pytest.raises(DataError, match=r"in a batch of 3 x 48 tokens its hidden states differ by \d+"):
        check_model(model, 90, name="t", shape=BlockShape(3, 48))


BY_THEMSELVES = {
    "counts positions": lambda: OPTForCausalLM(
        OPTConfig(
            vocab_size=96,
            hidden_size=32,
            word_embed_proj_dim=16,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            init_std=0.5,
        )
    ),
    "has a state": lambda: MambaForCausalLM(
        MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, state_size=8, initializer_range=0.5)
    ),
    "biases by distance": lambda: FalconForCausalLM(
        FalconConfig(
            vocab_size=96,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            alibi=True,
            initializer_range=0.5,
        )
    ),
}


@pytest.mark.parametrize("make", BY_THEMSELVES.values(), ids=BY_THEMSELVES)
def test_models_that_do_not_heed_positions_read_documents_one_by_one(make):
    model = made(make)
    plain = copy.deepcopy(model)
    check_model(model, 90, name="t", shape=BlockShape(3, 48))
    assert reads_documents_alone(model)
    check_documents(model, plain)
    with pytest.raises(DataError, match="reads each document of a block in a row of its own"):
        recording(model, InnerLayers(frozenset({1}), frozenset())).__enter__()


def test_gradients_pass_through_documents_that_are_read_one_by_one():
    tokens, positions = block([[3, 9, 4], [16]])
    table = torch.randn(96, 5, requires_grad=True)
    states = states_by_document(lambda rows: table[rows], tokens, positions)
    assert torch.equal(states, table[tokens])
    states.sum().backward()
    assert torch.equal(table.grad[:, 0], torch.bincount(tokens.flatten(), minlength=96).float())


def test_rows_of_documents_hold_no_more_tokens_than_the_blocks():
    tokens, positions = block([[1] * 20 + [28], [48]])
    sizes = []

    def read(rows):
        sizes.append(rows.numel())
        return rows[..., None].float()

    assert torch.equal(states_by_document(read, tokens, positions)[..., 0].long(), tokens)
    assert max(sizes) <= tokens.numel() and len(sizes) < 5


def test_a_model_that_sees_what_comes_is_refused():
    config = BertGenerationConfig(**SMALL | {"max_position_embeddings": 64}, is_decoder=False)
    with pytest.raises(DataError, match="lets a token see those after it"):
        check_model(BertGenerationDecoder(config).eval(), 90, name="t", shape=BlockShape(2, 32))
