"""Text to samples with espeak-ng, in memory: the library and its voices come in the `espeakng-loader` wheel."""

import contextlib
import ctypes
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import espeakng_loader
import numpy as np
from numpy.typing import NDArray

SPEAK_RATE = 22_050  # Hz, fixed by the voice data
_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: espeak_Synth returns when the callback has had all samples
_DO_NOT_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT: report missing voice data, do not end the process
_WORDS_A_MINUTE, _PITCH, _PITCH_RANGE = 1, 3, 4  # espeak_PARAMETER
_CHARACTERS, _UTF8 = 1, 1
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True, kw_only=True)
class Voice:
    """name: accent+variant such as `gmw/en-US+f3`; pitch and pitch_range from 0 to 99; rate in words a minute (80 to 450)."""

    name: str
    pitch: int
    pitch_range: int
    rate: int


Say = Callable[[str, Voice], NDArray[np.float32]]


@contextlib.contextmanager
def espeak(seed: int) -> Iterator[Say]:
    """Gives `say(text, voice) -> samples at SPEAK_RATE in [-1, 1)`; the same calls from the same seed give the same samples.

    The library keeps the state of its oscillators and its random numbers in global variables that nothing resets. A private
    copy of the file, loaded afresh, starts from the same state every time and cannot meet another user of espeak in the process.
    The voices are reached through a link in the same folder, because the library cuts paths at 160 characters.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        data = Path(folder) / "espeak-ng-data"
        data.symlink_to(espeakng_loader.get_data_path())
        library = ctypes.CDLL(shutil.copy(espeakng_loader.get_library_path(), folder))
        rate = library.espeak_Initialize(_SYNCHRONOUS, 0, str(data).encode(), _DO_NOT_EXIT)
        assert rate == SPEAK_RATE, f"espeak_Initialize returned {rate}"
        library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        chunks: list[bytes] = []
        callback = _CALLBACK(lambda samples, count, _: _keep(chunks, samples, count))
        library.espeak_SetSynthCallback(callback)  # `callback` must outlive the last call
        try:
            yield lambda text, voice: _say(library, chunks, text, voice)
        finally:
            library.espeak_Terminate()


def _keep(chunks: list[bytes], samples: object, count: int) -> int:
    if samples and count > 0:
        chunks.append(ctypes.string_at(samples, 2 * count))  # type: ignore[arg-type]
    return 0  # go on


def _say(library: ctypes.CDLL, chunks: list[bytes], text: str, voice: Voice) -> NDArray[np.float32]:
    """Raises ValueError when espeak has no such voice."""
    chunks.clear()
    if library.espeak_SetVoiceByName(voice.name.encode()):
        raise ValueError(f"espeak-ng has no voice {voice.name!r}; a voice is named accent+variant, such as gmw/en-US+f3")
    for parameter, value in ((_WORDS_A_MINUTE, voice.rate), (_PITCH, voice.pitch), (_PITCH_RANGE, voice.pitch_range)):
        library.espeak_SetParameter(parameter, value, 0)
    encoded = text.encode() + b"\0"
    status = library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded)), 0, _CHARACTERS, 0, _UTF8, None, None)
    assert status == 0, f"espeak_Synth returned {status}"
    return np.divide(np.frombuffer(b"".join(chunks), np.int16), 32_768, dtype=np.float32)
