"""The command line: thin, and quick to say what it can do.

Heavy imports are inside the commands, so that `--help` answers within half a second.
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
def prepare(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Read the text, split off held-out documents, pack it to blocks on disk."""
    from collegium.pipeline import run as commands

    ingredients = commands.prepare(_load(recipe, overrides))
    if as_json:
        show_json(commands.describe_text(ingredients))


@app.command()
def doctor(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Look at tokenizers, text, caches and this machine; no weights are read, so it takes seconds.

    Ends with 65 where the text cannot be used, with 69 where a teacher's tokenizer cannot. `check` is
    quicker: it reads the recipe alone.
    """
    from collegium.cli.tables import show_diagnosis
    from collegium.pipeline.doctor import diagnose

    show_diagnosis(diagnose(_load(recipe, overrides)), as_json=as_json)


@app.command()
def preflight(
    recipe: RecipePath,
    overrides: Overrides = None,
    estimate: Annotated[bool, typer.Option(help="try some steps, and say what the run takes")] = True,
    as_json: AsJson = False,
) -> None:
    """Say before any training whether these teachers can help on this text, and what the run will take."""
    start = time.monotonic()
    from collegium.cli.preflight_tables import show_preflight
    from collegium.pipeline.preflight.command import preflight as judge

    seconds = time.monotonic() - start
    result, cost = judge(_load(recipe, overrides), with_estimate=estimate, start_seconds=seconds)
    show_preflight(result, cost, as_json=as_json)


class _CacheGroup(TyperGroup):
    """`collegium cache RECIPE` is `collegium cache build RECIPE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the sub-command in where the first word is none."""
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["build", *args]
        return super().parse_args(ctx, args)


cache_app = typer.Typer(
    cls=_CacheGroup,
    help="Score the text with the teachers, to disk. `collegium cache RECIPE`; verify and repair what is there.",
    no_args_is_help=True,
)
app.add_typer(cache_app, name="cache")

CacheFolder = Annotated[str, typer.Argument(metavar="DIR", help="folder or URL of one teacher's cache")]


@cache_app.command("build")
def cache_build(
    recipe: RecipePath,
    overrides: Overrides = None,
    teacher: Annotated[str | None, typer.Option(help="only this teacher", autocompletion=teachers_of)] = None,
    as_json: AsJson = False,
) -> None:
    """Score the prepared text with each teacher that says `cached: true`; the same command resumes."""
    from collegium.pipeline import cache as cache_commands

    result = cache_commands.cache(_load(recipe, overrides), only=teacher)
    if as_json:
        show_json(result)


@cache_app.command("verify")
def cache_verify(folder: CacheFolder, as_json: AsJson = False) -> None:
    """Read every byte of a cache and name the shards and rows that are damaged."""
    from collegium.cli.tables import show_verdict
    from collegium.pipeline import cache as cache_commands

    show_verdict(cache_commands.verify_cache(folder), folder, as_json=as_json)


@cache_app.command("repair")
def cache_repair(folder: CacheFolder, as_json: AsJson = False) -> None:
    """Write only what is damaged again."""
    from collegium.pipeline import cache as cache_commands

    written = cache_commands.repair_cache(folder)
    if as_json:
        show_json({"location": folder, "written": written})


@cache_app.command("export")
def cache_export(
    folder: CacheFolder,
    output: Annotated[Path, typer.Argument(metavar="FILE", help="Parquet file to write")],
    as_json: AsJson = False,
) -> None:
    """Write a cache of lists as plain Parquet: ids and log-probabilities that any library reads."""
    from collegium.pipeline import cache as cache_commands

    num_blocks = cache_commands.export_cache(folder, output)
    if as_json:
        show_json({"file": str(output), "blocks": num_blocks, "bytes": output.stat().st_size})


@app.command()
def train(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Distil the teachers into the student; the same command resumes a stopped run."""
    from collegium.cli.tables import show_evaluation
    from collegium.pipeline import run as commands

    loaded = _load(recipe, overrides)
    result = commands.train(loaded)
    show_evaluation(result, loaded.run_dir, as_json=as_json)


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="run folder; with --recipe, any model")],
    recipe: Annotated[Path | None, typer.Option(help="recipe whose text and teachers to measure against")] = None,
    output: Annotated[Path, typer.Option(help="folder for evaluation.json, with --recipe")] = Path("evaluation"),
    lm_eval: Annotated[str | None, typer.Option(metavar="TASK[,TASK]", help="tasks of lm-eval too")] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="examples before each of their questions")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="questions of each of them, for a trial")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="their requests together")] = 8,
    include_path: Annotated[str | None, typer.Option(help="folder with task files of your own")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a student: perplexity, bits per byte, calibration, KLs, what it writes, tasks of lm-eval."""
    from collegium.cli.tables import show_evaluation
    from collegium.evaluation.harness import HarnessTasks
    from collegium.pipeline import run as commands

    tasks = [] if lm_eval is None else [name.strip() for name in lm_eval.split(",")]
    harness = HarnessTasks(tasks, num_fewshot, limit, batch_size, include_path) if tasks else None
    if recipe is None:
        folder, result = Path(run), commands.evaluate_run(Path(run), harness)
    else:
        folder, result = output, commands.evaluate_model(_load(recipe, None), run, output, harness)
    show_evaluation(result, folder, as_json=as_json)


app.command()(report)
app.command()(export)
app.command()(push)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="folder for the runs and the table")] = Path("runs/demo"),
    as_json: AsJson = False,
) -> None:
    """Distil three teachers into one student in a few minutes; needs nothing but packages."""
    from collegium.demo.run import run_demo

    run_demo(output, as_json=as_json)


@app.command()
def reproduce(
    experiment: Annotated[
        str,
        typer.Argument(
            metavar="EXPERIMENT",
            help="table1, figure2, figure3 or conditions; page writes only the page of results again",
            autocompletion=experiments,
        ),
    ],
    scale: Annotated[str, typer.Option(help="small, paper, or a YAML specification")] = "small",
    output: Annotated[Path, typer.Option(help="folder for all that is made")] = Path("runs/reproduce"),
    jobs: Annotated[int | None, typer.Option(min=1, help="runs at once; one a GPU or core if not given")] = None,
    local: Annotated[
        Path | None, typer.Option(help="folder of local copies of the hub's data sets that the scale names")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(help="folder of results as JSON, of which the page is made; OUTPUT/SCALE if not given"),
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="page of results, figures beside it; OUTPUT/SCALE/results.md if not given")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run an experiment of the paper end to end; the same command resumes, and shows results on a page."""
    from collegium.paper.command import reproduce as run

    result = run(experiment, scale=scale, output=output, jobs=jobs, local=local, results=results, page=page)
    if as_json:
        show_json(result)


def main() -> int:
    """Run a command; every mishap that a user can mend ends in one line and its exit code."""
    return conclude(lambda: app(standalone_mode=False))


def _load(path: Path, overrides: list[str] | None) -> Any:
    from collegium.recipe.file import load_recipe

    return load_recipe(path, overrides or ())
