"""What several command groups share."""

from typing import Annotated

import typer

TrackingUri = Annotated[
    str | None, typer.Option(help="MLflow server or database; default: srlnas.db (sqlite) in the working folder.")
]
INTERRUPTED = 130  # the shell's exit code for Ctrl-C
