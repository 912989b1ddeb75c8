"""During a run: perplexity on held-out text, a loss that leaves its level, trackers, and the page."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from interrupted import Stop
from safetensors.torch import load_file
from transformers import TrainerCallback

import longwave
from longwave.cli.main import main
from longwave.data.documents import read_documents
from longwave.data.tokens import token_stream
from longwave.extensions.handle import extension
from longwave.report.html import page
from longwave.report.live import LivePage
from longwave.report.sources import read_training
from longwave.training.config import TrainConfig
from longwave.training.divergence import Diverged, StopOnDivergence
from longwave.training.metrics import read_metrics

RUNS = [
    {"method": "two-band", "train_length": 128, "batch_size": 2},
    {"method": "clex", "train_length": 48},
]


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    path = tmp_path / "held.txt"
    path.write_text("".join(f"{n} goats and {n + 2} sheep came down. " for n in range(60, 120)), "utf-8")
    return path


class Spy(TrainerCallback):
    """Notes how the model is after each step, when its perplexity has been measured."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        now = extension(model).dial.now
        self.seen.append((model.training, now.factor, now.beyond, now.grows, torch.get_rng_state().sum().item()))


@pytest.mark.slow
@pytest.mark.parametrize("settings", RUNS, ids=lambda settings: settings["method"])
def test_a_measurement_changes_nothing_and_is_that_of_the_command(
    settings, plain: Path, train, tokenizer, held_out: Path, tmp_path: Path
) -> None:
    spies = [Spy(), Spy()]
    without = train(plain, "without", steps=4, callbacks=[spies[0]], **settings)
    watched = {"eval_data": str(held_out), "eval_every": 2, "eval_lengths": "2x,3x", "eval_windows": 4}
    folder = train(plain, "with", steps=4, callbacks=[spies[1]], **watched, **settings)

    assert spies[0].seen == spies[1].seen and all(seen[0] for seen in spies[1].seen)
    rows = [read_metrics(each / "metrics.jsonl") for each in (without, folder)]
    drop = [[{key: row[key] for key in row if key != "seconds"} for row in found] for found in rows]
    assert drop[0] == drop[1]
    for weights in ("longwave.safetensors", "adapter/adapter_model.safetensors", "model/model.safetensors"):
        if (without / weights).exists():
            ours, theirs = load_file(folder / weights), load_file(without / weights)
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    found = read_metrics(folder / "eval.jsonl")
    assert [row["step"] for row in found] == [2, 4]
    model = longwave.load(folder)
    tokens = token_stream(read_documents([held_out]), tokenizer)
    alone = longwave.perplexity(model, tokens, "2x,3x", windows=4)
    for entry, own in zip(found[-1]["lengths"], alone.lengths, strict=True):
        assert (entry["length"], entry["factor"], entry["windows"]) == (own.length, own.factor, 4)
        assert entry["ppl"] == pytest.approx(own.ppl, rel=1e-5)
    assert main(["perplexity", str(folder), "--data", str(held_out), "--lengths", "2x,3x", "--windows", "4",
                 "--output", str(tmp_path / "ppl")]) == 0  # fmt: skip
    (row,) = json.loads((tmp_path / "ppl" / "perplexity.json").read_text())["rows"]
    assert [e["ppl"] for e in row["lengths"]] == pytest.approx([e["ppl"] for e in found[-1]["lengths"]], rel=1e-5)


@pytest.mark.slow
def test_rows_of_measurements_are_those_of_one_run_after_a_resume(plain: Path, train, held_out: Path) -> None:
    watched = {"eval_data": str(held_out), "eval_every": 1, "eval_lengths": "2x", "eval_windows": 2, "save_every": 2}

    class Stop(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step == 3:
                raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        train(plain, steps=5, callbacks=[Stop()], **watched)
    folder = train(plain, steps=5, resume=True, **watched)
    assert [row["step"] for row in read_metrics(folder / "eval.jsonl")] == [1, 2, 3, 4, 5]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eval_lengths": "32x"}, "eval lengths go up to max factor x 64 = 512, got 2048"),
        ({"eval_lengths": "far"}, "bad length 'far'"),
        ({"eval_data": "nowhere.txt"}, "nowhere.txt"),
        ({"eval_lengths": "8x", "eval_data": "short.txt"}, "eval data .*short.txt: "),
        ({"report_to": "wandb"}, r"--report-to wandb needs the package wandb. Run: pip install 'longwave\[wandb\]'"),
        ({"report_to": "board"}, "report to must be one of none, tensorboard, wandb, got 'board'"),
        ({"stop_steps": 0}, "stop steps must be at least 1"),
        (
            {"least_lr": 0.1, "lr_schedule": "constant"},
            "least lr ends a cosine, and lr schedule is constant",
        ),
    ],
)
def test_what_cannot_be_watched(settings, message: str, plain: Path, train, held_out: Path, tmp_path: Path) -> None:
    if settings.get("report_to") == "wandb":
        try:
            import wandb  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("wandb is installed")
    (tmp_path / "short.txt").write_text("a few words", "utf-8")
    given = {"eval_data": "held.txt", **settings}
    given["eval_data"] = str(tmp_path / given["eval_data"])
    with pytest.raises(ValueError, match=message):
        train(plain, **given)
    assert not (tmp_path / "out").exists()


def follow(stop: StopOnDivergence, losses: list[float]) -> None:
    for step, loss in enumerate(losses, 1):
        stop.follow(loss, step, Path("nowhere"))


