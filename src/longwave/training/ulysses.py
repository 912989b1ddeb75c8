"""Sequence parallelism by DeepSpeed's Ulysses: some processes share each row, on any engine.

Neighbouring processes form a group. The collator makes one micro-batch for all of a group, and gives each its shard
(`batches.py`). Each runs all layers on its shard; in attention the group exchanges tokens for heads
(`attention/shards.py`). DeepSpeed's `UlyssesSPAttentionHF` is that exchange. Loss and gradients need nothing more: a
shard's loss is the sum over its labels, divided by the labels of the step in all processes, and engines add gradients
up over processes. So the engine sees as many data parallel processes as there are.

The other way into Ulysses, accelerate's `ParallelismConfig`, is not taken. Its loader deals micro-batches out in
another order than one process reads them, its loss is a mean of means, and it takes no attention under another name.

Source: DeepSpeed-Ulysses (arXiv 2309.14509); the class is of ALST (arXiv 2506.13996).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, distributed, nn
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss

from longwave.attention.shards import Shards
from longwave.extensions.shards import prepare_shards
from longwave.extensions.sites import host_of
from longwave.training.config import TrainConfig
from longwave.training.loss import OF_LOSS
from longwave.training.ranks import SIZE, USES

if TYPE_CHECKING:
    from transformers import Trainer


class Ulysses:
    """The exchange of one process with those that share its rows. All processes of the run have to make theirs at once.

    Arguments:
        count: processes that share a row: neighbours, by their ranks.
    """

    def __init__(self, count: int) -> None:
        from deepspeed import comm

        if not comm.is_initialized():
            comm.init_distributed(distributed.get_backend(), auto_mpi_discovery=False, verbose=False)
        self.count, self.rank = count, distributed.get_rank() % count
        self.group, _ = distributed.new_subgroups(group_size=count)
        self._modules: dict[tuple[int, ...], Any] = {}  # by the shapes of query and key

    def shards(self, positions: Tensor) -> Shards:
        """The shards of a micro-batch whose whole rows have these position ids [batch, n]."""
        return Shards(positions, self.rank, self.count, self.exchange)

    def exchange(
        self,
        core: Callable[..., tuple[Tensor, Any]],
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        """Attention of a layer: as `Shards` takes it."""
        require_alike(module, key, value, kwargs)
        attention = self._of(query, key)
        attention.attn = core
        groups = getattr(module, "num_key_value_groups", None)
        try:
            found: tuple[Tensor, Any] = attention(module, query, key, value, mask, *args, **kwargs)
        finally:
            if groups is not None:  # DeepSpeed changes it where processes have the same key heads
                module.num_key_value_groups = groups
        output, weights = found
        return output.unflatten(-1, (query.shape[1], -1)), weights

    def _of(self, query: Tensor, key: Tensor) -> Any:
        """DeepSpeed's module: one for each shape, as real windows have fewer and longer rows."""
        shapes = *query.shape, key.shape[1]
        if shapes not in self._modules:
            from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

            batch, heads, tokens, size = query.shape
            self._modules[shapes] = UlyssesSPAttentionHF(
                attn=None,
                batch_size=batch,
                attn_head_count=heads,
                attn_head_size=size,
                kv_head_count=key.shape[1],
                num_hidden_layers=1,
                process_group=self.group,
                local_seq_length=tokens,
                global_seq_length=tokens * self.count,
            )
        return self._modules[shapes]


def share_rows(network: PreTrainedModel, config: TrainConfig, original_length: int) -> Ulysses | None:
    """Let processes share the rows of a run, where its settings say so. All processes have to call this.

    Raises:
        ValueError: for rows and heads that the processes cannot share.
    """
    if config.sequence_parallel == 1:
        return None
    require_even(network, config, original_length)
    return Ulysses(config.sequence_parallel)


def require_even(network: PreTrainedModel, config: TrainConfig, original_length: int) -> None:
    """Prepare a model for rows that processes share; a `ValueError` for rows and heads that they cannot share."""
    row, count = config.row_tokens(original_length), config.sequence_parallel
    if row % count:
        raise ValueError(
            f"a row of {row} tokens cannot be shared evenly by {count} processes (sequence_parallel). Pass a row "
            f"length of {max(1, row // count) * count} tokens."
        )
    prepare_shards(host_of(network), count)


def require_sum(trainer: Trainer) -> None:
    """A `ValueError` for a model whose loss is no sum over tokens, which shards could add up."""
    model: Any = trainer.model
    host: Any = host_of(model)
    plain = host.loss_function is ForCausalLMLoss and not getattr(host.config, "output_router_logits", False)
    if not (plain and trainer.model_accepts_loss_kwargs):
        raise ValueError(
            f"the loss of {type(host).__name__} is no mean over its tokens alone, and processes that share rows cannot "
            "add it up. Leave sequence_parallel out."
        )


@contextmanager
def hidden_from_accelerate() -> Iterator[None]:
    """Within, accelerate does not see that its environment asks for Ulysses: it would run a second one."""
    if int(os.environ.get(SIZE, 1)) == 1:
        yield
        return
    before = os.environ.get(USES)
    os.environ[USES] = "false"
    try:
        yield
    finally:
        os.environ.update({} if before is None else {USES: before})
        if before is None:
            del os.environ[USES]


def require_alike(module: nn.Module, key: Tensor, value: Tensor, given: Mapping[str, Any]) -> None:
    """A `ValueError` for attention that Ulysses cannot divide by heads."""
    ours = "position_ids", *OF_LOSS  # models hand what the loss takes on to their attention, too
    others = [name for name, each in given.items() if isinstance(each, Tensor) and name not in ours]
    if key.shape != value.shape or others:
        what = f"has {others[0]} for all heads" if others else "has keys and values of different sizes"
        raise ValueError(f"{type(module).__name__} {what}, which Ulysses cannot divide. Leave sequence_parallel out.")
