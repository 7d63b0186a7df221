"""Methods of the literature as recipe values: what `method: NAME` fills in where a recipe says nothing.

A method is nothing but such values, so everything that it does can be read in the resolved recipe, and any
of it changed there. `docs/methods/` has a page for each: formula, source, and what was adapted. No torch here.
"""

from collections.abc import Mapping
from typing import Any

from collegium.base.suggestion import did_you_mean


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
    "ebkd": {"objective": {"kd_weight": 0.5, "weighting": {"kind": "ebkd", "granularity": "token"}}},
    "ca_mkd": {"objective": {"kd_weight": 0.5, "weighting": {"kind": "ca_mkd", "granularity": "token"}}},
    "mt_bert": {
        "objective": {
            "kd_weight": 0.5,
            "weighting": {"kind": "mt_bert", "granularity": "token"},
            "feature_weight": 0.5,
            "feature": {"layer_map": "uniform", "layer_norm": True},
        }
    },
    "fusellm": {"objective": {"kd_weight": 0.1, "weighting": {"kind": "min_ce", "granularity": "sequence"}}},
    "ae_kd": {
        "objective": {
            "kd_weight": 0.47,
            "weighting": {"kind": "min_norm", "granularity": "sequence", "max_weight": 0.6},
        }
    },
    "bayes": {"objective": {"kd_weight": 0.5, "weighting": {"kind": "bayes", "decay": 0.97}}},
    # Papers with one teacher and a divergence of their own; more teachers count alike unless a recipe weighs them.
    "dkd": {
        "objective": {
            "kd_weight": {"shape": "linear", "initial": 0.0, "final": 1.0, "begin": 0.0, "end": 0.08},
            "ce_weight": 1.0,
            "weighting": "uniform",
            "divergence": {"kind": "decoupled", "alpha": 1.0, "beta": 1.0},
        }
    },
    "distillm": {
        "objective": {
            "kd_weight": 1.0,
            "weighting": "uniform",
            "divergence": {"kind": "skew_reverse_kl", "alpha": 0.1},
        }
    },
    "distillm2": {
        "objective": {
            "kd_weight": 1.0,
            "weighting": "uniform",
            "divergence": {"kind": "distillm2", "alpha": 0.1, "gradual": False},
        },
        "on_policy": {"fraction": 0.5, "max_new_tokens": 128, "temperature": 1.0, "loss": "divergence"},
    },
    "akl": {
        "objective": {
            "kd_weight": 1.0,
            "weighting": "uniform",
            "divergence": {"kind": "adaptive_kl", "mu": 0.5},
        }
    },
    "abkd": {
        "objective": {
            "kd_weight": 1.0,
            "weighting": "uniform",
            "divergence": {"kind": "alpha_beta", "alpha": 0.2, "beta": 0.7},
        }
    },
    "todi": {
        "objective": {
            "kd_weight": 0.5,
            "weighting": "uniform",
            "divergence": {"kind": "todi"},
            "kd_temperature": 2.0,
            "scale_by_squared_temperature": False,
        }
    },
    "ddk": {  # cross-entropy + 0.2 KL
        "objective": {"kd_weight": 1 / 6, "weighting": "uniform"},
        "data": {"mixing": {"kind": "ddk", "every": 1000, "alpha": 0.5, "max_ratio": 5.0}},
    },
    "taid": {
        "objective": {
            "kd_weight": 1.0,
            "weighting": "uniform",
            "divergence": {"kind": "taid", "start": 0.4, "end": 1.0, "alpha": 5e-4, "beta": 0.99},
        }
    },
    # Structures of inner states first, then a stage of logits alone.
    "mgskd": {
        "objective": {
            "feature_weight": {"shape": "step", "initial": 1.0, "final": 0.0, "begin": 0.75},
            "kd_weight": {"shape": "step", "initial": 0.0, "final": 1.0, "begin": 0.75},
            "ce_weight": 0.0,
            "weighting": "uniform",
            "feature": {
                "kind": "structure",
                "layer_map": "uniform",
                "relation_heads": 64,
                "salient_tokens": 20,
                "neighbours": 20,
                "lower_pairs": 2,
                "level_weights": (1.0, 1.0, 4.0),
            },
        }
    },
    # The most faithful of its strategies that takes any number of teachers; `adoption` wants two.
    "dynamic_kd": {"objective": {"kd_weight": 0.5, "dynamic": {"selection": "entropy", "selected_share": 0.5}}},
    # The student is `kind: pruned`, whose sizes only the recipe can know.
    "minitron": {"objective": {"kd_weight": 1.0, "divergence": "forward_kl", "kd_temperature": 1.0}},
    "incremental": {"objective": {"kd_weight": 1.0, "weighting": "uniform"}},
    # Features first, then distributions; the papers' steps as shares of a run.
    "tinybert": {
        "objective": {
            "kd_weight": {"shape": "step", "initial": 0.0, "final": 1.0, "begin": 0.75},
            "ce_weight": 0.0,
            "weighting": "uniform",
            "feature_weight": {"shape": "step", "initial": 1.0, "final": 0.0, "begin": 0.75},
            "feature": [
                {"kind": "hidden_states", "shared_projection": True, "layer_reduction": "sum"},
                {"kind": "attention_scores", "layer_reduction": "sum"},
            ],
        }
    },
    "mobilebert": {
        "objective": {
            "kd_weight": {"shape": "step", "initial": 0.0, "final": 0.5, "begin": 0.6},
            "ce_weight": {"shape": "step", "initial": 0.0, "final": 0.5, "begin": 0.6},
            "weighting": "uniform",
            "feature_weight": {"shape": "step", "initial": 1.0, "final": 0.0, "begin": 0.6},
            "feature": [
                {"kind": "feature_maps", "stage_share": 0.6},
                {"kind": "attention_maps", "stage_share": 0.6},
            ],
        }
    },
    "minilm": {
        "objective": {
            "kd_weight": 0.0,
            "ce_weight": 1.0,
            "feature_weight": 1.0,
            "feature": [
                {"kind": "attention_maps", "layer_map": "last"},
                {"kind": "relations", "of": ["values"], "num_relation_heads": "attention"},
            ],
        }
    },
    "minilmv2": {
        "objective": {
            "kd_weight": 0.0,
            "ce_weight": 1.0,
            "feature_weight": 1.0,
            "feature": [{"kind": "relations", "num_relation_heads": "auto", "layer": "last"}],
        }
    },
    # Teachers with other tokenizers, compared in their own vocabularies.
    "uld": {
        "objective": {
            "kd_weight": 0.0,
            "ce_weight": 1.0,
            "cross_tokenizer_weight": 1.5,
            "cross_tokenizer": [{"kind": "uld", "temperature": 1.0}],
        }
    },
    "gold": {
        "objective": {
            "kd_weight": 0.0,
            "ce_weight": 0.0,
            "cross_tokenizer_weight": 1.0,
            "cross_tokenizer": [{"kind": "gold", "beta": 0.5, "merge": "bayesian", "temperature": 1.0}],
        }
    },
    "alm": {
        "objective": {
            "kd_weight": 0.0,
            "ce_weight": 0.0,
            "cross_tokenizer_weight": 1.0,
            "cross_tokenizer": [{"kind": "alm", "tau": 100.0, "debias": True, "threshold": 0.1}],
        }
    },
    "dskd": {
        "objective": {
            "kd_weight": 0.0,
            "ce_weight": 0.5,
            "cross_tokenizer_weight": 0.5,
            "cross_tokenizer": [{"kind": "dskd", "temperature": 2.0}],
        }
    },
    "gkd": {
        "objective": {"kd_weight": 1.0, "divergence": {"kind": "jsd", "beta": 0.5}, "weighting": "uniform"},
        "on_policy": {"fraction": 0.5, "max_new_tokens": 128, "temperature": 0.9, "loss": "divergence"},
    },
    "minillm": {
        "objective": {
            "kd_weight": 0.5,
            "divergence": {"kind": "distillm2", "alpha": 0.0, "gradual": False},
            "weighting": "uniform",
        },
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
        raise ValueError(f"method {name!r} is not known; {did_you_mean(name, METHODS, always_list=True)}")
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
