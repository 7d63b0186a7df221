"""`collegium push`: a finished student to the hub, with its card and what measured it.

Private unless asked otherwise. What is uploaded is listed here by name, never a whole run folder: checkpoints,
logs and the recipe with its paths stay. The token comes from the hub's own login or from a named environment
variable, and is in no message: errors are reported by their status alone. An upload that broke off is gone on
with by the same command, since the hub knows what it has already.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from collegium.base.digests import card_is_edited, verify_student
from collegium.base.errors import DataError, HubError, RecipeError, one_line
from collegium.base.progress import Phase
from collegium.base.references import is_offline
from collegium.base.terminal import say, show, show_json, show_table
from collegium.report.card.licences import obstacles
from collegium.report.card.on_disk import CARD_NAME, is_hub_id
from collegium.report.card.public_recipe import public_path
from collegium.report.evaluation import Evaluation
from collegium.report.evaluation_file import NAME, evaluation_text, read_evaluation


NEEDED = ("config.json", CARD_NAME)


@dataclass(frozen=True)
class Upload:
    """The files of an upload, and the repository that they go to.

    Attributes:
        repo_id: `OWNER/NAME`, or `NAME` for the owner of the token.
        private: Whether only its owner sees it.
        revision: Branch; the main one if None.
        files: Content by name in the repository: a file on disk, or bytes that are written for this.
    """

    repo_id: str
    private: bool
    revision: str | None
    files: Mapping[str, Path | bytes]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in self.files.items()
        }

    @property
    def card(self) -> str:
        """The model card."""
        content = self.files[CARD_NAME]
        return (content if isinstance(content, bytes) else content.read_bytes()).decode()


def plan_upload(
    run_dir: Path, repo_id: str, *, private: bool, revision: str | None = None, accept_licences: bool = False
) -> Upload:
    """Plan an upload, after all that can be refused without a hub.

    Raises:
        RecipeError: the id is none, or the licences forbid to make it public unread.
        DataError: the run is not finished, or has no card or evaluation.
    """
    if not is_hub_id(repo_id):
        raise RecipeError(
            f"REPO_ID: {repo_id!r} is no id of a repository on the hub; give OWNER/NAME in letters, digits, "
            "`-`, `_` and `.`"
        )
    evaluation = _evaluation_of(run_dir)
    student = run_dir / "student"
    with Phase("comparing the student with its digests"):
        verify_student(student)
    if card_is_edited(student):
        say(f"{student / CARD_NAME}: is not as collegium wrote it; it is uploaded as it is now")
    files: dict[str, Path | bytes] = {
        path.relative_to(student).as_posix(): path
        for path in sorted(student.rglob("*"))
        if _is_plain(path, student)
    }
    if missing := [name for name in NEEDED if name not in files]:
        raise DataError(
            f"{student}: holds no {missing[0]}; run `collegium evaluate {run_dir}`, which writes the card"
        )
    found = obstacles(evaluation.lineage or {})
    if found and not private and not accept_licences:
        raise RecipeError(
            "not made public, since the licences of what the student was made from may not allow it:\n  "
            + "\n  ".join(found)
            + "\nleave out --public; or read them, name those that are missing in the recipe (`licence:`) and run "
            "`collegium evaluate`, or say --accept-licences"
        )
    files[NAME] = evaluation_text(_without_paths(evaluation)).encode()
    if (run_dir / "report.html").is_file():
        files["report.html"] = run_dir / "report.html"
    return Upload(repo_id, private, revision, files)


def _evaluation_of(run_dir: Path) -> Evaluation:
    if not (run_dir / "student").is_dir():
        raise DataError(f"{run_dir}: holds no finished run (no `student` folder); `collegium train` finishes it")
    evaluation = read_evaluation(run_dir)
    if evaluation.lineage is None:
        raise DataError(
            f"{run_dir / NAME}: says nothing of the student's lineage; run `collegium evaluate {run_dir}`"
        )
    return evaluation


def _is_plain(path: Path, root: Path) -> bool:
    """A file of the folder itself: nothing hidden, half-written, or linked to from elsewhere."""
    parts = path.relative_to(root).parts
    return path.is_file() and not path.is_symlink() and not any(part.startswith(".") for part in parts)


def _without_paths(evaluation: Evaluation) -> Evaluation:
    """The evaluation with earlier runs' folders, and that of one's own task files, by their last name."""
    continual = evaluation.continual
    if continual is not None:
        continual = replace(continual, runs=tuple(public_path(run) for run in continual.runs))
    scores = evaluation.lm_eval
    if scores is not None and scores.asked.get("include_path"):
        asked = {**scores.asked, "include_path": public_path(str(scores.asked["include_path"]))}
        scores = replace(scores, asked=asked)
    return replace(evaluation, continual=continual, lm_eval=scores)


def push(upload: Upload, *, token_env: str | None = None) -> dict[str, Any]:
    """Create the repository if it is not there, and upload; returns where it is.

    Raises:
        RecipeError: there is no token.
        HubError: the hub cannot be reached, or refuses.
    """
    if is_offline():
        raise HubError("HF_HUB_OFFLINE is set, so nothing can be pushed; unset it, or preview with --dry-run")
    token = _token(token_env)
    api = HfApi(token=token, library_name="collegium")
    with _hub_errors(upload.repo_id, token):
        created = api.create_repo(upload.repo_id, private=upload.private, exist_ok=True)
        repo_id = created.repo_id
        is_private = bool(api.repo_info(repo_id).private)
        if upload.private and not is_private:
            raise HubError(f"{repo_id}: is there and public; say --public, or give the id of a private repository")
        if upload.revision is not None:
            api.create_branch(repo_id, branch=upload.revision, exist_ok=True)
        with _staged(upload) as folder, Phase(f"uploading to {repo_id}"):
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=upload.revision,
                commit_message="Upload a student made with collegium",
            )
    return {"repo": repo_id, "url": str(created), "commit": commit.oid, "private": is_private}


@contextmanager
def _staged(upload: Upload) -> Iterator[str]:
    """The files in one folder, so that they are one upload; weights are linked, not copied."""
    with tempfile.TemporaryDirectory(prefix="collegium-push-") as folder:
        for name, content in upload.files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                path.symlink_to(content.resolve())
        yield folder


def _token(name: str | None) -> str:
    """The hub's own login, or the variable that is named; never in a message."""
    token = get_token() if name is None else os.environ.get(name, "").strip()
    if token:
        return token
    if name is None:
        raise RecipeError("no token of the hub: run `hf auth login`, or name a variable by --token-env NAME")
    raise RecipeError(f"--token-env {name}: no such environment variable, or it is empty; it must hold a token")


