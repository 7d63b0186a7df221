"""The student before training, and the choice of what is kept of the model that it is made from."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import torch
from accelerate.utils import broadcast_object_list
from peft import PeftModel
from transformers import PreTrainedModel

from collegium.assembly.process import process_state
from collegium.base.digests import sealed, unsealed
from collegium.base.durable import write_text
from collegium.base.errors import DataError
from collegium.base.progress import Phase
from collegium.models.pretrained import load_model, model_from_config, place, resolve_dtype
from collegium.models.probe import check_model
from collegium.models.pruning.choice import Kept, choose_kept
from collegium.models.pruning.layout import target_sizes
from collegium.models.pruning.surgery import prune
from collegium.models.student import check_num_layers, choose_layers, keep_layers, with_lora
from collegium.recipe.sections.models import (
    ConfigStudentSection,
    ContinuedStudentSection,
    LayerDropStudentSection,
    ModelSection,
    PrunedStudentSection,
)
from collegium.signals.contracts import Batch


if TYPE_CHECKING:
    from collegium.assembly.run import Run

logger = logging.getLogger(__name__)

Choice = TypeVar("Choice")

LAYERS = "layers"
"""Key of the choice in its file, beside the digest."""

CALIBRATION_BATCH = 8
"""Blocks of one forward pass; scores do not depend on it."""


def build_student(run: "Run") -> PreTrainedModel | PeftModel:
    """Make the student before training, with its adapters if it has some.

    A run with a folder keeps a choice of layers or parts there and reads it again: one that goes on must not
    choose another time.

    Raises:
        DataError: the model cannot be loaded.
        RecipeError: it has no such layers or modules.
    """
    with Phase("making the student"):
        return _built(run)


def trained_student(run: "Run", model: str, *, name: str = "student") -> PreTrainedModel:
    """Load a student to be measured, and try it, so that it reads documents as it did in training.

    Args:
        run: Whose text it will read.
        model: Its folder, or a model in its place.
        name: Its name in errors.

    Raises:
        DataError: it cannot be loaded, or cannot read such blocks.
    """
    student: PreTrainedModel = place(load_model(model, dtype=torch.float32), run.device)
    with Phase("trying the student on a batch of made-up text", is_short=True):
        check_model(student, run.vocab_size, name=name, shape=run.block_shape)
    student.eval()
    return student


def _built(run: "Run") -> PreTrainedModel | PeftModel:
    recipe = run.recipe
    section = recipe.student
    dtype = resolve_dtype(section.dtype)
    if isinstance(section, ConfigStudentSection):
        model = model_from_config(
            section.model,
            overrides=section.overrides,
            dtype=dtype,
            seed=recipe.seed,
            revision=section.revision,
        )
    else:
        model = load_model(
            section.model,
            dtype=dtype,
            revision=section.revision,
            trust_remote_code=section.trust_remote_code,
        )
    if isinstance(section, LayerDropStudentSection | PrunedStudentSection):  # which read text to choose by
        check_model(model, run.vocab_size, name="student", shape=run.block_shape)
    if isinstance(section, LayerDropStudentSection):
        kept = section.keep_layers
        model = keep_layers(model, chosen_layers(run, section, model) if kept is None else kept)
    if isinstance(section, PrunedStudentSection):
        model = prune(model, chosen_parts(run, section, model))
    check_model(model, run.vocab_size, name="student", shape=run.block_shape)
    if section.lora is None:
        return model
    torch.manual_seed(recipe.seed)
    lora = section.lora
    return with_lora(
        model,
        rank=lora.rank,
        alpha=lora.alpha,
        dropout=lora.dropout,
        target_modules=lora.target_modules,
        reference=_base_named(section),
    )


def _base_named(section: ModelSection | ContinuedStudentSection) -> str:
    """Name the base of an adapter; a student that was cut has no name by which other programs can load it."""
    if isinstance(section, LayerDropStudentSection):
        kept = "those in the run's kept_layers.json" if section.keep_layers is None else section.keep_layers
        return f"{section.model}, of whose layers these are kept: {kept}"
    if isinstance(section, PrunedStudentSection):
        return f"{section.model}, of which the parts in the run's kept.json are kept"
    if isinstance(section, ConfigStudentSection):
        return f"a new model by the configuration of {section.model}"
    return str(section.model)


def chosen_layers(run: "Run", section: LayerDropStudentSection, model: PreTrainedModel) -> list[int]:
    """The layers whose absence costs most, chosen once by the first rank and kept in the run's folder."""
    num_layers = section.num_layers
    assert num_layers is not None, "validated: one of the two is given"
    check_num_layers(model, num_layers)  # on all ranks, so that none waits for one that stopped

    def choose() -> list[int]:
        with _calibration(run, model, section.calibration_blocks) as batches:
            kept = choose_layers(model, num_layers, batches)
        logger.info("keep_layers: %s", kept)
        return kept

    return _once(run, "kept_layers.json", choose, dumped=json.dumps, parsed=_parsed_layers)


