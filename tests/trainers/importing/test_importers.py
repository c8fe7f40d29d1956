"""Importing a folder: which files a pattern matches, how speakers are split, and what is refused."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from trainers.importing.importers import import_folder, path_regex, split_groups
from trainers.speech import shards
from trainers.speech.corpora import describe, stated_licences
from trainers.speech.loading import load_corpus

PATTERN = "{keyword}/{speaker}_*.wav"


def fill(folder: Path, speakers: int = 6, keywords: tuple[str, ...] = ("no", "yes")) -> Path:
    rng = np.random.default_rng(0)
    for keyword in keywords:
        (folder / keyword).mkdir(parents=True)
        for speaker in range(speakers):
            for take in range(2):
                soundfile.write(folder / keyword / f"s{speaker}_nohash_{take}.wav", rng.uniform(-0.5, 0.5, 800), 8_000)
    return folder


@pytest.mark.parametrize(
    ("pattern", "path", "fields"),
    [
        (PATTERN, "yes/0a1_nohash_0.wav", {"keyword": "yes", "speaker": "0a1"}),
        (PATTERN, "a/yes/0a1_0.wav", None),
        (PATTERN, "yes/0a1_0.wav.txt", None),
        ("{speaker}/*/{speaker}-*.flac", "103/1240/103-1240-0000.flac", {"speaker": "103"}),
        ("{speaker}/*/{speaker}-*.flac", "103/1240/104-1240-0000.flac", None),
        ("take?/{keyword}.wav", "take1/on.wav", {"keyword": "on"}),
        ("take?/{keyword}.wav", "take12/on.wav", None),
        ("a+b(*).wav", "a+b(1).wav", {}),
        ("*.wav", "yes/1.wav", None),
    ],
)
def test_patterns(pattern: str, path: str, fields: dict[str, str] | None) -> None:
    match = path_regex(pattern).fullmatch(path)
    assert (match and match.groupdict()) == fields


@pytest.mark.parametrize("pattern", ["{word}/*.wav", "{keyword/*.wav", "keyword}/*.wav", "{}/*.wav"])
def test_unknown_fields_are_named(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"its fields are \{keyword\} and \{speaker\}"):
        path_regex(pattern)


@given(st.sets(st.text(min_size=1), min_size=3, max_size=40), st.integers(0, 5), st.floats(0.05, 0.3), st.floats(0.05, 0.3))
def test_every_split_has_its_share_of_groups(groups: set[str], seed: int, val: float, test: float) -> None:
    split_of = split_groups(groups, seed, val, test)
    counts = [list(split_of.values()).count(split) for split in ("train", "val", "test")]
    least = 2 if len(groups) >= 6 else 1
    assert set(split_of) == groups
    assert counts[0] >= 1
    assert counts[1] == max(least, round(val * len(groups)))
    assert counts[2] == max(least, round(test * len(groups)))
    assert split_of == split_groups(sorted(groups, reverse=True), seed, val, test)


def test_links_are_followed_and_what_is_passed_over_is_named(tmp_path: Path) -> None:
    """A linked folder's clips are there, a loop ends, macOS' and dangling files are in the report."""
    folder = fill(tmp_path / "in")
    fill(tmp_path / "elsewhere", keywords=("a", "b", "up"))  # the third: its clips are none of the others
    (folder / "up").symlink_to(tmp_path / "elsewhere/up")
    (folder / "loop").symlink_to(folder)
    (folder / "yes/s0_gone_0.wav").symlink_to("nowhere.wav")
    (folder / "yes/._s0_nohash_0.wav").write_bytes(b"\0\5\x16\7" + bytes(4092))
    (folder / ".DS_Store").write_bytes(b"\0")
    report = import_folder(folder, PATTERN, tmp_path / "out.parquet")
    assert report.keywords == ("no", "up", "yes") and report.speakers == 6 and not report.skipped
    assert [remark for remark in report.remarks if "pattern" not in remark] == [
        "files that an operating system left there: 2, as .DS_Store",
        "links that lead nowhere: 1, as yes/s0_gone_0.wav",
    ]


def test_a_person_in_two_forms_of_unicode_is_one_person(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in")
    for number, name in enumerate(("Zoe\u0308", "Zo\u00eb")):
        soundfile.write(folder / f"no/{name}_nohash_{number}.wav", np.random.default_rng(number + 9).uniform(-0.5, 0.5, 800), 8_000)
    assert import_folder(folder, PATTERN, tmp_path / "out.parquet").speakers == 7


def test_another_seed_is_another_split() -> None:
    groups = [str(i) for i in range(40)]
    assert len({tuple(split_groups(groups, seed, 0.2, 0.2).items()) for seed in range(5)}) == 5


@pytest.mark.parametrize(
    ("count", "val", "test", "message"),
    [(2, 0.1, 0.1, "at least 3"), (9, 0.5, 0.5, "below 1 together"), (9, -0.1, 0.5, "from 0"), (3, 0.45, 0.54, "none to train on")],
)
def test_impossible_splits(count: int, val: float, test: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_groups(map(str, range(count)), 0, val, test)


def test_a_share_of_nothing_is_nothing() -> None:
    assert sorted(set(split_groups(map(str, range(9)), 0, 0.2, 0).values())) == ["train", "val"]


def test_import_and_load(tmp_path: Path) -> None:
    folder, out = fill(tmp_path / "in"), tmp_path / "out.parquet"
    (folder / "README.md").write_text("two words")
    calls: list[tuple[int, int]] = []
    report = import_folder(folder, PATTERN, out, progress=lambda *done: calls.append(done))
    assert report.clips == {"train": 8, "val": 8, "test": 8}
    assert (report.keywords, report.speakers, report.skipped, report.duplicates) == (("no", "yes"), 6, (), ())
    assert report.converted == {"8000 Hz mono": 24}
    assert report.remarks == ("files that do not match the pattern: 1",)
    assert calls == [(i, 24) for i in range(1, 25)]
    rows = {row["id"]: row for row in pq.read_table(out).to_pylist()}
    audio = {"bytes": (folder / "no/s0_nohash_0.wav").read_bytes(), "path": "no/s0_nohash_0.wav"}
    assert rows["no/s0_nohash_0.wav"]["audio"] == audio
    assert rows["no/s0_nohash_0.wav"]["duration_s"] == pytest.approx(0.1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out.parquet"]
    corpus = load_corpus([out], tmp_path / "cache")  # refuses a speaker in two splits
    assert len(corpus) == 24
    assert not corpus.synthetic and stated_licences(corpus) == {"out": None}
    assert set(corpus.speakers) == {f"s{i}" for i in range(6)}


def test_a_licence_travels_with_the_speech_and_several_stand_side_by_side(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in")
    for name, licence in (("one", "CC BY 4.0"), ("two", None)):
        import_folder(folder, PATTERN, tmp_path / f"{name}.parquet", licence=licence)
    corpus = load_corpus([tmp_path / "one.parquet", tmp_path / "two.parquet"], tmp_path / "cache")
    assert stated_licences(corpus) == {"one": "CC BY 4.0", "two": None}
    assert describe(corpus)["licences"] == {"one": "CC BY 4.0", "two": "not known"}


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in")
    for name in ("a", "b"):
        import_folder(folder, PATTERN, tmp_path / name, seed=3)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_of_equal_files_one_stays(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in")
    for take in (folder / "no").glob("*_0.wav"):
        (folder / "yes" / take.name).write_bytes(take.read_bytes())
    report = import_folder(folder, "*/*.wav", tmp_path / "out")
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert {row["keyword"] for row in rows} == {None} == {row["speaker_id"] for row in rows}
    assert len(rows) == len({row["audio"]["bytes"] for row in rows}) == 18
    names = [f"yes/s{i}_nohash_0.wav" for i in range(6)]
    assert sorted(report.duplicates) == [(name, f"the same file as {name.replace('yes', 'no')}") for name in names]


def test_a_file_of_two_splits_stays_in_the_one_that_is_scored(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in")
    split_of = split_groups([f"s{i}" for i in range(6)], 0, 0.15, 0.15)
    scored, trained = (next(name for name, split in split_of.items() if split == wanted) for wanted in ("test", "train"))
    kept, dropped = f"yes/{scored}_nohash_1.wav", f"no/{trained}_nohash_0.wav"
    (folder / dropped).write_bytes((folder / kept).read_bytes())
    report = import_folder(folder, PATTERN, tmp_path / "out")
    assert report.duplicates == ((dropped, f"the same file as {kept}, which is in test"),)
    assert kept in pq.read_table(tmp_path / "out")["id"].to_pylist()


def test_what_is_converted_is_counted(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in")
    rng = np.random.default_rng(1)
    for take in range(3):
        soundfile.write(folder / f"yes/s0_stereo_{take}.wav", rng.uniform(-0.5, 0.5, (4_410, 2)), 44_100)
    soundfile.write(folder / "yes/s0_plain_0.wav", rng.uniform(-0.5, 0.5, 1_600), 16_000)
    report = import_folder(folder, PATTERN, tmp_path / "out")
    assert report.converted == {"8000 Hz mono": 24, "44100 Hz, 2 channels": 3}
    assert sum(report.clips.values()) == 28


class Stopped(Exception):
    pass


def stop_after(clips: int, calls: list[tuple[int, int]]) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        calls.append((done, total))
        if len(calls) == clips:
            raise Stopped

    return progress


@pytest.mark.parametrize("stopped_at", [1, 5, 12, 24])
def test_an_interrupted_import_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: int) -> None:
    monkeypatch.setattr(shards, "SHARD_CLIPS", 5)
    folder = fill(tmp_path / "in")
    (folder / "yes/s0_nohash_0.wav").write_bytes((folder / "no/s0_nohash_1.wav").read_bytes())  # in another shard than its twin
    whole = import_folder(folder, PATTERN, tmp_path / "whole")
    assert len(whole.duplicates) == 1
    calls: list[tuple[int, int]] = []
    with pytest.raises(Stopped):
        import_folder(folder, PATTERN, tmp_path / "out", progress=stop_after(stopped_at, calls))
    assert not (tmp_path / "out").exists()
    done = (stopped_at - 1) // 5 if stopped_at < 24 else 4
    assert len(list((tmp_path / ".out-part").glob("*.parquet"))) == done
    calls.clear()
    report = import_folder(folder, PATTERN, tmp_path / "out", progress=lambda *call: calls.append(call))
    assert calls == [(5 * (i + 1), 24) for i in range(done)] + [(i, 24) for i in range(5 * done + 1, 25)]
    assert report == whole
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "whole"]


def test_a_changed_plan_starts_anew_and_a_torn_shard_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_CLIPS", 5)
    folder, part = fill(tmp_path / "in"), tmp_path / ".out-part"

    def first_call(**options: Any) -> tuple[int, int]:
        calls: list[tuple[int, int]] = []
        with pytest.raises(Stopped):
            import_folder(folder, PATTERN, tmp_path / "out", progress=stop_after(13, calls), **options)
        return calls[0]

    assert first_call() == (1, 24)
    with pytest.raises(Stopped):
        import_folder(folder, PATTERN, tmp_path / "out", progress=stop_after(1, kept := []))
    assert kept == [(5, 24)]
    assert first_call(seed=1) == (1, 24)  # another option
    soundfile.write(folder / "no/s0_nohash_0.wav", np.full(999, 0.5), 8_000)
    assert first_call(seed=1) == (1, 24)  # another file
    first = min(part.glob("*.parquet"))
    first.write_bytes(first.read_bytes()[:-9])
    import_folder(folder, PATTERN, tmp_path / "out", seed=1, progress=lambda *call: kept.append(call))
    assert kept[1:7] == [(1, 24), (2, 24), (3, 24), (4, 24), (5, 24), (10, 24)]
    assert len(pq.read_table(tmp_path / "out")) == 24
    assert not part.exists()


def test_a_killed_import_goes_on(tmp_path: Path) -> None:
    """Killed by the system, in the middle of a shard: nothing of the program runs any more."""
    folder = fill(tmp_path / "in")
    code = (
        "import os, signal, sys; from pathlib import Path; from trainers.importing import importers\n"
        "from trainers.speech import shards; shards.SHARD_CLIPS = 5\n"
        "def kill(done, total): done == 13 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "importers.import_folder(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), progress=kill)"
    )
    out = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", code, str(folder), PATTERN, str(out)], cwd=Path(__file__).parents[3])
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    calls: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_CLIPS", 5)
        report = import_folder(folder, PATTERN, out, progress=lambda *call: calls.append(call))
    assert calls[:3] == [(5, 24), (10, 24), (11, 24)]
    assert report.clips == {"train": 8, "val": 8, "test": 8}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    import_folder(folder, PATTERN, tmp_path / "whole")
    assert pq.read_table(out).equals(pq.read_table(tmp_path / "whole"))


def test_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path / "in")
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"the import needs 0\.0 GB in .*; 0\.0 are free"):
        import_folder(folder, PATTERN, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_bad_files_are_listed_up_to_one_percent(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", speakers=26)
    (folder / "no" / "s0_nohash_0.wav").write_text("not audio")
    report = import_folder(folder, PATTERN, tmp_path / "out")
    assert report.skipped[0][0] == "no/s0_nohash_0.wav"
    assert sum(report.clips.values()) == 103
    (folder / "no" / "s0_nohash_1.wav").write_text("")
    with pytest.raises(ValueError, match="2 of 104 clips cannot be used"):
        import_folder(folder, PATTERN, tmp_path / "refused")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_mistakes_are_named(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    with pytest.raises(ValueError, match="in is not a folder"):
        import_folder(folder, "*", out)
    folder.mkdir()
    with pytest.raises(ValueError, match="the folder has no files"):
        import_folder(folder, "*", out)
    fill(folder)
    with pytest.raises(ValueError, match=r"matches nothing.*'no/s0_nohash_0\.wav' does not match"):
        import_folder(folder, "{keyword}/{speaker}_*.flac", out)
    with pytest.raises(ValueError, match="only the keyword 'nohash'"):
        import_folder(folder, "*/{speaker}_{keyword}_*.wav", out)
    fill(folder, keywords=("_background_noise_",))
    with pytest.raises(ValueError, match="'_background_noise_' is not a word"):
        import_folder(folder, PATTERN, out)
    out.write_text("precious")
    with pytest.raises(ValueError, match="out exists"):
        import_folder(folder, PATTERN, out)
    assert out.read_text() == "precious"
