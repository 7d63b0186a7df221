"""Any task of lm-eval (EleutherAI's evaluation harness), on a student as it is in memory.

lm-eval is an optional package: with what it requires it takes some 350 MB, so it is imported where it is called.
Most of its tasks fetch their data from the hub; a folder with task files of one's own does not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from collegium.base.errors import DataError, RecipeError, one_line, pass_on_full_disk
from collegium.base.progress import Phase
from collegium.report.samples import HarnessScores


DETAILS = ("groups", "versions", "n-shot", "n-samples", "higher_is_better")
"""Parts of what lm-eval returns that are written down beside results; the others describe this machine."""


@dataclass(frozen=True)
class HarnessTasks:
    """A request to lm-eval.

    Attributes:
        tasks: Names of its tasks or groups.
        num_fewshot: Examples before each question; None: as the task says.
        limit: Questions of each task, the first ones; None: all. Scores with a limit are for trials only.
        batch_size: Requests together.
        include_path: Folder with task files of one's own.
    """

    tasks: Sequence[str]
    num_fewshot: int | None = None
    limit: int | None = None
    batch_size: int = 8
    include_path: str | None = None


def require_harness(asked: HarnessTasks) -> None:
    """Find lm-eval and the tasks before any work is done.

    Raises:
        RecipeError: lm-eval is not installed, or knows no such task.
    """
    _task_manager(_lm_eval(), asked)


def evaluate_with_harness(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: HarnessTasks, *, device: torch.device
) -> HarnessScores:
    """Scores of a model on tasks of lm-eval, with the versions of tasks and of lm-eval itself.

    Args:
        model: On `device`.
        tokenizer: Its own; adds BOS to a text only if that is its custom.
        asked: Which tasks and how.
        device: Where it runs.

    Raises:
        RecipeError: lm-eval is not installed, or knows no such task.
        DataError: the data of a task cannot be had.
    """
    lm_eval = _lm_eval()
    manager = _task_manager(lm_eval, asked)
    subject = lm_eval.models.huggingface.HFLM(
        pretrained=model.eval(), tokenizer=tokenizer, batch_size=asked.batch_size, device=str(device)
    )
    try:
        with Phase(f"lm-eval tasks {', '.join(asked.tasks)}"):
            found: Mapping[str, Any] = lm_eval.simple_evaluate(
                model=subject,
                tasks=list(asked.tasks),
                num_fewshot=asked.num_fewshot,
                limit=asked.limit,
                task_manager=manager,
                log_samples=False,
            )
    except (OSError, ValueError, ConnectionError) as error:
        pass_on_full_disk(error)
        raise DataError(
            f"--lm-eval {','.join(asked.tasks)}: {type(error).__name__}: {one_line(error)}; the data of most "
            "tasks is fetched from the hub, once"
        ) from error
    return HarnessScores(
        lm_eval_version=lm_eval.__version__,
        asked={**asdict(asked), "tasks": list(asked.tasks)},
        results=found["results"],
        details={name: found[name] for name in DETAILS if found.get(name)},
    )


def _task_manager(lm_eval: Any, asked: HarnessTasks) -> Any:
    manager = lm_eval.tasks.TaskManager(include_path=asked.include_path)
    if unknown := sorted(set(asked.tasks) - set(manager.match_tasks(list(asked.tasks)))):
        raise RecipeError(
            f"--lm-eval: lm-eval {lm_eval.__version__} knows no task {', '.join(unknown)}; `lm-eval ls tasks` "
            "lists them, and --include-path names a folder with task files of your own"
        )
    return manager


def _lm_eval() -> Any:
    try:
        import lm_eval
        import lm_eval.models.huggingface
        import lm_eval.tasks
    except ImportError as error:
        raise RecipeError(
            f"--lm-eval needs lm-eval, which is not installed ({one_line(error)}): pip install 'collegium[eval]'"
        ) from error
    return lm_eval
