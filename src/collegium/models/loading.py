"""The one place where weights of models are read: everything that was asked for is there, or nothing is loaded.

Before: the headers of the files are compared with the model that config.json makes, on no memory (0.1 s). While it
loads: what transformers warns of is kept. After: its report of the loading, and the tensors themselves, are looked
at; see `whole`.
"""

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from collegium.base.errors import DataError, one_line, pass_on_full_disk
from collegium.base.references import is_local, is_offline, resolve_reference
from collegium.models.families import require_usable
from collegium.models.weight_files import INDEX, SINGLE, shapes_in, weight_files
from collegium.models.whole import Report, require_nothing_random, require_whole, untie_in_config


logger = logging.getLogger(__name__)


def read_model(
    folder: str | Path,
    *,
    reference: str,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    device_map: str | dict[str, int | str] | None = None,
    quantization_config: Any = None,
) -> PreTrainedModel:
    """Read a causal language model whole, in evaluation mode.

    Args:
        folder: A folder with safetensors, or a hub id.
        reference: The model's name in errors.
        dtype: Type of the weights; None is that of config.json.
        revision: Commit, branch or tag of a hub id.
        trust_remote_code: Let code of the repository run.
        device_map: Placement over devices, as in `from_pretrained`.
        quantization_config: Makes weights of fewer bits while they are read.

    Raises:
        DataError: it cannot be read, or the files and the model do not hold the same tensors.
    """
    stored = shapes_in(_files_of(folder, reference), reference)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
    with loading(reference) as kept:
        config = AutoConfig.from_pretrained(folder, revision=revision, trust_remote_code=trust_remote_code)
        require_usable(config.to_dict(), reference)
        require_padding_within(config, reference)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype or "auto",
            device_map=device_map,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are an error below, with names
            **options,
        )
    model: PreTrainedModel = loaded[0]
    require_whole(model, Report.of(loaded[1]), reference)
    stored = stored or shapes_in(_fetched_files(folder, model.config), reference)
    require_nothing_random(model, stored or None, reference)
    if untie_in_config(model):
        logger.warning(
            "%s: config.json ties embedding and head, but the files hold both; they stay apart", reference
        )
        kept.lines = [line for line in kept.lines if "tied weights mapping" not in line]
    for line in kept.lines:
        logger.warning("%s: %s", reference, line)
    model.eval()
    return model


