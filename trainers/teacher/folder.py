"""A teacher's folder in transformers format: where it is, its configuration and preprocessing, its digest and licence."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_spaces.architecture import SAMPLE_RATE
from trainers.teacher.checkpoint import INDEX, SHARDS, WEIGHTS, read_json, weight_files

BUNDLED = {name: Path(__file__).parents[1] / "bundled" / name for name in ("mini", "mini-hubert")}
FAMILIES = ("hubert", "wav2vec2", "wavlm", "whisper")
CONFIG, CARD, LICENCE = "config.json", "README.md", "LICENSE"
NOT_STATED = "not stated"  # of a licence
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")  # transformers 5 writes the second with a CTC model


WHISPER_MELS = {"n_fft": 400, "hop_length": 160, "dither": 0.0}  # of a preprocessor's file; others are another log-mel


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """normalizes: input has zero mean and unit variance. assumed: no file says so; it is transformers' default."""

    normalizes: bool
    assumed: bool
    sample_rate: int


def find_folder(source: str) -> Path:
    """A bundled name, a folder, or a hub id, fetched unless cached. Raises ValueError when it is none of these."""
    if source in BUNDLED:
        return BUNDLED[source]
    if source and Path(source).is_dir():  # Path("") is the working folder
        return Path(source)
    if source and Path(source).is_file():
        raise ValueError(f"teacher {source!r} is a file; give the folder that holds it and its {CONFIG}")
    return _download(source)


def absolute_source(source: str) -> str:
    """The same teacher by a name that holds in every working folder. Raises nothing: whether it is one is seen on loading."""
    local = source and source not in BUNDLED and Path(source).is_dir()
    return str(Path(source).resolve()) if local else source


def _download(source: str) -> Path:
    hub_id, _, revision = source.partition("@")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", hub_id) or not re.fullmatch(r"[\w./-]*", revision):
        raise ValueError(
            f"teacher {source!r} is neither {' nor '.join(f'`{name}`' for name in BUNDLED)}, nor an existing folder, nor a hub id "
            "such as facebook/hubert-base-ls960 (with @REVISION where you want one)"
        )
    import huggingface_hub

    try:
        patterns = [CONFIG, INDEX, SHARDS, CARD, LICENCE, *PREPROCESSORS]
        return Path(huggingface_hub.snapshot_download(hub_id, revision=revision or None, allow_patterns=patterns))
    except Exception as error:  # the hub client raises many kinds: offline, unknown, gated
        raise ValueError(
            f"teacher {source!r} is no folder here and could not be fetched from the hub ({type(error).__name__}); "
            "download it elsewhere and give the folder"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """Raises ValueError when the folder has none, when it is of another family, or when it names code of its own."""
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} is not a teacher: it has no {CONFIG} (a folder in transformers format, weights as safetensors)")
    config = read_json(folder / CONFIG)
    if config.get("model_type") not in FAMILIES:
        raise ValueError(f"{folder} is a {config.get('model_type')!r} model; a teacher is one of {', '.join(FAMILIES)}")
    if "auto_map" in config:
        raise ValueError(
            f"{folder}/{CONFIG} names Python code of its own (auto_map), which is never run; if the weights are those of a plain "
            f"{config['model_type']} model, delete that entry"
        )
    return config


def read_preprocessing(folder: Path, config: Mapping[str, Any]) -> Preprocessing:
    """What the preprocessor's file says; transformers' defaults where it is silent or absent: 16 kHz, normalised unless it is a
    Whisper. Raises ValueError where it does not fit the configuration."""
    path = _preprocessor(folder)
    content = read_json(path) if path else {}
    content = content.get("feature_extractor", content)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: its feature_extractor is {content!r}; allowed is an object")
    normalizes, rate = content.get("do_normalize"), content.get("sampling_rate", 16_000)
    if not isinstance(normalizes, bool | None) or not isinstance(rate, int) or rate < 1:
        raise ValueError(f"{path}: do_normalize is {normalizes!r} and sampling_rate {rate!r}; allowed are true or false, and hertz")
    if config["model_type"] == "whisper":
        _check_mels(path, content, config)
        return Preprocessing(normalizes=normalizes is True, assumed=False, sample_rate=rate)
    return Preprocessing(normalizes=normalizes is not False, assumed=normalizes is None, sample_rate=rate)


def _check_mels(path: Path | None, content: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    bins = config.get("num_mel_bins", 80)
    for name, wanted in {**WHISPER_MELS, "feature_size": bins, "sampling_rate": SAMPLE_RATE}.items():
        if (value := content.get(name, wanted)) != wanted:
            raise ValueError(f"{path}: {name} is {value!r}; a Whisper encoder of {bins} mel bins hears log-mels with {wanted}")


def _preprocessor(folder: Path) -> Path | None:
    return next((folder / name for name in PREPROCESSORS if (folder / name).is_file()), None)


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that the teacher is read from, by name, in a fixed order."""
    preprocessor = _preprocessor(folder)
    index = [folder / INDEX] if not (folder / WEIGHTS).is_file() else []
    hashes = {}
    for path in (folder / CONFIG, *index, *weight_files(folder), *([preprocessor] if preprocessor else [])):
        with path.open("rb") as file:
            hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def digest(hashes: dict[str, str]) -> str:
    """16 hexadecimal digits that follow from configuration, weights and preprocessing alone."""
    return hashlib.sha256(b"".join(bytes.fromhex(value) for value in hashes.values())).hexdigest()[:16]


def licence(folder: Path) -> str:
    """As the model card's front matter names it, else the first line of a LICENSE, else NOT_STATED."""
    path = folder / CARD
    text = path.read_text(errors="replace") if path.is_file() else ""
    front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    stated = re.search(r"^license:[ \t]*(?:\n[ \t]*-[ \t]*)?(\S.*)$", front[1], re.MULTILINE) if front else None
    if stated:
        return stated[1].strip(" \"'[]")
    path = folder / LICENCE
    lines = path.read_text(errors="replace").split("\n") if path.is_file() else []
    return next((line.strip()[:100] for line in lines if line.strip()), NOT_STATED)
