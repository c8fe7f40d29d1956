"""Reaching MLflow: which addresses it may have, what is said when nothing answers there, and its pages in a browser."""

import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
    """MLFLOW_TRACKING_URI, as MLflow's users expect; without it `srlnas.db` in the working folder, its artifacts in `mlartifacts`
    beside it."""
    here = Path.cwd() / "srlnas.db"
    if any(mark in str(here) for mark in "#?%"):  # they mean something in a URI: relative to the working folder
        here = Path(here.name)
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{here}"


def sqlite_file(uri: str) -> Path | None:
    """The file of a sqlite address; None for other addresses, and in memory."""
    if not uri.startswith("sqlite:"):
        return None
    name = uri.partition(":///")[2].partition("?")[0]
    return Path(name) if name and name != ":memory:" else None


def check_exists(uri: str) -> None:
    """Raises ValueError where reading would make a new, empty database."""
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        raise ValueError(
            f"there is no MLflow database at {file.absolute()}: run this in the folder of the search, or name its --tracking-uri"
        )


def ui_command(uri: str, port: int) -> list[str]:
    """Command line that shows a tracking database in the browser, on 127.0.0.1 alone. A password in `uri` would be seen in
    the list of processes: PGPASSWORD keeps it out. Raises ValueError where `uri` is a server, which has a UI of its own."""
    if scheme_of(uri) in SERVERS:
        raise ValueError(f"{shown(uri)} is an MLflow server: open that address in a browser")
    options = ["--backend-store-uri", uri, "--artifacts-destination", str(artifacts_folder(uri))]
    network = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "server", *options, *network]


def connect(uri: str) -> "MlflowClient":
    """A client that has had one answer. Raises ValueError where none comes within about 10 seconds."""
    scheme = scheme_of(uri)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # pages of SQL for what our one line says
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        if (file := sqlite_file(uri)) and not file.exists():
            _make_database(file)
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
            f"tracking URI {shown(uri)!r}: give http(s)://host:port of an MLflow server, sqlite:///file.db or postgresql://...; "
            "MLflow's folders of files (file:, ./mlruns) are no longer supported by MLflow"
        )
    return scheme


def _make_database(file: Path) -> None:
    """MLflow makes one in many steps. Two at once, or one that is killed, would leave a file that nothing can use: it is made under
    another name, and whoever is first gives it the right one."""
    from mlflow import MlflowClient

    part = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        _reach_database(f"sqlite:///{part}", "sqlite")
        MlflowClient(tracking_uri=f"sqlite:///{part}", registry_uri=f"sqlite:///{part}").search_experiments(max_results=1)
        with suppress(FileExistsError):
            os.link(part, file)
    except OSError:  # of a file system without such links
        if not file.exists():
            part.rename(file)
    finally:
        with suppress(OSError):
            part.unlink()


def _reach_database(uri: str, scheme: str) -> None:
    """One attempt, because MLflow itself would try for 100 seconds."""
    from sqlalchemy import create_engine

    timeout = {} if scheme == "sqlite" else {"connect_timeout": PROBE_SECONDS}
    engine = create_engine(uri, connect_args=timeout)
    engine.connect().close()
    engine.dispose()


def _refusal(uri: str, scheme: str, error: str) -> str:
    """One line for what went wrong, with the way out."""
    reason = shown(error).splitlines()[0][:300] if error else "no reason given"
    if scheme in DATABASES:
        driver = "; install it, or name another: postgresql+psycopg2://..." if "No module named" in reason else ""
        return f"MLflow cannot use {shown(uri)}: {reason}{driver}"
    if re.search(r"<html|\bproxy\b|\bsquid\b", error, re.IGNORECASE):
        return f"what answers at {shown(uri)} is no MLflow server, perhaps a proxy: look at HTTP_PROXY and NO_PROXY ({reason})"
    if re.search(r"\b40[13]\b|UNAUTHENTICATED|PERMISSION_DENIED", error):
        return (
            f"the MLflow server at {shown(uri)} refuses this user or this host name: set MLFLOW_TRACKING_USERNAME and "
            f"MLFLOW_TRACKING_PASSWORD, and see the server's allowed hosts ({reason})"
        )
    return (
        f"no MLflow server answers at {shown(uri)}: start it with `mlflow server` (see mlflow/README.md) "
        f"or leave --tracking-uri out ({reason})"
    )


def shown(uri: str) -> str:
    """An address without its password."""
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
    file = sqlite_file(uri)
    return (file.resolve().parent if file else Path.cwd()) / "mlartifacts"
