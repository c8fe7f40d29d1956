"""Searches whose candidates begin with the weights of one shared student. A file of its own: whole searches take minutes."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from nas.stages.finals import read_finals
from nas.study.folder import open_folder

Run = Callable[..., subprocess.CompletedProcess[str]]
Options = tuple[str, ...]


def test_candidates_begin_with_a_shared_student(on_known_machine: Path, tiny_search: Options, srlnas: Run) -> None:
    common = (*tiny_search, "--finalists", "1", "--candidates", "1")
    shown = srlnas(on_known_machine, "search", *common, "--warm-start", "on", "--name", "warm").stdout
    assert "a shared student of 24 steps" in shown and "updates of both tasks: 2 x 2" in shown
    study = open_folder(on_known_machine / "studies/warm")
    assert study.ledger.by_purpose()["shared student"] > 0
    assert {final.start for final in read_finals(study) if final.role == "finalist"} == {"shared student"}
    assert all(final.distill_steps == 0 for final in read_finals(study) if final.role == "finalist")
    front = json.loads(srlnas(on_known_machine, "front", "warm", "--json").stdout)
    assert any(note.startswith("Members began with the weights of the search's shared student") for note in front["notes"])
    paper = next(final for final in read_finals(study) if final.role == "paper's student")
    assert paper.start == "kept layers" and paper.distill_steps == 0 and paper.finetune_steps >= 6
    assert {candidate.state for candidate in study.candidates()} == {"complete"}

    weights = "studies/warm/shared.safetensors"
    for option, said in (("paper", "holds no shared student of the space paper"), ("edge", "neither on, off, auto nor a file")):
        file = weights if option == "paper" else "nowhere"
        refused = srlnas(on_known_machine, "search", "--space", option, "--warm-start", file, "--name", "bad", check=False)
        assert refused.returncode == 2 and said in " ".join(refused.stderr.split())
    assert not (on_known_machine / "studies/bad").exists()


@pytest.mark.slow
def test_a_shared_student_serves_another_study(on_known_machine: Path, tiny_search: Options, srlnas: Run) -> None:
    common = (*tiny_search, "--finalists", "1", "--candidates", "1")
    srlnas(on_known_machine, "search", *common, "--warm-start", "on", "--name", "warm")
    weights = "studies/warm/shared.safetensors"
    srlnas(on_known_machine, "search", *common, "--warm-start", weights, "--name", "given")
    study = open_folder(on_known_machine / "studies/given")
    assert "shared student" not in study.ledger.by_purpose()
    assert {final.start for final in read_finals(study) if final.role == "finalist"} == {"shared student"}
