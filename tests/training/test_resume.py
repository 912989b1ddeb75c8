"""An interrupted run that goes on is the uninterrupted run, bit for bit."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from interrupted import STEPS, Stop, command, exact, same_result
from safetensors.torch import load_file, save_file

from longwave.training.checkpoints import checkpoints, publish
from longwave.training.config import TrainConfig
from longwave.training.manifest import MANIFEST
from longwave.training.metrics import MetricsLog, read_metrics
from longwave.training.ranks import Ranks


@pytest.mark.slow
@pytest.mark.parametrize("method", ["clex", "ntk"])
def test_resumed_in_process(llama, train, tmp_path, method):
    llama.config.attention_dropout = 0.1  # global random numbers have to go on where they were, too
    for layer in llama.model.layers:
        layer.self_attn.attention_dropout = 0.1
    start = copy.deepcopy(llama)
    whole = train(copy.deepcopy(start), "whole", method=method, **STEPS)
    with pytest.raises(KeyboardInterrupt):
        train(copy.deepcopy(start), "broken", method=method, callbacks=[Stop(10)], **STEPS)
    broken = tmp_path / "broken"
    assert [path.name for path in checkpoints(broken / "checkpoints")] == ["checkpoint-4", "checkpoint-8"]
    assert len(read_metrics(broken / "metrics.jsonl")) == 10
    # what a kill in the middle of a write leaves behind
    (broken / "checkpoints" / ".partial" / "checkpoint-12").mkdir(parents=True)
    (broken / "checkpoints" / "checkpoint-12").mkdir()
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "lo')

    assert train(copy.deepcopy(start), "broken", method=method, resume=True, **STEPS) == broken
    assert exact(broken / "metrics.jsonl") == exact(whole / "metrics.jsonl")
    assert len({tuple(row["factors"]) for row in exact(broken / "metrics.jsonl")}) == 12
    same_result(whole, broken)
    assert not (broken / "checkpoints").exists()


@pytest.mark.slow
def test_tied_weights_go_on_without_a_word(llama, train, caplog, monkeypatch):
    """safetensors keeps a tensor with two names once; the Trainer would call the other name missing."""
    llama.config.tie_word_embeddings = True
    llama.tie_weights()
    assert llama.lm_head.weight is llama.model.embed_tokens.weight
    start = copy.deepcopy(llama)
    whole = train(copy.deepcopy(start), "whole", **STEPS)
    with pytest.raises(KeyboardInterrupt):
        train(copy.deepcopy(start), "broken", callbacks=[Stop(10)], **STEPS)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    broken = train(copy.deepcopy(start), "broken", resume=True, **STEPS)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    same_result(whole, broken)


@pytest.mark.slow
def test_a_checkpoint_without_all_weights_is_not_filled_up(llama, train, tmp_path):
    start = copy.deepcopy(llama)
    with pytest.raises(KeyboardInterrupt):
        train(llama, callbacks=[Stop(5)], **STEPS)
    path = tmp_path / "out" / "checkpoints" / "checkpoint-4" / "model.safetensors"
    (path.parent / MANIFEST).unlink()  # as of an older version: with a manifest the change is found before
    tensors = load_file(path)
    lost = tensors.pop("model.norm.weight")
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"not of this model: model\.norm\.weight is missing\. Remove it"):
        train(copy.deepcopy(start), resume=True, **STEPS)
    save_file(tensors | {"model.norm.weight": lost, "other": lost.clone()}, path)
    with pytest.raises(ValueError, match="other is unknown"):
        train(start, resume=True, **STEPS)


@pytest.mark.slow
def test_loading_processes_change_nothing(llama, train):
    settings = {**STEPS, "steps": 4, "train_length": 96, "row_length": 48, "long_share": 0.5}
    alone = train(copy.deepcopy(llama), "alone", **settings)
    helped = train(copy.deepcopy(llama), "helped", workers=2, **settings)
    assert exact(alone / "metrics.jsonl") == exact(helped / "metrics.jsonl")
    same_result(alone, helped)


@pytest.mark.slow
def test_resume_of_another_run_is_refused(llama, train, book, tmp_path, monkeypatch):
    start = copy.deepcopy(llama)
    with pytest.raises(KeyboardInterrupt):
        train(llama, callbacks=[Stop(5)], **STEPS)
    with pytest.raises(ValueError, match=r"seed 0 -> 1; chunks 4 -> 2\. Start another") as caught:
        train(start, resume=True, seed=1, chunks=2, **STEPS)
    assert "\n" not in str(caught.value)
    other = tmp_path / "other.txt"
    other.write_text(book.read_text()[::-1])
    with pytest.raises(ValueError, match="the data are not the same"):
        train(start, resume=True, data=[other], **STEPS)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match=r"2 micro-batches, which 3 processes cannot share .* processes: 1, 2\."):
        train(start, resume=True, **STEPS)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(ValueError, match=r"accumulation 2 -> 4\. A step has 2 micro-batches"):
        train(start, resume=True, **{**STEPS, "accumulation": 4})


def test_the_record_of_an_older_version_goes_on_where_its_draws_are_the_same():
    config = TrainConfig.create(train_length=48, max_factor=8)
    old = {"config": {"accumulation": 1}, "world_size": 1}
    assert Ranks.going_on(config, old) == Ranks(1, 1, 1)
    for drawn_otherwise in ({"config": {"accumulation": 2}}, {"config": {}, "world_size": 2}):
        with pytest.raises(ValueError, match="begun by another version of longwave"):
            Ranks.going_on(config, drawn_otherwise)


def test_a_step_keeps_its_micro_batches_with_any_number_of_processes(monkeypatch):
    config = TrainConfig.create(train_length=48, max_factor=8, accumulation=2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    begun = Ranks.of(config)
    record = {"config": {"accumulation": begun.begun}, **begun.record}
    for processes, accumulation in ((1, 4), (4, 1), (2, 2)):
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        on = Ranks.going_on(config, record)  # by the same command each time
        assert (on.processes, on.accumulation, on.per_step) == (processes, accumulation, 4)
        record = {"config": {"accumulation": on.begun}, **on.record}


@pytest.mark.slow
def test_resume_starts_what_has_not_begun_and_leaves_what_is_done(llama, train):
    folder = train(llama, resume=True)
    before = (folder / "longwave.safetensors").stat().st_mtime_ns
    assert train(llama, resume=True) == folder
    assert (folder / "longwave.safetensors").stat().st_mtime_ns == before


def test_metrics_log_drops_what_lies_beyond_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 8)) + '{"st')
    log = MetricsLog(path, 4)
    log.append({"step": 5})
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4, 5]
    MetricsLog(path)
    assert read_metrics(path) == []


def test_publish_keeps_the_newest(tmp_path):
    for step in (2, 10, 9):  # numbers, not names: checkpoint-10 is newer than checkpoint-9
        staged = tmp_path / ".partial" / f"checkpoint-{step}"
        staged.mkdir(parents=True)
        (staged / "trainer_state.json").write_text("{}")
        publish(tmp_path, staged.name, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10"]
    assert not (tmp_path / ".partial").exists()


def kill_while_deleting(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The process ends when it has deleted one file of the folder `name`, by whatever name it goes then."""
    delete = shutil.rmtree

    def killed(path, *arguments, **options):
        if Path(path).name.strip(".") != name or not Path(path).exists():
            return delete(path, *arguments, **options)
        min(file for file in Path(path).rglob("*") if file.is_file()).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)


