"""The folder mlflow/: it does not shadow the package, and its compose file opens nothing and holds no secret."""

import configparser
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML (a dependency of MLflow) is not installed")

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "mlflow"
REQUIRED = re.compile(r"\$\{(\w+):\?[^}]+\}")  # a value from .env that has no default


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((FOLDER / "compose.yaml").read_text()))


def _environment(compose: dict[str, Any]) -> list[tuple[str, str]]:
    return [pair for service in compose["services"].values() for pair in service.get("environment", {}).items()]


def test_the_folder_has_no_python_file() -> None:
    assert FOLDER.is_dir()
    assert [path.name for path in FOLDER.rglob("*.py*")] == []


@pytest.mark.parametrize("command", [["-c", "import mlflow; print(mlflow.__file__)"], ["-m", "mlflow", "--version"]])
def test_mlflow_is_the_installed_package_in_the_repository_too(command: list[str]) -> None:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert str(FOLDER) not in done.stdout
    assert re.search(r"site-packages|version \d", done.stdout)


def test_ports_are_published_on_this_machine_alone(compose: dict[str, Any]) -> None:
    ports = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert set(ports) == {"mlflow"}
    assert all(str(port).startswith("127.0.0.1:") for port in ports["mlflow"])
    assert compose["networks"]["stores"]["internal"] is True
    assert [name for name, service in compose["services"].items() if service["networks"] != ["stores"]] == ["mlflow"]


def test_secrets_come_from_the_environment_and_have_no_default(compose: dict[str, Any]) -> None:
    secrets = {name: value for name, value in _environment(compose) if re.search("PASSWORD|SECRET|ACCESS_KEY", name)}
    assert len(secrets) == 6
    for name, value in secrets.items():
        assert REQUIRED.fullmatch(value), f"{name} is {value!r}"
    addresses = [value for _, value in _environment(compose) if "://" in value]
    assert not [address for address in addresses if "@" in address]


def test_the_example_names_every_variable_and_fills_none(compose: dict[str, Any]) -> None:
    lines = (FOLDER / ".env.example").read_text().splitlines()
    named = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    needed = {name for _, value in _environment(compose) for name in REQUIRED.findall(value)}
    assert set(named) == needed
    assert set(named.values()) == {""}
    assert not (FOLDER / ".env").exists() or ".env" in (ROOT / ".gitignore").read_text()


def test_images_are_pinned(compose: dict[str, Any]) -> None:
    images = [service["image"] for service in compose["services"].values()]
    base = re.findall(r"^FROM (\S+)", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
    assert len(images) == 4
    assert len(base) == 1
    for image in images + base:
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+[\w.-]*", image), image


def test_the_server_has_the_version_that_the_tests_run_against(compose: dict[str, Any]) -> None:
    from importlib.metadata import version

    recipe = re.search(r"mlflow\[auth\]==([\d.]+)", (FOLDER / "Dockerfile").read_text())
    assert recipe is not None
    assert recipe[1] == version("mlflow")
    assert compose["services"]["mlflow"]["image"] == f"srlnas-mlflow:{recipe[1]}"


def test_what_is_stored_has_a_volume_and_a_health_check(compose: dict[str, Any]) -> None:
    services = compose["services"]
    used = {volume.split(":")[0] for service in services.values() for volume in service.get("volumes", [])}
    assert set(compose["volumes"]) == {"runs", "files"} == {volume for volume in used if not volume.startswith(".")}
    waited = {name for service in services.values() for name, how in service.get("depends_on", {}).items()}
    assert waited <= set(services)
    assert all("healthcheck" in services[name] for name in ("postgres", "files", "mlflow"))


def test_host_names_are_allowed_with_and_without_port(compose: dict[str, Any]) -> None:
    value = compose["services"]["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"]
    hosts = {host.strip() for host in value.split(",")}
    plain = {host for host in hosts if not host.endswith(":*")}
    assert "*" not in hosts
    assert hosts - plain == {f"{host}:*" for host in plain}


def test_the_user_configuration_has_no_password() -> None:
    config = configparser.ConfigParser()
    config.read(FOLDER / "basic_auth.ini")
    assert "admin_password" not in config["mlflow"]
    assert config["mlflow"]["database_uri"] == "postgresql+psycopg2:///mlflow"
