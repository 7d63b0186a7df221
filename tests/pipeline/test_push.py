"""`collegium push` against a stand-in of the hub: what arrives, what is refused, and that no token is shown."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from collegium.pipeline import push
from tests.support.command import run
from tests.support.fake_hub import FakeHub, serving
from tests.support.made_up_lineage import content, finished_run, teacher


TOKEN = "hf_CanaryTokenThatNobodyMayEverSee"
REPO = "someone/small-student"


@pytest.fixture
def hub(monkeypatch):
    with serving(FakeHub(TOKEN)) as served:
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(push, "get_token", lambda: TOKEN)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        real = push.HfApi
        monkeypatch.setattr(push, "HfApi", lambda **options: real(endpoint=served.url, **options))
        yield served


@pytest.fixture
def pushed(tmp_path, monkeypatch, capfd, caplog):
    """Runs the command; whatever it says is searched for the token."""
    folder = finished_run(tmp_path / "run")

    def command(*options: str, folder: Path = folder, repo: str = REPO):
        code, out, err = run(["push", str(folder), repo, *options], monkeypatch, capfd)
        assert TOKEN not in out + err + caplog.text
        return code, out, err

    return command


def names_of(files) -> set[str]:
    return set(files)


EXPECTED = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "evaluation.json"}


def test_every_byte_arrives_and_nothing_else(hub, pushed, tmp_path):
    (tmp_path / "run" / "report.html").write_text("<html></html>")
    code, out, err = pushed("--json")
    assert code == 0, err
    result = json.loads(out)
    assert (result["repo"], result["private"], result["commit"]) == (REPO, True, "b" * 40)
    assert hub.private == {REPO: True}
    files = hub.files(REPO)
    assert names_of(files) == EXPECTED | {"report.html"}
    for name in EXPECTED - {"evaluation.json"}:
        assert files[name] == (tmp_path / "run" / "student" / name).read_bytes(), name
    assert json.loads(files["evaluation.json"]) == json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert not any(TOKEN.encode() in content for content in files.values())


def test_weights_go_by_lfs_where_the_hub_wants_it(hub, pushed, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_api.is_xet_available", lambda: False)
    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
    hub.large = frozenset({"model.safetensors"})
    code, _, err = pushed()
    assert code == 0, err
    weights = (tmp_path / "run" / "student" / "model.safetensors").read_bytes()
    assert hub.files(REPO)["model.safetensors"] == weights and hub.uploaded_bytes == len(weights)


def test_what_broke_off_goes_on_by_the_same_command(hub, pushed, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_api.is_xet_available", lambda: False)
    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
    hub.large = frozenset({"model.safetensors"})
    hub.failures = {"/commit/": (500, 100)}
    code, _, err = pushed()
    assert code == 69 and "the hub failed (500); run the same command again" in err
    assert "Traceback" not in err and hub.files(REPO) == {}
    sent = hub.uploaded_bytes
    hub.failures = {}
    code, _, err = pushed()
    assert code == 0, err
    assert names_of(hub.files(REPO)) == EXPECTED
    assert hub.uploaded_bytes == sent > 0, "the weights were there already"


def test_a_passing_failure_is_waited_out(hub, pushed):
    hub.failures = {"/preupload/": (503, 2), "/commit/": (503, 1)}
    code, _, err = pushed()
    assert code == 0, err
    assert names_of(hub.files(REPO)) == EXPECTED


@pytest.mark.parametrize("part", ["/api/repos/create", "/preupload/"])
def test_failures_at_each_step_are_told(hub, pushed, part):
    hub.failures = {part: (500, 100)}
    code, _, err = pushed()
    assert code == 69 and "the hub failed (500)" in err and "Traceback" not in err


def test_a_branch(hub, pushed):
    code, _, err = pushed("--revision", "trial")
    assert code == 0, err
    assert names_of(hub.files(REPO, "trial")) == EXPECTED and hub.files(REPO) == {}


def test_a_token_that_is_not_known_or_may_not_write(hub, pushed, monkeypatch):
    hub.may_write = False
    code, _, err = pushed()
    assert code == 69 and "may not write there (403)" in err and "Traceback" not in err
    monkeypatch.setenv("MY_TOKEN", "hf_another")
    code, _, err = pushed("--token-env", "MY_TOKEN")
    assert code == 69 and "does not know this token (401)" in err and "hf_another" not in err


def test_the_token_comes_from_the_login_or_the_named_variable(hub, pushed, monkeypatch):
    monkeypatch.setattr(push, "get_token", lambda: None)
    code, _, err = pushed()
    assert code == 2 and "no token of the hub" in err and hub.requests == []
    monkeypatch.delenv("MY_TOKEN", raising=False)
    code, _, err = pushed("--token-env", "MY_TOKEN")
    assert code == 2 and "--token-env MY_TOKEN" in err and hub.requests == []
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    assert pushed("--token-env", "MY_TOKEN")[0] == 0


def test_no_private_push_into_a_public_repository(hub, pushed):
    hub.private[REPO] = False
    code, _, err = pushed()
    assert code == 69 and "is there and public" in err and hub.files(REPO) == {}
    assert pushed("--public")[0] == 0


def test_licences_are_asked_for_before_a_student_is_public(hub, pushed, tmp_path):
    teachers = [teacher("one", licence="gemma"), teacher("two", licence=None)]
    folder = finished_run(tmp_path / "other", teachers=teachers)
    code, _, err = pushed("--public", folder=folder)
    assert code == 2 and "teacher 'one' (gemma): under the Gemma Terms of Use" in err
    assert "teacher 'two' (not stated)" in err and hub.requests == []
    assert pushed(folder=folder)[0] == 0 and hub.private[REPO] is True
    code, _, err = pushed("--public", "--accept-licences", folder=folder, repo="someone/shown")
    assert code == 0 and hub.private["someone/shown"] is False, err


def test_offline_is_said_at_once(hub, pushed, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, _, err = pushed()
    assert code == 69 and "HF_HUB_OFFLINE is set" in err and hub.requests == []


def test_no_hub_is_said(hub, pushed, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    real = push.HfApi
    monkeypatch.setattr(push, "HfApi", lambda **options: _at(real(**options), url))
    code, _, err = pushed()
    assert code == 69 and "the hub cannot be reached" in err and "Traceback" not in err


def _at(api, url: str):
    api.endpoint = url
    return api


def test_a_dry_run_shows_all_and_asks_nobody(hub, pushed, monkeypatch):
    monkeypatch.setattr(push, "get_token", lambda: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, err = pushed("--dry-run", "--json")
    assert code == 0, err
    shown = json.loads(out)
    assert names_of(shown["files"]) == EXPECTED and shown["files"]["model.safetensors"] == 256 * 64
    assert shown["private"] is True and "## Licences" in shown["card"]
    code, out, err = pushed("--dry-run")
    assert code == 0 and "nothing was" in out + err and "## Licences" in out
    assert hub.requests == []


NO_IDS = ["", "a/b/c", "../x", "a b/c", "https://example.org/a/b", "x/-", "a/b.git", "a/"]


def test_endpoint_and_login_of_the_environment(hub, tmp_path):
    folder = finished_run(tmp_path / "run")
    known = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    login = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home"), "HF_DEBUG": "1"}
    command = [sys.executable, "-m", "collegium", "push", str(folder), REPO]
    done = subprocess.run(command, env=known | login, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"pushed to {hub.url}/{REPO} (private)" in done.stdout + done.stderr
    assert names_of(hub.files(REPO)) == EXPECTED
    assert TOKEN not in done.stdout + done.stderr


@pytest.mark.parametrize("repo", NO_IDS)
def test_an_id_that_is_none(hub, pushed, repo):
    code, _, err = pushed(repo=repo)
    assert code == 2 and "is no id of a repository" in err and hub.requests == []


def test_a_card_that_the_hub_refuses(hub, pushed):
    hub.takes_card = False
    code, _, err = pushed()
    assert code == 69 and "refuses what is to be uploaded" in err and "told to refuse this card" in err
    assert hub.files(REPO) == {} and "Traceback" not in err


def test_an_unfinished_run(hub, pushed, tmp_path):
    (tmp_path / "bare" / "checkpoints").mkdir(parents=True)
    code, _, err = pushed(folder=tmp_path / "bare")
    assert code == 65 and "holds no finished run" in err
    folder = finished_run(tmp_path / "old")
    (folder / "student" / "README.md").unlink()
    code, _, err = pushed(folder=folder)
    assert code == 65 and "collegium evaluate" in err
    (folder / "evaluation.json").write_text("{")
    code, _, err = pushed(folder=folder)
    assert code == 65 and "cannot be read" in err
    (folder / "evaluation.json").write_text("{}")
    code, _, err = pushed(folder=folder)
    assert code == 65 and "collegium evaluate" in err
    without = {key: value for key, value in content().items() if key != "lineage"}
    (folder / "evaluation.json").write_text(json.dumps(without))
    code, _, err = pushed(folder=folder)
    assert code == 65 and "lineage" in err and hub.requests == []


def test_no_path_of_the_machine_is_in_the_evaluation(hub, pushed, tmp_path):
    path = tmp_path / "run" / "evaluation.json"
    written = json.loads(path.read_text())
    del written["sha256"]
    mean = {"forgetting": None, "learning": None, "forward_transfer": None, "final": 1.0}
    written["continual"] = {"runs": [str(tmp_path / "first"), "runs/second"], "domains": {}, "mean": mean}
    written["lm_eval"] = {
        "lm_eval_version": "1",
        "asked": {"include_path": str(tmp_path / "tasks")},
        "results": {},
    }
    path.write_text(json.dumps(written))
    assert pushed()[0] == 0
    arrived = json.loads(hub.files(REPO)["evaluation.json"])
    assert arrived["continual"]["runs"] == ["first", "runs/second"]
    assert arrived["lm_eval"]["asked"]["include_path"] == "tasks"
    assert str(tmp_path) not in hub.files(REPO)["evaluation.json"].decode()


def test_what_is_linked_from_elsewhere_stays(hub, pushed, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "run" / "student" / "notes.txt").symlink_to(tmp_path / "secret.txt")
    assert pushed()[0] == 0 and "notes.txt" not in hub.files(REPO)
