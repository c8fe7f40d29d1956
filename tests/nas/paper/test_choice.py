"""What validation chooses: by literals that can be checked by hand."""

from typing import Any

import pytest

from nas.paper.choice import best_settings, best_student
from nas.paper.experiment import JOINT, KEYWORDS, SPEAKERS, VARIANTS, Experiment
from nas.paper.rows import Row
from search_spaces.architecture import Architecture

STUDENT = Architecture(front_end="mel", front_width=16, frame_stride=1, width=24, heads=(2,), ffn_dims=(32,), kept_layers=(1,))


def record(name: str, variant: str, keyword_error: float, eer: float, params: int = 10, model: str = "teacher") -> dict[str, Any]:
    scores = {"keyword_error": keyword_error, "eer": eer, "params": params}
    return {"name": name, "model": model, "variant": variant, "tuning": VARIANTS[variant], "scores": scores, "error": None}


def setting(name: str, variant: str) -> Row:
    fields: dict[str, Any] = {"architecture": STUDENT, "start": "teacher", "distill_steps": 0, "finetune_steps": 1}
    return Row(name=name, model="teacher", variant=variant, seed=0, tuning=VARIANTS[variant], **fields)


def test_each_variant_takes_the_setting_that_is_best_for_its_own_tasks() -> None:
    rows = [setting(f"{variant} {rate}", variant) for variant in (JOINT, KEYWORDS, SPEAKERS) for rate in ("low", "high")]
    scores = {"low": (5.0, 30.0), "high": (9.0, 20.0)}
    records = [record(row.name, row.variant, *scores[row.name.split()[-1]]) for row in rows]
    chosen = {variant: row.name for variant, row in best_settings(rows, records).items()}
    assert chosen == {JOINT: "joint high", KEYWORDS: "keywords alone low", SPEAKERS: "speakers alone high"}


def test_a_variant_whose_settings_all_failed_says_why() -> None:
    failed = {**record("a", JOINT, 1, 1), "scores": {}, "error": "the loss became nan"}
    with pytest.raises(ValueError, match="no setting of the teacher, joint, could be trained: the loss became nan"):
        best_settings([setting("a", JOINT)], [failed])


def test_the_best_student_is_of_the_least_error_among_the_small_ones() -> None:
    """Means over seeds: 30 for `steady`, 31 for `lucky`; `wide` is better, and has more than a quarter of 100 params."""
    errors = {"steady": (20, (10, 20)), "lucky": (25, (1, 1), (40, 20)), "wide": (26, (0, 0)), "nobody asked for": (1, (0, 0))}
    records = [record("", JOINT, *pair, params, name) for name, (params, *pairs) in errors.items() for pair in pairs]
    records.append(record("", KEYWORDS, 0, 0, 25, "lucky"))
    assert best_student(["steady", "lucky", "wide"], records, 100) == "steady"
    assert best_student(["steady", "lucky", "wide"], records, 10) == "steady"  # none is small enough: the smallest
    assert best_student(["wide"], records, 100) == "wide"
    assert best_student(["untrained"], records, 100) is None


@pytest.mark.parametrize("name", ["Teacher", "paper's student", "bc-resnet", "paper student from scratch"])
def test_a_student_has_a_name_of_its_own(name: str) -> None:
    with pytest.raises(ValueError, match="name the file otherwise"):
        Experiment(students={name: STUDENT})
