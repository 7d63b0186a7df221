"""JSON gets null where a number is not known, however deep it lies, and everything else as it was."""

import json
import math

from collegium.base.finite import null_where_unknown


def test_numbers_that_are_not_known_are_null_wherever_they_lie():
    tree = {"a": math.nan, "b": [1, math.inf, {"c": (-math.inf, 0.5)}], "d": True, "e": "nan", "f": None}
    found = null_where_unknown(tree)
    assert found == {"a": None, "b": [1, None, {"c": [None, 0.5]}], "d": True, "e": "nan", "f": None}
    assert json.loads(json.dumps(found, allow_nan=False)) == found
