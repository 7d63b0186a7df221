"""Documents that change their domain midway, put together from pieces of others.

It is the only text on which weights for each token, or for a window, should beat weights for a document.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from collegium.base.durable import write_text
from collegium.paper.preparation import source_of
from collegium.paper.specification import Specification


PIECE_CHARACTERS = (200, 800)
"""A piece is about 60 to 250 tokens of a small vocabulary."""

PIECES = 4
NUM_DOCUMENTS = 1500


def write_switching(specification: Specification, output: Path) -> None:
    """Write `output/switching.jsonl` from the documents that no teacher was trained on, unless it exists."""
    path = output / "switching.jsonl"
    if path.exists():
        return
    chance = random.Random(0)
    pieces = {name: list(_pieces(specification, name, chance)) for name in specification.sources}
    for of_domain in pieces.values():
        chance.shuffle(of_domain)
    lines = []
    for _ in range(NUM_DOCUMENTS):
        domains = chance.sample(sorted(pieces), min(PIECES, len(pieces)))
        if any(not pieces[domain] for domain in domains):
            break
        lines.append(json.dumps({"text": "\n".join(pieces[domain].pop() for domain in domains)}))
    write_text(path, "\n".join(lines) + "\n")


def _pieces(specification: Specification, name: str, chance: random.Random) -> Iterator[str]:
    """Cut a domain's first documents into pieces of random length."""
    limit = specification.student_documents.get(name, 1000)
    for number, document in enumerate(source_of(specification, name)):
        if number == limit:
            return
        start = 0
        while start < len(document.text):
            size = chance.randint(*PIECE_CHARACTERS)
            if len(piece := document.text[start : start + size]) >= PIECE_CHARACTERS[0]:
                yield piece
            start += size
