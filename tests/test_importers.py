"""Importing a folder: which files a pattern matches, how speakers are split, and what is refused."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from trainers.corpora import load_corpus
from trainers.importers import import_folder, path_regex, split_groups


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
        ("{keyword}/{speaker}_*.wav", "yes/0a1_nohash_0.wav", {"keyword": "yes", "speaker": "0a1"}),
        ("{keyword}/{speaker}_*.wav", "a/yes/0a1_0.wav", None),
        ("{keyword}/{speaker}_*.wav", "yes/0a1_0.wav.txt", None),
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
    report = import_folder(folder, "{keyword}/{speaker}_*.wav", out, progress=lambda *done: calls.append(done))
    assert report.clips == {"train": 8, "val": 8, "test": 8}
    assert (report.keywords, report.speakers, report.skipped, report.unmatched) == (("no", "yes"), 6, (), 1)
    assert calls == [(i, 24) for i in range(1, 25)]
    first = pq.read_table(out).to_pylist()[0]
    assert first["audio"] == {"bytes": (folder / "no/s0_nohash_0.wav").read_bytes(), "path": "no/s0_nohash_0.wav"}
    assert first["duration_s"] == pytest.approx(0.1)
    corpus = load_corpus([out], tmp_path / "cache")  # refuses a speaker in two splits
    assert len(corpus) == 24
    assert not corpus.synthetic
    assert set(corpus.speakers) == {f"s{i}" for i in range(6)}


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in")
    for name in ("a", "b"):
        import_folder(folder, "{keyword}/{speaker}_*.wav", tmp_path / name, seed=3)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_without_speakers_equal_files_stay_together(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in")
    for take in (folder / "no").glob("*_0.wav"):
        (folder / "yes" / take.name).write_bytes(take.read_bytes())
    import_folder(folder, "*/*.wav", tmp_path / "out")
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert {row["keyword"] for row in rows} == {None} == {row["speaker_id"] for row in rows}
    splits: dict[bytes, set[str]] = {}
    for row in rows:
        splits.setdefault(row["audio"]["bytes"], set()).add(row["split"])
    assert len(splits) == 18
    assert all(len(found) == 1 for found in splits.values())


def test_bad_files_are_listed_up_to_one_percent(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", speakers=26)
    (folder / "no" / "s0_nohash_0.wav").write_text("not audio")
    report = import_folder(folder, "{keyword}/{speaker}_*.wav", tmp_path / "out")
    assert report.skipped[0][0] == "no/s0_nohash_0.wav"
    assert sum(report.clips.values()) == 103
    (folder / "no" / "s0_nohash_1.wav").write_text("")
    with pytest.raises(ValueError, match="2 of 104 clips cannot be used"):
        import_folder(folder, "{keyword}/{speaker}_*.wav", tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


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
        import_folder(folder, "{keyword}/{speaker}_*.wav", out)
    out.write_text("precious")
    with pytest.raises(ValueError, match="out exists"):
        import_folder(folder, "{keyword}/{speaker}_*.wav", out)
    assert out.read_text() == "precious"
