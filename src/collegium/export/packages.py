"""Optional packages of the extra `export`: found before any work, and kept quiet.

They are imported where they are used, since most installations never export.
"""

import importlib
import importlib.metadata
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

from collegium.base.errors import RecipeError, one_line


_TALKATIVE = ("gguf", "onnx_ir", "onnxscript", "torch.export", "torch.onnx", "torch.utils._pytree", "torchao")


def require(name: str, export_format: str) -> ModuleType:
    """Import an optional package.

    Raises:
        RecipeError: it is not installed, or cannot be imported.
    """
    try:
        with quietly():
            return importlib.import_module(name)
    except ImportError as error:
        raise RecipeError(
            f"--to {export_format}: needs {name}, which cannot be imported here ({one_line(error)}); "
            "run `pip install 'collegium[export]'`"
        ) from error


def versions(names: Sequence[str]) -> dict[str, str]:
    """Installed releases of some distributions."""
    return {name: importlib.metadata.version(name) for name in names}


@contextmanager
def quietly() -> Iterator[None]:
    """Silence what converters log below errors, and their warnings."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="torch")
            warnings.filterwarnings("ignore", category=FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
