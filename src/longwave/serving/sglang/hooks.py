"""What is put around functions of SGLang, by its own registry, and the check that these are the functions we know."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from longwave.serving.hook import Hook, Releases
from longwave.serving.later import when_imported
from longwave.serving.profiles import OutOfRange
from longwave.serving.sglang.checks import profiles_of, refuse
from longwave.serving.sglang.choice import assign, is_chosen

logger = logging.getLogger("sglang.longwave")

TESTED = ("0.5.23",)  # releases of SGLang that the plugin was run with, on a CPU
UNTESTED = "LONGWAVE_SGLANG_UNTESTED"  # set to 1, the plugin runs with other releases, too, whose hooks look the same
STARTS = "longwave_starts"  # on a ModelRunner: the first row of each profile


class RegisteredHook(Hook):
    """A hook that SGLang's registry puts on, as one that runs around the function."""

    @property
    def target(self) -> str:
        return f"{self.module}.{self.name}"

    def install(self) -> None:
        """Wrap the function, once."""
        from sglang.srt.plugins.hook_registry import HookRegistry, HookType

        if self.difference() is not None or self.is_on:
            return  # `require_known` says so where it matters
        HookRegistry.register(self.target, self.around, HookType.AROUND)
        HookRegistry.apply_hooks()

    def around(self, original: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """What the registry calls in the place of the function."""
        return self.wrapped(original)(*arguments, **named)

    @property
    def is_on(self) -> bool:
        """Whether the registry has put the hook on. It only logs what goes wrong."""
        from sglang.srt.plugins.hook_registry import HookRegistry

        return self.target in HookRegistry._patched


def _max_length(found: Callable[..., Any]) -> Callable[..., Any]:
    """The longest text is that of the largest t. An SGLang that the plugin does not know is refused here."""

    def _derive_context_length(self: Any, context_length: int | None) -> None:
        profiles = profiles_of(self)
        if profiles is None or self.is_draft_model:
            found(self, context_length)
            return
        require_known()
        if context_length is not None and context_length > profiles.max_length:
            raise ValueError(
                f"--context-length {context_length} is more than the {profiles.max_length} tokens of the largest "
                "profile. Choose less, or export more profiles."
            )
        found(self, None)
        self.context_len = self.hf_config.context_len = context_length or profiles.max_length

    return _derive_context_length


def _front_end(found: Callable[..., Any]) -> Callable[..., Any]:
    """Choose t where the text has become tokens. A refusal is a ValueError here, and an answer of status 400."""

    def _create_tokenized_object(self: Any, *arguments: Any, **named: Any) -> Any:
        request = found(self, *arguments, **named)
        profiles = profiles_of(self.model_config)
        if profiles is None:
            return request
        if not hasattr(request, "session_params"):
            raise OutOfRange("a model with rope profiles generates text, and computes no embeddings.")
        choice = assign(request, profiles, self.context_len)
        logger.debug("request %s runs at length factor %g", request.rid, profiles.profiles[choice.profile].factor)
        return request

    return _create_tokenized_object


def _scheduler(found: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse requests of a front end without the plugin: nobody has chosen their t."""

    def _create_generation_req(self: Any, recv_req: Any, *arguments: Any, **named: Any) -> Any:
        request = found(self, recv_req, *arguments, **named)
        profiles = profiles_of(self.model_config)
        if profiles is not None and not is_chosen(recv_req, profiles):
            request.set_finish_with_abort(
                "the front end of this server runs without longwave, which chooses t. Install longwave in "
                "its environment."
            )
        return request

    return _create_generation_req


def _load(found: Callable[..., Any]) -> Callable[..., Any]:
    """Extend the tables when the model is there, and before graphs are captured."""

    def load_model(self: Any) -> Any:
        done = found(self)
        profiles = profiles_of(self.model_config)
        if profiles is not None and not self.is_draft_worker:
            from longwave.serving.sglang.tables import extend_tables

            refuse(self, profiles)
            setattr(self, STARTS, extend_tables(self.model, profiles))
        return done

    return load_model


def _rows(found: Callable[..., Any]) -> Callable[..., Any]:
    """The model gets row numbers in the place of positions; places in the cache are known by then."""

    def init_new(cls: Any, batch: Any, model_runner: Any, **named: Any) -> Any:
        forward = found(cls, batch, model_runner, **named)
        starts = getattr(model_runner, STARTS, None)
        if starts is None and profiles_of(model_runner.model_config) is None:
            return forward
        if starts is None:
            raise RuntimeError("a model with rope profiles has no rows for them: it was loaded without the plugin")
        from longwave.serving.sglang.tables import as_rows

        forward.positions = as_rows(forward, batch.reqs, starts)
        return forward

    return init_new


HOOKS = (
    RegisteredHook("sglang.srt.configs.model_config", "ModelConfig._derive_context_length",
                   ("self", "context_length"), _max_length),
    RegisteredHook("sglang.srt.managers.tokenizer_manager", "TokenizerManager._create_tokenized_object",
                   ("self", "obj", "input_text", "input_ids"), _front_end),
    RegisteredHook("sglang.srt.managers.scheduler", "Scheduler._create_generation_req",
                   ("self", "recv_req"), _scheduler),
    RegisteredHook("sglang.srt.model_executor.model_runner", "ModelRunner.load_model", ("self",), _load),
    RegisteredHook("sglang.srt.model_executor.forward_batch_info", "ForwardBatch.init_new",
                   ("batch", "model_runner"), _rows),
)  # fmt: skip


def install() -> None:
    """Wrap the functions of SGLang when their modules are there. A release that was not tested keeps all but one.

    That one refuses models with profiles. Models without run as they do without the plugin.
    """
    for hook in HOOKS if untested() is None else HOOKS[:1]:
        when_imported(hook.module, hook.install)


def require_known() -> None:
    """Refuse an SGLang that the plugin does not know.

    Raises:
        ValueError: naming the release of SGLang, or the function that has changed.
    """
    if reason := reason_against():
        raise ValueError(f"longwave cannot serve rope profiles here: {reason}")


def untested() -> str | None:
    """That this release of SGLang was not tested; None if it was."""
    from sglang.version import __version__

    return Releases("SGLang", TESTED, UNTESTED).refusal(str(__version__))


@functools.cache
def reason_against() -> str | None:
    """Why the plugin does not run with this SGLang; None if it does. Imports what the hooks are in."""
    if reason := untested():
        return reason
    for hook in HOOKS:
        if difference := hook.difference():
            return f"SGLang is another one: {difference}."
        if not hook.is_on:
            return f"SGLang's registry did not put a hook on {hook.target}. Its log says why."
    return None
