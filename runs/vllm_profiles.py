"""The plugin for vLLM against longwave: every request at its own length factor.

    python runs/vllm_profiles.py make FOLDER [MODEL [BANDED [CLEX]]]    with longwave: exports, and what longwave
                                                                       answers; - for none
    python runs/vllm_profiles.py check FOLDER [CASE ...]    with vLLM and, by `pip install --no-deps`, longwave

Eight prompts of 40 to 2,000 tokens (t = 1, 1, 1, 2, 2, 4, 4, 8), 24 greedy tokens each, for exports of the demo's
model under YaRN, with log-n, and under two bands and other attention methods; for random models whose heads differ;
for MODEL, a folder that was trained `--engine-ready`, BANDED, one that was trained by default, and CLEX, one with
learned frequencies. longwave answers with full forwards without cache at that t. Each case of `check` is a process of
its own and writes its line into FOLDER/results.json.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from vllm_cases import CASES, HEADS, MADE

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "src" / "longwave" / "demo" / "model"
LENGTHS = (40, 150, 232, 260, 480, 520, 1000, 2000)
FACTORS, NEW, LIMIT = "1,2,4,8,16", 24, 4096
RESULTS = "results.json"
MODELS = ("model", "banded-model", "clex")  # folders that were trained


def prompts() -> list[list[int]]:
    """Windows of Python's own sources, as the demo's model reads them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    text = "\n".join(path.read_text("utf-8") for path in sorted(Path(os.__file__).parent.glob("a*.py")))
    ids = tokenizer(text).input_ids
    return [ids[1000 + 3000 * number :][:length] for number, length in enumerate(LENGTHS)]


def make(folder: Path, **models: Path | None) -> None:
    """FOLDER/NAME and FOLDER/NAME.json: the exports, and longwave's answers."""
    import longwave

    asked = prompts()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.json").write_text(json.dumps(asked))
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sources = dict.fromkeys((*MADE, *HEADS, "neox")) | {name: path for name, path in models.items() if path is not None}
    for name, source in sources.items():
        if (folder / f"{name}.json").exists():
            continue
        if source is None and name == "neox":
            source = random_neox(folder / f".{name}")
        if source is None and name in HEADS:
            source = random_heads(folder / f".{name}", HEADS[name])
        if source is None:
            plain = AutoModelForCausalLM.from_pretrained(BASE, dtype="float32")
            longwave.extend(plain, max_factor=16, **{"log_n": 0.0} | MADE[name])
            source = longwave.save(
                plain, folder / f".{name}", tokenizer=AutoTokenizer.from_pretrained(BASE), overwrite=True
            )
        if not (folder / name).exists():
            longwave.export(source, folder / name, profiles=FACTORS)
        extended = longwave.load(source, dtype="float32").eval()
        answers = [answer(extended, prompt) for prompt in asked]
        (folder / f"{name}.json").write_text(json.dumps(answers))
    for name, control in (("yarn", "ones"), ("neox", "ones, neox")):
        without_factors(folder, name, control)


def without_factors(folder: Path, name: str, control: str) -> None:
    """A copy of an export whose profiles are all as that of t = 1."""
    if not (folder / control).exists():
        shutil.copytree(folder / name, folder / control)
    config = json.loads((folder / name / "config.json").read_text())
    first, *others = config["rope_profiles"]["profiles"]
    for profile in others:
        profile |= {key: first[key] for key in ("factors", "attention_scaling", "inv_freq")}
    (folder / control / "config.json").write_text(json.dumps(config))
    shutil.copyfile(folder / f"{name}.json", folder / f"{control}.json")


def random_heads(folder: Path, method: str) -> Path:
    """A random Llama of four heads, whose exponents of log-n, and mass where there is any, differ by head."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    import longwave

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(BASE)
    config.update({"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "num_hidden_layers": 3})
    model = AutoModelForCausalLM.from_config(config).float()
    longwave.extend(model, method, max_factor=16, head_scalars=True)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)  # random, but attention has something to choose
        for parameter in longwave.extension(model).learned["heads"]:
            parameter.uniform_(0, 2)
    return longwave.save(model, folder, tokenizer=AutoTokenizer.from_pretrained(BASE), overwrite=True)


def random_neox(folder: Path) -> Path:
    """A random GPT-NeoX, which rotates a part of each head, and which vLLM runs by its Transformers backend."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig

    import longwave

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=3, num_attention_heads=4, intermediate_size=256,
        max_position_embeddings=256, rotary_pct=0.5, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)  # random, but attention has something to choose
    longwave.extend(model, "yarn", max_factor=16)
    return longwave.save(model, folder, tokenizer=tokenizer, overwrite=True)


def answer(model: Any, prompt: list[int]) -> dict[str, Any]:
    """24 greedy tokens and their log-probabilities by full forwards at the t of the whole."""
    import torch

    import longwave

    t = next(t for t in map(float, FACTORS.split(",")) if len(prompt) + NEW <= 256 * t)
    longwave.set_policy(model, "fixed", t)
    ids, found = list(prompt), []
    with torch.no_grad():
        for _ in range(NEW):
            log_probs = model(torch.tensor([ids]), use_cache=False).logits[0, -1].float().log_softmax(-1)
            token = int(log_probs.argmax())
            found.append(float(log_probs[token]))
            ids.append(token)
    return {"t": t, "tokens": ids[len(prompt) :], "log_probs": found}


