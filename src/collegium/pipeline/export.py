"""`collegium export`: the student of a finished run, in a format of other programs, with its parity.

Held-out text comes from the run's own recipe, prepared or found prepared, so that the figure is about the text
that the student is meant for.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from collegium.alignment.tokenizer_match import require_same_tokenizer
from collegium.assembly.run import Run
from collegium.base.errors import DataError
from collegium.base.locks import folder_lock, path_lock
from collegium.base.progress import Phase
from collegium.base.terminal import show_table
from collegium.export.artefact import export_student, require_free
from collegium.export.formats import Format, find_format
from collegium.export.held_out import held_out_segments
from collegium.export.student_folder import load_student
from collegium.models.probe import check_model


def export_run(
    run_dir: Path, to: str, *, output: Path | None = None, min_agreement: float = 0.99, max_positions: int = 4096
) -> dict[str, Any]:
    """Export the student of a run.

    Args:
        run_dir: A finished run.
        to: Name of the format.
        output: Folder to make; RUN/export/FORMAT if None.
        min_agreement: Smallest top-1 agreement with which it is published.
        max_positions: Held-out tokens that it is measured on.

    Returns:
        What stands in its `export.json`, and `output`, where that is.

    Raises:
        BusyError: another process is writing the run folder, or the output.
        RecipeError: there is no such format, or its packages are not installed.
        DataError: there is no finished run, there is an output already, or the export did not pass.
    """
    export_format = find_format(to)
    target = output or run_dir / "export" / to
    require_free(target)
    export_format.require()
    if not (run_dir / "recipe.yaml").is_file():
        raise DataError(f"{run_dir}: holds no `recipe.yaml`; give the folder of a finished run")
    with _written_alone(run_dir, target):
        result = _export(run_dir, export_format, target, min_agreement, max_positions)
    return {**result, "output": str(target)}


def _written_alone(run_dir: Path, target: Path) -> AbstractContextManager[None]:
    """Hold the run folder if the export lies in it, otherwise the export alone: the run is only read then."""
    if target.resolve().is_relative_to(run_dir.resolve()):
        return folder_lock(run_dir)
    target.parent.mkdir(parents=True, exist_ok=True)
    return path_lock(target.with_name(f".{target.name}.lock"), target)


def _export(
    run_dir: Path, export_format: Format, target: Path, min_agreement: float, max_positions: int
) -> dict[str, Any]:
    run = Run.from_folder(run_dir)
    student = load_student(run_dir / "student", run.recipe.name)
    run.make("text")
    require_same_tokenizer(run.tokenizer, student.tokenizer, name=str(student.folder))
    with Phase("trying the student on a batch of made-up text", is_short=True):
        check_model(student.model, run.vocab_size, name=str(student.folder), shape=run.block_shape)
    return export_student(
        student,
        export_format,
        target,
        segments=held_out_segments(run.text.held_out, max_positions),
        vocab_size=run.vocab_size,
        min_agreement=min_agreement,
        source={"run": run_dir.resolve().name, "recipe": run.recipe.fingerprint},
    )


def show_export(result: Mapping[str, Any]) -> None:
    """Its size and its figures."""
    parity = result["parity"]
    rows = [
        ["bytes", f"{result['bytes']:,}"],
        ["held-out tokens read", f"{parity['positions']:,}"],
        ["same most probable token", f"{parity['top1_agreement']:.2%}"],
        ["mean KL(student || export), nats", f"{parity['mean_kl']:.3g}"],
        ["largest", f"{parity['max_kl']:.3g}"],
        ["read back by", parity["reader"]],
    ]
    show_table(f"{result['format']}: {result['output']}", ["", ""], rows)
