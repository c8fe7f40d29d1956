"""Latency of a student on the study's target, with an interval and its kind."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deploy.export import export_onnx, reference_model
from deploy.measure import measure, reference_milliseconds
from deploy.target import Target
from search_spaces.architecture import Architecture, Geometry
from trainers.student import Student

Kind = Literal["measured", "calibrated", "data sheet"]
REFERENCE_FILE = "latency_reference.onnx"


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds for one window, with the interval of the median."""

    milliseconds: float
    low: float
    high: float
    kind: Kind


@dataclass(frozen=True, kw_only=True)
class LatencyModel:
    """What a target needs for a student.

    Every answer is measured on this machine: each inference stands beside one of the fixed `reference` model, whose own time
    `reference_ms` on the target's machine turns the ratio into milliseconds. Weights do not matter, so an untrained student
    of the architecture serves and a limit can refuse a candidate before it is trained.
    """

    target: Target
    reference: Path
    reference_ms: float

    def predict(self, architecture: Architecture, geometry: Geometry, keywords: tuple[str, ...]) -> Latency:
        return self.of_student(Student(architecture, geometry, keywords))

    def of_student(self, student: Student) -> Latency:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "student.onnx"
            export_onnx(student.cpu(), path, self.target.window)
            measured = measure(
                path, self.reference, window=self.target.window, threads=self.target.threads, reference_ms=self.reference_ms
            )
        return Latency(milliseconds=measured.milliseconds, low=measured.low, high=measured.high, kind="measured")


def calibrate(target: Target, folder: Path) -> LatencyModel:
    """Writes the reference model below `folder` and takes its time on this machine."""
    reference = folder / REFERENCE_FILE
    reference_model(reference, target.window)
    milliseconds = reference_milliseconds(reference, window=target.window, threads=target.threads)
    return LatencyModel(target=target, reference=reference, reference_ms=milliseconds)
