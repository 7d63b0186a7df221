"""Commands on a finished student: report, push and export."""

from pathlib import Path
from typing import Annotated

import typer

from collegium.base.terminal import show, show_json
from collegium.cli.completion import formats
from collegium.cli.recipe import AsJson


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN [RUN]...", help="folders of finished runs")],
    *,
    output: Annotated[
        Path | None,
        typer.Option(help="page to write; report.html in the run's folder, or in this one for several runs"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write an HTML page about a run, or one that compares several."""
    from collegium.pipeline.report import report as make

    made = make(runs, output)
    if as_json:
        show_json(made)
    else:
        show(made["page"])


def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a finished run")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="repository on the hub, OWNER/NAME")],
    *,
    private: Annotated[bool, typer.Option("--private/--public", help="who may see it")] = True,
    revision: Annotated[str | None, typer.Option(metavar="BRANCH", help="branch; created if missing")] = None,
    token_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="environment variable with the token, instead of the login")
    ] = None,
    accept_licences: Annotated[
        bool, typer.Option("--accept-licences", help="you have read the licences, and they allow it")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show what would be uploaded, without asking the hub")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Upload a finished student to the hub with its model card and evaluation, private by default.

    Exits with 69 if the hub cannot be reached or refuses, with 65 if the run is not finished.
    """
    from collegium.pipeline import push as pushing

    upload = pushing.plan_upload(run, repo_id, private=private, revision=revision, accept_licences=accept_licences)
    if dry_run:
        pushing.show_upload(upload, as_json=as_json)
    else:
        pushing.show_push(pushing.push(upload, token_env=token_env), as_json=as_json)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a finished run")],
    *,
    to: Annotated[
        str, typer.Option(metavar="FORMAT", help="gguf, onnx or safetensors-int8", autocompletion=formats)
    ],
    output: Annotated[Path | None, typer.Option(help="folder to create; RUN/export/FORMAT if not given")] = None,
    min_agreement: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="minimum share of held-out tokens on which both have the same first choice"
        ),
    ] = 0.99,
    tokens: Annotated[int, typer.Option(min=1, help="held-out tokens to compare on")] = 4096,
    as_json: AsJson = False,
) -> None:
    """Convert the student to another format, and keep the result if it agrees with the student.

    The files are read back and compared on held-out text. Exits with 65 and leaves nothing if they disagree.
    """
    from collegium.pipeline.export import export_run, show_export

    result = export_run(run, to, output=output, min_agreement=min_agreement, max_positions=tokens)
    if as_json:
        show_json(result)
    else:
        show_export(result)
