"""A student: the encoder, the prediction layers it is distilled through, and one linear head a task. A baseline that distils
nothing is a student too, around another encoder.

On disk it is a folder: `architecture.json` (architecture, geometry, keywords) and `weights.safetensors`.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from search_spaces.architecture import EMBEDDING_DIM, Architecture, Geometry, Heads, Network, head_inputs, network_from_dict
from search_spaces.kinds import text_of
from trainers.networks.baselines import BroadcastResNet
from trainers.networks.encoder import SpeechEncoder

ARCHITECTURE_FILE = "architecture.json"
WEIGHTS_FILE = "weights.safetensors"
DAMAGED = (KeyError, TypeError, AttributeError, RuntimeError, ArithmeticError, SafetensorError)  # what their content raises

Matching = Literal["last state", "layer to layer"]
SMALLEST_VARIANCE = 1e-5
UNKNOWN = -1e4  # logit of a keyword that a student has never heard


class Student(nn.Module):
    """Audio window -> keyword logits and speaker embedding.

    In training, the mean over time goes through the prediction layers, one of `target_width` for each of the teacher's
    `predicted_layers` (as in Kerpicci et al., arXiv 2210.16611, they stay after distillation and the heads read them; a
    fine-tuned teacher has none), then through a batch norm, which takes out what all clips share: without it every
    embedding points the same way at first. In evaluation all of this is one linear map, and `folded` multiplies it into the
    heads: the same function with fewer weights. A folded student is what is scored, saved and exported.

    heads: read the predictions, or as in `search_spaces.architecture.head_inputs`.
    matching: the last state predicts every layer, or the state as far up the student as the layer is up the teacher.
    speaker_layer: the teacher's layer up to which what the speaker head reads trains the encoder; the states above, where the words
    are, it reads as they are. Of heads that read every state.
    """

    def __init__(
        self,
        architecture: Network,
        geometry: Geometry,
        keywords: tuple[str, ...],
        *,
        predicted_layers: tuple[int, ...] = (),
        target_width: int = 0,
        heads: Heads = "predictions",
        matching: Matching = "last state",
        speaker_layer: int | None = None,
        is_folded: bool = True,
    ) -> None:
        super().__init__()
        assert not (is_folded and predicted_layers), "a folded student has no prediction layers"
        self.keywords, self.predicted_layers, self.target_width = keywords, predicted_layers, target_width
        self.encoder, self.matching = new_encoder(architecture, geometry), matching
        predicted = target_width * (architecture.frame_stride if isinstance(architecture, Architecture) else 1)
        self.predictions = nn.ModuleList(nn.Linear(architecture.width, predicted) for _ in predicted_layers)
        self.heads: Heads = heads if predicted_layers or heads != "predictions" else "mean"
        widths = (
            (target_width * len(predicted_layers),) * 2 if self.heads == "predictions" else head_inputs(architecture, self.heads)
        )
        self.voiced = self._voiced(speaker_layer) if self.heads == "every state" else widths[1]
        self.norm = nn.Identity() if is_folded else nn.BatchNorm1d(widths[1], affine=False)
        self.keyword_head = nn.Linear(widths[0], len(keywords))
        self.speaker_head = nn.Linear(widths[1], EMBEDDING_DIM)

    def _voiced(self, speaker_layer: int | None) -> int:
        """How many of the features, the lowest states' first, the speaker's loss trains the encoder by."""
        a = self.architecture
        depth = a.depth if isinstance(a, Architecture) else 0
        if isinstance(a, Architecture) and speaker_layer is not None:
            depth = sum(layer <= speaker_layer for layer in a.kept_layers)
        return 2 * a.width * (1 + depth)

    @property
    def architecture(self) -> Network:
        return self.encoder.architecture

    def is_broadcast(self, name: str) -> bool:
        """Whether a parameter belongs to broadcast blocks; without layers all do, the heads too."""
        a = self.architecture
        if isinstance(a, Architecture) and (a.front_end != "bc" or a.depth):
            return a.front_end == "bc" and name.startswith("encoder.front.")
        return True

    def predict_teacher(self, x_bn: Tensor, frames: int) -> list[Tensor]:
        """(batch, samples) -> for each predicted layer (batch, frames, target_width) at 50 frames/s."""
        states = self.encoder(x_bn)
        predicted = [layer(states[at]) for layer, at in zip(self.predictions, self.predicting(len(states) - 1))]
        return [state_bsk.unflatten(-1, (-1, self.target_width)).flatten(1, 2)[:, :frames] for state_bsk in predicted]

    def predicting(self, depth: int) -> list[int]:
        """The number of the state that predicts, for each predicted layer."""
        if self.matching == "last state":
            return [depth] * len(self.predicted_layers)
        return [math.ceil(depth * layer / self.predicted_layers[-1]) for layer in self.predicted_layers]

    def forward(self, x_bn: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, samples) -> logits (batch, keywords), unit-length embedding (batch, EMBEDDING_DIM)."""
        features_bf: Tensor = self.norm(self.hear(x_bn))
        of_words_bf = features_bf[:, -self.keyword_head.in_features :]  # the last state's are the last
        if features_bf.requires_grad and self.voiced < features_bf.shape[1]:
            features_bf = torch.cat([features_bf[:, : self.voiced], features_bf[:, self.voiced :].detach()], -1)
        return self.keyword_head(of_words_bf), F.normalize(self.speaker_head(features_bf), dim=-1)

    def hear(self, x_bn: Tensor) -> Tensor:
        """(batch, samples) -> (batch, features): what the heads read, before the norm."""
        return self._read(self._pooled(x_bn))

    def _pooled(self, x_bn: Tensor) -> Tensor:
        """(batch, numbers) over time, of the last state or of all."""
        if self.heads == "every state":
            return torch.cat([part for state_bsw in self.encoder.states(x_bn) for part in statistics(state_bsw)], -1)
        last_bsw: Tensor = self.encoder(x_bn)[-1]
        return last_bsw.mean(1)

    def _read(self, pooled_bw: Tensor) -> Tensor:
        """(batch, features). Prediction layers are linear, so they may follow the mean over time; the two frames that a layer
        predicts from one step of stride 2 are averaged."""
        if self.heads == "predictions":
            means = [layer(pooled_bw).unflatten(-1, (-1, self.target_width)).mean(1) for layer in self.predictions]
            pooled_bw = torch.cat(means, -1)
        return pooled_bw

    @torch.no_grad()
    def folded(self) -> "Student":
        """A folded student of the same function in evaluation."""
        device = self.keyword_head.weight.device
        heads: Heads = "mean" if self.heads == "predictions" else self.heads
        student = Student(self.architecture, self.encoder.geometry, self.keywords, heads=heads).to(device)
        student.encoder.load_state_dict(self.encoder.state_dict())
        was_training, eye = self.training, torch.eye(student.speaker_head.in_features, device=device)
        self.eval()
        bias_1f = self.norm(self._read(torch.zeros_like(eye[:1])))
        weight_wf = self.norm(self._read(eye)) - bias_1f
        self.train(was_training)
        for name in ("keyword_head", "speaker_head"):
            head, folded = getattr(self, name), getattr(student, name)
            read, kept = head.in_features, folded.in_features
            folded.weight.copy_((head.weight @ weight_wf[:, -read:].T)[:, -kept:])
            folded.bias.copy_(head(bias_1f[:, -read:])[0])
        return student.eval()


