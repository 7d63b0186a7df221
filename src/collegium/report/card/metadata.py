"""The head of a model card: what the hub reads of a student, by the hub's own classes.

Only what is known is said. `base_model` takes ids of the hub alone, so teachers from folders and packages are
in the text only. Of the hub's relations (adapter, merge, quantized, finetune) none is distillation; `finetune`
is said where the student began as a model of the hub, and nothing otherwise.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from collegium.report import metric_names as names
from collegium.report.card.licences import student_licence
from collegium.report.evaluation import Evaluation
from collegium.report.figures import StudentDomain


TAGS = ("collegium", "knowledge-distillation")


def metadata_of(evaluation: Evaluation) -> ModelCardData:
    """Metadata of a card."""
    lineage = evaluation.lineage
    assert lineage is not None, "of a run's own student"
    licence, _ = student_licence(lineage)
    results = [*_language_modeling(evaluation.domains, lineage), *_tasks(evaluation), *_harness(evaluation)]
    data = ModelCardData(
        language=_languages(lineage) or None,
        license=licence,
        license_name="see-model-card" if licence == "other" else None,
        license_link="README.md" if licence == "other" else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=base_models(lineage) or None,
        datasets=_datasets(lineage) or None,
        tags=list(TAGS),
        model_name=lineage["name"],
        eval_results=results or None,
    )
    if _began_on_hub(lineage):
        data["base_model_relation"] = "finetune"
    return data


def base_models(lineage: Mapping[str, Any]) -> list[str]:
    """Ids on the hub of all that the student is made from, the model that it began as first."""
    models = [teacher for teacher in lineage["teachers"] if teacher["origin"] == "hub"]
    adapters = [t["adapter"] for t in lineage["teachers"] if t["adapter"] and t["adapter"]["origin"] == "hub"]
    first = [lineage["student"]] if _began_on_hub(lineage) else []
    earlier = lineage["student"].get("earlier")
    before = [] if earlier is None else base_models(earlier)
    return list(dict.fromkeys([*(model["model"] for model in [*first, *models, *adapters]), *before]))


def _began_on_hub(lineage: Mapping[str, Any]) -> bool:
    student = lineage["student"]
    return bool(student["origin"] == "hub" and student["kind"] != "config")


def _datasets(lineage: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(s["dataset"] for s in lineage["data"] if s["dataset"] and s["origin"] == "hub"))


def _languages(lineage: Mapping[str, Any]) -> list[str]:
    return sorted({source["language"] for source in lineage["data"] if source["language"]})


def _language_modeling(domains: Mapping[str, StudentDomain], lineage: Mapping[str, Any]) -> Iterator[EvalResult]:
    sources = {source["name"]: source for source in lineage["data"]}
    for domain, content in domains.items():
        source = sources.get(domain, {})
        is_hub = bool(source.get("dataset")) and source.get("origin") == "hub"
        figures = {
            (names.PERPLEXITY, "Perplexity"): content.figures.perplexity,
            (names.BITS_PER_BYTE, "Bits per byte"): content.figures.bits_per_byte,
        }
        for (name, title), figure in figures.items():
            if figure is not None and figure.is_known:
                yield EvalResult(
                    task_type="text-generation",
                    task_name="Language modelling",
                    dataset_type=source["dataset"] if is_hub else domain,
                    dataset_name=f"{domain}, documents held out of training",
                    dataset_config=source.get("config") if is_hub else None,
                    dataset_revision=source.get("revision") if is_hub else None,
                    metric_type=name,
                    metric_name=title,
                    metric_value=_rounded(figure.value),
                )


def _tasks(evaluation: Evaluation) -> Iterator[EvalResult]:
    for name, task in evaluation.tasks.items():
        figure = task.figures.get(task.primary)
        if figure is not None and figure.is_known:
            yield EvalResult(
                task_type="text-generation",
                task_name=name,
                dataset_type=name,
                dataset_name=f"{name}, {task.items} items",
                metric_type=task.primary,
                metric_value=_rounded(figure.value),
            )


def _harness(evaluation: Evaluation) -> Iterator[EvalResult]:
    found = evaluation.lm_eval
    if found is None:
        return
    for task, figures in found.results.items():
        for key, value in figures.items():
            metric = key.split(",")[0]
            if _is_finite(value) and not metric.endswith("_stderr") and metric != "sample_len":
                yield EvalResult(
                    task_type="text-generation",
                    task_name=f"{task} (lm-eval {found.lm_eval_version})",
                    dataset_type=task,
                    dataset_name=task,
                    metric_type=metric,
                    metric_value=_rounded(value),
                )


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _rounded(value: float) -> float:
    """Six digits: a card is read by people, and the bootstrap knows no more."""
    return float(f"{value:.6g}")