def test_a_half_deleted_checkpoint_does_not_count(tmp_path, monkeypatch):
    kill_while_deleting(monkeypatch, "checkpoint-1")
    for step in (1, 2, 3):
        staged = tmp_path / ".partial" / f"checkpoint-{step}"
        staged.mkdir(parents=True)
        (staged / "model.safetensors").touch()
        (staged / "trainer_state.json").touch()
        if step < 3:
            publish(tmp_path, staged.name, keep=2)
    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path, staged.name, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-3"]


@pytest.mark.slow
def test_a_run_killed_while_it_deletes_its_checkpoints_is_finished(llama, train, tmp_path, monkeypatch):
    start, out = copy.deepcopy(llama), tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill_while_deleting(patch, "checkpoints")
        train(llama)
    before = (out / "longwave.safetensors").stat().st_mtime_ns
    assert train(start, resume=True) == out
    assert (out / "longwave.safetensors").stat().st_mtime_ns == before
    assert json.loads((out / "training.json").read_text())["status"] == "finished"
    assert not any("checkpoints" in path.name for path in out.iterdir())


@pytest.mark.slow
def test_killed_with_sigkill(llama, tokenizer, book, tmp_path):
    """The command line, killed without warning and started again with --resume."""
    llama.config.attention_dropout = 0.1
    llama.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(tmp_path / "base", book, whole), check=True, **quiet)

    process = subprocess.Popen(command(tmp_path / "base", book, killed), **quiet)
    deadline = time.monotonic() + 120
    while len(read_metrics(killed / "metrics.jsonl")) < 25 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 25 <= len(read_metrics(killed / "metrics.jsonl")) < 60
    assert not (killed / "longwave.json").exists()

    subprocess.run(command(tmp_path / "base", book, killed, "--resume"), check=True, **quiet)
    assert exact(killed / "metrics.jsonl") == exact(whole / "metrics.jsonl")
    assert [row["step"] for row in exact(killed / "metrics.jsonl")] == list(range(1, 61))
    same_result(whole, killed)


