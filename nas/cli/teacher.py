"""`srlnas teacher`: what a teacher is, what its layers hold, and how to make one."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli.options import TrackingUri, exit_code, numbers
from nas.cli.probe import probe

if TYPE_CHECKING:
    from trainers.pretraining.pretrain import UnitSource

teacher_app = typer.Typer(no_args_is_help=True, help="Teachers: check, probe, pretrain.")


@teacher_app.command()
def check(
    teacher: Annotated[str, typer.Argument(help="`mini`, `mini-hubert` (bundled), a folder or a hub id.")] = "mini",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Load a teacher, run it on a second of noise, and report what it is."""
    from trainers.teacher.teacher import describe_teacher

    content = describe_teacher(teacher)
    typer.echo(json.dumps(content, indent=2) if as_json else "\n".join(teacher_lines(content)))


def teacher_lines(content: Mapping[str, Any]) -> Iterator[str]:
    """`trainers.teacher.teacher.describe_teacher` as lines of text."""
    c = content
    layers = ", ".join(map(str, c["predicted_layers"]))
    norm_order = {"pre": "before", "post": "after"}[c["norm_order"]]
    assumed = " (assumed: no preprocessor_config.json says so)" if c["normalize_input_assumed"] else ""
    relative = f"{c['relative_buckets']} buckets up to {c['relative_distance']} frames; students drop it"
    training = "with transcripts: supervised, not self-supervised" if c["supervised"] else "on speech alone: self-supervised"
    yield f"{c['teacher']}: {c['family']}, size {c['size']}, digest {c['digest']}, licence {c['licence']}"
    yield f"trained: {training}"
    yield f"params: {c['params']:,} on disk in {', '.join(c['precision'])}; {c['encoder_params']:,} in the encoder"
    yield f"transformer: {c['layers']} layers of width {c['width']}, {c['heads']} heads, {c['ffn_dim']} feed-forward units"
    yield f"layer norm: {norm_order} attention and feed-forward"
    if c["position_table"]:
        yield f"positions: a fixed table of {c['position_table']} frames"
    else:
        yield f"relative position bias: {relative if c['relative_buckets'] else 'none'}"
    yield (
        f"convolutions: {'-'.join(map(str, c['conv_dims']))} channels, {c['conv_norm'].replace('none', 'no')} norm, "
        f"{'with' if c['conv_bias'] else 'without'} bias, {c['frames_per_second']} frames a second, frame t centred on sample "
        f"{c['frame_center']}"
    )
    yield f"input: {'zero mean, unit variance' if c['normalize_input'] else 'as it is'}{assumed}"
    yield f"students learn: layers {layers}"
    for name, file in c["files"].items():
        yield f"file: {name}, {file['bytes']:,} bytes, SHA-256 {file['sha256']}"
    yield "hidden states on a second of noise: finite"


