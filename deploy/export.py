"""A student as one ONNX file, checked against the student itself; and the fixed reference model of latency measurements."""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch

from deploy.measure import open_session
from search_spaces.architecture import Architecture, Geometry
from trainers.networks.log_mel import as_exported
from trainers.networks.student import Student

OPSET = 17
INPUT = "audio"
OUTPUTS = ("logits", "embedding")
STUDENT = "srlnas.student.sha256"  # in the file's metadata
PARITY_LIMIT = 1e-4  # the exported file may differ by this much from the student, in the embedding and in logits
ROUNDING = 2e-7  # of float32, as often as an embedding's sum is smaller than what it is the sum of: voices hardly learnt cancel out
LARGE = 10.0  # from logits of this size on the limit grows with them: float32 rounds those of 22 by 4e-5, from batch to batch

Windows = npt.NDArray[np.float32]
REFERENCE_GEOMETRY = Geometry(
    head_dim=64,
    conv_dims=(32, 64, 128, 128, 128, 128, 128),
    conv_bias=True,
    front_norm="layer",
    norm_order="post",
    position_kernel=64,
    position_groups=16,
    normalize_input=True,
)


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Largest differences between a student and its file over `clips` windows; the student's largest logit; the share of windows
    that gets the same keyword; the most that what an embedding is the sum of exceeds it."""

    clips: int
    max_abs_logits: float
    max_abs_embedding: float
    largest_logit: float
    same_keyword: float
    cancelled: float = 1.0

    @property
    def embedding_limit(self) -> float:
        return min(max(PARITY_LIMIT, ROUNDING * self.cancelled), 100 * PARITY_LIMIT)

    @property
    def limit(self) -> float:
        """Of the logits' difference."""
        return PARITY_LIMIT * max(1.0, self.largest_logit / LARGE)

    @property
    def ok(self) -> bool:
        """False beyond the limits, and for outputs that are not numbers."""
        is_close = self.max_abs_logits <= self.limit and self.max_abs_embedding <= self.embedding_limit
        return is_close and math.isfinite(self.max_abs_logits)


def export_onnx(student: Student, path: Path, window: int) -> None:
    """Writes `audio` (1, window) float32 -> `logits` (1, keywords), `embedding` (1, 128) of unit length, weights inside.

    A student with prediction layers is folded first, so the file holds the weights that count as its params. The same student
    gives the same bytes.
    """
    write_graph(student.folded(), path, window)


def write_graph(student: Student, path: Path, window: int) -> None:
    """As `export_onnx`, of a student as it is."""
    # The tracing exporter, not the one on torch.export. Over both front ends, strides, norms and orders of layer norm the files
    # agree with torch alike (6e-7) and run equally fast (2 %). It takes 0.2 s against 1.6 s, runs with opset 17 on older devices'
    # runtimes, and its bytes are stable; the other's change from call to call and carry this machine's paths. It is
    # deprecated: where torch drops it, pass dynamo=True, external_data=False and opset 20.
    with warnings.catch_warnings(), as_exported():
        warnings.simplefilter("ignore")  # the deprecation, and sizes that become constants: wanted, the window is fixed
        torch.onnx.export(
            student.cpu(),
            (torch.zeros(1, window),),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
        )


def name_student(path: Path, digest: str) -> None:
    """Writes the hash of the student's weights into the file's metadata, so that it says whose it is wherever it lies."""
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {STUDENT: digest})
    onnx.save(model, str(path))


@torch.no_grad()
def parity(student: Student, onnx_path: Path, windows: Windows) -> Parity:
    """Runs student and file on the same (clips, window) samples, one at a time. NaN in either shows as NaN."""
    assert windows.ndim == 2
    assert len(windows) > 0
    was_training, session = student.training, open_session(onnx_path)
    student.eval()
    device = next(student.parameters()).device
    logits, embeddings, cancelled, largest, same = list[float](), list[float](), list[float](), 0.0, 0
    for window in windows.astype(np.float32):
        expected = [output.cpu().numpy() for output in student(torch.from_numpy(window[None]).to(device))]
        actual = session.run(list(OUTPUTS), {INPUT: window[None]})
        logits.append(float(np.abs(actual[0] - expected[0]).max()))
        embeddings.append(float(np.abs(actual[1] - expected[1]).max()))
        cancelled.append(_cancelled(student, torch.from_numpy(window[None]).to(device)))
        largest = max(largest, float(np.abs(expected[0]).max()))
        same += int(actual[0].argmax() == expected[0].argmax())
    student.train(was_training)
    return Parity(
        clips=len(windows),
        max_abs_logits=float(np.max(logits)),
        max_abs_embedding=float(np.max(embeddings)),
        largest_logit=largest,
        same_keyword=same / len(windows),
        cancelled=float(np.max(cancelled)),
    )


def _cancelled(student: Student, x_1n: torch.Tensor) -> float:
    """How many times larger than an embedding is what it is the sum of."""
    head, features_1f = student.speaker_head, student.norm(student.hear(x_1n))
    parts_1e = features_1f.abs() @ head.weight.abs().T + head.bias.abs()
    return float(parts_1e.norm() / head(features_1f).norm())


def reference_model(path: Path, window: int) -> None:
    """Writes the fixed reference of `deploy.measure`: a student of 1.1 M weights from a fixed seed, a few milliseconds a second
    of audio. It mixes the same operations as the students, so that what disturbs them disturbs it alike."""
    architecture = Architecture(
        front_end="wave", front_width=96, frame_stride=1, width=192, heads=(3, 3), ffn_dims=(512, 512), kept_layers=(1, 2)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        export_onnx(Student(architecture, REFERENCE_GEOMETRY, ("yes", "no")), path, window)
