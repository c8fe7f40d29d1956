"""What a reader of a front must not overlook, in sentences: each a function of the front, which is silent where it has no say."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from deploy.judging import MOST_LOST
from nas.stages.finals import AS_IT_WAS, PREDICTED, as_predicted
from nas.study.pareto import dominates
from trainers.scoring.scores import FIGURES

SMALL, CLOSE = 0.25, 3.0  # "small and close": at most a quarter of the teacher, within 3 points of both its scores
UNEVEN, FAR = 5.0, 15.0  # points: a corpus where more is lost than on the others; one below a model's own mean (corpora differ)

Front = Mapping[str, Any]
Member = Mapping[str, Any]


def notes(front: Front) -> list[str]:
    said = [note for find in (_synthetic, _supervised, _disturbances, _disturbed) for note in find(front)]
    if front["stage"] == "search":
        return [*said, *_uneven(front), "The search has not ended: validation scores of candidates, no test scores, no references."]
    return said + [note for find in FINAL_NOTES for note in find(front)]


def _synthetic(front: Front) -> Iterator[str]:
    if front["synthetic"]:
        yield "These results are synthetic: the speech was made by espeak-ng."


def _supervised(front: Front) -> Iterator[str]:
    if front.get("teacher_is_supervised"):
        yield supervised(front["teacher"])


def supervised(teacher: str) -> str:
    """Of a teacher's name."""
    return f"The teacher {teacher} was trained with transcripts: supervised. This says nothing of self-supervised teachers."


def _disturbances(front: Front) -> Iterator[str]:
    if front.get("disturbances"):
        yield f"{front['disturbances']}."


def _disturbed(front: Front) -> Iterator[str]:
    if names := [m["name"] for m in [*front["members"], *front["references"]] if m.get("latency_marks")]:
        yield f"Measured on a machine that did not keep its pace: {', '.join(names)}."


def _integers(front: Front) -> Iterator[str]:
    if (front.get("target") or {}).get("precision") != "int8":
        return
    teacher = "" if "tuned_from" in front else "; the teacher is scored in fp32"
    yield f"Scores and latencies are of int8{teacher}."
    if lost := [m["name"] for m in front["members"] if lost_by_integers(m["scores"]) > MOST_LOST]:
        yield f"Export asks --accept-loss: int8 costs more than {MOST_LOST} points on validation speakers: {', '.join(lost)}."


def lost_by_integers(scores: Mapping[str, float]) -> float:
    """Points of keyword accuracy or EER on validation speakers, whichever is more."""
    return max(scores[name] - scores[f"fp32_{name}"] for name in FIGURES.values())


def _as_trained(front: Front) -> Iterator[str]:
    if names := [m["name"] for m in front["members"] if m.get("as_trained")]:
        yield f"Candidates as they were trained, not at full length: {', '.join(names)}."


def _read_before(front: Front) -> Iterator[str]:
    if names := [m["name"] for m in front["members"] if m.get("read_before")]:
        when = "when the model was chosen" if "tuned_from" in front else "when they were members as candidates"
        yield f"The test split was read before, {when}, and they were trained on: {', '.join(names)}."


def _tuned(front: Front) -> Iterator[str]:
    if before := front.get("tuned_from"):
        more, last = front["members"][0]["updates"], _updates(before["steps"])
        yield f"Tuned on from {before['model']} for {more:,} updates, after the {last:,} of its last training."
        if new := before.get("new_keywords"):
            yield f"The model as it was does not know of {', '.join(new)}: it errs on all clips of them."


def _updates(steps: Mapping[str, int]) -> int:
    return steps["distill"] + 2 * steps["finetune"]


