"""llama.cpp's own server, started from the PyPI wheel `xllamacpp` in a process of its own.

Run as a script, this file is that process: it imports nothing of longwave, and a crash of the native library ends
it alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGE = "xllamacpp"
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # proxies do not lead back here
TIMEOUT = 3600  # seconds until an answer is there


def installed() -> str | None:
    """Version of the wheel, or None."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return None


@contextmanager
def served(model: Path, context: int, *, exact: bool = False) -> Iterator[str]:
    """Address of a server for one GGUF file, for the length of a `with` block.

    Arguments:
        context: tokens of prompt and answer together.
        exact: keys and values in float32 and attention step by step, to compare; otherwise what `llama-server`
            does by default.

    Raises:
        ValueError: if llama.cpp does not load the file; with its last words.
    """
    command = [sys.executable, "-P", __file__, str(model), str(context), str(int(exact))]
    paths = [path for path in sys.path if path]  # the wheel may be on a path that only this process knows
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            address = next((line.split()[1] for line in process.stdout if line.startswith("address ")), None)
            if address is None:
                process.wait()
                log.seek(0)
                words = [line.strip() for line in log if "error" in line.lower() or "failed" in line.lower()]
                raise ValueError(
                    f"llama.cpp does not load {model}: {words[0] if words else f'exit status {process.returncode}'}"
                )
            yield address
        finally:
            process.stdin.close()  # which is what it waits for
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


def ask(address: str, path: str, **fields: Any) -> dict[str, Any]:
    """POST JSON to a server, its answer as JSON; a refusal is a `ValueError` with the server's words."""
    request = urllib.request.Request(address + path, json.dumps(fields).encode(), {"Content-Type": "application/json"})
    try:
        with DIRECT.open(request, timeout=TIMEOUT) as answer:
            result: dict[str, Any] = json.load(answer)
            return result
    except urllib.error.HTTPError as error:
        raise ValueError(f"llama.cpp refuses {path}: {error.read().decode(errors='replace')[:300]}") from None
    except (OSError, HTTPException) as error:
        raise ValueError(f"llama.cpp does not answer at {address} ({error}): its process has ended.") from None


def _serve(model: str, context: int, exact: bool) -> None:
    import xllamacpp

    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nobody reads what the library prints there
    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.n_ctx = context
    parameters.n_parallel = 1
    parameters.warmup = False
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    threads = int(os.environ.get("OMP_NUM_THREADS", "0")) or os.cpu_count() or 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    if exact:
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.cache_ram_mib = 0
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(parameters)
    print("address", server.listening_address, file=said, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "1")
