"""Methods of the literature as recipe values: what `method: NAME` fills in where a recipe says nothing.

A method is nothing but such values, so everything that it does can be read in the resolved recipe, and any
of it changed there. `docs/methods/` has a page for each: formula, source, and what was adapted. No torch here.
"""

from collections.abc import Mapping
from typing import Any


METHODS: Mapping[str, Mapping[str, Any]] = {
    "ce": {"objective": {"kd_weight": 0.0}},
    "kd": {"objective": {"kd_weight": 0.5, "weighting": "uniform"}},
    "paper": {
        "objective": {
            "kd_weight": 0.5,
            "weighting": "paper",
            "feature_weight": 0.1,
            "feature": {"layer_map": "uniform", "layer_norm": True},
        }
    },
    "gkd": {
        "objective": {"kd_weight": 1.0, "divergence": "jsd", "jsd_beta": 0.5, "weighting": "uniform"},
        "on_policy": {"fraction": 0.5, "max_new_tokens": 128, "temperature": 0.9, "loss": "divergence"},
    },
    "minillm": {
        "objective": {"kd_weight": 0.5, "divergence": "reverse_kl", "weighting": "uniform"},
        "on_policy": {
            "fraction": 0.5,
            "prompt_length": 256,
            "max_new_tokens": 256,
            "temperature": 1.0,
            "top_p": 1.0,
            "teacher_share": 0.2,
            "loss": "policy_gradient",
            "gamma": 0.95,
            "reward_scale": 0.5,
            "reward_clip": 100.0,
            "ratio_clip": 0.2,
            "single_step_weight": 1.0,
        },
    },
}


def with_method(given: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with what its method says where it says nothing itself.

    Raises:
        ValueError: there is no such method.
    """
    name = given.get("method")
    if name is None:
        return dict(given)
    if name not in METHODS:
        raise ValueError(f"method {name!r} is not known; known are {', '.join(METHODS)}")
    return filled(given, METHODS[name])


def filled(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, with `defaults` where it says nothing. A section of another kind is left as it is."""
    result = dict(given)
    for key, default in defaults.items():
        value = result.get(key, default)
        if isinstance(value, Mapping) and isinstance(default, Mapping) and value is not default:
            same_kind = value.get("kind", default.get("kind")) == default.get("kind")
            value = filled(value, default) if same_kind else value
        result[key] = value
    return result
