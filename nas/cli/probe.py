"""`srlnas teacher probe`: how much of words and voices a linear head reads from a teacher's layers."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli.options import TRIALS_HELP

if TYPE_CHECKING:
    from rich.table import Table

DEFAULT_WINDOW = 16_080
MOST_SEEDS = 100


def probe(
    teacher: Annotated[str, typer.Argument(help="`mini`, `mini-hubert` (bundled), a folder or a hub id.")] = "mini",
    data: Annotated[
        list[Path] | None, typer.Option(help="Parquet corpus; may be repeated. Default: an embedded synthetic corpus.")
    ] = None,
    trials: Annotated[list[Path] | None, typer.Option(help=TRIALS_HELP)] = None,
    against: Annotated[list[str] | None, typer.Option(help="Another teacher to compare with; may be repeated.")] = None,
    seeds: Annotated[int, typer.Option(help="How many times each probe is trained.")] = 3,
    window: Annotated[int, typer.Option(help="Samples that the teacher hears at a time.")] = DEFAULT_WINDOW,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the JSON to this file too.")] = None,
    cache: Annotated[Path, typer.Option(help="Folder for decoded audio and pooled hidden states.")] = Path("studies/.cache"),
) -> None:
    """Probe a teacher's layers for keywords and speakers, beside a random copy, log-mel statistics and other teachers."""
    from nas.study.progress import console, progress
    from nas.worker.context import embedded_corpus
    from search_spaces.architecture import RECEPTIVE_FIELD, SAMPLE_RATE
    from trainers.learning.precision import pick_device
    from trainers.probing.pooled import Bench
    from trainers.probing.probe import probe_teachers
    from trainers.speech.corpora import check_trainable
    from trainers.speech.loading import load_corpus
    from trainers.speech.trial_lists import study_trials
    from trainers.teacher.teacher import load_teacher

    if not 1 <= seeds <= MOST_SEEDS:
        raise ValueError(f"--seeds is {seeds}; write a number from 1 to {MOST_SEEDS}")
    if not RECEPTIVE_FIELD <= window <= 60 * SAMPLE_RATE:
        raise ValueError(f"--window is {window}; write samples from {RECEPTIVE_FIELD} to {60 * SAMPLE_RATE}")
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise ValueError(f"--out is {str(out)!r}; write a file in a folder that exists")
    started, screen = time.monotonic(), console(stderr=True)
    teachers = [load_teacher(name) for name in (teacher, *(against or ()))]
    for read in teachers:
        read.geometry.frames(window)  # a Whisper's positions end
    with progress(screen, "decoding") as tick:
        corpus = load_corpus(data or [embedded_corpus(cache)], cache, tick)
    check_trainable(corpus)
    bench = Bench(corpus=corpus, trials=study_trials(trials or (), corpus, seed=0), window=window, seeds=tuple(range(seeds)))
    content = probe_teachers(teachers, bench, cache, pick_device(), lambda title: progress(screen, title))
    content["seconds"] = round(time.monotonic() - started, 1)
    if out is not None:
        out.write_text(json.dumps(content, indent=2) + "\n")
    if as_json:
        typer.echo(json.dumps(content, indent=2))
        return
    for table in tables(content):
        console().print(table)
    typer.echo(f"{'synthetic speech; ' if content['synthetic'] else ''}{len(bench.windows):,} windows, {content['seconds']:g} s")


def tables(content: Mapping[str, Any]) -> Iterator["Table"]:
    """What `trainers.probing.probe.probe_teachers` returns: a table of layers for each subject, test scores, differences."""
    said = ", synthetic speech" if content["synthetic"] else ""
    for subject in content["subjects"]:
        table = _table(f"{subject['name']}: validation{said}", "layer", "keyword accuracy, %", "decay", "EER, %", "shrinkage")
        for row in subject["layers"]:
            words, voices = row["keyword_accuracy"], row["eer"]
            best = [" *" if row["layer"] == subject[name] else "  " for name in ("keyword_layer", "speaker_layer")]
            cells = [_spread(words) + best[0], f"{words['regularisation']:g}", _spread(voices) + best[1]]
            table.add_row(str(row["layer"]), *cells, f"{voices['regularisation']:g}")
        table.caption = (
            f"mean ± deviation over {len(content['seeds'])} seeds; * the layer that is tested; 0 is the input of layer 1"
        )
        yield table
    table = _table(f"test{said}, 95 % intervals over speakers and seeds", "", "layer", "keyword accuracy, %", "layer", "EER, %")
    for subject in content["subjects"]:
        words, voices = (_interval(subject["test"][name]) for name in ("keyword_accuracy", "eer"))
        table.add_row(subject["name"], str(subject["keyword_layer"]), words, str(subject["speaker_layer"]), voices)
    yield table
    if any("by_corpus" in subject["test"] for subject in content["subjects"]):
        yield _by_corpus(content, said)
    table = _table(f"test{said}, paired differences with 95 % intervals", "", "keyword accuracy, points", "EER, points")
    for row in content["differences"]:
        words, voices = (_interval(row[name], sign="+") for name in ("keyword_accuracy", "eer"))
        table.add_row(f"{row['of']} minus {row['minus']}", words, voices)
    yield table


def _by_corpus(content: Mapping[str, Any], said: str) -> "Table":
    from nas.report.corpora import cells, corpora_of

    figures = [subject["test"]["by_corpus"] for subject in content["subjects"]]
    names = corpora_of(figures)
    table = _table(f"test{said}, each corpus: keyword accuracy / EER, %", "", *names)
    for subject, own in zip(content["subjects"], figures):
        table.add_row(subject["name"], *cells(own, names))
    return table


def _table(title: str, *columns: str) -> "Table":
    from rich.table import Table

    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    return table


def _spread(figure: Mapping[str, Any]) -> str:
    return f"{figure['mean']:.1f} ± {figure['spread']:.1f}"


def _interval(rate: Mapping[str, Any], sign: str = "") -> str:
    return f"{rate['value']:{sign}.1f} [{rate['low']:{sign}.1f}, {rate['high']:{sign}.1f}]"