def leave_salt_alone() -> None:
    """A control: keys that one t has cached are found by another."""
    from longwave.serving.vllm import choice

    assign = choice.assign

    def without(request: Any, *arguments: Any, **named: Any) -> Any:
        own = request.cache_salt
        given = assign(request, *arguments, **named)
        request.cache_salt = own
        return given

    choice.assign = without


def interpret_triton() -> None:
    """Let vLLM take Triton's interpreter for a backend of this CPU: model runner V2 has kernels of Triton."""
    from types import SimpleNamespace

    from triton.backends import backends

    backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True))


def run(folder: Path, case: str) -> dict[str, Any]:
    """One case, in this process."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        interpret_triton()
    if os.environ.get("LONGWAVE_NO_SALT") == "1":
        leave_salt_alone()
    from vllm import LLM, SamplingParams

    export, how, options, _ = CASES[case]
    asked, wanted = (
        json.loads((folder / "prompts.json").read_text()),
        json.loads((folder / f"{export}.json").read_text()),
    )
    plain = os.environ.get("VLLM_PLUGINS") == ""
    settings = {
        "dtype": "float32",
        "enforce_eager": True,
        "disable_log_stats": True,
        "enable_prefix_caching": False,
        "seed": 0,
    }
    llm = LLM(str(folder / export), **({} if plain else {"max_model_len": LIMIT}) | settings | options)
    sampling = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, logprobs=1)
    within = [number for number, prompt in enumerate(asked) if len(prompt) + NEW <= 256]

    def ask(numbers: list[int]) -> list[tuple[list[int], list[float]]]:
        results = llm.generate([{"prompt_token_ids": asked[number]} for number in numbers], sampling, use_tqdm=False)
        outputs = [one.outputs[0] for one in results]
        return [(list(each.token_ids), chosen(each)) for each in outputs]

    if how == "salt":
        # The same long prompt at its t, and a part of it that needs a smaller t: no key of the one may serve the other.
        number = LENGTHS.index(480)
        before = llm.generate({"prompt_token_ids": asked[number][:224]}, sampling, use_tqdm=False)
        found = {number: ask([number])[0]}
        del before
    elif how == "alone":
        found = {number: ask([number])[0] for number in range(len(asked))}
    elif how == "within":
        found = {number: ask([number])[0] for number in within}
    else:
        ask(list(range(len(asked))))
        found = dict(enumerate(ask(list(range(len(asked))))))  # the second round finds what the first has cached
    line: dict[str, Any] = {"equal": {}, "difference": 0.0, "t": {}}
    for number, (tokens, log_probs) in found.items():
        own = wanted[number]
        same = next((i for i, (a, b) in enumerate(zip(tokens, own["tokens"], strict=False)) if a != b), NEW)
        line["equal"][str(LENGTHS[number])], line["t"][str(LENGTHS[number])] = same, own["t"]
        line["difference"] = max(
            [line["difference"], *(abs(a - b) for a, b in zip(log_probs[:same], own["log_probs"], strict=False))]
        )
    line["within"] = {str(number): found[number] for number in within if number in found}
    return line


def chosen(output: Any) -> list[float]:
    """The log-probability of each token of an answer."""
    return [step[token].logprob for token, step in zip(output.token_ids, output.logprobs, strict=True)]


def check(folder: Path, cases: list[str]) -> None:
    path = folder / RESULTS
    for case in cases or list(CASES):
        if not (folder / CASES[case][0]).exists():
            continue
        environment = os.environ | CASES[case][3] | {"LONGWAVE_CASE": case}
        done = subprocess.run(
            [sys.executable, __file__, "one", str(folder)], env=environment, capture_output=True, text=True
        )
        known = json.loads(path.read_text()) if path.exists() else {}
        last = done.stdout.strip().splitlines()
        known[case] = json.loads(last[-1]) if done.returncode == 0 else {"error": done.stderr[-3000:]}
        path.write_text(json.dumps(known, indent=1))
        shown = {key: value for key, value in known[case].items() if key != "within"}
        print(case, "|", json.dumps(shown) if "error" not in shown else shown["error"], flush=True)
    compare(json.loads(path.read_text()))


def compare(known: dict[str, Any]) -> None:
    """Texts within L against plain vLLM, case by case: bit for bit."""
    for case, line in known.items():
        kinds = [kind for kind in ("neox", "heads", "compiled", "V2", "bfloat16") if kind in case]
        plain = known.get(", ".join(["plain vLLM", *kinds]), {}).get("within")
        if plain and line.get("within") and "tensor" not in case:  # two processes add in another order
            print(f"{case}: within L {'equal to' if line['within'] == plain else 'OTHER THAN'} plain vLLM")


if __name__ == "__main__":
    for name, value in {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR",
    }.items():  # fmt: skip
        os.environ.setdefault(name, value)
    what, where, *rest = sys.argv[1:]
    if what == "make":
        make(
            Path(where),
            **{name: Path(path) for name, path in zip(MODELS, rest, strict=False) if path != "-"},
        )
    elif what == "one":
        print(json.dumps(run(Path(where), os.environ["LONGWAVE_CASE"])))
    else:
        check(Path(where), rest)
