"""Defines the commands: arguments in, a table or one JSON document out.

Heavy imports are inside the commands, so that `--help` answers within half a second. Options stand after `*`,
in the order in which `--help` lists them.
"""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from collegium.base.terminal import show_json
from collegium.cli.completion import experiments, teachers_of
from collegium.cli.outcome import conclude
from collegium.cli.recipe import AsJson, Overrides, RecipePath, check, init, schema
from collegium.cli.student import export, push, report


app = typer.Typer(
    help="Distil several language models into one small one.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

for _command in (init, check, schema):
    app.command()(_command)


@app.command()
def prepare(recipe: RecipePath, overrides: Overrides = None, *, as_json: AsJson = False) -> None:
    """Read the text, hold out documents for evaluation, and pack the rest into blocks on disk."""
    from collegium.pipeline import prepare as commands

    found = commands.prepare(_load(recipe, overrides))
    if as_json:
        show_json(found)


@app.command()
def doctor(recipe: RecipePath, overrides: Overrides = None, *, as_json: AsJson = False) -> None:
    """Inspect tokenizers, text, caches and this machine; no weights are read, so it takes seconds.

    Exits with 65 if the text cannot be used, with 69 if a teacher's tokenizer cannot. `check` is quicker:
    it reads only the recipe.
    """
    from collegium.cli.tables import show_diagnosis
    from collegium.pipeline.doctor import diagnose

    show_diagnosis(diagnose(_load(recipe, overrides)), as_json=as_json)


@app.command()
def preflight(
    recipe: RecipePath,
    overrides: Overrides = None,
    *,
    estimate: Annotated[bool, typer.Option(help="time a few steps to estimate what the run takes")] = True,
    as_json: AsJson = False,
) -> None:
    """Estimate, before any training, whether these teachers help on this text and what the run takes."""
    start = time.monotonic()
    from collegium.cli.preflight_tables import show_preflight
    from collegium.pipeline.preflight.judge import preflight as judge

    seconds = time.monotonic() - start
    result, cost = judge(_load(recipe, overrides), with_estimate=estimate, start_seconds=seconds)
    show_preflight(result, cost, as_json=as_json)


class _CacheGroup(TyperGroup):
    """Reads `collegium cache RECIPE` as `collegium cache build RECIPE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert `build` if the first word is not a sub-command."""
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["build", *args]
        return super().parse_args(ctx, args)


cache_app = typer.Typer(
    cls=_CacheGroup,
    help="Store the teachers' scores of the text on disk (`collegium cache RECIPE`); verify, repair, export them.",
    no_args_is_help=True,
)
app.add_typer(cache_app, name="cache")

CacheFolder = Annotated[str, typer.Argument(metavar="DIR", help="folder or URL of one teacher's cache")]


@cache_app.command("build")
def cache_build(
    recipe: RecipePath,
    overrides: Overrides = None,
    *,
    teacher: Annotated[str | None, typer.Option(help="only this teacher", autocompletion=teachers_of)] = None,
    as_json: AsJson = False,
) -> None:
    """Score the prepared text with each teacher that has `cached: true`; the same command resumes."""
    from collegium.pipeline import cache as cache_commands

    result = cache_commands.cache(_load(recipe, overrides), only=teacher)
    if as_json:
        show_json(result)


@cache_app.command("verify")
def cache_verify(folder: CacheFolder, *, as_json: AsJson = False) -> None:
    """Read every byte of a cache and list the shards and rows that are damaged."""
    from collegium.cli.tables import show_verdict
    from collegium.pipeline import cache as cache_commands

    show_verdict(cache_commands.verify_cache(folder), folder, as_json=as_json)


@cache_app.command("repair")
def cache_repair(folder: CacheFolder, *, as_json: AsJson = False) -> None:
    """Rewrite the damaged parts of a cache, and only those."""
    from collegium.pipeline import cache as cache_commands

    written = cache_commands.repair_cache(folder)
    if as_json:
        show_json({"location": folder, "written": written})


@cache_app.command("export")
def cache_export(
    folder: CacheFolder,
    output: Annotated[Path, typer.Argument(metavar="FILE", help="Parquet file to write")],
    *,
    as_json: AsJson = False,
) -> None:
    """Write a cache of token lists as plain Parquet: ids and log-probabilities that any library can read."""
    from collegium.pipeline import cache as cache_commands

    num_blocks = cache_commands.export_cache(folder, output)
    if as_json:
        show_json({"file": str(output), "blocks": num_blocks, "bytes": output.stat().st_size})


@app.command()
def train(recipe: RecipePath, overrides: Overrides = None, *, as_json: AsJson = False) -> None:
    """Distil the teachers into the student; the same command resumes a stopped run."""
    from collegium.cli.tables import show_evaluation
    from collegium.pipeline import train as commands

    loaded = _load(recipe, overrides)
    result = commands.train(loaded)
    show_evaluation(result, loaded.run_dir, as_json=as_json)


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="run folder; with --recipe, any model")],
    *,
    recipe: Annotated[Path | None, typer.Option(help="recipe whose text and teachers to measure against")] = None,
    output: Annotated[Path, typer.Option(help="folder for evaluation.json, with --recipe")] = Path("evaluation"),
    lm_eval: Annotated[
        str | None, typer.Option(metavar="TASK[,TASK]", help="lm-eval tasks to run as well")
    ] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="examples before each lm-eval question")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="questions of each lm-eval task, for a trial")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="lm-eval requests in one batch")] = 8,
    include_path: Annotated[str | None, typer.Option(help="folder with lm-eval task files of your own")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a student: perplexity, calibration, KL to the teachers, generated text and tasks."""
    from collegium.cli.tables import show_evaluation
    from collegium.evaluation.harness import HarnessTasks
    from collegium.pipeline import evaluate as commands

    tasks = [] if lm_eval is None else [name.strip() for name in lm_eval.split(",")]
    harness = HarnessTasks(tasks, num_fewshot, limit, batch_size, include_path) if tasks else None
    if recipe is None:
        folder = Path(run)
        result = commands.evaluate_run(folder, harness)
    else:
        folder = output
        result = commands.evaluate_model(_load(recipe, None), run, output, harness)
    show_evaluation(result, folder, as_json=as_json)


app.command()(report)
app.command()(export)
app.command()(push)


@app.command()
def demo(
    *,
    output: Annotated[Path, typer.Option(help="folder for the runs and the table")] = Path("runs/demo"),
    as_json: AsJson = False,
) -> None:
    """Distil three teachers into one student in a few minutes, without a download."""
    from collegium.demo.run import run_demo

    run_demo(output, as_json=as_json)


@app.command()
def reproduce(
    experiment: Annotated[
        str,
        typer.Argument(
            metavar="EXPERIMENT",
            help="table1, figure2, figure3 or conditions; page only writes the results page again",
            autocompletion=experiments,
        ),
    ],
    *,
    scale: Annotated[str, typer.Option(help="small, paper, or a YAML specification")] = "small",
    output: Annotated[Path, typer.Option(help="folder for models, text and runs")] = Path("runs/reproduce"),
    jobs: Annotated[
        int | None, typer.Option(min=1, help="runs in parallel; one per GPU, or per core, if not given")
    ] = None,
    local: Annotated[
        Path | None, typer.Option(help="folder with local copies of the hub data sets that the scale names")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(help="folder for the JSON that the page is made from; OUTPUT/SCALE if not given"),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(help="results page, with its figures beside it; OUTPUT/SCALE/results.md if not given"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run an experiment of the paper and write its results on a page; the same command resumes."""
    from collegium.paper.command import reproduce as run

    result = run(experiment, scale=scale, output=output, jobs=jobs, local=local, results=results, page=page)
    if as_json:
        show_json(result)


def main() -> int:
    """Run the command line and return its exit code; see `collegium.cli.outcome`."""
    return conclude(lambda: app(standalone_mode=False))


def _load(path: Path, overrides: list[str] | None) -> Any:
    from collegium.recipe.file import load_recipe

    return load_recipe(path, overrides or ())