def require_loadable(
    reference: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedModel | None:
    """Compare the files of a model with what config.json makes, without reading weights.

    Returns:
        The model on the meta device; None if that says nothing: it was not fetched yet, is quantised, has its own
        code, or is a GGUF file.

    Raises:
        DataError: files are absent or damaged, or the files and the model do not hold the same tensors.
    """
    path = resolve_reference(reference)
    if path.endswith(".gguf"):
        return None
    files = _files_of(path, reference)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    with loading(reference, bars=False):  # a model that is thrown away
        config: PretrainedConfig = AutoConfig.from_pretrained(path, **options)
        require_usable(config.to_dict(), reference)
        require_padding_within(config, reference)
        files = files or _fetched_files(path, config)
        is_ours = not (
            trust_remote_code and getattr(config, "auto_map", None)
        )  # others may not bear having no memory
        if not files or not is_ours or getattr(config, "quantization_config", None) is not None:
            return None
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        shapes = shapes_in(files, reference)
        whole, info = type(model).from_pretrained(
            None,
            config=config,
            state_dict={name: torch.empty(shape, device="meta") for name, shape in shapes.items()},
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    require_whole(whole, Report.of(info), reference)
    return cast(PreTrainedModel, whole)


def require_padding_within(config: PretrainedConfig, reference: str) -> None:
    """Require that the padding token of a configuration has a row in the embedding.

    Raises:
        DataError: it has none, which torch only calls an index.
    """
    text = config.get_text_config()
    padding = getattr(text, "pad_token_id", None)
    size = getattr(text, "vocab_size", None)
    if isinstance(padding, int) and isinstance(size, int) and padding >= size:
        raise DataError(
            f"{reference}: `pad_token_id` in config.json is {padding}, but `vocab_size` is {size:,}, so that the "
            f"embedding has no row for it; set it to null, or to a token below {size:,}"
        )


def _files_of(folder: str | Path, reference: str) -> list[Path]:
    """Files of weights in a local folder; none for a hub id."""
    path = Path(folder)
    return weight_files(path, reference) if path.is_dir() else []


def _fetched_files(reference: str | Path, config: PretrainedConfig) -> list[Path]:
    """Files of weights of a hub id, at the commit of its configuration, as far as they were fetched."""
    commit = getattr(config, "_commit_hash", None)
    if commit is None:
        return []
    for name in (SINGLE, INDEX):
        found = try_to_load_from_cache(str(reference), name, revision=commit)
        if isinstance(found, str):
            with contextlib.suppress(DataError):  # of files that are fetched only now
                return weight_files(Path(found).parent, str(reference))
    return []


class Heard(logging.Handler):
    """Keeps warnings as one line each.

    Attributes:
        lines: The warnings.
        unjoined: Tensors of the model that could not be put together from several of the files.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        self.unjoined: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one; the report of a loading is read as data, but for what it says of conversions."""
        message = record.getMessage()
        if "LOAD REPORT" in message:
            self.unjoined += re.findall(r"^Error: .* destined for (\S+?)\.? ", message, re.MULTILINE)
        else:
            self.lines.append(one_line(RuntimeError(message), limit=400))


@contextlib.contextmanager
def heard(*, bars: bool = True) -> Iterator[Heard]:
    """Keep what transformers warns of meanwhile, whatever its verbosity; bars are drawn as set, or not at all."""
    libraries = transformers_logging.get_logger("transformers")
    kept = Heard()
    level = libraries.level
    handlers = list(libraries.handlers)
    propagates = libraries.propagate
    hides_bars = not bars and transformers_logging.is_progress_bar_enabled()
    libraries.handlers[:] = [kept]
    libraries.propagate = False
    libraries.setLevel(logging.WARNING)
    if hides_bars:
        transformers_logging.disable_progress_bar()
    try:
        yield kept
    finally:
        libraries.handlers[:] = handlers
        libraries.propagate = propagates
        libraries.setLevel(level)
        if hides_bars:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def loading(reference: str, *, bars: bool = True) -> Iterator[Heard]:
    """Hear what transformers says of a model that is loaded within, and give its errors a sentence.

    Raises:
        DataError: it cannot be loaded.
    """
    with heard(bars=bars) as kept:
        try:
            yield kept
        except DataError:
            raise
        except Exception as error:  # transformers raises anything from OSError to KeyError here
            pass_on_full_disk(error)
            if kept.unjoined:
                raise DataError(
                    f"{reference}: {kept.unjoined[0]} is put together from several tensors of the files, of which "
                    "some are absent or have another shape; a file of the model is missing, or config.json is "
                    "another model's"
                ) from error
            raise unloadable("model", reference, error) from error


def unloadable(what: str, reference: str, error: Exception) -> DataError:
    """The error for a model, tokenizer or configuration that some library could not load."""
    reason = reason_of(error)
    if is_local(reference):
        if not Path(resolve_reference(reference)).exists():
            reason = "there is no such file or folder"
        fix = "check the path, and that the folder holds config.json, tokenizer files and *.safetensors"
    elif is_offline():
        if isinstance(error, OSError):  # its text is long and speaks of the network
            reason = "it is not in the local hub cache"
        fix = "HF_HUB_OFFLINE is set; unset it, or give a local folder"
    else:
        fix = "check the id, the network and `huggingface-cli login`, or give a local folder"
    return DataError(f"{reference}: {what} cannot be loaded ({reason}); {fix}")


def reason_of(error: Exception) -> str:
    """Class and message of a library's error."""
    return f"{type(error).__name__}: {one_line(error)}"
