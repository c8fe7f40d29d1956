"""Speech Commands as its archives unpack -> a corpus; see layouts.py for what the official corpora have in common."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
from torchaudio.datasets import SPEECHCOMMANDS

from search_spaces.architecture import SAMPLE_RATE
from trainers.importing.layouts import check_listed, metadata, require
from trainers.speech.clips import Clip, Piece
from trainers.speech.corpora import SPLITS, Progress
from trainers.speech.files import is_litter, lines_of
from trainers.speech.parquet import SILENCE, UNKNOWN
from trainers.speech.shards import Report, check_paths, join_shards, write_shards

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
VERSIONS = ("speech_commands_v0.02", "speech_commands_v0.01")
LISTS = {"validation_list.txt": "val", "testing_list.txt": "test"}
LISTED = re.compile(r"[^/]+/[^/]+_nohash_\d+\.wav")
NOISE_FOLDER = "_background_noise_"
ARCHIVE = "http://download.tensorflow.org/data/{}.tar.gz"
LICENCE = "CC BY 4.0"
EXTRA_PERCENT = 10  # clips of `_unknown_`, and of `_silence_`, for 100 of the wanted words
LARGEST_SHARED = 0.01  # share of the speakers who may be in two splits


def import_speech_commands(
    root: Path, out: Path, *, classes: str = "12", seed: int = 0, progress: Progress | None = None
) -> Report:
    """Speech Commands v0.01 or v0.02 (Warden 2018, arXiv 1804.03209), split by its own two lists, to the corpus `out`.

    root: the folder `speech_commands_v0.0x`, or one with it in it or in its folder `SpeechCommands`.
    classes: `all` words, or `12`: ten words, and by the recipe of TensorFlow's `input_data.py` in each split a tenth as many
    clips `_unknown_` (of the other words) and `_silence_` (a second of a background noise at a volume from 0 to 1), drawn by the
    seed. As there, the recordings of noise are shared by the splits.
    The lists are made from a hash of the speaker; clips of one whom they nevertheless put into two splits get no speaker.
    Raises ValueError when something of the corpus is missing, when more than 1 % of the speakers are in two splits, and as
    `write_shards` does.
    """
    if classes not in ("12", "all"):
        raise ValueError(f"classes is {classes!r}; it is '12' (ten words, {UNKNOWN} and {SILENCE}) or 'all' words")
    check_paths(root, out)
    folder = _speech_commands_folder(root)
    clips, remarks = _without_shared_speakers(_speech_commands_clips(folder), folder)
    labels = {*WORDS, UNKNOWN, SILENCE} if classes == "12" else {*WORDS, *(clip.keyword for clip in clips)}
    if classes == "12":
        clips = _twelve(clips, folder, seed)
    if missing := labels - {clip.keyword for clip in clips if clip.split == "train"}:
        raise ValueError(f"{folder} looks half downloaded: it has no training clip of {', '.join(sorted(map(str, missing)))}")
    return join_shards(out, write_shards(folder, clips, out, official=True, progress=progress), remarks, licence=LICENCE)


def _speech_commands_folder(root: Path) -> Path:
    root = root.resolve()
    if root.name in VERSIONS:
        return root
    found = [base / name for base in (root, root / "SpeechCommands") for name in VERSIONS if (base / name).is_dir()]
    if len(found) > 1:
        raise ValueError(f"{root} has {' and '.join(map(str, found))}: name one of them")
    if not found:
        require(root / "SpeechCommands" / VERSIONS[0], f"unpack {ARCHIVE.format(VERSIONS[0])} there")
    return found[0]


def _speech_commands_clips(folder: Path) -> list[Clip]:
    """Of all words, with the splits of the two lists. Raises ValueError when a list or a clip of one is missing."""

    found = metadata(folder, lambda: SPEECHCOMMANDS(folder.parent, folder.name, ""))
    every = {clip.removeprefix(f"{folder.name}/"): (word, speaker) for clip, _, word, speaker, _ in found}
    clips = {clip: about for clip, about in every.items() if not is_litter(clip.rpartition("/")[2])}
    split_of: dict[str, str] = {}
    for listing, split in LISTS.items():
        require(folder / listing, f"it is in {ARCHIVE.format(folder.name)}")
        listed = lines_of(folder / listing)
        if odd := next((line for line in listed if not LISTED.fullmatch(line)), None):
            raise ValueError(f"{folder / listing} is not as in the corpus: {odd}")
        check_listed(folder, listing, listed, clips)
        for clip in listed:
            if split_of.setdefault(clip, split) != split:
                raise ValueError(f"{clip} is in both {' and '.join(LISTS)} of {folder}: unpack the archive again")
    return [
        Clip(id=clip, split=split_of.get(clip, "train"), keyword=word, speaker=speaker) for clip, (word, speaker) in clips.items()
    ]


def _without_shared_speakers(clips: list[Clip], folder: Path) -> tuple[list[Clip], list[str]]:
    """The clips, those of a speaker of two splits without a speaker, and what is to be said of it."""
    places = {(clip.speaker, clip.split) for clip in clips}
    splits_of = Counter(speaker for speaker, _ in places)
    shared = sorted(str(speaker) for speaker, count in splits_of.items() if count > 1)
    if len(shared) > LARGEST_SHARED * len(splits_of):
        counts = f"{len(shared)} of {len(splits_of)} speakers, as {shared[0]}, are in two splits"
        raise ValueError(f"the lists in {folder} are not the official ones: {counts}; unpack the archive again")
    if not shared:
        return clips, []
    anonymous = [replace(clip, speaker=None) if clip.speaker in shared else clip for clip in clips]
    return anonymous, [f"{len(shared)} speakers, as {shared[0]}, are in two splits: their clips have no speaker"]


def _twelve(clips: list[Clip], folder: Path, seed: int) -> list[Clip]:
    recordings = _recordings(folder)
    kept: list[Clip] = []
    for number, split in enumerate(SPLITS):
        rng = np.random.default_rng((seed, number))
        wanted = [clip for clip in clips if clip.split == split and clip.keyword in WORDS]
        others = [clip for clip in clips if clip.split == split and clip.keyword not in WORDS]
        count = math.ceil(len(wanted) * EXTRA_PERCENT / 100)
        drawn = rng.permutation(len(others))[:count]
        kept += wanted + [replace(others[i], keyword=UNKNOWN) for i in sorted(drawn)]
        kept += [
            Clip(id=f"{SILENCE}/{split}/{i:04}.wav", split=split, keyword=SILENCE, speaker=None, piece=_piece(recordings, rng))
            for i in range(count)
        ]
    return kept


def _piece(recordings: Mapping[str, int], rng: np.random.Generator) -> Piece:
    name = sorted(recordings)[rng.integers(len(recordings))]
    return Piece(recording=name, start=int(rng.integers(recordings[name] - SAMPLE_RATE + 1)), volume=float(rng.random()))


def _recordings(folder: Path) -> dict[str, int]:
    """The samples of each recording of noise. Raises ValueError when there is none, or one that cannot be used."""
    samples: dict[str, int] = {}
    for path in sorted((folder / NOISE_FOLDER).glob("*.wav")):
        if is_litter(path.name):
            continue
        try:
            about = soundfile.info(path)
        except (soundfile.SoundFileError, OSError) as error:
            raise ValueError(f"{path} cannot be read: {error}; unpack the archive again") from None
        if (about.samplerate, about.channels) != (SAMPLE_RATE, 1) or about.frames < SAMPLE_RATE:
            form = f"{about.samplerate} Hz, {about.channels} channels, {about.duration:.1f} s"
            raise ValueError(f"{path} has {form}; the corpus has {SAMPLE_RATE} Hz mono, 1 s or more")
        samples[f"{NOISE_FOLDER}/{path.name}"] = about.frames
    if not samples:
        raise ValueError(f"{folder} looks half downloaded: {NOISE_FOLDER}/*.wav is missing; unpack the archive again")
    return samples
