"""Exports of tiny models of many types, read by transformers without longwave; tests and docs share it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tiny import LENGTH, VOCABULARY, tiny_model
from transformers import PreTrainedModel

import longwave
from longwave.exporters.run import export
from longwave.extensions.policy import frozen
from longwave.files import read_json, write_json

DEMO = Path(longwave.__file__).parent / "demo/model"
VANILLA = Path(__file__).with_name("vanilla.py")
FACTOR = 4.0
PROMPTS = [[(index * 37 + index * index) % (VOCABULARY - 8) + 4 for index in range(n)] for n in (40, 200)]


@dataclass(frozen=True)
class Export:
    """One model type: what transformers makes of its export.

    Arguments:
        difference: max |Δlogit| between longwave at t = 4 (constant log-n) and the export, None where there is none.
        control: the same with the factors in config.json set to 1.
        greedy: whether the most likely token is the same at every place of every prompt.
        log_n: whether the model ran with log-n.
        extended: whether it got as far as that; docs/architectures.md is about those that do not.
        reason: why there is no export.
    """

    model_type: str
    difference: float | None = None
    control: float | None = None
    greedy: bool = False
    log_n: bool = False
    extended: bool = True
    reason: str = ""


def examine_exports(types: Iterable[str], scratch: Path, python: str = sys.executable) -> list[Export]:
    """Extend, save and export each type; let `python` run all exports and their controls; compare."""
    expected: dict[str, list[np.ndarray]] = {}
    found: dict[str, Export] = {}
    with_log_n: dict[str, bool] = {}
    folders: dict[str, str] = {}
    for model_type in types:
        try:
            model, with_log_n[model_type] = _learned(model_type)
        except Exception as error:  # whatever transformers raises for a config it cannot run
            found[model_type] = Export(model_type, extended=False, reason=_one_line(error))
            continue
        try:
            own = scratch / "saved" / model_type
            longwave.save(model, own)
            for name in ("tokenizer.json", "tokenizer_config.json"):
                (own / name).write_bytes((DEMO / name).read_bytes())
            done = export(own, scratch / "hf" / model_type, factor=FACTOR)
            with frozen(model, FACTOR), torch.no_grad():
                expected[model_type] = [_logits(model, prompt) for prompt in PROMPTS]
        except Exception as error:  # the reason is a cell of the table
            found[model_type] = Export(model_type, reason=_one_line(error))
            continue
        folders[model_type] = str(done.folder)
        folders[f"{model_type}-control"] = str(_without_factors(done.folder, scratch / "control" / model_type))
    answers = _ask(folders, scratch, python)
    for model_type, own in expected.items():
        if f"{model_type}.error" in answers:
            found[model_type] = Export(model_type, reason=str(answers[f"{model_type}.error"]))
            continue
        theirs = [answers[f"{model_type}.{index}"] for index in range(len(PROMPTS))]
        control = [answers[f"{model_type}-control.{index}"] for index in range(len(PROMPTS))]
        found[model_type] = Export(
            model_type,
            difference=_distance(own, theirs),
            control=_distance(own, control),
            greedy=all(bool((a.argmax(-1) == b.argmax(-1)).all()) for a, b in zip(own, theirs, strict=True)),
            log_n=with_log_n[model_type],
        )
    return [found[model_type] for model_type in types if model_type in found]


def _learned(model_type: str) -> tuple[PreTrainedModel, bool]:
    """A tiny model under a `clex` that has left its start, with log-n where it can have it."""
    model = tiny_model(model_type)
    log_n = True
    try:
        longwave.extend(model, "clex", max_factor=FACTOR, original_length=LENGTH)
        with torch.no_grad():
            _logits(model, PROMPTS[0])  # some models refuse log-n in their first forward
    except ValueError:
        log_n = False
        longwave.extend(longwave.restore(model), "clex", max_factor=FACTOR, original_length=LENGTH, log_n=False)
    generator = torch.Generator().manual_seed(1)
    for rotary in longwave.rotaries(model):
        for parameter in rotary.trajectory.parameters():
            torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return model.eval(), log_n


def _logits(model: PreTrainedModel, prompt: list[int]) -> np.ndarray:
    logits: np.ndarray = model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0].float().numpy()
    return logits


def _without_factors(folder: Path, control: Path) -> Path:
    control.mkdir(parents=True)
    for path in folder.iterdir():
        (control / path.name).symlink_to(path.resolve())
    (control / "config.json").unlink()
    config = read_json(folder / "config.json")
    write_json(control / "config.json", _flattened(config))
    return control


def _flattened(value: object) -> object:
    """The config with every factor 1: what an engine runs that passes over them."""
    if isinstance(value, dict):
        return {
            key: [1.0] * len(entry) if key in ("short_factor", "long_factor") else _flattened(entry)
            for key, entry in value.items()
        }
    return value


def _ask(folders: dict[str, str], scratch: Path, python: str) -> dict[str, np.ndarray]:
    asked, prompts, answered = scratch / "folders.json", scratch / "prompts.json", scratch / "logits.npz"
    asked.write_text(json.dumps(folders))
    prompts.write_text(json.dumps(PROMPTS))
    subprocess.run([python, str(VANILLA), str(asked), str(answered), str(prompts)], check=True, cwd=scratch)
    with np.load(answered) as file:
        return dict(file)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _distance(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))
