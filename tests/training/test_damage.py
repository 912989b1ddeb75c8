"""A checkpoint whose files are damaged is named, and the one before it is used."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from interrupted import QUICK, Stop, exact, same_result

from longwave.training.checkpoints import STAGING, checkpoints, newest_whole, publish
from longwave.training.manifest import MANIFEST, damage


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0 if path.name == MANIFEST else len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("harm", [truncate, change, Path.unlink])
def test_each_file_in_turn(llama, train, tmp_path, harm):
    with pytest.raises(KeyboardInterrupt):
        train(llama, callbacks=[Stop(5)], **QUICK)
    root, kept = tmp_path / "out" / "checkpoints", tmp_path / "kept"
    assert newest_whole(root) == (root / "checkpoint-4", {})
    names = [path.name for path in (root / "checkpoint-4").iterdir()]
    expected = {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", MANIFEST}
    assert set(names) == expected
    root.rename(kept)
    for name in names:
        shutil.copytree(kept, root)
        harm(root / "checkpoint-4" / name)
        found, faults = newest_whole(root)
        assert found == root / "checkpoint-2", name
        assert list(faults) == [root / "checkpoint-4"]
        assert name in faults[root / "checkpoint-4"]
        # an older version wrote no manifest: what a file cannot tell itself is not found
        for path in root.glob("*/" + MANIFEST):
            path.unlink()
        if name != MANIFEST and (harm is not change or name == "optimizer.pt"):
            assert Path(name).stem in str(damage(root / "checkpoint-4"))
        shutil.rmtree(root)


@pytest.mark.slow
def test_a_run_goes_on_from_the_checkpoint_before(llama, train, tmp_path, caplog):
    start, broken = copy.deepcopy(llama), tmp_path / "broken"
    whole = train(copy.deepcopy(start), "whole", **QUICK)
    with pytest.raises(KeyboardInterrupt):
        train(copy.deepcopy(start), "broken", callbacks=[Stop(5)], **QUICK)
    newest = broken / "checkpoints" / "checkpoint-4"
    (newest / "optimizer.pt").unlink()
    train(copy.deepcopy(start), "broken", resume=True, keep_checkpoints=True, **QUICK)
    assert [record.getMessage() for record in caplog.records if record.name == "longwave"] == [
        f"{newest} is damaged: optimizer.pt is missing. It is now called damaged-checkpoint-4. "
        "The run goes on from checkpoint-2."
    ]
    assert (newest.with_name("damaged-checkpoint-4") / "model.safetensors").exists()
    assert [path.name for path in checkpoints(newest.parent)] == ["checkpoint-4", "checkpoint-6"]
    assert exact(broken / "metrics.jsonl") == exact(whole / "metrics.jsonl")
    same_result(whole, broken)


def test_without_a_whole_checkpoint_nothing_is_started(llama, train, tmp_path):
    start, root = copy.deepcopy(llama), tmp_path / "out" / "checkpoints"
    with pytest.raises(KeyboardInterrupt):
        train(llama, callbacks=[Stop(5)], **QUICK)
    truncate(root / "checkpoint-2" / "optimizer.pt")
    (root / "checkpoint-4" / "trainer_state.json").unlink()
    with pytest.raises(
        ValueError, match=r"every checkpoint in .* is damaged \(checkpoint-4: trainer_state.json is miss"
    ):
        train(start, resume=True, **QUICK)
    assert [path.name for path in sorted(root.iterdir())] == ["checkpoint-2", "checkpoint-4"]


@pytest.mark.slow
def test_checkpoints_of_an_older_version_are_used(llama, train, tmp_path):
    start, broken = copy.deepcopy(llama), tmp_path / "broken"
    whole = train(copy.deepcopy(start), "whole", **QUICK)
    with pytest.raises(KeyboardInterrupt):
        train(copy.deepcopy(start), "broken", callbacks=[Stop(5)], **QUICK)
    for path in (broken / "checkpoints").glob("*/" + MANIFEST):
        path.unlink()
    record = json.loads((broken / "training.json").read_text())
    del record["config"]["save_total_limit"]
    (broken / "training.json").write_text(json.dumps(record))
    train(copy.deepcopy(start), "broken", resume=True, **QUICK)
    same_result(whole, broken)


def save_and_save(root: Path) -> None:
    """Save and publish as fast as it goes, in a process of its own."""
    for step in range(1, 100_000):
        staged = root / STAGING / f"checkpoint-{step}"
        staged.mkdir(parents=True, exist_ok=True)
        for name in ("model.safetensors", "optimizer.pt", "trainer_state.json"):
            (staged / name).write_bytes(os.urandom(20_000))
        publish(root, staged.name, keep=2)


@pytest.mark.slow
def test_killed_at_any_time_each_checkpoint_is_whole(tmp_path):
    for index in range(30):
        root = tmp_path / str(index)
        if (child := os.fork()) == 0:
            try:
                save_and_save(root)
            finally:
                os._exit(1)
        deadline = time.monotonic() + 30
        while not (root / "checkpoint-3").exists() and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(index * 0.00037)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        found = checkpoints(root)
        assert 2 <= len(found) <= 3
        assert [damage(path) for path in found] == [None] * len(found)
        assert all((path / MANIFEST).exists() for path in found)
