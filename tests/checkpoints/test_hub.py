"""Models by their names on the hub: from a cache on disk without a network, and from a hub that answers."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hub import COMMIT, lay_out, push, python, standing_hub
from test_save_and_load import legacy_folder
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import longwave
from longwave.checkpoints.folder import Kind, ModelFolder, resolve
from longwave.checkpoints.hub import reason
from longwave.checkpoints.load import extension_of
from longwave.checkpoints.tokenizer import load_tokenizer
from longwave.cli.main import main
from longwave.evaluation.candidates import Candidate
from longwave.evaluation.cells import fingerprint
from longwave.evaluation.comparison import Comparison
from longwave.evaluation.suites import parse_suite
from longwave.models import open_model
from longwave.training.config import TrainConfig
from longwave.training.prepare import load_with_tokenizer

OTHER = "f" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache of this process, which has no network (see conftest)."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def logits(model: PreTrainedModel) -> Tensor:
    ids = torch.arange(96)[None] * 7 % 29 + 3
    with torch.no_grad():
        return model(ids, use_cache=False).logits


def scaled(folder: Path) -> Path:
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=256, bos_token_id=0, eos_token_id=0,
        rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64},
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


KINDS: dict[str, tuple[Kind, Callable[[pytest.FixtureRequest, Path], Path]]] = {
    "longwave": (Kind.LONGWAVE, lambda request, _: request.getfixturevalue("trained")),
    "plain": (Kind.PLAIN, lambda request, _: request.getfixturevalue("plain")),
    "scaled": (Kind.PLAIN, lambda _, folder: scaled(folder)),
    "official": (Kind.OFFICIAL, lambda _, folder: legacy_folder(folder, "tanh_d64")),
    "export": (Kind.EXPORT, lambda request, out: longwave.export(request.getfixturevalue("trained"), out).folder),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_pushed_folder_is_by_its_name_what_it_is_as_a_folder(
    kind: str, request: pytest.FixtureRequest, cache: Path, tmp_path: Path
) -> None:
    expected, make = KINDS[kind]
    folder = make(request, tmp_path / kind)
    lay_out(cache, "me/model", folder)
    assert resolve("me/model").kind is resolve(folder).kind is expected
    assert resolve("me/model").commit == COMMIT and resolve(folder).commit is None
    assert extension_of("me/model") == extension_of(folder)
    assert (extension_of(folder) is None) is (kind == "plain")
    assert torch.equal(logits(longwave.load("me/model")), logits(longwave.load(folder)))
    assert fingerprint("me/model") == {"me/model": COMMIT}


def test_a_pushed_folder_has_its_tokenizer(plain: Path, trained: Path, cache: Path) -> None:
    lay_out(cache, "me/model", trained)
    lay_out(cache, "me/plain", plain)
    for name in ("me/model", "me/plain"):
        assert load_tokenizer(name)("abc").input_ids == load_tokenizer(trained)("abc").input_ids
        config = TrainConfig(train_length=64, max_factor=2)
        assert load_with_tokenizer(name, None, config)[1]("abc").input_ids == load_tokenizer(trained)("abc").input_ids


def test_a_revision_is_another_model(plain: Path, trained: Path, cache: Path) -> None:
    lay_out(cache, "me/model", trained)
    lay_out(cache, "me/model", plain, revision="plain", commit=OTHER)
    for revision in ("plain", OTHER):
        assert extension_of("me/model", revision=revision) is None
        assert torch.equal(logits(longwave.load("me/model", revision=revision)), logits(longwave.load(plain)))
        assert load_tokenizer("me/model", revision=revision)("abc").input_ids
    assert extension_of("me/model") == extension_of("me/model", revision="main") == ("clex", 4.0)
    with pytest.raises(ValueError, match=r"the cache does not have me/model at revision 'absent'"):
        longwave.load("me/model", revision="absent")


def test_a_cache_in_another_place(trained: Path, tmp_path: Path) -> None:
    lay_out(tmp_path / "else", "me/model", trained)
    model = longwave.load("me/model", cache_dir=tmp_path / "else", local_files_only=True, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16 and extension_of("me/model", cache_dir=tmp_path / "else") == ("clex", 4.0)


def out(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["longwave", "plain", "official"])
def test_commands_take_a_name(
    kind: str,
    request: pytest.FixtureRequest,
    plain: Path,
    cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = KINDS[kind][1](request, tmp_path / kind)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((plain / name).read_bytes())
    lay_out(cache, "me/model", folder)
    text = tmp_path / "text.txt"
    text.write_text("!#%+" * 400)  # characters whose tokens a vocabulary of 32 has
    generated = [
        out(capsys, "generate", model, "--prompt", "!#%", "--max-new-tokens", 8) for model in (folder, "me/model")
    ]
    assert generated[0] == generated[1]
    rows = []
    for place, model in enumerate((folder, "me/model")):
        given = out(
            capsys, "perplexity", model, "--data", text, "--lengths", "128,256", "--json", "-o", tmp_path / f"{place}"
        )
        rows.append([row["lengths"] for row in json.loads(given)["rows"]])
    assert rows[0] == rows[1]


def test_an_export_takes_a_name(trained: Path, cache: Path, tmp_path: Path) -> None:
    lay_out(cache, "me/model", trained)
    by_name, by_folder = longwave.export("me/model", tmp_path / "a"), longwave.export(trained, tmp_path / "b")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (by_name.folder / name).read_bytes() == (by_folder.folder / name).read_bytes()


def test_the_harness_takes_a_name(trained: Path, cache: Path) -> None:
    harness = pytest.importorskip("longwave.evaluation.harness")
    lay_out(cache, "me/model", trained)
    model = harness.LongwaveLM("me/model", device="cpu")
    assert model.tok_encode("abc") == harness.LongwaveLM(str(trained), device="cpu").tok_encode("abc")


def complaint(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 1
    given = capsys.readouterr()
    assert given.out == "" and given.err.startswith("error: ") and given.err.count("\n") == 1, given.err
    return given.err


def test_an_unknown_name_is_one_line_at_once(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.perf_counter()
    said = complaint(capsys, "generate", "me/absent", "--prompt", "x")
    assert "there is no folder me/absent, the cache does not have me/absent, and the hub cannot be reached" in said
    assert "no name on the hub, which has the form OWNER/NAME" in complaint(capsys, "generate", "a b", "--prompt", "x")
    assert time.perf_counter() - started < 5


def test_a_cache_that_lacks_a_file_is_one_line(trained: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snapshot = lay_out(cache, "me/model", trained)
    (snapshot / "longwave.safetensors").unlink()
    assert "longwave.safetensors is missing" in complaint(capsys, "generate", "me/model", "--prompt", "x")
    (snapshot / "longwave.json").unlink()
    assert extension_of(trained) == ("clex", 4.0)
    assert "me/model/longwave.json is missing" in complaint(capsys, "generate", "me/model", "--prompt", "x")


ASK = """
import sys
from longwave.checkpoints.load import extension_of
from longwave.cli.main import main
for name in sys.argv[1:]:
    print(extension_of(name))
