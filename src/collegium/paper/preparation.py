"""Preparations of an experiment: the tokenizer, configurations and teachers that it makes before it begins.

They lie in the folder of the results and stay there; what exists is not made again.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from collegium.assembly.sources import build_source
from collegium.base.digests import read_sealed, write_digests, write_sealed
from collegium.base.errors import RecipeError
from collegium.data.sources import Source
from collegium.paper.specification import Specification, in_folder
from collegium.pipeline.evaluate import finished_evaluation
from collegium.pipeline.prepare import prepare
from collegium.pipeline.train import train
from collegium.recipe.file import read_mapping, validated
from collegium.recipe.recipe import Recipe
from collegium.report.figures import by_metric


def claim_folder(specification: Specification, folder: Path, output: Path) -> None:
    """Record what decides everything that is made in `output`, and refuse a folder that something else decided.

    Raises:
        RecipeError: another specification made what is there.
    """
    path = output / "made-of.json"
    fix = "delete the folder, or copy it again"  # without it nobody knows what made the rest
    before = read_sealed(path, fix=fix) if path.exists() else {}
    deciding = json.loads(json.dumps(_deciding(specification, folder)))
    if changed := [key for key in before if key in deciding and deciding[key] != before[key]]:
        raise RecipeError(
            f"{output}: holds what another specification made (changed since: {', '.join(changed)}); "
            "give another --output, or delete the folder"
        )
    write_sealed(path, before | deciding, indent=1)


def _deciding(specification: Specification, folder: Path) -> dict[str, Any]:
    given = specification.model_dump(mode="json")
    shared = ("tokenizer", "sources", "student_documents", "experts")
    return {
        **{key: given[key] for key in shared},
        **{f"models.{name}": sizes for name, sizes in given["models"].items()},
        **{
            f"teachers.{name}": [given["teachers"][name], teacher.recipe and read_mapping(folder / teacher.recipe)]
            for name, teacher in specification.teachers.items()
        },
    }


def make_models(specification: Specification, output: Path) -> None:
    """Make the tokenizer and the configurations, in `output/models`."""
    if specification.tokenizer is None:
        return
    missing = [name for name in specification.models if not (output / "models" / name).exists()]
    if not missing:
        return
    section = specification.tokenizer
    tokenizer = byte_level_bpe(_texts(specification, section.characters), section.vocab_size)
    for name in missing:
        writing = output / "models" / f".{name}"
        shutil.rmtree(writing, ignore_errors=True)
        tokenizer.save_pretrained(writing)
        special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
        special |= {"pad_token_id": tokenizer.pad_token_id}
        sizes = {**specification.models[name], **special, "vocab_size": len(tokenizer)}
        LlamaConfig(**sizes).save_pretrained(writing)
        write_digests(writing)
        writing.rename(output / "models" / name)


def byte_level_bpe(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on these texts; EOS and padding are among its tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["</s>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[0], pad_token=special[1])


def _texts(specification: Specification, characters: int) -> Iterator[str]:
    """Yield the same amount of text from each source."""
    for name in specification.sources:
        left = characters
        for document in source_of(specification, name):
            yield document.text[:left]
            left -= len(document.text)
            if left <= 0:
                break


def source_of(specification: Specification, name: str) -> Source:
    """Open a source with all its documents, the student's and the teachers'."""
    recipe = {"name": "text", "method": "ce", "training": {"max_steps": 1}}
    recipe |= {"student": {"kind": "config", "model": "unused"}}
    recipe |= {"data": {"sources": [{"name": name, **specification.sources[name]}]}}
    return build_source(Recipe.model_validate(recipe).data.sources[0])


def teacher_recipe(specification: Specification, name: str, folder: Path, output: Path) -> Recipe | None:
    """Build the recipe that makes a teacher; None if the teacher exists.

    It trains neither on the student's documents of the specification's sources nor on those held out.

    Args:
        specification: The specification.
        name: Name of the teacher.
        folder: Folder of the specification, to which the recipe's path is relative.
        output: Folder of the results.

    Raises:
        RecipeError: it cannot be read.
    """
    teacher = specification.teachers[name]
    if teacher.recipe is None:
        return None
    path = folder / teacher.recipe
    recipe = read_mapping(path)
    names = tuple(specification.sources) if teacher.sources is None else teacher.sources
    skipped = specification.student_documents
    sources = [
        {"name": source, **specification.sources[source], "skip_documents": skipped.get(source, 0)}
        for source in names
    ]
    if sources:
        held_out = {k: v for k, v in specification.recipe.get("data", {}).items() if k == "held_out_documents"}
        recipe["data"] = {**recipe.get("data", {}), **held_out, "sources": sources}
    recipe |= {"name": name, "seed": teacher.seed, "output_dir": f"OUTPUT/teachers/{name}"}
    return validated(in_folder(recipe, output), f"{path}, for teacher {name}")


def made_teachers(specification: Specification, names: Sequence[str]) -> list[str]:
    """Select those of `names` that are made by a recipe."""
    return [name for name in names if specification.teachers[name].recipe is not None]


def make_teacher(specification: Specification, name: str, folder: Path, output: Path) -> None:
    """Train a teacher, or resume its training."""
    recipe = teacher_recipe(specification, name, folder, output)
    assert recipe is not None, f"{name} exists"
    with alone(output):
        prepare(recipe)
    train(recipe)


@contextmanager
def alone(output: Path) -> Iterator[None]:
    """Let one process at a time prepare text, caches and temperatures; the next one finds them."""
    output.mkdir(parents=True, exist_ok=True)
    with FileLock(output / ".preparing"):
        yield


def teacher_folder(output: Path, name: str) -> Path:
    """Return the run folder of a teacher that is made."""
    return output / "teachers" / name


def read_teacher(output: Path, name: str) -> dict[str, float]:
    """Read the figures of a teacher that was made, plain means over domains; measured again by another version."""
    return by_metric(finished_evaluation(teacher_folder(output, name)).mean)
