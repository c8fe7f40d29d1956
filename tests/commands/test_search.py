"""The main job through the command line: real Ray, real MLflow, real training on a small spoken corpus."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import wave
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.target import known_targets
from nas.device.known import study_profile
from nas.device.profile import Profile, profile_path, write_profile
from nas.proposals.scheduler import Rungs
from nas.report.front import search_front
from nas.stages.finals import read_finals
from nas.study.candidates import values_of
from nas.study.folder import open_folder
from nas.worker.unfinished import FOLDERS
from trainers.teacher.teacher import load_teacher

SRLNAS = [sys.executable, "-m", "nas.cli"]
Run = Callable[..., subprocess.CompletedProcess[str]]
Options = tuple[str, ...]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, tiny_search: Options, srlnas: Run) -> tuple[Path, str]:
    """A working folder in which a small search has ended, and what it printed."""
    folder = tmp_path_factory.mktemp("work")
    asked = (
        "--target",
        "host",
        "--max-params",
        "1.2M",
        "--max-latency",
        "1s",
        "--max-memory",
        "500MB",
        "--steps",
        "4",
        "--rungs",
        "2",
        "--reduction",
        "2",
        "--sampler",
        "gp",
    )
    done = srlnas(folder, "search", *tiny_search, "--candidates", "6", "--finalists", "2", "--name", "small", *asked)
    return folder, done.stdout


@pytest.fixture(scope="module")
def front(searched: tuple[Path, str], srlnas: Run) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(srlnas(searched[0], "front", "small", "--json").stdout)
    return content


def test_the_front_has_what_its_readers_rely_on(front: Mapping[str, Any]) -> None:
    assert {"study", "objectives", "references", "members"} <= set(front)
    assert [objective["name"] for objective in front["objectives"]] == ["keyword_error", "eer", "latency_ms"]
    assert front["synthetic"] is True and any("synthetic" in note for note in front["notes"])
    for member in front["members"]:
        assert {"name", "run_id", "params", "size_ratio", "scores", "latency_ms", "architecture"} <= set(member)
        assert member["params"] <= 1.2e6 and 0 < member["size_ratio"] < 1
        assert 0 <= member["scores"]["test_keyword_error"] <= 100 and 0 < member["latency_ms"] <= 1000
        assert member["latency_kind"] == "measured" and front["latency_kind"] == "calibrated"
        scores = member["scores"]
        assert scores["predicted_latency_low"] < scores["predicted_latency_ms"] < scores["predicted_latency_high"]
        assert scores["latency_ms"] == pytest.approx(scores["predicted_latency_ms"], rel=0.5)
        assert scores["memory_bytes"] == pytest.approx(scores["predicted_memory_bytes"], rel=0.2)
    assert any(note.startswith("Latency as predicted before training") for note in front["notes"])
    assert {"knee", "fastest", "smallest", "most-accurate"} == {a for member in front["members"] for a in member["aliases"]}


def test_the_references_stand_on_the_front(front: Mapping[str, Any]) -> None:
    roles = {reference["role"]: reference for reference in front["references"]}
    assert set(roles) == {"teacher", "paper's student", "BC-ResNet", "knee from scratch"}
    assert roles["teacher"]["size_ratio"] == 1 and "change" not in roles["teacher"]
    assert roles["paper's student"]["architecture"]["kept_layers"] == [1]  # a sixth of three, at least one
    knee = next(member for member in front["members"] if "knee" in member["aliases"])
    assert roles["knee from scratch"]["architecture"] == knee["architecture"]
    assert roles["knee from scratch"]["steps"]["distill"] == 0


def test_the_output_names_the_plan_the_ledger_and_the_next_steps(searched: tuple[Path, str]) -> None:
    text = searched[1]
    for part in (
        "plan: 3 h of CPU time",
        "about 6 candidates",
        "2 + 2 x 2 -> 4 + 2 x 4",
        "spent:",
        "srlnas export models:/small@knee",
        "srlnas ui",
    ):
        assert part in text, text
    assert "\x1b" not in text and "\r" not in text  # quiet where it is no terminal


def test_the_ledger_holds_every_stage(front: Mapping[str, Any]) -> None:
    assert set(front["ledger"]) - {"tutor"} == {  # another study may have made it
        "calibration",
        "preparation",
        "probe",
        "candidates",
        "finalists",
        "references",
        "measuring finalists",
    }
    assert all(seconds > 0 for seconds in front["ledger"].values())


def test_students_ask_a_tutor_whose_test_split_is_not_read(searched: tuple[Path, str], front: Mapping[str, Any]) -> None:
    study = open_folder(searched[0] / "studies/small")
    assert sorted(file.name for file in study.weights_folder("tutor").glob("outcome_*")) == ["outcome_val.npz"]
    asked = {final.role for final in read_finals(study) if final.tutor_steps}
    assert asked == {"finalist", "paper's student"}
    assert "a tutor, the teacher tuned for" in searched[1]
    assert any("answers of a tutor" in note for note in front["notes"])


def test_the_weak_are_stopped_and_only_who_finished_the_last_rung_can_be_on_a_front(searched: tuple[Path, str]) -> None:
    study = open_folder(searched[0] / "studies/small")
    history = list(study.history())
    assert "candidates for what is left" in searched[1]  # none of which is one that was there
    assert set(Counter((c.number, c.rung) for c in history if c.rung).values()) == {1}
    states = {candidate.number: candidate for candidate in study.candidates()}
    assert {candidate.state for candidate in states.values()} <= {"complete", "stopped", "refused"}
    assert sum(candidate.state == "stopped" for candidate in states.values()) >= 1
    assert all(candidate.rung == {"complete": 2, "stopped": 1, "refused": 0}[candidate.state] for candidate in states.values())
    assert all((study.folder / str(c.weights)).is_dir() == (c.state == "complete") for c in states.values())
    assert {candidate.number for candidate in search_front(study.candidates())} <= {c.number for c in history if c.rung == 2}
    arrived = [(c.number, values_of(c.scores), c.state) for c in history if c.rung == 1]
    rungs, judged = Rungs(2), dict[int, bool]()
    for number, point, state in arrived:  # the record replays the decisions
        judged[number] = rungs.goes_on(1, point)
        assert (state == "running") == judged[number]
    assert not any((study.folder / folder).exists() for folder in FOLDERS)  # nothing is left to go on from


def test_mlflow_has_the_search_as_the_folder_has_it(searched: tuple[Path, str], front: Mapping[str, Any]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{searched[0]}/srlnas.db")
    runs = client.search_runs([client.get_experiment_by_name("small").experiment_id], max_results=100)
    kinds = [run.data.tags["srlnas.kind"] for run in runs]
    candidates = open_folder(searched[0] / "studies/small").candidates()
    complete = [candidate for candidate in candidates if candidate.state == "complete"]
    members = [final for final in read_finals(open_folder(searched[0] / "studies/small")) if final.role == "finalist"]
    assert kinds.count("study") == 1 and kinds.count("reference") == 4 and kinds.count("finalist") == len(members)
    assert len(members) >= min(2, len(complete))  # and candidates that nothing beats
    states = {
        run.data.tags["srlnas.candidate"]: run.data.tags["srlnas.state"] for run in runs if "srlnas.candidate" in run.data.tags
    }
    assert states == {str(candidate.number): candidate.state for candidate in candidates}
    for member in front["members"]:
        for alias in member["aliases"]:
            version = client.get_model_version_by_alias("small", alias)
            assert version.run_id == member["run_id"]
            assert len(version.tags) <= 8 and version.tags["srlnas.latency"].endswith("ms, measured on host")
            assert version.tags["srlnas.eer"].startswith(f"{member['scores']['test_eer']:.1f} [")
            assert f"srlnas export {member['run_id']}" in version.description
    parent = next(run for run in runs if run.data.tags["srlnas.kind"] == "study")
    names = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert {"front.json", "front_table.json", "front.html", "plots"} <= names
    assert len(client.list_artifacts(parent.info.run_id, "plots")) == 2  # the front, and latency as predicted and measured


@pytest.fixture(scope="module")
def mlflow_pages(searched: tuple[Path, str]) -> Iterator[str]:
    """Where `srlnas ui` shows the small search."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [*SRLNAS, "ui", "--port", str(port)]
    with subprocess.Popen(command, cwd=searched[0], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout
        shown = next(line for line in server.stdout if "small: http" in line)
        for _ in range(600):  # a server that starts
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                break
            time.sleep(0.5)
        yield shown.split("small: ")[1].strip()
        server.terminate()


def seen(browser: Any, address: str, *texts: str) -> str:
    """The text of a page once it shows `texts`; fails with what it shows instead."""
    from selenium.webdriver.common.by import By

    browser.get("about:blank")  # else an address of the same page but for what follows # loads nothing
    browser.get(address)
    body = ""
    for _ in range(240):
        with suppress(Exception):  # an element that the page is just replacing
            body = str(browser.find_element(By.TAG_NAME, "body").text)
        if all(text in body for text in texts):
            return body
        time.sleep(0.5)
    raise AssertionError(f"{address} shows {body!r}")


def test_mlflows_pages_serve_picking(mlflow_pages: str, front: Mapping[str, Any], browser: Any) -> None:
    """The experiment opens on its members' runs; run, version and front page show what one picks by."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 1900, "height": 1200, "deviceScaleFactor": 1, "mobile": False}
    )
    knee = next(member for member in front["members"] if "knee" in member["aliases"])
    runs = seen(browser, mlflow_pages, "Pick a model from the front", "test_keyword_error", "latency_ms", knee["name"])
    assert "Traces" not in runs.split("Runs")[0] and "teacher" not in runs.split("Run Name")[1]
    server, link = mlflow_pages.split("/#/")[0], browser.find_element(By.PARTIAL_LINK_TEXT, "Pick a model from the front")
    link = link.get_attribute("href")
    seen(browser, mlflow_pages.split("/runs?")[0], "Pick a model from the front")  # 3.17 opens it on another page, with the link
    seen(browser, link, "front.html")
    frame = WebDriverWait(browser, 120).until(lambda page: page.find_element(By.CSS_SELECTOR, "iframe"))
    browser.switch_to.frame(frame)
    assert "members fit the limits" in browser.find_element(By.ID, "count").text
    browser.switch_to.default_content()
    seen(browser, f"{server}/#/models/small", "Pick a model from the front", "srlnas.latency")
    seen(browser, f"{server}/#/models/small/versions/1", "srlnas export ", "accuracy", "The front")
    browser.get("about:blank")  # a page of MLflow goes on asking its server, which ends now


def test_an_exported_member_says_what_is_in_a_clip(searched: tuple[Path, str], front: Mapping[str, Any], srlnas: Run) -> None:
    folder = searched[0]
    shown = srlnas(folder, "export", "models:/small@knee", "--name", "mine").stdout
    bundle = folder / "deploy/exports/mine"
    manifest = json.loads((bundle / "manifest.json").read_text())
    knee = next(member for member in front["members"] if "knee" in member["aliases"])
    assert manifest["provenance"]["run_id"] == knee["run_id"] and manifest["synthetic"] is True
    assert manifest["latency"]["how"] == "measured" and manifest["latency"]["milliseconds"] == knee["latency_ms"]
    assert manifest["latency"]["predicted_latency_low"] < manifest["latency"]["predicted_latency_high"]
    assert json.loads((bundle / "parity.json").read_text())["max_abs_logits"] <= 1e-4
    with wave.open(str(folder / "clip.wav"), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(16_000)
        file.writeframes((np.random.default_rng(0).standard_normal(16_000) * 3000).astype("<i2").tobytes())
    command = shlex.split(shown.strip().splitlines()[-1].replace("CLIP.wav", "clip.wav"))
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    assert said.split()[0] in manifest["labels"]
    assert "- 0.1 false alarms an hour of each keyword: unsupported" in shown
    assert [entry["false_alarms_an_hour"] for entry in manifest["keyword_thresholds"]] == [10.0, 1.0, 0.1]
    [exported] = json.loads(srlnas(folder, "front", "small", "--json").stdout)["members"][front["members"].index(knee)]["exports"]
    assert exported["name"] == "mine"
    assert any(line.startswith("0.1 false alarms an hour of each keyword: unsupported") for line in exported["shown"])
    assert {*known_targets()} == {"host", *(other["target"] for other in manifest["elsewhere"])}
    assert "- raspberry-pi-4: " in (bundle / "README.md").read_text()
    from mlflow import MlflowClient

    page = (folder / "studies/small/front.html").read_text()
    assert '["exported", "mine, fp32"]' in page
    client = MlflowClient(f"sqlite:///{folder}/srlnas.db")
    parent = client.get_run(knee["run_id"]).data.tags["mlflow.parentRunId"]
    assert Path(client.download_artifacts(parent, "front.html")).read_text() == page
    refused = srlnas(folder, "export", knee["run_id"], "--name", "other", "--negatives", "room.wav", check=False)
    assert refused.returncode == 2 and "there is no recording room.wav" in refused.stderr
    for words, reason in (
        (("--false-alarms", "1,nan"), "each rate is a number above zero"),
        (("--no-listen", "--negatives", "clip.wav"), "which --no-listen leaves out"),
        (("--accept-loss",), "--accept-loss is for --precision int8"),
        (("--name", "../other"), "without slashes"),
        (("--negatives", "clip.wav", "--negatives", "clip.wav"), "are the same: give it once"),
    ):
        refused = srlnas(folder, "export", knee["run_id"], *words, check=False)
        assert refused.returncode == 2 and reason in refused.stderr
    elsewhere = ("--tracking-uri", f"sqlite:///{folder}/srlnas.db", "--name", "other")
    (folder / "elsewhere").mkdir()
    shown = srlnas(folder / "elsewhere", "export", knee["run_id"], *elsewhere).stdout
    assert "no thresholds are chosen for keywords: there is no study 'small' in studies/" in shown
    refused = srlnas(folder, "export", knee["run_id"], "--name", "mine", check=False)
    assert refused.returncode == 2 and "exists" in refused.stderr


def test_an_export_that_is_ended_leaves_nothing(searched: tuple[Path, str]) -> None:
    exports = searched[0] / "deploy/exports"
    exports.mkdir(parents=True, exist_ok=True)
    before = {path.name for path in exports.iterdir()}
    command = [*SRLNAS, "export", "models:/small@knee", "--name", "ended"]
    process = subprocess.Popen(command, cwd=searched[0], stdout=subprocess.DEVNULL)
    while not (begun := {path.name for path in exports.iterdir()} - before):
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert process.wait(60) == 75 and begun != {"ended"}
    assert {path.name for path in exports.iterdir()} == before


def test_the_pages_open_on_loopback_alone(searched: tuple[Path, str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    pages = subprocess.Popen([*SRLNAS, "ui", "--port", str(port)], cwd=searched[0], start_new_session=True, **quiet)
    try:
        shown = None
        while shown is None:
            assert pages.poll() is None
            with suppress(OSError):
                shown = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read()
            time.sleep(0.3)
        assert shown and b"MLflow" in shown
        listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"]
        assert f"0100007F:{port:04X}" in listening and f"00000000:{port:04X}" not in listening
    finally:
        os.killpg(pages.pid, signal.SIGTERM)
        pages.wait(30)


@pytest.mark.slow
def test_references_are_trained_once_for_several_studies(searched: tuple[Path, str], tiny_search: Options, srlnas: Run) -> None:
    folder = searched[0]
    write_profile(study_profile(open_folder(folder / "studies/small")), profile_path("host", folder / "profiles"))
    as_long = ("--steps", "4")  # else it has references of its own
    shown = srlnas(folder, "search", *tiny_search, *as_long, "--candidates", "1", "--name", "again").stdout
    front = json.loads(srlnas(folder, "front", "again", "--json").stdout)
    first = json.loads(srlnas(folder, "front", "small", "--json").stdout)
    teachers = [next(r for r in f["references"] if r["role"] == "teacher")["scores"]["test_eer"] for f in (front, first)]
    assert teachers[0] == teachers[1]
    assert front["ledger"]["calibration"] < 0.3 * first["ledger"]["calibration"]  # this machine's profile was read
    assert "latency and memory on raspberry-pi-4: data sheet, 1 thread, fp32" in shown
    assert {member["latency_kind"] for member in [*front["members"], *front["references"]]} == {"data sheet"}
    assert front["machine"].endswith("scaled by the data sheet") and "data sheet, a factor of two" in " ".join(shown.split())
    for slow, fast in zip(front["references"], first["references"]):  # the same teacher, paper's student and BC-ResNet
        assert slow["latency_ms"] > 2 * fast["latency_ms"] or slow["role"] == "knee from scratch"


@pytest.mark.slow
def test_a_running_cluster_is_joined(
    on_known_machine: Path, tiny_search: Options, srlnas: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own processes on another port, as a cluster would be; the code travels with the search."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # a head started by hand has another token than this user's
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port", str(port), "--num-cpus", "2"]
    options = ["--include-dashboard", "false", "--disable-usage-stats", "--temp-dir", tempfile.mkdtemp(prefix="ray")]
    head = subprocess.Popen(
        [*start, *options], cwd=on_known_machine, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.5)
        time.sleep(5)  # the port answers before the node has joined
        address = ("--ray-address", f"127.0.0.1:{port}")
        srlnas(on_known_machine, "search", *tiny_search, "--candidates", "1", "--name", "joined", *address)
        assert json.loads(srlnas(on_known_machine, "front", "joined", "--json").stdout)["stage"] == "final"
    finally:
        os.killpg(head.pid, signal.SIGTERM)  # `ray stop` would end other people's clusters on this machine too
        head.wait(60)


def other_family(family: str, folder: Path) -> None:
    """A small checkpoint of another family than the bundled teacher's, with random weights."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2Model, WavLMConfig, WavLMModel

    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "conv_dim": (32,) * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if family == "wav2vec2":  # as Base: group norm in the convolutions, layer norm after each half of a layer
            Wav2Vec2Model(Wav2Vec2Config(**sizes)).save_pretrained(folder)
        else:  # as Large
            WavLMModel(WavLMConfig(**sizes, feat_extract_norm="layer", do_stable_layer_norm=True)).save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["wav2vec2", "wavlm"])
def test_a_teacher_of_another_family_is_searched_and_exported(
    tmp_path: Path, tiny_search: Options, srlnas: Run, family: str, known_profile: Callable[..., Profile]
) -> None:
    other_family(family, tmp_path / "own")
    write_profile(known_profile(load_teacher(str(tmp_path / "own"))), profile_path("host", tmp_path / "profiles"))
    described = json.loads(srlnas(tmp_path, "teacher", "check", "own", "--json").stdout)
    assert described["family"] == family
    few = ("--finalists", "1", "--candidates", "2", "--precision", "int8")
    srlnas(tmp_path, "search", *tiny_search, *few, "--name", "other", "--teacher", "own")
    front = json.loads(srlnas(tmp_path, "front", "other", "--json").stdout)
    assert front["stage"] == "final" and front["members"]
    roles = {reference["role"]: reference for reference in front["references"]}
    assert roles["teacher"]["size_ratio"] == 1 and roles["paper's student"]["size_ratio"] < 1
    assert "fp32_eer" in front["members"][0]["scores"] and front["target"]["precision"] == "int8"
    refused = srlnas(tmp_path, "export", "models:/other@knee", "--precision", "fp32", check=False)
    assert refused.returncode == 2 and "was scored and measured in int8" in refused.stderr
    srlnas(tmp_path, "export", "models:/other@knee", "--name", "mine", "--accept-loss")
    manifest = json.loads((tmp_path / "deploy/exports/mine/manifest.json").read_text())
    assert manifest["precision"] == manifest["latency"]["precision"] == "int8"
    assert manifest["scores"]["test_eer"] == front["members"][0]["scores"]["test_eer"]


def test_a_cluster_that_is_not_there(tmp_path: Path, srlnas: Run) -> None:
    refused = srlnas(tmp_path, "search", "--ray-address", "127.0.0.1:1", "--name", "nowhere", check=False)
    assert refused.returncode == 2 and "no Ray cluster answers" in refused.stderr and "Traceback" not in refused.stderr
