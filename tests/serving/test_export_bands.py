"""`longwave export --profiles` of a model with an attention method: an engine computes what longwave does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer

import longwave
from longwave.cli.main import main
from longwave.extensions.adapter import LoRA
from longwave.serving import vllm_server
from longwave.serving.banded import BandedProfile
from longwave.serving.profiles import KEY, Profiles
from longwave.serving.settings import ServeSettings

DEMO = Path(longwave.__file__).parent / "demo" / "model"
L, FACTORS = 256, (1.0, 2.0, 4.0)


@pytest.fixture
def learned(tmp_path: Path) -> tuple[torch.nn.Module, Path]:
    """The demo's model as training makes it by default, far from its start: β and e of each head, a LoRA, a field."""
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype="float32")
    longwave.extend(model, "clex+two-band", max_factor=16, head_scalars=True, adapter=LoRA(4, 4.0))
    own = longwave.extension(model)
    with torch.no_grad():
        for parameter in own.learned["adapter"]:
            parameter.normal_(std=0.1)
        for parameter in own.learned["heads"]:
            parameter.uniform_(0.2, 1.5)
        for parameter in own.learned["field"]:
            parameter.normal_(std=0.1)
    return model.eval(), longwave.save(model, tmp_path / "own", tokenizer=AutoTokenizer.from_pretrained(DEMO))


def read(folder: Path) -> Profiles:
    found = Profiles.of(json.loads((folder / "config.json").read_text()), bands=True)
    assert found is not None and found.bands is not None
    return found


class Engine:
    """An engine over transformers: rows in the place of cos and sin, log-n on queries, bands over rotated keys."""

    def __init__(self, folder: Path, number: int) -> None:
        self.profiles = read(folder)
        self.banded = BandedProfile(self.profiles, number)
        profile = self.profiles.profiles[number]
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", attn_implementation="eager")
        if profile.adapter is not None:
            model = PeftModel.from_pretrained(model, folder / profile.adapter).merge_and_unload()
        AttentionInterface.register("tests-banded-engine", self.attend)
        model.set_attn_implementation("tests-banded-engine")
        model.model.rotary_emb.forward = self.rows
        self.model = model.eval()

    def rows(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.banded.rows(position_ids.shape[1]).chunk(2, dim=-1)
        return torch.cat((cos, cos), -1)[None], torch.cat((sin, sin), -1)[None]

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float, **rest: Any) -> Any:
        heads, bands = self.profiles.log_n_heads, self.profiles.bands
        assert bands is not None
        if heads is not None:
            positions = torch.arange(q.shape[2], dtype=torch.float64)
            ratio = ((positions + 1).log() / torch.tensor(float(L)).double().log()).clamp(min=1).log()
            q = q * (torch.tensor(heads[module.layer_idx])[:, None] * ratio).exp().float()[..., None]
        mass = bands.options["mass"] if bands.mass_heads is None else torch.tensor(bands.mass_heads[module.layer_idx])
        placed = self.banded.placed(0, q.shape[2], q.device)
        return self.banded.attend(q, k, v, placed, scaling, mass).transpose(1, 2), None


@torch.no_grad()
def test_a_trained_model_in_an_engine(learned: Any, tmp_path: Path) -> None:
    model, own = learned
    out = longwave.export(own, tmp_path / "out", profiles="1,2,4").folder
    ids = torch.randint(5, 500, (1, 700), generator=torch.Generator().manual_seed(0))
    for number, t in enumerate(FACTORS[1:], 1):
        text = ids[:, : 450 if t == 2 else 700]
        longwave.set_policy(model, "fixed", t)
        wanted = model(text, use_cache=False).logits
        found = Engine(out, number).model(text, use_cache=False).logits
        assert (found - wanted).abs().max() < 2e-4 * wanted.abs().max(), t
        assert torch.equal(found.argmax(-1)[0, -50:], wanted.argmax(-1)[0, -50:])


def test_what_the_config_says(learned: Any, tmp_path: Path) -> None:
    model, own = learned
    out = longwave.export(own, tmp_path / "out", profiles="1,2,4").folder
    section, handle = json.loads((out / "config.json").read_text())[KEY], longwave.extension(model)
    assert section["format"] == 2 and section["bands"]["method"] == "two-band"
    found = read(out)
    assert Profiles.of({KEY: found.as_dict()}, bands=True) == found
    assert found.bands.mass_heads == {
        layer: pytest.approx(handle.heads.mass_of(layer).tolist()) for layer in handle.heads.rows
    }
    rotary = handle.in_use[0]
    for each in found.profiles[1:]:
        theta = rotary.frequencies.at(handle.attention.factor(each.factor)).detach()
        assert torch.equal(torch.tensor(each.inv_freq), theta), "the numbers that longwave computes with"
        assert each.length == int(each.factor * L) and each.adapter == f"adapters/t{each.factor:g}"
    words = vllm_server.command(str(out), ServeSettings())
    assert words[words.index("--compilation-config") + 1] == '{"cudagraph_mode": "PIECEWISE"}'


def test_an_engine_without_bands_refuses_them(learned: Any, tmp_path: Path) -> None:
    out = longwave.export(learned[1], tmp_path / "out", profiles="1,2").folder
    config = json.loads((out / "config.json").read_text())
    with pytest.raises(ValueError, match=r"has bands, which this engine does not compute. Serve it by vLLM"):
        Profiles.of(config)
    config[KEY]["bands"] = {"options": {}}
    with pytest.raises(ValueError, match=r"rope_profiles of config.json is damaged"):
        Profiles.of(config, bands=True)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("token-select", "token-select is more than bands, and vLLM is told bands alone"),
        ("yarn+ms-poe", "ms-poe is more than bands"),
    ],
)
def test_methods_that_are_more_than_bands(method: str, message: str, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert main(["export", str(DEMO), "--profiles", "1,2", "--method", method, "--output", str(out)]) == 1
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and not out.exists()
