"""Where a model's queries come from: the tensors that a constant temperature of each head folds into.

c·q is (c·W_q)·x + c·b_q where nothing comes between the projection and the rotation, which is linear. Where q is
normalised after the projection, c belongs to the norm's weight instead. A norm that all heads share takes one c.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longwave.attention.layers import attention_layers
from longwave.exporters.base import Unsupported
from longwave.extensions.steering import text_model

Change = Callable[[Tensor], Tensor]
FoldOf = Callable[[Tensor, int], Change]  # of c [H] and the dimensions of a head


@dataclass(frozen=True)
class Queries:
    """How the attention layers of a family make queries.

    Arguments:
        module: name of the layer's module whose weight and bias are multiplied.
        fold: what becomes of a tensor of that module.
        shared: whether all heads share the module, so that they must have the same c.
    """

    module: str
    fold: FoldOf
    shared: bool = False


def first_rows(constants: Tensor, size: int) -> Change:
    """The first rows are those of q, head by head; the rows after them (k and v) stay."""
    scale = constants.repeat_interleave(size)

    def change(tensor: Tensor) -> Tensor:
        rows = torch.ones(tensor.shape[0], dtype=tensor.dtype)
        rows[: len(scale)] = scale
        return tensor * _column(rows, tensor)

    return change


def of_three(constants: Tensor, size: int) -> Change:
    """Rows [H, 3, D]: q, k and v of each head lie together."""
    scale = torch.ones(len(constants), 3, size, dtype=constants.dtype)
    scale[:, 0] = constants[:, None]
    return lambda tensor: tensor * _column(scale.reshape(-1).to(tensor.dtype), tensor)


def whole(constants: Tensor, size: int) -> Change:
    """The weight of a norm that all heads share."""
    return lambda tensor: tensor * float(constants[0])


def beside_one(constants: Tensor, size: int) -> Change:
    """The weight w of a norm that all heads share, and that multiplies by 1 + w."""
    return lambda tensor: (1 + tensor) * float(constants[0]) - 1


def _column(scale: Tensor, tensor: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (tensor.ndim - 1))


PROJECTION = Queries("q_proj", first_rows)
FAMILIES: dict[str, Queries] = {
    **dict.fromkeys(
        ("llama", "mistral", "mixtral", "ministral", "qwen2", "qwen2_moe", "granite", "gemma", "gemma2", "seed_oss",
         "ernie4_5", "starcoder2", "helium", "smollm3"),
        PROJECTION,
    ),
    "phi3": Queries("qkv_proj", first_rows),
    "gpt_neox": Queries("query_key_value", of_three),
    "olmo2": Queries("q_norm", first_rows),  # one weight for each dimension of each head
    **dict.fromkeys(("qwen3", "qwen3_moe", "exaone4"), Queries("q_norm", whole, shared=True)),
    "gemma3_text": Queries("q_norm", beside_one, shared=True),
}  # fmt: skip


def query_changes(model: nn.Module, constants: Mapping[int, Sequence[float]]) -> dict[str, Change]:
    """Parameter -> what makes the queries of each head c times as long.

    Arguments:
        constants: number of an attention layer in the order of the model -> c of each head.

    Raises:
        Unsupported: for a family whose queries are not known, and for heads that differ where they share a norm.
    """
    text = text_model(model)  # type: ignore[arg-type]
    kind = str(text.config.model_type)
    found, layers, names = {}, attention_layers(text), {id(module): name for name, module in model.named_modules()}
    constants = {number: each for number, each in constants.items() if set(each) != {1.0}}
    if constants and kind not in FAMILIES:
        raise Unsupported(
            f"export does not know where {kind} makes its queries, into which the learned exponents of log-n fold. It "
            f"knows {', '.join(FAMILIES)}. --log-n drop exports without log-n."
        )
    for number, each in constants.items():
        layer, family = layers[number], FAMILIES[kind]
        if family.shared and len(set(each)) > 1:
            raise Unsupported(
                f"{kind} normalises q by one weight for all heads ({family.module}), and the learned exponents of "
                f"log-n differ between the heads of layer {number}: no weight can hold them. --log-n drop exports "
                "without log-n."
            )
        scale = torch.tensor(each, dtype=torch.float32)
        change = family.fold(scale, int(layer.head_dim) if hasattr(layer, "head_dim") else int(layer.head_size))  # type: ignore[arg-type]
        module = layer.get_submodule(family.module)
        for name, _ in module.named_parameters():
            if name.rpartition(".")[2] in ("weight", "bias") and "lora_" not in name:
                found[f"{names[id(module)]}.{name}"] = change
    return found
