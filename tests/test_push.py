"""`longwave push` against a local stand-in of the hub's API: what it is asked for, and what it is sent."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub import COMMIT, Hub, committed, is_private, push, standing_hub


@pytest.fixture
def hub() -> Iterator[Hub]:
    with standing_hub() as server:
        yield server


def test_a_longwave_folder(hub: Hub, trained: Path, tmp_path: Path) -> None:
    wanted = {str(path.relative_to(trained)): path for path in trained.rglob("*") if path.is_file()}
    for name in (".longwave.safetensors", "model/.config.json.abc", ".cache/x", "checkpoints/checkpoint-1/state.bin"):
        (trained / name).parent.mkdir(parents=True, exist_ok=True)
        (trained / name).write_text("unfinished")
    done = push(hub, tmp_path, trained, "me/model", "--private", "--message", "First", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "url": f"{hub.url}/me/model", "repo": "me/model", "revision": "main", "commit": COMMIT,
    }  # fmt: skip
    (created,) = hub.sent("/api/repos/create")
    assert (created["organization"], created["name"], is_private(created)) == ("me", "model", True)
    header, files = committed(hub)
    assert header["summary"] == "First"
    assert {"longwave.json", "longwave.safetensors", "model/config.json", "tokenizer.json"} <= set(wanted)
    assert files == {name: path.read_bytes() for name, path in wanted.items()}
    assert hub.requests[-1][1] == "/api/models/me/model/commit/main"
    assert {token for *_, token in hub.requests} == {"Bearer hf_test"}


def test_an_export_on_a_branch(hub: Hub, plain: Path, tmp_path: Path) -> None:
    (plain / "README.md").write_text("---\nlicense: mit\n---\n# Model\n")
    done = push(hub, tmp_path, plain, "me/public", "--revision", "long")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{hub.url}/me/public/tree/long\n"
    (created,) = hub.sent("/api/repos/create")
    assert not is_private(created)
    assert hub.sent("/api/models/me/public/branch/long") == [{}]
    header, files = committed(hub)
    assert header["summary"] == "Upload plain"
    assert set(files) == {path.name for path in plain.iterdir()}
    assert hub.requests[-1][1] == "/api/models/me/public/commit/long"


def test_private_never_goes_to_a_public_repository(hub: Hub, plain: Path, tmp_path: Path) -> None:
    done = push(hub, tmp_path, plain, "me/public", "--private")
    assert done.returncode == 1
    assert "me/public is there already, and public." in done.stderr
    assert not hub.sent("/commit/") and not hub.sent("/preupload/")


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_what_the_hub_refuses_is_one_line(hub: Hub, plain: Path, tmp_path: Path) -> None:
    found = complaint(push(hub, tmp_path, plain, "others/model"))
    assert f"the hub did not take {plain}: 403" in found and "don't have the rights" in found
    assert not hub.sent("/commit/")


def test_no_hub_is_one_line(plain: Path, tmp_path: Path) -> None:
    assert f"the hub did not take {plain}: " in complaint(push(None, tmp_path, plain, "me/model"))
    offline = push(None, tmp_path, plain, "me/model", HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in complaint(offline)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no folder", "does not exist"),
        ("no model", "holds no whole model"),
        ("no weights", "holds no whole model"),
        ("no longwave.json", "longwave.json is missing: the folder is incomplete"),
        ("bad longwave.json", "longwave.json is not valid JSON"),
        ("bad config.json", "config.json is not valid JSON"),
        ("list for config.json", "config.json holds no JSON object, but a list"),
        ("an adapter", "is a PEFT adapter of org/base, not a model"),
        ("no owner", "REPO has the form OWNER/NAME, got 'model'."),
        ("bad repo", "Repo id"),
        ("no token", "no token for the hub. Run `hf auth login`, or set HF_TOKEN."),
    ],
)
def test_bad_input_reaches_no_hub(how: str, message: str, hub: Hub, plain: Path, trained: Path, tmp_path: Path) -> None:
    folder, repo = plain, "me/model"
    if how == "no folder":
        folder = tmp_path / "absent"
    elif how == "no model":
        folder = tmp_path / "empty"
        folder.mkdir()
    elif how == "no weights":
        (plain / "model.safetensors").unlink()
    elif how == "no longwave.json":
        folder = trained
        (folder / "longwave.json").unlink()
    elif how == "bad longwave.json":
        folder = trained
        (folder / "longwave.json").write_text("{")
    elif how == "bad config.json":
        (plain / "config.json").write_text("{")
    elif how == "list for config.json":
        (plain / "config.json").write_text("[]")
    elif how == "an adapter":
        (plain / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    elif how == "no owner":
        repo = "model"
    elif how == "bad repo":
        repo = "me/..model"
    done = push(hub, tmp_path, folder, repo, HF_TOKEN=None if how == "no token" else "hf_test")
    assert message in complaint(done)
    assert hub.requests == []
