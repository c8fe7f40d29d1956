"""Scores by name: one flat mapping, as candidates, MLflow and exports have them, and what it says of each corpus."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from trainers.scoring.metrics import Rate, resampled
from trainers.scoring.outcome import Outcome

FIGURES = {"accuracy": "keyword_error", "eer": "eer"}  # what a reader sees, and the score that is minimised


def flat_scores(rates: Mapping[str, Rate], prefix: str = "", corpus: str = "") -> dict[str, float]:
    """`accuracy` and `eer`, what of them is there, as keyword error and EER with their intervals; `corpus`: named behind."""
    flat: dict[str, float] = {}
    for kind, rate in rates.items():
        error, end = mirrored(rate) if kind == "accuracy" else rate, f".{corpus}" if corpus else ""
        names = (f"{prefix}{FIGURES[kind]}{part}{end}" for part in ("", "_low", "_high"))
        flat |= zip(names, (error.value, error.low, error.high))
    return flat


def quality_scores(outcome: Outcome, prefix: str = "") -> dict[str, float]:
    """Keyword error and EER in percent with their intervals: means over corpora and, where there are several, those of each corpus
    that has the figure, as `keyword_error.NAME`, `keyword_error_low.NAME`."""
    found = resampled([outcome])
    accuracy, eer = found.rates()
    scores = flat_scores({"accuracy": accuracy, "eer": eer}, prefix)
    for name, own in found.by_corpus().items():
        scores |= flat_scores(own, prefix, name)
    return scores


def by_corpus(scores: Mapping[str, float], split: str) -> dict[str, dict[str, Any]]:
    """What flat scores say of each corpus: {corpus: {"accuracy": {value, low, high}, "eer": ...}}; empty with one corpus alone."""
    found: dict[str, dict[str, Any]] = {}
    for kind, figure in FIGURES.items():
        name = f"test_{figure}" if split == "test" else figure
        for corpus in (key.removeprefix(f"{name}.") for key in scores if key.startswith(f"{name}.")):
            value, low, high = (scores[f"{name}{part}.{corpus}"] for part in ("", "_low", "_high"))
            rate = Rate(value=value, low=low, high=high)
            found.setdefault(corpus, {})[kind] = asdict(mirrored(rate) if kind == "accuracy" else rate)
    return dict(sorted(found.items()))


def mirrored(rate: Rate) -> Rate:
    """An accuracy as an error, and back."""
    return Rate(value=100 - rate.value, low=100 - rate.high, high=100 - rate.low)
