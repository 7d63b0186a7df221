"""GGUF files as ordinary folders of safetensors: read right, or refused with the reason.

A file is dequantised once and kept in the cache under the hash of its content: 30 s the first time, one second
afterwards. Parts of a split file are joined first. transformers' reader passes over what it does not know without
a word; `gguf_metadata` compares every key and every tensor with what was read.
"""

import contextlib
import hashlib
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig, PreTrainedModel

from collegium.base.digests import verify_folder, write_digests
from collegium.base.durable import disk_errors, open_to_umask
from collegium.base.errors import DataError, pass_on_full_disk
from collegium.base.known_digests import content_digest
from collegium.base.progress import Phase
from collegium.base.references import cache_dir
from collegium.models.gguf_metadata import Metadata, complete_config, require_every_tensor
from collegium.models.loading import heard, reason_of
from collegium.models.settings import GGUF_VERSION
from collegium.models.weight_files import some
from collegium.models.whole import Report, require_whole


if TYPE_CHECKING:
    from gguf import GGUFReader

logger = logging.getLogger(__name__)

_PART = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


def gguf_parts(path: Path) -> list[Path]:
    """The files of a GGUF model in order: itself, or all parts of a split one.

    Raises:
        DataError: a part is not there.
    """
    match = _PART.match(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    parts = [path.with_name(f"{match['stem']}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    absent = [part.name for part in parts if not part.is_file()]
    if absent:
        raise DataError(
            f"{path}: is one of {count} parts of a model, of which {some(absent)} "
            f"{'is' if len(absent) == 1 else 'are'} not there; fetch them too, into the same folder"
        )
    return parts


def dequantized(path: Path) -> Path:
    """Folder with the float32 safetensors of a GGUF file; made at the first call, then kept.

    Args:
        path: The file; of a split one any part.

    Raises:
        DataError: it is not a whole GGUF file, or says something that cannot be read right.
        OSError: it cannot be written, for instance because the disk is full.
    """
    parts = gguf_parts(path)
    target = _target(parts)
    if (target / "config.json").exists() and _is_whole(target):
        return target
    with Phase(f"dequantising {path.name} (once)"):
        _dequantize(parts, target, path)
    return target


def _dequantize(parts: list[Path], target: Path, path: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(target.parent)
    temporary = Path(tempfile.mkdtemp(prefix=".making-", dir=target.parent))
    try:
        with disk_errors(temporary):
            joined = _joined(parts, temporary / "joined.gguf", path)
        model = read_gguf(joined, path)
        if len(parts) > 1:
            joined.unlink()
        with disk_errors(temporary):
            model.save_pretrained(temporary)
        open_to_umask(temporary)
        write_digests(temporary)
        temporary.rename(target)
    except OSError:
        if not (target / "config.json").exists():  # else another process was first
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    """Whether dequantised weights are as they were written; removes them if not."""
    try:
        verify_folder(folder)
    except DataError:
        logger.warning("%s: is damaged; the file is dequantised again", folder)
        shutil.rmtree(folder)
        return False
    return True


def require_readable(path: Path) -> None:
    """Require that all that a GGUF file says can be read right, by its keys and the names of its tensors.

    Nothing is dequantised; a file that was, is known to be right.

    Raises:
        DataError: something cannot.
    """
    parts = gguf_parts(path)
    if (_target(parts) / "config.json").exists():
        return
    with _read_within(path), heard(bars=False):
        metadata = Metadata.of(parts, str(path))
        config = complete_config(AutoConfig.from_pretrained(path.parent, gguf_file=parts[0].name), metadata)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
    require_every_tensor(model, metadata)


def _target(parts: list[Path]) -> Path:
    """Folder in the cache."""
    return cache_dir() / "dequantized" / f"{_digest(parts)}-{GGUF_VERSION}"


def _digest(parts: list[Path]) -> str:
    digests = [content_digest(part) for part in parts]
    return digests[0][:32] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()[:32]


def read_gguf(file: Path, path: Path) -> PreTrainedModel:
    """The model in float32, with a configuration that says all that the file says.

    Args:
        file: A whole GGUF file.
        path: Its name in errors.

    Raises:
        DataError: it cannot be read, or says something that cannot be read right.
    """
    with _read_within(path), heard() as kept:
        metadata = Metadata.of([file], str(path))
        config = complete_config(AutoConfig.from_pretrained(file.parent, gguf_file=file.name), metadata)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent,
            config=config,
            gguf_file=file.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    model: Any = loaded[0]
    for line in kept.lines:
        logger.warning("%s: %s", path, line)
    require_whole(model, Report.of(loaded[1]), str(path))
    require_every_tensor(model, metadata)
    # A dequantised model is an ordinary one, but still says otherwise and then refuses to be saved.
    model.hf_quantizer = None
    model.config.__dict__.pop("quantization_config", None)
    whole: PreTrainedModel = model
    return whole


@contextlib.contextmanager
def _read_within(path: Path) -> Iterator[None]:
    """Give errors of the readers a sentence."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        pass_on_full_disk(error)
        raise DataError(f"{path}: GGUF file cannot be read ({reason_of(error)}); fetch it again") from error


def _joined(parts: list[Path], target: Path, path: Path) -> Path:
    """One file of all parts, as llama.cpp's `llama-gguf-split --merge` makes it."""
    if len(parts) == 1:
        return parts[0]
    from gguf import GGUFReader, GGUFWriter

    try:
        readers = [GGUFReader(part) for part in parts]
        _require_parts(readers, path)
        first = readers[0].fields
        writer = GGUFWriter(target, str(first["general.architecture"].contents()))
        for name, field in first.items():
            if name.startswith(("GGUF.", "split.")) or name == "general.architecture":
                continue
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
        tensors = [tensor for reader in readers for tensor in reader.tensors]
        for tensor in tensors:
            writer.add_tensor_info(
                tensor.name, tensor.data.shape, tensor.data.dtype, tensor.data.nbytes, tensor.tensor_type
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(tensor.data)
        writer.close()
    except (ValueError, KeyError, IndexError) as error:
        raise DataError(f"{path}: its parts cannot be joined ({reason_of(error)}); fetch them again") from error
    return target


def _require_parts(readers: "list[GGUFReader]", path: Path) -> None:
    """Require that the parts belong together, as they say themselves."""
    expected = readers[0].fields.get("split.tensors.count")
    found = sum(len(reader.tensors) for reader in readers)
    if expected is not None and expected.contents() != found:
        raise DataError(
            f"{path}: its parts hold {found} tensors, but the first says that there are {expected.contents()}; "
            "fetch all parts of one model again"
        )


def remove_stale(folder: Path) -> None:
    """Remove what a process that was killed left half-made more than a day ago."""
    for left in folder.glob(".making-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > 86_400:
                shutil.rmtree(left)
