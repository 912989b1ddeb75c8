"""A run that is asked to stop makes a checkpoint, says `stopped`, and goes on bit for bit."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from interrupted import QUICK, command, exact, same_result
from transformers import TrainerCallback

from longwave.training.checkpoints import checkpoints
from longwave.training.manifest import damage
from longwave.training.metrics import read_metrics
from longwave.training.stopping import Stopped


class Signal(TrainerCallback):
    """Sends signals to this process in the middle of a step."""

    def __init__(self, step: int, *numbers: int) -> None:
        self.step, self.numbers = step, numbers

    def on_pre_optimizer_step(self, args, state, control, **others):
        if state.global_step == self.step:
            for number in self.numbers:
                os.kill(os.getpid(), number)


class Enough(TrainerCallback):
    """Ends the training as an early stop does."""

    def on_log(self, args, state, control, **others):
        if state.global_step == 3:
            control.should_training_stop = True


def record(folder: Path) -> dict:
    return json.loads((folder / "training.json").read_text())


def goes_on(train, start, out: Path) -> None:
    whole = train(copy.deepcopy(start), "whole", **QUICK)
    assert train(copy.deepcopy(start), resume=True, **QUICK) == out
    assert record(out)["status"] == "finished"
    assert "step" not in record(out)
    assert exact(out / "metrics.jsonl") == exact(whole / "metrics.jsonl")
    same_result(whole, out)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_makes_a_checkpoint(llama, train, tmp_path, caplog, number, code):
    start, out = copy.deepcopy(llama), tmp_path / "out"
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Stopped, match=f"stopped by {number.name} after step 3 of 6") as caught:
        train(llama, callbacks=[Signal(2, number)], **QUICK)
    assert (caught.value.code, caught.value.step) == (code, 3)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    assert f"{number.name}: the run stops after this step and makes a checkpoint" in caplog.text
    assert [record(out)[name] for name in ("status", "step", "stopped_by")] == ["stopped", 3, number.name]
    assert [path.name for path in checkpoints(out / "checkpoints")] == ["checkpoint-2", "checkpoint-3"]
    assert not (out / "longwave.json").exists()
    goes_on(train, start, out)


def test_a_second_interrupt_stops_at_once(llama, train, tmp_path):
    with pytest.raises(KeyboardInterrupt) as caught:
        train(llama, callbacks=[Signal(2, signal.SIGINT, signal.SIGINT)], **QUICK)
    assert not isinstance(caught.value, Stopped)
    assert record(tmp_path / "out")["status"] == "running"
    assert len(read_metrics(tmp_path / "out" / "metrics.jsonl")) == 2
    assert [path.name for path in checkpoints(tmp_path / "out" / "checkpoints")] == ["checkpoint-2"]


def test_a_launcher_may_repeat_sigterm(llama, train):
    with pytest.raises(Stopped, match="SIGTERM after step 3"):
        train(llama, callbacks=[Signal(2, *[signal.SIGTERM] * 3)], **QUICK)


def test_a_signal_in_the_last_step_finishes(llama, train):
    folder = train(llama, callbacks=[Signal(5, signal.SIGTERM)], **QUICK)
    assert record(folder)["status"] == "finished"


@pytest.mark.slow
def test_stopped_by_a_callback_is_not_finished(llama, train, tmp_path):
    start, out = copy.deepcopy(llama), tmp_path / "out"
    assert train(llama, callbacks=[Enough()], **QUICK) == out
    assert [record(out)[name] for name in ("status", "step", "stopped_by")] == ["stopped", 3, "callback"]
    assert [path.name for path in checkpoints(out / "checkpoints")] == ["checkpoint-2", "checkpoint-3"]
    assert not (out / "longwave.json").exists()
    goes_on(train, start, out)


def wait_for_rows(folder: Path, rows: int) -> None:
    deadline = time.monotonic() + 120
    while len(read_metrics(folder / "metrics.jsonl")) < rows and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_command_stops_with_all_its_processes(llama, tokenizer, book, tmp_path):
    """As a cluster does it: SIGTERM to every process, also to those that load data."""
    llama.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole, out = tmp_path / "whole", tmp_path / "out"
    subprocess.run(command(tmp_path / "base", book, whole), check=True, capture_output=True, env=environment)
    line = command(tmp_path / "base", book, out, "--workers", "2")
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    wait_for_rows(out, 12)
    begun = time.time()
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    rows = read_metrics(out / "metrics.jsonl")
    assert process.returncode == 143, said
    assert record(out)["status"] == "stopped"
    assert record(out)["step"] == len(rows) < 60
    newest = checkpoints(out / "checkpoints")[-1]
    assert newest.name == f"checkpoint-{len(rows)}"
    assert damage(newest) is None
    assert (newest / "manifest.json").stat().st_mtime - (time.time() - (time.monotonic() - begun)) < rows[-1][
        "seconds"
    ] + 5
    last = said.strip().splitlines()[-1]
    assert last == (
        f"stopped by SIGTERM after step {len(rows)} of 60: "
        "the same command with --resume goes on from the last checkpoint"
    )
    subprocess.run([*line, "--resume"], check=True, capture_output=True, env=environment)
    assert exact(out / "metrics.jsonl") == exact(whole / "metrics.jsonl")
    same_result(whole, out)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_ranks_stop_at_the_same_step(llama, tokenizer, book, tmp_path):
    """SIGTERM to one rank; and, as the run goes on, to torchrun, which passes it on."""
    llama.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    def line(output: Path) -> list[str]:
        return torchrun + command(tmp_path / "base", book, output, "--method", "ntk")[1:]

    whole, out = tmp_path / "whole", tmp_path / "out"
    subprocess.run(line(whole), check=True, capture_output=True, env=environment, timeout=240)
    for rows, to_one in ((6, True), (30, False)):
        process = subprocess.Popen([*line(out), "--resume"], stderr=subprocess.PIPE, text=True, env=environment)
        wait_for_rows(out, rows)
        ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(ranks[-1]) if to_one else process.pid, signal.SIGTERM)
        _, said = process.communicate(timeout=120)
        assert process.returncode != 0
        step = record(out)["step"]
        assert rows <= step < 60
        assert [record(out)[name] for name in ("status", "stopped_by")] == ["stopped", "SIGTERM"], said
        assert f"stopped by SIGTERM after step {step} of 60" in said
        newest = checkpoints(out / "checkpoints")[-1]
        assert newest.name == f"checkpoint-{step}"
        assert damage(newest) is None
    subprocess.run([*line(out), "--resume"], check=True, capture_output=True, env=environment, timeout=240)
    assert exact(out / "metrics.jsonl") == exact(whole / "metrics.jsonl")
    same_result(whole, out)
