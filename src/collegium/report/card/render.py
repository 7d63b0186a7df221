"""A student's model card, made of what `evaluation.json` says and the recipe: the same bytes for the same input.

No date and no path of this machine is in it, so a card that changes says that the student or its measurement
did.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCard

from collegium.report.card import words
from collegium.report.card.licences import NOT_STATED, Licensed, models_in, student_licence, texts_in
from collegium.report.card.markup import code_block, escaped, table
from collegium.report.card.metadata import metadata_of
from collegium.report.evaluation import Evaluation
from collegium.report.figures import StudentFigures
from collegium.report.interval import Interval
from collegium.report.metric_names import PERPLEXITY


SNIPPET = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "PATH_OR_REPO_ID"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0], skip_special_tokens=True))
"""

FIGURES: Sequence[tuple[str, int, Callable[[StudentFigures[Interval]], Interval | None]]] = (
    (PERPLEXITY, 2, lambda figures: figures.perplexity),
    ("bits per byte", 4, lambda figures: figures.bits_per_byte),
    ("next token right", 3, lambda figures: figures.accuracy),
    ("calibration error", 3, lambda figures: figures.ece),
    ("KL to what it learnt from", 3, lambda figures: figures.kl_own),
)


def render_card(evaluation: Evaluation, recipe: str) -> str:
    """The model card.

    Args:
        evaluation: Of a student whose lineage is known.
        recipe: The recipe as YAML, without paths of this machine.
    """
    lineage = evaluation.lineage
    assert lineage is not None, "of a run's own student"
    parts = [
        f"# {escaped(lineage['name'])}",
        _summary(lineage),
        "## Lineage",
        *_lineage(lineage),
        "## Licences",
        *_licences(lineage),
        "## Training",
        *_training(lineage),
        "## Evaluation",
        *_evaluation(evaluation),
        "## Intended use and limits",
        _limits(lineage),
        "## How to load it",
        code_block(SNIPPET, "python"),
        "## Recipe",
        f"Fingerprint of what decides the result: `{lineage['recipe']}`. Defaults may be left out; folders of the "
        "machine that it ran on stand by their last name.",
        code_block(recipe, "yaml"),
    ]
    body = "\n\n".join(parts)
    return str(ModelCard(f"---\n{metadata_of(evaluation).to_yaml()}\n---\n\n{body}\n"))


def _summary(lineage: Mapping[str, Any]) -> str:
    student = lineage["student"]
    training = lineage["training"]
    teachers = lineage["teachers"]
    size = "a causal language model"
    if student["parameters"] is not None:
        size += f" of {words.count(student['parameters'])} parameters"
    text = ", ".join(escaped(source["name"]) for source in lineage["data"])
    names = ", ".join(escaped(teacher["name"]) for teacher in teachers)
    if not teachers:
        taught = f"It learnt from text alone ({text}), without teachers"
    elif len(teachers) == 1:
        taught = f"It learnt from one teacher ({names}): to predict what that one predicts in the text ({text})"
    else:
        taught = (
            f"It learnt from {len(teachers)} teachers at once ({names}): at every token of the text ({text}) "
            "their predictions were fused into one, which it was trained to predict too"
        )
    return (
        f"This is {size}. {taught}, for {words.read_text(training)}. It began as {words.start(student)}. "
        f"Made with collegium {escaped(lineage['versions']['collegium'])}."
    )


def _lineage(lineage: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            f"teacher {escaped(teacher['name'])}",
            words.model(teacher),
            words.count(teacher["parameters"]),
            words.count(teacher["vocab_size"]),
            ", ".join(escaped(domain) for domain in teacher["domains"]),
        ]
        for teacher in lineage["teachers"]
    ]
    student = lineage["student"]
    trained = student["trained_parameters"]
    size = words.count(student["parameters"])
    size += (
        "" if trained is None else f", of which an adapter of {words.count(trained)} was trained and is merged in"
    )
    size += "; embeddings and head, one matrix before, are two" if student.get("untied") else ""
    rows.append(["student, began as", words.start(student), size, words.count(student["vocab_size"]), ""])
    texts = [
        [
            escaped(source["name"]),
            escaped(_place(source)),
            words.count(source["train_tokens"]),
            words.count(source["held_out_documents"]),
        ]
        for source in lineage["data"]
    ]
    parts = [
        table(["", "model", "parameters", "vocabulary", "asked about"], rows),
        table(["text", "from", "tokens prepared for training", "documents held out"], texts),
    ]
    earlier = student.get("earlier")
    if earlier is not None:
        parts += [
            f"The earlier run {escaped(earlier['name'])} that it continues was made from:",
            *_lineage(earlier),
        ]
    return parts


def _place(source: Mapping[str, Any]) -> str:
    named = [source["dataset"] or source["path"], source["config"], source["task"]]
    place = " ".join(str(part) for part in named if part)
    return f"{place} at {source['revision'][:12]}" if source["revision"] else place