@pytest.mark.slow
def test_an_adapter_taken_further_and_killed_goes_on(llama, tokenizer, book, tmp_path):
    """The same for scalars and a LoRA by default, in a run that goes on with those of an earlier one."""
    llama.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    windows = ("--method", "two-band", "--train-length", "128", "--batch-size", "2")
    first, whole, killed = (tmp_path / name for name in ("first", "whole", "killed"))
    subprocess.run(command(tmp_path / "base", book, first, *windows, "--steps", "2"), check=True, **quiet)
    further = *windows, "--steps", "24", "--save-every", "6"
    subprocess.run(command(first, book, whole, *further), check=True, **quiet)

    process = subprocess.Popen(command(first, book, killed, *further), **quiet)
    deadline = time.monotonic() + 120
    while len(read_metrics(killed / "metrics.jsonl")) < 8 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 8 <= len(read_metrics(killed / "metrics.jsonl")) < 24

    subprocess.run(command(first, book, killed, *further, "--resume"), check=True, **quiet)
    assert exact(killed / "metrics.jsonl") == exact(whole / "metrics.jsonl")
    same_result(whole, killed, "longwave.safetensors", "adapter/adapter_model.safetensors")
    assert not (killed / "model").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_are_one_run(llama, tokenizer, book, tmp_path):
    """Under torchrun (gloo): resumed it is the uninterrupted run; one process alone goes on with the same draws."""
    llama.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")

    def start(output: Path, *extra: str, processes: int = 2) -> None:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        more = "--steps", "6", "--save-every", "3", "--keep-checkpoints", *extra
        line = [sys.executable, *torchrun, *command(tmp_path / "base", book, output, *more)[1:]]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr

    whole = tmp_path / "whole"
    start(whole)
    record = json.loads((whole / "training.json").read_text())
    assert record["world_size"] == 2
    assert record["result"]["tokens"] == 2 * 6 * 4 * 48
    for processes in (2, 1):
        broken = shutil.copytree(whole, tmp_path / f"with {processes}")  # as a kill after step 3 leaves it
        (broken / "training.json").write_text(json.dumps(record | {"status": "running"}))
        shutil.rmtree(broken / "checkpoints" / "checkpoint-6")
        start(broken, "--resume", processes=processes)
        if processes == 2:
            assert exact(broken / "metrics.jsonl") == exact(whole / "metrics.jsonl")
            same_result(whole, broken)
            continue
        for mine, other in zip(exact(broken / "metrics.jsonl"), exact(whole / "metrics.jsonl"), strict=True):
            assert all(mine[name] == other[name] for name in ("step", "tokens", "factors", "positions"))
            assert mine["loss"] == pytest.approx(other["loss"], rel=1e-5)


# Forks one process after another that goes on with the run, and kills each in or after a save. All of them share one
# import of the library.
KILLS = """
import os, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from longwave.cli.main import main
import longwave.training.run
from longwave.training.checkpoints import named
from longwave.training.manifest import MANIFEST, damage
from longwave.training.metrics import read_metrics

out, arguments = Path(sys.argv[1]), sys.argv[2:]

def start():
    if (child := os.fork()) == 0:
        os._exit(main(arguments))
    return child

for index in range(12):
    child, before = start(), len(read_metrics(out / "metrics.jsonl"))
    while len(read_metrics(out / "metrics.jsonl")) < before + 1 and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.001)
    time.sleep(index * 0.003)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = named(out / "checkpoints")
    assert len(found) <= 3, found
    assert all(damage(path) is None and (path / MANIFEST).is_file() for path in found), index
sys.exit(os.waitstatus_to_exitcode(os.waitpid(start(), 0)[1]))
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_killed_in_a_dozen_saves(llama, tokenizer, book, tmp_path):
    """Each step makes a checkpoint. Whenever the kill comes, a checkpoint with a name is whole, and few are lost."""
    llama.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    settings = "--save-every", "1", "--method", "ntk", "--steps", "80"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(tmp_path / "base", book, whole, *settings), check=True, capture_output=True, env=environment)
    arguments = command(tmp_path / "base", book, killed, *settings, "--resume")[3:]
    line = [sys.executable, "-c", KILLS, str(killed), *arguments]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=360)
    assert done.returncode == 0, done.stderr
    assert exact(killed / "metrics.jsonl") == exact(whole / "metrics.jsonl")
    same_result(whole, killed)
