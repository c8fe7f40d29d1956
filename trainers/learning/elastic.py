"""A student that holds the weights of all students of a space, trained once (`sandwich.py`), from which candidates take theirs.

As in once-for-all networks (Cai et al., arXiv 1908.09791) and LightHuBERT (Wang et al., arXiv 2203.15610) a member uses the first
channels, heads and units, which are sorted by importance in the teacher, and exactly the layers that it keeps. Each front end has a
stem of its own; what depends on the stride or the positional convolution's width, whose groups a prefix would cut across, is kept
once for each. So are the statistics of batch norms of broadcast blocks, which depend on their width alone, and what reads blocks
that have no layers above them. There are no elastic layers: a member is the ordinary student, its weights views of the shared ones.
"""

import copy
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.architecture import BC_BINS, Architecture
from search_spaces.space import SearchSpace
from trainers.learning.distill import distiller
from trainers.learning.recipe import Recipe
from trainers.learning.resume import read_position, read_state
from trainers.networks.encoder import BroadcastFront, PositionTable, SpeechEncoder, WaveFront
from trainers.networks.inherit import inherit
from trainers.networks.log_mel import LogMel, WhisperLogMel
from trainers.networks.student import Student
from trainers.teacher.teacher import Teacher


class Elastic(nn.Module):
    """The shared weights. What a member is, is an argument of every method, never state."""

    def __init__(self, space: SearchSpace, teacher: Teacher, recipe: Recipe, keywords: tuple[str, ...]) -> None:
        super().__init__()
        self.space, self.teacher, self.recipe, self.keywords = space, teacher, recipe, keywords
        self.of_whisper = teacher.geometry.family == "whisper"
        mel = WhisperLogMel(teacher.geometry.mel_bins) if self.of_whisper else LogMel()
        self.mels = nn.ModuleDict({"mel": mel, "bc": LogMel(BC_BINS)})
        self.shared, self.tables = nn.ParameterDict(), dict[int, PositionTable]()
        self.statistics = nn.Module()
        for architecture in self._builders():
            student = self._student(architecture)
            assert isinstance(student.encoder, SpeechEncoder)
            inherit(student.encoder, teacher.encoder, "ranked")
            if architecture.depth and isinstance(table := student.encoder.positions, PositionTable):
                self.tables.setdefault(architecture.frame_stride, table)
            for name, value in student.named_parameters():
                if (key := _key(name, architecture, self.of_whisper)) not in self.shared:
                    self.shared[key] = nn.Parameter(_spread(name, value.detach().clone(), student))
        for width in space.front_widths.get("bc", ()):
            front = BroadcastFront(width, teacher.geometry)
            for name, buffer in front.named_buffers():
                if not name.startswith("mel."):
                    self.statistics.register_buffer(_statistic(width, name), buffer)

    def _builders(self) -> Iterator[Architecture]:
        """The widest student of all the teacher's layers for each front end and stride, then narrower ones for their positions."""
        depth = self.teacher.architecture.depth
        for corner in self.space.corners(-1):
            if not corner.depth:
                yield corner
                continue
            whole = dataclasses.replace(
                corner,
                kept_layers=tuple(range(1, depth + 1)),
                heads=(max(self.space.heads),) * depth,
                ffn_dims=(max(self.space.ffn_dims),) * depth,
            )
            for width in reversed(self.space.widths):
                yield dataclasses.replace(whole, width=width)

    def _student(self, architecture: Architecture) -> Student:
        return Student(
            architecture,
            self.teacher.geometry,
            self.keywords,
            predicted_layers=self.teacher.predicted_layers,
            target_width=self.teacher.architecture.width,
            heads=self.recipe.heads,
            matching=self.recipe.matching,
            speaker_layer=self.recipe.speaker_layer,
            is_folded=False,
        )

    def is_broadcast(self, name: str) -> bool:
        """Whether a parameter belongs to broadcast blocks, or to what reads them without layers."""
        return name.startswith(("shared.bc/front/", "shared.bc/alone/"))

    def weights(self, shell: Student) -> dict[str, Tensor]:
        """Of a member, by the names of its parameters: differentiable views of the shared weights."""
        a = shell.architecture
        assert isinstance(a, Architecture)
        return {
            name: _prefix(name, self.shared[_key(name, a, self.of_whisper)], parameter.shape, shell)
            for name, parameter in shell.named_parameters()
        }

    def _statistics(self, shell: Student) -> dict[str, Tensor]:
        """Of a member's batch norms, by the names of its buffers; training changes them in place."""
        assert isinstance(shell.encoder, SpeechEncoder)
        if not isinstance(shell.encoder.front, BroadcastFront):
            return {}
        width, names = shell.encoder.architecture.front_width, dict(shell.encoder.front.named_buffers())
        kept = [name for name in names if not name.startswith("mel.")]
        return {f"encoder.front.{name}": self.statistics.get_buffer(_statistic(width, name)) for name in kept}

    def predict_teacher(self, architecture: Architecture, audio_bn: Tensor, frames: int) -> list[Tensor]:
        """(batch, samples) -> what the member predicts of each of the teacher's layers, (batch, frames, teacher width)."""
        predicted: list[Tensor] = self._call(architecture, "predict_teacher", audio_bn, frames)
        return predicted

    def forward(self, architecture: Architecture, audio_bn: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, samples) -> the member's logits and embeddings. Its norm takes the batch's statistics: each member has others."""
        heard: tuple[Tensor, Tensor] = self._call(architecture, "forward", audio_bn)
        return heard

    def _call(self, architecture: Architecture, method: str, *inputs: Tensor | int) -> Any:
        with torch.device("meta"):
            shell = self._student(architecture)
        assert isinstance(shell.encoder, SpeechEncoder)
        if not isinstance(shell.encoder.front, WaveFront):
            mel = self.mels[architecture.front_end]
            assert isinstance(mel, LogMel)
            shell.encoder.front.mel = mel
        self._lend_table(shell.encoder)
        shell.norm = nn.BatchNorm1d(shell.speaker_head.in_features, affine=False, track_running_stats=False)
        lent = {**self.weights(shell), **self._statistics(shell)}
        weights = {f"student.{name}": value for name, value in lent.items()}
        return torch.func.functional_call(_Method(shell.train(self.training), method), weights, inputs)

    def _lend_table(self, encoder: SpeechEncoder) -> None:
        """Whisper's positions of the member's channels, which are the first."""
        if encoder.architecture.depth and isinstance(encoder.positions, PositionTable):
            device = next(iter(self.shared.values())).device
            table = self.tables[encoder.architecture.frame_stride].to(device).table
            encoder.positions.table = table[:, : encoder.architecture.width]

    @torch.no_grad()
    def extract(self, architecture: Architecture) -> Student:
        """A member as a student of its own. Raises ValueError where the architecture is no member of the space."""
        if architecture not in self.space:
            raise ValueError(f"the shared student of the space {self.space.name} has no {architecture.to_json()}")
        student = self._student(architecture)
        for name, value in self.weights(student).items():
            student.get_parameter(name).copy_(value)
        for name, value in self._statistics(student).items():
            student.get_buffer(name).copy_(value)
        assert isinstance(student.encoder, SpeechEncoder)
        self._lend_table(student.encoder)
        return copy.deepcopy(student)  # what was lent is then its own


class _Method(nn.Module):
    """A student whose call is one of its methods."""

    def __init__(self, student: Student, method: str) -> None:
        super().__init__()
        self.student, self.method = student, method

    def forward(self, *inputs: Any) -> Any:
        return getattr(self.student, self.method)(*inputs)


def _statistic(width: int, name: str) -> str:
    return f"{width}.{name}".replace(".", "/")


def _key(name: str, a: Architecture, of_whisper: bool) -> str:
    """Where a student's parameter lies among the shared ones. A Whisper's second convolution has a kernel for each stride."""
    part, _, rest = name.removeprefix("encoder.").partition(".")
    if not a.depth and part != "front":
        place = f"{a.front_end}/alone/{part}/{rest}"
    elif a.front_end == "mel" and name.startswith("encoder.front.convs.1.") and of_whisper:
        place = f"{a.front_end}/{a.frame_stride}/{part}/{rest}"
    elif part in ("front", "front_norm"):
        place = f"{a.front_end}/{part}/{rest}"
    elif part == "projection":
        place = f"{a.front_end}/{a.frame_stride}/{part}/{rest}"
    elif part == "positions":
        place = f"{a.frame_stride}/{a.width}/{part}/{rest}"
    elif part == "predictions":
        place = f"{a.frame_stride}/{part}/{rest}"
    elif part == "layers":
        number, _, rest = rest.partition(".")
        place = f"{part}/{a.kept_layers[int(number)]}/{rest}"
    else:
        place = f"{part}/{rest}"
    return place.replace(".", "/")


def _parts(name: str, student: Student) -> tuple[int, ...] | None:
    """What the columns of a weight are made of, where a prefix of channels is not a prefix of columns: a projection's of frames, a
    head's of states, mean and deviation."""
    a = student.architecture
    assert isinstance(a, Architecture)
    if name == "encoder.projection.weight":
        return (a.frame_stride, -1)
    if student.heads == "every state" and name in ("keyword_head.weight", "speaker_head.weight"):
        return (1 if name == "keyword_head.weight" else a.depth + 1, 2, -1)
    return None


