"""The files of a report in the study folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas.report.front import FRONT_FILE
from nas.report.page import PAGE_FILE, write_page
from nas.report.plots import plot_front, plot_latency
from nas.report.table import markdown
from nas.study.folder import Study


def write_report(study: Study, front: Mapping[str, Any]) -> list[Path]:
    """front.json, front.md, front.html and front.png in the study folder; returns the pictures."""
    study.write_json(FRONT_FILE, front)
    (study.folder / "front.md").write_text(markdown(front))
    write_page([front], study.folder / PAGE_FILE)
    return [plot_front(front, study.folder / "front.png"), *plot_latency(front, study.folder / "latency.png")]