@teacher_app.command()
def pretrain(
    out: Annotated[Path, typer.Argument(help="Folder of the teacher to make; until it is done the run lives in OUT.pretraining.")],
    data: Annotated[
        list[Path] | None, typer.Option(help="Parquet corpus; may be repeated. Default: an embedded synthetic one.")
    ] = None,
    noise: Annotated[Path | None, typer.Option(help="Parquet corpus of background noise.")] = None,
    shape: Annotated[str, typer.Option(help="`mini-hubert`, `base`, `large`, or a HuBERT's folder.")] = "mini-hubert",
    start: Annotated[
        str | None, typer.Option(help="Go on from this teacher's weights and shape: a HuBERT's folder, or `mini-hubert`.")
    ] = None,
    units_from: Annotated[
        str | None,
        typer.Option(help="TEACHER or TEACHER:LAYER, whose states give the first units instead of MFCCs; default: its last."),
    ] = None,
    steps: Annotated[
        str | None, typer.Option(help="Updates of each iteration; default: 3000,8000, with --units-from 8000.")
    ] = None,
    units: Annotated[
        str | None,
        typer.Option(help="K-means units of each iteration, later ones of its own hidden state; default: 100,500, or 500."),
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Whose hidden state gives the later units; default: two thirds up.")] = None,
    batch: Annotated[int, typer.Option(help="Windows an update.")] = 32,
    window: Annotated[int, typer.Option(help="Samples of a window.")] = 16_080,
    rate: Annotated[float, typer.Option(help="AdamW's highest rate.")] = 1e-3,
    mask_share: Annotated[float, typer.Option(help="Share of frames at which a masked span begins.")] = 0.08,
    mask_frames: Annotated[int, typer.Option(help="Frames of a masked span.")] = 10,
    unmasked_weight: Annotated[float, typer.Option(help="Of the loss over frames that are not masked.")] = 0.0,
    mix_share: Annotated[float, typer.Option(help="Share of windows that another talker is mixed into.")] = 0.0,
    noise_share: Annotated[
        float | None, typer.Option(help="Share of windows that noise is mixed into; default: 0.3 with --noise, else 0.")
    ] = None,
    speeds: Annotated[str, typer.Option(help="At which every clip is heard.")] = "1,0.9,1.1",
    seed: Annotated[int, typer.Option(help="Of weights, units and batches.")] = 0,
    licence: Annotated[str, typer.Option(help="For the model card: what the data allows.")] = "other",
    cache: Annotated[Path, typer.Option(help="Folder for decoded audio.")] = Path("studies/.cache"),
    tracking_uri: TrackingUri = None,
) -> None:
    """Make a teacher of one's own speech by HuBERT's recipe. The same command continues a run that was interrupted."""
    from nas.pretrain import pretrain_teacher
    from nas.study.progress import console, progress
    from nas.worker.context import embedded_corpus
    from trainers.networks.dimensions import dimensions
    from trainers.pretraining.pretrain import PretrainRecipe
    from trainers.speech.loading import load_corpus
    from trainers.teacher.writer import teacher_shape

    recipe = PretrainRecipe(
        steps=numbers(steps or ("8000" if units_from else "3000,8000"), "--steps", int),
        units=numbers(units or ("500" if units_from else "100,500"), "--units", int),
        layer=layer if layer is not None else max(1, round(dimensions(*teacher_shape(start or shape))[0].depth * 2 / 3)),
        batch=batch,
        window=window,
        rate=rate,
        mask_share=mask_share,
        mask_frames=mask_frames,
        unmasked_weight=unmasked_weight,
        mix_share=mix_share,
        noise_share=noise_share if noise_share is not None else 0.3 if noise else 0.0,
        speeds=numbers(speeds, "--speeds", float),
        seed=seed,
    )
    source = unit_source(units_from) if units_from is not None else None
    if source:
        source.teacher.geometry.frames(window)  # a Whisper's positions end
    with progress(console(), "decoding") as tick:
        corpus = load_corpus(data or [embedded_corpus(cache)], cache, tick)
        noises = load_corpus([noise], cache) if noise else None
    try:
        facts = pretrain_teacher(
            out,
            corpus,
            noises,
            recipe,
            shape=shape,
            start=start,
            units_from=source,
            licence=licence,
            tracking_uri=tracking_uri,
            console=console(),
        )
    except KeyboardInterrupt as stop:
        typer.echo("\ninterrupted; the same command continues from the last checkpoint")
        raise typer.Exit(exit_code(stop)) from None
    typer.echo(f"{out}: a teacher after {facts['hours']:.2f} hours; look at it with:\n  srlnas teacher check {out}")
    typer.echo(f"  srlnas teacher probe {out}\n  srlnas search --teacher {out}")


def unit_source(text: str) -> "UnitSource":
    """`TEACHER` or `TEACHER:LAYER`. Raises ValueError where it is no teacher, or has no such layer."""
    from trainers.pretraining.pretrain import UnitSource
    from trainers.teacher.teacher import load_teacher

    name, _, layer = text.rpartition(":")
    if not name or not layer.isdecimal():
        name, layer = text, ""
    teacher = load_teacher(name)
    return UnitSource(teacher=teacher, layer=int(layer) if layer else teacher.architecture.depth)


teacher_app.command()(probe)
