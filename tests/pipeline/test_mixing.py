"""Domains mixed by discrepancy: from a trainer to resumed runs."""

import pytest
import torch

from collegium.assembly.corpus import text_directory
from collegium.assembly.mixing import Remix, build_mixing, steps_ahead
from collegium.assembly.run import Run
from collegium.base.errors import RecipeError
from collegium.data.blocks import PackedBlocks, pack_documents
from collegium.data.collate import BlockCollator
from collegium.evaluation.domain_mixing import DomainMixing, set_aside
from collegium.evaluation.language_modeling import HeldOut, Rule
from collegium.losses.weighting import Weighting
from collegium.recipe.file import load_recipe
from collegium.teachers.collect import as_teachers
from collegium.training.trainer import DistillationTrainer
from tests.support.pico import TEXTS, byte_tokenizer, pico_llama
from tests.support.runs import arguments, write_recipe


def two_domains() -> PackedBlocks:
    import datasets

    rows = [{"text": text} for text in TEXTS * 2]
    parts = [
        pack_documents(rows, byte_tokenizer(), block_size=32, domain=name).dataset for name in ("web", "code")
    ]
    return PackedBlocks(datasets.concatenate_datasets(parts))


def trainer_with_mixing(folder, **changes) -> DistillationTrainer:
    blocks = two_domains()
    teachers = as_teachers(
        {f"teacher{i}": pico_llama(i) for i in (1, 2)}, byte_tokenizer(), device=torch.device("cpu")
    )
    trained, measured = set_aside(blocks, 2)
    held_out = HeldOut(measured, BlockCollator(pad_token_id=0), batch_size=2, teachers=teachers)
    mixing = DomainMixing(trained, held_out, Rule(Weighting("uniform")), every=3)
    trainer = DistillationTrainer(
        pico_llama(0),
        teachers=teachers,
        args=arguments(folder, max_steps=8, save_strategy="steps", save_steps=2, **changes),
        train_dataset=blocks,
        processing_class=byte_tokenizer(),
        mixing=mixing,
    )
    trainer.add_callback(Remix(trainer, mixing))
    return trainer


def test_rounds_are_measured_ahead_and_a_resumed_run_is_the_same(tmp_path):
    whole = trainer_with_mixing(tmp_path / "whole")
    whole.train()
    assert len(whole.mixing.rounds) == 4  # of 3 steps each; the fourth is known 2 steps before step 9
    assert all(sum(shares) == pytest.approx(1.0) for shares in whole.mixing.rounds)
    logged = [line for line in whole.state.log_history if "mixing/web" in line]
    assert [line["step"] for line in logged] == [0, 1, 4, 7]
    assert logged[0]["mixing/code/target_perplexity"] == logged[3]["mixing/code/target_perplexity"]

    for stop, folder in ((4, "early"), (6, "late")):
        resumed = trainer_with_mixing(tmp_path / folder)
        checkpoint = tmp_path / "whole" / f"checkpoint-{stop}"
        resumed.train(resume_from_checkpoint=str(checkpoint))
        assert resumed.mixing.rounds == whole.mixing.rounds
        for (name, one), (_, other) in zip(
            whole.distillation_model.student.state_dict().items(),
            resumed.distillation_model.student.state_dict().items(),
            strict=True,
        ):
            assert torch.equal(one, other), name


def test_set_aside_blocks_are_not_trained_on():
    blocks = two_domains()
    trained, measured = set_aside(blocks, 1000)
    assert list(trained) == ["web", "code"]
    for domain, part in measured.items():
        ids = {part[i]["sample_id"] for i in range(len(part))}
        assert len(ids) == (len(ids) + len(trained[domain])) // 10 and not ids & set(trained[domain])
        assert all(blocks[i]["domain"] == domain for i in ids)
        assert all(part[i]["input_ids"] == blocks[part[i]["sample_id"]]["input_ids"] for i in range(len(part)))


def test_a_domain_of_one_block_is_refused():
    with pytest.raises(ValueError, match="domain 'text' has one training block"):
        set_aside(pack_documents([{"text": "abc"}], byte_tokenizer(), block_size=32), 1)


def test_rounds_of_other_domains_are_refused(tmp_path):
    mixing = trainer_with_mixing(tmp_path).mixing
    with pytest.raises(ValueError, match=r"mixes \['a'\], this run \['web', 'code'\]"):
        mixing.load_state_dict({"domains": ["a"], "rounds": []})


@pytest.mark.parametrize(("workers", "accumulation", "steps"), [(0, 1, 2), (0, 8, 1), (2, 1, 6), (2, 4, 2)])
def test_a_loader_is_so_many_steps_ahead(tmp_path, workers, accumulation, steps):
    args = arguments(tmp_path, dataloader_num_workers=workers, gradient_accumulation_steps=accumulation)
    assert steps_ahead(args) == steps


def test_a_recipe_mixes_its_sources_over_text_that_is_prepared_once(tmp_path, model_folder):
    path = write_recipe(tmp_path, model_folder)
    natural = load_recipe(path)
    run = Run(natural, device="cpu")
    teachers = as_teachers({"teacher1": pico_llama(1)}, run.tokenizer, device=torch.device("cpu"))
    assert build_mixing(run.derive(teachers=teachers)) is None

    recipe = load_recipe(path, ["data.mixing=ddk", "objective.weighting=uniform"])
    assert recipe.data.mixing.every == 1000 and recipe.fingerprint != natural.fingerprint
    folders = [
        text_directory(load_recipe(path, ["data.directory=null", *more]), run.tokenizer, [])
        for more in ([], ["data.mixing=ddk"])
    ]
    assert folders[0] == folders[1]
    mixing = build_mixing(run.derive(recipe=recipe, teachers=teachers))
    assert mixing.domains == ["cats", "dogs"]
    with pytest.raises(RecipeError, match="data.mixing: ddk compares the student with teachers"):
        build_mixing(run.derive(recipe=recipe, teachers=()))
