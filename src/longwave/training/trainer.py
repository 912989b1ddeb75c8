"""The transformers Trainer with length factors, skipped positions and a learning rate for the frequencies."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import save_file, save_model
from torch import Tensor, nn
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments

from longwave.extensions.documents import documents_apart
from longwave.extensions.handle import extension
from longwave.extensions.shards import rows_shared
from longwave.extensions.sites import host_of
from longwave.files import make_folder
from longwave.training.arguments import refuse_data_parallel, refuse_reentrant
from longwave.training.batches import MicroBatches, PackedRows
from longwave.training.checkpoints import STAGING, checkpoints, discard_rest, require_complete
from longwave.training.draw import Draw, LengthSampler
from longwave.training.engines import Engine, require_engine, shard_rotary
from longwave.training.frozen import counts_as_adapted, frozen_names, require_optimized, require_unfrozen
from longwave.training.learned import PARTS, clip_separately, parameter_groups, require_gradient, trained
from longwave.training.loss import AUTO, loss_in_blocks
from longwave.training.metrics import MetricsLog
from longwave.training.publishing import Publisher
from longwave.training.row import Step
from longwave.training.stopping import Shielded
from longwave.training.ulysses import Ulysses, hidden_from_accelerate, require_sum


class LengthTrainer(Trainer):
    """Trains an extended model at a drawn length factor and drawn positions per micro-batch.

    Everything else (optimizers, precision, accumulation, distribution) is the Trainer's own. The draw
    of a micro-batch depends only on the seed and on its number in the run. It is made before the text of the
    micro-batch is read (`MicroBatches`). What an engine needs is in `engines.py`.

    Arguments:
        model: an extended model.
        args: `logging_steps=1`, `save_total_limit=None`; checkpoints go to `args.output_dir`.
        sampler: draws t and the position ids.
        train_dataset: the rows of the whole run.
        field_lr, head_lr: learning rates of the trajectory's parameters and of the scalars of heads. They have no
            weight decay.
        metrics: the log of one row per optimizer step; None writes no rows.
        keep: number of checkpoints to keep while training.
        loss_blocks: whether the loss is computed in blocks of tokens, see `loss_in_blocks`.
        ulysses: the processes that share rows with this one; None for whole rows.
        **others: as for the Trainer.

    Raises:
        ValueError: for reentrant gradient checkpointing and for several GPUs in one process: both lose the
            gradient of the frequencies. Also while training, if the frequencies have no gradient, or if the loss
            or the gradient is not finite. The weights are not changed then.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        *,
        sampler: LengthSampler,
        field_lr: float,
        head_lr: float = 3e-2,
        train_dataset: PackedRows | None = None,
        metrics: MetricsLog | None = None,
        keep: int = 2,
        loss_blocks: str = AUTO,
        ulysses: Ulysses | None = None,
        **others: Any,
    ) -> None:
        refuse_reentrant(model, args)
        refuse_data_parallel(args)
        self.sampler, self.metrics, self.keep = sampler, metrics, keep
        self.rates = {"field": field_lr, "heads": head_lr}
        self.loss_blocks, self.ulysses = loss_blocks, ulysses
        shards = 1 if ulysses is None else ulysses.count
        self._step = Step()
        self._root = Path(str(args.output_dir))
        self._staging: Path | None = None
        self._publisher = Publisher(self._root)
        self._reaches_field = False
        self._warned = False
        self._network = model  # as given: `self.model` may be a wrapper
        if train_dataset is not None:
            batches = MicroBatches(
                train_dataset,
                sampler,
                size=args.train_batch_size,
                per_step=args.gradient_accumulation_steps * (args.world_size // shards),
                shards=shards,
            )
            others |= {"train_dataset": batches, "data_collator": Shielded(batches.collate)}
        with counts_as_adapted(model), hidden_from_accelerate():
            super().__init__(model=model, args=args, **others)
        require_engine(self)
        if ulysses is not None:
            require_sum(self)
        self.engine = Engine.of(self)
        self.remove_callback(PrinterCallback)  # prints a dict per step where there is no tqdm

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's `train`. Drawn t may exceed the model's max_factor, whatever `beyond` says."""
        require_unfrozen(self._network)
        dial = extension(self._network).dial
        before = dial.now
        if self.sampler.max_factor > dial.max_factor:
            dial.set(beyond="clamp")  # the sampler has a range of its own
        try:
            with loss_in_blocks(host_of(self._network), self.loss_blocks):
                return super().train(*args, **kwargs)
        finally:
            self._publisher.wait()
            dial.set(factor=before.factor, beyond=before.beyond)

    def longest_window(self) -> int:
        """Real tokens of the longest row in all micro-batches of the run, those of other processes included."""
        assert isinstance(self.train_dataset, MicroBatches)
        return self.train_dataset.longest_window()

    def used(self) -> Counter[int]:
        """Tokens of each part of the data in the whole run."""
        assert isinstance(self.train_dataset, MicroBatches)
        return self.train_dataset.used()

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        """Items in sequence: the first item of a batch tells which micro-batch it is."""
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        return torch.utils.data.SequentialSampler(rows)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor | Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        batch: dict[str, Any] = dict(inputs)
        draw: Draw = batch.pop("draw")
        documents: Tensor | None = batch.pop("document_ids", None)
        self._step.add(self.state.global_step, draw)
        extension(self._network).dial.set(factor=draw.t)  # not through a policy: t may be beyond the largest in use
        host, device = host_of(self._network), self.args.device
        documents = None if documents is None else documents.to(device)
        shards = None if self.ulysses is None else self.ulysses.shards(draw.positions.to(device))
        with documents_apart(host, documents), rows_shared(host, shards):
            loss = super().training_step(model, batch, num_items_in_batch)
        self._require_finite("loss", loss)
        if not (self._reaches_field or self.engine in (Engine.ZERO, Engine.ZERO3)):  # they keep gradients elsewhere
            require_gradient(trained(self._network, "field"))
            self._reaches_field = True
        return loss

    def create_optimizer(self, model: PreTrainedModel | None = None) -> torch.optim.Optimizer:
        """Groups: parts of the extension at their own rates, the matrices with weight decay, the rest without decay."""
        if self.optimizer is None:
            model = model or self._network
            decayed = set(self.get_decay_parameter_names(model))
            kind, arguments = self.get_optimizer_cls_and_kwargs(self.args, model)
            groups = parameter_groups(model, decayed, weight_decay=self.args.weight_decay, rates=self.rates)
            self.optimizer = kind(groups, **arguments)
        require_optimized(self._network, self.optimizer)
        return self.optimizer

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As saved, but with the learning rates of this run: after a divergence one resumes with a smaller rate."""
        assert self.optimizer is not None and self.lr_scheduler is not None
        wanted = [group["initial_lr"] for group in self.optimizer.param_groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        for index, (group, rate) in enumerate(zip(self.optimizer.param_groups, wanted, strict=True)):
            if group["initial_lr"] != rate:
                group["lr"] *= rate / group["initial_lr"] if group["initial_lr"] else 0.0
                group["initial_lr"] = self.lr_scheduler.base_lrs[index] = rate

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Each part of the extension, and the weights, to `max_grad_norm`; returns the norm of all from before."""
        parts = {part: found for part in PARTS if (found := trained(self._network, part))}
        if not parts or self._clips_as_a_whole():
            return super()._clip_grad_norm(model)
        clip = self.accelerator.clip_grad_norm_
        if self.accelerator.scaler is not None:  # of fp16: its gradients may be unscaled only once
            self.accelerator.unscale_gradients()
            clip = nn.utils.clip_grad_norm_
        norm, norms = clip_separately(model, parts, clip, self.args.max_grad_norm)
        self._step.field_norm = norms.get("field")
        return norm

    def _clips_as_a_whole(self) -> bool:
        """Whether the engine clips the model as a whole; if it does, the user is told once."""
        if self.engine.clips_as_a_whole and not self._warned:
            warnings.warn(
                "DeepSpeed and FSDP 1 clip weights and learned frequencies by one norm, which slows the weights on "
                "long windows. FSDP 2 and DDP clip them separately.",
                stacklevel=2,
            )
            self._warned = True
        return self.engine.clips_as_a_whole

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        self._require_finite("gradient norm", norm)
        assert self.optimizer is not None
        # The rates that this step is taken with; by the time it is logged the scheduler has moved on.
        self._step.rates = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
        return norm

    def _require_finite(self, what: str, value: Tensor | float) -> None:
        if math.isfinite(float(value)):
            return
        self._publisher.wait()
        last = checkpoints(self._root)
        kept = f"Last good checkpoint: {last[-1]}; go on from it" if last else "No checkpoint yet; start again"
        raise ValueError(
            f"{what} is {float(value)} at step {self.state.global_step + 1} (t = {self._step.factors}): "
            f"training stopped. {kept} with a smaller lr or field lr."
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write the step's row and show it to the callbacks."""
        if "loss" in logs and "grad_norm" in logs:
            row = self._step.row(logs, done=self.state.global_step, gather=gather_object)
            if self.metrics is not None and self.is_world_process_zero():
                self.metrics.append(row)
            logs = row
        super().log(logs, start_time)
        self.state.log_history.clear()  # metrics.jsonl has the rows; every checkpoint would repeat them

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuse a checkpoint with missing or unknown weights."""
        require_complete(self._network, load_result, self._root)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._publisher.wait()
        self.accelerator.wait_for_everyone()  # nobody writes while the checkpoint before is published
        self._staging = self._root / STAGING
        try:
            super()._save_checkpoint(model, trial)
        except BaseException:
            if self.args.should_save:
                discard_rest(self._root)
            raise
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._publisher.start(f"checkpoint-{self.state.global_step}", keep=self.keep)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the weights, unless the engine writes them with its own state."""
        if not self.engine.has_own_checkpoints:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            make_folder(Path(output_dir or self._root))

    def _prepare_for_training(self, *args: Any) -> Any:
        if self.engine is Engine.FSDP2:
            shard_rotary(self, self._network)
        return super()._prepare_for_training(*args)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Save weights and field as one safetensors file; an extended model's `save_pretrained` refuses this."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self._root)
        make_folder(folder)
        frozen = frozen_names(self._network)
        if state_dict is None and not frozen:
            save_model(self._network, str(folder / "model.safetensors"))
        elif state_dict is None:  # frozen weights are those of the base, which is there
            state = self._network.state_dict()
            kept = {name: tensor.contiguous() for name, tensor in state.items() if name not in frozen}
            save_file(kept, folder / "model.safetensors")
        else:
            save_file(state_dict, folder / "model.safetensors")
