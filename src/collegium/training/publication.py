"""The student as a Hugging Face folder: written, read back, compared with what was trained, and only then there.

The folder is read as anyone will read it. Its weights must be those that were to be written, and its logits on a
few blocks of text those of the live student. For 1 GB of weights on two CPU cores this takes some seconds beside
the forward passes, once a run.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from collegium.alignment.tokenizer_match import tokenizer_difference
from collegium.base.digests import DIGESTS_NAME, write_digests
from collegium.base.durable import disk_errors, open_to_umask
from collegium.base.errors import DataError
from collegium.base.progress import Phase
from collegium.data.blocks import PackedBlocks
from collegium.data.collate import BlockCollator
from collegium.evaluation.language_modeling import HeldOut
from collegium.models.head import ProjectionHead
from collegium.models.merging import merged
from collegium.models.pretrained import (
    causal_lm_of,
    evaluating,
    last_hidden_states,
    load_model,
    load_tokenizer,
    place,
    read_documents_alone,
    reads_documents_alone,
)
from collegium.models.rotary import follow_each_document
from collegium.models.special_tokens import follow_tokenizer
from collegium.signals.contracts import Batch


ADAPTER = "adapter"
COMPARED_BLOCKS = 4
COMPARED_POSITIONS = 128
"""Of each block; its last ones, which depend on all before them, and others evenly spaced."""

TOLERANCE = 1e-3
"""Largest difference of two logits over the largest logit, in float32; what merging rounds is far below."""

HALF_TOLERANCE = 5e-2
"""Root mean square of differences over that of logits, where merged adapters are rounded to 8 or 11 bits."""


def publish(
    student: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    blocks: Sequence[Batch],
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a student and its tokenizer into a folder, once they were read back from another beside it.

    Adapters are merged, and written into `adapter/` of the folder too, in PEFT's format.

    Args:
        student: As it was trained.
        tokenizer: Its tokenizer, whose BOS, EOS and padding become the student's.
        folder: Where to; files of the same names are replaced.
        blocks: Text on which the student in the folder is compared.
        state_dict: The student's weights, gathered, where they are sharded over ranks.

    Raises:
        DataError: what is read back is not the student; nothing is in the folder then.
        OSError: it cannot be written.
    """
    with Phase("publishing the student"):
        _publish(student, tokenizer, folder, blocks, state_dict)