def continued(student: Student, speaker_layer: int | None = None) -> Student:
    """A folded student, to be trained on: the same encoder, heads that are fitted anew before a norm. speaker_layer: as of
    `Student`."""
    new = Student(
        student.architecture,
        student.encoder.geometry,
        student.keywords,
        heads=student.heads,
        speaker_layer=speaker_layer,
        is_folded=False,
    )
    new.encoder.load_state_dict(student.encoder.state_dict())
    return new


@torch.no_grad()
def with_keywords(student: Student, keywords: tuple[str, ...]) -> Student:
    """A folded student that knows of more keywords: the same function, which never says a new one. keywords: its own among
    them."""
    new = Student(student.architecture, student.encoder.geometry, keywords, heads=student.heads)
    new.encoder.load_state_dict(student.encoder.state_dict())
    new.speaker_head.load_state_dict(student.speaker_head.state_dict())
    new.keyword_head.weight.zero_()
    new.keyword_head.bias.fill_(UNKNOWN)
    own = [keywords.index(keyword) for keyword in student.keywords]
    new.keyword_head.weight[own] = student.keyword_head.weight
    new.keyword_head.bias[own] = student.keyword_head.bias
    return new.eval()


def statistics(state_bsw: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over time, (batch, width) each."""
    mean_bw = state_bsw.float().mean(1)
    variance_bw = (state_bsw - mean_bw[:, None]).square().mean(1)
    return mean_bw, (variance_bw + SMALLEST_VARIANCE).sqrt()


def new_encoder(architecture: Network, geometry: Geometry) -> SpeechEncoder | BroadcastResNet:
    if isinstance(architecture, Architecture):
        return SpeechEncoder(architecture, geometry)
    return BroadcastResNet(architecture, geometry)


def save_student(student: Student, folder: Path) -> None:
    """Writes a folded student. Weights first: a folder with an `architecture.json` is complete."""
    assert isinstance(student.norm, nn.Identity), "fold a student before it is saved"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in student.state_dict().items()}, folder / WEIGHTS_FILE)
    description = {
        "architecture": json.loads(student.architecture.to_json()),
        "geometry": json.loads(student.encoder.geometry.to_json()),
        "keywords": list(student.keywords),
        "heads": student.heads,
    }
    (folder / ARCHITECTURE_FILE).write_text(json.dumps(description, indent=2) + "\n")


def weights_hash(folder: Path) -> str:
    """SHA-256 of a student's weights: what tells it from another of its name."""
    return hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()


def load_student(folder: Path) -> Student:
    """Raises ValueError when the folder is not a student."""
    try:
        description = json.loads(text_of(folder / ARCHITECTURE_FILE))
        student = Student(
            network_from_dict(description["architecture"]),
            Geometry.from_dict(description["geometry"]),
            tuple(description["keywords"]),
            heads=description.get("heads", "mean"),
        )
        student.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{folder} is not a student: {Path(error.filename or WEIGHTS_FILE).name} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError, *DAMAGED) as error:
        raise ValueError(f"{folder} is not a student: {ARCHITECTURE_FILE} or {WEIGHTS_FILE} is damaged") from error
    return student.eval()
