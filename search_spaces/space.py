"""A search space: what a search may choose, and the choosers that choose from it."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise, product
from typing import Any, Protocol, TypeVar, cast, get_args

from search_spaces.architecture import RECEPTIVE_FIELD, Architecture, FrontEnd, Geometry
from search_spaces.cost import cost

T = TypeVar("T", str, int)
MUTATED = 5  # of so many choices, one


class Chooser(Protocol):
    """Chooses one of `choices`, all strings or all integers, for the parameter `name`. An Optuna trial is a chooser."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """The choices for each field of an `Architecture`, in rising order.

    front_widths: the front ends, and the widths of each.
    heads, ffn_dims: chosen for each layer.
    kept_layers: the allowed sets of teacher layers to start from; their lengths are the allowed depths. None, (), is offered
        behind `bc` alone.
    Raises ValueError when a field has no choice or its choices do not rise.
    """

    name: str
    front_widths: Mapping[FrontEnd, tuple[int, ...]]
    frame_strides: tuple[int, ...]
    widths: tuple[int, ...]
    heads: tuple[int, ...]
    ffn_dims: tuple[int, ...]
    kept_layers: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        fields = ("frame_strides", "widths", "heads", "ffn_dims")
        choices: dict[str, tuple[Any, ...]] = {field: getattr(self, field) for field in fields}
        choices |= {f"front_widths of {front}": widths for front, widths in self.front_widths.items()}
        choices |= {"front ends": tuple(range(len(self.front_widths))), "depths": self.depths}
        choices |= {f"depths of {front}": self.depths_of(front) for front in self.front_widths}
        choices |= {f"kept_layers of depth {depth}": self.layer_sets(depth) for depth in self.depths}
        for field, values in choices.items():
            if not values or any(a >= b for a, b in pairwise(values)):
                raise ValueError(f"space `{self.name}`: the {field} are {values}; at least one is needed, in rising order")

    @cached_property
    def depths(self) -> tuple[int, ...]:
        return tuple(sorted({len(kept) for kept in self.kept_layers}))

    def depths_of(self, front_end: FrontEnd) -> tuple[int, ...]:
        """What a student with that front end may keep."""
        return tuple(depth for depth in self.depths if depth or front_end == "bc")

    @property
    def size(self) -> int:
        """Number of architectures, exact."""
        layer = len(self.heads) * len(self.ffn_dims)
        layers: int = sum(layer ** len(kept) for kept in self.kept_layers if kept)
        behind = len(self.frame_strides) * len(self.widths) * layers
        return sum(len(widths) * (behind + (0 in self.depths_of(front))) for front, widths in self.front_widths.items())

    def architecture(self, chooser: Chooser) -> Architecture:
        """The member that `chooser` chooses; always the same questions after the same answers.

        Parameters: front_end, wave.front_width (or mel's, bc's), depth (bc.depth, which may be 0: nothing else is then asked),
        frame_stride, width, depth<d>.kept_layers (written `1-2-6`), layer<i>.heads and layer<i>.ffn_dim. Raises ValueError when an
        answer is none of the choices.
        """
        front_end = cast(FrontEnd, self._choose(chooser, "front_end", tuple(self.front_widths)))
        front_width = self._choose(chooser, f"{front_end}.front_width", self.front_widths[front_end])
        depth = self._choose(chooser, depth_name(front_end), self.depths_of(front_end))
        if not depth:
            return front_alone(front_end, front_width)
        frame_stride = self._choose(chooser, "frame_stride", self.frame_strides)
        width = self._choose(chooser, "width", self.widths)
        kept = self._choose(chooser, f"depth{depth}.kept_layers", tuple(map(_dashed, self.layer_sets(depth))))
        layers = range(1, depth + 1)
        return Architecture(
            front_end=front_end,
            front_width=front_width,
            frame_stride=frame_stride,
            width=width,
            heads=tuple(self._choose(chooser, f"layer{i}.heads", self.heads) for i in layers),
            ffn_dims=tuple(self._choose(chooser, f"layer{i}.ffn_dim", self.ffn_dims) for i in layers),
            kept_layers=tuple(map(int, kept.split("-"))),
        )

    def __contains__(self, architecture: Architecture) -> bool:
        try:
            return self.architecture(Replay(architecture)) == architecture
        except ValueError:
            return False

    def smallest(self, geometry: Geometry) -> Architecture:
        """The member of fewest weights (the first of its kept layers). It need not have the fewest operations."""
        return min(self.corners(0), key=lambda corner: _size(corner, geometry))

    def largest(self, geometry: Geometry) -> Architecture:
        """The member of most weights (the last of its kept layers)."""
        return max(self.corners(-1), key=lambda corner: _size(corner, geometry))

    def largest_within(self, most: float, front_end: FrontEnd, weights: Callable[[Architecture], float]) -> Architecture | None:
        """Of the members with that front end whose layers are alike and the first of their sets, that of most weights, `most` at
        most; None where all have more, or the space lacks the front end."""
        depths = [depth for depth in self.depths if depth]
        sizes = product(self.front_widths.get(front_end, ()), self.widths, self.heads, self.ffn_dims, depths)
        members = (
            Architecture(
                front_end=front_end,
                front_width=front_width,
                frame_stride=self.frame_strides[0],
                width=width,
                heads=(heads,) * depth,
                ffn_dims=(units,) * depth,
                kept_layers=self.layer_sets(depth)[0],
            )
            for front_width, width, heads, units, depth in sizes
        )
        return max((member for member in members if weights(member) <= most), key=weights, default=None)

    def corners(self, end: int) -> list[Architecture]:
        """One for each front end and stride; the other fields at one end of their choices, 0 or -1. Where a front end may stand
        alone, that too."""
        kept = [kept for kept in self.kept_layers if kept]
        alone = [front_alone(front, widths[end]) for front, widths in self.front_widths.items() if 0 in self.depths_of(front)]
        if not kept:
            return alone
        depth = sorted(map(len, kept))[end]
        return [
            Architecture(
                front_end=front_end,
                front_width=self.front_widths[front_end][end],
                frame_stride=stride,
                width=self.widths[end],
                heads=(self.heads[end],) * depth,
                ffn_dims=(self.ffn_dims[end],) * depth,
                kept_layers=self.layer_sets(depth)[end],
            )
            for front_end, stride in product(self.front_widths, self.frame_strides)
        ] + alone

    def layer_sets(self, depth: int) -> tuple[tuple[int, ...], ...]:
        """The sets of teacher layers that a student of that depth may keep."""
        return tuple(kept for kept in self.kept_layers if len(kept) == depth)

    def _choose(self, chooser: Chooser, name: str, choices: tuple[T, ...]) -> T:
        choice: T = chooser.suggest_categorical(name, choices)
        if choice not in choices:
            raise ValueError(f"space `{self.name}` has no {name} {choice}; allowed are {', '.join(map(str, choices))}")
        return choice


@dataclass(frozen=True)
class RandomChooser:
    """Each choice of a parameter is equally likely (not each architecture)."""

    random: random.Random

    def suggest_categorical(self, name: str, choices: Sequence[T]) -> T:
        return self.random.choice(choices)


class Replay:
    """Answers with an architecture's own choices, `answers` by name of parameter: a space gives it back, if it is a member."""

    def __init__(self, architecture: Architecture) -> None:
        a = architecture
        self.answers: dict[str, str | int] = {
            "front_end": a.front_end,
            f"{a.front_end}.front_width": a.front_width,
            depth_name(a.front_end): a.depth,
        }
        if a.depth:
            kept = _dashed(a.kept_layers)
            self.answers |= {"frame_stride": a.frame_stride, "width": a.width, f"depth{a.depth}.kept_layers": kept}
        for i, (heads, ffn_dim) in enumerate(zip(a.heads, a.ffn_dims, strict=True), 1):
            self.answers |= {f"layer{i}.heads": heads, f"layer{i}.ffn_dim": ffn_dim}

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> str | int:
        return self.answers[name]


