"""How a student is trained: one record of options. tests/benchmarks/README.md tells which were compared, and what won."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from search_spaces.architecture import Heads
from trainers.learning.batches import Augmentation
from trainers.networks.inherit import Narrowing
from trainers.networks.student import Matching
from trainers.speech.corpora import Corpus

Start = Literal["kept layers", "random"]
Margin = Literal["angular", "additive"]
FASTEST, SLOWEST = 2.0, 0.5
ALL_LAYERS = 1000
WIDE = 256  # channels


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """batch: windows an update.

    start: from the teacher layers that the student keeps, or at random; narrowing: how a narrower student takes channels, heads
    and units. fit_windows: of speech, on which a student with kept layers is fitted to its teacher before it trains (see
    `trainers.networks.fitting`). matching: the last state predicts all of the teacher's layers, or each is predicted `layer to
    layer`, as in DPHuBERT (arXiv 2305.17651). heads: what they read. head_steps: batches of each task, at most, on which heads are
    fitted: before a student that does not begin at random is tuned, and after every tuning (see `trainers.learning.heads`); 0:
    never. distill_rate: AdamW's, rate: Adam's at its height, decayed by a cosine, of students whose heads are fitted and that are
    up to 256 wide (`rate_at`); teacher_rate: of the teacher; random_rate: of others: those that begin at random, with broadcast
    blocks or with a shared student. front_rate: that of the convolutions over all others'.
    bc_distill_rate, bc_rate: of a `bc` front end, which begins at random as BC-ResNet does; of all of a student that has nothing
    else, and of BC-ResNet.
    speaker_weight: of the speaker's loss beside the keywords' in an update of both; 0: each task has updates of its own, as in the
    paper.
    speaker_layer: the last of the teacher's layers that the speaker's loss trains, from 0 (the convolutions alone); see `Student`.
    margin: of the speaker's loss. speeds, equalizer_db, mask_share: of keyword windows alone, since pitch and microphone tell a
    voice; see `Augmentation`. speaker_speeds: one is drawn for every speaker window; a speaker at another speed is another
    speaker, as in Yamamoto et al. (Interspeech 2019). distilling: weight of the distillation loss that is added to the speaker's
    (OS-KDFT, arXiv 2305.17394).
    tutor_weight: of the tuned teacher's answers beside the labels, where there is a tutor; 0: it is not asked.
    keywords, speakers: the tasks; with one alone a fine-tuning step is one update. frozen: the heads alone are fine-tuned.
    """

    batch: int = 16
    start: Start = "kept layers"
    narrowing: Narrowing = "importance"
    fit_windows: int = 256
    matching: Matching = "last state"
    heads: Heads = "every state"
    head_steps: int = 512
    distill_rate: float = 1e-3
    bc_distill_rate: float = 4e-3  # of 64 channels, 120 steps on real speech: a loss of 2.78, with 1e-3 3.13
    rate: float = 3e-4
    teacher_rate: float = 1e-4
    random_rate: float = 5e-4
    front_rate: float = 1.0
    bc_rate: float = 4e-3  # BC-ResNet after 250 steps on real speech: 46 % of 40 keywords, at a student's 5e-4 19 %
    speaker_weight: float = 0.0
    speaker_layer: int = ALL_LAYERS
    margin: Margin = "additive"
    speeds: tuple[float, ...] = (0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15)
    speaker_speeds: tuple[float, ...] = (1.0,)
    distilling: float = 0.0
    tutor_weight: float = 1.0
    noise_share: float = 0.5
    equalizer_db: float = 0.0
    mask_share: float = 0.0
    keywords: bool = True
    speakers: bool = True
    frozen: bool = False

    def __post_init__(self) -> None:
        for field, allowed in CHOICES.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"the recipe's {field} is {getattr(self, field)!r}; allowed are {', '.join(allowed)}")
        for field, (low, high) in RANGES.items():
            if not low <= getattr(self, field) <= high:
                raise ValueError(f"the recipe's {field} is {getattr(self, field)}; it is from {low:g} to {high:g}")
        for field in ("speeds", "speaker_speeds"):
            if not (speeds := getattr(self, field)) or not all(SLOWEST <= speed <= FASTEST for speed in speeds):
                raise ValueError(f"the recipe's {field} are {list(speeds)}; each is from {SLOWEST} to {FASTEST}, and there is one")
        if not (self.keywords or self.speakers):
            raise ValueError("the recipe has no task: keywords or speakers must be true")
        if self.speaker_layer < ALL_LAYERS and self.heads != "every state":
            raise ValueError(f"the recipe's speaker_layer is {self.speaker_layer}: it needs heads that read every state")
        if self.matching == "layer to layer" and self.heads == "predictions":
            raise ValueError(
                "layer to layer, predictions come from several states; let the heads read the encoder: mean, every state"
            )

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Raises ValueError on a field that no recipe has, or of the wrong kind."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := set(fields) - known:
            raise ValueError(f"a recipe has no {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}")
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        for name, value in values.items():
            if not _is_like(value, getattr(cls, name)):
                raise ValueError(f"the recipe's {name} is {value!r}, another kind than its default, {getattr(cls, name)!r}")
        return cls(**values)

    def rate_at(self, width: int) -> float:
        """Of a student whose heads are fitted. A wide one is nearly its teacher, and loses at a rate at which a narrow one gains:
        after 600 steps, one of 512 channels has 97.1 % and an EER of 15.0 at 3e-4, 97.8 and 12.2 at 1e-4; of 256, 97.9 and 13.9,
        97.7 and 14.1; of 144, 94.3 and 15.9, 92.1 and 15.4."""
        return self.rate * min(1.0, math.pow(WIDE / width, 1.5))

    def augmentation(self, noise: Corpus | None) -> Augmentation:
        """Of what everything hears; keyword windows go through more."""
        return Augmentation(noise=noise, noise_share=self.noise_share)


def _is_like(value: Any, default: Any) -> bool:
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(_is_like(item, 0.0) for item in value)
    return type(value) in ((int, float) if isinstance(default, float) else (type(default),))  # a bool is an int, but no number


CHOICES: Mapping[str, tuple[str, ...]] = {
    name: get_args(kind)
    for name, kind in {"start": Start, "narrowing": Narrowing, "matching": Matching, "heads": Heads, "margin": Margin}.items()
}
RANGES: Mapping[str, tuple[float, float]] = {
    "batch": (2, 4096),
    "fit_windows": (0, 65_536),
    "head_steps": (0, 65_536),
    "distill_rate": (1e-7, 1),
    "bc_distill_rate": (1e-7, 1),
    "rate": (1e-7, 1),
    "teacher_rate": (1e-7, 1),
    "random_rate": (1e-7, 1),
    "front_rate": (0, 10),
    "bc_rate": (1e-7, 1),
    "speaker_weight": (0, 100),
    "speaker_layer": (0, ALL_LAYERS),
    "distilling": (0, 100),
    "tutor_weight": (0, 100),
    "noise_share": (0, 1),
    "equalizer_db": (0, 30),
    "mask_share": (0, 1),
}
