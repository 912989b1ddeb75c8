"""What is exported: the files of a plain model, and the extension it runs under, without its weights in memory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import PreTrainedModel

from longwave.adapter import MODEL, SETTINGS, WEIGHTS, extend_as_saved, is_trained, skeleton
from longwave.architectures import host_of
from longwave.attach import extend, rope_of, rotaries, snapshot
from longwave.exporters.weights import check_weights, weight_files
from longwave.generation import rotaries_of
from longwave.io import read_json
from longwave.legacy import extend_legacy, is_legacy, read_legacy
from longwave.logn import log_n_of
from longwave.methods import parse_method
from longwave.recognition import follow_config
from longwave.rotary import ScaledRotary, frequency_name
from longwave.schedule import Static
from longwave.trajectory import Snapshot

TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tekken.json")
DOWNLOAD = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
FACTOR = 8.0  # of a method without a reach of its own


@dataclass(frozen=True, eq=False)
class Source:
    """A model on disk.

    Arguments:
        path: as the user named it.
        model: folder with config.json and the weights of the plain model, safetensors.
        tokenizer: folder with the tokenizer's files.
        config: config.json of the plain model, as written there.
        skeleton: the extended model with parameters on the meta device: shapes, and real frequencies.
        training: training.json of a folder that `longwave train` wrote, or nothing.
        dropped: endings of tensor names that are no part of the plain model (the layer of an official checkpoint).
    """

    path: str
    model: Path
    tokenizer: Path
    config: dict[str, Any]
    skeleton: PreTrainedModel
    training: dict[str, Any] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()

    @property
    def model_type(self) -> str:
        """That of the text model: `llama`, `gemma3_text`."""
        return str(self.text_config.model_type)

    @property
    def text_config(self) -> Any:
        return self.skeleton.config.get_text_config(decoder=True)

    @property
    def rotary(self) -> ScaledRotary:
        """The first of the model's rotary modules; all follow one trajectory, or `snapshot` fails."""
        return rotaries(self.skeleton)[0]

    @property
    def method(self) -> str:
        return self.rotary.trajectory.name

    @property
    def log_n(self) -> float:
        """Exponent of the per-query log-n attention scaling, 0 for off."""
        return log_n_of(host_of(self.skeleton))

    @property
    def rotates_whole_heads(self) -> bool:
        """Whether cos and sin reach every dimension of a head."""
        config = self.text_config
        try:
            if getattr(config, "qk_nope_head_dim", 0):
                return False
            width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        except RuntimeError:  # heads differ from layer to layer
            return False
        return self.rotary.trajectory.rope.rotary_dim == int(width)

    @property
    def shards(self) -> list[Path]:
        """The safetensors files of the weights."""
        return weight_files(self.model)

    def factor(self, factor: float | None, length: int | None) -> float:
        """t from what the user gave; by default that of a static schedule, or else the model's largest.

        Raises:
            ValueError: if both are given, or the model does not reach that far.
        """
        if factor is not None and length is not None:
            raise ValueError("give the length factor or the length in tokens, not both: --factor 8 or --length 32768.")
        trajectory = self.rotary.trajectory
        limit, original = trajectory.max_factor, trajectory.rope.original_length
        if length is not None:
            if not 1 <= length <= self.rotary.max_length:
                raise ValueError(
                    f"length {length} is not within 1 to {self.rotary.max_length} tokens, {limit:g} x {original}, "
                    "which this model was extended to."
                )
            return self.rotary.factor_for(length)
        if factor is not None and not 1 <= factor <= limit:
            raise ValueError(f"factor {factor:g} is not within 1 to {limit:g}, which this model was extended to.")
        if factor is not None:
            return factor
        schedule = self.rotary.schedule
        return schedule.factor if isinstance(schedule, Static) else limit

    def snapshot(self, factor: float, *, log_n: bool = True) -> Snapshot:
        """The extension at t, with the model's own attention scaling; per-query log-n as a constant or left out."""
        frozen = snapshot(self.skeleton, factor)
        if log_n:
            frozen = frozen.with_log_n(self.log_n)
        own = getattr(self.rotary.base, frequency_name(self.rotary.layer_type, "attention_scaling"), 1.0)
        return replace(frozen, attention_scaling=frozen.attention_scaling * float(own))


def open_source(
    path: Path | str, *, method: str | None = None, factor: float | None = None, length: int | None = None
) -> Source:
    """Find the files of a model and put its extension, or `method` on a plain one, onto a model without weights.

    Arguments:
        path: a folder of `longwave.save`, an official CLEX checkpoint, a Hugging Face folder or hub name.
        method: `METHOD[@SCHEDULE]` for a plain model, of which RoPE scaling in its config is then a part.
        factor, length: how far it is to reach, as a multiple or in tokens; default 8 times the trained length.

    Raises:
        ValueError: naming the file that is missing or damaged, or the option that does not fit.
    """
    folder = _local(path)
    own = (folder / SETTINGS).is_file()
    if not own and ((folder / WEIGHTS).exists() or (folder / MODEL).is_dir()):
        raise ValueError(f"{folder / SETTINGS} is missing: the folder is incomplete. Save the model again.")
    legacy = not own and is_legacy(folder)
    model = folder / MODEL if own else folder
    if not (model / "config.json").is_file():
        raise ValueError(f"{model} holds no model: no config.json is there.")
    if not any((folder / name).is_file() for name in TOKENIZER):
        raise ValueError(f"{folder} holds no tokenizer, and an export needs one. Copy the model's files there.")
    check_weights(model)
    if (own or legacy) and method is not None:
        raise ValueError(f"{path} has its own extension. --method is for plain models: leave it out.")
    dropped: tuple[str, ...] = ()
    if legacy:
        checkpoint = read_legacy(folder)
        config = checkpoint.config.to_dict()
        plain = extend_legacy(skeleton(folder, checkpoint.config), checkpoint)
        dropped = tuple(checkpoint.weights)
    else:
        config = read_json(model / "config.json")
        plain = skeleton(model)
        if own:
            extend_as_saved(plain, folder)
        elif method is not None or not rotaries_of(follow_config(plain)):
            _extend_plain(plain, method, factor, length, str(path))
    if not is_trained(plain):
        raise ValueError(f"{path} has not been trained: its frequencies are those of the prior. Export that method.")
    record = folder / "training.json"
    training = read_json(record) if record.is_file() else {}
    return Source(str(path), model, folder, config, plain.eval(), training, dropped)


def _local(path: Path | str) -> Path:
    folder = Path(path)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"{path} is a file. Give the model's folder.")
    if folder.is_absolute() or str(path).startswith(".") or len(folder.parts) > 2:
        raise ValueError(f"model folder {path} does not exist.")
    try:
        return Path(snapshot_download(str(path), allow_patterns=DOWNLOAD))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is neither a folder nor a model that the hub gives us ({reason}).") from None


def _extend_plain(
    model: PreTrainedModel, method: str | None, factor: float | None, length: int | None, path: str
) -> None:
    if method is None:
        raise ValueError(
            f"{path} is a plain model. Say what to export it with, e.g. --method yarn, or export a trained folder."
        )
    spec, _ = parse_method(method)
    if spec.trained:
        raise ValueError(f"{spec.name} needs trained weights. Run `longwave train` first, or take ntk or yarn.")
    if length is not None and factor is None:
        factor = max(1.0, length / rope_of(model).original_length)
    extend(model, method, max_factor=FACTOR if factor is None else factor)
