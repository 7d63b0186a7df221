"""What callbacks remember, such as the patience that `EarlyStoppingCallback` has left, over a resume.

transformers writes such states but does not restore them unless asked to, and then makes new callbacks with the
settings of the checkpoint. Here the callbacks that are given stay, with the settings that are given, and only what
they remember is put back. Flags of `TrainerControl` are not: they say what to do after one step, and a run that a
signal stopped is to go on.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_callback import ExportableState

from collegium.base.terminal import say


States = dict[str, list[dict[str, Any]]]
"""By the name of a callback's class, one for each of its objects in order."""


def callback_states(callbacks: Sequence[TrainerCallback]) -> States:
    """What callbacks say of themselves.

    Raises:
        ValueError: one says what JSON cannot hold.
    """
    states: States = {}
    for callback in callbacks:
        if isinstance(callback, ExportableState):
            name = type(callback).__name__
            state = callback.state()
            try:
                states.setdefault(name, []).append(json.loads(json.dumps(state)))
            except (TypeError, ValueError) as error:
                raise ValueError(f"the state of callback {name} cannot be written as JSON: {error}") from error
    return states


def restore_callbacks(callbacks: Sequence[TrainerCallback], stored: Mapping[str, Any]) -> None:
    """Give callbacks back what they remembered, and say which settings or callbacks are others now."""
    now = callback_states(callbacks)
    for name, found in stored.items():
        if name == "TrainerControl":
            continue
        states = found if isinstance(found, list) else [found]
        mine = [callback for callback in callbacks if type(callback).__name__ == name]
        if len(mine) != len(states):
            say(f"callback {name}: {len(states)} in the checkpoint, {len(mine)} now; what is too many is left out")
        for callback, state, given in zip(mine, states, now.get(name, []), strict=False):
            _restore(callback, state)
            if state.get("args") != given.get("args"):
                say(f"callback {name}: goes on with {given.get('args')}; the checkpoint has {state.get('args')}")


def _restore(callback: TrainerCallback, state: Mapping[str, Any]) -> None:
    kind: Any = type(callback)
    if kind.from_state.__func__ is not ExportableState.from_state.__func__:  # type: ignore[attr-defined]
        vars(callback).update(vars(kind.from_state(state)))
        return
    for attribute, value in state.get("attributes", {}).items():
        setattr(callback, attribute, value)


def has_stopped_early(callbacks: Sequence[TrainerCallback], stored: Mapping[str, Any]) -> bool:
    """Whether one of these callbacks had lost its patience at the checkpoint: there is nothing to go on with."""
    states = stored.get(EarlyStoppingCallback.__name__, [])
    mine = [callback for callback in callbacks if type(callback) is EarlyStoppingCallback]
    return any(
        state["attributes"]["early_stopping_patience_counter"] >= callback.early_stopping_patience
        for callback, state in zip(mine, states if isinstance(states, list) else [states], strict=False)
    )
