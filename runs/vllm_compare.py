"""vLLM on the CPU against vanilla transformers, on tiny exports. `runs/vllm_cpu.sh` calls both halves.

    python runs/vllm_compare.py make FOLDER      with longwave: random models, extended 4 times, exported to hf
    python runs/vllm_compare.py check FOLDER     with vLLM and transformers, without longwave
    python runs/vllm_compare.py one EXPORT       the same for one export of a trained model, beyond half of its length

`check` continues two prompts past the trained length by 24 greedy tokens and prints, for each model, whether the
tokens are equal and max |Δ log-probability| of the chosen ones, the second time for a copy whose factors are 1, which
must fail.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import torch

FACTOR, LENGTH, NEW, VOCABULARY = 4.0, 64, 24, 256
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": LENGTH,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "phi3": {"original_max_position_embeddings": LENGTH},
    "gpt_neox": {
        "num_key_value_heads": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    },
}
ONES = "-factors-1"


def make(folder: Path) -> None:
    """Write FOLDER/FAMILY-METHOD, and beside each a copy without the factors."""
    from tokenizers import Tokenizer, models
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

    import longwave
    from longwave.exporters import get_exporter
    from longwave.exporters.opening import open_source
    from longwave.extensions.handle import rotaries

    words = Tokenizer(models.WordLevel({f"t{index}": index for index in range(VOCABULARY)}, unk_token="t0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="t0")
    for family, fields in FAMILIES.items():
        for method in ("yarn", "clex"):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**SIZES | fields)).float()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim > 1:
                        parameter.mul_(4)  # random, but attention has something to choose
            longwave.extend(model, method, max_factor=FACTOR)
            for parameter in rotaries(model)[0].trajectory.parameters():
                torch.nn.init.normal_(parameter, std=0.5)
            source = open_source(longwave.save(model, folder / f".{family}-{method}", tokenizer=tokenizer))
            target, snapshot = folder / f"{family}-{method}", source.snapshot(FACTOR)
            exporter = get_exporter("hf")
            target.mkdir()
            exporter.plan(source, snapshot).write(target)
            without = shutil.copytree(target, folder / f"{family}-{method}{ONES}")
            config = json.loads((without / "config.json").read_text("utf-8"))
            for name in ("rope_parameters", "rope_scaling"):  # the second is what older readers know
                rope = config[name]
                rope["short_factor"] = rope["long_factor"] = [1.0] * len(rope["short_factor"])
            (without / "config.json").write_text(json.dumps(config), "utf-8")


def prompts(length: int = int(FACTOR) * LENGTH) -> list[list[int]]:
    """One past the middle of the length, one up to its last position."""
    generator = torch.Generator().manual_seed(1)
    lengths = (length // 2 + 5, length - NEW)
    return [torch.randint(1, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def by_transformers(folder: Path) -> list[tuple[list[int], torch.Tensor]]:
    """Greedy tokens and the log-probabilities before each."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    answers = []
    for prompt in prompts(model.config.max_position_embeddings):
        ids, found = list(prompt), []
        for _ in range(NEW):
            found.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1].log_softmax(-1))
            ids.append(int(found[-1].argmax()))
        answers.append((ids[len(prompt) :], torch.stack(found)))
    return answers


def by_vllm(folder: Path) -> list[tuple[list[int], list[float]]]:
    """Greedy tokens and the log-probability of each."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(folder), dtype="float32", enforce_eager=True, disable_log_stats=True, enable_prefix_caching=False, seed=0
    )  # max_model_len is left to config.json, as a user would
    sampling = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, logprobs=1)
    asked = prompts(llm.llm_engine.model_config.max_model_len)
    results = llm.generate([{"prompt_token_ids": prompt} for prompt in asked], sampling, use_tqdm=False)
    answers = []
    for result in results:
        [output] = result.outputs
        chosen = [step[token].logprob for token, step in zip(output.token_ids, output.logprobs, strict=True)]
        answers.append((list(output.token_ids), chosen))
    return answers


def compare(name: str, folder: Path, wanted: list[tuple[list[int], torch.Tensor]]) -> bool:
    """Print one line; true if vLLM, on the folder, says what transformers said."""
    equal, largest = 0, 0.0
    for (tokens, log_probs), (theirs, chosen) in zip(wanted, by_vllm(folder), strict=True):
        for step, (ours, other) in enumerate(zip(tokens, theirs, strict=True)):
            largest = max(largest, abs(float(log_probs[step, other]) - chosen[step]))
            if ours != other:
                break  # from here on the texts differ
            equal += 1
    print(f"{name}: {equal}/{2 * NEW} greedy tokens, max |Δ log-probability| {largest:.2g}", flush=True)
    return equal == 2 * NEW and largest < 1e-3


def check(folder: Path) -> int:
    """Compare every export and its control; the number of surprises."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    # transformers first: vLLM changes the classes of models that it runs through them
    wanted = {name: by_transformers(folder / name) for name in names if not name.endswith(ONES)}
    return sum(compare(name, folder / name, wanted[name.removesuffix(ONES)]) == name.endswith(ONES) for name in names)


if __name__ == "__main__":
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # no process that would outlive a failure
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    what, where = sys.argv[1], Path(sys.argv[2])
    if what == "make":
        where.mkdir(parents=True)
        make(where)
    elif what == "one":
        wanted = by_transformers(where)
        sys.exit(not compare(where.name, where, wanted))
    else:
        sys.exit(check(where))
