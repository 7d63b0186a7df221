"""The command line: thin, and quick to say what it can do.

Heavy imports are inside the commands, so that `--help` answers within half a second.
"""

import logging
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from collegium.allocator import keep_freed_memory
from collegium.errors import DISK_FULL, DataError, UserError
from collegium.terminal import is_main_rank


app = typer.Typer(
    help="Distil several language models into one small one.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML recipe")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="changes, such as training.max_steps=100"),
]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON")]


@app.command()
def prepare(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Read the text, split off held-out documents, pack it to blocks on disk."""
    from collegium.commands import run as commands

    commands.prepare(_load(recipe, overrides))


@app.command()
def doctor(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Look at tokenizers, text, caches and this machine; no weights are read, so it takes seconds.

    Ends with 65 where the text cannot be used, with 69 where a teacher's tokenizer cannot.
    """
    from collegium.commands.doctor import diagnose
    from collegium.commands.tables import show_diagnosis

    diagnosis = diagnose(_load(recipe, overrides))
    show_diagnosis(diagnosis, as_json=as_json)
    if diagnosis.failure is not None:
        raise diagnosis.failure


@app.command()
def preflight(
    recipe: RecipePath,
    overrides: Overrides = None,
    estimate: Annotated[bool, typer.Option(help="try some steps, and say what the run takes")] = True,
    as_json: AsJson = False,
) -> None:
    """Say before any training whether these teachers can help on this text, and what the run will take."""
    start = time.monotonic()
    from collegium.preflight.command import preflight as judge
    from collegium.preflight.tables import show_preflight

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
    teacher: Annotated[str | None, typer.Option(help="only this teacher")] = None,
    as_json: AsJson = False,
) -> None:
    """Score the prepared text with each teacher that says `cached: true`; the same command resumes."""
    from collegium.commands import cache as cache_commands
    from collegium.commands.tables import show_json

    result = cache_commands.cache(_load(recipe, overrides), only=teacher)
    if as_json:
        show_json(result)


@cache_app.command("verify")
def cache_verify(folder: CacheFolder, as_json: AsJson = False) -> None:
    """Read every byte of a cache and name the shards and rows that are damaged."""
    from collegium.commands import cache as cache_commands
    from collegium.commands.tables import show_verdict

    verdict = cache_commands.verify_cache(folder)
    show_verdict(verdict, folder, as_json=as_json)
    if verdict.damages:
        raise DataError(f"{folder}: is damaged; run `collegium cache repair {folder}`")


@cache_app.command("repair")
def cache_repair(folder: CacheFolder) -> None:
    """Write only what is damaged again."""
    from collegium.commands import cache as cache_commands

    cache_commands.repair_cache(folder)


@cache_app.command("export")
def cache_export(
    folder: CacheFolder,
    output: Annotated[Path, typer.Argument(metavar="FILE", help="Parquet file to write")],
) -> None:
    """Write a cache of lists as plain Parquet: ids and log-probabilities that any library reads."""
    from collegium.commands import cache as cache_commands

    cache_commands.export_cache(folder, output)


@app.command()
def train(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Distil the teachers into the student; the same command resumes a stopped run."""
    from collegium.commands import run as commands
    from collegium.commands.tables import show_evaluation

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
    from collegium.commands import run as commands
    from collegium.commands.tables import show_evaluation
    from collegium.evaluation.harness import HarnessTasks

    tasks = [] if lm_eval is None else [name.strip() for name in lm_eval.split(",")]
    harness = HarnessTasks(tasks, num_fewshot, limit, batch_size, include_path) if tasks else None
    if recipe is None:
        folder, result = Path(run), commands.evaluate_run(Path(run), harness)
    else:
        folder, result = output, commands.evaluate_model(_load(recipe, None), run, output, harness)
    show_evaluation(result, folder, as_json=as_json)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a finished run")],
    to: Annotated[str, typer.Option(metavar="FORMAT", help="gguf, onnx or safetensors-int8")],
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
    from collegium.commands.export import export_run, show_export
    from collegium.commands.tables import show_json

    result = export_run(run, to, output=output, min_agreement=min_agreement, max_positions=tokens)
    if as_json:
        show_json(result)
    else:
        show_export(result)


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
    from collegium.commands.tables import show_json
    from collegium.reproduce.command import reproduce as run

    result = run(experiment, scale=scale, output=output, jobs=jobs, local=local, results=results, page=page)
    if as_json:
        show_json(result)


def main() -> int:
    """Run a command; every mishap that a user can mend ends in one line and its exit code."""
    _quiet_libraries()
    keep_freed_memory()
    previous = {number: signal.signal(number, _stop_at_once) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        result = app(standalone_mode=False)
        return result if isinstance(result, int) else 0
    except UserError as error:
        return _fail(str(error), error.exit_code)
    except OSError as error:
        return _fail(_describe(error), 74)
    except Exception as error:
        return _other(error)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _other(error: Exception) -> int:
    """Usage errors of the command line and ends by a signal; anything else is a fault of ours."""
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        show = getattr(error, "show", None)
        if callable(show):
            show()
            return code
        return _fail(str(error), code) if str(error) else code
    raise error


def _load(path: Path, overrides: list[str] | None) -> Any:
    from collegium.recipe_file import load_recipe

    return load_recipe(path, overrides or ())


def _stop_at_once(number: int, _: Any) -> None:
    """End here and now: an exception could be swallowed by a library, and files are safe against kill -9."""
    if is_main_rank():
        line = f"collegium: stopped by {signal.Signals(number).name}; the same command resumes\n"
        os.write(2, line.encode())
    os._exit(128 + number)


def _fail(message: str, code: int) -> int:
    print(f"collegium: {message}", file=sys.stderr, flush=True)
    return code


def _describe(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename else ""
    if error.errno in DISK_FULL:
        return f"{place}the disk is full; free some space and run the same command again, it resumes"
    return f"{place}{error.strerror or error}"


def _quiet_libraries() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("collegium").setLevel(logging.INFO)
    for name in ("torchao", "torch.utils._pytree"):  # says of its kernels for GPUs that they are not there
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars of downloads and conversions
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
