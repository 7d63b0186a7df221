"""The formats by name: how each is written, read back by another program, and with what packages."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from collegium.base.durable import disk_errors, write_text
from collegium.base.errors import RecipeError
from collegium.export import gguf_file, int8, onnx_graph
from collegium.export.gguf_reader import open_gguf
from collegium.export.modelfile import modelfile
from collegium.export.packages import require, versions
from collegium.export.parity import Logits
from collegium.export.student_folder import Student


GGUF_NAME = "model.gguf"
ONNX_NAME = "model.onnx"


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        name: As `--to` has it.
        modules: What must be importable.
        packages: Distributions whose releases are written down.
        write: Writes a student into a folder that is there.
        read: Opens what a folder holds, for texts up to a number of tokens; the reader's name, and logits.
    """

    name: str
    modules: tuple[str, ...]
    packages: tuple[str, ...]
    write: Callable[[Student, Path], None]
    read: Callable[[Path, int], tuple[str, Logits]]

    def require(self) -> None:
        """Find its packages before any work.

        Raises:
            RecipeError: one is missing.
        """
        for module in self.modules:
            require(module, self.name)

    def versions(self) -> dict[str, str]:
        """Releases of what wrote it."""
        return versions(("torch", "transformers", *self.packages))


def find_format(name: str) -> Format:
    """A format by its name.

    Raises:
        RecipeError: there is no format of that name.
    """
    found = FORMATS.get(name)
    if found is None:
        raise RecipeError(f"--to {name}: no such format; give one of {', '.join(FORMATS)}")
    return found


def _write_gguf(student: Student, folder: Path) -> None:
    path = folder / GGUF_NAME
    gguf_file.write_gguf(student.model, student.tokenizer, path, folder=student.folder, name=student.name)
    text = modelfile(
        GGUF_NAME,
        student.tokenizer,
        student.model.generation_config,
        context_length=student.model.config.max_position_embeddings,
    )
    write_text(folder / "Modelfile", text)


def _read_gguf(folder: Path, longest: int) -> tuple[str, Logits]:
    return open_gguf(folder / GGUF_NAME, longest)


def _write_onnx(student: Student, folder: Path) -> None:
    onnx_graph.write_onnx(student.model, folder / ONNX_NAME)
    student.model.config.save_pretrained(folder)
    student.tokenizer.save_pretrained(folder)


def _read_onnx(folder: Path, _: int) -> tuple[str, Logits]:
    return f"onnxruntime {versions(['onnxruntime'])['onnxruntime']}", onnx_graph.open_onnx(folder / ONNX_NAME)


def _write_int8(student: Student, folder: Path) -> None:
    int8.write_int8(student.folder, folder)
    with disk_errors(folder):
        student.tokenizer.save_pretrained(folder)


def _read_int8(folder: Path, _: int) -> tuple[str, Logits]:
    return f"transformers {versions(['transformers'])['transformers']} with torchao", int8.open_int8(folder)


FORMATS: Mapping[str, Format] = {
    found.name: found
    for found in (
        Format(gguf_file.FORMAT, ("gguf",), ("gguf",), _write_gguf, _read_gguf),
        Format(
            onnx_graph.FORMAT,
            ("onnx", "onnxscript", "onnxruntime"),
            ("onnx", "onnxscript"),
            _write_onnx,
            _read_onnx,
        ),
        Format(int8.FORMAT, ("torchao.quantization",), ("torchao",), _write_int8, _read_int8),
    )
}