def _publish(
    student: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    blocks: Sequence[Batch],
    state_dict: Mapping[str, Tensor] | None,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
    try:
        with disk_errors(temporary):
            with Phase("writing it"):
                saved = merged(student) if isinstance(student, PeftModel) else student
                follow_tokenizer(saved, tokenizer)
                saved.save_pretrained(temporary, state_dict=None if state_dict is None else dict(state_dict))
                tokenizer.save_pretrained(temporary)
            with Phase("comparing what was written"):
                read_back(temporary, student, saved, tokenizer, blocks)
            if isinstance(student, PeftModel):
                _write_adapter(student, temporary / ADAPTER)
            open_to_umask(temporary)
            write_digests(temporary)
        _move(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def compared_blocks(held_out: HeldOut | None, train: PackedBlocks | None, collator: BlockCollator) -> list[Batch]:
    """Text on which a student that was written is compared: held-out text, else what it was trained on, if any."""
    if held_out is not None:
        return held_out.first_blocks(COMPARED_BLOCKS)
    if train is None:
        return []
    return [Batch.from_inputs(collator([train[i]])) for i in range(min(COMPARED_BLOCKS, len(train)))]


def read_back(
    folder: Path,
    live: PreTrainedModel | PeftModel,
    saved: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    blocks: Sequence[Batch],
) -> None:
    """Load a folder and compare it with what is in memory.

    Args:
        folder: With weights and tokenizer.
        live: The student that was trained and measured.
        saved: The same as plain weights, which were written.
        tokenizer: Its tokenizer.
        blocks: Text for the comparison of logits.

    Raises:
        DataError: weights, logits or special tokens differ.
    """
    device = next(saved.parameters()).device
    try:
        found = place(_load(folder, saved, live), device)
    except DataError as error:
        raise _unlike(f"it cannot be read ({error})") from error
    _compare_weights(saved, found)
    _compare_tokens(folder, found, tokenizer)
    with evaluating(live):
        for batch in blocks[:COMPARED_BLOCKS] or [_made_up(saved)]:
            _compare_logits(causal_lm_of(live), found, batch)


def _load(folder: Path, saved: PreTrainedModel, live: nn.Module) -> PreTrainedModel:
    """The folder as its users will read it; by its own class where only the program that trains it knows that."""
    if not saved.is_remote_code() and type(saved.config) not in AutoModelForCausalLM._model_mapping:
        found: PreTrainedModel = type(saved).from_pretrained(folder, dtype=saved.dtype).eval()
    else:
        found = load_model(str(folder), dtype=saved.dtype, trust_remote_code=saved.is_remote_code())
    attention = saved.config._attn_implementation  # what packed documents see depends on it
    if found.config._attn_implementation != attention:
        found.set_attn_implementation(attention)
    follow_each_document(found)
    if reads_documents_alone(live):
        read_documents_alone(found)
    return found


def _compare_weights(saved: PreTrainedModel, found: PreTrainedModel) -> None:
    expected = saved.state_dict()
    read = found.state_dict()
    if expected.keys() != read.keys():
        raise _unlike(f"it has other weights: {sorted(expected.keys() ^ read.keys())[:3]}")
    for name, tensor in expected.items():
        if not torch.equal(tensor.to(read[name].dtype), read[name]):
            raise _unlike(f"{name} has other values")


def _compare_tokens(folder: Path, found: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    again = load_tokenizer(str(folder))
    difference = tokenizer_difference(tokenizer, again)
    if difference is not None:
        raise _unlike(f"its tokenizer is another one: {difference}")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        before = getattr(tokenizer, name)
        if getattr(again, name) != before:
            raise _unlike(f"its tokenizer has {name} {getattr(again, name)}, in training it was {before}")
    ends: Any = found.generation_config.eos_token_id if found.generation_config is not None else None
    if again.eos_token_id is not None and again.eos_token_id not in (ends if isinstance(ends, list) else [ends]):
        raise _unlike(f"generation ends at {ends}, its tokenizer's EOS is {again.eos_token_id}")


def _made_up(model: PreTrainedModel) -> Batch:
    """A block where there is no text: 64 different tokens."""
    embedding: Any = model.get_input_embeddings()
    tokens = (torch.arange(64) * 7919 % len(embedding.weight))[None]
    seen = torch.ones_like(tokens, dtype=torch.bool)
    return Batch(tokens, seen, tokens, torch.arange(64)[None], torch.zeros(1, dtype=torch.long))


@torch.no_grad()
def _compare_logits(live: PreTrainedModel, found: PreTrainedModel, batch: Batch) -> None:
    expected = _logits(live, batch)
    difference = (_logits(found, batch) - expected).abs()
    if live.dtype in (torch.float32, torch.float64):
        is_same = difference.max() <= TOLERANCE * expected.abs().max()
    else:
        is_same = difference.square().mean().sqrt() <= HALF_TOLERANCE * expected.square().mean().sqrt()
    if not is_same:
        raise _unlike(
            f"its logits on {batch.input_ids.shape[1]} tokens of text differ by up to "
            f"{float(difference.max()):.3g}; the largest is {float(expected.abs().max()):.3g}"
        )


def _logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Logits [n V] at some positions of a block."""
    device = next(model.parameters()).device
    tokens = batch.input_ids[:1].to(device)
    hidden = last_hidden_states(model, tokens, batch.position_ids[:1].to(device))[0]  # [S D]
    length = len(hidden)
    spread = torch.arange(0, length, max(1, length // (COMPARED_POSITIONS // 2)))
    last = torch.arange(max(0, length - COMPARED_POSITIONS // 2), length)
    rows = torch.cat((spread, last)).unique().to(hidden.device)
    head: Any = model.get_output_embeddings()
    return ProjectionHead.from_model(model, len(head.weight))(hidden[rows]).float()


def _write_adapter(student: PeftModel, folder: Path) -> None:
    student.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)  # a blank form that names a path of this machine
    write_digests(folder)


def _move(temporary: Path, folder: Path) -> None:
    """Replace what is in `folder`, digests first: a move that breaks off is seen as damage, never as whole."""
    paths = sorted(temporary.iterdir(), key=lambda path: path.name != DIGESTS_NAME)
    for path in paths:
        target = folder / path.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(path, target)


def _unlike(reason: str) -> DataError:
    return DataError(
        f"the student that was written is not the one that was trained: {reason}. Nothing was published; the last "
        "checkpoint is kept, and the same command tries again from there. Please report this with the recipe"
    )
