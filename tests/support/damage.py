"""Damage to a file, one kind after another: a bit flipped, or the end cut off."""

import random
from collections.abc import Iterator
from pathlib import Path


def damages(path: Path, *, flips: int = 30, cuts: int = 10, seed: int = 0) -> Iterator[str]:
    """Damage `path` in one way after another, and restore it; yields what was done."""
    generator = random.Random(seed)
    content = path.read_bytes()
    try:
        for _ in range(flips):
            place = generator.randrange(len(content))
            bit = generator.randrange(8)
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            yield f"bit {bit} of byte {place} flipped"
        for _ in range(cuts):
            length = generator.randrange(len(content))
            path.write_bytes(content[:length])
            yield f"cut to {length} of {len(content)} bytes"
    finally:
        path.write_bytes(content)
