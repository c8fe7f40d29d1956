"""Files that are small to send and huge to read: each is refused in a line, before memory is asked for."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from deploy.bundle import verify_bundle
from deploy.target import load_target
from nas.cli.options import read_recipe
from nas.device.profile import read_profile
from nas.study.folder import Study, open_folder
from trainers.networks.student import load_student
from trainers.speech.decoding import BadAudio, decode
from trainers.teacher.teacher import load_teacher

GIGABYTE = 1 << 30


def study_of(path: Path) -> Study:
    return open_folder(path.parent)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("manifest.json", lambda path: verify_bundle(path.parent)),
        ("board.toml", load_target),
        ("recipe.toml", lambda path: read_recipe(path, None)),
        ("profile.json", read_profile),
        ("study.toml", study_of),
        ("architecture.json", lambda path: load_student(path.parent)),
        ("config.json", lambda path: load_teacher(str(path.parent))),
    ],
)
def test_a_text_of_a_gigabyte_is_not_read(tmp_path: Path, name: str, read: Callable[[Path], object]) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(GIGABYTE)  # takes no room on the disk
    with pytest.raises(ValueError, match=f"{name} has 1074 MB, a text of at most 67 is read") as refused:
        read(tmp_path / name)
    assert "\n" not in str(refused.value)


def test_a_recording_that_claims_days_is_not_decoded() -> None:
    """60 kB of FLAC whose header speaks of 35 days."""
    packed = io.BytesIO()
    soundfile.write(packed, np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000, format="FLAC")
    data = bytearray(packed.getvalue())
    assert decode(bytes(data)).shape == (16_000,)
    assert data[:4] == b"fLaC"
    place = 8 + 10  # of the stream's description: 20 bits of rate, 3 of channels, 5 of depth, then 36 of how many samples
    data[place + 3] |= 0x0F
    data[place + 4 : place + 8] = b"\xff" * 4
    with pytest.raises(BadAudio, match=r"GB when it is decoded, at most 8 are read: cut it"):
        decode(bytes(data))