def _not_compared(front: Front) -> Iterator[str]:
    longest = max(member["updates"] for member in front["members"])
    shorter = {r["role"]: f"({r['updates']:,} of {longest:,})" for r in front["references"] if r["updates"] < longest}
    if teacher := shorter.pop("teacher", None):
        yield f"The teacher was tuned with fewer updates than some members {teacher}: changes against it flatter those."
    if short := [f"{role} {updates}" for role, updates in shorter.items() if role != AS_IT_WAS]:
        yield f"Trained with fewer updates than some members, and not compared with those: {', '.join(short)}."


def _compared(front: Front, reference: Member | None) -> list[Member]:
    """The members that learned from no more updates than a reference: a claim against it needs that."""
    return [member for member in front["members"] if reference and member["updates"] <= reference["updates"]]


def _better_than_references(front: Front) -> Iterator[str]:
    """Beside the paper's student and BC-ResNet: who is better in all, and whose paired intervals say so."""
    for role in ("paper's student", "BC-ResNet"):
        reference = _reference(front, role)
        if not reference or not (compared := _compared(front, reference)):
            continue
        better = [member for member in compared if dominates(_tested(member), _tested(reference))]
        clear = [member["name"] for member in better if _is_clear(member, role)]
        among = "" if len(compared) == len(front["members"]) else f" of {', '.join(m['name'] for m in compared)}"
        said = f"Better than {_the(role)} in keyword error, EER and latency at once (test)"
        if not better:
            yield f"{said}: none{among}."
        elif len(clear) == len(better):
            yield f"{said}, both scores beyond their paired intervals: {', '.join(clear)}."
        else:
            sure = f"; both scores beyond their paired intervals: {', '.join(clear) or 'none'}"
            yield f"{said}: {', '.join(m['name'] for m in better)}{sure}."


def _the(role: str) -> str:
    return role if role == "BC-ResNet" else f"the {role}"


def _is_clear(member: Member, role: str) -> bool:
    """Whether a member's paired intervals lie on the better side of zero in both scores."""
    against = member.get("against", {}).get(role)
    return bool(against) and against["accuracy"]["low"] > 0 and against["eer"]["high"] < 0


def _small_and_close(front: Front) -> Iterator[str]:
    teacher = _reference(front, "teacher")
    if teacher and (compared := _compared(front, teacher)):
        close = [m["name"] for m in compared if m["size_ratio"] <= SMALL and _within(m, teacher, CLOSE)]
        said = f"At most {SMALL:.0%} of the teacher's params and within {CLOSE:g} points of its accuracy and EER (test): "
        yield f"{said}{', '.join(close) or 'none'}."


def _beaten_by_references(front: Front) -> Iterator[str]:
    for role, what in (("paper's student", "The paper's student"), ("BC-ResNet", "BC-ResNet, which distils nothing,")):
        reference = _reference(front, role)
        equal = [m for m in front["members"] if reference and m["updates"] >= reference["updates"]]
        if beaten := [m["name"] for m in equal if reference and dominates(_tested(reference), _tested(m))]:
            yield f"{what} is better in keyword error, EER and latency at once (test) than: {', '.join(beaten)}."


def _uneven(front: Front) -> Iterator[str]:
    """Members whose mean over corpora hides one on which they are much worse."""
    points, rule = FAR, "Worse on one corpus than in their own mean over corpora by at least"
    if against := _against(front):
        points, rule = UNEVEN, f"Lose more against {against} on one corpus than on the others' mean, by at least"
    found = [
        f"{member['name']} ({'EER' if kind == 'eer' else kind} on {corpus}: {by:.1f})"
        for member in front["members"]
        for kind in ("accuracy", "eer")
        for corpus, by in _lost_more(member, kind).items()
        if by >= points
    ]
    if found:
        yield f"{rule} {points:g} points ({front['split']}): {', '.join(found)}."


