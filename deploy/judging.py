"""What integers cost a model: scored in the exported file, beside the student in fp32, on speech of its study."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.export import INPUT, OUTPUTS
from deploy.measure import device_facts, measure, open_session
from trainers.learning.batches import cut, window_starts
from trainers.scoring.draw import Scored, whole
from trainers.scoring.metrics import Rate, changes, rates, worst_speakers
from trainers.scoring.outcome import Outcome
from trainers.scoring.scores import quality_scores
from trainers.scoring.scoring import Answer, Heard, score_answers
from trainers.scoring.thresholds import clip_thresholds
from trainers.speech.corpora import Corpus
from trainers.speech.trials import Trials

MOST_LOST = 0.5  # points of keyword accuracy, or of EER, on validation speakers
CALIBRATED = 128  # windows: 4 CPU-seconds


def calibration_windows(corpus: Corpus, window: int) -> NDArray[np.float32]:
    """(windows, window) of training speech, on which activations get their scales."""
    rows = corpus.rows("train")
    picked = np.random.default_rng(0).choice(rows, min(CALIBRATED, len(rows)), replace=False)
    starts = (window_starts(corpus.length(int(row)), window)[0] for row in picked)
    return np.stack([cut(corpus, int(row), start, window) for row, start in zip(picked, starts, strict=True)])


def score_file(model: Path, keywords: tuple[str, ...], corpus: Corpus, scored: Scored, window: int) -> Outcome:
    """Of an exported file, as `trainers.scoring.scoring.score` of a student."""
    return score_answers(answer_of(model), keywords, corpus, scored, window)


def answer_of(model: Path) -> Answer:
    """What an exported file says of windows."""
    session = open_session(model)

    def answer(audio: NDArray[np.float32]) -> Heard:
        found = [session.run(list(OUTPUTS), {INPUT: one[None]}) for one in audio]
        logits, embeddings = (np.concatenate([outputs[i] for outputs in found]) for i in (0, 1))
        return logits, embeddings

    return answer


@dataclass(frozen=True, kw_only=True)
class Judge:
    """corpus, trials: of the study. fp32: the student's outcomes by split. accept_loss: export it whatever it lost."""

    corpus: Corpus
    trials: Mapping[str, Trials]
    fp32: Mapping[str, Outcome]
    accept_loss: bool = False

    def entries(self, fp32: Path, int8: Path, keywords: tuple[str, ...], window: int, threads: int) -> dict[str, Any]:
        """Of a manifest. `int8`: sizes and times of the two files, side by side on this machine, and the scores of the second with
        paired changes; `scores`, as a search has them, and `voice_thresholds` of the second. Raises ValueError where validation
        speakers show a loss that is not accepted; the test split is heard only then. threads: with which the two are timed."""
        outcomes, scored = dict[str, Outcome](), dict[str, Any]()
        for split in ("val", "test"):
            what = whole(self.corpus, split, self.trials[split])
            outcomes[split] = score_file(int8, keywords, self.corpus, what, window)
            scored[split] = _compared(outcomes[split], self.fp32[split])
            if split == "val":
                lost_more = self._lost_more(scored[split])
        (taken,) = measure([int8], fp32, window=window, threads=threads)
        ratio = {"value": taken.ratio, "low": taken.ratio_low, "high": taken.ratio_high, "marks": list(taken.marks)}
        size = int8.stat().st_size / fp32.stat().st_size
        machine = {**ratio, "machine": device_facts()["cpu"]}
        entry = {"size_ratio": size, "latency_ratio": machine, "loss_was_accepted": lost_more, **scored}
        return {
            "int8": entry,
            "scores": {**quality_scores(outcomes["val"]), **quality_scores(outcomes["test"], "test_")},
            "voice_thresholds": clip_thresholds(outcomes["val"]),
            "worst_speakers": worst_speakers(outcomes["test"]),
        }

    def _lost_more(self, validation: Mapping[str, Any]) -> bool:
        """Than is allowed. Raises ValueError where that is not accepted."""
        accuracy, eer = (validation[f"{name}_change"]["value"] for name in ("accuracy", "eer"))
        lost_more: bool = max(-accuracy, eer) > MOST_LOST
        if lost_more and not self.accept_loss:
            raise ValueError(
                f"int8 changes accuracy by {accuracy:+.1f} points and EER by {eer:+.1f} on validation speakers; allowed is a loss "
                f"of {MOST_LOST}: export fp32, another member, or give --accept-loss"
            )
        return lost_more


def _compared(int8: Outcome, fp32: Outcome) -> dict[str, Any]:
    """In percent and points, paired."""
    found: dict[str, Rate] = dict(zip(("accuracy", "eer"), rates(int8), strict=True))
    found |= dict(zip(("accuracy_change", "eer_change"), changes([int8], [fp32]), strict=True))
    return {name: asdict(rate) for name, rate in found.items()}
