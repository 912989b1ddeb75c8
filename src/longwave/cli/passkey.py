"""`longwave passkey`: a table, a plot and a record of key retrieval against context length."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from longwave.cli.evaluating import Batch, Device, Dtype, Lengths, Methods, Results
from longwave.cli.options import Json, Model, Overwrite, Seed, print_json


def passkey(
    model: Model,
    lengths: Lengths = None,
    methods: Methods = None,
    trials: Annotated[int, typer.Option("--trials", metavar="N", help="Prompts for each length.")] = 100,
    depths: Annotated[
        int, typer.Option("--depths", metavar="N", help="Places of the key, from start to end, dealt out in turn.")
    ] = 10,
    template: Annotated[
        Literal["short", "landmark"],
        typer.Option("--template", help="landmark: with instructions, for large models; short: without."),
    ] = "short",
    output: Results = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    as_json: Json = False,
    dtype: Dtype = "auto",
    device: Device = None,
    tokens_per_batch: Batch = 8192,
) -> None:
    """Measure how often a five-digit key hidden in filler text is found again.

    Greedy decoding has to repeat the key exactly. Prompt and answer together have the length asked for, and
    run at the length factor of that. Every method gets the same prompts. Writes passkey.json and passkey.png.

    Examples:

    longwave passkey MODEL --lengths 1x,2x,4x --methods none,ntk,yarn

    longwave passkey out --lengths 1x,2x,4x,8x,16x --trials 100 --template landmark
    """
    from rich.console import Console

    from longwave.cli import evaluating
    from longwave.evaluation import passkey as measure
    from longwave.evaluation.lengths import original_length_of, parse_lengths
    from longwave.evaluation.results import PASSKEY, curves, record, write
    from longwave.evaluation.subjects import under
    from longwave.report.plots import plot_passkey
    from longwave.report.tables import passkey_table

    folder = evaluating.results_folder(output, "passkey", model, overwrite)
    loaded = evaluating.load(model, dtype, device)
    original = original_length_of(loaded.model)
    counts = parse_lengths(lengths or evaluating.default_lengths(loaded.model), original)
    specs = evaluating.choose(loaded.model, methods, counts)
    rows = []
    with evaluating.progress(len(specs) * trials * sum(counts)) as start:
        for spec in specs:
            with under(loaded.model, spec, counts) as subject:
                result = measure.passkey(
                    loaded.model, loaded.tokenizer, counts, trials=trials, depths=depths, seed=seed,
                    template=measure.TEMPLATES[template], original_length=original,
                    tokens_per_batch=tokens_per_batch, progress=start(subject.label),
                )  # fmt: skip
                rows.append({**subject.to_json(), "lengths": [entry.to_json() for entry in result.lengths]})
    settings = {"template": template, "trials": trials, "depths": depths}
    found = record(PASSKEY, model=loaded.about, settings=settings, original_length=original, rows=rows, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    path = write(folder / "passkey.json", found, overwrite=overwrite)
    shown = curves([found])
    about = f"{evaluating.short(model)}: {trials} trials at {depths} depths"
    picture = plot_passkey(
        shown, folder / "passkey.png", original_length=original, title="Passkey retrieval by context length",
        subtitle=f"{about} · bands: 95 % interval",
    )  # fmt: skip
    if as_json:
        print_json(found)
        return
    console = Console()
    console.print(f"Passkeys retrieved, {about}, with 95 % interval", highlight=False, soft_wrap=True)
    console.print(passkey_table(shown, original))
    console.print(f"written: {path} {picture}", highlight=False, soft_wrap=True)
