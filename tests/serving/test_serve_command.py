"""`longwave serve` as a user runs it: what it says, what it refuses at the start, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from servers import build, generated, saved, until

from longwave.cli.main import main
from longwave.demo.run import BASE as DEMO
from longwave.serving import vllm_server
from longwave.serving.engines import engine_of, served_name
from longwave.serving.settings import ServeSettings

ONE = {"factor": 1.0, "length": 64, "factors": [1.0], "attention_scaling": 1.0, "inv_freq": [1.0]}
PROFILES = {"format": 1, "original_length": 64, "profiles": [ONE]}


@pytest.fixture
def folder(tmp_path: Path, talking: Any) -> Path:
    return saved(tmp_path / "small", build(), talking)


def run(*arguments: object) -> int:
    return main(["serve", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "--host '0.0.0.0' lets other machines in, and there is no API key. Set"),
        (["--host", ""], "lets other machines in"),
        (["--host", "::"], "lets other machines in"),
        (["--api-key", ""], "must be printable ASCII, and not empty"),
        (["--api-key", "schlüssel"], "must be printable ASCII"),
        (["--port", 70000], "port must be between 0 and 65535, got 70000"),
        (["--queue", 0], "queue must be at least 1"),
        (["--engine", "vllm"], "--engine vllm needs vLLM, which is not installed"),
        (["--host", "192.0.2.1", "--api-key", "k"], "cannot listen at 192.0.2.1"),
        (["--method", "clex", "--port", 0], "clex needs trained weights"),
    ],
    ids=str,
)  # fmt: skip
def test_refused_at_the_start_in_one_line(
    folder: Path, capfd: pytest.CaptureFixture[str], arguments: list[object], message: str
) -> None:
    code = run(folder, *arguments)
    error = capfd.readouterr().err
    assert code == 1 and message in error and error.count("\n") == 1


def test_a_port_in_use_is_told_before_torch_is_imported(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code = (
            "import sys; sys.modules['torch'] = None; from longwave.cli.main import main; "
            f"sys.exit(main(['serve', {str(folder)!r}, '--port', '{port}']))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: port {port} of 127.0.0.1 is in use. Stop what listens there, or choose another --port; 0 finds one.\n"
    )


@pytest.mark.parametrize("package", ["fastapi", "uvicorn"])
def test_a_missing_package_is_one_line_with_the_remedy(folder: Path, package: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None; sys.modules['torch'] = None; "
        f"from longwave.cli.main import main; sys.exit(main(['serve', {str(folder)!r}, '--port', '0']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (
        1, f"error: longwave serve needs {package}. Run: pip install 'longwave[serve]'\n",
    )  # fmt: skip


def test_names_are_no_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert served_name(str(folder), ServeSettings()) == "small"
    assert served_name("owner/name", ServeSettings()) == "owner/name"
    assert served_name(str(folder), ServeSettings(name="x")) == "x"
    monkeypatch.chdir(folder)
    assert served_name(".", ServeSettings()) == "small"


def test_vllm_takes_folders_with_profiles_where_it_is_installed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine_of(str(folder), ServeSettings()) == "transformers"
    (tmp_path / "vllm.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert engine_of(str(folder), ServeSettings()) == "transformers"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_profiles": PROFILES}))
    assert engine_of(str(folder), ServeSettings()) == "vllm"
    assert engine_of(str(folder), ServeSettings(engine="transformers")) == "transformers"
    with pytest.raises(ValueError, match=r"--prefill-chunk is for longwave's own server, and vLLM serves here"):
        vllm_server.command(str(folder), ServeSettings(prefill_chunk=64))
    with pytest.raises(ValueError, match=r"--default-max-tokens is for longwave's own server"):
        vllm_server.command(str(folder), ServeSettings(default_max_tokens=64))
    with pytest.raises(ValueError, match=r"--host '0.0.0.0' would let other machines past the API key of vLLM"):
        vllm_server.command(str(folder), ServeSettings(host="0.0.0.0", api_key="k"))
    words = vllm_server.command(str(folder), ServeSettings(port=9, api_key="k"))
    assert words[words.index("--model") + 1] == str(folder)
    assert words[1:3] == ["-m", "vllm.entrypoints.openai.api_server"] and "k" not in words
    assert words[words.index("--served-model-name") + 1] == "small" and "--enable-lora" not in words
    assert words[words.index("--shutdown-timeout") + 1] == "30"
    words = vllm_server.command(str(folder), ServeSettings(drain=0.5))
    assert words[words.index("--shutdown-timeout") + 1] == "1"
    with_adapters = {"profiles": [ONE, ONE | {"factor": 2.0, "adapter": "adapters/t2"}]}
    (folder / "config.json").write_text(json.dumps(config | {"rope_profiles": PROFILES | with_adapters}))
    (folder / "adapters" / "t2").mkdir(parents=True)
    (folder / "adapters" / "t2" / "adapter_config.json").write_text('{"r": 20}')
    words = vllm_server.command(str(folder), ServeSettings())
    assert words[-5:] == ["--enable-lora", "--max-loras", "2", "--max-lora-rank", "32"]
    (folder / "adapters" / "t2" / "adapter_config.json").write_text('{"r": 600}')
    with pytest.raises(ValueError, match="have rank 600, and vLLM holds 512 at most"):
        vllm_server.command(str(folder), ServeSettings())


Start = Callable[..., tuple[subprocess.Popen[str], str, str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start `longwave serve` in a process; gives the process, its address, and what it says of itself."""
    processes: list[subprocess.Popen[str]] = []

    def begin(*arguments: object, **environment: str) -> tuple[subprocess.Popen[str], str, str]:
        command = [sys.executable, "-m", "longwave", "serve", *map(str, arguments), "--port", "0"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environment)
        processes.append(process)
        assert process.stderr is not None
        said = ""
        while "curl" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        address = re.search(r"http://[\d.:]+", said)
        assert address is not None
        return process, address[0], said

    yield begin
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_the_demo_model_from_start_to_SIGTERM(start: Start) -> None:
    process, url, said = start(DEMO, "--method", "two-band", "--to", 4096, LONGWAVE_API_KEY="sesame")
    assert "trained length 256, prompts with answers of up to 4,096 tokens, t up to 16)." in said
    assert "sesame" not in said and "Bearer $LONGWAVE_API_KEY" in said
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong").models.list()
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="sesame", max_retries=0)
    (model,) = client.models.list()
    short = client.completions.create(model=model.id, prompt="The ", max_tokens=8, temperature=0)
    assert short.longwave["factor"] == 1.0 and short.choices[0].text
    prompt = "The sea was calm. " * 200
    stream = client.completions.create(model=model.id, prompt=prompt, max_tokens=200, temperature=0, stream=True)
    chunks = [next(iter(stream))]
    process.send_signal(signal.SIGTERM)
    chunks += list(stream)
    assert chunks[0].longwave["factor"] > 4 and chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert process.wait(60) == 0
    assert process.stderr is not None and process.stderr.read() == ""


