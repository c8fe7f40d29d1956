"""Which keyword is in a recording: numpy and onnxruntime only, nothing of the software that trained the model.

    python classify.py clip.wav            yes  97.3 %
    python classify.py clip.wav --json     every keyword's share
    python classify.py clip.wav --embedding   the speaker embedding as well

Reads 16-bit PCM WAV; other formats where `soundfile` is installed. Lies beside `model.onnx`, `labels.json` and `manifest.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

Samples = npt.NDArray[np.float32]
FRAME_SAMPLES, RECEPTIVE_FIELD = 320, 400  # 50 frames a second, each of which hears 400 samples
LOWEST_RATE = 4_000  # Hz
SMALLEST_PEAK = 1e-4  # of full scale
MOST_CLIPPED = 1e-3  # of the samples
LARGEST_PEAK = 2.0  # of full scale: what is louder is in another scale, and was no training clip either


def load_model(folder: Path) -> tuple[onnxruntime.InferenceSession, dict[str, Any], list[str]]:
    """Session, manifest, labels. Raises ValueError when a file is missing or is not the one that the manifest describes."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        contents = {name: (folder / name).read_bytes() for name in ("model.onnx", "labels.json")}
        hashes = {name: manifest["files"][name]["sha256"] for name in contents}
        threads = int(manifest["target"]["threads"])
        for number in (manifest["window"], manifest["sample_rate"], manifest["outputs"]["embedding"][1]):
            int(number)  # of what the scripts read without asking
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is not a model folder: {Path(error.filename).name} is missing") from None
    except (KeyError, TypeError, IndexError, ValueError):
        raise ValueError(f"{folder / 'manifest.json'} is damaged: export the model again") from None
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != hashes[name]:
            raise ValueError(f"{folder / name} is not the file that manifest.json describes: export the model again")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(contents["model.onnx"], options, providers=["CPUExecutionProvider"])
    return session, manifest, json.loads(contents["labels.json"])


def load_clip(path: Path, rate: int, *, silence: bool = False) -> Samples:
    """Mono samples at `rate`, full scale 1. What is heard of a clip in part is said on standard error.

    Raises ValueError when the file holds no sound that can be read, or one that no training clip could have been: silent (unless
    `silence` is a class), not finite, in another scale."""
    try:
        samples, clip_rate, channels = _read_wav(path)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except (wave.Error, EOFError) as error:
        samples, clip_rate, channels = _read_with_soundfile(path, str(error) or "no WAV header")
    if not len(samples):
        raise ValueError(f"{path} is empty")
    if clip_rate < LOWEST_RATE:
        raise ValueError(f"{path} has {clip_rate} Hz: at least {LOWEST_RATE} are needed")
    if not np.isfinite(samples).all():
        raise ValueError(f"{path} has samples that are not numbers")
    if np.abs(samples).max() < SMALLEST_PEAK and not silence:
        raise ValueError(f"{path} is silent")
    if np.abs(samples).max() > LARGEST_PEAK:
        raise ValueError(f"{path} has samples up to {np.abs(samples).max():.3g}, where full scale is 1: scale them")
    if clip_rate < rate:
        print(f"{path} has {clip_rate} Hz: above {clip_rate // 2} Hz the model hears nothing of it, and errs more", file=sys.stderr)
    if (clipped := float((np.abs(samples) >= 1 - 1 / 32768).mean())) > MOST_CLIPPED:
        print(f"{path} is clipped, {100 * clipped:.1f} % of it: record it again with the input turned down", file=sys.stderr)
    if channels > 1:
        print(f"{path} has {channels} channels: their mean is heard", file=sys.stderr)
    return resample(samples.clip(-1, 1), clip_rate, rate)


