"""Public corpora as their archives unpack -> a corpus. Nothing is downloaded; what is missing is named, with where it is to be had.

torchaudio's dataset classes know the layouts. VoxCeleb1's fetch a missing list from the network although `download` is False, so
every list is looked for first. Decoding is ours: torchaudio has no audio input any more.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torchaudio.datasets import LIBRISPEECH

from trainers.speech.clips import Clip
from trainers.speech.corpora import Progress
from trainers.speech.files import is_litter, lines_of
from trainers.speech.shards import Report, check_paths, join_shards, part_folder, write_shards
from trainers.speech.trial_lists import write_trials

TRIAL_LIST = "veri_test.txt"
VERIFICATION = "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta/veri_test.txt"
VAL_SPEAKERS = 40
VOXCELEB_LICENCE = "the lists CC BY 4.0, the speech as YouTube's uploaders allow"
LIBRISPEECH_LICENCE = "CC BY 4.0"
SUBSETS = ("train-clean-100", "train-clean-360", "train-other-500", "dev-clean", "dev-other", "test-clean", "test-other")


def import_voxceleb1(
    root: Path, out: Path, *, trials: Path | None = None, seed: int = 0, progress: Progress | None = None
) -> Report:
    """VoxCeleb1 (Nagrani et al. 2017), `wav/id10001/VIDEO/00001.wav` and `veri_test.txt` below root, to the corpus `out`.

    No keywords. test: all clips of the speakers of the trial list; val: 40 of the others, drawn by the seed (5 % where that is
    fewer); train: the rest. torchaudio's VoxCeleb1Identification does not do: its splits share speakers.
    trials: where to write the trial list in our format; trials of clips that were left out are left out too.
    Raises ValueError when something of the corpus is missing, for a list in another form, and as `write_shards` does.
    """
    is_interrupted = part_folder(out).exists()  # it may have ended between the list of trials and the corpus
    check_paths(root, out, *([trials] if trials and not is_interrupted else []))
    pairs = _verification_pairs(root)
    names = [path.relative_to(root / "wav").as_posix() for path in (root / "wav").glob("*/*/*.wav") if not is_litter(path.name)]
    listed = dict.fromkeys(name for pair in pairs for name in pair[:2])
    check_listed(root, TRIAL_LIST, listed, set(names))
    names.sort(key=lambda name: (name not in listed, name))  # of two equal files the one with trials stays
    split_of = _voxceleb_splits(root, {_speaker(name) for name in names}, {_speaker(name) for name in listed}, seed)
    clips = (Clip(id=name, split=split_of[_speaker(name)], keyword=None, speaker=_speaker(name)) for name in names)
    notes = write_shards(root / "wav", clips, out, official=True, progress=progress)
    remarks = []
    if trials:
        left_out = notes.left_out()
        kept = [pair for pair in pairs if not left_out.intersection(pair[:2])]
        write_trials(trials, [("test", *pair) for pair in kept])
        remarks = [f"{len(kept)} trials in {trials}, {len(pairs) - len(kept)} of clips that were left out are not"]
    return join_shards(out, notes, remarks, licence=VOXCELEB_LICENCE)


def import_librispeech(root: Path, out: Path, subsets: Sequence[str], *, progress: Progress | None = None) -> Report:
    """Subsets of LibriSpeech (Panayotov et al. 2015), `LibriSpeech/train-clean-100/103/1240/103-1240-0000.flac` below root.

    No keywords; train-*, dev-* and test-* become train, val and test. Raises ValueError for an unknown subset, when something of
    one is missing, and as `write_shards` does.
    """
    unknown = [name for name in subsets if name not in SUBSETS]
    if unknown or not subsets:
        raise ValueError(f"subset is {unknown[0] if unknown else 'not given'!r}; LibriSpeech has {', '.join(SUBSETS)}")
    check_paths(root, out)
    root = root.resolve()
    folder = root if root.name == "LibriSpeech" else root / "LibriSpeech"
    clips = [clip for subset in dict.fromkeys(subsets) for clip in _librispeech_clips(folder, subset)]
    return join_shards(out, write_shards(folder, clips, out, official=True, progress=progress), licence=LIBRISPEECH_LICENCE)


def require(path: Path, source: str) -> None:
    """Raises ValueError with where it is to be had when a file or folder is missing."""
    if not path.exists():
        raise ValueError(f"{path} is missing: {source}")


def check_listed(root: Path, listing: str, listed: Collection[str], present: Collection[str]) -> None:
    """Raises ValueError when the corpus lacks a clip of one of its own lists."""
    if missing := [name for name in listed if name not in present]:
        count = f"{len(missing)} of {len(listed)} clips of {listing} are missing, as {missing[0]}"
        raise ValueError(f"{root} looks half downloaded: {count}; unpack the archive again")


def metadata(path: Path, make: Callable[[], Any]) -> list[tuple[Any, ...]]:
    """What a dataset of torchaudio says of each clip. Raises ValueError when what is at `path` is not as it expects."""
    try:
        dataset = make()
        return [dataset.get_metadata(i) for i in range(len(dataset))]
    except FileNotFoundError as error:
        raise ValueError(f"{path} looks half downloaded: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not as in the corpus: {error}") from None


def _verification_pairs(root: Path) -> list[tuple[str, str, bool]]:
    """The official trials: two clips, and whether one speaker says both."""
    require(root / "wav", f"unpack vox1_dev_wav.zip and vox1_test_wav.zip in {root}")
    path = root / TRIAL_LIST
    require(path, f"get it from {VERIFICATION}")
    pairs = [_pair(path, line) for line in lines_of(path)]
    if not pairs:
        raise ValueError(f"{path} is empty: get it from {VERIFICATION}")
    return pairs


def _pair(path: Path, line: str) -> tuple[str, str, bool]:
    label, *clips = line.split()
    if label not in ("0", "1") or len(clips) != 2 or (label == "1") != (_speaker(clips[0]) == _speaker(clips[1])):
        raise ValueError(f"{path} is not as in the corpus: {line}")
    return clips[0], clips[1], label == "1"


def _speaker(name: str) -> str:
    return name.split("/")[0]


def _voxceleb_splits(root: Path, speakers: set[str], tested: set[str], seed: int) -> dict[str, str]:
    others = sorted(speakers - tested)
    if len(others) < 4:
        count = f"{len(others)} speakers beside those of {TRIAL_LIST}; at least 4 are needed"
        raise ValueError(f"{root} looks half downloaded: {count}; unpack vox1_dev_wav.zip")
    count_val = min(VAL_SPEAKERS, max(2, round(len(others) / 20)))
    val = np.random.default_rng(seed).permutation(len(others))[:count_val]
    return dict.fromkeys(others, "train") | {others[i]: "val" for i in val} | dict.fromkeys(tested, "test")


def _librispeech_clips(folder: Path, subset: str) -> list[Clip]:
    require(folder / subset, f"unpack https://www.openslr.org/resources/12/{subset}.tar.gz in {folder.parent}")
    found = metadata(folder / subset, lambda: LIBRISPEECH(folder.parent, subset))
    split = {"train": "train", "dev": "val", "test": "test"}[subset.split("-")[0]]
    clips = [Clip(id=path, split=split, keyword=None, speaker=str(speaker)) for path, _, _, speaker, *_ in found]
    listed = [
        path.with_name(f"{line.split()[0]}.flac").relative_to(folder).as_posix()
        for path in sorted((folder / subset).glob("*/*/*.trans.txt"))
        if not is_litter(path.name)
        for line in lines_of(path)
    ]
    check_listed(folder / subset, "the transcripts", listed, {clip.id for clip in clips})
    if not clips:
        raise ValueError(f"{folder / subset} looks half downloaded: it has no clips; unpack the archive again")
    return clips
