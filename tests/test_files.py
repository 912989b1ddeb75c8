import hashlib
import os

import pytest

from longwave import files as io
from longwave import provenance


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    target = tmp_path / "result.json"
    io.write_json(target, {"a": 1})

    def broken(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="no space"):
        io.write_json(target, {"a": 2})
    assert io.read_json(target) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_nan_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        io.write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_damaged_json_names_the_file(tmp_path):
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"x\.json is not valid JSON"):
        io.read_json(tmp_path / "x.json")


def test_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"longwave" * 10_000)
    assert io.sha256(tmp_path / "x") == hashlib.sha256(b"longwave" * 10_000).hexdigest()


def test_output_folder_is_never_taken_over_silently(tmp_path):
    assert io.prepare_output(tmp_path / "new" / "deep").is_dir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("x")
    with pytest.raises(ValueError, match=r"not empty.*--overwrite"):
        io.prepare_output(tmp_path / "full")
    assert io.prepare_output(tmp_path / "full", overwrite=True) == tmp_path / "full"
    assert (tmp_path / "full" / "kept").exists()
    with pytest.raises(ValueError, match="is a file"):
        io.prepare_output(tmp_path / "full" / "kept")


def test_versions_record_what_numbers_depend_on():
    assert {"python", "torch", "transformers", "torchdiffeq"} <= set(provenance.versions())


def test_json_that_is_nested_too_deeply_is_named(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"deep\.json is nested too deeply"):
        io.read_json(tmp_path / "deep.json")
