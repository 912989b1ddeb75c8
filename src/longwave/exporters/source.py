"""What is exported: the files of a plain model, and the extension it runs under, without its weights in memory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from longwave.checkpoints.weights import Contents, tensor_shapes, weight_files
from longwave.exporters.base import Unsupported
from longwave.exporters.changes import Changes, Merge
from longwave.extensions.handle import Extension, extension
from longwave.extensions.standin import frequency_name
from longwave.methods.scaling import RECORD
from longwave.rope import Rope
from longwave.schedule import Static
from longwave.trajectory import Snapshot


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
        merge: the adapter, which the skeleton does not have; None where there is none.
    """

    path: str
    model: Path
    tokenizer: Path
    config: dict[str, Any]
    skeleton: PreTrainedModel
    training: dict[str, Any] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    contents: Contents = field(default_factory=Contents)
    merge: Merge | None = None

    @property
    def model_type(self) -> str:
        """The type of the text model: `llama`, `gemma3_text`."""
        return str(self.text_config.model_type)

    @property
    def text_config(self) -> Any:
        return self.skeleton.config.get_text_config(decoder=True)

    @property
    def extension(self) -> Extension:
        """The extension of the skeleton."""
        return extension(self.skeleton)

    @property
    def rope(self) -> Rope:
        """What the model was pre-trained with."""
        return self.extension.rope

    @property
    def layer_type(self) -> str | None:
        """The type of the layers that are extended; None for a model with one rope for all layers."""
        return self.extension.rotaries[0].layer_type

    @property
    def rotary_module(self) -> nn.Module:
        """The model's own rotary module, which the extension stands on."""
        return self.extension.rotaries[0].base

    @property
    def method(self) -> str:
        """The name of the method. An export that is exported again has the method of its first model."""
        return str(self.record.get("method") or self.extension.method)

    @property
    def record(self) -> dict[str, Any]:
        """The section `longwave` in the config of an export; empty if `path` is no export."""
        found = self.config.get(RECORD)
        return found if isinstance(found, dict) and self.extension.unscaled else {}

    @property
    def log_n(self) -> float:
        """Exponent of the per-query log-n attention scaling, 0 for off."""
        return self.extension.log_n

    @property
    def head_dim(self) -> int | None:
        """Dimensions of a query head; None where heads differ from layer to layer."""
        try:
            return head_dim(self.text_config)
        except RuntimeError:  # how transformers refuses to say one number for all layers
            return None

    @property
    def rotates_whole_heads(self) -> bool:
        """Whether cos and sin reach every dimension of a head."""
        return self.rope.rotary_dim == self.head_dim

    @property
    def folders(self) -> list[Path]:
        """What an export reads: the base may lie elsewhere than the extension."""
        own = Path(self.path)
        return [self.model, self.tokenizer, *([own] if own.is_dir() else [])]

    @property
    def changes_weights(self) -> bool:
        """Whether weights follow t, so that an export has others than the files."""
        return self.merge is not None or self.extension.log_n_by_head

    def changes(self, snapshot: Snapshot) -> Changes:
        """The weights that are others at the t of a snapshot.

        Raises:
            Unsupported: if no tensor of the model can hold them.
        """
        found = Changes.at(self.skeleton, snapshot, self.merge)
        if found.names and self.config.get("quantization_config"):
            raise Unsupported(
                f"config.json of {self.model} asks for quantization, and weights that follow t cannot be merged into "
                "quantized ones. Export from the base that was not quantized."
            )
        if found.names:
            found.check(self.model, (name for path in self.shards for name in tensor_shapes(path)))
        return found

    @property
    def shards(self) -> list[Path]:
        """The safetensors files of the weights."""
        return weight_files(self.model)

    def factor(self, factor: float | None, length: int | None) -> float:
        """t from the factor or the length that the user gave.

        Without either it is the t of a static schedule, or else the largest t of the model.

        Raises:
            ValueError: if the model does not reach that far.
        """
        own = self.extension
        if length is not None:
            if 1 <= length < own.original_length:
                raise ValueError(
                    f"length {length} is less than the {own.original_length} tokens that the model was trained for."
                )
            if not 1 <= length <= own.max_length:
                raise ValueError(
                    f"length {length} is not within 1 to {own.max_length} tokens, {own.max_factor:g} x "
                    f"{own.original_length}, which this model was extended to."
                )
            factor = own.dial.factor_for(length)
        elif factor is None:
            factor = own.schedule.factor if isinstance(own.schedule, Static) else own.max_factor
        elif not 1 <= factor <= own.max_factor:
            raise ValueError(
                f"factor {factor:g} is not within 1 to {own.max_factor:g}, which this model was extended to."
            )
        if self.record and factor != self.record.get("factor"):
            raise ValueError(
                f"{self.path} is an export at t = {self.record.get('factor'):g}, and knows no other. "
                "Export the model that it was made from."
            )
        return factor

    def snapshot(self, factor: float, *, length: int | None = None, log_n: bool = True) -> Snapshot:
        """The extension at t, with the model's own attention scaling.

        Arguments:
            length: tokens to serve; default t·L, or the length in the config of a model whose RoPE scaling has this t.
            log_n: whether per-query log-n is in the attention scaling, as a constant, or left out.

        Raises:
            ValueError: if log-n cannot be left out any more.
        """
        own = self.extension
        frozen = own.trajectory.at(factor)
        if log_n and own.log_n_by_head and own.heads is not None:
            frozen = replace(frozen, query_scaling=own.heads.constants(factor, own.original_length))
        elif log_n:
            frozen = frozen.with_log_n(self.log_n)
        elif self.record.get("log_n_constant", 1.0) != 1.0 or self.record.get("log_n_in_weights"):
            raise ValueError(
                f"{self.path} is an export with log-n as a constant. "
                "To leave it out, export the model that it was made from."
            )
        if length is None and own.unscaled and own.schedule == Static(factor):
            length = int(self.record.get("length", own.max_length))
        scaling = frozen.attention_scaling * self.own_scaling
        return replace(frozen, attention_scaling=scaling, length=length)

    def log_n_constant(self, snapshot: Snapshot) -> float:
        """The factor of a snapshot's attention scaling that stands for log-n; 1 if none does."""
        if self.record:
            return float(self.record.get("log_n_constant", 1.0))
        own = self.extension.trajectory.attention_scaling(snapshot.factor) * self.own_scaling
        return snapshot.attention_scaling / own

    @property
    def own_scaling(self) -> float:
        """The attention scaling that the model has at t = 1."""
        return float(getattr(self.rotary_module, frequency_name(self.layer_type, "attention_scaling"), 1.0))


def head_dim(config: Any) -> int:
    """Dimensions of a query head; a `RuntimeError` of transformers where heads differ from layer to layer."""
    if nope := getattr(config, "qk_nope_head_dim", 0):
        return int(nope + config.qk_rope_head_dim)
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