def _licences(lineage: Mapping[str, Any]) -> list[str]:
    licence, names = student_licence(lineage)
    if licence is None:
        whole = "No model that this student was made from states a licence here, so none can be said for it."
    elif licence == "other":
        listed = ", ".join(escaped(name) for name in names)
        whole = f"The models that this student was made from are under several licences ({listed}): all bind."
    else:
        whole = f"All models that this student was made from are under {escaped(licence)}."
    items = [*models_in(lineage), *texts_in(lineage)]
    rows = [[escaped(licence), named] for licence, named in _by_licence(items).items()]
    return [whole, table(["licence", "of"], rows), *_warnings(items)]


def _by_licence(items: Sequence[Licensed]) -> dict[str, str]:
    """What is under each licence, each thing once: runs that go on from others name the same text again."""
    found: dict[str, dict[str, None]] = {}
    for item in items:
        found.setdefault(item.licence or NOT_STATED, {})[f"{item.what} {escaped(item.name)}"] = None
    return {licence: ", ".join(named) for licence, named in found.items()}


def _warnings(items: Sequence[Licensed]) -> list[str]:
    binding = [item for item in items if item.finding.verdict != "permissive"]
    reasons = {item.licence or NOT_STATED: item.finding.reason for item in binding}
    lines = [
        f"> - **{escaped(licence)}** ({named}): {reasons[licence]}."
        for licence, named in _by_licence(binding).items()
    ]
    return ["\n".join(["> **Read this before you pass the student on.**", ">", *lines])] if lines else []


def _training(lineage: Mapping[str, Any]) -> list[str]:
    training = lineage["training"]
    versions = lineage["versions"]
    blocks = training["batch_size"] * training["gradient_accumulation"]
    rows = [
        ["method", escaped(training["method"] or "none named")],
        ["steps, tokens read", f"{words.count(training['steps'])}, {words.count(training['tokens'])}"],
        *_by_domain(training),
        ["batch on each device", f"{blocks} blocks of {training['block_size']} tokens"],
        ["learning rate", f"{training['learning_rate']:g} ({training['lr_scheduler']})"],
        ["precision, seed", f"{training['precision']}, {training['seed']}"],
        ["versions", ", ".join(f"{name} {escaped(version)}" for name, version in versions.items())],
    ]
    parts = [f"The loss is {words.objective(training)}.", table(["", ""], rows)]
    if lineage["teachers"]:
        weights = [
            [escaped(teacher["name"]), *(words.share(teacher["weight"], when) for when in ("mean", "last"))]
            for teacher in lineage["teachers"]
        ]
        parts += [words.weighting(training), table(["teacher", "mean weight over the run", "at its end"], weights)]
    return parts


def _by_domain(training: Mapping[str, Any]) -> list[list[str]]:
    """Tokens read of each domain, where there are several and they were counted."""
    read = {name: counts["tokens"] for name, counts in training.get("domains", {}).items()}
    if len(read) < 2 or None in read.values():
        return []
    return [["tokens read by domain", ", ".join(f"{escaped(name)} {words.count(n)}" for name, n in read.items())]]


def _evaluation(evaluation: Evaluation) -> list[str]:
    domains = evaluation.domains
    rows = [
        [title, *(_interval(figure(domain.figures), digits) for domain in domains.values())]
        for title, digits, figure in FIGURES
        if any(figure(domain.figures) is not None for domain in domains.values())
    ]
    counts = ", ".join(
        f"{escaped(name)}: {domain.documents:,} documents of {domain.tokens:,} tokens"
        for name, domain in domains.items()
    )
    parts = [
        f"On documents that were held out of training ({counts}), with {evaluation.confidence:.0%} intervals "
        f"over documents; contexts of {evaluation.held_out.context_length} tokens that do not overlap.",
        table(["", *(escaped(name) for name in domains)], rows),
    ]
    tasks = [
        [escaped(name), str(task.items), escaped(figure), _interval(interval, 3)]
        for name, task in evaluation.tasks.items()
        for figure, interval in task.figures.items()
    ]
    return [*parts, table(["task", "items", "figure", "student"], tasks)] if tasks else parts


def _interval(figure: Interval | None, digits: int) -> str:
    if figure is None:
        return ""
    if not figure.is_known:
        return "not known"
    return f"{figure.shown(digits)} ({figure.ends(digits, between=' to ')})"


def _limits(lineage: Mapping[str, Any]) -> str:
    domains = ", ".join(escaped(source["name"]) for source in lineage["data"])
    return (
        f"It was trained and measured on this text alone: {domains}. On other text nothing is known of it. It "
        "repeats what its teachers and its text hold, with their mistakes and prejudices, and can be fluent and "
        "wrong. It was not tuned to follow instructions, nor tested for safety, unless a task above says so. "
        "Measure it on text of your own before you rely on it."
    )
