"""The free choices of a student (`Architecture`) and what its teacher fixes (`Geometry`). Nothing derived is stored."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from search_spaces.kinds import made_of

SAMPLE_RATE = 16_000
FRAME_SAMPLES = 320  # one 50 Hz frame
FRONT_KERNELS = (10, 3, 3, 3, 3, 2, 2)  # HuBERT's and wav2vec 2.0's seven convolutions: receptive field 400 samples,
FRONT_STRIDES = (5, 2, 2, 2, 2, 2, 2)  # one frame every 320
RECEPTIVE_FIELD = 400
MEL_HOP = 160
MEL_BINS = 80
BC_BINS = 40  # BC-ResNet (arXiv 2106.04140): mel bins, bands of them with a norm of their own
BC_BANDS = 5
BC_UNIT = 32  # channels of its states at scale 1, of its first convolution there
BC_STEM = 16
BC_STAGES = ((8, 2, 1, 1), (12, 2, 2, 2), (16, 4, 2, 4), (20, 4, 1, 8))  # channels at scale 1, blocks, stride over mels, dilation
BC_STEP = 8  # of a `bc` front's width: so that all of its stages have whole channels
LARGEST = 1 << 24  # of any size of a network
EMBEDDING_DIM = 128  # of a student's speaker head

FrontEnd = Literal["wave", "mel", "bc"]
Family = Literal["hubert", "whisper"]
FrontNorm = Literal["group", "layer", "none"]
NormOrder = Literal["post", "pre"]
Heads = Literal["predictions", "mean", "every state"]


def frame_count(samples: int) -> int:
    """Frames at 50 Hz that HuBERT's and its students' front ends emit for `samples` at 16 kHz; frame t is centred on sample
    320 t + 200. Whisper's: `Geometry.frames`."""
    return 0 if samples < RECEPTIVE_FIELD else (samples - RECEPTIVE_FIELD) // FRAME_SAMPLES + 1


def mel_frames(samples: int) -> int:
    """Frames at 100 Hz of a log-mel without centre padding."""
    return (samples - RECEPTIVE_FIELD) // MEL_HOP + 1


class _Json:
    """Canonical JSON (sorted keys, no blanks, tuples as lists) of a frozen dataclass, and back."""

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Raises ValueError when a field is missing (unless it has a default), unknown, of another kind or not allowed."""
        if not isinstance(fields, dict):
            raise ValueError(f"{cls.__name__} is {fields!r}, no table of fields")
        known = {field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if not {name for name, needed in known.items() if needed} <= set(fields) <= set(known):
            raise ValueError(f"{cls.__name__} has the fields {sorted(known)}, not {sorted(fields)}")
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        return made_of(cls, values)

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls.from_dict(json.loads(text))


@dataclass(frozen=True, kw_only=True)
class Architecture(_Json):
    """One student: what the search chooses.

    front_end: `wave` (HuBERT's seven convolutions), `mel` (log-mel and two convolutions) or `bc` (log-mel and the broadcast
        residual blocks of BC-ResNet).
    front_width: channels of the front end's last convolution; of a Whisper's student of `mel`, of its first (its last has the
        width). Of `bc` 32 times BC-ResNet's scale.
    frame_stride: 1 (the transformer sees 50 frames/s) or 2 (25 frames/s).
    width: channels of the transformer's residual stream.
    heads, ffn_dims: attention heads and feed-forward units of each layer.
    kept_layers: the teacher layer (from 1) that each layer starts from. Behind `bc` there may be none: what the front end gives is
        then the one state, with width its front_width and frame_stride 1.
    """

    front_end: FrontEnd
    front_width: int
    frame_stride: int
    width: int
    heads: tuple[int, ...]
    ffn_dims: tuple[int, ...]
    kept_layers: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.front_end not in get_args(FrontEnd):
            raise ValueError(f"front_end is {self.front_end!r}; allowed are 'wave', 'mel' and 'bc'")
        if self.frame_stride not in (1, 2):
            raise ValueError(f"frame_stride is {self.frame_stride}; allowed are 1 and 2")
        if not len(self.heads) == len(self.ffn_dims) == len(self.kept_layers) >= (self.front_end != "bc"):
            raise ValueError("heads, ffn_dims, kept_layers name one value a layer, and at least one layer unless front_end is 'bc'")
        sizes = self.front_width, self.width, *self.heads, *self.ffn_dims, *self.kept_layers
        if min(sizes) < 1 or max(sizes) > LARGEST:
            raise ValueError(f"widths, heads, ffn_dims and kept_layers are positive, and at most {LARGEST}")
        if any(a >= b for a, b in zip(self.kept_layers, self.kept_layers[1:])):
            raise ValueError(f"kept_layers {self.kept_layers} must rise")
        if self.front_end == "bc" and self.front_width % BC_STEP:
            raise ValueError(f"front_width is {self.front_width}; that of 'bc' is a multiple of {BC_STEP}")
        if not self.kept_layers and (self.width, self.frame_stride) != (self.front_width, 1):
            raise ValueError("without kept_layers the width is the front_width, and frame_stride is 1")

    @property
    def depth(self) -> int:
        return len(self.heads)

    @property
    def key(self) -> str:
        """Stable name of 12 hexadecimal digits: the same choices have the same key on every machine."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Baseline(_Json):
    """A network that distils nothing and is not searched: a reference beside every student.

    scale: a multiple of all channels (the paper's tau): 1, of 9,200 parameters with 12 keywords, to 8, of 321,000.
    """

    baseline: Literal["bc-resnet"] = "bc-resnet"
    scale: int = 8

    def __post_init__(self) -> None:
        if self.baseline != "bc-resnet" or self.scale < 1:
            raise ValueError(f"there is no baseline {self.baseline!r} of scale {self.scale}; 'bc-resnet' has scales from 1")

    @property
    def width(self) -> int:
        """Channels of the states that the heads read."""
        return BC_UNIT * self.scale