@pytest.mark.slow
def test_the_curl_line_of_the_greeting_works(start: Start, folder: Path, talking: Any) -> None:
    _, _, said = start(folder)
    line = next(line for line in said.splitlines() if line.startswith("curl"))
    done = subprocess.run(["bash", "-c", f"{line} -sS"], capture_output=True, text=True, timeout=60)
    ids = talking("Once upon a time")["input_ids"]
    assert json.loads(done.stdout)["choices"][0]["text"] == talking.decode(
        generated(build(), talking, ids, 32), skip_special_tokens=True
    )


@pytest.mark.slow
def test_a_second_signal_ends_at_once(start: Start, tmp_path: Path, talking: Any) -> None:
    model = build()
    model.config.eos_token_id = model.generation_config.eos_token_id = None  # an answer does not end by itself
    process, url, _ = start(
        saved(tmp_path / "small", model, talking), "--method", "yarn", "--to", 60_000, "--drain", 100
    )
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
    errors: list[Exception] = []

    def ask() -> None:
        try:
            client.completions.create(model="small", prompt="a", max_tokens=50_000, temperature=1)
        except openai.APIError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: "longwave_queued 2" in httpx2.get(f"{url}/metrics").text, 60)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    for thread in threads:
        thread.join(10)
    assert len(errors) == 3 and all("shutting down" in str(error) for error in errors)
