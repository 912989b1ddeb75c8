"""What is put in the place of functions of vLLM, and the check that these are the functions that we know."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from longwave.serving.hook import Hook, Releases
from longwave.serving.later import when_imported
from longwave.serving.profiles import OutOfRange
from longwave.serving.vllm.checks import refuse, refuse_adapter
from longwave.serving.vllm.configs import profiles_of

TESTED = ("0.32",)  # releases of vLLM that the plugin was run with
UNTESTED = "LONGWAVE_VLLM_UNTESTED"  # set to 1, the plugin runs with other releases, too, whose hooks look the same


def _max_length(found: Callable[..., Any]) -> Callable[..., Any]:
    """The longest text is that of the largest t. Everything that cannot be served is refused here, at the start."""

    def get_and_verify_max_len(self: Any, max_model_len: Any) -> Any:
        profiles = profiles_of(self)
        if profiles is None:
            return found(self, max_model_len)
        require_known()
        if self.uses_mrope:
            raise ValueError("positions on several axes (M-RoPE) have no profiles. Export a text model.")
        if max_model_len is None or max_model_len == -1:
            return profiles.max_length
        if max_model_len > profiles.max_length:
            raise ValueError(
                f"--max-model-len {max_model_len} is more than the {profiles.max_length} tokens of the largest "
                "profile. Choose less, or export more profiles."
            )
        return max_model_len

    return get_and_verify_max_len


def _front_end(found: Callable[..., Any]) -> Callable[..., Any]:
    """Choose t in the front end, where a refusal becomes an answer of status 400."""

    def process_inputs(self: Any, *arguments: Any, **named: Any) -> Any:
        from vllm.exceptions import VLLMValidationError

        request = found(self, *arguments, **named)
        try:
            refuse_adapter(request, self.vllm_config)
            _admit(request, self.vllm_config, front=True)
        except OutOfRange as error:
            raise VLLMValidationError(str(error)) from None
        return request

    return process_inputs


def _core(found: Callable[..., Any]) -> Callable[..., Any]:
    """Choose t for requests of a front end without the plugin, before their tokens are hashed."""

    def preprocess_add_request(self: Any, request: Any) -> Any:
        _admit(request, self.vllm_config, front=False)
        return found(self, request)

    return preprocess_add_request


def _admit(request: Any, vllm_config: Any, *, front: bool) -> None:
    from longwave.serving.vllm.choice import assign
    from longwave.serving.vllm.counting import count

    model = vllm_config.model_config
    profiles = profiles_of(model)
    if profiles is None:
        return
    choice = assign(request, profiles, limit=model.max_model_len, folder=model.model, front=front)
    if choice is not None:
        count(profiles.profiles[choice.profile].factor, request)


def _workers(found: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse workers without the plugin, which would read rows that their tables do not have, and unknown caches."""

    def _initialize_kv_caches(self: Any, vllm_config: Any) -> Any:
        profiles = profiles_of(vllm_config.model_config)
        if profiles is not None and not all(self.model_executor.collective_rpc(has_rows)):
            raise ValueError("longwave cannot serve rope profiles here: a worker runs without the plugin.")
        made = found(self, vllm_config)
        if profiles is not None and profiles.bands is not None:
            from longwave.serving.vllm.caches import look

            if reason := next(filter(None, self.model_executor.collective_rpc(look)), None):
                raise ValueError(f"longwave cannot serve bands here: {reason}")
        return made

    return _initialize_kv_caches


def has_rows(worker: Any) -> bool:
    """Whether the model of a worker has the rows of all profiles. Runs in the worker."""
    from longwave.serving.vllm.tables import MARK

    return getattr(worker.get_model(), MARK, None) is not None


def _state(found: Callable[..., Any]) -> Callable[..., Any]:
    """Model runner V2."""

    def resolve_model_state_cls(vllm_config: Any, model: Any) -> Any:
        kind = found(vllm_config, model)
        if profiles_of(vllm_config.model_config) is None:
            return kind
        from longwave.serving.vllm.runner import state_class

        refuse(vllm_config, model)
        return state_class(kind)

    return resolve_model_state_cls


def _load(found: Callable[..., Any]) -> Callable[..., Any]:
    """Model runner V1: extend the tables when the model is there, and before anything is compiled."""

    def load_model(self: Any, *arguments: Any, **named: Any) -> Any:
        done = found(self, *arguments, **named)
        if profiles_of(self.vllm_config.model_config) is not None and not self.vllm_config.use_v2_model_runner:
            from longwave.serving.vllm.runner_v1 import prepare

            refuse(self.vllm_config, self.model_runner.get_model())
            prepare(self.model_runner)
        return done

    return load_model


def _forward(found: Callable[..., Any]) -> Callable[..., Any]:
    """Model runner V1."""

    def _model_forward(self: Any, input_ids: Any = None, positions: Any = None, *rest: Any, **named: Any) -> Any:
        from longwave.serving.vllm.runner_v1 import rows

        with rows(self, positions):
            return found(self, input_ids, positions, *rest, **named)

    return _model_forward


MAX_LENGTH = Hook("vllm.config.model", "ModelConfig.get_and_verify_max_len", ("self", "max_model_len"), _max_length)
HOOKS = (
    Hook("vllm.v1.engine.input_processor", "InputProcessor.process_inputs",
         ("self", "request_id", "prompt", "params"), _front_end),
    Hook("vllm.v1.engine.core", "EngineCore.preprocess_add_request", ("self", "request"), _core),
    Hook("vllm.v1.engine.core", "EngineCore._initialize_kv_caches", ("self", "vllm_config"), _workers),
    Hook("vllm.v1.worker.gpu.model_states", "resolve_model_state_cls", ("vllm_config", "model"), _state),
    Hook("vllm.v1.worker.gpu_worker", "Worker.load_model", ("self",), _load),
    Hook("vllm.v1.worker.gpu_model_runner", "GPUModelRunner._model_forward",
         ("self", "input_ids", "positions"), _forward),
)  # fmt: skip


def install() -> None:
    """Wrap the functions of vLLM when their modules are there. A release that was not tested keeps all but one.

    That one refuses models with profiles. Models without run as they do without the plugin.
    """
    when_imported(MAX_LENGTH.module, MAX_LENGTH.install)
    if untested() is None:
        for hook in HOOKS:
            when_imported(hook.module, hook.install)


def require_known() -> None:
    """Refuse an engine that the plugin does not know.

    Raises:
        ValueError: naming the release of vLLM, or the function that has changed.
    """
    if reason := reason_against():
        raise ValueError(f"longwave cannot serve rope profiles here: {reason}")


def untested() -> str | None:
    """That this release of vLLM was not tested; None if it was."""
    import vllm

    return Releases("vLLM", TESTED, UNTESTED).refusal(str(vllm.__version__))


@functools.cache
def reason_against() -> str | None:
    """Why the plugin does not run with this vLLM; None if it does. Imports what the hooks are in."""
    found = (hook.difference() for hook in (MAX_LENGTH, *HOOKS))
    return untested() or next((f"vLLM is another one: {each}." for each in found if each is not None), None)
