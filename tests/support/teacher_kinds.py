"""One teacher of every kind over the same pico text; the suite that all of them pass is in `tests/teachers`."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from collegium.alignment.plan import Aligner
from collegium.cache.builder import CacheBuilder
from collegium.cache.folder import Folder
from collegium.cache.manifest import CacheSettings, Manifest, Mode, TeacherIdentity
from collegium.data.blocks import PackedBlocks, pack_documents
from collegium.data.collate import BlockCollator
from collegium.data.joined import JoinedText
from collegium.data.prepared import PreparedText
from collegium.models.identity import reference_fingerprint
from collegium.models.pretrained import load_model
from collegium.signals.contracts import Batch, Teacher
from collegium.teachers.aligned import AlignedTeacher, AlignmentPolicy, align
from collegium.teachers.cached import CachedTeacher
from collegium.teachers.local import LocalTeacher, SharedBase
from collegium.teachers.restricted import RestrictedTeacher
from tests.support.pico import TEXTS, VOCAB_SIZE, byte_tokenizer, pico_llama
from tests.support.small_tokenizers import byte_level


DOMAINS = ("animals", "numbers")
OWN_DOMAIN = 1
"""The domain of the restricted ones, which is every other block."""

OTHER_TOKENIZER = byte_level(300)


def blocks(tokenizer: Any = None, block_size: int = 32) -> PackedBlocks:
    """The text in the tokens of some tokenizer, by default the student's."""
    documents = [{"text": text} for text in TEXTS[:4]]
    return pack_documents(documents, tokenizer or byte_tokenizer(), block_size=block_size, add_eos=True)


@cache
def rows() -> Sequence[dict[str, Any]]:
    """The student's blocks, of either domain in turn; the last is shorter than the others."""
    packed = blocks()
    return [{**packed[i], "domain": DOMAINS[i % 2]} for i in range(len(packed))]


def inputs_of(some: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The batch of some rows as the collator makes it."""
    return BlockCollator(pad_token_id=258, domains=DOMAINS)(some)


def batch_of(some: Sequence[dict[str, Any]]) -> Batch:
    """The batch of some rows."""
    return Batch.from_inputs(inputs_of(some))


def local(folder: Path, seed: int, *, vocab_size: int = VOCAB_SIZE) -> LocalTeacher:
    """A model that was saved and loaded, given in training mode and with dropout."""
    path = folder / f"pico-{seed}"
    pico_llama(seed, vocab_size=vocab_size, dropout=0.5).save_pretrained(path)
    model = load_model(str(path), dtype=torch.float32).train()
    fingerprint = reference_fingerprint(str(path), model.config)
    return LocalTeacher("pico", model, vocab_size=vocab_size, fingerprint=fingerprint)


def adapter(folder: Path, seed: int) -> LocalTeacher:
    """One of two adapters over a base."""
    torch.manual_seed(seed)
    config = LoraConfig(target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    tuned = get_peft_model(pico_llama(1), config, adapter_name="one")
    tuned.add_adapter("two", config)
    return LocalTeacher(
        "pico", SharedBase(tuned), vocab_size=VOCAB_SIZE, fingerprint=f"pico+{seed}", adapter="one"
    )


def cached(folder: Path, seed: int, *, mode: Mode) -> CachedTeacher:
    """The local teacher's answers on all of the text, and no weights."""
    return _cached(folder, local(folder, seed), [*rows()], mode)


def _cached(folder: Path, teacher: LocalTeacher, some: Sequence[dict[str, Any]], mode: Mode) -> CachedTeacher:
    model = teacher.underlying_model
    vocab_size = teacher._head.vocab_size  # type: ignore[union-attr]
    plan = Manifest(
        TeacherIdentity(teacher.fingerprint, "pico", vocab_size, model.hidden_size, model.num_layers),
        "pico text",
        {"train": len(some)},
        CacheSettings(mode=mode, rows_per_shard=4, min_probability=1e-4),
    )
    location = folder / f"{mode}-{plan.identity[:8]}"
    collate = BlockCollator(pad_token_id=258)
    CacheBuilder(Folder.at(location), lambda: teacher, some, collate, plan, batch_size=3).build()
    return CachedTeacher("pico", location)


def aligned(folder: Path, seed: int) -> AlignedTeacher:
    """A teacher with another tokenizer that runs here."""
    return align(local(folder, seed, vocab_size=len(OTHER_TOKENIZER)), byte_tokenizer(), OTHER_TOKENIZER)


def aligned_cached(folder: Path, seed: int, *, mode: Mode) -> AlignedTeacher:
    """The same from a cache of its own blocks, which are others than the student's."""
    own = blocks(OTHER_TOKENIZER, block_size=24)
    teacher = local(folder, seed, vocab_size=len(OTHER_TOKENIZER))
    inner = _cached(folder, teacher, [own[i] for i in range(len(own))], mode)
    aligner = Aligner.of(byte_tokenizer(), OTHER_TOKENIZER)
    text = JoinedText(PreparedText(folder, own, {}, {}, "pico text"), aligner)
    return AlignedTeacher(inner, aligner, AlignmentPolicy(), by_documents=text)


def restricted(folder: Path, seed: int, *, make: Callable[[Path, int], Teacher]) -> RestrictedTeacher:
    """Another kind in one of the two domains."""
    return RestrictedTeacher(make(folder, seed), [OWN_DOMAIN])


KINDS: Mapping[str, Callable[[Path, int], Teacher]] = {
    "local": local,
    "adapter": adapter,
    "top_k": partial(cached, mode="top_k"),
    "sampled": partial(cached, mode="sampled"),
    "hidden_states": partial(cached, mode="hidden_states"),
    "aligned": aligned,
    "aligned, top_k": partial(aligned_cached, mode="top_k"),
    "aligned, hidden_states": partial(aligned_cached, mode="hidden_states"),
    "restricted": partial(restricted, make=local),
    "restricted, sampled": partial(restricted, make=partial(cached, mode="sampled")),
    "restricted, hidden_states": partial(restricted, make=partial(cached, mode="hidden_states")),
    "restricted, aligned": partial(restricted, make=aligned),
    "restricted, aligned, top_k": partial(restricted, make=partial(aligned_cached, mode="top_k")),
}
"""Each makes a teacher in a folder from the seed of its weights. A new kind is a line here."""

STANDS_FOR = {
    "top_k": "local",
    "sampled": "local",
    "hidden_states": "local",
    "restricted": "local",
    "restricted, sampled": "local",
    "restricted, hidden_states": "local",
    "restricted, aligned": "aligned",
}
"""Kinds whose figures are those of another kind with the same weights, wherever they speak."""