@pytest.mark.slow
def test_a_loss_far_above_its_level_stops_a_run_and_scatter_does_not() -> None:
    def new(**settings: Any) -> StopOnDivergence:
        return StopOnDivergence(TrainConfig.create(train_length=128, max_factor=8, **settings))

    start = [7 * math.exp(-step / 20) + 2 for step in range(200)]
    follow(new(), [loss + (2.5 if step % 2 else 0) for step, loss in enumerate(start)])
    follow(new(), start + [9.0] * 19 + [2.0] + [9.0] * 19)
    follow(new(stop_rise=0.0), [*start, *[9.0] * 100])
    with pytest.raises(Diverged, match=r"the loss is 9 at step 220, and for 20 steps more than 3 above its level of 2"):
        follow(new(), start + [9.0] * 20)
    with pytest.raises(Diverged, match="at step 20, "):  # a run that goes on knows its level
        config = TrainConfig.create(train_length=128, max_factor=8)
        follow(StopOnDivergence(config, losses=start), [9.0] * 20)


@pytest.mark.slow
def test_a_diverged_run_keeps_the_checkpoint_from_before(plain: Path, train, tmp_path: Path, capsys) -> None:
    """The rate is raised in the middle of a run until the loss explodes; no checkpoint of the bad steps is kept."""

    class Spoil(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
            if state.global_step == 4:
                with torch.no_grad():
                    model.lm_head.weight.mul_(200)

    with pytest.raises(Diverged, match=r"Go on from checkpoint-4 \(--resume\) with a smaller lr"):
        train(plain, steps=20, save_every=2, stop_steps=5, callbacks=[Spoil()], lr=0.0, field_lr=0.0)
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record["status"] == "diverged" and "for 5 steps more than 3 above its level" in record["reason"]
    kept = sorted(path.name for path in (tmp_path / "out" / "checkpoints").glob("checkpoint-*"))
    assert kept == ["checkpoint-2", "checkpoint-4"]
    assert read_metrics(tmp_path / "out" / "metrics.jsonl")[-1]["step"] == 9
    folder = train(plain, steps=20, save_every=2, stop_steps=5, resume=True, lr=0.0, field_lr=0.0)
    assert json.loads((folder / "training.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_tensorboard_has_losses_and_perplexities(plain: Path, train, held_out: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train(plain, steps=2, report_to="tensorboard", eval_data=str(held_out), eval_lengths="2x", eval_windows=2)
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert {"train/loss", "train/grad_norm", "eval/ppl_128"} <= set(events.Tags()["scalars"])
    rows = read_metrics(folder / "metrics.jsonl")
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx([row["loss"] for row in rows])


@pytest.mark.slow
def test_the_page_is_refreshed_while_a_run_goes(plain: Path, train, held_out: Path, tmp_path: Path) -> None:
    live, pages = LivePage(tmp_path / "out", every=0.0), []

    class Look(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            found = tmp_path / "out" / "report.html"
            pages.append(found.read_text("utf-8") if found.exists() else None)
            live._next = 0.0  # not a hundred times as long as the last page took

    watched = {"eval_data": str(held_out), "eval_every": 1, "eval_lengths": "2x", "eval_windows": 2}
    folder = train(plain, steps=3, callbacks=[live, Look()], **watched)
    assert pages[0] is None and pages[-1] is not None and 'http-equiv="refresh"' in pages[-1]
    assert "held-out text while training" in pages[-1] and "one for each micro-batch" in pages[-1]
    assert "Trajectories z(t) of all pairs under clex, none" in pages[-1]
    live.close()
    last = (folder / "report.html").read_text("utf-8")
    assert 'http-equiv="refresh"' not in last and "3 steps" in last
    assert [path.name for path in folder.glob(".report*")] == []


def test_a_page_that_fails_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    live = LivePage(tmp_path / "out")
    for _ in range(2):
        live.write()
    assert len([record for record in caplog.records if "report.html was not written" in record.getMessage()]) == 1
    live.close()  # of a run that made no step
    LivePage(tmp_path).on_step_end(None, SimpleNamespace(is_world_process_zero=False), None)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_report_of_a_run_without_measurements(plain: Path, train) -> None:
    training = read_training(train(plain) / "metrics.jsonl")
    text = page([], trainings=[training])
    assert training.evaluated == [] and len(training.factors) == 3
    assert "one for each micro-batch" in text and "held-out" not in text


@pytest.mark.slow
def test_a_run_that_goes_on_knows_its_level(plain: Path, train, tmp_path: Path) -> None:
    """The loss is high from the first step after the resume: without the rows from before, that would be its level."""

    class Spoil(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
            if state.global_step == 4:
                with torch.no_grad():
                    model.lm_head.weight.mul_(200)

    settings = {"steps": 20, "save_every": 2, "lr": 0.0, "field_lr": 0.0}
    with pytest.raises(KeyboardInterrupt):
        train(plain, callbacks=[Stop(4)], **settings)
    with pytest.raises(Diverged, match=r"at step 9, and for 5 steps"):
        train(plain, callbacks=[Spoil()], resume=True, stop_steps=5, **settings)


@pytest.mark.slow
def test_windows_that_stay_short_of_the_train_length_are_told(
    plain: Path, train, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"method": "two-band", "train_length": 256, "steps": 1, "row_length": "64"}
    train(plain, "short", batch_size=2, **settings)
    assert "longest real window has 128 tokens and not the train length of 256" in caplog.text
    caplog.clear()
    train(plain, "whole", batch_size=4, **settings)
    assert "longest real window" not in caplog.text
