"""The commands on a finished student: show it, take it to other programs, pass it on."""

from pathlib import Path
from typing import Annotated

import typer

from collegium.base.terminal import show_json
from collegium.cli.completion import formats
from collegium.cli.recipe import AsJson


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN [RUN]...", help="folders of finished runs")],
    output: Annotated[
        Path | None, typer.Option(help="the page; report.html in the run, or here if there are several")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make one page of a run, or of several beside each other: what was taught, by whom, and what came of it."""
    from collegium.pipeline.report import report as make

    made = make(runs, output)
    if as_json:
        show_json(made)
    else:
        print(made["page"])


def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a finished run")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="repository on the hub, OWNER/NAME")],
    private: Annotated[bool, typer.Option("--private/--public", help="who may see it")] = True,
    revision: Annotated[str | None, typer.Option(metavar="BRANCH", help="branch; made if it is not there")] = None,
    token_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="environment variable with the token, in place of the login")
    ] = None,
    accept_licences: Annotated[
        bool, typer.Option("--accept-licences", help="they were read and allow it")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be uploaded, ask no hub")] = False,
    as_json: AsJson = False,
) -> None:
    """Upload a finished student to the hub, with its model card and evaluation; private unless asked otherwise.

    Ends with 69 where the hub is not there or refuses, with 65 where the run is not finished.
    """
    from collegium.pipeline import push as pushing

    upload = pushing.plan_upload(run, repo_id, private=private, revision=revision, accept_licences=accept_licences)
    if dry_run:
        pushing.show_upload(upload, as_json=as_json)
    else:
        pushing.show_push(pushing.push(upload, token_env=token_env), as_json=as_json)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a finished run")],
    to: Annotated[
        str, typer.Option(metavar="FORMAT", help="gguf, onnx or safetensors-int8", autocompletion=formats)
    ],
    output: Annotated[Path | None, typer.Option(help="folder to make; RUN/export/FORMAT if not given")] = None,
    min_agreement: Annotated[
        float, typer.Option(min=0, max=1, help="share of held-out tokens with the student's first choice to pass")
    ] = 0.99,
    tokens: Annotated[int, typer.Option(min=1, help="held-out tokens to measure on")] = 4096,
    as_json: AsJson = False,
) -> None:
    """Write the student for other programs, read it back on held-out text, and publish it if it agrees.

    Ends with 65, and leaves nothing, where it does not.
    """
    from collegium.pipeline.export import export_run, show_export

    result = export_run(run, to, output=output, min_agreement=min_agreement, max_positions=tokens)
    if as_json:
        show_json(result)
    else:
        show_export(result)
