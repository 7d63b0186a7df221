"""`collegium reproduce` from two text files to results, killed on the way and not."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from collegium.cli.app import main
from collegium.paper import command
from tests.support.reproduce_worker import few_rows
from tests.support.tiny_experiment import content, write_texts


FEW = [sys.executable, str(Path(__file__).parents[1] / "support" / "reproduce_worker.py")]
WHOLE = [sys.executable, "-m", "collegium"]


def write_specification(folder, **changes):
    """Texts and a specification of them; returns its path."""
    write_texts(folder)
    with (folder / "scale.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(content(folder, **changes), file)
    return folder / "scale.yaml"


@pytest.fixture(scope="module")
def scale(tmp_path_factory):
    return write_specification(tmp_path_factory.mktemp("scale"))


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def none_is_left():
    """A test that fails leaves no process behind."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def start(scale, output, *, program=FEW, name="table1"):
    """The command in a process group of its own."""
    environment = {**os.environ, "COLLEGIUM_CACHE": str(scale.parent / "cache"), "OMP_NUM_THREADS": "1"}
    arguments = ["reproduce", name, "--scale", str(scale), "--output", str(output), "--jobs", "2"]
    process = subprocess.Popen(
        [*program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    STARTED.append(process)
    return process


def finish(process):
    """Wait for the command; returns what it said on stderr."""
    _, said = process.communicate(timeout=500)
    assert process.returncode == 0, said
    return said


def stop_when(process, number, results, wanted):
    """Send a signal, once as many runs are finished, to the process alone, or to its group if it is SIGKILL."""
    end = time.monotonic() + 200
    while len(results()) < wanted:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)
    (os.killpg if number == signal.SIGKILL else os.kill)(process.pid, number)
    _, said = process.communicate(timeout=120)
    return said


def wait_for_the_end_of(group):
    end = time.monotonic() + 60
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(group, 0)
            time.sleep(0.1)
        pytest.fail("a process outlives the command")


def without_seconds(results):
    if isinstance(results, dict):
        return {key: without_seconds(value) for key, value in results.items() if key not in ("seconds", "sha256")}
    return [without_seconds(value) for value in results] if isinstance(results, list) else results


def test_killed_and_stopped_it_goes_on_and_comes_to_the_same(scale, tmp_path, monkeypatch, capsys):
    said = finish(start(scale, tmp_path / "whole"))
    assert f"results: {tmp_path}/whole/tiny/table1.json" in said
    assert re.search(r"teachers: 2 of 2 are done \(\d+", said)
    assert re.search(r"runs: 8 of 10 are done \(\d+", said)  # two seeds of rows that are tuned now
    assert re.search(r"runs: 11 of 11 are done \(\d+", said)  # and one of the best single teacher
    undisturbed = json.loads((tmp_path / "whole/tiny/table1.json").read_text())

    output = tmp_path / "stopped"
    runs = output / "tiny" / "runs"

    def results():
        return {path: path.stat().st_mtime_ns for path in runs.glob("*/result.json")}

    process = start(scale, output)
    stop_when(process, signal.SIGKILL, results, 2)
    wait_for_the_end_of(process.pid)
    first = results()
    own = {path: json.loads(path.read_text())["own"] for path in first}
    process = start(scale, output)
    said = stop_when(process, signal.SIGTERM, results, 5)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM; the same command resumes" in said
    wait_for_the_end_of(process.pid)
    students = {path: path.stat().st_mtime_ns for path in runs.glob("*/student/model.safetensors")}

    finish(start(scale, output))
    assert without_seconds(json.loads((output / "tiny/table1.json").read_text())) == without_seconds(undisturbed)
    kept = [path for path in first if json.loads(path.read_text())["own"] == own[path]]
    assert kept
    assert all(results()[path] == first[path] for path in kept)
    assert all(path.stat().st_mtime_ns == time_ for path, time_ in students.items())
    assert not list(runs.glob("*/checkpoints"))

    before = results()
    monkeypatch.setitem(command.EXPERIMENTS, "table1", few_rows)
    monkeypatch.setenv("COLLEGIUM_CACHE", str(scale.parent / "cache"))
    code, said = here(["table1", "--scale", str(scale), "--output", str(output)], monkeypatch, capsys)
    assert (code, said) == (0, f"results: {output}/tiny/table1.json\n")  # all was there: nothing is made
    assert results() == before
    check_content(undisturbed, 2)


def here(arguments, monkeypatch, capsys):
    """Exit code and stderr of the command in this process."""
    monkeypatch.setattr(sys, "argv", ["collegium", "reproduce", *arguments])
    code = main()
    return code, capsys.readouterr().err


def check_content(results, headline_seeds):
    json.dumps(results, allow_nan=False)
    rows = {row["name"]: row for row in results["rows"]}
    for row in rows.values():
        assert len(row["seeds"]) == (headline_seeds if row["headline"] else 1)
        assert {"nll", "perplexity", "kl/common", "kl/expert", "ece", "bleu_reference"} <= set(row["figures"])
        assert (row["against_baseline"] is None) == (row["name"] == "ours")
    assert all("kl/own" in rows[name]["figures"] for name in ("ours", "best_single"))
    assert "kl/own" not in rows["ce"]["figures"]
    assert set(results["teachers"]["made"]) == {"cats", "dogs"}
    assert set(results["teachers"]["fused"]) == {"uniform", "paper", "ours", "oracle"}
    assert {domain: text["test_documents"] for domain, text in results["text"].items()} == {"cats": 2, "dogs": 2}


def test_what_there_is_not_is_answered_by_what_there_is(scale, tmp_path, monkeypatch, capsys):
    def complaint(*arguments):
        return here([*arguments, "--output", str(tmp_path / "out")], monkeypatch, capsys)

    code, said = complaint("table7", "--scale", str(scale))
    names = "table1, figure2, figure3, conditions, and page"
    assert (code, said) == (2, f"collegium: no experiment 'table7'; there are {names}\n")
    code, said = complaint("table1", "--scale", "huge")
    assert (code, said) == (2, "collegium: --scale huge: is none of paper, small; give one, or a YAML file\n")
    code, said = complaint("table1", "--scale", str(tmp_path / "none.yaml"))
    assert code == 2
    assert f"{tmp_path}/none.yaml: cannot be read" in said
    code, said = complaint("table1", "--scale", str(scale), "--jobs", "0")
    assert code == 2
    assert "--jobs" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_every_experiment_with_all_rows_in_one_folder(tmp_path):
    teachers = content(tmp_path)["teachers"]
    teachers |= {f"copy-{seed}": {"recipe": "teacher.yaml", "seed": seed} for seed in (5, 6)}
    teachers |= {"bad": {"recipe": "teacher.yaml", "seed": 9}}
    scale = write_specification(
        tmp_path,
        teachers=teachers,
        copies=["copy-5", "copy-6"],
        bad="bad",
        learning_rates=[0.01],
        published_with_all=["dkd"],
    )
    rows = {}
    for name in ("table1", "figure2", "conditions"):
        finish(start(scale, tmp_path / "out", program=WHOLE, name=name))
        results = json.loads((tmp_path / f"out/tiny/{name}.json").read_text())
        rows[name] = {row["name"]: row for row in results["rows"]}
    shared = ("ours", "uniform", "paper")
    assert all(rows["table1"][row]["runs"] == rows["figure2"][row]["runs"] for row in shared)
    assert {"tinybert", "dkd_all", "best_single", "ce_more_text", "oracle"} <= set(rows["table1"])
    assert rows["figure2"]["one"]["runs"][0] == rows["table1"]["single_cats"]["runs"][0]
    assert "kl/own" in rows["figure2"]["one"]["figures"]
    assert {"copies_1", "copies_2", "bad_ours"} <= set(rows["figure2"])
    assert {"ce_200", "sharp_raw", "switching_document", "cache_2"} <= set(rows["conditions"])
