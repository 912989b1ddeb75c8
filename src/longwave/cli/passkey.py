"""`longwave passkey`: a table, a plot and a record of key retrieval against context length."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from longwave.cli.evaluating import Batch, Device, Dtype, Lengths, Methods, Results
from longwave.cli.options import Json, Model, Overwrite, Seed, check_inputs


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
    check_inputs(model)

    from functools import partial

    from longwave.cli import evaluating
    from longwave.evaluation import passkey as measure
    from longwave.evaluation.lengths import parse_lengths
    from longwave.evaluation.registry import EVALUATIONS
    from longwave.evaluation.results import PASSKEY, record
    from longwave.extensions.reach import original_length_of

    folder = evaluating.results_folder(output, "passkey", model, overwrite)
    loaded = evaluating.load(model, dtype, device)
    original = original_length_of(loaded.model)
    counts = parse_lengths(lengths or evaluating.default_lengths(loaded.model), original)
    specs = evaluating.choose(loaded.model, methods, counts)
    ask = partial(
        measure.passkey,
        loaded.model,
        loaded.tokenizer,
        counts,
        trials=trials,
        depths=depths,
        seed=seed,
        template=measure.TEMPLATES[template],
        original_length=original,
        tokens_per_batch=tokens_per_batch,
    )
    quantity = EVALUATIONS["passkey"].quantity
    rows = evaluating.measured_rows(loaded.model, specs, counts, trials * sum(counts), ask, quantity)
    settings = {"template": template, "trials": trials, "depths": depths}
    found = record(PASSKEY, model=loaded.about, settings=settings, original_length=original, rows=rows, seed=seed)
    evaluating.write_and_show(found, folder, whose=evaluating.short(model), overwrite=overwrite, as_json=as_json)
