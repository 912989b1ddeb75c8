"""A folder that was trained is trained further as what it is, unless another method is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longwave.training.going_further import with_own_method

Train = Callable[..., Path]
L = 64
SHORT: dict[str, Any] = {"method": None, "train_length": 2 * L, "steps": 1}


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "training.json").read_text())["config"]


@pytest.mark.slow
def test_an_engine_ready_folder_stays_one(
    plain: Path, train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
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
