"""The README of a bundle: how it is used, what it was tested on, where it fails, and what it may be used for."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deploy.export import INPUT
from search_spaces.architecture import EMBEDDING_DIM
from trainers.scoring.scores import by_corpus

Manifest = Mapping[str, Any]

REAL_TIME = 100.0  # milliseconds of a window: ten of them a second
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
        "Integers": list(int8_lines(manifest)),
        "Where it fails": list(_fails(manifest)),
        "Keywords in a stream": list(keyword_lines(manifest)),
        "Voices": list(voice_lines(manifest)),
        "Latency": list(_times(manifest)),
        "What it may be used for": list(_licences(manifest["provenance"])),
    }
    return "\n".join([use, *(f"## {title}\n\n" + "\n".join(lines) + "\n" for title, lines in parts.items() if lines)])


def shown_lines(manifest: Manifest) -> list[str]:
    """What integers and thresholds showed, a line each."""
    return [line for line in (*int8_lines(manifest), *keyword_lines(manifest), *voice_lines(manifest)) if line]


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


def int8_lines(manifest: Manifest) -> Iterator[str]:
    """What integers changed, where it has them. A line each."""
    if found := manifest.get("int8"):
        ratio = found["latency_ratio"]
        marks = f" (measurement: {', '.join(ratio['marks'])})" if ratio["marks"] else ""
        time = f"{_interval(ratio, 2)} of its time on {ratio['machine']}{marks}"
        yield f"- int8: {found['size_ratio']:.2f} of the size of fp32, {time}."
        if found["loss_was_accepted"]:
            yield "- int8 loses more than validation allows. That was accepted (--accept-loss)."
        for split, speakers in (("val", "validation"), ("test", "test")):
            accuracy, eer = (_interval(found[split][f"{name}_change"], 1, "+") for name in ("accuracy", "eer"))
            yield f"- int8 against fp32, {speakers} speakers: accuracy {accuracy} points, EER {eer}."


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
    if hardest := manifest.get("worst_speakers"):
        who = f"the {hardest['speakers']} of {hardest['of']} test speakers whom it hears worst"
        yield f"- Of {who}, it hears {hardest['accuracy']:.1f} % of the keywords."
    yield f"- It knows its keywords alone, and takes other words for them{unknown}."
    if not any("keywords" in entry for entry in manifest.get("keyword_thresholds", ())):
        yield "- The threshold of `listen.py` for keywords was not chosen on other speech: raise `--threshold` where it errs."


def keyword_lines(manifest: Manifest) -> Iterator[str]:
    """Which rates of false alarms its thresholds support, and what a stream of test speakers showed of them. A line each."""
    shown = {entry["chosen_for"]: entry for entry in manifest.get("stream", ())}
    for entry in manifest.get("keyword_thresholds", ()):
        rate = entry["false_alarms_an_hour"]
        if "unsupported" in entry:
            yield f"- {rate:g} false alarms an hour of each keyword: unsupported, {entry['unsupported']}."
            continue
        missed = [own["missed"] for own in entry["keywords"].values() if own["missed"] is not None]
        chosen = f"{sum(missed) / len(missed):.1f} % of validation words are missed" if missed else "no validation word tells more"
        heard = f"over {entry['hours_of_negatives']:g} hours of other speech and recordings"
        yield f"- {rate:g} false alarms an hour of each keyword, {heard}: {chosen}."
        if mute := [keyword for keyword, own in entry["keywords"].items() if own["threshold"] is None]:
            yield f"  Never told at this rate: {', '.join(mute)}."
        if rate in shown:
            yield from _stream(shown[rate])
    if shown and manifest.get("stream_noise_was_heard"):
        yield "  The noise of these streams was heard in training: there is no other. Other rooms may be harder."


def _stream(shown: Mapping[str, Any]) -> Iterator[str]:
    missed, alarms, delay = shown["missed"], shown["false_alarms_an_hour"], shown["delay_ms"]
    yield (
        f"  {shown['hours']:.2g} hours of test speakers in noise, {shown['words']} words: {_interval(missed)} % missed, "
        f"{_interval(alarms)} false alarms an hour of all keywords together"
        + (f", {delay['median']} ms after a word's end ({delay['ninth_decile']} in a tenth of cases)." if delay else ".")
    )
    levels = [f"{own['value']:.0f} % at {snr} dB" for snr, own in shown["missed_by_snr_db"].items() if own]
    if levels:
        yield f"  Missed by signal-to-noise ratio: {', '.join(levels)}."


def _interval(rate: Mapping[str, float] | None, digits: int = 1, sign: str = "") -> str:
    form = f"{sign}.{digits}f"
    return f"{rate['value']:{form}} [{rate['low']:{form}}, {rate['high']:{form}}]" if rate else "-"


def voice_lines(manifest: Manifest) -> Iterator[str]:
    """Which rates of voices that are taken for another its thresholds support, and what streams of test speakers showed; where
    streams supported none, those of clips."""
    shown = {entry["chosen_for"]: entry for entry in manifest.get("stream_voices", ())}
    streams = manifest.get("stream_voice_thresholds", ())
    in_streams = any("threshold" in entry for entry in streams)
    for entry in streams if in_streams else manifest["voice_thresholds"]:
        rate, what = entry["false_acceptance"], "words" if in_streams else "clips"
        said = f"- {rate:g} % of other voices' {what} are taken for the enrolled one's"
        if "unsupported" in entry:
            yield f"{said}: unsupported, {entry['unsupported']}."
            continue
        few = f" {', '.join(entry['without'])} had too few to count." if entry.get("without") else ""
        yield f"{said} from a similarity of {entry['threshold']:.3f} on; {entry['missed']:.0f} % of its own {what} are missed.{few}"
        if found := shown.get(rate):
            taken = f"{_interval(found['accepted'])} % of others' words were taken for one"
            missed = f"{_interval(found['missed'])} % of their own were missed"
            yield f"  {found['voices']} test speakers, {found['events']} words of theirs: {taken}, {missed}."
    if in_streams:
        yield ""
        yield "Chosen on keywords in streams of validation speakers, whose voices three other clips made known."
    elif manifest["voice_thresholds"]:
        yield ""
        yield "Chosen on pairs of single clips of validation speakers. Words in a stream may be harder."
        if streams:
            yield "The streams of validation had too few words of known voices to choose on."


def _times(manifest: Manifest) -> Iterator[str]:
    yield from _latency(manifest.get("latency"))
    yield from _listening(manifest.get("listening"))
    yield from _elsewhere(manifest.get("elsewhere", ()))


def _latency(latency: Mapping[str, Any] | None) -> Iterator[str]:
    if latency:
        window = f"a window of {latency['window']} samples"
        threads = latency["threads"]
        how = f"{latency['how']}: {latency['target']}, {threads} thread{'s' * (threads > 1)}, {latency['precision']}"
        yield f"{latency['milliseconds']:.2f} [{latency['low']:.2f}, {latency['high']:.2f}] ms {window}, {how}."
        yield f"Ten windows a second take {latency['milliseconds'] * threads:.1f} % of one core."
        if latency["milliseconds"] > REAL_TIME:
            yield "So many it does not hear in time: give `listen.py` a longer `--hop`."


def _listening(found: Mapping[str, Any] | None) -> Iterator[str]:
    if found:
        yield f"On {found['machine']}, `listen.py` took {found['share_of_a_core']:.1f} % of a core for streams of dense speech."


def _elsewhere(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if found:
        yield ""
        yield "On other devices, predicted from their data sheets, and what ten windows a second take of one core:"
        yield ""
    for other in found:
        time = _interval({**other, "value": other["milliseconds"]})
        yield f"- {other['target']}: {time} ms in {other['precision']}, {other['milliseconds'] * other['threads']:.0f} %."


def _licences(provenance: Mapping[str, Any]) -> Iterator[str]:
    if teacher := provenance.get("teacher"):
        yield f"- It was distilled from the teacher {teacher['name']}, whose licence is: {teacher.get('licence', 'not stated')}."
    if began_with := provenance.get("began_with"):
        yield f"- It began with the shared weights {began_with}. What those learned from is not known here: ask who made them."
    if (corpus := provenance.get("corpus")) and corpus["files"]:
        noise = provenance.get("noise", {})  # models that were logged before do not know it
        for name, licence in [*(corpus.get("licences") or dict.fromkeys(corpus["files"])).items(), *noise.items()]:
            known = f"whose licence is: {licence}." if licence else "whose licence is not known: ask who recorded it."
            yield f"- It learned {'in noise ' if name in noise else ''}from {name}, {known}"
    elif corpus:
        yield "- It learned from a demonstration corpus that espeak-ng spoke: it is not for use."
