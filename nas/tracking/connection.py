"""Reaching MLflow: which addresses it may have, what is said when nothing answers there, and its pages in a browser."""

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from mlflow import MlflowClient

SERVERS = ("http", "https")
DATABASES = ("sqlite", "postgresql", "mysql")
PROBE_SECONDS = 8

# Set before MLflow is imported, and only where the user has not decided otherwise.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # MLflow's own 7 retries of 120 s each would hold a search up for many minutes when its server goes away.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


def default_tracking_uri() -> str:
    """`srlnas.db` in the working folder; its artifacts go to `mlartifacts` beside it."""
    return f"sqlite:///{Path.cwd() / 'srlnas.db'}"


def ui_command(uri: str, port: int) -> list[str]:
    """Command line that shows a tracking database in the browser, on 127.0.0.1 alone. A password in `uri` would be seen in
    the list of processes: PGPASSWORD keeps it out. Raises ValueError where `uri` is a server, which has a UI of its own."""
    if scheme_of(uri) in SERVERS:
        raise ValueError(f"{_shown(uri)} is an MLflow server: open that address in a browser")
    options = ["--backend-store-uri", uri, "--artifacts-destination", str(artifacts_folder(uri))]
    network = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "server", *options, *network]


def connect(uri: str) -> "MlflowClient":
    """A client that has had one answer. Raises ValueError where none comes within about 10 seconds."""
    scheme = scheme_of(uri)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        if scheme in DATABASES:
            _reach_database(uri, scheme)
        with _environment(MLFLOW_HTTP_REQUEST_MAX_RETRIES="0", MLFLOW_HTTP_REQUEST_TIMEOUT=str(PROBE_SECONDS)):
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            client.search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, ImportError) as error:  # ImportError: the database's driver is not installed
        raise ValueError(_refusal(uri, scheme, str(error))) from error
    return client


def scheme_of(uri: str) -> str:
    scheme = urlsplit(uri).scheme.split("+")[0]
    if scheme not in SERVERS + DATABASES:
        raise ValueError(
            f"tracking URI {_shown(uri)!r}: give http(s)://host:port of an MLflow server, sqlite:///file.db or postgresql://...; "
            "MLflow's folders of files (file:, ./mlruns) are no longer supported by MLflow"
        )
    return scheme


def _reach_database(uri: str, scheme: str) -> None:
    """One attempt, because MLflow itself would try for 100 seconds."""
    from sqlalchemy import create_engine

    timeout = {} if scheme == "sqlite" else {"connect_timeout": PROBE_SECONDS}
    engine = create_engine(uri, connect_args=timeout)
    engine.connect().close()
    engine.dispose()


def _refusal(uri: str, scheme: str, error: str) -> str:
    """One line for what went wrong, with the way out."""
    reason = _shown(error).splitlines()[0][:300] if error else "no reason given"
    if scheme in DATABASES:
        driver = "; install it, or name another: postgresql+psycopg2://..." if "No module named" in reason else ""
        return f"MLflow cannot use {_shown(uri)}: {reason}{driver}"
    if re.search(r"\b40[13]\b|UNAUTHENTICATED|PERMISSION_DENIED", error):
        return (
            f"the MLflow server at {_shown(uri)} refuses this user or this host name: set MLFLOW_TRACKING_USERNAME and "
            f"MLFLOW_TRACKING_PASSWORD, and see the server's allowed hosts ({reason})"
        )
    return (
        f"no MLflow server answers at {_shown(uri)}: start it with `mlflow server` (see mlflow/README.md) "
        f"or leave --tracking-uri out ({reason})"
    )


def _shown(uri: str) -> str:
    return re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1:***@", uri)


@contextmanager
def _environment(**changes: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def artifacts_folder(uri: str) -> Path:
    """Where a database without a server keeps its artifacts: beside a sqlite file, else in the working folder."""
    file = urlsplit(uri).path.removeprefix("/") if scheme_of(uri) == "sqlite" else ""
    return (Path(file).resolve().parent if file else Path.cwd()) / "mlartifacts"
