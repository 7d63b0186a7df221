"""What the loss relies on in every model, tried before any work.

Trunk and head give the model's own logits, on eight tokens. What the model says of a document does not depend on
what else is in its block, in its batch or in earlier ones: random documents are read in a batch of the run's own
shape and alone. The cause of a dependence does not matter: attention that ignores where documents begin, or does
so in batches of several rows (FlashAttention), a recurrent state that goes on, chunks counted from the block's
start, experts that are full. A model that is right with each document in a row of its own is read so.

The documents pass through as many layers as show each kind of them once, as a rule the first: a batch of 8 x 1,024
tokens takes 1/24 of its time in a model of 24 layers.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from collegium.base.errors import DataError, pass_on_full_disk
from collegium.models.as_configured import layer_kind
from collegium.models.documents import states_by_document
from collegium.models.families import positions_of
from collegium.models.head import ProjectionHead
from collegium.models.inner_states import decoder_layers
from collegium.models.loading import reason_of
from collegium.models.pretrained import evaluating, read_documents_alone, trunk_of
from collegium.models.rotary import follow_each_document


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BlockShape:
    """The largest batch of blocks that a run gives its models.

    Attributes:
        rows: Blocks.
        length: Tokens of a block.
    """

    rows: int
    length: int


FEW = BlockShape(2, 32)
"""Where the shape is not known."""


TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""The greatest difference of a document's hidden states from those of the document alone, relative to their size,
by the type of the weights. It is the median of each eight neighbours, so that an expert that rounding chose is no
fault."""

WINDOW = 8
"""Positions whose median is taken."""


@torch.no_grad()
def check_model(model: PreTrainedModel, vocab_size: int, *, name: str, shape: BlockShape = FEW) -> None:
    """Try what the loss relies on; rotary embeddings that follow the longest sequence follow each document then.

    Args:
        model: A causal language model.
        vocab_size: Tokens of its tokenizer.
        name: The model's name in errors.
        shape: The largest batch that it will read.

    Raises:
        DataError: the vocabulary is too small, trunk and head do not give the model's logits, what it says of a
            document depends on what else is in its batch, or it cannot read blocks of that length.
    """
    rows = len(cast(Tensor, model.get_input_embeddings().weight))
    if rows < vocab_size:
        raise DataError(
            f"{name}: has {rows} token embeddings, but the tokenizer has {vocab_size} tokens, of which not all of "
            "those above are special ones that no text has; give the tokenizer that belongs to the model"
        )
    _look_at_positions(model, name, shape)
    follow_each_document(model)
    what = ""
    try:
        with evaluating(model):
            _probe_head(model, vocab_size, name)
            what = f" on blocks of {shape.length:,} tokens"
            _probe_documents(model, vocab_size, name, shape)
    except DataError:
        raise
    except Exception as error:  # of code that is not ours, and of any kind
        pass_on_full_disk(error)
        raise DataError(f"{name}: {type(model).__name__} cannot be run{what} ({reason_of(error)})") from error


def _look_at_positions(model: PreTrainedModel, name: str, shape: BlockShape) -> None:
    positions = positions_of(model.config.to_dict())
    sentence = None if positions is None else positions.too_few(name, shape.length)
    if positions is None or sentence is None:
        return
    if positions.is_table:
        raise DataError(sentence)
    _warn(sentence)


@cache
def _warn(sentence: str) -> None:
    """Say it once, however often a command loads the model."""
    logger.warning("%s", sentence)


def _probe_head(model: PreTrainedModel, vocab_size: int, name: str) -> None:
    device = cast(Tensor, model.get_input_embeddings().weight).device
    tokens = torch.arange(8, device=device)[None] % vocab_size
    hidden = trunk_of(model)(input_ids=tokens, use_cache=False).last_hidden_state
    logits = ProjectionHead.from_model(model, vocab_size)(hidden[0]).float()
    expected = model(input_ids=tokens, use_cache=False).logits[0, :, :vocab_size].float()
    tolerance = 1e-3 if hidden.dtype == torch.float32 else 5e-2
    if (logits - expected).abs().max() > tolerance * expected.abs().max().clamp_min(1.0):
        raise DataError(
            f"{name}: {type(model).__name__} makes its logits in a way that the head does not know yet"
        )


def _probe_documents(model: PreTrainedModel, vocab_size: int, name: str, shape: BlockShape) -> None:
    """Compare documents in a batch with the same documents alone."""
    trial = _Trial.of(model, vocab_size, shape)
    tolerance = TOLERANCES.get(model.dtype, max(TOLERANCES.values()))
    kind = type(model).__name__
    if trial.ahead() > tolerance:
        _refuse_quantised_activations(model, name)
        raise DataError(
            f"{name}: {kind} lets a token see those after it, so it is no causal language model as it is "
            "configured; give another model"
        )
    difference = trial.difference(by_document=False)
    if difference <= tolerance:
        return
    if trial.difference(by_document=True) <= tolerance:
        read_documents_alone(model)
        _warn(
            f"{name}: {kind} (attention: {model.config._attn_implementation}) lets the documents of packed blocks "
            "see each other, so each is read in a row of its own: the results are right, but it is slower "
            "and terms on inner states cannot be used"
        )
        return
    _refuse_quantised_activations(model, name)
    raise DataError(
        f"{name}: {kind} lets the documents of a packed block see each other: in a batch of {shape.rows} x "
        f"{shape.length:,} tokens its hidden states differ by {difference:.1%} from those of the document alone, "
        f"of which rounding explains {tolerance:.1%}; so it cannot be used with packed text"
    )


def _refuse_quantised_activations(model: nn.Module, name: str) -> None:
    if any("quantized" in type(module).__module__ for module in model.modules()):
        raise DataError(
            f"{name}: is quantised together with its activations, so that what it says of a document depends on "
            "the others in a batch: quantise the weights alone, as by torchao's Int8WeightOnlyConfig"
        )


