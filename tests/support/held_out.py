"""Held-out text of pico models, read by two teachers."""

import torch

from collegium.data.blocks import pack_documents
from collegium.data.collate import BlockCollator
from collegium.evaluation.language_modeling import HeldOut
from collegium.teachers.local import LocalTeacher
from tests.support.pico import TEXTS, VOCAB_SIZE, byte_tokenizer, pico_llama


def teachers(broken=False):
    models = [pico_llama(seed) for seed in (1, 2)]
    if broken:
        models[1].lm_head.weight.data[:] = torch.nan
    return [
        LocalTeacher(name, model, vocab_size=VOCAB_SIZE, fingerprint=name, target_temperature=1.5)
        for name, model in zip(("one", "two"), models, strict=True)
    ]


def held_out_of(asked, chunk_size=7):
    blocks = pack_documents([{"text": text} for text in TEXTS], byte_tokenizer(), block_size=32)
    collator = BlockCollator(pad_token_id=258, domains=["text"])
    return HeldOut({"text": blocks}, collator, batch_size=3, teachers=asked, chunk_size=chunk_size)
