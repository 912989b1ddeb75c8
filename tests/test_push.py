"""`longwave push` against a local stand-in of the hub's API: what it is asked for, and what it is sent."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Keeps every request; knows one repository of somebody else, and a public one."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.requests: list[tuple[str, str, Any, str]] = []
        self.private: dict[str, bool] = {"me/public": False}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def sent(self, part: str) -> list[Any]:
        return [body for _, path, body, _ in self.requests if part in path]


def is_private(body: dict[str, Any]) -> bool:
    """As older and as newer versions of huggingface_hub say it."""
    return body.get("private") is True or body.get("visibility") == "private"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer(None)

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        if "ndjson" in self.headers.get("Content-Type", ""):
            self.answer([json.loads(line) for line in text.splitlines()])
        else:
            self.answer(json.loads(text) if text else None)

    def answer(self, body: Any) -> None:
        path, hub = self.path.partition("?")[0], self.server
        hub.requests.append((self.command, path, body, self.headers.get("Authorization", "")))
        repo = "/".join(path.split("/")[3:5])
        if path == "/api/repos/create":
            repo = f"{body['organization']}/{body['name']}" if body.get("organization") else body["name"]
            if repo.startswith("others/"):
                return self.reply(403, {"error": "You don't have the rights to create a model under others"})
            if repo in hub.private:
                return self.reply(409, {"error": "You already created this model repo", "url": f"{hub.url}/{repo}"})
            hub.private[repo] = is_private(body)
            return self.reply(200, {"url": f"{hub.url}/{repo}"})
        if "/preupload/" in path:
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in body["files"]]
            return self.reply(200, {"files": files})
        if "/commit/" in path:
            return self.reply(200, {"commitUrl": f"{hub.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT})
        if "/branch/" in path or path == "/api/validate-yaml":
            return self.reply(200, {"errors": [], "warnings": []})
        if path.startswith("/api/models/") and repo in hub.private:
            return self.reply(200, {"id": repo, "sha": COMMIT, "private": hub.private[repo], "siblings": []})
        return self.reply(404, {"error": "Repository not found"})

    def reply(self, status: int, body: Any) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def push(hub: Hub | None, home: Path, *arguments: object, **changes: str | None) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url if hub else "http://127.0.0.1:9", "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_test", "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1",
        **changes,
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "longwave.cli.main", "push", *map(str, arguments)],
        env={name: value for name, value in environment.items() if value is not None},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def committed(hub: Hub) -> tuple[dict[str, Any], dict[str, bytes]]:
    (lines,) = hub.sent("/commit/")
    (header,) = [line["value"] for line in lines if line["key"] == "header"]
    files = [line["value"] for line in lines if line["key"] == "file"]
    assert len(lines) == 1 + len(files)
    return header, {file["path"]: base64.b64decode(file["content"]) for file in files}


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


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no folder", "does not exist"),
        ("no model", "holds no whole model"),
        ("no weights", "holds no whole model"),
        ("no longwave.json", "longwave.json is missing: the folder is incomplete"),
        ("bad longwave.json", "longwave.json is not valid JSON"),
        ("bad config.json", "config.json is not valid JSON"),
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
    elif how == "no owner":
        repo = "model"
    elif how == "bad repo":
        repo = "me/..model"
    done = push(hub, tmp_path, folder, repo, HF_TOKEN=None if how == "no token" else "hf_test")
    assert message in complaint(done)
    assert hub.requests == []
