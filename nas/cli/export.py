"""`srlnas export` and `srlnas verify`: what leaves for a device, and what arrived there."""

import dataclasses
import math
import shlex
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli.options import TrackingUri, numbers

if TYPE_CHECKING:
    from deploy.hearing import Speech
    from deploy.judging import Judge

PRECISIONS = "fp32", "int8"


def export(
    model: Annotated[str, typer.Argument(help="A run id, models:/name@alias or models:/name/version.")],
    name: Annotated[str | None, typer.Option(help="Folder below deploy/exports/; default: the model's name and version.")] = None,
    negatives: Annotated[
        list[Path] | None,
        typer.Option(help="A recording in which no keyword is said, best where the device will stand; may be repeated."),
    ] = None,
    false_alarms: Annotated[
        str, typer.Option(help="Rates of false alarms an hour, of one keyword, for which thresholds are chosen.")
    ] = "10,1,0.1",
    listen: Annotated[
        bool, typer.Option(help="Choose thresholds for keywords on streams of the study's speech; takes minutes.")
    ] = True,
    precision: Annotated[str, typer.Option(help="fp32, or int8: smaller, and judged on the study's speech.")] = "fp32",
    accept_loss: Annotated[bool, typer.Option("--accept-loss", help="Export int8 whatever it loses.")] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Export a model for its device, checked against the trained student on real clips."""
    from deploy.bundle import manifest_hash
    from deploy.card import int8_lines, keyword_lines
    from nas.report.listening import judge_of, speech_of
    from nas.report.publish import export_model
    from nas.study.budget import in_words
    from nas.study.progress import console, progress
    from nas.tracking.connection import default_tracking_uri

    rates = numbers(false_alarms, "--false-alarms", float)
    if not all(math.isfinite(rate) and rate > 0 for rate in rates) or len(set(rates)) < len(rates):
        raise ValueError(f"--false-alarms is {false_alarms!r}: each rate is a number above zero, and stands there once")
    if negatives and not listen:
        raise ValueError("--negatives are for thresholds, which --no-listen leaves out: give one of them")
    if accept_loss and precision != "int8":
        raise ValueError("--accept-loss is for --precision int8")
    if precision not in PRECISIONS:
        raise ValueError(f"--precision is {precision!r}; it is {' or '.join(PRECISIONS)}")

    def judge(provenance: Mapping[str, Any]) -> "Judge | None":
        return judge_of(provenance, accept_loss) if precision == "int8" else None

    with ExitStack() as stack:

        def speech(provenance: Mapping[str, Any]) -> "Speech | None":
            try:
                found = speech_of(provenance, negatives or [], rates)
            except ValueError as error:
                if negatives:
                    raise
                typer.echo(f"no thresholds are chosen for keywords: {error}")
                return None
            title, words = "listening to speech of the study", lambda seconds: f"{in_words(seconds)} of it"
            tick = stack.enter_context(progress(console(), title, words))
            return dataclasses.replace(found, progress=tick)

        exports, uri = Path("deploy/exports"), tracking_uri or default_tracking_uri()
        bundle = export_model(model, name, uri, exports, speech if listen else lambda provenance: None, judge)
    parity = bundle.manifest["parity"]
    difference = max(parity["max_abs_logits"], parity["max_abs_embedding"])
    typer.echo(
        f"{bundle.folder}: {len(bundle.labels)} keywords, {bundle.manifest['params']:,} params, {precision}; differs from the "
        f"student by at most {difference:.1e} over {parity['clips']} clips; {parity['same_keyword']:.0%} get the same keyword"
    )
    for line in int8_lines(bundle.manifest):
        typer.echo(line)
    for line in keyword_lines(bundle.manifest):
        typer.echo(line)
    typer.echo(f"manifest.json has the hash {manifest_hash(bundle.folder)}\ncheck it on a clip of your own:")
    typer.echo(f"  {shlex.join([sys.executable, f'{bundle.folder}/classify.py', 'CLIP.wav'])}")


def verify(bundle: Annotated[Path, typer.Argument(help="Folder of an export.")]) -> None:
    """Check an export: hashes of all files, and that its model answers here as it did when it was exported."""
    from deploy.bundle import check_answers, manifest_hash, verify_bundle

    checked = verify_bundle(bundle)
    off = check_answers(checked)
    typer.echo(
        f"{bundle}: {len(checked.manifest['files'])} files as manifest.json has them; the model answers as recorded, within "
        f"{off:.1e}\nmanifest.json has the hash {manifest_hash(bundle)}: compare it with what the export printed"
    )
