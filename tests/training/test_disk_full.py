"""A disk that is full while a run writes to it: real errors of the operating system."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from interrupted import QUICK, exact, same_result
from transformers import TrainerCallback

from longwave.training.checkpoints import checkpoints
from longwave.training.manifest import damage

resource = pytest.importorskip("resource", reason="limits of a process are those of Unix")


class Limit(TrainerCallback):
    """Lets this process write no file of more than 200 kB from a step's checkpoint on; the model has 430 kB."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args, state, control, **others):
        if state.global_step == self.step:
            limit(200_000)


def limit(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.fixture(autouse=True)
def _unlimited() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
@pytest.mark.parametrize(("step", "kept"), [(2, ["checkpoint-2"]), (6, ["checkpoint-4", "checkpoint-6"])])
def test_a_checkpoint_or_the_result_does_not_fit(llama, train, tmp_path, step, kept):
    start, out = copy.deepcopy(llama), tmp_path / "out"
    whole = train(copy.deepcopy(start), "whole", **QUICK)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    told = rf"cannot write to .*out: .* MiB are free\)\. Nothing is lost up to {kept[-1]}\. Make room; then .*--resume"
    with pytest.raises(ValueError, match=told) as caught:
        train(copy.deepcopy(start), callbacks=[Limit(step)], **QUICK)
    limit(unlimited)
    assert "\n" not in str(caught.value)
    assert [path.name for path in checkpoints(out / "checkpoints")] == kept
    assert sorted(path.name for path in out.iterdir()) == ["checkpoints", "metrics.jsonl", "training.json"]
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == sorted(kept)
    assert train(copy.deepcopy(start), resume=True, **QUICK) == out
    assert exact(out / "metrics.jsonl") == exact(whole / "metrics.jsonl")
    same_result(whole, out)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB. A checkpoint of the tiny model takes 1.3 MB: the third one does not fit."""
    folder = tmp_path / "small"
    folder.mkdir()
    if not sys.platform.startswith("linux"):
        pytest.skip("mounts a tmpfs, which Linux has")
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True)
    if mount.returncode:
        pytest.skip("only root may mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_the_disk_is_full(llama, train, small_disk):
    start, out = copy.deepcopy(llama), small_disk / "out"
    whole = train(copy.deepcopy(start), "whole", **QUICK)
    with pytest.raises(ValueError, match=r"MiB are free\)\. Nothing is lost up to checkpoint-4\. Make room"):
        train(copy.deepcopy(start), "small/out", **QUICK)
    found = checkpoints(out / "checkpoints")
    assert [path.name for path in found] == ["checkpoint-2", "checkpoint-4"]
    assert [damage(path) for path in found] == [None, None]
    subprocess.run(["mount", "-o", "remount,size=30m", str(small_disk)], check=True)
    train(copy.deepcopy(start), "small/out", resume=True, **QUICK)
    assert json.loads((out / "training.json").read_text())["status"] == "finished"
    assert exact(out / "metrics.jsonl") == exact(whole / "metrics.jsonl")
    same_result(whole, out)
