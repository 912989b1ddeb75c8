"""One folder for every length: the plain model, and in its config what t makes of it, for a plugin of the engine.

Engines without the plugin run the plain model and refuse texts of more than L tokens: `max_position_embeddings` is L.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from longwave.checkpoints.rewriting import copy_weights
from longwave.checkpoints.save import save_extension
from longwave.exporters.base import Plan, Unsupported
from longwave.exporters.changes import Merge
from longwave.exporters.companions import code_notes, copy_beside
from longwave.exporters.hf.bands import bands_of, snapshot_at
from longwave.exporters.hf.config import LENGTHS
from longwave.exporters.hf.plan import is_interleaved
from longwave.exporters.notes import weight_notes
from longwave.exporters.source import Source
from longwave.files import read_object, write_json
from longwave.layout import ADAPTER, ADAPTER_WEIGHTS, ADAPTERS, CONFIG, EXTENSION
from longwave.schedule import Steps
from longwave.serving.profiles import KEY, Profile, Profiles
from longwave.trajectory import Snapshot

FOLDERS = "adapters"  # of the LoRAs of all profiles


@dataclass(frozen=True, eq=False)
class ProfilesPlan(Plan):
    """The files of the source, its config with the profiles, and a LoRA for each t whose weights are others."""

    source: Source
    snapshot: Snapshot
    config: dict[str, Any]
    profiles: Profiles

    def write(self, folder: Path) -> None:
        copy_weights(self.source.model, folder, self.source.dropped)
        copy_beside(self.source, self.snapshot, folder)
        for profile in self.profiles.profiles:
            if profile.adapter is not None:
                assert self.source.merge is not None
                write_adapter(self.source.merge, profile.factor, folder / profile.adapter)
        write_json(folder / CONFIG, self.config)
        self._write_extension(folder / EXTENSION)

    def _write_extension(self, folder: Path) -> None:
        """What longwave reads the folder by: the extension itself, at the t of the profiles."""
        merge, steps = self.source.merge, Steps(tuple(each.factor for each in self.profiles.profiles))
        adapter = None if merge is None else merge.adapter
        save_extension(self.source.extension, folder, schedule=steps, adapter=adapter)
        if merge is not None:
            copy_adapter(merge, folder / ADAPTERS)


def plan_profiles(source: Source, factors: Sequence[float]) -> ProfilesPlan:
    """What a folder with profiles will hold.

    Arguments:
        factors: t of every profile, as `check_factors` allows them.

    Raises:
        Unsupported: for a model whose layers have several ropes, or whose frequencies are not those of its base alone,
            and for an attention method that is more than bands.
        ValueError: for a t that the model was not extended to.
    """
    if source.layer_type is not None or source.record or source.extension.unscaled:
        reason = (
            "an export"
            if source.record
            else "a model with one rope for each layer type, or with RoPE scaling of its own"
        )
        raise Unsupported(f"{source.path} is {reason}, and profiles are for a plain model with one rope.")
    snapshots = [snapshot_at(source, factor) for factor in factors]
    profiles = Profiles(
        source.extension.original_length,
        tuple(_profile(source, snapshot) for snapshot in snapshots),
        **_log_n(source),
        bands=bands_of(source),
    )
    config = {**source.config}
    config.pop("auto_map", None)
    if source.text_config is not source.skeleton.config:
        raise Unsupported(
            f"{source.path} is a model of several parts ({source.model_type} is one), and profiles are for text."
        )
    config |= {key: profiles.original_length for key in LENGTHS if key in config or key == "max_position_embeddings"}
    config[KEY] = profiles.as_dict()
    changing = sum(each.adapter is not None for each in profiles.profiles)
    adapters = 0 if source.merge is None else changing * source.merge.file.stat().st_size
    extension = 0 if source.merge is None else source.merge.file.stat().st_size
    notes = [*weight_notes(source, kept=True), *code_notes(source)]
    if is_interleaved(source):
        notes.append(f"{source.model_type} rotates neighbouring dimensions (interleaved), which was not run in vLLM.")
    if source.merge is not None:
        rank = source.merge.adapter.config.r
        notes.append(
            "The weights follow t by a LoRA for each profile. `longwave serve` starts vLLM so; vLLM's own command "
            f"needs --enable-lora --max-loras {changing + 1} --max-lora-rank {rank} (or the next rank that it has)."
        )
    return ProfilesPlan(
        notes=notes,
        size=sum(path.stat().st_size for path in source.shards) + adapters + extension,
        tolerance=None,
        source=source,
        snapshot=snapshots[-1],
        config=config,
        profiles=profiles,
    )


def _profile(source: Source, snapshot: Snapshot) -> Profile:
    merge, t = source.merge, snapshot.factor
    changed = merge is not None and merge.adapter.gate.at(t) != 0
    return Profile(
        t,
        snapshot.max_length,
        tuple(snapshot.factors.tolist()),
        snapshot.attention_scaling,
        tuple(snapshot.inv_freq.tolist()),
        f"{FOLDERS}/t{t:g}" if changed else None,
    )


def _log_n(source: Source) -> dict[str, Any]:
    heads = source.extension.heads
    if heads is None or not source.extension.log_n_by_head:
        return {"log_n": source.log_n}
    return {"log_n_heads": {layer: tuple(heads.log_n_of(layer).tolist()) for layer in heads.rows}}


def copy_adapter(merge: Merge, folder: Path) -> None:
    """The adapter as it was saved."""
    folder.mkdir(parents=True)
    shutil.copyfile(merge.file, folder / ADAPTER_WEIGHTS)
    settings = read_object(merge.file.with_name(ADAPTER))
    write_json(folder / ADAPTER, {**settings, "base_model_name_or_path": None})


@torch.no_grad()
def write_adapter(merge: Merge, t: float, folder: Path) -> None:
    """The LoRA at t as PEFT has it: its B is g(t) times as large, so that the engine adds all of it."""
    folder.mkdir(parents=True)
    gate = merge.adapter.gate.at(t)
    state = {
        name: (tensor.float() * gate).to(tensor.dtype) if ".lora_B." in name else tensor
        for name, tensor in load_file(merge.file).items()
    }
    save_file(state, folder / ADAPTER_WEIGHTS)
    settings = read_object(merge.file.with_name(ADAPTER))
    write_json(folder / ADAPTER, {**settings, "base_model_name_or_path": None})
