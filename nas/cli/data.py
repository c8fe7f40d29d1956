"""`srlnas data`: corpora, imported from files and checked."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli.options import INTERRUPTED

if TYPE_CHECKING:
    from trainers.speech.corpora import Progress
    from trainers.speech.shards import Report

data_app = typer.Typer(no_args_is_help=True, help="Corpora: import, check.")
import_app = typer.Typer(
    no_args_is_help=True,
    help="Audio files to one Parquet file: any folder, or a public corpus as its archives unpack. Nothing is downloaded. "
    "The same command continues an interrupted import.",
)
data_app.add_typer(import_app, name="import")

LISTED = 10  # clips left out that are named one by one
Out = Annotated[Path, typer.Argument(help="Parquet file to write.")]


@import_app.command()
def folder(
    folder: Annotated[Path, typer.Argument(help="Folder of audio files.")],
    out: Out,
    pattern: Annotated[str, typer.Option(help="Where keyword and speaker stand in a path.")] = "{keyword}/{speaker}_*.wav",
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    licence: Annotated[str | None, typer.Option(help="Of the speech, as an export's card is to name it.")] = None,
) -> None:
    """Import a folder of audio files; splits are speaker-disjoint and always the same."""
    from trainers.importing.importers import import_folder

    if licence is not None and not (licence.strip() and licence.isprintable()):
        raise ValueError(f"--licence is {licence!r}: it is one line of text")
    _import(folder, out, lambda tick: import_folder(folder, pattern, out, seed=seed, licence=licence, progress=tick))


@import_app.command()
def speech_commands(
    root: Annotated[Path, typer.Argument(help="Folder with SpeechCommands/speech_commands_v0.02 (or v0.01), or that folder.")],
    out: Out,
    classes: Annotated[
        str, typer.Option(help="12: ten words, _unknown_ and _silence_ by the original recipe; all: every word.")
    ] = "12",
    seed: Annotated[int, typer.Option(help="Of what _unknown_ and _silence_ are drawn from.")] = 0,
) -> None:
    """Import Speech Commands with its official lists of validation and test clips."""
    from trainers.importing.speech_commands import import_speech_commands

    _import(root, out, lambda tick: import_speech_commands(root, out, classes=classes, seed=seed, progress=tick))


@import_app.command()
def voxceleb1(
    root: Annotated[Path, typer.Argument(help="Folder with wav/ and veri_test.txt.")],
    out: Out,
    trials: Annotated[Path | None, typer.Option(help="Parquet file to write the official trials to.")] = None,
    seed: Annotated[int, typer.Option(help="Of the speakers drawn for validation.")] = 0,
) -> None:
    """Import VoxCeleb1; the speakers of the official trial list are the test split."""
    from trainers.importing.layouts import import_voxceleb1

    _import(root, out, lambda tick: import_voxceleb1(root, out, trials=trials, seed=seed, progress=tick))


@import_app.command()
def librispeech(
    root: Annotated[Path, typer.Argument(help="Folder with LibriSpeech/.")],
    out: Out,
    subset: Annotated[list[str], typer.Option(help="Such as train-clean-100, dev-clean; may be repeated.")],
) -> None:
    """Import subsets of LibriSpeech: speakers, no keywords."""
    from trainers.importing.layouts import import_librispeech

    _import(root, out, lambda tick: import_librispeech(root, out, subset, progress=tick))


@data_app.command()
def check(
    corpus: Annotated[list[Path], typer.Argument(help="Parquet files, each a corpus; shards in one folder are one.")],
    trials: Annotated[list[Path] | None, typer.Option(help="Trial list to check against it; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    cache: Annotated[Path, typer.Option(help="Folder for decoded audio.")] = Path("studies/.cache"),
) -> None:
    """Decode corpora and report clips, hours, keywords, speakers, splits and unreadable files."""
    from nas.cli.describe import check_lines
    from nas.study.progress import console, progress
    from trainers.speech.corpora import check_trainable, describe
    from trainers.speech.loading import load_corpus
    from trainers.speech.trial_lists import load_lists

    with progress(console(stderr=True), "decoding") as tick:
        loaded = load_corpus(corpus, cache, tick)
    content: dict[str, Any] = describe(loaded)
    if trials:
        found = load_lists(trials, loaded)
        content["trials"] = {split: sum(len(t) for (of, _), t in found.items() if of == split) for split, _ in found}
    typer.echo(json.dumps(content, indent=2) if as_json else "\n".join(check_lines(content)))
    check_trainable(loaded)


def report_lines(report: "Report") -> Iterator[str]:
    """What was imported, what was left out and what is converted, as lines of text."""
    counts = ", ".join(f"{report.clips.get(split, 0):,} {split}" for split in ("train", "val", "test"))
    yield f"{sum(report.clips.values()):,} clips ({counts}), {len(report.keywords)} keywords, {report.speakers:,} speakers"
    if report.converted:
        forms = ", ".join(f"{count:,} of {form}" for form, count in sorted(report.converted.items()))
        yield f"{sum(report.converted.values()):,} clips are not 16000 Hz mono and are converted when they are read: {forms}"
    for what, left_out in (("unusable", report.skipped), ("duplicate", report.duplicates)):
        if left_out:
            yield f"{len(left_out):,} {what} clips were left out:"
            yield from (f"  {clip}: {reason}" for clip, reason in left_out[:LISTED])
            if len(left_out) > LISTED:
                yield f"  and {len(left_out) - LISTED:,} more"
    yield from report.remarks


def _import(source: Path, out: Path, run: Callable[["Progress"], "Report"]) -> None:
    from nas.study.progress import console, progress

    try:
        with progress(console(stderr=True), f"importing {source}") as tick:
            report = run(tick)
    except KeyboardInterrupt:
        typer.echo("\ninterrupted; the same command continues where it was")
        raise typer.Exit(INTERRUPTED) from None
    typer.echo("\n".join((f"{out}:", *report_lines(report))))