@contextmanager
def _hub_errors(repo_id: str, token: str) -> Iterator[None]:
    """Errors of the hub as ours: what happened and what to do, without headers, bodies or tokens."""
    try:
        yield
    except HfHubHTTPError as error:
        raise HubError(f"{repo_id}: {_refusal(error.response.status_code)}") from None
    except (httpx2.HTTPError, OfflineModeIsEnabled, ConnectionError) as error:
        raise HubError(
            f"{repo_id}: the hub cannot be reached ({type(error).__name__}); check the network and HF_ENDPOINT, "
            "and run the same command again"
        ) from None
    except ValueError as error:  # the hub reads the metadata of a card before it takes it
        reason = one_line(error).replace(token, "***")
        raise HubError(f"{repo_id}: the hub refuses what is to be uploaded ({reason})") from None
    except RuntimeError as error:  # of what uploads large files
        if isinstance(error, HubError):
            raise
        raise HubError(
            f"{repo_id}: the upload broke off ({type(error).__name__}); run the same command again to continue "
            "with what is there"
        ) from None


def _refusal(status: int) -> str:
    if status == 401:
        return "the hub does not know this token (401); log in again by `hf auth login`, or name another variable"
    if status == 403:
        return "the token may not write there (403); use one with write access, or another owner in REPO_ID"
    if status == 404:
        return "the hub knows no such owner, repository or branch (404); check REPO_ID and --revision"
    if status >= 500 or status == 429:
        return f"the hub failed ({status}); run the same command again to continue with what is there"
    return f"the hub refuses this upload ({status}); check REPO_ID, --revision and the files by --dry-run"


def show_upload(upload: Upload, *, as_json: bool) -> None:
    """Show the files of an upload, and the model card."""
    if as_json:
        where = {"repo": upload.repo_id, "private": upload.private, "revision": upload.revision}
        show_json({**where, "files": upload.sizes, "card": upload.card})
        return
    seen = "private" if upload.private else "public"
    title = f"Would be uploaded to {upload.repo_id} ({seen}); nothing was"
    show_table(title, ["file", "bytes"], [[name, f"{size:,}"] for name, size in upload.sizes.items()])
    show(f"\n{upload.card}")


def show_push(pushed: Mapping[str, Any], *, as_json: bool) -> None:
    """Show the address of an uploaded student."""
    if as_json:
        show_json(pushed)
        return
    seen = "private" if pushed["private"] else "public"
    say(f"pushed to {pushed['url']} ({seen}), commit {pushed['commit']}")