def _read_wav(path: Path) -> tuple[Samples, int, int]:
    """(samples,), the rate, and how many channels they are the mean of."""
    with wave.open(str(path), "rb") as clip:
        if clip.getsampwidth() != 2:
            raise wave.Error(f"{8 * clip.getsampwidth()} bits a sample")
        channels, rate = clip.getnchannels(), clip.getframerate()
        most = path.stat().st_size // (2 * channels)  # a recorder that streams writes a size of 4 GB
        data = clip.readframes(min(clip.getnframes(), most))
    whole = data[: len(data) // (2 * channels) * 2 * channels]  # a torn file's last frame is left out
    samples = np.frombuffer(whole, "<i2").reshape(-1, channels).mean(1, dtype=np.float32) / 32768
    return samples, rate, channels


def _read_with_soundfile(path: Path, reason: str) -> tuple[Samples, int, int]:
    try:
        import soundfile  # type: ignore[import-untyped, unused-ignore]
    except (ImportError, OSError):  # OSError: the package without its library
        raise ValueError(f"{path} is not a 16-bit PCM WAV file ({reason}): convert it, or pip install soundfile") from None
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (RuntimeError, TypeError):
        raise ValueError(f"{path} is not a sound file that can be read ({reason})") from None
    return samples.mean(1, dtype=np.float32), int(rate), samples.shape[1]


def resample(samples: Samples, rate: int, new_rate: int) -> Samples:
    """Band-limited interpolation with a Hann-windowed sinc, one filter a phase (Smith and Gossett 1984)."""
    if rate == new_rate:
        return samples
    up, down = new_rate // math.gcd(rate, new_rate), rate // math.gcd(rate, new_rate)
    cutoff = min(1.0, new_rate / rate)
    half = math.ceil(24 / cutoff)  # taps on each side
    views = np.lib.stride_tricks.sliding_window_view(np.pad(samples, half), 2 * half + 1)
    result = np.zeros(math.ceil(len(samples) * up / down), np.float32)
    for phase in range(min(up, len(result))):
        distance = np.arange(-half, half + 1) - phase * down % up / up
        taps = cutoff * np.sinc(cutoff * distance) * np.cos(np.pi * distance / (2 * half + 2)) ** 2
        result[phase::up] = views[phase * down // up :: down][: len(result[phase::up])] @ taps.astype(np.float32)
    return result


def cut(samples: Samples, window: int) -> Samples:
    """(windows, window): a short clip padded with zeros at its end; a long one in contiguous windows, the last one at its end."""
    if len(samples) <= window:
        return np.pad(samples, (0, window - len(samples)))[None]
    hop = ((window - RECEPTIVE_FIELD) // FRAME_SAMPLES + 1) * FRAME_SAMPLES  # the frames of one window follow the last's
    starts = [*range(0, len(samples) - window, hop), len(samples) - window]
    return np.stack([samples[start : start + window] for start in starts])


def classify(session: onnxruntime.InferenceSession, windows: Samples) -> tuple[Samples, Samples]:
    """(windows, window) -> probability of each label and unit-length embedding, both of the clip as a whole."""
    outputs = [session.run(["logits", "embedding"], {"audio": window[None]}) for window in windows]
    logits, embedding = (np.mean([output[i][0] for output in outputs], 0) for i in (0, 1))
    exponents = np.exp(logits - logits.max())
    return exponents / exponents.sum(), embedding / np.linalg.norm(embedding)


def main() -> int:
    parser = argparse.ArgumentParser(description="Which keyword is in a recording.")
    parser.add_argument("clip", type=Path)
    parser.add_argument("--model-folder", type=Path, default=Path(__file__).parent, help="default: this script's folder")
    parser.add_argument("--json", action="store_true", help="print every keyword's share as JSON, likeliest first")
    parser.add_argument("--embedding", action="store_true", help="print the speaker embedding as well")
    arguments = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):  # a label that the terminal's code page lacks is written in escapes
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        session, manifest, labels = load_model(arguments.model_folder)
        clip = load_clip(arguments.clip, manifest["sample_rate"], silence="_silence_" in labels)
    except ValueError as error:
        print(f"classify: {error}", file=sys.stderr)
        return 2
    shares, embedding = classify(session, cut(clip, manifest["window"]))
    ranked = {labels[i]: float(shares[i]) for i in np.argsort(-shares)}
    if arguments.json:
        extra = {"embedding": embedding.tolist()} if arguments.embedding else {}
        print(json.dumps({"keyword": next(iter(ranked)), "shares": ranked, **extra}))
        return 0
    print(f"{next(iter(ranked))}  {100 * max(shares):.1f} %")
    if arguments.embedding:
        print(" ".join(f"{value:.6f}" for value in embedding))
    return 0


if __name__ == "__main__":
    sys.exit(main())
