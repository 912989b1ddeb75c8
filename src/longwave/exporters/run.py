"""Export: checked first, written aside, verified, and put in place as a whole."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longwave.checkpoints.folder import is_export
from longwave.exporters import get_exporter
from longwave.exporters.card import model_card, read_perplexity
from longwave.exporters.source import Source, open_source
from longwave.exporters.verify import Agreement, passages, verify
from longwave.files import check_output, umask, write_json, write_text
from longwave.layout import EXPORT_RECORD as RECORD
from longwave.trajectory import Snapshot

CARD = "README.md"
LOG_N = ("constant", "drop")
VERIFIED = 4096  # tokens of the longest prompt of a verification, unless asked otherwise


@dataclass(frozen=True, eq=False)
class Exported:
    """What was written.

    Arguments:
        folder: where.
        to: the target.
        snapshot: the frequencies it runs at.
        notes: what its user should know.
        agreement: of the verification, if asked for.
    """

    folder: Path
    to: str
    snapshot: Snapshot = field(repr=False)
    notes: list[str] = field(default_factory=list)
    agreement: Agreement | None = None

    def to_json(self) -> dict[str, Any]:
        """For `--json` and longwave-export.json."""
        return {
            "folder": str(self.folder),
            "target": self.to,
            "files": {
                path.relative_to(self.folder).as_posix(): path.stat().st_size
                for path in sorted(self.folder.rglob("*"))
                if path.is_file() and path.name != RECORD
            },
            "factor": self.snapshot.factor,
            "length": self.snapshot.max_length,
            "original_length": self.snapshot.original_length,
            "factors": self.snapshot.factors.tolist(),
            "attention_scaling": self.snapshot.attention_scaling,
            "notes": self.notes,
            "agreement": None if self.agreement is None else self.agreement.to_json(),
        }


def export(
    model: Path | str,
    output: Path | str,
    *,
    to: str = "hf",
    factor: float | None = None,
    length: int | None = None,
    method: str | None = None,
    quantize: str | None = None,
    log_n: str = "constant",
    verified: bool = False,
    verify_tokens: int = VERIFIED,
    results: Sequence[Path | str] = (),
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Freeze a model at one t and write it for an engine that knows nothing of longwave.

    Weights are streamed from file to file. Everything that can be refused is refused before anything is written;
    `output` appears only when it is complete.

    Arguments:
        model: a folder of `longwave.save`, an official CLEX checkpoint, or a Hugging Face model with `method`.
        output: a folder, absent or empty unless `overwrite`.
        to: target, see `longwave.exporters.EXPORTERS`.
        factor, length: t, or the tokens that t is to suit; default the largest t of the model.
        method: for a plain model: `METHOD[@SCHEDULE]`, e.g. `yarn`.
        quantize: one of the target's quantizations, in upper or lower case.
        log_n: what becomes of per-query log-n: `constant`, its value for the query at t·L, or `drop`.
        verified: run the result in its engine and compare it with longwave, for which the model is loaded; what
            does not agree is an error, and is not kept.
        verify_tokens: the longest prompt of the verification, in tokens.
        results: perplexity.json records for the model card.
        tell: is told each step, for a display.

    Raises:
        ValueError: naming the option or file that is wrong, what is allowed, and what to do.
    """
    exporter = get_exporter(to)
    quantize = None if quantize is None else quantize.lower()
    if quantize is not None and quantize not in exporter.quantizations:
        known = ", ".join(exporter.quantizations) or "none: its weights stay as they are"
        raise ValueError(f"{to} has no quantization {quantize!r}. Available: {known}.")
    if log_n not in LOG_N:
        raise ValueError(f"unknown log_n {log_n!r}. Available: {', '.join(LOG_N)}.")
    for name, value in (("factor", factor), ("length", length)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{name} must be a number, got {value!r}.")
    if not str(output):
        raise ValueError("the output's name is empty. Give a folder.")
    if verify_tokens < 1:
        raise ValueError(f"verify_tokens must be at least 1, got {verify_tokens}.")
    records = [read_perplexity(path) for path in results]
    output = _check_place(Path(output), overwrite=overwrite)
    if verified:
        exporter.engine()  # missing: say so before the work
    tell("reading")
    source = open_source(model, method=method, factor=factor, length=length)
    _keep_apart(output, source)
    t = source.factor(factor, length)
    snapshot = source.snapshot(t, length=length, log_n=log_n == "constant")
    notes = exporter.check(source, snapshot)
    if snapshot.factor == 1:
        notes.append("t is 1: these are the frequencies of pre-training, and nothing is extended.")
    _check_room(exporter.size(source, quantize), output)
    with _aside(output) as partial:
        tell("writing")
        exporter.write(source, snapshot, partial, quantize)
        agreement = None
        if verified:
            tell("verifying")
            agreement = _verified(exporter, source, snapshot, partial, verify_tokens, method, log_n)
            agreement.check(exporter.tolerance(source, quantize))
        card = model_card(
            source, snapshot, exporter, output.name, notes=notes, log_n=log_n, agreement=agreement, records=records
        )
        write_text(partial / CARD, card)
        done = Exported(output, to, snapshot, notes, agreement)
        record = Exported(partial, to, snapshot, notes, agreement).to_json()
        write_json(partial / RECORD, {key: value for key, value in record.items() if key != "folder"})
    return done


def _verified(
    exporter: Any, source: Source, snapshot: Snapshot, folder: Path, tokens: int, method: str | None, log_n: str
) -> Agreement:
    import torch

    from longwave.checkpoints.load import load
    from longwave.extensions.attach import extend
    from longwave.extensions.log_n import disable_log_n

    scaling = "trajectory" if method is None else "plain"
    model = load(source.path, scaling=scaling, dtype="auto" if exporter.name == "hf" else torch.float32).eval()
    if method is not None:
        extend(model, method, max_factor=source.rotary.trajectory.max_factor)
    if log_n == "drop":
        disable_log_n(model)
    longest = min(snapshot.max_length, tokens)
    prompts = passages(source.tokenizer, longest, min(snapshot.original_length // 2, longest))
    return verify(exporter, folder, model, snapshot.factor, prompts)


def _check_place(output: Path, *, overwrite: bool) -> Path:
    """The output as an absolute path, which a finished folder can be moved to."""
    output = output.resolve()  # what a link leads to is replaced, not the link
    if output == Path.cwd() or output in Path.cwd().parents or output.is_mount():
        raise ValueError(f"output {output} cannot be replaced as a whole. Give a new folder inside it.")
    check_output(output, overwrite=overwrite)
    if output.is_dir() and any(output.iterdir()) and not is_export(output):
        raise ValueError(
            f"{output} is not empty and no export: --overwrite replaces exports only. Choose another folder."
        )
    place = next(parent for parent in output.parents if parent.exists())
    if not place.is_dir():
        raise ValueError(f"{place} is a file, no folder can be made in it. Choose another output.")
    if not os.access(place, os.W_OK) or shutil.disk_usage(place).total == 0:
        raise ValueError(f"cannot write to {place}. Choose another output.")
    return output


def _keep_apart(output: Path, source: Source) -> None:
    """What is read must outlive what is written."""
    for folder in {source.model.resolve(), source.tokenizer.resolve()}:
        if output == folder or output in folder.parents or folder in output.parents:
            raise ValueError(
                f"output {output} and the model in {folder} lie inside one another. Choose another output."
            )


def _check_room(needed: int, output: Path) -> None:
    place = next(parent for parent in output.parents if parent.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ValueError(
            f"{place} has {free / 1e9:.1f} GB free, the export needs {needed / 1e9:.1f} GB. Make room or choose "
            "another --output."
        )


@contextmanager
def _aside(output: Path) -> Iterator[Path]:
    """A folder beside `output` that takes its place when the block ends well, and is gone when it does not."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    os.chmod(partial, 0o777 & ~umask())  # mkdtemp makes 0700; exports are meant to be shared
    try:
        yield partial
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ValueError(f"the disk of {output} is full: nothing was written. Make room and try again.") from None
        raise
    _put(partial, output)


def _put(partial: Path, output: Path) -> None:
    """Move the finished folder to its place; what was there goes when that has worked."""
    old = Path(tempfile.mkdtemp(prefix=f".{output.name}.old.", dir=output.parent))
    try:
        if output.exists():
            os.replace(output, old / "was")
        try:
            os.replace(partial, output)
        except OSError as error:
            if (old / "was").exists():
                os.replace(old / "was", output)
            raise ValueError(f"cannot move the export to {output} ({error}). It is complete in {partial}.") from None
    finally:
        shutil.rmtree(old, ignore_errors=True)
