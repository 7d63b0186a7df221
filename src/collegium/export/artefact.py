"""An export exists once it is whole and has passed its check, otherwise not at all.

It is written under a temporary name beside its place, read back from there, measured, and renamed. An export
that was damaged on its way, or that a format cannot hold faithfully, leaves nothing behind but its figure.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from collegium.base.durable import open_to_umask, sync_folder, write_text
from collegium.base.errors import DataError
from collegium.base.progress import Phase
from collegium.export.formats import Format
from collegium.export.gguf_reader import logits_of
from collegium.export.parity import Parity, measure_parity
from collegium.export.student_folder import Student


DESCRIPTION = "export.json"


def export_student(
    student: Student,
    export_format: Format,
    output: Path,
    *,
    segments: Sequence[Sequence[int]],
    vocab_size: int,
    min_agreement: float,
    source: Mapping[str, Any],
) -> dict[str, Any]:
    """Write a student in another format, measure what was written, and publish it if it passes.

    Args:
        student: What is exported.
        export_format: Into what.
        output: Folder that is made.
        segments: Held-out text that both are read on.
        vocab_size: Tokens of the tokenizer.
        min_agreement: Smallest top-1 agreement that passes, from 0 to 1.
        source: Where the student comes from, for `export.json`.

    Returns:
        What stands in `export.json`.

    Raises:
        DataError: there is an output already, or the export did not pass.
    """
    require_free(output)
    temporary = output.with_name(f".{output.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    temporary.mkdir(parents=True)
    try:
        with Phase(f"writing {export_format.name}"):
            export_format.write(student, temporary)
        with Phase("reading it back"):
            reader, logits = export_format.read(temporary, max(map(len, segments)))
        parity = measure_parity(segments, logits_of(student.model), logits, vocab_size=vocab_size)
        require_parity(parity, min_agreement, f"--to {export_format.name}", reader)
        result = {
            **source,
            "format": export_format.name,
            "bytes": sum(file.stat().st_size for file in temporary.rglob("*")),
            "parity": {**parity.figures(), "min_agreement": min_agreement, "reader": reader},
            "versions": export_format.versions(),
        }
        write_text(temporary / DESCRIPTION, json.dumps(result, indent=1))
        _publish(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return result


def require_free(output: Path) -> None:
    """Require that nothing will be overwritten.

    Raises:
        DataError: there is something.
    """
    if output.exists():
        raise DataError(f"{output}: is there already; delete it, or give another folder with --output")


def require_parity(parity: Parity, min_agreement: float, what: str, reader: str) -> None:
    """Require that an export agrees with what it was made from.

    Raises:
        DataError: it is not.
    """
    measured = (
        f"read back by {reader} on {parity.positions:,} held-out tokens, the most probable token is the student's "
        f"at {parity.top1_agreement:.2%} (mean KL {parity.mean_kl:.2g} nats)"
    )
    if not math.isfinite(parity.mean_kl):
        raise DataError(f"{what}: {measured}: some logits are not finite; nothing was published")
    if parity.top1_agreement < min_agreement:
        raise DataError(
            f"{what}: {measured}, {min_agreement:.2%} is asked for; nothing was published. Try another format, "
            f"or, if that loss is acceptable, --min-agreement {math.floor(parity.top1_agreement * 1000) / 1000:g}"
        )


def _publish(temporary: Path, output: Path) -> None:
    open_to_umask(temporary)
    for file in temporary.rglob("*"):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    temporary.rename(output)
    sync_folder(output.parent)