class Mutation(Replay):
    """Answers with an architecture's own choices but for one in `MUTATED`, or where it has none, which is drawn at random."""

    def __init__(self, architecture: Architecture, rng: random.Random) -> None:
        super().__init__(architecture)
        self.answers |= {depth_name(front_end): architecture.depth for front_end in get_args(FrontEnd)}  # another one may follow
        self.random = rng

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        own = self.answers.get(name)
        return own if own in choices and self.random.randrange(MUTATED) else self.random.choice(choices)


class Nearest(Replay):
    """Answers with the choice nearest to an architecture's own: a space gives the member that is most like it."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        self.wanted = architecture

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        a, (layer, _, field) = self.wanted, name.rpartition(".")
        if field == "kept_layers":
            return min(choices, key=lambda kept: sum(abs(int(x) - y) for x, y in zip(kept.split("-"), a.kept_layers)))
        if layer.startswith("layer"):
            of_layers = a.heads if field == "heads" else a.ffn_dims
            value = of_layers[min(int(layer[5:]), a.depth) - 1] if of_layers else choices[0]
        else:
            value = getattr(a, field)
        if isinstance(value, str):
            return value if value in choices else choices[0]
        return min(choices, key=lambda choice: abs(choice - value))


def depth_name(front_end: FrontEnd) -> str:
    """Of the parameter. A sampler needs one set of choices for each name, and `bc` has another set."""
    return "bc.depth" if front_end == "bc" else "depth"


def front_alone(front_end: FrontEnd, front_width: int) -> Architecture:
    """Without any kept layer."""
    none: dict[str, tuple[int, ...]] = {"heads": (), "ffn_dims": (), "kept_layers": ()}
    return Architecture(front_end=front_end, front_width=front_width, frame_stride=1, width=front_width, **none)


def _dashed(layers: tuple[int, ...]) -> str:
    return "-".join(map(str, layers))


def _size(architecture: Architecture, geometry: Geometry) -> tuple[int, int]:
    """Weights, then steps. A Whisper's convolution has a longer kernel where there are half as many steps: such a student is not
    the larger one, and its weights are counted as if it had all."""
    counted = replace(architecture, frame_stride=1) if geometry.family == "whisper" else architecture
    return cost(counted, geometry, keywords=1, samples=RECEPTIVE_FIELD).params, -architecture.frame_stride