def _spread(name: str, value: Tensor, student: Student) -> Tensor:
    parts = _parts(name, student)
    return value if parts is None else torch.unflatten(value, 1, parts)


def _prefix(name: str, shared: Tensor, shape: torch.Size, student: Student) -> Tensor:
    parts = _parts(name, student)
    if parts is None:
        return shared[tuple(slice(size) for size in shape)]
    a = student.architecture
    assert isinstance(a, Architecture)
    if name == "speaker_head.weight":  # of the state before the layers, and of each layer that is kept
        shared = shared[:, [0, *a.kept_layers]]
    channels = shape[1] // math.prod(parts[:-1])
    return shared[: shape[0], ..., :channels].flatten(1)


def identity(space: SearchSpace, teacher: Teacher, recipe: Recipe) -> int:
    """What shared weights are good for: a number of the space, the teacher and how students are built."""
    fields = [dataclasses.asdict(space), teacher.digest, recipe.heads, recipe.matching]
    return number_of(fields)


def check_shared(path: Path, space: SearchSpace, teacher: Teacher, recipe: Recipe, keywords: tuple[str, ...] | None = None) -> int:
    """The steps that the weights of a file were distilled for, 0 where there is none. Raises ValueError where it is damaged, or of
    another space, teacher or recipe, or of other keywords."""
    position = read_position(path)
    if position and position.get("of") != identity(space, teacher, recipe):
        raise ValueError(
            f"{path} holds no shared student of the space {space.name} with this teacher and recipe: leave it out, and one is "
            "distilled"
        )
    if position and keywords is not None and position.get("words") != number_of(keywords):
        raise ValueError(f"{path} holds a shared student that was tuned on other keywords: leave it out, and one is distilled")
    return position.get("steps", 0)


def load_shared(elastic: Elastic, path: Path, device: torch.device, optimizer: torch.optim.Optimizer | None = None) -> int:
    """Reads shared weights, if the file is there; as `check_shared`."""
    steps = check_shared(path, elastic.space, elastic.teacher, elastic.recipe, elastic.keywords)
    if steps:
        read_state(path, elastic, optimizer or distiller(elastic, elastic.recipe), device)
    return steps


def number_of(what: object) -> int:
    """A number that tells things apart, the same on every machine."""
    return int(hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12], 16)
