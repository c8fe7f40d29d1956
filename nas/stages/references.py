"""References that several studies of one teacher, corpus and recipe share: trained once, kept in the cache."""

import hashlib
import json
import shutil
import tempfile
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nas.stages.finals import TUTOR, Final
from nas.worker.context import Context
from trainers.speech.decoding import content_hash

KEPT = ("teacher", "paper's student", "BC-ResNet", TUTOR)
REPORT_FILE = "report.json"


def kept_report(context: Context, final: Final) -> dict[str, Any] | None:
    """The report of a reference that an earlier study trained, its student copied here; it costs this study nothing."""
    folder = _place(context, final)
    if not (folder / REPORT_FILE).is_file():
        return None
    with context.study.new_weights(final.name) as place:
        shutil.copytree(folder, place, dirs_exist_ok=True)
    report: dict[str, Any] = json.loads((folder / REPORT_FILE).read_text())
    return report


def keep(context: Context, final: Final, report: dict[str, Any]) -> None:
    """A reference that was trained, for later studies; others are passed over."""
    if "scores" in report and final.role in KEPT:
        folder = _place(context, final)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as temporary:
            part = Path(temporary) / folder.name
            shutil.copytree(context.study.weights_folder(final.name), part)
            (part / REPORT_FILE).write_text(json.dumps(report))
            with suppress(OSError):  # another study was faster
                part.rename(folder)


def _place(context: Context, final: Final) -> Path:
    config = context.study.config
    cache = Path(config.cache)
    files = [content_hash(Path(path), cache) for path in (*config.trials, config.noise) if path]
    if len(context.corpus.names) > 1:  # their names stand in the scores
        files += context.corpus.short_names
    deployed = [] if final.role in ("teacher", TUTOR) else [context.target.precision]
    recipe = [asdict(config.recipe), final.distill_steps, final.finetune_steps, final.tutor_steps]
    data = [context.teacher.digest, context.corpus.digest, *files, config.target_windows, context.target.window, *deployed]
    what = [version("srlnas"), final.name, final.architecture.to_json(), final.start, config.seed, recipe, data]
    return cache / "references" / hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
