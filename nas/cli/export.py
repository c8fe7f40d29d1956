"""`srlnas export` and `srlnas verify`: what leaves for a device, and what arrived there."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import TrackingUri, numbers


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
    precision: Annotated[
        str | None, typer.Option(help="fp32, or int8: smaller, judged on the study's speech; default: the study's.")
    ] = None,
    accept_loss: Annotated[bool, typer.Option("--accept-loss", help="Export int8 whatever it loses.")] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Export a model for its device, checked against the trained student on real clips."""
    from deploy.bundle import manifest_hash
    from deploy.card import shown_lines
    from nas.api import export as write

    bundle = write(
        model,
        name=name,
        precision=precision,  # type: ignore[arg-type]  # checked there
        accept_loss=accept_loss,
        listen=listen,
        negatives=negatives or (),
        false_alarms=numbers(false_alarms, "--false-alarms", float),
        tracking_uri=tracking_uri,
    )
    parity, precision = bundle.manifest["parity"], bundle.manifest["precision"]
    difference = max(parity["max_abs_logits"], parity["max_abs_embedding"])
    typer.echo(
        f"{bundle.folder}: {len(bundle.labels)} keywords, {bundle.manifest['params']:,} params, {precision}; differs from the "
        f"student by at most {difference:.1e} over {parity['clips']} clips; {parity['same_keyword']:.0%} get the same keyword"
    )
    for line in shown_lines(bundle.manifest):
        typer.echo(line)
    typer.echo(f"manifest.json has the hash {manifest_hash(bundle.folder)}\ncheck it on a clip of your own:")
    typer.echo(f"  {shlex.join([sys.executable, f'{bundle.folder}/classify.py', 'CLIP.wav'])}")


def verify(bundle: Annotated[Path, typer.Argument(help="Folder of an export.")]) -> None:
    """Check an export: hashes of all files, and that its model answers here as it did when it was exported."""
    from deploy.bundle import VOICES_FILE, check_answers, manifest_hash, verify_bundle

    checked = verify_bundle(bundle)
    off = check_answers(checked)
    typer.echo(
        f"{bundle}: {len(checked.manifest['files'])} files as manifest.json has them; the model answers as recorded, within "
        f"{off:.1e}\nmanifest.json has the hash {manifest_hash(bundle)}: compare it with what the export printed"
    )
    if (bundle / VOICES_FILE).exists():
        typer.echo(f"voices were made known to it ({VOICES_FILE}): delete them before it goes to others")
