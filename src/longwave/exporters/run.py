"""Export: checked first, written aside, verified, and put in place as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longwave.exporters import EXPORTERS, Exporter, Unsupported, get_exporter
from longwave.exporters.card import model_card, perplexity_table
from longwave.exporters.exported import Exported
from longwave.exporters.opening import open_source
from longwave.exporters.place import aside, check_place, check_room, keep_apart
from longwave.exporters.settings import ExportSettings, renamed
from longwave.exporters.verify import verify_export
from longwave.extensions.spec import with_options
from longwave.files import write_text

CARD = "README.md"


def export(
    model: Path | str,
    output: Path | str,
    *,
    results: Sequence[Path | str] = (),
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda _: None,
    **settings: Any,
) -> Exported:
    """Freeze a model at one t and write it for an engine that knows nothing of longwave.

    Weights are streamed from file to file. Everything that can be refused is refused before anything is written;
    `output` appears only when it is complete.

    Arguments:
        model: a folder of `longwave.save`, an official CLEX checkpoint, or a Hugging Face model with `method`.
        output: a folder, absent or empty unless `overwrite`.
        results: perplexity.json records for the model card.
        overwrite: replace an earlier export.
        tell: is told each step, for a display.
        **settings: the fields of `ExportSettings`:
            `target`, see `longwave.exporters.EXPORTERS`;
            `profiles`, several t in one folder for vLLM with longwave's plugin, such as "1,2,4,8";
            `factor` or `to`, t or the longest text in tokens, default the largest t of the model;
            `method`, for a plain model: `METHOD[@SCHEDULE]`, e.g. `yarn`;
            `quantize`, one of the target's quantizations, in upper or lower case;
            `log_n`, how per-query log-n is exported: `constant`, its value for the query at t·L, or `drop`;
            `verify`, run the export in its engine and compare it with longwave, which loads the model; an export that
            does not agree is an error, and is not kept;
            `verify_tokens`, the longest prompt of the verification, in tokens.

    Raises:
        ValueError: naming the option or file that is wrong, what is allowed, and what to do.
    """
    asked = ExportSettings.create(**renamed(settings))
    exporter = get_exporter(asked.target)
    quantize = exporter.quantization(asked.quantize)
    if not str(output):
        raise ValueError("the output's name is empty. Give a folder.")
    tables = [perplexity_table(path) for path in results]
    output = check_place(Path(output), overwrite=overwrite)
    if asked.verify:
        exporter.engine()  # missing: say so before the work
    tell("reading")
    method = None if asked.method is None else with_options([asked.method], asked.options)[0]
    factors = asked.profile_factors
    reach = factors[-1] if factors else asked.factor
    source = open_source(model, method=method, factor=reach, length=asked.to)
    keep_apart(output, source.folders)
    if source.extension.attention is not None and not factors:
        raise Unsupported(
            f"{exporter.name} cannot express {source.extension.spec}: an engine alone scales frequencies. For vLLM "
            "with longwave's plugin export with --profiles 1,2,4,8. For others export under a scaling method alone, "
            "such as yarn, or train with `longwave train --engine-ready`."
        )
    if source.changes_weights and not exporter.merges:
        raise ValueError(f"{exporter.name} export does not know weights that follow t. Choose --target hf.")
    t = source.factor(reach, asked.to)
    snapshot = source.snapshot(t, length=asked.to, log_n=asked.log_n == "constant" and not factors)
    with other_targets(exporter):
        plan = exporter.plan_profiles(source, factors) if factors else exporter.plan(source, snapshot, quantize)
        notes = list(plan.notes)
        if snapshot.factor == 1:
            notes.append("t is 1: these are the frequencies of pre-training, and nothing is extended.")
        check_room(plan.size, output)
        with aside(output) as partial:
            tell("writing")
            plan.write(partial)
            agreement = None
            if asked.verify:
                tell("verifying")
                agreement = verify_export(exporter, source, snapshot, partial, asked)
                agreement.check(plan.tolerance)
            done = Exported(output, asked.target, snapshot, notes, agreement, factors)
            card = model_card(source, exporter, done, log_n=asked.log_n, tables=tables)
            write_text(partial / CARD, card)
            done.write_record(partial)
    return done


@contextmanager
def other_targets(exporter: Exporter) -> Iterator[None]:
    """What one target cannot express is refused with the name of a target that can."""
    try:
        yield
    except Unsupported as error:
        others = [name for name, other in EXPORTERS.items() if other.general and other is not exporter]
        hint = f" Another target can: --target {others[0]}." if others else ""
        raise ValueError(f"{error}{hint}") from None
