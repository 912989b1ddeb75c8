"""The handle of an extended model: it holds the parts of the extension, the dial, and their places in the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from longwave.attention import Attention
from longwave.attention.heads import HeadScalars
from longwave.extensions.arguments import check_model
from longwave.extensions.dial import Dial, Follower
from longwave.extensions.mounts import Mount, Seat, scaled_inside
from longwave.extensions.rotary import ScaledRotary
from longwave.extensions.spec import named, spelled
from longwave.extensions.steering import log_n_of, steering_of
from longwave.methods import get_method
from longwave.rope import Rope
from longwave.schedule import Schedule
from longwave.trajectory import Trajectory

if TYPE_CHECKING:
    from longwave.extensions.adapter import Adapter

HANDLE = "_longwave"


@dataclass(eq=False, repr=False)
class Extension:
    """Everything that `extend` put on a model; `longwave.extension(model)` gives it.

    Arguments:
        host: the transformers model.
        seats: where its rotary modules are.
        dial: which t every sequence runs at.
        recognised: `load` found the extension in the checkpoint's config; `extend` may replace it.
        adapter: weights that follow t; None where they do not.
    """

    host: PreTrainedModel
    seats: tuple[Seat, ...]
    dial: Dial
    recognised: bool = False
    adapter: Adapter | None = None

    def __repr__(self) -> str:
        reach = f"L={self.original_length}, max_factor={self.max_factor:g}, log_n={self.log_n:g}"
        implied = self.attention is not None and "+" not in self.spec and self.method != "none"
        below = f" above {self.method}" if implied else ""
        return f"Extension({spelled(self.spec, self.schedule.spec)}{below}, {reach}, policy={self.dial.policy})"

    @property
    def mounts(self) -> list[Mount]:
        """The scaled rotary modules where they are now: PEFT may have wrapped them, and copied them."""
        found = []
        for seat in self.seats:
            held = getattr(seat.parent, seat.name)
            inside = [(seat.parent, seat.name, held)] if isinstance(held, ScaledRotary) else scaled_inside(held)
            for parent, name, rotary in inside:
                found.append(Mount(parent, name, rotary, rotary.base if seat.scaled is None else seat.scaled))
        return found

    def reconcile(self) -> Extension:
        """Let all follow one dial, and bands the rotary module in use: PEFT copies a module together with its dial."""
        rotaries = self.rotaries
        for rotary in rotaries:
            if rotary.dial is not self.dial:
                rotary.dial = self.dial
        followers: list[Follower] = [*rotaries, *([] if self.adapter is None else [self.adapter.gate])]
        if list(self.dial.followers) != followers:
            self.dial.followers = followers
            steering = steering_of(self.host)
            if steering is not None and steering.bands is not None:
                steering.bands.follow(self.in_use[0])
            if steering is not None and steering.temperature is not None:
                steering.temperature.heads = self.in_use[0].heads
        return self

    @property
    def rotaries(self) -> list[ScaledRotary]:
        """The distinct scaled rotary modules, mostly one."""
        return list(dict.fromkeys(mount.rotary for mount in self.mounts))

    @property
    def in_use(self) -> list[ScaledRotary]:
        """The distinct scaled rotary modules that count.

        PEFT may train a copy of a rotary module (`modules_to_save`). The copy counts then, and not the original.
        """
        return list(dict.fromkeys(mount.rotary for mount in self.mounts if mount.name != "original_module"))

    @property
    def trajectories(self) -> list[Trajectory]:
        """The distinct trajectories of the rotary modules that count, mostly one, in the order of the model."""
        return list(dict.fromkeys(rotary.trajectory for rotary in self.in_use))

    @property
    def trajectory(self) -> Trajectory:
        """The one trajectory.

        Raises:
            ValueError: if there are several.
        """
        found = self.trajectories
        if len(found) > 1:
            raise ValueError(f"the model follows {len(found)} trajectories. Ask each of longwave.rotaries(model).")
        return found[0]

    @property
    def method(self) -> str:
        """The name of the scaling method."""
        return self.trajectories[0].name

    @property
    def rope(self) -> Rope:
        """The rope that the model was pre-trained with, z(1)."""
        return self.trajectory.rope

    @property
    def schedule(self) -> Schedule:
        """n tokens -> t."""
        return self.dial.now.schedule

    @property
    def original_length(self) -> int:
        """L, in tokens."""
        return self.dial.original_length

    @property
    def max_factor(self) -> float:
        """The largest t in range."""
        return self.dial.max_factor

    @property
    def max_length(self) -> int:
        """The longest sequence in range, in tokens."""
        return self.dial.max_length

    @property
    def log_n(self) -> float:
        """Exponent of the per-query log-n attention scaling, 0 for off; the one that learned exponents started from."""
        return log_n_of(self.host)

    @property
    def heads(self) -> HeadScalars | None:
        """Learned mass and temperature of each head; None where all heads share them."""
        return self.in_use[0].heads

    @property
    def log_n_by_head(self) -> bool:
        """Whether log-n is on, with an exponent for each head."""
        steering = steering_of(self.host)
        return steering is not None and steering.temperature is not None and steering.temperature.heads is not None

    @property
    def learned(self) -> dict[str, list[nn.Parameter]]:
        """The parameters of the parts: `field` (frequencies), `heads` (mass and temperature), `adapter` (weights)."""
        return {
            "field": [parameter for trajectory in self.trajectories for parameter in trajectory.parameters()],
            "heads": [] if self.heads is None else list(self.heads.parameters()),
            "adapter": [] if self.adapter is None else list(self.adapter.parameters()),
        }

    @property
    def attention(self) -> Attention | None:
        """The attention method; None where the model has its own attention at every length."""
        return self.dial.attention

    @property
    def spec(self) -> str:
        """What `extend` put on, as it takes it, without the schedule: `yarn`, `yarn+dca`, `two-band`."""
        return named(self.method, self.attention)

    @property
    def options(self) -> dict[str, Any]:
        """Options of the scaling method and of the attention method, by name, as JSON values; defaults included."""
        above = {} if self.attention is None else self.attention.options()
        return {**self.trajectories[0].options(), **above}

    def same(self, a: float, b: float) -> bool:
        """Whether two t make no difference: a cache that was filled at one serves at the other."""
        if self.adapter is not None and self.adapter.gate.at(a) != self.adapter.gate.at(b):
            return False
        steering = steering_of(self.host)
        if steering is not None and steering.bands is not None:
            return bool(steering.bands.same(a, b))
        return self.rotaries[0].same_frequencies(a, b)

    @property
    def is_trained(self) -> bool:
        """Whether the extension can be evaluated: a closed form always, a learned one once it has left its start.

        A learned trajectory starts as its closed-form prior. It counts as trained when its frequencies at
        max_factor are no longer those of a newly built one.
        """
        return all(map(_has_left_its_start, self.trajectories))  # heads and an adapter change nothing at their start

    @property
    def unscaled(self) -> bool:
        """Whether z(1) is the rope without the RoPE scaling of the checkpoint's config."""
        return any(seat.scaled is not None for seat in self.seats)


