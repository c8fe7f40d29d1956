"""Thresholds that a device decides by, chosen on validation speech alone."""

from typing import Any

import numpy as np

from trainers.scoring.errors import Floats
from trainers.scoring.outcome import Outcome, parts

FALSE_ACCEPTANCE = (1.0, 5.0, 10.0)  # percent of other voices that are taken for the enrolled one
OWN_MISSED = 5.0  # percent of a voice's own clips, by which `enrol.py` decides
ENOUGH = 3.0  # a rate of r is stated from 3/r trials on: with fewer, none at all would say little (95 %)


def voice_thresholds(outcome: Outcome) -> list[dict[str, Any]]:
    """For each rate of false acceptance, in percent, the lowest cosine similarity from which a voice is taken for the enrolled one,
    and the percent of its own clips that are then missed; or `unsupported`, with a reason. Each corpus counts once that has enough
    trials for it; `without` names the others."""
    return [{"false_acceptance": rate, **_threshold(outcome, rate)} for rate in FALSE_ACCEPTANCE]


def clip_thresholds(outcome: Outcome) -> list[dict[str, Any]]:
    """As `voice_thresholds`, of pairs of clips, and last the similarity that nearly all pairs of one voice reach, where that takes
    more others for it than any of those. `enrol.py` decides by it whether clips are of one voice: the least alike of three true
    clips fall below the others half of the time."""
    stated = voice_thresholds(outcome)
    if "threshold" not in stated[-1]:
        return stated
    found = _enough(outcome, stated[-1]["false_acceptance"]).values()
    own, others = ([part.trial_scores[part.same == same] for part in found] for same in (True, False))
    threshold = -lowest_threshold([-scores for scores in own], OWN_MISSED / 100)
    accepted = 100 * float(np.mean([(scores >= threshold).mean() for scores in others]))
    entry = {"false_acceptance": round(accepted, 1), "threshold": round(threshold, 4), "missed": OWN_MISSED}
    return [*stated, entry] if accepted > stated[-1]["false_acceptance"] else stated


def _enough(outcome: Outcome, rate: float) -> dict[str, Outcome]:
    """Corpora that have enough trials of different speakers for a rate, by name."""
    return {name: part for name, part in parts(outcome).items() if (~part.same).sum() >= ENOUGH / (rate / 100)}


def _threshold(outcome: Outcome, rate: float) -> dict[str, Any]:
    tried = {name: part for name, part in parts(outcome).items() if len(part.same)}
    enough = _enough(outcome, rate)
    if not any(part.same.any() for part in enough.values()):
        most = max((int((~part.same).sum()) for part in tried.values()), default=0)
        return {"unsupported": f"{most} trials of different speakers; {ENOUGH / (rate / 100):.0f} are needed"}
    own, others = ([part.trial_scores[part.same == same] for part in enough.values()] for same in (True, False))
    threshold = lowest_threshold(others, rate / 100)
    missed = [float((scores < threshold).mean()) for scores in own if len(scores)]
    found: dict[str, Any] = {"threshold": round(threshold, 4), "missed": round(100 * float(np.mean(missed)), 2)}
    return {**found, "without": sorted(set(tried) - set(enough))} if len(enough) < len(tried) else found


def lowest_threshold(others: list[Floats], share: float) -> float:
    """The lowest value which at most `share` of other voices' scores reach, as a mean over corpora; between two scores, so that
    rounding changes nothing."""
    scores = np.concatenate(others)
    weights = np.concatenate([np.full(len(part), 1 / len(part)) for part in others if len(part)])
    weights /= weights.sum()
    order = np.argsort(-scores)
    descending, reached = scores[order], np.cumsum(weights[order])
    accepted = int((reached <= share + 1e-12).sum())  # the highest so many may be accepted,
    while 0 < accepted < len(scores) and descending[accepted - 1] == descending[accepted]:
        accepted -= 1  # unless the next scores are equal
    above = descending[accepted - 1] if accepted else 1.0
    below = descending[accepted] if accepted < len(scores) else -1.0
    return float((above + below) / 2)
