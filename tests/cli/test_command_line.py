"""The command line as a user meets it: a whole run, resuming, and one clear line for each mistake."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from collegium.base.errors import DataError
from tests.support.command import files_below, run
from tests.support.objectives import batch_of
from tests.support.pico import byte_tokenizer, pico_llama
from tests.support.runs import write_recipe


COMMAND = [sys.executable, "-m", "collegium"]


@pytest.fixture
def recipe(tmp_path, model_folder, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path / "cache"))
    return write_recipe(tmp_path / "files", model_folder)


def test_train_evaluate_preflight(recipe, tmp_path, monkeypatch, capsys):
    code, out, err = run(["train", str(recipe), "--json"], monkeypatch, capsys)
    assert code == 0, err
    result = json.loads(out)
    run_dir = tmp_path / "runs" / "pico"
    assert json.loads((run_dir / "evaluation.json").read_text()) == result
    assert {"recipe.yaml", "metrics.jsonl", "evaluation.json", "student/model.safetensors"} <= files_below(run_dir)
    assert set(result["domains"]) == {"cats", "dogs"}
    figures = result["domains"]["cats"]["figures"]
    kls = {"kl/common", "kl/own", "entropy/own", "teachers"}
    assert {"nll", "perplexity", "bits_per_byte", "accuracy", "ece", "agreement", *kls} == set(figures)
    own = {"kl", "heard"}
    assert {name: set(found) for name, found in figures["teachers"].items()} == {"one": own, "two": own}
    tokens = sum(domain["tokens"] for domain in result["domains"].values())
    described = result["held_out"]
    assert (described["context_length"], described["stride"]) == (32, 32)
    assert (described["bos"], described["eos"], described["predicted_tokens"]) == ("none", "none", tokens)
    assert "generation" not in result and "lm_eval" not in result
    assert figures["nll"]["low"] <= figures["nll"]["value"] <= figures["nll"]["high"]

    model = AutoModelForCausalLM.from_pretrained(run_dir / "student")
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "student")
    assert model.generate(**tokenizer("cats say", return_tensors="pt"), max_new_tokens=4).shape[1] == 12

    # The same command again has nothing to do, and says so.
    code, out, err = run(["train", str(recipe), "--json"], monkeypatch, capsys)
    assert code == 0
    assert json.loads(out) == result
    assert "finished already" in err

    # Where another version measured it, it is measured again.
    stored = run_dir / "evaluation.json"
    stored.write_text(json.dumps({key: part for key, part in result.items() if key != "schema_version"}))
    code, out, err = run(["train", str(recipe), "--json"], monkeypatch, capsys)
    assert code == 0 and "measuring again" in err
    assert json.loads(out)["cost"] == result["cost"]
    assert json.loads(stored.read_text())["schema_version"] == 1

    code, out, _ = run(["evaluate", str(run_dir), "--json"], monkeypatch, capsys)
    assert code == 0
    again = json.loads(out)
    assert again["mean"]["nll"] == pytest.approx(result["mean"]["nll"], rel=1e-5)

    code, out, _ = run(
        ["evaluate", str(run_dir / "student"), "--recipe", str(recipe), "--json"], monkeypatch, capsys
    )
    assert code == 0
    assert json.loads(out)["mean"]["nll"] == pytest.approx(result["mean"]["nll"], rel=1e-5)
    assert (tmp_path / "evaluation" / "evaluation.json").exists()

    code, out, _ = run(["preflight", str(recipe), "--json"], monkeypatch, capsys)
    assert code == 0
    report = json.loads(out)
    assert set(report["teachers"]) == {"one", "two"}
    assert set(report["oracle"]) == {"cats", "dogs", "mean"}
    assert report["oracle"]["cats"] == min(report["teachers"][name]["cats"] for name in ("one", "two"))
    assert report["verdict"][0].startswith("Measured on held-out text: cats 4 documents of ")
    assert "The fused target has" in report["verdict"][1] and "too few" in report["verdict"][1]

    code, out, _ = run(["preflight", str(recipe)], monkeypatch, capsys)
    assert code == 0
    assert "Loss on held-out text" in out

    # Another recipe may not use the folder.
    code, _, err = run(["train", str(recipe), "training.max_steps=5"], monkeypatch, capsys)
    assert code == 2
    assert "holds a run of another recipe (there and here: training.max_steps: 4, 5)" in err

    # Nor does this version read what another wrote.
    written = run_dir / "recipe.yaml"
    kept = written.read_text(encoding="utf-8")
    written.write_text(f"{kept}old_key: 1\n", encoding="utf-8")
    code, _, err = run(["train", str(recipe)], monkeypatch, capsys)
    assert code == 65 and "if you edited it on purpose, delete its first line" in err
    written.write_text(kept.partition("\n")[2] + "old_key: 1\n", encoding="utf-8")
    code, _, err = run(["train", str(recipe)], monkeypatch, capsys)
    assert code == 2 and "holds a run whose recipe this version does not read" in err
    written.write_text(kept, encoding="utf-8")

    # What does not decide the result may change, and is written down.
    code, _, err = run(["train", str(recipe), "training.keep_checkpoints=7", "--json"], monkeypatch, capsys)
    assert code == 0, err
    assert "keep_checkpoints: 7" in (run_dir / "recipe.yaml").read_text()


def test_learning_from_the_fused_teachers_brings_the_student_nearer(recipe, monkeypatch, capsys):
    steps = ["training.max_steps=40", "objective.kd_weight=1"]
    code, out, err = run(["train", str(recipe), *steps, "--json"], monkeypatch, capsys)
    assert code == 0, err
    lines = [json.loads(line) for line in Path("runs/pico/metrics.jsonl").read_text().splitlines()]
    losses = [line["train/kd_loss"] for line in lines if "train/kd_loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    assert json.loads(out)["mean"]["kl/common"] < losses[0]


MISTAKES = [
    (["objective.kd_wieght=1"], 2, "objective.kd_wieght: unknown key; did you mean `kd_weight`?"),
    (["training.max_steps=many"], 2, "training.max_steps: Input should be a valid integer"),
    (["training.max_steps"], 2, "is not an override; write dotted.key=value"),
    (["teachers.5.name=x"], 2, "'5' is not an item of a list of 2"),
    (["objective.weighting.granularity=words"], 2, "objective.weighting.granularity"),
    (["objective.kd_weight=2"], 2, "objective: kd_weight reaches 2; above 1 give ce_weight too"),
    (["teachers=[]"], 2, "no teachers, but objective.kd_weight"),
    (["teachers.1.name=one"], 2, "must have different names, but one is there twice"),
    (
        ["objective.weighting={kind: static, values: {one: 1}}"],
        2,
        "names ['one'], the teachers are ['one', 'two']",
    ),
    (["training.num_epochs=1"], 2, "give either max_steps or num_epochs"),
    (["teachers.0.trust_remote_code=true"], 2, "pin `revision` to a full 40-digit commit hash"),
    (["teachers.1.model=/nowhere/at/all"], 69, "teacher 'two': /nowhere/at/all: model cannot be loaded"),
    (["teachers.1.model=some/hub-id"], 69, "HF_HUB_OFFLINE is set; unset it, or give a local folder"),
    (
        ["teachers.1.model=package:no_such_package/file.gguf"],
        69,
        "package 'no_such_package' is not installed here",
    ),
    (["student.model=/nowhere/at/all"], 65, "/nowhere/at/all: model cannot be loaded"),
    (["data.sources.0.path=/nowhere.txt"], 65, "/nowhere.txt"),
    (["objective.feature_weight=1", "objective.feature.layer_map=[[3, 2]]"], 65, "the student has layers 0 to 2"),
    (
        ["student={kind: layer_drop, model: /nowhere, keep_layers: [0]}"],
        65,
        "/nowhere: model cannot be loaded",
    ),
    (["student={kind: layer_drop, model: STUDENT, keep_layers: [0, 9]}"], 2, "at most 1, got [0, 9]"),
    (["student={kind: layer_drop, model: STUDENT, num_layers: 9}"], 2, "num_layers is 9, but the model has 2"),
    (["student={kind: config, model: STUDENT, overrides: {hidden_size: 30}}"], 65, "hidden_size"),
    (["student={kind: config, model: STUDENT, overrides: {vocab_size: 10}}"], 65, "student.overrides: "),
    (["student={kind: config, model: STUDENT, overrides: {vocab_size: 259}}"], 65, "has 259 token embeddings"),
    (["student={kind: layer_drop, model: STUDENT, keep_layers: []}"], 2, "at most 1, got []"),
    (["student={kind: config, model: STUDENT, overrides: {num_hidden_layers: six}}"], 65, "student.overrides: "),
    (["student.lora={target_modules: [nosuch]}"], 2, "student.lora: Target modules {'nosuch'} not found"),
    (["training.report_to=[wandbx]"], 2, "'wandbx' is no tracker; known are"),
    (["training.report_to=[wandb]"], 2, "'wandb' is not installed here"),
    (["training.precision=float16"], 2, "training.precision: float16 needs a CUDA device"),
    (["teachers.0.adapter=WIDE"], 69, "teacher 'one': adapter "),
    (["teachers.0.adapter=DAMAGED"], 69, "teacher 'one': adapter "),
    (["teachers.0.adapter=/nowhere"], 69, "teacher 'one': adapter /nowhere: adapter_config.json cannot be read"),
    (["student.model=SHORT.gguf", "student.tokenizer=STUDENT"], 65, "GGUF file cannot be read"),
    (["teachers.0.model=SHORT.gguf"], 69, "teacher 'one': "),
]


@pytest.fixture
def models(recipe, tmp_path, model_folder) -> dict[str, str]:
    """What the table above calls by a name in capitals."""
    for name, width in (("wide", 64), ("damaged", 32)):
        save_adapter(pico_llama(4, width=width), tmp_path / name)
    weights = tmp_path / "damaged" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    (tmp_path / "short.gguf").write_bytes(b"GGUF" + b"\x03" + b"\x00" * 40)
    return {
        "STUDENT": str(model_folder("student", 0)),
        "WIDE": str(tmp_path / "wide"),
        "DAMAGED": str(tmp_path / "damaged"),
        "SHORT": str(tmp_path / "short"),
    }


def save_adapter(model, folder: Path) -> None:
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    adapted.save_pretrained(folder)


@pytest.mark.parametrize(("changes", "code", "message"), MISTAKES, ids=[" ".join(m[0])[:70] for m in MISTAKES])
def test_a_mistake_is_one_clear_line_and_leaves_nothing(
    recipe, models, changes, code, message, monkeypatch, capsys
):
    for name, path in models.items():
        changes = [change.replace(name, path) for change in changes]
    given, out, err = run(["train", str(recipe), *changes], monkeypatch, capsys)
    assert given == code, err
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    assert len([line for line in err.splitlines() if line.startswith("collegium: ")]) == 1
    left = files_below(Path.cwd()) - files_below(recipe.parent)
    assert not any(name.startswith("runs/pico/student") or ".writing" in name for name in left)


def test_a_corrected_mistake_may_use_the_same_folder(recipe, model_folder, monkeypatch, capsys):
    change = f"student={{kind: layer_drop, model: {model_folder('big', 5, layers=4)}, num_layers: %d}}"
    code, _, err = run(["train", str(recipe), change % 9], monkeypatch, capsys)
    assert code == 2
    assert "num_layers is 9, but the model has 4" in err
    code, _, err = run(["train", str(recipe), change % 2], monkeypatch, capsys)
    assert code == 0, err
    assert len(json.loads(Path("runs/pico/kept_layers.json").read_text())["layers"]) == 2


def test_empty_text(recipe, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty.txt").write_text("")
    code, _, err = run(
        ["prepare", str(recipe), f"data.sources.0.path={tmp_path / 'empty.txt'}"], monkeypatch, capsys
    )
    assert code == 65
    assert "cats" in err


def test_recipe_that_is_no_recipe(tmp_path, monkeypatch, capsys):
    for content, message in [
        (b"- a\n- b\n", "holds list, not a mapping"),
        (b"a: 1\na: 2\n", "not valid YAML"),
        (b"\xff\xfe", "not valid YAML"),
        (b"a: [", "not valid YAML"),
        (b"[" * 5000, "nested in over 50 others"),
    ]:
        path = tmp_path / "recipe.yaml"
        path.write_bytes(content)
        code, _, err = run(["train", str(path)], monkeypatch, capsys)
        assert code == 2
        assert message in err
    code, _, err = run(["train", str(tmp_path / "none.yaml")], monkeypatch, capsys)
    assert code == 2
    assert "cannot be read" in err


def test_unknown_command_and_option(monkeypatch, capsys):
    assert run(["trian"], monkeypatch, capsys)[0] == 2
    assert run(["train", "--what"], monkeypatch, capsys)[0] == 2


def test_full_disk(recipe, tmp_path, monkeypatch, capsys):
    """Nothing half-written is visible; when there is space again, the same command goes on."""
    import errno

    import collegium.training.checkpoint as module

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "checkpoint-2")

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_file", full)
        code, _, err = run(["train", str(recipe)], patch, capsys)
    assert code == 74
    assert "the disk is full; free some space and run the same command again" in err
    assert not any("checkpoint-" in name or ".writing" in name for name in files_below(tmp_path / "runs"))
    code, _, err = run(["train", str(recipe)], monkeypatch, capsys)
    assert code == 0, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_after_a_checkpoint_and_the_same_command_resumes(recipe, number, tmp_path):
    arguments = [*COMMAND, "train", str(recipe), "training.max_steps=2000", "training.save_every=5000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment)
    metrics = tmp_path / "runs" / "pico" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number, error
    assert f"stopped by {number.name} after step" in error
    assert "the same command resumes" in error
    (checkpoint,) = (tmp_path / "runs" / "pico" / "checkpoints").glob("checkpoint-*")
    assert int(checkpoint.name.split("-")[1]) < 2000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("begun", [False, True], ids=["imports", "prepare"])
def test_a_signal_before_the_work_begins_ends_at_once(recipe, number, begun, tmp_path):
    lines = "\n".join(f"text {i} of very many, {i * i} in all" for i in range(300_000))
    (tmp_path / "files" / "cats.txt").write_text(lines)
    arguments = [*COMMAND, "prepare", str(recipe)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 120
    while begun and not (tmp_path / "files" / "prepared").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number, error
    assert error.splitlines()[-1] == f"collegium: stopped by {number.name}; the same command resumes"
    assert "Traceback" not in error


def test_help_is_quick():
    """Half a second is promised; the median of five is taken, as machines are shared."""
    times = []
    for _ in range(5):
        start = time.monotonic()
        subprocess.run([*COMMAND, "--help"], check=True, capture_output=True)
        times.append(time.monotonic() - start)
    assert sorted(times)[2] < 0.5


def test_layer_drop_lora_and_features_by_recipe(recipe, model_folder, tmp_path, monkeypatch, capsys):
    big = model_folder("big", 5, layers=4)
    changes = [
        f"student={{kind: layer_drop, model: {big}, num_layers: 3, calibration_blocks: 2, lora: {{rank: 2}}}}",
        "objective.feature_weight=0.1",
        "objective.balance=gradient_free",
        "objective.divergence=jsd",
        "objective.fusion=geometric",
        "objective.weighting=paper",
        "training.gradient_checkpointing=true",
        "training.evaluate_every=2",
    ]
    code, _, err = run(["train", str(recipe), *changes], monkeypatch, capsys)
    assert code == 0, err
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "pico" / "student")
    assert student.config.num_hidden_layers == 3
    lines = [json.loads(line) for line in Path("runs/pico/metrics.jsonl").read_text().splitlines()]
    assert any("eval/cats/nll" in line for line in lines)
    assert any("train/feature_loss" in line for line in lines)


def test_layers_are_chosen_once(recipe, model_folder, tmp_path, monkeypatch):
    from collegium.assembly.run import Run

    section = f"student={{kind: layer_drop, model: {model_folder('big', 5, layers=4)}, num_layers: 2}}"
    first = Run.from_recipe(recipe, overrides=[section], folder=tmp_path).student
    kept = json.loads((tmp_path / "kept_layers.json").read_text())["layers"]
    assert len(kept) == first.config.num_hidden_layers == 2

    def again(*_: object) -> None:
        raise AssertionError("chosen again")

    monkeypatch.setattr("collegium.assembly.student.choose_layers", again)
    second = Run.from_recipe(recipe, overrides=[section], folder=tmp_path).student
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    (tmp_path / "kept_layers.json").write_text("{")
    with pytest.raises(DataError, match="holds no list of what is kept"):
        _ = Run.from_recipe(recipe, overrides=[section], folder=tmp_path).student


def test_parts_are_chosen_once(recipe, model_folder, tmp_path, monkeypatch, capsys):
    from collegium.assembly.run import Run

    sizes = "hidden_size: 24, intermediate_size: 40, num_key_value_heads: 1, num_layers: 2"
    folder = model_folder("big", 5, layers=4)
    section = f"student={{kind: pruned, model: {folder}, {sizes}}}"
    code, _, err = run(["train", str(recipe), section], monkeypatch, capsys)
    assert code == 0, err
    config = AutoModelForCausalLM.from_pretrained("runs/pico/student").config
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (24, 40, 2)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 8)

    monkeypatch.setattr("collegium.assembly.student.choose_kept", None)  # is not called again
    again = Run.from_recipe(recipe, overrides=[section], folder=Path("runs/pico")).student
    kept = json.loads(Path("runs/pico/kept.json").read_text())
    whole = AutoModelForCausalLM.from_pretrained(folder)
    weight = whole.model.layers[kept["layers"][1]].mlp.up_proj.weight
    expected = weight[kept["neurons"][1]][:, kept["channels"]]
    assert torch.equal(again.model.layers[1].mlp.up_proj.weight, expected)
    Path("runs/pico/kept.json").write_text("[0, 1]")
    with pytest.raises(DataError, match="holds no list of what is kept"):
        _ = Run.from_recipe(recipe, overrides=[section], folder=Path("runs/pico")).student


def test_trust_is_not_extended_to_another_repository(recipe, monkeypatch):
    from collegium.assembly.run import Run

    asked = []

    def load(reference, **options):
        asked.append((reference, options))
        return byte_tokenizer()

    monkeypatch.setattr("collegium.assembly.tokenizers.load_tokenizer", load)
    commit = "a" * 40
    trusted = f"student={{kind: pretrained, model: x, trust_remote_code: true, revision: {commit}}}"
    Run.from_recipe(recipe, overrides=[trusted, "student.tokenizer=y"]).make("text")
    Run.from_recipe(recipe, overrides=[trusted]).make("text")
    assert asked == [("y", {}), ("x", {"trust_remote_code": True, "revision": commit})]


def test_an_edited_file_is_prepared_anew(recipe, monkeypatch, capsys):
    change = "data.directory=null"
    assert run(["prepare", str(recipe), change], monkeypatch, capsys)[0] == 0
    with (recipe.parent / "cats.txt").open("a") as file:
        file.write("\none line more about cats and dogs")
    code, _, err = run(["prepare", str(recipe), change], monkeypatch, capsys)
    assert code == 0, err


def test_a_teacher_with_a_dot_in_its_name(recipe, tmp_path, monkeypatch, capsys):
    save_adapter(pico_llama(1), tmp_path / "adapter")
    changes = ["teachers.0.name=v1.5", f"teachers.0.adapter={tmp_path / 'adapter'}"]
    code, _, err = run(["train", str(recipe), *changes], monkeypatch, capsys)
    assert code == 0, err


def test_student_from_a_configuration(recipe, tmp_path, model_folder, monkeypatch, capsys):
    base = model_folder("base", 5)
    change = f"student={{kind: config, model: {base}, overrides: {{num_hidden_layers: 1}}}}"
    code, _, err = run(["train", str(recipe), change], monkeypatch, capsys)
    assert code == 0, err
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "pico" / "student")
    assert student.config.num_hidden_layers == 1
    assert torch.isfinite(student(torch.arange(5)[None]).logits).all()


def test_adapters_share_their_base(recipe, tmp_path, model_folder, monkeypatch, capsys):
    """Two adapters over one base, and the base itself, are three teachers with one set of weights."""
    from collegium.assembly.local_teachers import load_teachers
    from collegium.recipe.file import load_recipe

    base = model_folder("base", 4)
    for name, seed in (("a", 11), ("b", 12)):
        model = get_peft_model(pico_llama(4), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(tmp_path / name)
    teachers = (
        f"teachers=[{{name: a, model: {base}, adapter: {tmp_path / 'a'}}}, "
        f"{{name: b, model: {base}, adapter: {tmp_path / 'b'}}}, {{name: base, model: {base}}}]"
    )
    built = load_teachers(load_recipe(recipe, [teachers]).teachers, byte_tokenizer(), device=torch.device("cpu"))
    assert len({id(teacher._base) for teacher in built}) == 1
    assert len({teacher.fingerprint for teacher in built}) == 3

    from collegium.signals.contracts import predicted_positions

    batch = batch_of()
    positions = predicted_positions(batch)
    hidden = [t.score(batch, positions, need=frozenset()).signal.hidden for t in (*built, built[0])]
    assert torch.equal(hidden[0], hidden[3]), "selecting another adapter in between changes nothing"
    assert not torch.allclose(hidden[0], hidden[1])
    plain = (
        pico_llama(4).model(batch.input_ids, position_ids=batch.position_ids, use_cache=False).last_hidden_state
    )
    assert torch.allclose(hidden[2], positions.select(plain), atol=1e-6)
    code, _, err = run(["train", str(recipe), teachers], monkeypatch, capsys)
    assert code == 0, err


def test_each_domain_can_have_its_own_teacher(recipe, tmp_path, monkeypatch, capsys):
    weighting = "objective.weighting={kind: domain, domains: {cats: two, dogs: one}}"
    code, _, err = run(["train", str(recipe), weighting], monkeypatch, capsys)
    assert code == 0, err
    lines = [json.loads(line) for line in (tmp_path / "runs/pico/metrics.jsonl").read_text().splitlines()]
    shares = [
        (line["train/teacher/one/weight"], line["train/teacher/two/weight"])
        for line in lines
        if "train/teacher/one/weight" in line
    ]
    assert shares and all(one + two == pytest.approx(1) for one, two in shares)
    code, out, err = run(["preflight", str(recipe), weighting, "--json"], monkeypatch, capsys)
    assert code == 0, err
    report = json.loads(out)
    assert report["rules"]["recipe"]["cats"] == pytest.approx(report["teachers"]["two"]["cats"])
    assert report["rules"]["recipe"]["dogs"] == pytest.approx(report["teachers"]["one"]["dogs"])
    code, _, err = run(["preflight", str(recipe), "objective.weighting=min_norm"], monkeypatch, capsys)
    assert code == 2 and "follow the student" in err
