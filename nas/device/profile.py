"""What is known of a device: the students that were measured on it, and the models that they calibrate.

A profile is a JSON file of measurements. Its models are fitted when it is read: nothing derived is stored.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from deploy.measure import Measurement
from nas.device.latency import (
    MEMORY_COSTS,
    SURE,
    CostModel,
    Estimate,
    Scale,
    data_sheet_estimate,
    fit_latency,
    fit_memory,
    latency_counts,
    memory_counts,
)
from search_spaces.architecture import Architecture, Geometry, Heads, Network, network_from_dict
from search_spaces.cost import Cost, cost
from search_spaces.kinds import LARGEST, check_kinds, is_of, made_of, text_of

FORMAT = 1
HERE, CARRIED = "here", "carried"
PROFILES = Path("profiles")
KEYWORDS = 12  # of the students that calibrate; a head more or less is a thousandth of the time
SAME_MEMORY = Scale(expected=np.ones(len(MEMORY_COSTS)), best=np.ones(len(MEMORY_COSTS)))  # other processors lay out as much
FEWEST = 5  # measurements of one precision that a model is fitted to


@dataclass(frozen=True, kw_only=True)
class Taken:
    """One student as it was measured."""

    network: Network
    precision: str
    measurement: Measurement

    @property
    def error(self) -> float:
        """Relative standard deviation of its latency."""
        m = self.measurement
        return (m.ratio_high - m.ratio_low) / (2 * SURE * m.ratio)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """target, threads, window: what was measured how. geometry, heads: of the students. device: facts of the machine.
    where: `here`, `carried` (a kit was), or the user@device that answers over SSH, with that `python`."""

    target: str
    threads: int
    window: int
    geometry: Geometry
    heads: Heads
    device: Mapping[str, Any]
    taken: tuple[Taken, ...]
    where: str = HERE
    python: str = "python3"

    @property
    def reference_ms(self) -> float:
        return self.taken[0].measurement.reference_ms

    @property
    def precisions(self) -> tuple[str, ...]:
        return tuple(sorted({taken.precision for taken in self.taken}))

    def students(self, precision: str) -> list[Taken]:
        """Those that models are fitted to: no baselines, whose operations are others."""
        return [t for t in self.taken if t.precision == precision and isinstance(t.network, Architecture)]

    def cost(self, architecture: Architecture) -> Cost:
        return cost(architecture, self.geometry, KEYWORDS, self.window, self.heads)

    @property
    def disturbances(self) -> str:
        """What speaks against some measurements, as a sentence; empty where nothing does."""
        marked = [t.measurement.marks for t in self.taken if t.measurement.marks]
        if not marked:
            return ""
        kinds = ", ".join(sorted({mark for marks in marked for mark in marks}))
        return (
            f"{len(marked)} of {len(self.taken)} measurements of {self.target} were disturbed ({kinds}), predictions less sure: "
            "let the device idle and cool, set its governor to performance, and `srlnas profile` again"
        )

    def with_taken(self, more: Sequence[Taken]) -> Self:
        return dataclasses.replace(self, taken=(*self.taken, *more))

    def to_dict(self) -> dict[str, Any]:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        taken = [
            {
                "network": json.loads(t.network.to_json()),
                "precision": t.precision,
                "measurement": dataclasses.asdict(t.measurement),
            }
            for t in self.taken
        ]
        return {"format": FORMAT, **fields, "geometry": json.loads(self.geometry.to_json()), "taken": taken}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Raises ValueError when it is no profile of this format."""
        if fields.get("format") != FORMAT:
            raise ValueError(
                f"the profile has format {fields.get('format')!r}, this srlnas reads {FORMAT}: measure the device again"
            )
        try:
            taken = tuple(
                Taken(
                    network=network_from_dict(entry["network"]),
                    precision=entry["precision"],
                    measurement=measurement_from_dict(entry["measurement"]),
                )
                for entry in fields["taken"]
            )
            kept = {name: fields[name] for name in ("target", "threads", "window", "heads", "device", "where", "python")}
            check_kinds(cls, kept)
            if not kept["threads"] > 0 < kept["window"]:
                raise ValueError(f"the profile has {kept['threads']} threads and a window of {kept['window']} samples")
            return cls(**kept, geometry=Geometry.from_dict(fields["geometry"]), taken=taken)
        except (KeyError, TypeError) as error:
            raise ValueError(f"the profile is damaged ({error}): measure the device again") from None


