"""A local stand-in of the hub: it takes what `longwave push` sends, and gives it out again."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from huggingface_hub.utils import filter_repo_objects

from longwave.checkpoints.push import LEFT_OUT

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Keeps every request and what was committed; knows one repository of somebody else, and a public one."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.requests: list[tuple[str, str, Any, str]] = []
        self.private: dict[str, bool] = {"me/public": False}
        self.files: dict[str, dict[str, bytes]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def sent(self, part: str) -> list[Any]:
        return [body for _, path, body, _ in self.requests if part in path]

    def given(self) -> set[str]:
        """Names of the files that were downloaded."""
        return {path.split("/", 5)[5] for how, path, *_ in self.requests if how == "GET" and "/resolve/" in path}


def is_private(body: dict[str, Any]) -> bool:
    """As older and as newer versions of huggingface_hub say it."""
    return body.get("private") is True or body.get("visibility") == "private"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer(None)

    do_HEAD = do_GET

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
            sent = [line["value"] for line in body if line["key"] == "file"]
            hub.files[repo] = {file["path"]: base64.b64decode(file["content"]) for file in sent}
            return self.reply(200, {"commitUrl": f"{hub.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT})
        if "/branch/" in path or path == "/api/validate-yaml":
            return self.reply(200, {"errors": [], "warnings": []})
        if "/tree/" in path and repo in hub.files:
            return self.reply(200, [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in hub.files[repo].items()
            ])  # fmt: skip
        if "/resolve/" in path:
            return self.give(*path.removeprefix("/").split("/", 4))
        if path.startswith("/api/models/") and repo in hub.private:
            return self.reply(200, {"id": repo, "sha": COMMIT, "private": hub.private[repo], "siblings": []})
        return self.reply(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})

    def give(self, owner: str, name: str, _: str, revision: str, path: str) -> None:
        content = self.server.files.get(f"{owner}/{name}", {}).get(path)
        headers = {"X-Repo-Commit": COMMIT}
        if content is None:
            return self.reply(404, {"error": "Entry not found"}, headers | {"X-Error-Code": "EntryNotFound"})
        headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
        return self.reply(200, content, headers)

    def reply(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def standing_hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def python(hub: Hub | None, home: Path, *arguments: object, **changes: str | None) -> subprocess.CompletedProcess[str]:
    """A Python process that knows this hub, or one that does not answer."""
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url if hub else "http://127.0.0.1:9", "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_test", "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1",
        **changes,
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={name: value for name, value in environment.items() if value is not None},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def push(hub: Hub | None, home: Path, *arguments: object, **changes: str | None) -> subprocess.CompletedProcess[str]:
    return python(hub, home, "-m", "longwave", "push", *arguments, **changes)


def committed(hub: Hub) -> tuple[dict[str, Any], dict[str, bytes]]:
    (lines,) = hub.sent("/commit/")
    (header,) = [line["value"] for line in lines if line["key"] == "header"]
    files = [line["value"] for line in lines if line["key"] == "file"]
    assert len(lines) == 1 + len(files)
    return header, {file["path"]: base64.b64decode(file["content"]) for file in files}


def lay_out(cache: Path, name: str, folder: Path, *, revision: str = "main", commit: str = COMMIT) -> Path:
    """What `longwave push` sends of a folder, in a cache as huggingface_hub lays it out; the snapshot's folder."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot, blobs, ref = repository / "snapshots" / commit, repository / "blobs", repository / "refs" / revision
    for place in (snapshot, blobs, ref.parent):
        place.mkdir(parents=True, exist_ok=True)
    ref.write_text(commit)
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    for file in filter_repo_objects(names, ignore_patterns=LEFT_OUT):
        content = (folder / file).read_bytes()
        blob, link = blobs / hashlib.sha256(content).hexdigest(), snapshot / file
        blob.write_bytes(content)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot
