"""A picked model, tuned on through the command line: real Ray, real MLflow. A file of its own: whole searches take minutes."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from nas.study.folder import open_folder
from trainers.networks.student import load_student

Run = Callable[..., subprocess.CompletedProcess[str]]
Options = tuple[str, ...]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, tiny_search: Options, srlnas: Run) -> Path:
    """A working folder in which a small search has ended, and its knee was tuned on."""
    folder = tmp_path_factory.mktemp("work")
    srlnas(folder, "search", *tiny_search, "--finalists", "1", "--candidates", "1", "--name", "found")
    described = folder / "studies/found/study.toml"  # what the search learned from may be gone
    described.write_text(described.read_text().replace("learn_from = []", 'learn_from = ["gone"]'))
    srlnas(folder, "tune", "models:/found@knee", "--steps", "10", "--budget", "2cpu-hours", "--name", "longer")
    return folder


def test_a_tuned_model_is_a_version_with_its_lineage(found: Path) -> None:
    client = MlflowClient(f"sqlite:///{found}/srlnas.db")
    tuned, knee = (client.get_model_version_by_alias("found", alias) for alias in ("tuned", "knee"))
    assert int(tuned.version) > int(knee.version)
    assert tuned.tags["srlnas.tuned_from"] == f"models:/found/{knee.version}"
    front = json.loads((found / "studies/longer/front.json").read_text())
    (member,), (as_it_was,) = front["members"], front["references"]
    assert member["aliases"] == ["tuned"] and member["steps"]["finetune"] == 10 and "change" in member
    assert member["architecture"] == as_it_was["architecture"] and as_it_was["role"] == "as it was"
    said = " ".join(front["notes"])
    assert f"Tuned on from models:/found/{knee.version} for 20 updates, after the" in said
    assert "The test split was read before, when the model was chosen" in said
    assert "not compared" not in said and "paper's student" not in said


def test_the_model_as_it_was_scores_what_its_study_said(found: Path) -> None:
    before = json.loads((found / "studies/found/front.json").read_text())["members"][0]["scores"]
    after = json.loads((found / "studies/longer/front.json").read_text())["references"][0]["scores"]
    assert {name: after[name] for name in before if name.startswith("test_")} == pytest.approx(
        {name: value for name, value in before.items() if name.startswith("test_")}
    )


def test_what_is_done_is_not_done_again(found: Path, srlnas: Run) -> None:
    study = open_folder(found / "studies/longer")
    spent, weights = study.ledger.by_purpose()["tuning"], load_student(study.weights_folder("tuned")).state_dict()
    srlnas(found, "tune", "--resume", "longer")
    assert "as it was" in srlnas(found, "front", "longer").stdout
    again = open_folder(found / "studies/longer")
    assert again.ledger.by_purpose()["tuning"] == spent
    assert all((value == weights[name]).all() for name, value in load_student(study.weights_folder("tuned")).state_dict().items())


def test_further_keywords_join_the_old_ones(found: Path, tiny_search: Options, srlnas: Run) -> None:
    table = pq.read_table(tiny_search[-1])
    table = table.filter(pc.equal(table["keyword"], "go"))
    words = pa.array(["vooruit"] * len(table), table.schema.field("keyword").type)
    more = found / "more.parquet"
    pq.write_table(table.set_column(table.schema.get_field_index("keyword"), "keyword", words), more)

    asked = ("--data", str(more), "--steps", "10", "--budget", "2cpu-hours", "--name", "wider")
    shown = srlnas(found, "tune", "models:/found@tuned", *asked).stdout
    assert "new keywords: vooruit" in shown and "a tutor of" in shown
    study = open_folder(found / "studies/wider")
    old, new = (open_folder(found / "studies/longer").weights_folder("tuned"), study.weights_folder("tuned"))
    assert set(load_student(new).keywords) == {*load_student(old).keywords, "vooruit"}
    front = json.loads((study.folder / "front.json").read_text())
    assert front["tuned_from"]["generation"] == 2 and front["tuned_from"]["registered"] == "found"
    assert any("does not know of vooruit" in note for note in front["notes"])
    exported = srlnas(found, "export", "models:/found@tuned", "--name", "device").stdout
    assert "differs from the student by" in exported
    manifest = json.loads((found / "deploy/exports/device/manifest.json").read_text())
    assert manifest["provenance"]["tuned_from"]["study"] == "longer"


def test_a_study_that_was_begun_anew_does_not_tune_the_old_model(found: Path, srlnas: Run) -> None:
    member = json.loads((found / "studies/found/front.json").read_text())["members"][0]["name"]
    weights = found / "studies/found/students" / member / "weights.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-4] + b"\1\0\0\0")
    refused = srlnas(found, "tune", "models:/found@knee", "--name", "other", check=False)
    weights.write_bytes(kept)
    assert refused.returncode == 2 and "the study was begun anew since" in refused.stderr
    assert not (found / "studies/other").exists()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("models:/found@best",), "MLflow has no models:/found@best"),
        (("--resume", "found"), "the study found is not of `srlnas tune`"),
        (("models:/found@knee", "--budget", "1cpu-seconds", "--name", "poor"), "does not buy"),
    ],
)
def test_a_mistake_is_one_line(found: Path, srlnas: Run, asked: Options, said: str) -> None:
    refused = srlnas(found, "tune", *asked, check=False)
    assert refused.returncode == 2 and said in " ".join(refused.stderr.split()), refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr
