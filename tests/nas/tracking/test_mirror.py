"""The MLflow mirror, on real stores: sqlite in a temporary folder, and a server with PostgreSQL and basic auth."""

import base64
import dataclasses
import hashlib
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from nas.study.candidates import Candidate, State
from nas.study.config import check_name
from nas.tracking.connection import default_tracking_uri, ui_command
from nas.tracking.mirror import Tracking, open_tracking
from nas.tracking.models import log_model, register
from nas.tracking.registry import resolve_model
from search_spaces.architecture import Architecture
from trainers.speech.corpora import short_names

ROOT = Path(__file__).resolve().parents[3]
STUDENT = Architecture(
    front_end="wave", front_width=64, frame_stride=1, width=96, heads=(2, 1), ffn_dims=(128, 96), kept_layers=(2, 5)
)
STATES: tuple[State, ...] = ("complete", "complete", "stopped", "refused", "failed")


def _candidate(number: int, state: State) -> Candidate:
    scores = {"params": 1e6 + number, "latency_ms": 4.0 + number}
    if state in ("complete", "stopped"):
        scores |= {"keyword_error": 9.0 - number, "eer": 5.0 + number}
    return Candidate(
        number=number,
        architecture=dataclasses.replace(STUDENT, width=96 + 32 * number),
        state=state,
        scores=scores,
        rung=2 if state == "complete" else 0,
        seconds=10.0 * number,
        error="worker died: out of memory" if state == "failed" else None,
    )


