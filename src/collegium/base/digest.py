"""One hash of JSON for everything that is identified by its content: recipes, prepared text, caches, checkpoints.

A changed character in the JSON changes the hash, and whatever users have on disk is no longer found.
"""

import hashlib
import json
from typing import Any


def json_digest(content: Any, *, sort_keys: bool = True) -> str:
    """SHA-256 of `content` written as JSON, in hexadecimal; callers shorten it.

    Args:
        content: Anything that JSON can hold.
        sort_keys: Give False where the order of keys is part of the content.
    """
    return hashlib.sha256(json.dumps(content, sort_keys=sort_keys).encode()).hexdigest()
