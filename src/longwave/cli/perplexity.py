"""`longwave perplexity`: a table, a plot and a record of perplexity against context length."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from longwave.cli.evaluating import Batch, Device, Dtype, Lengths, Methods, Results
from longwave.cli.options import Data, Json, Model, Overwrite, check_inputs


def perplexity(
    model: Model,
    data: Data,
    lengths: Lengths = None,
    methods: Methods = None,
    protocol: Annotated[
        Literal["same-targets", "stride", "overlap", "truncate", "chunked-cache"],
        typer.Option("--protocol", help="Which tokens are scored, and under how much context."),
    ] = "same-targets",
    windows: Annotated[
        int | None,
        typer.Option("--windows", metavar="N", help="Windows of each length; default 64 or what fits, 0 for all."),
    ] = None,
    targets: Annotated[
        int, typer.Option("--targets", metavar="N", help="same-targets: tokens scored at the end of each window.")
    ] = 64,
    stride: Annotated[
        int, typer.Option("--stride", metavar="N", help="stride, overlap: tokens from one window to the next.")
    ] = 256,
    chunk: Annotated[
        int | None,
        typer.Option(
            "--chunk", metavar="N", help="chunked-cache: tokens of a chunk; default 4096 or the trained length."
        ),
    ] = None,
    by_position: Annotated[
        int,
        typer.Option(
            "--by-position", metavar="N", help="Also the loss in N stretches of the window, where it is scored whole."
        ),
    ] = 0,
    output: Results = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    dtype: Dtype = "auto",
    device: Device = None,
    tokens_per_batch: Batch = 8192,
) -> None:
    """Measure perplexity against context length.

    same-targets (default): every context ends at the same tokens and the last 64 of it are scored, so columns
    differ by the context only. stride: windows every 256 tokens, each scores what is new in it. overlap: the
    same windows, each scored whole. truncate: the beginning of each document long enough for all lengths, scored
    whole. chunked-cache: windows read in chunks through a cache, as the CLEX code does. Numbers of different
    protocols cannot be compared.

    A method that is not the folder's own keeps its weights (and log-n) and replaces the frequencies only.
    Writes perplexity.json, with the loss of every window, and perplexity.png.

    Examples:

    longwave perplexity MODEL --data book.txt --lengths 1x,2x,4x,8x --methods none,ntk,yarn

    longwave perplexity out --data books/ --lengths 1x,2x,4x,8x,16x --windows 512

    longwave perplexity out --data books/ --lengths 4096,16384 --protocol stride --windows 0 --json

    longwave perplexity out --data proofs.jsonl --lengths 8x --protocol truncate --by-position 32
    """
    check_inputs(model, data=data)

    from functools import partial

    from longwave.cli import evaluating
    from longwave.data.documents import read_documents
    from longwave.data.hashes import data_hashes
    from longwave.data.tokens import stream_and_starts
    from longwave.evaluation import perplexity as measure
    from longwave.evaluation.lengths import parse_lengths
    from longwave.evaluation.registry import EVALUATIONS
    from longwave.evaluation.results import PERPLEXITY, record
    from longwave.evaluation.windows import check_stretches, chunk_of, plan
    from longwave.extensions.reach import original_length_of

    folder = evaluating.results_folder(output, "perplexity", model, overwrite)
    documents, hashes = read_documents(data), data_hashes(data)
    loaded = evaluating.load(model, dtype, device)
    original = original_length_of(loaded.model)
    counts = parse_lengths(lengths or evaluating.default_lengths(loaded.model), original)
    specs = evaluating.choose(loaded.model, methods, counts)
    tokens, starts = stream_and_starts(documents, loaded.tokenizer, progress=False)
    settings = {"protocol": protocol, "windows": windows, "targets": targets, "stride": stride}
    asked: dict[str, Any] = {**settings, "chunk": chunk_of(chunk, original), "documents": starts}
    plans = plan(tokens=tokens.numel(), lengths=counts, **asked)
    check_stretches(by_position, protocol, counts)
    ask = partial(
        measure.perplexity,
        loaded.model,
        tokens,
        counts,
        original_length=original,
        tokens_per_batch=tokens_per_batch,
        by_position=by_position,
        **asked,
    )
    quantity = EVALUATIONS["perplexity"].quantity
    rows = evaluating.measured_rows(loaded.model, specs, counts, measure.cost(plans), ask, quantity)
    settings["tokens"] = tokens.numel()
    if protocol == "chunked-cache":
        settings["chunk"] = asked["chunk"]
    found = record(PERPLEXITY, model=loaded.about, data=hashes, settings=settings, original_length=original, rows=rows)
    evaluating.write_and_show(found, folder, whose=evaluating.short(model), overwrite=overwrite, as_json=as_json)