print(main(["generate", "me/absent", "--prompt", "x"]))
"""
LOAD = """
import sys, torch, longwave
from longwave.checkpoints.tokenizer import load_tokenizer
from longwave.cli.main import main
for name in sys.argv[1:]:
    ids = torch.tensor([load_tokenizer(name)("abc").input_ids])
    print(longwave.load(name)(ids).logits.double().sum().item())
print(main(["generate", "me/absent", "--prompt", "x"]))
"""


@pytest.mark.slow
def test_push_then_load_from_the_same_hub(plain: Path, trained: Path, tmp_path: Path) -> None:
    """The real client on both sides: what was sent, what is fetched, and what works without a network afterwards."""
    (trained / "training.json").write_text('{"seed": 1}')
    (trained / "picture.png").write_bytes(b"png")
    names = "me/trained", "me/plain"
    with standing_hub() as hub:
        pushed = push(hub, tmp_path, trained, "me/trained")
        assert pushed.returncode == 0, pushed.stderr
        hub.private["me/plain"] = False
        hub.files["me/plain"] = {path.name: path.read_bytes() for path in plain.iterdir()} | {"extra.onnx": b"onnx"}
        asked = python(hub, tmp_path, "-c", ASK, *names)
        assert asked.stdout == "('clex', 4.0)\nNone\n1\n", asked.stderr
        assert "error: there is no folder me/absent, and no such model on the hub." in asked.stderr
        assert hub.given() == {"longwave.json", "model/config.json", "training.json", "config.json"}
        loaded = python(hub, tmp_path, "-c", LOAD, *names)
        assert {"longwave.safetensors", "model/model.safetensors", "tokenizer.json", "model.safetensors"} < hub.given()
        assert not hub.given() & {"picture.png", "extra.onnx"}
    again = python(None, tmp_path, "-c", LOAD, *names)  # the hub is gone
    assert again.stdout == loaded.stdout
    assert "cache does not have me/absent, and the hub cannot be reached" in again.stderr
    local = [longwave.load(folder) for folder in (trained, plain)]
    ids = torch.tensor([load_tokenizer(plain)("abc").input_ids])
    found = [float(line) for line in loaded.stdout.splitlines()]
    assert found == [*(pytest.approx(model(ids).logits.double().sum().item(), rel=1e-6) for model in local), 1]


def test_a_format_is_checked_before_weights_are_fetched(trained: Path, cache: Path) -> None:
    settings = json.loads((trained / "longwave.json").read_text())
    (trained / "longwave.json").write_text(json.dumps(settings | {"format": 99}))
    not_fetched = ModelFolder("me/absent", trained, Kind.LONGWAVE, {"revision": COMMIT, "local_files_only": True})
    with pytest.raises(ValueError, match="has format 99"):
        longwave.load(not_fetched)


def test_a_comparison_stays_at_one_commit(plain: Path, cache: Path, tmp_path: Path) -> None:
    """main moves between the key and the numbers; both are of the commit that was found first."""
    lay_out(cache, "me/model", plain)
    candidate = Candidate("me/model", "model", ("none",))
    step = parse_suite("- passkey: {}\n", "test")
    comparison = Comparison([candidate], step, tmp_path / "out", lambda found: open_model(found, "float32", "cpu"))
    assert comparison.cells[0].depends["model"] == {"me/model": COMMIT}
    torch.manual_seed(1)
    other = LlamaForCausalLM(longwave.load(plain).config)
    other.save_pretrained(tmp_path / "other")
    lay_out(cache, "me/model", tmp_path / "other", commit=OTHER)
    opened = comparison._get("me/model")
    assert opened.about["commit"] == COMMIT and opened.about["path"] == "me/model"
    assert torch.equal(logits(opened.model), logits(longwave.load(plain)))


def test_a_tokenizer_that_the_cache_lacks(plain: Path, cache: Path) -> None:
    snapshot = lay_out(cache, "me/model", plain)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (snapshot / name).unlink()
    with pytest.raises(ValueError, match=r"the cache holds no tokenizer of me/model.* Load it once with a network"):
        load_tokenizer("me/model")


def test_a_full_disk_is_not_the_hubs(cache: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        reason("me/model", None, OSError(errno.ENOSPC, "No space left on device"))