def measurement_from_dict(fields: Mapping[str, Any]) -> Measurement:
    """Raises ValueError when a figure that models are fitted to is no positive number: it may come from another machine."""
    for name in ("ratio", "ratio_low", "ratio_high", "reference_ms", "peak_memory"):
        figure = fields[name]
        if not is_of(figure, float) or not 0 < figure < LARGEST:
            raise ValueError(f"{name} is {figure!r}")
    if not fields["ratio_low"] <= fields["ratio"] <= fields["ratio_high"]:
        raise ValueError("a ratio lies outside its interval")
    values = {**fields, "marks": tuple(map(str, fields["marks"]))}
    return made_of(Measurement, values)


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a student will need on a target. Baselines are known only as far as they were measured."""

    latency_model: CostModel
    memory_model: CostModel
    measured: Mapping[Network, Measurement]

    def latency(self, network: Network, counted: Cost) -> Estimate | None:
        """Milliseconds a window; None for a baseline that was not measured."""
        if isinstance(network, Architecture):
            return self.latency_model.predict(latency_counts(counted))
        return self._known(network, lambda m: (m.milliseconds, m.low, m.high), self.latency_model.scale)

    def memory(self, network: Network, counted: Cost) -> Estimate | None:
        """Bytes of the process; None for a baseline that was not measured."""
        if isinstance(network, Architecture):
            return self.memory_model.predict(memory_counts(counted))
        return self._known(network, lambda m: (float(m.peak_memory),) * 3, self.memory_model.scale)

    def _known(
        self, network: Network, read: Callable[[Measurement], tuple[float, float, float]], scale: Scale | None
    ) -> Estimate | None:
        if network not in self.measured:
            return None
        value, low, high = read(self.measured[network])
        if scale is None:
            return Estimate(value=value, low=low, high=high, kind="measured")
        parts = np.zeros(len(scale.expected))
        parts[0] = value  # its operations are not counted: all of it scales as the first feature, by arithmetic
        return data_sheet_estimate(parts, scale)


def device_of(profile: Profile, precision: str = "fp32", scale: Scale | None = None) -> Device:
    """The models that a profile calibrates. Raises ValueError when it has too few measurements of the precision."""
    students = profile.students(precision)
    if len(students) < FEWEST:
        raise ValueError(
            f"the profile of {profile.target} has {len(students)} measurements in {precision}; at least {FEWEST} are needed: "
            f"`srlnas profile --target {profile.target} --precision {precision}` takes them"
        )
    costs = [profile.cost(t.network) for t in students if isinstance(t.network, Architecture)]
    times = [t.measurement.milliseconds for t in students]
    latency = fit_latency(costs, times, [t.error for t in students])
    memory = fit_memory(costs, [t.measurement.peak_memory for t in students])
    return Device(
        latency_model=CostModel(regression=latency, scale=scale),
        memory_model=CostModel(regression=memory, scale=scale and SAME_MEMORY),
        measured={t.network: t.measurement for t in profile.taken if t.precision == precision},
    )


def profile_path(target: str, profiles: Path = PROFILES) -> Path:
    return profiles / f"{target}.json"


def write_profile(profile: Profile, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(json.dumps(profile.to_dict(), indent=1) + "\n")
    unfinished.replace(path)


def read_profile(path: Path) -> Profile:
    """Raises ValueError when the file is no profile."""
    try:
        return Profile.from_dict(json.loads(text_of(path)))
    except FileNotFoundError:
        raise ValueError(f"there is no profile {path}: `srlnas profile` makes one") from None
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        raise ValueError(f"{path} is no profile: measure the device again") from None
