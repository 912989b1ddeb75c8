"""What is exported: the files of a plain model, and the extension it runs under, without its weights in memory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from longwave.checkpoints.extended import extend_as_saved
from longwave.checkpoints.folder import Kind, missing_part, resolve, tokenizer_folder
from longwave.checkpoints.official import extend_legacy, read_legacy
from longwave.checkpoints.plain import skeleton
from longwave.checkpoints.scaled import follow_config, recognise
from longwave.checkpoints.tokenizer import damaged_tokenizer
from longwave.checkpoints.weights import Contents, check_parameters, check_weights, weight_files
from longwave.extensions.attach import extend, restore, rope_of
from longwave.extensions.handle import extension, find_extension, is_trained, rotaries
from longwave.extensions.log_n import log_n_of
from longwave.extensions.policy import snapshot
from longwave.extensions.rotary import ScaledRotary
from longwave.extensions.sites import host_of
from longwave.extensions.standin import frequency_name
from longwave.files import read_json
from longwave.layout import CONFIG, TRAINING
from longwave.methods import parse_method
from longwave.methods.scaling import RECORD
from longwave.schedule import Static, factor_of
from longwave.trajectory import Snapshot

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
        contents: what transformers makes of the tensors.
    """

    path: str
    model: Path
    tokenizer: Path
    config: dict[str, Any]
    skeleton: PreTrainedModel
    training: dict[str, Any] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    contents: Contents = field(default_factory=Contents)

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
        """Its name; of an export that is exported again, that of the model it was made from."""
        return str(self.record.get("method") or self.rotary.trajectory.name)

    @property
    def record(self) -> dict[str, Any]:
        """What an export of ours says of itself in its config, if `path` is one."""
        found = self.config.get(RECORD)
        return found if isinstance(found, dict) and extension(self.skeleton).unscaled else {}

    @property
    def log_n(self) -> float:
        """Exponent of the per-query log-n attention scaling, 0 for off."""
        return log_n_of(host_of(self.skeleton))

    @property
    def head_dim(self) -> int | None:
        """Dimensions of a query head; None where heads differ from layer to layer."""
        config = self.text_config
        try:
            if nope := getattr(config, "qk_nope_head_dim", 0):
                return int(nope + config.qk_rope_head_dim)
            return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        except RuntimeError:  # how transformers refuses to say one number for all layers
            return None

    @property
    def rotates_whole_heads(self) -> bool:
        """Whether cos and sin reach every dimension of a head."""
        return self.rotary.trajectory.rope.rotary_dim == self.head_dim

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
        limit, original = self.rotary.trajectory.max_factor, self.rotary.trajectory.rope.original_length
        if length is not None:
            if not 1 <= length <= self.rotary.max_length:
                raise ValueError(
                    f"length {length} is not within 1 to {self.rotary.max_length} tokens, {limit:g} x {original}, "
                    "which this model was extended to."
                )
            factor = self.rotary.factor_for(length)
        elif factor is None:
            schedule = self.rotary.schedule
            factor = schedule.factor if isinstance(schedule, Static) else limit
        elif not 1 <= factor <= limit:
            raise ValueError(f"factor {factor:g} is not within 1 to {limit:g}, which this model was extended to.")
        if self.record and factor != self.record.get("factor"):
            raise ValueError(
                f"{self.path} is an export at t = {self.record.get('factor'):g}, and knows no other. "
                "Export the model that it was made from."
            )
        return factor

    def snapshot(self, factor: float, *, length: int | None = None, log_n: bool = True) -> Snapshot:
        """The extension at t, with the model's own attention scaling; per-query log-n as a constant or left out.

        Arguments:
            length: tokens to serve; default t·L, or what a config with RoPE scaling speaks of at its own t.

        Raises:
            ValueError: if log-n cannot be left out any more.
        """
        frozen = snapshot(self.skeleton, factor)
        if log_n:
            frozen = frozen.with_log_n(self.log_n)
        elif self.record.get("log_n_constant", 1.0) != 1.0:
            raise ValueError(
                f"{self.path} is an export with log-n as a constant in its attention scaling. "
                "To leave it out, export the model that it was made from."
            )
        schedule = self.rotary.schedule
        if length is None and extension(self.skeleton).unscaled and schedule == Static(factor):
            length = int(self.record.get("length", self.rotary.max_length))
        scaling = frozen.attention_scaling * self.own_scaling
        return replace(frozen, attention_scaling=scaling, length=length)

    def log_n_constant(self, snapshot: Snapshot) -> float:
        """What of a snapshot's attention scaling stands for log-n; 1 if nothing does."""
        if self.record:
            return float(self.record.get("log_n_constant", 1.0))
        own = self.rotary.trajectory.attention_scaling(snapshot.factor) * self.own_scaling
        return snapshot.attention_scaling / own

    @property
    def own_scaling(self) -> float:
        """The attention scaling that the model has at t = 1."""
        return float(getattr(self.rotary.base, frequency_name(self.rotary.layer_type, "attention_scaling"), 1.0))


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
    found = resolve(path).check().fetch()
    folder, model = found.path, found.model
    own, legacy = found.kind is Kind.LONGWAVE, found.kind is Kind.OFFICIAL
    if own and (missing := missing_part(folder)):
        raise ValueError(f"{missing} is missing: the folder is incomplete. Save the model again.")
    tokenizer = tokenizer_folder(folder, model)
    if tokenizer is None:
        raise ValueError(f"{folder} holds no tokenizer, and an export needs one. Copy the model's files there.")
    if damage := damaged_tokenizer(tokenizer):
        raise ValueError(damage)
    check_weights(model)
    if (own or legacy) and method is not None:
        raise ValueError(f"{path} has its own extension. --method is for plain models: leave it out.")
    dropped: tuple[str, ...] = ()
    if legacy:
        checkpoint = read_legacy(folder)
        config = checkpoint.config.to_dict()
        plain, dropped = skeleton(folder, checkpoint.config), tuple(checkpoint.weights)
        contents = check_parameters(folder, plain, dropped)
        extend_legacy(plain, checkpoint)
    else:
        config = read_json(model / CONFIG)
        plain = skeleton(model)
        contents = check_parameters(model, plain)
        if own:
            extend_as_saved(plain, folder)
        elif method is None and (reason := recognise(plain)):
            raise ValueError(reason)  # and no advice to put a method on top
        elif method is not None or find_extension(plain) is None:
            _extend_plain(restore(follow_config(plain)), method, factor, length, str(path))
    if not is_trained(plain):
        raise ValueError(f"{path} has not been trained: its frequencies are those of the prior. Export that method.")
    record = folder / TRAINING
    training = read_json(record) if record.is_file() else {}
    return Source(str(path), model, tokenizer, config, plain.eval(), training, dropped, contents)


def _extend_plain(
    model: PreTrainedModel, method: str | None, factor: float | None, length: int | None, path: str
) -> None:
    if method is None:
        raise ValueError(
            f"{path} is a plain model. Say what to export it with, e.g. --method yarn, or export a trained folder."
        )
    spec, schedule = parse_method(method)
    if spec.trained:
        raise ValueError(f"{spec.name} needs trained weights. Run `longwave train` first, or take ntk or yarn.")
    if length is not None and factor is None:
        factor = factor_of(length, rope_of(model).original_length)
    reach = FACTOR if factor is None else factor
    if isinstance(schedule, Static) and schedule.factor > reach:
        raise ValueError(
            f"{method} runs at t = {schedule.factor:g}, and t = {reach:g} is asked for. Leave out @static."
        )
    extend(model, method, max_factor=reach)
