"""Text that no corpus has: any characters, and pieces that tokenizers treat in their own ways."""

import random
import sys


def random_text(source: random.Random) -> str:
    """Characters of all planes, words and blanks, in any order."""
    pieces = [
        "the",
        " walking",
        "  ",
        "\n",
        "\t",
        "é",
        "e\u0301",
        "漢",
        "🙂",
        "▁",
        "<0x41>",
        "</s>",
        "\u200b",
        "\ufeff",
        "\r\n",
    ]
    length = source.randrange(0, 24)
    any_character = (chr(source.randrange(sys.maxunicode + 1)) for _ in iter(int, 1))
    valid = (c for c in any_character if not 0xD800 <= ord(c) < 0xE000)
    return "".join(source.choice(pieces) if source.random() < 0.5 else next(valid) for _ in range(length))