Network = Architecture | Baseline


def network_from_dict(fields: dict[str, Any]) -> Network:
    """Raises ValueError when the fields are those of neither."""
    return Baseline.from_dict(fields) if "baseline" in fields else Architecture.from_dict(fields)


def head_inputs(network: Network, heads: Heads) -> tuple[int, int]:
    """Numbers that the keyword head and the speaker head of a folded student read: the last state's mean over time, or mean and
    standard deviation (every state), of which the speaker head reads those of all states."""
    if heads != "every state":
        return network.width, network.width
    states = network.depth + 1 if isinstance(network, Architecture) else 1
    return 2 * network.width, 2 * network.width * states


@dataclass(frozen=True, kw_only=True)
class Geometry(_Json):
    """What the teacher fixes for all of its students. With an `Architecture` it rebuilds an encoder.

    family: `hubert` (wav2vec 2.0 and WavLM too) or `whisper`: log-mel and convolutions of Whisper, no bias on keys.
    head_dim: channels of one attention head (attention width = heads x head_dim).
    conv_dims: channels of the teacher's convolutions; a student's seven of `wave` are these, scaled to its front_width.
    conv_bias, front_norm: bias and normalisation of those convolutions (`group`: the first only; `layer`: each; `none`: Whisper's).
    norm_order: layer norm `post` (Base) or `pre` (Large) of attention and feed-forward.
    position_kernel, position_groups: the positional convolution, in 50 Hz frames. position_table: frames of Whisper's table of
        fixed positions instead, beyond which it hears nothing; 0 in the other family.
    mel_bins: of Whisper's log-mel.
    normalize_input: each window is brought to zero mean and unit variance first.
    relative_buckets, relative_distance: WavLM's relative position bias: how many distances between two frames it tells apart,
        and the distance from which all are alike. 0 buckets: none, as in HuBERT, wav2vec 2.0, and every student.
    """

    head_dim: int
    conv_dims: tuple[int, ...]
    conv_bias: bool
    front_norm: FrontNorm
    norm_order: NormOrder
    position_kernel: int
    position_groups: int
    normalize_input: bool
    relative_buckets: int = 0
    relative_distance: int = 0
    family: Family = "hubert"
    position_table: int = 0
    mel_bins: int = MEL_BINS

    def __post_init__(self) -> None:
        if min(self.head_dim, self.position_groups, self.mel_bins, *self.conv_dims) < 1:
            raise ValueError("head_dim, conv_dims, position_groups and mel_bins are positive")
        if min(self.position_kernel, self.relative_buckets, self.relative_distance, self.position_table) < 0:
            raise ValueError("position_kernel, position_table, relative_buckets and relative_distance are not negative")

    def frames(self, samples: int) -> int:
        """Frames at 50 Hz of `samples` at 16 kHz. Whisper's frame t is centred on sample 320 t, HuBERT's on 320 t + 200.

        Raises ValueError for a window that is longer than Whisper's table of positions.
        """
        if self.family == "hubert":
            return frame_count(samples)
        frames = -(-self.mel_frames(samples) // 2)
        if frames > self.position_table:
            longest = self.position_table * FRAME_SAMPLES
            raise ValueError(f"a window of {samples} samples is longer than the teacher's positions, which end at {longest}")
        return frames

    def mel_frames(self, samples: int) -> int:
        """Frames at 100 Hz of the log-mel of a front end."""
        return samples // MEL_HOP if self.family == "whisper" else mel_frames(samples)

    @property
    def of_students(self) -> Self:
        """Students drop the relative position bias: its one table for all layers has a column for each head of the teacher,
        where a student chooses its heads layer by layer; and it costs a number for each pair of frames and head on the device."""
        return dataclasses.replace(self, relative_buckets=0, relative_distance=0)

    def front_dims(self, architecture: Architecture) -> tuple[int, ...]:
        """Output channels of each convolution of the student's front end `wave` or `mel`."""
        if self.family == "whisper":
            return (architecture.front_width, architecture.width)
        if architecture.front_end == "mel":
            return (architecture.front_width,) * 2
        scale = architecture.front_width / self.conv_dims[-1]
        return (*(max(1, round(dim * scale)) for dim in self.conv_dims[:-1]), architecture.front_width)