def chosen_parts(run: "Run", section: PrunedStudentSection, model: PreTrainedModel) -> Kept:
    """The most important parts of the model, chosen once by the first rank and kept in the run's folder."""
    target = target_sizes(model, **section.sizes)  # on all ranks, as above

    def choose() -> Kept:
        with _calibration(run, model, section.calibration_blocks) as batches:
            return choose_kept(model, target, batches, depth_criterion=section.depth_criterion)

    return _once(run, "kept.json", choose, dumped=Kept.dumped, parsed=Kept.parsed)


def _once(
    run: "Run",
    name: str,
    choose: Callable[[], Choice],
    *,
    dumped: Callable[[Choice], str],
    parsed: Callable[[str], Choice],
) -> Choice:
    """Have the first rank read a file of the run's folder, or choose and write it; the same on all ranks."""
    run.make("text")  # on all ranks, since the first one reads it alone from here on
    path = None if run.folder is None else run.folder / name
    texts: list[str] = [""]
    if process_state().is_main_process:
        if path is not None and path.exists():
            texts = [path.read_text(encoding="utf-8", errors="replace")]
        else:
            texts = [_with_digest(dumped(choose()))]
            if path is not None:
                write_text(path, texts[0])
    broadcast_object_list(texts)
    try:
        return parsed(_without_digest(texts[0]))
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{path}: holds no list of what is kept ({error}); delete the run folder and begin again"
        ) from error


def _with_digest(text: str) -> str:
    content = json.loads(text)
    return json.dumps(sealed(content if isinstance(content, dict) else {LAYERS: content}))


def _without_digest(text: str) -> str:
    """What was kept, as JSON.

    Raises:
        ValueError: it is not as it was written.
    """
    return json.dumps(unsealed(json.loads(text)))


def _parsed_layers(text: str) -> list[int]:
    content = json.loads(text)
    if isinstance(content, dict):  # earlier versions wrote a bare list
        if content.keys() != {LAYERS}:
            raise ValueError(f"it holds {sorted(content)}")
        content = content[LAYERS]
    return [int(index) for index in content]


@contextlib.contextmanager
def _calibration(run: "Run", model: PreTrainedModel, num_blocks: int) -> Iterator[list[Batch]]:
    """Training text on the run's device, where the model is meanwhile."""
    device = run.device
    blocks = run.text.train.take(num_blocks)
    rows = range(len(blocks))
    groups = [rows[start : start + CALIBRATION_BATCH] for start in rows[::CALIBRATION_BATCH]]
    inputs = [run.collator([blocks[i] for i in group]) for group in groups]
    place(model, device)
    yield [Batch.from_inputs({name: value.to(device) for name, value in given.items()}) for given in inputs]
    place(model, torch.device("cpu"))
