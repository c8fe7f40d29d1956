"""The README of a bundle: how it is used, what it was tested on, where it fails, and what it may be used for."""

from collections.abc import Iterator, Mapping
from typing import Any

from deploy.export import INPUT
from search_spaces.architecture import EMBEDDING_DIM
from trainers.scoring.scores import by_corpus

Manifest = Mapping[str, Any]

USE = """# {name}

{note}Finds which of {count} keywords is in a recording of one second, and whose voice it is: {labels}.

    pip install numpy onnxruntime
    python classify.py clip.wav               # the keyword and its probability
    python classify.py clip.wav --json        # every keyword
    python classify.py clip.wav --embedding   # and the speaker embedding, {embedding} numbers of unit length
    python enrol.py ada 1.wav 2.wav 3.wav     # makes a voice known; `voices.json` holds numbers, no sound
    python listen.py                          # the microphone (pip install sounddevice), a recording, or - for raw PCM

`listen.py` writes one JSON line for each keyword: time, keyword, probability, speaker, similarity. Ten times a second it hears
the last window, unless all is quiet.

`model.onnx` hears `{input}`: (1, {window}) float32 samples at {rate} Hz, full scale 1. `manifest.json` has its scores, its latency,
where it comes from and the hashes of all files; `parity.json` how far it is from the student it was exported from.
`srlnas verify` checks hashes, and that the model answers on this machine as it did when it was exported.
"""


def card(manifest: Manifest) -> str:
    """Of manifest.json's content, in Markdown."""
    use = USE.format(
        name=manifest["name"],
        note="Its scores were taken on synthetic speech.\n\n" if manifest["synthetic"] else "",
        count=len(manifest["labels"]),
        labels=", ".join(manifest["labels"]),
        embedding=EMBEDDING_DIM,
        input=INPUT,
        window=manifest["window"],
        rate=manifest["sample_rate"],
    )
    parts = {
        "Tested": list(_tested(manifest["scores"])),
        "Where it fails": list(_fails(manifest)),
        "Voices": list(_voices(manifest["voice_thresholds"])),
        "Latency": list(_latency(manifest.get("latency"))),
        "What it may be used for": list(_licences(manifest["provenance"])),
    }
    return "\n".join([use, *(f"## {title}\n\n" + "\n".join(lines) + "\n" for title, lines in parts.items() if lines)])


def _tested(scores: Mapping[str, Any]) -> Iterator[str]:
    """Of a search's flat scores; nothing of others."""
    if "test_keyword_error" not in scores:
        return
    error, eer = ([scores[f"test_{name}{end}"] for end in ("", "_low", "_high")] for name in ("keyword_error", "eer"))
    yield "Speakers that it never heard, with 95 % intervals:"
    yield ""
    yield f"- keywords: {100 - error[0]:.1f} [{100 - error[2]:.1f}, {100 - error[1]:.1f}] % accuracy"
    yield f"- voices: {eer[0]:.1f} [{eer[1]:.1f}, {eer[2]:.1f}] % equal error rate"
    for corpus, own in by_corpus(scores, "test").items():
        yield f"- {corpus}: " + ", ".join(f"{_name(kind)} {rate['value']:.1f} %" for kind, rate in own.items())


def _name(kind: str) -> str:
    return "EER" if kind == "eer" else kind


def _fails(manifest: Manifest) -> Iterator[str]:
    corpora = by_corpus(manifest["scores"], "test")
    unknown = ", less so since `_unknown_` is one of them" if "_unknown_" in manifest["labels"] else ""
    for kind, worst in (("accuracy", min), ("eer", max)):
        found = {corpus: own[kind]["value"] for corpus, own in corpora.items() if kind in own}
        if len(found) > 1:
            corpus = worst(found, key=lambda name: found[name])
            yield f"- It is worst on {corpus}: {_name(kind)} {found[corpus]:.1f} %."
    yield f"- It knows its keywords alone, and takes other words for them{unknown}."
    yield "- The threshold of `listen.py` for keywords was not chosen on other speech: raise `--threshold` where it errs."


def _voices(thresholds: list[Mapping[str, Any]]) -> Iterator[str]:
    for entry in thresholds:
        said = f"- {entry['false_acceptance']:g} % of other voices are taken for the enrolled one"
        if "threshold" in entry:
            yield f"{said} from a similarity of {entry['threshold']:.3f} on; {entry['missed']:.0f} % of its own clips are missed."
        else:
            yield f"{said}: unsupported, {entry['unsupported']}."
    if thresholds:
        yield ""
        yield "Chosen on pairs of single clips of validation speakers."


def _latency(latency: Mapping[str, Any] | None) -> Iterator[str]:
    if latency:
        window = f"a window of {latency['window']} samples"
        how = f"{latency['how']}: {latency['target']}, {latency['threads']} thread, {latency['precision']}"
        yield f"{latency['milliseconds']:.2f} [{latency['low']:.2f}, {latency['high']:.2f}] ms {window}, {how}."
        yield f"Ten windows a second take {latency['milliseconds']:.1f} % of one core."


def _licences(provenance: Mapping[str, Any]) -> Iterator[str]:
    if teacher := provenance.get("teacher"):
        yield f"- It was distilled from the teacher {teacher['name']}, whose licence is: {teacher.get('licence', 'not stated')}."
    if (corpus := provenance.get("corpus")) and corpus["files"]:
        yield f"- It learned from {', '.join(corpus['files'])}. The licence of this speech is not known: ask who recorded it."
    elif corpus:
        yield "- It learned from a demonstration corpus that espeak-ng spoke: it is not for use."