def find_extension(model: nn.Module) -> Extension | None:
    """The extension of a model, None for a plain one.

    The model may be wrapped (PEFT, torch.compile, DDP), be the base of the extended model, or contain it.
    """
    found: Extension | None = vars(model).get(HANDLE)
    if found is None:
        handles = (vars(module).get(HANDLE) for module in model.modules() if isinstance(module, PreTrainedModel))
        found = next((handle for handle in handles if handle is not None), None)
    return None if found is None else found.reconcile()


def extension(model: nn.Module) -> Extension:
    """The extension of a model: its parts, its dial, and its reach.

    Raises:
        ValueError: if the model is not extended.
    """
    check_model(model, "longwave")
    found = find_extension(model)
    if found is None:
        raise ValueError("the model is not extended. Call longwave.extend(model, ...) or longwave.load(path).")
    return found


def rotaries(model: nn.Module) -> list[ScaledRotary]:
    """The scaled rotary modules of an extended model.

    Raises:
        ValueError: if the model is not extended.
    """
    return extension(model).rotaries


def hold(handle: Extension) -> None:
    """Let the model know its extension, and the models that it is made of (`model.model`)."""
    for module in handle.host.modules():
        if isinstance(module, PreTrainedModel):
            vars(module)[HANDLE] = handle  # not through nn.Module, which would look for parameters in it


def let_go(host: PreTrainedModel) -> None:
    """The model is a plain one again."""
    for module in host.modules():
        vars(module).pop(HANDLE, None)


def _has_left_its_start(trajectory: Trajectory) -> bool:
    method, end = get_method(trajectory.name), trajectory.max_factor
    if not method.trained:
        return True
    with torch.random.fork_rng(devices=[]):  # a learned method draws its weights; the caller's draws stay the same
        start = method.build(trajectory.rope, end, **trajectory.options())
    start.to(trajectory.log_freq_1.device)  # devices round differently
    return not torch.equal(trajectory.at(end).inv_freq, start.at(end).inv_freq)