CANDIDATES = [_candidate(number, state) for number, state in enumerate(STATES)]


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow makes its tables once for all tests."""
    folder = tmp_path_factory.mktemp("mlflow")
    open_tracking(f"sqlite:///{folder / 'srlnas.db'}", "first").finish()
    return folder / "srlnas.db"


@pytest.fixture(autouse=True)
def _temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that are resolved without a folder go where pytest cleans up."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    shutil.copy(empty_database, tmp_path / "srlnas.db")
    monkeypatch.chdir(tmp_path)
    return default_tracking_uri()


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    return _model_folder(tmp_path / "export")


def _model_folder(folder: Path) -> Path:
    (folder / "runtime").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(bytes(range(256)) * 40)
    (folder / "runtime" / "run.json").write_text('{"window": 16080}')
    return folder


def _files(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _content(tracking: Tracking) -> dict[str, object]:
    """All that a study has in MLflow, with every point of every metric."""
    client = tracking.client
    content: dict[str, object] = {}
    for run in client.search_runs([tracking.experiment_id]):
        points = {
            key: [(point.value, point.step, point.timestamp) for point in client.get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics
        }
        files = sorted(item.path for item in client.list_artifacts(run.info.run_id))
        outputs = [output.model_id for output in run.outputs.model_outputs] if run.outputs else []
        content[run.info.run_id] = (run.info.run_name, run.info.status, run.data.params, run.data.tags, points, files, outputs)
    for model in client.search_logged_models([tracking.experiment_id]):
        metrics = sorted((metric.key, metric.value) for metric in model.metrics or ())
        content[model.model_id] = (model.name, str(model.status), model.params, model.tags, metrics)
    for version in client.search_model_versions():
        content[f"{version.name}/{version.version}"] = (version.tags, version.aliases, version.source, version.description)
    return content


def _write_study(uri: str, model_folder: Path, plot: Path) -> Tracking:
    tracking = open_tracking(uri, "demo", description="two students", tags={"target": "cortex-a53"})
    for candidate in CANDIDATES:
        tracking.log_candidate(candidate)
    finalist = tracking.log_run(
        "finalist-1", kind="finalist", params={"width": 128, "heads": (2, 1)}, metrics={"eer": 4.5}, tags={"seed": 3}
    )
    tracking.log_run("teacher", kind="reference", metrics={"eer": 2.5, "keyword_error": float("nan")})
    model_id = log_model(tracking, finalist, "finalist-1", model_folder, metrics={"latency_ms": 4.2})
    tags = {"latency_ms": 4.2, "target": "cortex-a53"}
    register(tracking.client, "demo", model_id, aliases=("knee", "most-accurate"), tags=tags, description="synthetic")
    front = {"objectives": ["eer"], "members": [json.loads(candidate.to_json()) for candidate in CANDIDATES[:2]]}
    tracking.log_front(front, plots=[plot], metrics={"hypervolume": 0.25})
    tracking.finish()
    return tracking


@pytest.fixture
def study(uri: str, model_folder: Path) -> Tracking:
    return _write_study(uri, model_folder, _plot(model_folder.parent))


def _plot(folder: Path) -> Path:
    (folder / "front.png").write_bytes(b"\x89PNG")
    return folder / "front.png"


def test_a_study_is_one_experiment_one_parent_and_one_level_of_children(study: Tracking) -> None:
    runs = study.client.search_runs([study.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.run_id for run in parents] == [study.run_id]
    assert (parents[0].info.status, parents[0].data.tags["mlflow.note.content"]) == ("FINISHED", "two students")
    assert (parents[0].data.tags["srlnas.study"], parents[0].data.tags["srlnas.target"]) == ("demo", "cortex-a53")
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == study.run_id]
    assert len(children) == 5 + 1 + 1
    kinds = sorted(run.data.tags["srlnas.kind"] for run in children)
    assert kinds == ["finalist", "reference"] + ["search"] * 5


def test_candidates_have_their_architecture_scores_and_state(study: Tracking) -> None:
    found = study.client.search_runs([study.experiment_id], "tags.`srlnas.kind` = 'search'")
    runs = {int(run.data.tags["srlnas.candidate"]): run for run in found}
    assert [runs[n].info.status for n in range(5)] == ["FINISHED", "FINISHED", "KILLED", "KILLED", "FAILED"]
    for candidate in CANDIDATES:
        run = runs[candidate.number]
        assert run.data.metrics == {**candidate.scores, "seconds": candidate.seconds}
        assert run.data.tags["srlnas.key"] == candidate.architecture.key
        assert run.data.tags["srlnas.state"] == candidate.state
        expected = {"front_end": "wave", "heads": "2 1", "width": str(candidate.architecture.width), "kept_layers": "2 5"}
        assert expected.items() <= run.data.params.items()
    assert runs[4].data.tags["srlnas.error"] == "worker died: out of memory"
    assert "srlnas.error" not in runs[0].data.tags


def test_scores_that_are_not_numbers_are_left_out(study: Tracking) -> None:
    (teacher,) = study.client.search_runs([study.experiment_id], "tags.`srlnas.kind` = 'reference'")
    assert teacher.data.metrics == {"eer": 2.5}


def test_a_second_pass_changes_nothing(study: Tracking, uri: str, model_folder: Path) -> None:
    before = _content(study)
    again = _write_study(uri, model_folder, _plot(model_folder.parent))
    assert again.run_id == study.run_id
    assert _content(again) == before


def test_replaying_every_line_ends_in_the_same_runs(study: Tracking, uri: str) -> None:
    before = _content(study)
    again = open_tracking(uri, "demo", description="two students")
    for candidate in CANDIDATES:
        again.log_candidate(dataclasses.replace(candidate, state="running", rung=0, scores={"params": candidate.scores["params"]}))
        again.log_candidate(candidate)
    again.finish()
    assert _content(again) == before


def test_a_resumed_study_runs_again_and_a_candidate_climbs(uri: str) -> None:
    first = open_tracking(uri, "demo")
    parked = _candidate(0, "stopped")
    run_id = first.log_candidate(parked)
    first.finish("KILLED")
    second = open_tracking(uri, "demo")
    assert second.client.get_run(second.run_id).info.status == "RUNNING"
    second.log_candidate(dataclasses.replace(parked, state="running", rung=1))
    assert second.client.get_run(run_id).info.status == "RUNNING"
    scores = {**parked.scores, "eer": 3.0}
    assert second.log_candidate(dataclasses.replace(parked, state="complete", rung=1, scores=scores)) == run_id
    points = second.client.get_metric_history(run_id, "eer")
    assert sorted((point.step, point.value) for point in points) == [(0, 5.0), (1, 3.0)]
    run = second.client.get_run(run_id)
    assert (run.info.status, run.data.metrics["eer"], run.data.tags["srlnas.rung"]) == ("FINISHED", 3.0, "1")


def test_a_failure_that_was_repeated_with_success_has_no_error(uri: str) -> None:
    tracking = open_tracking(uri, "demo")
    failed = _candidate(1, "failed")
    tracking.log_candidate(failed)
    run_id = tracking.log_candidate(dataclasses.replace(failed, state="complete", error=None))
    run = tracking.client.get_run(run_id)
    assert (run.info.status, run.data.tags["srlnas.error"]) == ("FINISHED", "")


def test_another_architecture_under_an_old_number_is_another_run(uri: str) -> None:
    tracking = open_tracking(uri, "demo")
    other = dataclasses.replace(CANDIDATES[0], architecture=CANDIDATES[1].architecture)
    assert tracking.log_candidate(CANDIDATES[0]) != tracking.log_candidate(other)


def test_a_score_of_a_corpus_is_a_metric(uri: str) -> None:
    tracking = open_tracking(uri, "corpora")
    names = short_names(["/data/a b:c/x.parquet", "/data/d/x.parquet", "..parquet", "كلمات.parquet", "v1.0_x-1"])
    metrics = {f"test_keyword_error_low.{name}": 1.5 for name in names}
    assert tracking.client.get_run(tracking.log_run("one", kind="reference", metrics=metrics)).data.metrics == metrics


def test_a_parameter_never_changes(uri: str) -> None:
    tracking = open_tracking(uri, "demo")
    tracking.log_run("teacher", kind="reference", params={"steps": 100})
    with pytest.raises(ValueError, match="steps = 100, not 200"):
        tracking.log_run("teacher", kind="reference", params={"steps": 200})


def test_searches_of_one_study_are_apart(uri: str) -> None:
    one, two = open_tracking(uri, "demo", search="one"), open_tracking(uri, "demo", search="two")
    assert one.experiment_id == two.experiment_id
    assert one.run_id != two.run_id
    assert one.log_candidate(CANDIDATES[0]) != two.log_candidate(CANDIDATES[0])


def test_the_front_is_a_file_and_a_table_that_mlflow_reads(
    study: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(study.client.download_artifacts(study.run_id, "front.json", str(tmp_path)))
    assert [entry["number"] for entry in json.loads(path.read_text())["members"]] == [0, 1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", study.uri)  # load_table looks there for the run
    table = study.client.load_table(study.experiment_id, "front_table.json", run_ids=[study.run_id])
    assert table["eer"].tolist() == [5.0, 6.0]
    assert table["heads"].tolist() == ["2 1", "2 1"]
    assert table["width"].tolist() == [96, 128]
    assert [item.path for item in study.client.list_artifacts(study.run_id, "plots")] == ["plots/front.png"]
    assert study.client.get_run(study.run_id).data.metrics == {"hypervolume": 0.25}


def test_models_resolve_by_run_alias_and_version(study: Tracking, uri: str, model_folder: Path, tmp_path: Path) -> None:
    finalist = study.children["finalist/finalist-1"]
    by_run = resolve_model(finalist, uri)
    by_alias = resolve_model("models:/demo@most-accurate", uri, folder=tmp_path / "a")
    by_version = resolve_model("models:/demo/1", uri, folder=tmp_path / "v")
    assert (by_run.name, by_run.version) == ("finalist-1", None)
    assert (by_alias.name, by_alias.version) == (by_version.name, by_version.version) == ("demo", 1)
    for found in (by_run, by_alias, by_version):
        assert found.run_id == finalist
        assert _files(found.folder) == _files(model_folder)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("0" * 32, "no run 0+; it has models:/demo@knee, models:/demo@most-accurate"),
        ("models:/demo@fastest", "no models:/demo@fastest; it has models:/demo@knee"),
        ("models:/demo/7", "no models:/demo/7; it has"),
        ("models:/other@knee", "no models:/other@knee; it has"),
        ("demo", "'demo': give a run id"),
        ("models:/demo", r"give a run id .* models:/name@alias"),
    ],
)
def test_an_unknown_model_is_refused_and_the_known_are_named(study: Tracking, uri: str, model: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        resolve_model(model, uri)
    assert "\n" not in str(error.value)


def test_a_run_without_a_model_and_a_registry_without_models(uri: str) -> None:
    run_id = open_tracking(uri, "demo").log_candidate(CANDIDATES[0])
    with pytest.raises(ValueError, match=r"candidate 0\) has no model; it has no registered models"):
        resolve_model(run_id, uri)


def test_other_files_make_another_model_and_aliases_move(study: Tracking, model_folder: Path) -> None:
    finalist = study.children["finalist/finalist-1"]
    (model_folder / "model.onnx").write_bytes(b"better")
    model_id = log_model(study, finalist, "finalist-1", model_folder)
    assert register(study.client, "demo", model_id, aliases=["knee"]) == 2
    assert int(study.client.get_model_version_by_alias("demo", "knee").version) == 2
    assert int(study.client.get_model_version_by_alias("demo", "most-accurate").version) == 1
    assert (resolve_model(finalist, study.uri).folder / "model.onnx").read_bytes() == b"better"


def test_an_upload_that_was_cut_off_is_done_again(study: Tracking, model_folder: Path) -> None:
    finalist = study.children["finalist/finalist-1"]
    cut = study.client.create_logged_model(study.experiment_id, "second", finalist, tags={"srlnas.digest": "x"})
    model_id = log_model(study, finalist, "second", model_folder)
    ids = {model.model_id for model in study.client.search_logged_models([study.experiment_id])}
    assert model_id in ids
    assert cut.model_id not in ids


def test_an_empty_folder_is_no_model(study: Tracking, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="nothing has no files"):
        log_model(study, study.children["finalist/finalist-1"], "x", tmp_path / "nothing")


def test_artifacts_lie_beside_the_database_and_nothing_elsewhere(study: Tracking, tmp_path: Path) -> None:
    assert (tmp_path / "mlartifacts" / "demo").is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {"srlnas.db", "mlartifacts", "export", "front.png"}


@pytest.mark.parametrize("name", ["", "a/b", "a b", "../up", ".hidden", "-x", "a" * 101, "naïve", "it's", "a:b"])
def test_names_that_mlflow_or_a_path_cannot_take_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not allowed: letters, digits"):
        check_name(name)
    with pytest.raises(ValueError, match="not allowed: letters, digits"):
        open_tracking("sqlite:///never.db", name or "/")
    assert not Path("never.db").exists()


@pytest.mark.parametrize("address", ["./mlruns", "file:///tmp/mlruns", "databricks", "ftp://host"])
def test_stores_that_are_not_supported_are_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"tracking URI .*: give http"):
        open_tracking(address, "demo")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        (
            "http://user:hidden@",
            r"no MLflow server answers at http://user:\*\*\*@127.0.0.1:\d+: start it .* leave --tracking-uri out",
        ),
        ("postgresql+psycopg2://user:hidden@", r"cannot use postgresql\+psycopg2://user:\*\*\*@127.0.0.1:\d+: .*refused"),
        ("postgresql+nodriver://user:hidden@", "MLflow cannot use"),
    ],
    ids=["server", "database", "driver"],
)
def test_a_server_that_does_not_answer_is_said_soon_in_one_line(scheme: str, message: str) -> None:
    if "psycopg2" in scheme:
        pytest.importorskip("psycopg2", reason="the PostgreSQL driver is not installed")
    started = time.monotonic()
    with pytest.raises(ValueError, match=message) as error:
        open_tracking(f"{scheme}127.0.0.1:{_free_port()}", "demo")
    assert time.monotonic() - started < 60  # MLflow alone would try for minutes
    assert "\n" not in str(error.value)
    assert "hidden" not in str(error.value)


def test_a_database_in_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="MLflow cannot use sqlite"):
        open_tracking(f"sqlite:///{tmp_path}/file/srlnas.db", "demo")


def test_a_deleted_experiment_says_how_it_comes_back(study: Tracking, uri: str) -> None:
    study.client.delete_experiment(study.experiment_id)
    with pytest.raises(ValueError, match="experiments restore -x"):
        open_tracking(uri, "demo")


def test_opening_says_nothing_and_imports_mlflow_late(tmp_path: Path) -> None:
    code = (
        "import sys, nas.tracking.mirror as t; assert 'mlflow' not in sys.modules; r = t.open_tracking(sys.argv[1], 'demo');"
        "r.log_run('a', kind='reference', metrics={'eer': 1.0}); r.finish()"
    )
    command = [sys.executable, "-c", code, f"sqlite:///{tmp_path / 'new.db'}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_the_ui_command_binds_this_machine_alone() -> None:
    command = ui_command("sqlite:////data/srlnas.db", 5001)
    assert command[:4] == [sys.executable, "-m", "mlflow", "server"]
    options = dict(zip(command[4::2], command[5::2], strict=True))
    assert options == {
        "--backend-store-uri": "sqlite:////data/srlnas.db",
        "--artifacts-destination": "/data/mlartifacts",
        "--host": "127.0.0.1",
        "--port": "5001",
        "--workers": "1",
    }
    with pytest.raises(ValueError, match=r"http://user:\*\*\*@host:5000 is an MLflow server: open"):
        ui_command("http://user:hidden@host:5000", 5001)


@pytest.fixture(scope="module")
def postgres() -> Iterator[dict[str, str]]:
    """PostgreSQL with a password and an empty database `mlflow`; yields the PG* variables that lead to it."""
    programs = [shutil.which(name) for name in ("initdb", "pg_ctl", "postgres")]
    if None in programs:
        pytest.skip("PostgreSQL's initdb, pg_ctl and postgres are not installed")
    psycopg2 = pytest.importorskip("psycopg2", reason="the PostgreSQL driver is not installed")
    folder = Path(tempfile.mkdtemp(prefix="srlnas-postgres-"))  # not pytest's: that one is closed to the user postgres
    (folder / "password").write_text("not-a-secret-in-a-test")
    as_user: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        as_user = ["runuser", "-u", "postgres", "--"]
        for path in (folder, folder / "password"):
            shutil.chown(path, "postgres")
    data, log = str(folder / "data"), str(folder / "log")
    access = {"PGHOST": "127.0.0.1", "PGPORT": str(_free_port()), "PGUSER": "mlflow", "PGPASSWORD": "not-a-secret-in-a-test"}
    options = f"-h 127.0.0.1 -p {access['PGPORT']} -k {folder} -c fsync=off"
    secure = ["--auth=scram-sha-256", "--username=mlflow", f"--pwfile={folder / 'password'}", "--locale=C", "--encoding=UTF8"]
    try:
        subprocess.run([*as_user, "initdb", "--pgdata", data, "--no-sync", *secure], check=True, capture_output=True, cwd=folder)
        start = [*as_user, "pg_ctl", "--pgdata", data, "--log", log, "--options", options, "--wait", "start"]
        subprocess.run(start, check=True, stdout=subprocess.DEVNULL, cwd=folder)
        connection = psycopg2.connect(
            host=access["PGHOST"], port=access["PGPORT"], user="mlflow", password=access["PGPASSWORD"], dbname="postgres"
        )
        connection.autocommit = True
        connection.cursor().execute("CREATE DATABASE mlflow")
        connection.close()
        yield access
    finally:
        stop = [*as_user, "pg_ctl", "--pgdata", data, "--mode", "immediate", "stop"]
        subprocess.run(stop, check=False, capture_output=True, cwd=folder)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def server(postgres: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`mlflow server` as mlflow/compose.yaml starts it (configuration file, user administration, proxied artifacts)."""
    pytest.importorskip("flask_wtf", reason="mlflow[auth] is not installed")
    folder = tmp_path_factory.mktemp("server")
    port = str(_free_port())
    environment = {
        **os.environ,
        **postgres,
        "MLFLOW_AUTH_CONFIG_PATH": str(ROOT / "mlflow" / "basic_auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "not-a-secret-in-a-test",
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN[1],
        "MLFLOW_BACKEND_STORE_URI": "postgresql+psycopg2:///mlflow",
        "MLFLOW_ARTIFACTS_DESTINATION": str(folder / "artifacts"),
        "MLFLOW_SERVER_ALLOWED_HOSTS": "127.0.0.1, 127.0.0.1:*",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    network = ["--host", "127.0.0.1", "--port", port, "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--serve-artifacts", *network]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(f"{address}/health", process, folder / "log")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _wait(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(240):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"the server did not answer within 120 s: {log.read_text()[-3000:]}")


ADMIN = ("admin", "a long test password")


def _log_in(monkeypatch: pytest.MonkeyPatch, name: str, password: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)


def _ask(server: str, method: str, path: str, user: tuple[str, str], *, host: str | None = None, **body: object) -> None:
    login = base64.b64encode(":".join(user).encode()).decode()
    headers = {"Content-Type": "application/json", "Authorization": f"Basic {login}", **({"Host": host} if host else {})}
    address = f"{server}/api/2.0/mlflow/{path}"
    urllib.request.urlopen(urllib.request.Request(address, json.dumps(body).encode(), headers, method=method), timeout=30).close()


@pytest.mark.slow
def test_a_team_server_takes_a_study(server: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL, users and passwords, artifacts through the server, allowed hosts: what mlflow/compose.yaml sets up."""
    monkeypatch.chdir(tmp_path)
    for user, password in (("", ""), ("admin", "password1234"), ("stranger", ADMIN[1])):
        _log_in(monkeypatch, user, password)
        with pytest.raises(ValueError, match=r"refuses this user .* MLFLOW_TRACKING_PASSWORD"):
            open_tracking(server, "demo")

    _log_in(monkeypatch, *ADMIN)
    first, second = "another long password", "yet another long password"
    _ask(server, "POST", "users/create", ADMIN, username="ada", password=first)
    _ask(server, "PATCH", "users/update-password", ("ada", first), username="ada", current_password=first, password=second)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        _ask(server, "POST", "experiments/search", ADMIN, host="attacker.example", max_results=1)

    _log_in(monkeypatch, "ada", second)
    study = _write_study(server, model_folder, _plot(tmp_path))
    before = _content(study)
    assert len(before) == 8 + 1 + 1
    assert _content(_write_study(server, model_folder, _plot(tmp_path))) == before
    for address in (study.children["finalist/finalist-1"], "models:/demo@knee", "models:/demo/1"):
        assert _files(resolve_model(address, server).folder) == _files(model_folder)
    with pytest.raises(ValueError, match="it has models:/demo@knee"):
        resolve_model("models:/demo@fastest", server)
    assert {path.name for path in tmp_path.iterdir()} == {"export", "front.png"}  # nothing stored at the client's


LOG_A_MODEL = """
import sys
from pathlib import Path
from nas.tracking.connection import default_tracking_uri
from nas.tracking.mirror import open_tracking
from nas.tracking.models import log_model, register
study = open_tracking(default_tracking_uri(), "demo")
register(study.client, "demo", log_model(study, study.log_run("f", kind="finalist"), "f", Path(sys.argv[1])), aliases=["knee"])
"""
READ_IT = """
from pathlib import Path
from nas.tracking.connection import default_tracking_uri
from nas.tracking.registry import resolve_model
found = resolve_model("models:/demo@knee", default_tracking_uri(), folder=Path("read"))
print(*sorted(path.name for path in found.folder.iterdir()))
"""


@pytest.mark.parametrize("name", ["C# voice", "what?", "feature%2Fwords"])
def test_a_folder_whose_name_means_something_in_a_uri_holds_all_of_it(tmp_path: Path, model_folder: Path, name: str) -> None:
    """Database and artifacts, found again by another process."""
    here = tmp_path / name
    here.mkdir()
    subprocess.run([sys.executable, "-c", LOG_A_MODEL, str(model_folder)], cwd=here, check=True)
    assert {path.name for path in here.iterdir()} == {"srlnas.db", "mlartifacts"}
    assert {path.name for path in tmp_path.iterdir()} == {name, model_folder.name}
    read = subprocess.run([sys.executable, "-c", READ_IT], cwd=here, check=True, capture_output=True, text=True).stdout
    assert read.split() == sorted(path.name for path in model_folder.iterdir())


def test_a_proxy_that_answers_is_not_blamed_on_the_user(tmp_path: Path) -> None:
    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            page = b"<html><body>squid: access denied</body></html>"
            self.send_response(403)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        with pytest.raises(ValueError, match="is no MLflow server, perhaps a proxy"):
            open_tracking(f"http://127.0.0.1:{proxy.server_port}", "demo")
        proxy.shutdown()
