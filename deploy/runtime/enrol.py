"""Makes a voice known to listen.py: three clips or more of one person.

    python enrol.py ada one.wav two.wav three.wav
    python enrol.py --list
    python enrol.py --remove ada

What is stored in voices.json: a name and the clips' mean embedding, numbers that describe the voice. No sound is stored.
The numbers are personal data: whoever has them can tell this voice from others. They are good for this model alone.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.dont_write_bytecode = True  # the folder keeps the files that were exported, and no other code
from classify import Samples, classify, cut, load_clip, load_model  # noqa: E402

VOICES_FILE = "voices.json"
FEWEST_CLIPS = 3
SHORTEST = 0.3  # seconds
LONGEST_NAME = 60
SPEECH_RANGE = 10.0  # decibels between loud and quiet moments: speech has pauses and consonants, noise and hum have not
PITCHES = 60, 400  # Hz
VOICED = 0.5  # autocorrelation at a pitch, from which a frame is voiced
FEWEST_VOICED = 0.2  # of the loud frames: 900 clips of three corpora had 0.43 and more in 99 of 100, noise and its bursts 0.05
LISTENING = 5.0  # percent of other voices that are taken for this one by listen.py
Voices = dict[str, Samples]


def read_voices(path: Path, manifest: dict[str, Any], *, must_exist: bool = False) -> Voices:
    """Each voice's embedding, of unit length, by name, none where there is no file. Raises ValueError where it is damaged or of
    another model."""
    if not path.is_file():
        if must_exist:
            raise ValueError(f"there is no file {path}")
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        with np.errstate(over="ignore"):  # what is too large is not finite
            voices = {name: np.array(kept["embedding"], np.float32) for name, kept in content["voices"].items()}
        model = content["model"]
        size = manifest["outputs"]["embedding"][1]
        if not all(voice.shape == (size,) and np.isfinite(voice).all() for voice in voices.values()):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is damaged: delete it and enrol again") from None
    if model != manifest["files"]["model.onnx"]["sha256"]:
        raise ValueError(f"{path} was made with another model: delete it and enrol again")
    return voices


def voice_threshold(manifest: dict[str, Any], rate: float, among: str = "voice_thresholds") -> float | None:
    """The similarity from which a voice is taken for another, in at most `rate` percent of cases; of the next higher rate that the
    manifest supports; None where it supports none. among: those chosen on clips, or on `stream_voice_thresholds`."""
    return next((threshold for known, threshold in sorted(stated(manifest, among)) if known >= rate), None)


def enrolment_threshold(manifest: dict[str, Any]) -> float | None:
    """The similarity from which clips may be of one voice: the lowest that the manifest has for clips, as nearly all of one voice
    reach it; None where it has none."""
    return min((threshold for _, threshold in stated(manifest, "voice_thresholds")), default=None)


def stated(manifest: dict[str, Any], among: str) -> list[tuple[float, float]]:
    """Percent of other voices that are taken for one, and the similarity. Raises ValueError where they are no numbers."""
    try:
        entries = [entry for entry in manifest.get(among, ()) if "threshold" in entry]
        return [(float(entry["false_acceptance"]), float(entry["threshold"])) for entry in entries]
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
        raise ValueError("manifest.json is damaged: export the model again") from None


def embedding_of(path: Path, session: Any, manifest: dict[str, Any]) -> Samples:
    """Unit length. Raises ValueError where the clip cannot be read, or holds no speech."""
    clip = load_clip(path, manifest["sample_rate"])
    frame = manifest["sample_rate"] // 50
    power = 10 * np.log10(np.square(clip[: len(clip) // frame * frame].reshape(-1, frame)).mean(1) + 1e-9)
    if len(clip) < SHORTEST * manifest["sample_rate"]:
        raise ValueError(f"{path} is too short to tell a voice: a clip has at least {SHORTEST:g} seconds")
    is_even = np.quantile(power, 0.95) - np.quantile(power, 0.1) < SPEECH_RANGE
    if is_even or voiced_share(clip, manifest["sample_rate"]) < FEWEST_VOICED:
        raise ValueError(f"{path} sounds like noise or hum, not like speech: record it again, with a pause before and after")
    embedding: Samples = classify(session, cut(clip, manifest["window"]))[1]
    return embedding


def voiced_share(clip: Samples, rate: int) -> float:
    """Of the frames of 32 ms within 20 dB of the loudest, those that repeat themselves at a voice's pitch: autocorrelation, divided
    by what the frame's ends take from it (Boersma 1993)."""
    size = rate * 32 // 1000
    frames = np.lib.stride_tricks.sliding_window_view(clip, size)[:: size // 2]
    frames = frames - frames.mean(1, keepdims=True)
    power = np.square(frames).mean(1)
    spectrum = np.fft.rfft(frames[power >= power.max() / 100], 2 * size)
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)
    lags = np.arange(rate // PITCHES[1], rate // PITCHES[0])
    repeats = correlation[:, lags] / (correlation[:, :1] + 1e-9) * size / (size - lags)
    return float((repeats.max(1) > VOICED).mean())


def enrolled(paths: list[Path], session: Any, manifest: dict[str, Any], threshold: float | None) -> Samples:
    """The mean of the clips' embeddings, of unit length: in streams it tells voices apart a little better than a mean that is short
    where its clips differ. Raises ValueError for fewer than three, or clips that fall into two voices."""
    if len(paths) < FEWEST_CLIPS:
        raise ValueError(f"a voice needs {FEWEST_CLIPS} different clips or more, these are {len(paths)}")
    embeddings = np.stack([embedding_of(path, session, manifest) for path in paths])
    one, similarity = two_groups(embeddings)
    if threshold is not None and similarity < threshold:
        names = ", ".join(paths[i].name for i in np.flatnonzero(one))
        raise ValueError(
            f"{names} sound like another voice than the other clips (similarity {similarity:.2f}, at least {threshold:.2f} is "
            "wanted): give clips of one person, or --accept"
        )
    voice: Samples = embeddings.mean(0)
    return voice / np.linalg.norm(voice)


def different(paths: list[Path]) -> list[Path]:
    """Without those that have another one's content. Raises ValueError for one that cannot be read."""
    try:
        return list({path.read_bytes(): path for path in reversed(paths)}.values())[::-1]
    except OSError as error:
        raise ValueError(f"cannot read {error.filename}: {error.strerror}") from None


def two_groups(embeddings: Samples) -> tuple[npt.NDArray[np.bool_], float]:
    """The clips of the smaller of the two groups into which they fall most easily, and the mean similarity between the groups."""
    ends = np.linalg.svd(embeddings - embeddings.mean(0), full_matrices=False)[0][:, 0]
    one = ends > 0 if 2 * (ends > 0).sum() <= len(ends) else ends <= 0
    return one, float((embeddings[one] @ embeddings[~one].T).mean()) if one.any() else 1.0


def write_voices(path: Path, voices: Voices, manifest: dict[str, Any]) -> None:
    content = {
        "model": manifest["files"]["model.onnx"]["sha256"],
        "voices": {name: {"embedding": [round(float(value), 6) for value in voice]} for name, voice in sorted(voices.items())},
    }
    unfinished = path.with_name(f".{path.name}.new")
    unfinished.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(path)


def changed(arguments: argparse.Namespace) -> str:
    """Does what was asked, and tells it in a line."""
    session, manifest, _ = load_model(arguments.model_folder)
    path = arguments.voices or arguments.model_folder / VOICES_FILE
    voices, name = read_voices(path, manifest), arguments.name
    if arguments.list or (name is None and not arguments.remove):
        return ", ".join(sorted(voices)) or "nobody is enrolled"
    if arguments.remove:
        if name is not None:
            raise ValueError(f"--remove takes one name; {name} was given as well")
        if arguments.remove not in voices:
            raise ValueError(f"{arguments.remove} is not enrolled; known are: {', '.join(sorted(voices)) or 'nobody'}")
        write_voices(path, {known: voice for known, voice in voices.items() if known != arguments.remove}, manifest)
        return f"{arguments.remove} is removed from {path}"
    if not name.isprintable() or not 0 < len(name.strip()) <= LONGEST_NAME or name == "unknown":
        raise ValueError(f"{name!r} is no name: 1 to {LONGEST_NAME} letters, and not `unknown`")
    threshold, clips = None if arguments.accept else enrolment_threshold(manifest), different(arguments.clips)
    voice = enrolled(clips, session, manifest, threshold)
    write_voices(path, {**voices, name: voice}, manifest)
    stored = "replaces the voice of that name" if name in voices else "is stored"
    is_unsure = threshold is None and not arguments.accept
    unsure = "; no threshold is known by which clips of two voices were told" if is_unsure else ""
    return f"{name} {stored} in {path}: {len(voice)} numbers that describe the voice in {len(clips)} clips, no sound{unsure}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Makes a voice known to listen.py.")
    parser.add_argument("name", nargs="?", help="of the person")
    parser.add_argument("clips", nargs="*", type=Path, help="three or more, of this voice alone")
    parser.add_argument("--list", action="store_true", help="names of known voices")
    parser.add_argument("--remove", help="forget this voice")
    parser.add_argument("--accept", action="store_true", help="also where the clips sound like several voices")
    parser.add_argument("--model-folder", type=Path, default=Path(__file__).parent, help="default: this script's folder")
    parser.add_argument("--voices", type=Path, help=f"default: {VOICES_FILE} in the model's folder")
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal's code page lacks is written in escapes
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        print(changed(parser.parse_args()))
    except (ValueError, OSError) as error:
        print(f"enrol: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