def _lost_more(member: Member, kind: str) -> dict[str, float]:
    """Points by which a member's loss on a corpus, where it loses, is beyond that on the others; or its error beyond its mean."""
    own = {name: found for name, found in member.get("by_corpus", {}).items() if kind in found}
    sign = -1 if kind == "accuracy" else 1
    if not own or "change" not in member:
        errors = {name: sign * found[kind]["value"] for name, found in own.items()}
        return {name: error - float(np.mean(list(errors.values()))) for name, error in errors.items()}
    lost = {name: sign * found["change"][kind]["value"] for name, found in own.items()}
    rest = {name: [loss for other, loss in lost.items() if other != name] for name in lost}
    return {name: loss - float(np.mean(rest[name])) for name, loss in lost.items() if loss > 0 and rest[name]}


def _predictions(front: Front) -> Iterator[str]:
    if measured := [member for member in front["members"] if PREDICTED in member["scores"]]:
        outside = [member for member in measured if not as_predicted(member["scores"])]
        off = np.mean([abs(m["scores"][PREDICTED] / m["latency_ms"] - 1) for m in measured])
        refitted = "; the model was fitted again" if any(not m["latency_marks"] for m in outside) else ""
        yield (
            f"Latency as predicted before training, on average {100 * off:.1f} % off: {len(measured) - len(outside)} of "
            f"{len(measured)} members were measured within the interval{refitted}."
        )


def _learned(front: Front) -> Iterator[str]:
    if studies := front.get("learn_from"):
        yield f"Proposals learned from the candidates of {', '.join(studies)}, whose cost is in the ledgers of those."


def _tutored(front: Front) -> Iterator[str]:
    if steps := max((member["steps"].get("tutor", 0) for member in front["members"]), default=0):
        who = "it" if "tuned_from" in front else "members and the paper's student"
        yield f"Beside the labels, {who} learned from the answers of a tutor: the teacher, tuned for {steps:,} steps." + (
            "" if "tuned_from" in front else " What is from scratch, and BC-ResNet, had labels alone."
        )


def _shared_start(front: Front) -> Iterator[str]:
    if any(member["start"] == "shared student" for member in front["members"]):
        yield "Members began with the weights of the search's shared student, whose own training is in the ledger."


def _knee_from_scratch(front: Front) -> Iterator[str]:
    scratch = _reference(front, "knee from scratch")
    knee = next((member for member in front["members"] if "knee" in member["aliases"]), None)
    if scratch and knee and scratch["candidate"] != knee["candidate"]:
        yield f"{scratch['name']} is of the member that was the knee before further ones were found."
    elif scratch and knee and scratch["updates"] >= knee["updates"]:
        if dominates(_tested(knee)[:2], _tested(scratch)[:2]):
            clear = ", both beyond their paired intervals" if _is_clear(knee, "knee from scratch") else ""
            yield f"The knee is better in both scores (test) than its architecture from scratch, on as many windows{clear}."
        else:
            yield (
                "The knee's architecture trained from scratch, on as many windows, is not worse in both scores (test): "
                "distillation did not pay at this length."
            )


FINAL_NOTES: tuple[Callable[[Front], Iterator[str]], ...] = (
    _integers,
    _as_trained,
    _read_before,
    _tuned,
    _not_compared,
    _better_than_references,
    _small_and_close,
    _beaten_by_references,
    _uneven,
    _predictions,
    _learned,
    _tutored,
    _shared_start,
    _knee_from_scratch,
)


def _against(front: Front) -> str | None:
    """What members are compared with."""
    return "the model as it was" if "tuned_from" in front else "the teacher" if _reference(front, "teacher") else None


def _reference(front: Front, role: str) -> Member | None:
    return next((reference for reference in front["references"] if reference["role"] == role), None)


def _tested(member: Member) -> np.ndarray[Any, np.dtype[np.floating[Any]]]:
    """Objectives of the test split."""
    return np.array([member["scores"]["test_keyword_error"], member["scores"]["test_eer"], member["latency_ms"]])


def _within(member: Member, teacher: Member, points: float) -> bool:
    return all(member["scores"][f"test_{name}"] - teacher["scores"][f"test_{name}"] <= points for name in ("keyword_error", "eer"))
