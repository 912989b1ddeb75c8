"""`longwave.train` and `longwave train`: folders, records, settings and errors."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, TrainerCallback
from transformers.utils.logging import enable_progress_bar

import longwave
from longwave.cli.main import main
from longwave.extensions.steering import steering_of
from longwave.methods import METHODS
from longwave.training.config import RESERVED, TrainConfig
from longwave.training.metrics import read_metrics
from longwave.training.prepare import attach_method


@pytest.fixture
def base(llama, tokenizer, tmp_path: Path) -> Path:
    llama.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.slow
def test_result_folder(base, train, book):
    folder = train(base, weight_decay=0.01)
    assert sorted(path.name for path in folder.iterdir()) == [
        "longwave.json", "longwave.safetensors", "metrics.jsonl", "model", "tokenizer.json",
        "tokenizer_config.json", "training.json",
    ]  # fmt: skip
    record = json.loads((folder / "training.json").read_text())
    assert record["status"] == "finished"
    assert record["model"] == str(base)
    assert record["data"] == {str(book): hashlib.sha256(book.read_bytes()).hexdigest()}
    assert record["config"]["weight_decay"] == 0.01
    assert {"torch", "transformers", "longwave"} <= record["versions"].keys()
    assert (record["seed"], record["result"]["steps"], record["result"]["tokens"]) == (0, 3, 3 * 4 * 48)
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert list(rows[0]) == [
        "step", "loss", "lr", "field_lr", "grad_norm", "field_grad_norm", "tokens", "factors", "positions", "seconds",
    ]  # fmt: skip
    model, tokenizer = longwave.load(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.use_cache
    ids = tokenizer("12 sheep", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=4, do_sample=False).shape == (1, 12)


@pytest.mark.slow
def test_baselines_train_on_the_same_draws(llama, train):
    histories = {}
    for method in ("none", "linear", "ntk", "yarn", "ntk@ceiling", "clex"):
        folder = train(copy.deepcopy(llama), method, method=method)
        histories[method] = read_metrics(folder / "metrics.jsonl")
        assert longwave.rotaries(longwave.load(folder))[0].trajectory.name == method.partition("@")[0]
    draws = {name: [(row["factors"], row["positions"]) for row in rows] for name, rows in histories.items()}
    assert all(found == draws["clex"] for found in draws.values())
    assert len({rows[-1]["loss"] for rows in histories.values()}) == 5  # a schedule changes nothing in training
    assert all(row["field_lr"] == 0.0 for row in histories["ntk"])


@pytest.mark.slow
def test_checkpoints_can_be_kept(llama, train):
    folder = train(llama, steps=6, save_every=2, keep_checkpoints=True)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["checkpoint-4", "checkpoint-6"]
    state = load_file(folder / "checkpoints" / "checkpoint-6" / "model.safetensors")
    assert torch.equal(state["model.norm.weight"], longwave.load(folder).model.norm.weight)


@pytest.mark.slow
def test_a_result_is_taken_further(llama, train):
    first = train(llama, "first", prior="ntk", log_n=0.5)
    learned = load_file(first / "longwave.safetensors")
    second = train(first, "second", max_factor=16, steps=1, warmup=1.0)  # one step at rate zero
    again = load_file(second / "longwave.safetensors")
    assert all(torch.equal(again[name], value) for name, value in learned.items())
    settings = json.loads((second / "longwave.json").read_text())
    assert (settings["max_factor"], settings["log_n"], settings["options"]["prior"]) == (16.0, 0.5, "ntk")
    with pytest.raises(ValueError, match="learned its frequencies with prior 'ntk', not 'yarn'"):
        train(first, "third", prior="yarn")
    other = longwave.load(train(first, "ntk", method="ntk", steps=1))
    assert longwave.rotaries(other)[0].trajectory.name == "ntk"


@pytest.mark.slow
def test_a_result_taken_further_has_one_original_length(llama, train):
    first = train(llama, "first", method="ntk", original_length=32)
    for method, given, expected in (("ntk", None, 32), ("yarn", None, 32), ("ntk", 48, 48)):
        model = longwave.load(first)
        config = TrainConfig.create(method=method, train_length=32, max_factor=8, original_length=given)
        sampler = attach_method(model, config)
        assert sampler.original_length == longwave.rotaries(model)[0].trajectory.rope.original_length == expected
    learned = train(llama, "learned", original_length=32)
    with pytest.raises(ValueError, match="learned its frequencies with original_length 32, not 64"):
        train(learned, "changed", original_length=64)


def test_a_schedule_is_carried_over_unless_it_is_given(llama, train):
    first = train(llama, "first", method="clex@ceiling")
    specs = []
    for method in ("clex", "clex@continuous", "yarn"):
        model = longwave.load(first)
        attach_method(model, TrainConfig.create(method=method, train_length=48, max_factor=8))
        specs.append(longwave.rotaries(model)[0].schedule.spec)
    assert specs == ["ceiling", "continuous", "continuous"]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"train_factor": 64}, {"max_factor": 16}, {"method": "yarn"}])
def test_what_happens_beyond_the_largest_factor_is_kept(llama, train, settings):
    """A model that clamps goes on to clamp when it was trained further, in memory and in the folder."""
    longwave.extend(llama, "ntk", max_factor=8, beyond="clamp")
    first = train(llama, "first", **({"method": "ntk"} | settings))
    assert longwave.rotaries(llama)[0].beyond == "clamp"
    second = train(first, "second", **({"method": "ntk"} | settings))
    for folder in (first, second):
        assert json.loads((folder / "longwave.json").read_text())["beyond"] == "clamp"


def test_recipes_lose_against_what_is_given():
    needed = {"train_length": 64, "max_factor": 4}
    recipe = METHODS["clex-paper"].recipe
    assert TrainConfig.create(method="clex-paper", **needed).positions == recipe["positions"] == "random"
    config = TrainConfig.create(method="clex-paper", positions="uniform", factors=None, **needed)
    assert (config.positions, config.factors) == ("uniform", "integer")
    assert TrainConfig.create(**needed).positions == "chunks"


def test_arguments_of_extend_are_no_options_of_a_method():
    assert set(inspect.signature(longwave.extend).parameters) - {"options"} == set(RESERVED)


@pytest.mark.parametrize("method", list(METHODS))
def test_recipes_name_settings_that_exist(method):
    TrainConfig.create(method=method, train_length=64, max_factor=4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "yran"}, "unknown method 'yran'. Did you mean 'yarn'"),
        ({"method": "clex", "prior": "none"}, "unknown clex prior 'none'"),
        ({"method": "ntk", "prior": "yarn"}, "ntk has no option .prior."),
        ({"max_factor": 0.5}, "max factor must be a number >= 1, got 0.5"),
        ({"max_factor": None}, "training needs max factor"),
        ({"train_length": 1}, "train length must be at least 2, got 1"),
        ({"train_length": 1000}, "a training window of 1000 tokens is 15.62 times the original length 64"),
        ({"train_length": 100_000, "max_factor": 2000}, "a row of 100000 tokens is more than the data holds"),
        ({"positions": "sorted"}, "positions must be one of chunks, random, uniform, none, got 'sorted'"),
        ({"chunks": 49}, "chunks must be at most the row length, 48, got 49"),
        ({"row_length": 49}, "row length must be at most the train length, 48, the longest real window, got 49"),
        ({"row_length": "2x", "long_share": 0.5}, r"at most the train length, 48, .* got 2x \(128 tokens\)"),
        ({"row_length": "0x"}, "row length must be tokens such as 512, or 2x for twice L, at least 2, got '0x'"),
        ({"row_length": "long"}, "row length must be tokens such as 512, .* got 'long'"),
        ({"row_length": 24}, "train length 48 is never reached: rows have 24 tokens, and long share is 0"),
        ({"long_share": 0.5}, "long share cuts real windows of at least 2 x 48 tokens, and train length, .* is 48"),
        ({"train_length": 384, "row_length": 48, "long_share": 1.0, "batch_size": 1}, "a batch size of at least 2"),
        ({"train_length": 768, "row_length": 48, "long_share": 0.5}, "a training window of 768 tokens is 12 times"),
        ({"least_factor": 9}, "least factor 9 leaves no factor to draw: the largest one is 8"),
        ({"least_factor": 0.5}, "least factor must be a number >= 1, got 0.5"),
        ({"short_share": 2}, "short share must be between 0 and 1, got 2"),
        ({"lr": float("nan")}, "lr must be a number >= 0, got nan"),
        ({"options": {"beyond": "clamp"}}, "beyond is no option of a method"),
        ({"leraning_rate": 1}, "unknown training setting 'leraning_rate'. Available: accumulation"),
        ({"method": "ntk", "freeze_weights": True}, "leaves nothing to train: ntk has no learned frequencies"),
        ({"data": ["/does/not/exist"]}, "data /does/not/exist does not exist"),
    ],
)
def test_bad_input_is_one_line_and_touches_nothing(llama, train, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        train(llama, **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_dropout_of_attention_weights_is_refused_beside_an_attention_method(llama, train, tmp_path):
    llama.config.attention_dropout = 0.1
    message = r"two-band drops no attention weights, and config.json of the model says attention_dropout 0.1\. Set it"
    with pytest.raises(ValueError, match=message):
        train(llama, method="two-band", lora="none", train_length=128)
    assert not (tmp_path / "out").exists() and longwave.extensions.handle.find_extension(llama) is None


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_an_error_before_the_first_step_leaves_the_model_as_it_was(llama, train, book, training, checkpointing):
    llama.train(training)
    if checkpointing:
        llama.activation_checkpointing_enable()
    llama.config.use_cache = not checkpointing
    short = book.with_name("short.txt")
    short.write_text(book.read_text()[:200])
    with pytest.raises(ValueError, match="Pass more --data"):
        train(
            llama, freeze_weights=True, train_length=512, row_length=48, long_share=0.5, log_n=1.0,
            log_n_count="keys", batch_size=64, data=[short],
            gradient_checkpointing=True,
        )  # fmt: skip
    assert all(parameter.requires_grad for parameter in llama.parameters())
    assert not steering_of(llama).temperature.by_keys
    assert {module.training for module in llama.modules()} == {training}
    assert llama.is_activation_checkpointing is checkpointing
    assert llama.config.use_cache is not checkpointing


@pytest.mark.slow
@pytest.mark.parametrize("error", [False, True])
def test_an_error_in_a_step_leaves_the_model_as_it_was(llama, train, error):
    class Stops(TrainerCallback):
        def on_step_end(self, *_, **__):
            assert llama.training and llama.is_activation_checkpointing and not llama.config.use_cache
            if error:
                raise ValueError("stopped")

    llama.train()
    own = llama.forward.__func__
    with pytest.raises(ValueError, match="stopped") if error else nullcontext():
        train(llama, gradient_checkpointing=True, precision="bf16", callbacks=[Stops()])
    assert llama.training is error  # a trained model is ready to be used
    assert not llama.is_activation_checkpointing and llama.config.use_cache
    assert llama.forward.__func__ is own


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([1], "holds no JSON object, but a list"),
        ({}, "has no status of a run of longwave train. Write to another folder"),
        ({"status": "finished", "config": 3, "model": "m", "data": {}}, "has no config of a run"),
    ],
)
def test_a_record_that_is_damaged(base, train, tmp_path, record, message):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "training.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"training.json {message}"):
        train(base, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("row", ["{", "{}", "3"])
def test_a_damaged_row_of_metrics_names_the_file(base, train, row):
    folder = train(base)
    record = json.loads((folder / "training.json").read_text())
    (folder / "training.json").write_text(json.dumps(record | {"status": "running"}))
    (folder / "metrics.jsonl").write_text(row + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged.*\. Restore the file, or start the run again"):
        train(base, resume=True)


@pytest.mark.slow
def test_a_tuple_among_the_options_is_the_same_run(base, train):
    factors = tuple(1.0 + i for i in range(8))
    for given in (factors, list(factors)):
        train(base, method="longrope", options={"long_factor": given}, resume=True)


def test_a_foreign_tokenizer_is_noticed(llama, train):
    llama.resize_token_embeddings(40)
    with pytest.raises(ValueError, match=r"ids reach \d+ but the model knows 40"):
        train(llama)


@pytest.mark.slow
def test_output_that_is_not_empty(base, train):
    folder = train(base)
    stamp = (folder / "training.json").read_bytes()
    with pytest.raises(ValueError, match="not empty"):
        train(base)
    with pytest.raises(ValueError, match="does not exist"):
        train(base, data=["absent"], overwrite=True)
    assert (folder / "training.json").read_bytes() == stamp
    train(base, overwrite=True, steps=2)
    assert len(read_metrics(folder / "metrics.jsonl")) == 2


@pytest.mark.slow
def test_overwrite_spares_what_the_run_reads(base, train, book):
    folder = train(base)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    reads = [(folder, [book]), (folder / "model", [book]), (base, [folder / "metrics.jsonl"]), (base, [folder.parent])]
    for model, data in reads:
        with pytest.raises(ValueError, match="read by this run and part of its output") as caught:
            train(model, data=data, overwrite=True)
        assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["model", "checkpoints"])
def test_overwrite_spares_folders_of_others(llama, train, tmp_path, name):
    precious = tmp_path / "out" / name / "precious"
    precious.mkdir(parents=True)
    (tmp_path / "out" / "training.json").write_text('{"epochs": 3}')  # somebody else's
    with pytest.raises(ValueError, match=rf"{name} was not written by longwave"):
        train(llama, overwrite=True)
    assert precious.exists()


@pytest.mark.slow
def test_a_folder_that_lost_its_result_is_not_finished(llama, train):
    start = copy.deepcopy(llama)
    folder = train(llama)
    (folder / "longwave.json").unlink()  # the first thing that --overwrite deletes
    train(start, resume=True)
    assert (folder / "longwave.json").exists()


@pytest.mark.slow
def test_command_line(base, book, tmp_path, capsys):
    # fmt: off
    arguments = [
        "train", str(base), "--data", str(book), "--train-length", "48", "--max-factor", "8", "--steps", "3",
        "--batch-size", "2", "--output", str(tmp_path / "out"), "--option", "steps=4", "--option", "activation=tanh",
        "--log-n", "0", "--positions", "uniform", "--gradient-checkpointing", "--json", "--method", "clex",
    ]
    # fmt: on
    assert main(arguments) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["output"] == str(tmp_path / "out")
    assert summary["steps"] == 3
    settings = json.loads((tmp_path / "out" / "longwave.json").read_text())
    assert (settings["options"]["steps"], settings["options"]["activation"]) == (4, "tanh")
    assert settings["log_n"] == 0
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record["config"]["positions"] == "uniform"
    assert record["config"]["gradient_checkpointing"] is True

    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "is not empty" in error
    assert error.count("\n") == 1
    assert main([*arguments[:4], "--output", str(tmp_path / "x")]) == 2  # --train-length is required
    assert main([*arguments, "--positions", "sorted"]) == 2


@pytest.mark.slow
def test_the_library_is_silent_at_a_terminal(base, book, tmp_path, capsys, monkeypatch):
    """Its bars for loading and writing weights would stand between those of the run."""
    enable_progress_bar()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    arguments = ["train", base, "--data", book, "--train-length", 48, "--max-factor", 8, "--steps", 1]
    arguments += ["--method", "clex", "--batch-size", 2, "--output", tmp_path / "out"]
    assert main([str(each) for each in arguments]) == 0
    given = capsys.readouterr()
    assert "1 steps" in given.out
    assert "Loading weights" not in given.err and "Writing model shards" not in given.err


@pytest.mark.slow
def test_progress_without_a_terminal(llama, train, capfd):
    train(llama, progress=True)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("step ")]
    assert len(lines) == 3
    assert all(word in lines[-1] for word in ("step 3/3", "loss", "t ", "tokens/s"))
