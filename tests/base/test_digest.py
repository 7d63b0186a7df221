"""Fingerprints of what users have on disk stay what they are, so that caches and prepared text are found again."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from collegium.alignment.token_bytes import TokenBytes
from collegium.alignment.tokenizer_match import tokenizer_fingerprint
from collegium.base.digest import json_digest
from collegium.cache.manifest import CacheSettings, Manifest, Shard, TeacherIdentity
from collegium.data.files import combined_digest
from collegium.data.prepare import _fingerprint as text_fingerprint
from collegium.data.settings import PrepareSettings, SourceLimits
from collegium.data.sources import FileSource
from collegium.data.tokenization import DocumentTokenizer
from collegium.recipe.file import load_recipe
from collegium.training.checkpoint_files import manifest_text
from tests.support.pico import byte_tokenizer


RECIPES = Path(__file__).parents[2] / "recipes"


PINNED = {
    "recipe": "d775c56188a277f4",
    "cache": "dea3b17aee7737faf915e0c89b8c3d69",
    "cache with settings": "8669c31d667f9af7c7db1666749d9d64",
    "cache file": "f2118b7edb9d100170c394e3c3d863e0d7ebb3a28c7ecd5aeb52c378008322b2",
    "checkpoint": "884da108a8e980e1bcbe5593929169122362e2f57f29b72517c40904bc0a2892",
    "tokenizer": "742b2d5744f48cdf30308b289f4756a9",
    "tokens": "f0abcc0b5cd9e36d481cebc5182ad770",
    "tokenization": "8eb7493a352d168d77c61134c47c0c043128f3941ae6b4b10f56cca0ca1e1f4d",
    "files": "cf0c817c086c1db9c5e0cfa4919eff5ec3da19f04b58b5661b404534c4b3aa22",
    "prepared text": "0bfcfec1e13815549556b9e668260370065f971d5fd8cadb4e4ccc98236a3dd5",
    "run of an experiment": "250f095dcd273fc8",
}


def manifest() -> Manifest:
    teacher = TeacherIdentity("größe", "a/b", 300, 64, 4)
    shard = Shard("shards/shard-00000.safetensors", 0, 7, 70, 1000, "ab" * 32)
    return Manifest(teacher, "text", {"train": 7, "held_out": 3}, CacheSettings(), (shard,), {"index": "cd" * 32})


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "web.txt"
    path.write_text("Größe: 漢字\n")
    return path


def prepared_text(path) -> str:
    settings = PrepareSettings(
        block_size=64,
        held_out_documents=3,
        add_bos=False,
        add_eos=True,
        bos_at_segments=False,
        max_bad_fraction=0.01,
        near_duplicate_threshold=0.8,
        blocks_per_shard=100,
        limits={"web": SourceLimits(max_tokens=1000)},
    )
    encoder = DocumentTokenizer(byte_tokenizer(), add_bos=False, add_eos=True)
    return text_fingerprint([FileSource("web", str(path))], encoder, settings)


def test_fingerprints_are_those_of_earlier_releases(text_file):
    teacher = replace(manifest().teacher, settings={"config.json": {"rope_theta": 10000.0}})
    with_settings = replace(manifest(), teacher=teacher)
    found = {
        "recipe": load_recipe(RECIPES / "families.yaml").fingerprint,
        "cache": manifest().identity,
        "cache with settings": with_settings.identity,
        "cache file": json.loads(manifest().to_bytes())["sha256"],
        "checkpoint": json.loads(manifest_text(7, {"model.safetensors": {"sha256": "ab", "bytes": 1}}, 1))[
            "sha256"
        ],
        "tokenizer": tokenizer_fingerprint(byte_tokenizer()),
        "tokens": TokenBytes(byte_tokenizer()).fingerprint,
        "tokenization": DocumentTokenizer(byte_tokenizer(), add_bos=False, add_eos=True).identity,
        "files": combined_digest(["text", None], [text_file]),
        "prepared text": prepared_text(text_file),
        "run of an experiment": json_digest([{"b": 1, "a": "ü"}, "judge"])[:16],
    }
    assert found == PINNED


def test_keys_are_sorted_unless_their_order_is_part_of_the_content():
    assert json_digest({"b": 1, "a": 2}) == json_digest({"a": 2, "b": 1})
    assert json_digest({"b": 1, "a": 2}, sort_keys=False) != json_digest({"a": 2, "b": 1}, sort_keys=False)
