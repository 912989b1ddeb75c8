"""A folder that was trained is trained further as what it is, unless another method is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

import longwave
from longwave.cli.main import main
from longwave.training.going_further import with_own_method

Train = Callable[..., Path]
L = 64
SHORT: dict[str, Any] = {"method": None, "train_length": 2 * L, "steps": 1}


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "training.json").read_text())["config"]


@pytest.mark.slow
def test_an_engine_ready_folder_stays_one(
    plain: Path, train: Train, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    ready = train(plain, "ready", **SHORT, engine_ready=True)
    assert (config_of(ready)["method"], config_of(ready)["engine_ready"]) == ("ntk", True)
    further = train(ready, "further", **SHORT)
    assert (config_of(further)["method"], config_of(further)["engine_ready"]) == ("ntk", True)
    assert json.loads((further / "longwave.json").read_text())["adapter"]["trained_factor"] == 2.0
    assert "left behind" not in caplog.text
    banded = train(ready, "banded", **SHORT | {"method": "two-band"})
    assert config_of(banded)["engine_ready"] is False
    left = "the model's scalars of heads and LoRA were learned under ntk and are left behind: two-band starts"
    assert left in caplog.text
    assert with_own_method(banded, {"train_length": 2}) == {"method": "two-band", "train_length": 2}
    assert with_own_method(banded, {"engine_ready": True}) == {"engine_ready": True}  # bands are not engine-ready
    assert with_own_method(plain, {"steps": 2}) == {"steps": 2}
    assert with_own_method(ready, {}) == {"method": "ntk", "engine_ready": True}
    assert with_own_method(ready, {}, {"method": "two-band", "engine_ready": False})["method"] == "two-band"
    assert with_own_method(longwave.load(ready), {}) == {"method": "ntk"}
    assert main(["train", str(ready), "--train-length", "128", "--max-factor", "8", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["learning_rate"] == 5e-3, "a plan of two-band or without a LoRA"


@pytest.mark.slow
def test_a_run_of_before_goes_on_as_it_was_recorded(plain: Path, train: Train) -> None:
    """Such runs took two-band whatever the model was."""
    ready = train(plain, "ready", **SHORT, engine_ready=True)
    before = train(ready, "before", **SHORT | {"method": "two-band"})
    record = json.loads((before / "training.json").read_text())
    (before / "training.json").write_text(json.dumps(record | {"status": "running"}))
    assert train(ready, "before", **SHORT, resume=True) == before
    assert config_of(before)["method"] == "two-band"


@pytest.mark.slow
def test_the_running_mean_is_that_of_an_uninterrupted_run(
    plain: Path, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = {"method": "ntk", "steps": 4, "save_every": 2, "progress": True}
    train(plain, "whole", **how)
    whole = [line.split(")")[0] for line in capsys.readouterr().err.splitlines() if line.startswith("step")]
    train(plain, "parts", **how, callbacks=[Stop(3)])
    capsys.readouterr()
    train(plain, "parts", **how, resume=True)
    rest = [line.split(")")[0] for line in capsys.readouterr().err.splitlines() if line.startswith("step")]
    assert len(whole) == 4 and len(rest) in (1, 2) and rest == whole[-len(rest) :]


def test_a_selection_has_no_gradient(plain: Path, train: Train, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="infllm chooses keys as it goes, and has no gradient"):
        train(plain, "out", method="infllm", train_length=48)
    assert not (tmp_path / "out").exists()


class Stop(TrainerCallback):
    """Stops a run after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        control.should_training_stop = state.global_step >= self.step
