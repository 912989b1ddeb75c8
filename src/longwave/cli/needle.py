"""`longwave needle`: a grid of retrieval against context length and depth, in text of the user's choice."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from longwave.cli.evaluating import Batch, Device, Dtype, Lengths, Methods, Results
from longwave.cli.options import Data, Json, Model, Overwrite, Seed, check_inputs


def needle(
    model: Model,
    data: Data,
    lengths: Lengths = None,
    methods: Methods = None,
    trials: Annotated[int, typer.Option("--trials", metavar="N", help="Prompts for each length.")] = 100,
    depths: Annotated[
        int, typer.Option("--depths", metavar="N", help="Places of the needle, from start to end, dealt out in turn.")
    ] = 10,
    needle: Annotated[
        str | None,
        typer.Option("--needle", metavar="TEXT", help="The sentence to hide, with {key} for its random answer."),
    ] = None,
    question: Annotated[
        str | None,
        typer.Option("--question", metavar="TEXT", help="The end of the prompt, up to the answer."),
    ] = None,
    output: Results = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    as_json: Json = False,
    dtype: Dtype = "auto",
    device: Device = None,
    tokens_per_batch: Batch = 8192,
) -> None:
    """Measure how often a fact hidden between the sentences of a text is recalled, by length and depth.

    --data is the haystack: text with more tokens than the longest context. By default the magic number of a city
    is hidden; texts of your own may name the {city}, too. Greedy decoding has to repeat the answer exactly. Every
    method gets the same prompts. Writes needle.json and needle.png, a heat map.

    Examples:

    longwave needle MODEL --data essays/ --lengths 1x,2x,4x --methods none,ntk,yarn

    longwave needle out --data essays/ --lengths 4096,16384,65536 --depths 10 --trials 100

    longwave needle out --data essays/ --needle "The vault opens with {key}." --question "The vault opens with"
    """
    check_inputs(model, data=data)

    from functools import partial

    from longwave.cli import evaluating
    from longwave.data.documents import read_documents
    from longwave.data.hashes import data_hashes
    from longwave.evaluation import needle as measure
    from longwave.evaluation.lengths import parse_lengths
    from longwave.evaluation.registry import EVALUATIONS
    from longwave.evaluation.results import NEEDLE, record
    from longwave.extensions.reach import original_length_of

    texts: dict[str, Any] = {"needle": needle or measure.NEEDLE, "question": question or measure.QUESTION}
    measure.template_of(**texts)
    folder = evaluating.results_folder(output, "needle", model, overwrite)
    haystack, hashes = "\n\n".join(read_documents(data)["text"]), data_hashes(data)
    loaded = evaluating.load(model, dtype, device)
    original = original_length_of(loaded.model)
    counts = parse_lengths(lengths or evaluating.default_lengths(loaded.model), original)
    specs = evaluating.choose(loaded.model, methods, counts)
    ask = partial(
        measure.needle,
        loaded.model,
        loaded.tokenizer,
        haystack,
        counts,
        trials=trials,
        depths=depths,
        seed=seed,
        original_length=original,
        tokens_per_batch=tokens_per_batch,
        **texts,
    )
    quantity = EVALUATIONS["needle"].quantity
    rows = evaluating.measured_rows(loaded.model, specs, counts, trials * sum(counts), ask, quantity)
    settings = {**texts, "trials": trials, "depths": depths}
    found = record(
        NEEDLE, model=loaded.about, data=hashes, settings=settings, original_length=original, rows=rows, seed=seed
    )
    evaluating.write_and_show(found, folder, whose=evaluating.short(model), overwrite=overwrite, as_json=as_json)
