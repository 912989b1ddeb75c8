"""`longwave train`: the options are the fields of `TrainConfig`, with their help."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from longwave.cli.options import Data, Json, Model, Output, Overwrite, check_inputs, print_json
from longwave.cli.planning import note_devices, planned
from longwave.cli.recipes import Config, DryRun, Without
from longwave.cli.settings import with_settings
from longwave.data.paths import split_share
from longwave.evaluation.lengths import doublings
from longwave.settings import parse_pairs
from longwave.training.config import TrainConfig
from longwave.training.lora import GATES
from longwave.training.machine import Machine

Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the last checkpoint that is not damaged; start if there is none.")
]


@with_settings(Machine, group="Plan")
@with_settings(TrainConfig)
def train(
    model: Model,
    data: Data,
    output: Output,
    config: Config = None,
    without: Without = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    lora_rank: Annotated[str | None, typer.Option("--lora-rank", hidden=True)] = None,
    gate: Annotated[Literal[GATES] | None, typer.Option("--gate", hidden=True)] = None,  # type: ignore[valid-type]
    **settings: Any,
) -> None:
    """Extend a model and train it on text, for up to --max-factor times its original length L.

    By default two-band learns a mass and a temperature for each head, and a LoRA that follows the length. Within L the
    trained model is the plain model, bit for bit. The output names the model that it stands on, and does not copy it.

    No window that training sees is longer than --train-length tokens; 4 x L is enough. Half of the micro-batches are
    real windows of 2 L and more, the others are rows of 2 L whose positions skip further. --freeze-weights learns the
    scalars of heads alone, in minutes. --engine-ready trains what other engines can run by `longwave export`. On the
    folder of an earlier run the same method goes on with what was learned.

    Examples (L is 1,024):

    longwave train MODEL --data books/ --train-length 4096 --max-factor 16 --output out

    longwave train MODEL --data books/ --train-length 4096 --max-factor 16 --output scalars --freeze-weights

    longwave train MODEL --data books/ --train-length 4096 --max-factor 16 --output ready --engine-ready

    longwave train MODEL --data books/ --train-length 4096 --max-factor 16 --output q --lora r=64 --quantize 4bit

    longwave train out --data more/ --train-length 4096 --max-factor 32 --output further

    longwave train MODEL --data b --train-length 8192 --row-length 1x --long-share 0.6 --max-factor 8 --method clex -o c

    longwave train MODEL --data books/@0.7 --data code/@0.3 --train-length 4096 --max-factor 16 --output out

    longwave train MODEL --data books/ --train-length 4096 --max-factor 16 --output out --resume

    longwave train MODEL --data b --train-length 4096 --max-factor 16 -o out --eval-data held-out.txt --eval-every 20

    longwave train --config pythia-1.4b --data books/ --output out

    longwave train --config llama2-7b-clex-4k --dry-run --devices 4 --device-memory 40GB

    Ctrl-C (SIGINT) and SIGTERM end the step, make a checkpoint and stop: exit code 130 or 143. --resume then goes on as
    if nothing had been. A second Ctrl-C stops at once.
    """
    machine = Machine.create(**{item.name: settings.pop(item.name) for item in fields(Machine)})
    if lora_rank is not None or gate is not None:
        settings |= {"lora_rank": lora_rank, "gate": gate}
        typer.echo("note: --lora-rank and --gate are now parts of --lora: --lora r=16,gate=ramp.", err=True)
    settings["options"] = parse_pairs(settings.get("options") or ()) or None
    if dry_run:
        planned(model, data, settings, machine, as_json)
        return
    check_inputs(model, data=[Path(split_share(path)[0]) for path in data])
    note_devices(machine, settings["accumulation"], settings["deepspeed"])

    from transformers.utils.logging import disable_progress_bar

    import longwave
    from longwave.files import read_json
    from longwave.layout import CHECKPOINTS, TRAINING
    from longwave.report.live import LivePage
    from longwave.training.stopping import Stopped

    first = int(os.environ.get("RANK", 0)) == 0  # under torchrun one process speaks for all
    goes_on = "the same command with --resume goes on from the last checkpoint"
    disable_progress_bar()  # of transformers: the run has its own
    live = LivePage(output)
    try:
        folder = longwave.train(
            model, data, output, resume=resume, overwrite=overwrite, progress=not as_json, callbacks=[live], **settings
        )
    except Stopped as stopped:
        if first:
            typer.echo(f"{stopped}: {goes_on}", err=True)
        raise typer.Exit(stopped.code) from None
    except KeyboardInterrupt:
        kept = any((output / CHECKPOINTS).glob("checkpoint-*"))
        what = goes_on if kept else "the same command with --resume starts again: there is no checkpoint yet"
        typer.echo(f"interrupted: {what}", err=True)
        raise
    finally:
        live.close()
    if not first:
        return
    record = read_json(folder / TRAINING)
    if "result" not in record:
        typer.echo(f"stopped after step {record['step']}: {goes_on}", err=True)
        raise typer.Exit(1)
    summary = {"output": str(folder), **record["result"]}
    if as_json:
        print_json(summary)
        return
    lengths = doublings(settings["max_factor"])
    typer.echo(
        f"{summary['steps']} steps, {summary['tokens']:,} tokens. Loss of the first step {summary['first_loss']:.3f}, "
        f"of the last {min(10, summary['steps'])} {summary['last_loss']:.3f}; steps draw other lengths. Written to "
        f"{folder}\n"
        f"{_longest(summary['trained_length'])}"
        f"Next: longwave perplexity {folder} --data HELD_OUT.txt --lengths {lengths}{_export(folder, record['config'])}"
    )


def _export(folder: Path, config: dict[str, Any]) -> str:
    """How the model is exported, where it was trained for that."""
    if not config["engine_ready"]:
        return ""
    return f"\n      longwave export {folder} --factor {config['max_factor']:g} --output EXPORT"


def _longest(tokens: int | None) -> str:
    """A line on the longest real window; empty where it is not known."""
    return "" if tokens is None else f"The longest window trained on has {tokens:,} tokens. Beyond, it extrapolates.\n"
