"""What an export is to hear: the speech of its study, where that is here, and a user's own recordings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.hearing import Speech
from nas.study.folder import open_study
from nas.worker.context import embedded_corpus
from trainers.scoring.streams import Stream, recording
from trainers.speech.decoding import BadAudio, decode
from trainers.speech.loading import load_corpus


def speech_of(provenance: Mapping[str, Any], negatives: Sequence[Path], rates: Sequence[float]) -> Speech:
    """Raises ValueError where the study is not below this folder or has other speech by now, and for a recording that cannot be
    read."""
    config = open_study(provenance["study"], commands=("search", "tune")).config
    cache = Path(config.cache)
    corpus = load_corpus([Path(path) for path in config.data] or [embedded_corpus(cache)], cache)
    if corpus.digest != provenance["corpus"]["digest"]:
        raise ValueError(f"the study {config.name} in this folder has other speech than the model's")
    noise = load_corpus([Path(config.noise)], cache) if config.noise else None
    return Speech(corpus=corpus, noise=noise, negatives=[_negative(path) for path in negatives], rates=rates)


def _negative(path: Path) -> Stream:
    if not path.is_file():
        raise ValueError(f"there is no recording {path}")
    try:
        return recording(decode(path, silence=True))
    except BadAudio as error:
        raise ValueError(f"the recording {path} cannot be used: {error}") from None
