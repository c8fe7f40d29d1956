"""What a model says to a fixed sound: recorded when it is exported, asked again where it runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from deploy.export import INPUT, OUTPUTS, Windows
from deploy.measure import open_session
from search_spaces.architecture import SAMPLE_RATE

LIMITS = {"fp32": 1e-3, "int8": 0.1}  # processors round differently, integers to the next step; a wrong kernel is far off
Answers = Mapping[str, Sequence[float]]  # of each output


def sound(window: int) -> Windows:
    """(window,) samples: a tone that rises from 100 Hz to 4 kHz in a second, four times louder and softer."""
    seconds = np.arange(window) / SAMPLE_RATE
    tone = np.sin(2 * np.pi * (100 + 1950 * seconds) * seconds)
    swelling: Windows = (0.3 * tone * np.sin(4 * np.pi * seconds) ** 2).astype(np.float32)
    return swelling


def answers(model: Path, window: int) -> Answers:
    """Raises ValueError when the file is no model that runs here."""
    found = open_session(model).run(list(OUTPUTS), {INPUT: sound(window)[None]})
    return {name: [float(value) for value in output[0]] for name, output in zip(OUTPUTS, found)}


def difference(recorded: Answers, here: Answers) -> float:
    """The largest, over all outputs; infinite where they have other sizes or are no numbers."""
    if any(len(recorded.get(name, ())) != len(here[name]) for name in OUTPUTS):
        return float("inf")
    largest = max(float(np.abs(np.subtract(recorded[name], here[name])).max()) for name in OUTPUTS)
    return largest if np.isfinite(largest) else float("inf")
