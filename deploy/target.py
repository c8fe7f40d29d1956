"""Edge targets: what a student is measured on and has to fit into. One TOML file each, in deploy/targets/ or the user's own."""

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from search_spaces.architecture import FRAME_SAMPLES, RECEPTIVE_FIELD
from search_spaces.kinds import text_of

TARGETS_FOLDER = Path(__file__).parent / "targets"
RUNTIMES = ("onnxruntime",)
Precision = Literal["fp32", "int8"]
DATA_SHEET = ("peak_gflops", "sustained_gflops", "peak_bandwidth", "sustained_bandwidth")


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where and how a student runs. Limits that are None do not bind.

    precision: in which its models are scored, measured and exported. threads: of the runtime. window: samples at 16 kHz that
    the student hears at once.
    max_latency_ms: of one window. max_params: weights in the exported graph. max_memory_bytes: most that the process of an
    inference holds, interpreter and runtime included.
    cores, memory_bytes: of the device. peak_*, sustained_*: its data sheet, one core at fp32 (GFLOP/s, GB/s); all or none.
    sources: where those figures come from. A target without a data sheet is the machine that srlnas runs on.
    Raises ValueError when a field is of the wrong kind or out of range.
    """

    name: str
    description: str
    runtime: str = "onnxruntime"
    precision: Precision = "fp32"
    threads: int = 1
    window: int = 16_080
    max_latency_ms: float | None = None
    max_params: int | None = None
    max_memory_bytes: int | None = None
    cores: int | None = None
    memory_bytes: int | None = None
    peak_gflops: float | None = None
    sustained_gflops: float | None = None
    peak_bandwidth: float | None = None
    sustained_bandwidth: float | None = None
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field, allowed in (("runtime", RUNTIMES), ("precision", get_args(Precision))):
            if getattr(self, field) not in allowed:
                raise ValueError(f"target {self.name!r}: {field} is {getattr(self, field)!r}; allowed: {', '.join(allowed)}")
        if not isinstance(self.description, str):
            raise ValueError(f"target {self.name!r}: description is {self.description!r}; it is a text")
        self._check_number("threads", smallest=1)
        self._check_number("window", smallest=RECEPTIVE_FIELD + FRAME_SAMPLES)
        for field in ("max_params", "max_memory_bytes", "cores", "memory_bytes"):
            if getattr(self, field) is not None:
                self._check_number(field, smallest=1)
        for field in ("max_latency_ms", *DATA_SHEET):
            if getattr(self, field) is not None:
                self._check_number(field, smallest=0, whole=False)
        if missing := [field for field in DATA_SHEET if getattr(self, field) is None]:
            if len(missing) < len(DATA_SHEET):
                raise ValueError(f"target {self.name!r}: its data sheet lacks {', '.join(missing)}")
        elif self.peak_gflops < self.sustained_gflops or self.peak_bandwidth < self.sustained_bandwidth:  # type: ignore[operator]
            raise ValueError(f"target {self.name!r}: what is sustained cannot be above the peak")

    @property
    def is_here(self) -> bool:
        """Whether it is the machine that this runs on, so that it can be measured at any time."""
        return self.sustained_gflops is None

    def _check_number(self, field: str, *, smallest: int, whole: bool = True) -> None:
        value: object = getattr(self, field)
        kind = "a whole number" if whole else "a number"
        right = isinstance(value, int | float) and not isinstance(value, bool) and (isinstance(value, int) or not whole)
        positive = right and (value >= smallest if whole else 0 < value < float("inf"))  # type: ignore[operator]
        if not positive:
            bound = f"of at least {smallest}" if whole else "above 0"
            raise ValueError(f"target {self.name!r}: {field} is {value!r}; it is {kind} {bound}")


def known_targets() -> list[str]:
    """Names that come with the package, sorted."""
    return sorted(path.stem for path in TARGETS_FOLDER.glob("*.toml"))


def load_target(name_or_path: str | Path) -> Target:
    """A target of deploy/targets/ by name, or the user's own by the path of a `.toml` file, whose stem is its name.

    Raises ValueError when there is none of that name, the file cannot be read, or a field is unknown, missing or not allowed.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        if str(name_or_path) not in known_targets():
            names = ", ".join(known_targets())
            raise ValueError(f"no target {str(name_or_path)!r}; known: {names}; or give the path of a .toml file of your own")
        path = TARGETS_FOLDER / f"{name_or_path}.toml"
    return _from_fields(path, _read(path))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text_of(path, "utf-8-sig"))
    except OSError as error:
        raise ValueError(f"cannot read the target {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from None


def _from_fields(path: Path, fields: dict[str, Any]) -> Target:
    allowed = [field.name for field in dataclasses.fields(Target) if field.name != "name"]
    if unknown := sorted(set(fields) - set(allowed)):
        raise ValueError(f"{path} has the unknown field {unknown[0]!r}; allowed: {', '.join(allowed)}")
    if "description" not in fields:
        raise ValueError(f'{path} has no description: add a line like description = "my board, 4 cores"')
    sources = fields.get("sources", [])
    if not isinstance(sources, list) or not all(isinstance(source, str) for source in sources):
        raise ValueError(f"{path}: sources is {sources!r}; it is a list of texts")
    return Target(name=path.stem, **{**fields, "sources": tuple(sources)})
