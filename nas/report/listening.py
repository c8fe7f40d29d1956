"""What an export is to hear: the speech of its study, where that is here, and a user's own recordings."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.hearing import Speech
from deploy.judging import Judge
from nas.study.folder import Study, open_study
from nas.worker.context import embedded_corpus
from nas.worker.evaluate import read_outcome
from trainers.networks.student import WEIGHTS_FILE, weights_hash
from trainers.scoring.streams import Stream, recorded_streams
from trainers.speech.corpora import Corpus
from trainers.speech.decoding import BadAudio, decode
from trainers.speech.loading import load_corpus
from trainers.speech.trial_lists import study_trials

Provenance = Mapping[str, Any]


def speech_of(provenance: Provenance, negatives: Sequence[Path], rates: Sequence[float]) -> Speech:
    """Raises ValueError where the study is not below this folder or has other speech by now, and for a recording that cannot be
    read."""
    study, corpus = _study(provenance)
    noise, cache = study.config.noise, Path(study.config.cache)
    return Speech(
        corpus=corpus,
        noise=load_corpus([Path(noise)], cache) if noise else None,
        negatives=_negatives(negatives),
        rates=rates,
    )


def judge_of(provenance: Provenance, accept_loss: bool) -> Judge:
    """Raises ValueError where the study is not below this folder, or has another model or other speech by now."""
    study, corpus = _study(provenance)
    check_member(study, provenance)
    trials = study_trials([Path(path) for path in study.config.trials], corpus, study.config.seed)
    student = study.weights_folder(provenance["member"])
    fp32 = {split: read_outcome(_of_fp32(student, split)) for split in ("val", "test")}
    return Judge(corpus=corpus, trials=trials, fp32=fp32, accept_loss=accept_loss)


def check_member(study: Study, provenance: Provenance) -> None:
    """Raises ValueError where the study was begun anew since it found the model. Models that were logged before have no hash."""
    student, wanted = study.weights_folder(provenance["member"]), provenance.get("weights")
    if not (student / WEIGHTS_FILE).is_file() or (wanted and weights_hash(student) != wanted):
        raise ValueError(
            f"{study.folder} has another {provenance['member']} than the model, or none: the study was begun anew since; export a "
            "model that it has now"
        )


def _of_fp32(student: Path, split: str) -> Path:
    """The outcome that was scored before integers were, where those count."""
    before = student / f"fp32_{split}.npz"
    return before if before.is_file() else student / f"outcome_{split}.npz"


def _study(provenance: Provenance) -> tuple[Study, Corpus]:
    study = open_study(provenance["study"], commands=("search", "tune"))
    cache = Path(study.config.cache)
    corpus = load_corpus([Path(path) for path in study.config.data] or [embedded_corpus(cache)], cache)
    if corpus.digest != provenance["corpus"]["digest"]:
        raise ValueError(f"the study {study.config.name} in this folder has other speech than the model's")
    return study, corpus


def _negatives(paths: Sequence[Path]) -> list[Stream]:
    """Each recording once: hours of the same sound, or of silence, support nothing."""
    known, found = dict[bytes, Path](), list[Stream]()
    for path in paths:
        if not path.is_file():
            raise ValueError(f"there is no recording {path}")
        try:
            samples = decode(path)
        except BadAudio as error:
            raise ValueError(f"the recording {path} cannot be used: {error}") from None
        if (digest := hashlib.sha256(samples.tobytes()).digest()) in known:
            raise ValueError(f"the recordings {known[digest]} and {path} are the same: give it once")
        known[digest] = path
        found += recorded_streams(samples)
    return found