@dataclass(frozen=True)
class _Trial:
    """Random documents in a batch, and some of them alone as transformers reads them, before the batch."""

    read: "_Reader"
    tokens: Int[Tensor, "B S"]
    positions: Int[Tensor, "B S"]
    compared: Sequence[tuple[slice, slice]]
    alone: Sequence[Float[Tensor, "1 L D"]]

    @classmethod
    def of(cls, model: PreTrainedModel, vocab_size: int, shape: BlockShape) -> "_Trial":
        device = cast(Tensor, model.get_input_embeddings().weight).device
        lengths = _document_lengths(shape)
        positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths]).to(device)
        tokens = _random_tokens(model, vocab_size, positions.shape).to(device)
        read = _Reader(model)
        compared = _compared(lengths)
        return cls(read, tokens, positions, compared, [read(tokens[place]) for place in compared])

    def ahead(self) -> float:
        """Difference that other tokens in the second half of a document make to its first."""
        document = self.tokens[self.compared[0]]
        half = (document.shape[1] + 1) // 2
        other = torch.cat([document[:, :half], document[:, :1].expand(-1, document.shape[1] - half)], -1)
        return _apart(self.read(other)[0, :half].float(), self.alone[0][0, :half].float())

    def difference(self, *, by_document: bool) -> float:
        """The greatest difference that the batch makes, or leaves behind; infinite if it cannot be read."""
        if by_document:
            batch = states_by_document(self.read, self.tokens, self.positions)
        else:
            try:
                batch = self.read(self.tokens, self.positions)
            except (TypeError, ValueError, IndexError, NotImplementedError):  # it knows no positions
                return math.inf
        pairs = [(batch[place], alone) for place, alone in zip(self.compared, self.alone, strict=True)]
        pairs.append((self.read(self.tokens[self.compared[0]]), self.alone[0]))
        return max(_apart(found[0].float(), alone[0].float()) for found, alone in pairs)


def _apart(found: Float[Tensor, "L D"], expected: Float[Tensor, "L D"]) -> float:
    """The greatest of the windows' median relative differences."""
    size = expected.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    errors = (found - expected).norm(dim=-1) / size  # [L]
    errors = nn.functional.pad(errors, (0, -len(errors) % WINDOW), value=torch.nan)
    return float(errors.view(-1, WINDOW).nanmedian(-1).values.nan_to_num(0.0).max())


def _document_lengths(shape: BlockShape) -> list[list[int]]:
    """Lengths of the documents of each row: other borders in each, and one document in the last of several."""
    rows = []
    for row in range(shape.rows):
        first = max(1, shape.length // 4 - row % max(1, shape.length // 8))
        second = max(1, shape.length // 8)
        lengths = [first, second, shape.length - first - second]
        rows.append(lengths if row % 2 == 0 else lengths[::-1])
    if shape.rows > 1:
        rows[-1] = [shape.length]
    return [row if min(row) > 0 else [shape.length] for row in rows]


def _compared(lengths: Sequence[Sequence[int]]) -> list[tuple[slice, slice]]:
    """Where those documents stand that are also read alone: the last of the first and last row, one between."""
    chosen = {0: len(lengths[0]) - 1, len(lengths) - 1: len(lengths[-1]) - 1}
    if len(lengths) > 2:
        chosen[1] = min(1, len(lengths[1]) - 1)
    return [
        (slice(row, row + 1), slice(sum(lengths[row][:number]), sum(lengths[row][: number + 1])))
        for row, number in chosen.items()
    ]


def _random_tokens(model: PreTrainedModel, vocab_size: int, shape: Sequence[int]) -> Int[Tensor, "B S"]:
    """The same in every run, without tokens that mean something to the model, such as places of images."""
    config = model.config
    fields = [*vars(config).items(), *vars(config.get_text_config()).items()]
    meant = {value for name, value in fields if "token_id" in name or "token_index" in name if type(value) is int}
    ids = torch.tensor([i for i in range(vocab_size) if i not in meant] or [0])
    return ids[torch.randint(len(ids), tuple(shape), generator=torch.Generator().manual_seed(0))]


class _Enough(Exception):
    """Ends a forward pass after a layer."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class _Reader:
    """Hidden states [B S D] after the first layer by which each kind of layer was passed."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._trunk = trunk_of(model)
        self._layer = _last_new_layer(model)

    def __call__(self, tokens: Int[Tensor, "B S"], positions: Tensor | None = None) -> Float[Tensor, "B S D"]:
        options = {} if positions is None else {"position_ids": positions}
        hook: RemovableHandle | None = None
        if self._layer is not None:
            hook = self._layer.register_forward_hook(_stop)
        try:
            hidden: Tensor = self._trunk(input_ids=tokens, use_cache=False, **options).last_hidden_state
            return hidden
        except _Enough as enough:
            return enough.hidden
        finally:
            if hook is not None:
                hook.remove()


def _stop(module: nn.Module, args: Any, output: Any) -> None:
    hidden = output if isinstance(output, Tensor) else output[0]
    if hidden.ndim == 3:  # some families carry several streams from layer to layer, and end with one
        raise _Enough(hidden)


def _last_new_layer(model: PreTrainedModel) -> nn.Module | None:
    """The first layer by which each kind of layer is there; None where all of the model has to run."""
    if getattr(model, "hf_device_map", None):  # whose hooks must not be broken off
        return None
    try:
        layers = decoder_layers(model)[2]
    except DataError:
        return None
    kinds = [layer_kind(layer) for layer in layers]
    last = max(kinds.index(kind) for kind in kinds)
    return None if last == len(layers) - 1 else layers[last]
