"""Corpora: what goes into a Parquet file comes out of `load_corpus`, and what cannot be used is said in one line."""

import io
import pickle
import re
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.speech.corpora import Corpus, check_trainable, describe, short_names
from trainers.speech.loading import load_corpus
from trainers.speech.parquet import SCHEMA, write_corpus

REAL = Path(__file__).parents[3] / ".." / "shared" / "data"
Row = dict[str, Any]


def encoded(samples: Any, rate: int = 16_000, *, format: str = "WAV", subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


def tone(seconds: float = 0.1, rate: int = 16_000, hertz: float = 440.0) -> Any:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def row(i: int, **changes: Any) -> Row:
    """Clip i of a corpus with two keywords and, in each split, two speakers."""
    split = ("train", "val", "test")[i % 3]
    audio = {"bytes": encoded(tone(hertz=200 + i)), "path": f"{i}.wav"}
    fields = {"id": f"clip{i}", "split": split, "keyword": "yes" if i // 3 % 2 else "no", "speaker_id": f"{split}{i // 6 % 2}"}
    return {**fields, "duration_s": 0.1, "audio": audio, **changes}


def rows(count: int, **changes: Callable[[int], Any]) -> list[Row]:
    return [row(i, **{name: change(i) for name, change in changes.items()}) for i in range(count)]


def bad_audio(data: bytes | None, *bad: int) -> Callable[[int], Mapping[str, Any]]:
    return lambda i: {"bytes": data if i in bad else encoded(tone()), "path": None}


def stored(folder: Path, clips: list[Row], **options: Any) -> Corpus:
    path = folder / "corpus.parquet"
    write_corpus(path, clips, **options)
    return load_corpus([path], folder / "cache")


@settings(max_examples=15)
@given(st.lists(st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=50), min_size=1, max_size=150), st.integers(1, 3))
def test_samples_survive_exactly_over_several_files(clips: list[list[int]], files: int) -> None:
    loud = [np.array([*clip, 1000], np.int16) for clip in clips]
    written = [row(i, audio={"bytes": encoded(clip), "path": None}) for i, clip in enumerate(loud)]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{n}.parquet" for n in range(files) if written[n::files]]
        for n, path in enumerate(paths):
            write_corpus(path, written[n::files])
        corpus = load_corpus(paths, Path(folder) / "cache")
        by_id = {clip: i for i, clip in enumerate(corpus.ids)}
        assert len(corpus) == len(loud)
        for i, clip in enumerate(loud):
            found = by_id[f"clip{i}"]
            assert corpus.length(found) == len(clip)
            assert corpus.clip(found).dtype == np.float32
            np.testing.assert_array_equal(corpus.clip(found) * 32768, clip)


@pytest.mark.parametrize(
    ("format", "subtype", "rate"),
    [
        ("WAV", "PCM_16", 8_000),
        ("WAV", "FLOAT", 44_100),
        ("FLAC", "PCM_24", 48_000),
        ("OGG", "OPUS", 48_000),
        ("OGG", "VORBIS", 22_050),
        ("WAV", "PCM_U8", 11_025),
        ("WAV", "PCM_16", 22_254),
        ("AIFF", "PCM_16", 16_001),
    ],
)
def test_any_format_and_rate_becomes_16_khz(tmp_path: Path, format: str, subtype: str, rate: int) -> None:
    data = encoded(tone(1.0, rate), rate, format=format, subtype=subtype)
    clip = stored(tmp_path, [row(0, audio={"bytes": data, "path": None})]).clip(0)
    assert len(clip) == pytest.approx(16_000, abs=20)
    spectrum = np.abs(np.fft.rfft(clip * np.hanning(len(clip))))
    assert spectrum.argmax() * 16_000 / len(clip) == pytest.approx(440, abs=1.5)
    assert np.abs(clip[4000:12_000]).max() == pytest.approx(0.5, abs=0.03)


def test_channels_are_averaged(tmp_path: Path) -> None:
    stereo = np.stack([np.full(100, 8000), np.full(100, 2000)], 1).astype(np.int16)
    assert set(stored(tmp_path, [row(0, audio={"bytes": encoded(stereo), "path": None})]).clip(0) * 32768) == {5000}


def test_too_loud_samples_are_clipped(tmp_path: Path) -> None:
    data = encoded(np.array([2.0, -2.0, 0.5]), subtype="FLOAT")
    clip = stored(tmp_path, [row(0, audio={"bytes": data, "path": None})]).clip(0)
    np.testing.assert_array_equal(clip, np.array([32767 / 32768, -1, 0.5], np.float32))


def test_columns_and_selections(tmp_path: Path) -> None:
    clips = rows(12, keyword=lambda i: None if i == 0 else "yes", speaker_id=lambda i: None if i in (0, 3) else f"s{i}")
    corpus = stored(tmp_path, clips)
    for name, column in (("id", corpus.ids), ("split", corpus.splits), ("keyword", corpus.keywords)):
        assert list(column) == [clip[name] for clip in clips]
    assert list(corpus.speakers) == [clip["speaker_id"] for clip in clips]
    assert corpus.rows("train").tolist() == [0, 3, 6, 9]
    assert corpus.rows("train", with_keyword=True).tolist() == [3, 6, 9]
    assert corpus.rows("train", with_speaker=True).tolist() == [6, 9]
    assert corpus.rows(with_keyword=True).tolist() == list(range(1, 12))


def test_audio_by_relative_path(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "a.flac", tone(), 16_000)
    corpus = stored(tmp_path, [row(0, audio={"bytes": None, "path": "audio/a.flac"})])
    assert corpus.length(0) == 1600


@pytest.mark.parametrize("name", ["/etc/hostname", "../a.wav", "audio/../../a.wav"])
def test_paths_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"clip0.*must be relative"):
        stored(tmp_path, [row(0, audio={"bytes": None, "path": name})])


def test_later_loads_only_map(tmp_path: Path) -> None:
    first = stored(tmp_path, rows(12))
    written = first.samples[0].path.stat()
    moved = (tmp_path / "corpus.parquet").rename(tmp_path / "moved.parquet")
    calls: list[tuple[int, int]] = []
    second = load_corpus([moved], tmp_path / "cache", lambda *done: calls.append(done))
    assert second.samples[0].path.stat() == written
    assert second.digest == first.digest
    assert calls == [(12, 12)]


def test_progress_counts_over_files(tmp_path: Path) -> None:
    clips, calls = rows(100), list[tuple[int, int]]()
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    write_corpus(paths[0], clips[:70])
    write_corpus(paths[1], clips[70:])
    both = load_corpus(paths, tmp_path / "cache", lambda *done: calls.append(done))
    assert calls == [(64, 100), (70, 100), (100, 100)]
    assert both.digest != load_corpus(paths[::-1], tmp_path / "cache").digest


def test_workers_that_start_together_agree(tmp_path: Path) -> None:
    write_corpus(tmp_path / "c.parquet", rows(60))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: load_corpus([tmp_path / "c.parquet"], tmp_path / "cache"), range(4)))
    assert all(np.array_equal(corpus.clip(59), found[0].clip(59)) for corpus in found)
    assert len(list((tmp_path / "cache").iterdir())) == 2  # the decoded file and the stamps, nothing temporary


def test_an_interrupted_decode_leaves_nothing(tmp_path: Path) -> None:
    write_corpus(tmp_path / "c.parquet", rows(100))

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_corpus([tmp_path / "c.parquet"], tmp_path / "cache", interrupt)
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == ["stamps"]
    assert len(load_corpus([tmp_path / "c.parquet"], tmp_path / "cache")) == 100


def test_a_torn_cache_is_made_again(tmp_path: Path) -> None:
    path = stored(tmp_path, rows(6)).samples[0].path
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    load_corpus([tmp_path / "corpus.parquet"], tmp_path / "cache")
    assert path.read_bytes() == whole


def test_a_pickled_corpus_maps_the_same_samples(tmp_path: Path) -> None:
    corpus = stored(tmp_path, rows(50, audio=lambda i: {"bytes": encoded(tone(2.0)), "path": None}))
    data = pickle.dumps(corpus)
    assert len(data) < 20_000 < 50 * 2 * corpus.length(0)
    np.testing.assert_array_equal(pickle.loads(data).clip(49), corpus.clip(49))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"no audio", "unreadable: Format not recognised"),
        (encoded(np.full(800, 300.0), subtype="FLOAT"), "samples up to 300, where full scale is 1"),
        (b"", "empty"),
        (encoded(np.zeros(0)), "empty"),
        (encoded(np.full(100, 2, np.int16)), "silent"),
        (encoded(np.full(100, np.nan), subtype="FLOAT"), "not finite"),
        (encoded(tone(), 200), "sample rate"),
        (None, "neither bytes nor a path"),
    ],
)
def test_one_bad_clip_in_a_hundred_is_skipped_two_are_refused(tmp_path: Path, data: bytes | None, reason: str) -> None:
    corpus = stored(tmp_path, rows(100, audio=bad_audio(data, 7)))
    assert len(corpus) == 99
    assert "clip7" not in corpus.ids
    assert corpus.skipped[0][0] == "clip7"
    assert reason in corpus.skipped[0][1]
    assert corpus.clip(7).any()
    with pytest.raises(ValueError, match=f"2 of 100 clips.*clip7: {reason}.*clip8: {reason}"):
        stored(tmp_path, rows(100, audio=bad_audio(data, 7, 8)))


def test_silence_may_be_silent(tmp_path: Path) -> None:
    clip = row(0, keyword="_silence_", audio={"bytes": encoded(np.zeros(100)), "path": None})
    assert not stored(tmp_path, [clip]).clip(0).any()


def test_repaired_files_are_read_again(tmp_path: Path) -> None:
    clips = [row(0, audio={"bytes": None, "path": "late.wav"})]
    with pytest.raises(ValueError, match="clip0: unreadable"):
        stored(tmp_path, clips)
    soundfile.write(tmp_path / "late.wav", tone(), 16_000)
    assert len(load_corpus([tmp_path / "corpus.parquet"], tmp_path / "cache")) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": lambda i: "twin"}, "'twin'.*unique"),
        ({"id": lambda i: None}, "None.*unique"),
        ({"split": lambda i: "dev"}, "split 'dev' is not one of train, val, test"),
        ({"split": lambda i: None}, "split None"),
        ({"speaker_id": lambda i: "ann"}, "speaker 'ann' is in the splits train and val"),
    ],
)
def test_wrong_columns_are_named(tmp_path: Path, changes: dict[str, Callable[[int], Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stored(tmp_path, rows(6, **changes))
    assert not (tmp_path / "cache").exists()  # refused before anything is decoded


def test_wrong_files_are_named(tmp_path: Path) -> None:
    path, cache = tmp_path / "c.parquet", tmp_path / "cache"
    with pytest.raises(ValueError, match="no corpus file"):
        load_corpus([], cache)
    with pytest.raises(ValueError, match=r"c\.parquet is not a file"):
        load_corpus([path], cache)
    path.write_text("id,split")
    with pytest.raises(ValueError, match="not a Parquet file"):
        load_corpus([path], cache)
    pq.write_table(pa.Table.from_pylist(rows(3), SCHEMA).drop_columns(["speaker_id", "audio"]), path)
    with pytest.raises(ValueError, match="lacks the columns speaker_id, audio"):
        load_corpus([path], cache)
    pq.write_table(SCHEMA.empty_table(), path)
    with pytest.raises(ValueError, match="has no rows"):
        load_corpus([path], cache)
    table = pa.Table.from_pylist(rows(3), SCHEMA)
    pq.write_table(table.set_column(5, "audio", pa.array([b"a", b"b", b"c"])), path)
    with pytest.raises(ValueError, match="column audio is binary"):
        load_corpus([path], cache)


def two_files(folder: Path, one: str, other: str) -> Corpus:
    """The same clips, ids and speakers in two files; the audio differs."""
    for name, hertz in ((one, 300.0), (other, 500.0)):
        (folder / name).parent.mkdir(exist_ok=True)
        clips = [{**clip, "audio": {"bytes": encoded(tone(hertz=hertz + i)), "path": None}} for i, clip in enumerate(rows(12))]
        write_corpus(folder / name, clips)
    return load_corpus([folder / one, folder / other], folder / "cache")


def test_speakers_and_ids_belong_to_their_corpus_and_keywords_do_not(tmp_path: Path) -> None:
    corpus = two_files(tmp_path, "own.parquet", "libri.parquet")
    assert len(corpus) == 24 and len(set(corpus.speakers)) == 2 * 6
    assert {"own:train0", "libri:train0"} <= set(corpus.speakers)
    assert corpus.keyword_labels == ("no", "yes") and corpus.remarks == (
        "2 keywords are in two corpora and taken as the same: no, yes",
    )
    assert describe(corpus)["remarks"] == list(corpus.remarks)


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    corpus = two_files(tmp_path, "a/speech.parquet", "b/speech.parquet")
    assert corpus.short_names == ("a-speech", "b-speech")
    assert len(set(corpus.speakers)) == 12 and {"a-speech:train0", "b-speech:train0"} <= set(corpus.speakers)


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1), max_size=5, unique=True))
def test_short_names_differ_and_name_metrics(names: list[str]) -> None:
    short = short_names(names)
    assert len(set(short)) == len(short) == len(names)
    assert all(re.fullmatch(r"[\w.-]{1,60}", name) for name in short)


def test_several_corpora_are_described_one_by_one(tmp_path: Path) -> None:
    content = describe(two_files(tmp_path, "own.parquet", "libri.parquet"))
    assert list(content["corpora"]) == ["own", "libri"]
    assert [(found["clips"], found["keywords"], found["speakers"]) for found in content["corpora"].values()] == [(12, 2, 6)] * 2
    assert "corpora" not in describe(stored(tmp_path, rows(6)))


def test_shards_are_one_corpus(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="id 'clip0' is null or given to several clips"):
        two_files(tmp_path, "data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet")
    for number, part in enumerate((rows(12)[:6], rows(12)[6:])):
        write_corpus(tmp_path / f"s/train-0000{number}-of-00002.parquet", part)
    corpus = load_corpus(sorted((tmp_path / "s").glob("*.parquet")), tmp_path / "cache")
    assert "train0" in corpus.speakers and len(set(corpus.speakers)) == 6 and not corpus.remarks


def test_labels_come_from_train_and_bind_the_others(tmp_path: Path) -> None:
    assert stored(tmp_path, rows(6)).keyword_labels == ("no", "yes")
    corpus = stored(tmp_path, rows(6, keyword=lambda i: "new" if i == 4 else "yes"))
    with pytest.raises(ValueError, match="'new' is in val or test but not in train"):
        _ = corpus.keyword_labels


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": lambda i: "train", "speaker_id": str}, "no clip in split 'val'"),
        ({"split": lambda i: "val", "speaker_id": str}, "no clip in split 'train'"),
        ({"keyword": lambda i: "yes"}, r"'train' has 1 keywords \['yes'\]"),
        ({"keyword": lambda i: None}, "'train' has 0 keywords"),
        ({"keyword": lambda i: row(i)["keyword"] if i % 3 == 0 else None}, "no clip of split 'val' has a keyword"),
        ({"speaker_id": lambda i: f"s{i % 3}"}, r"split 'train' has 1 speakers \['s0'\]"),
        ({"speaker_id": lambda i: "v" if i % 3 == 1 else row(i)["speaker_id"]}, "split 'val' has 1 speakers"),
        ({"speaker_id": lambda i: None}, "'train' has 0 speakers"),
    ],
)
def test_what_cannot_be_trained_on(tmp_path: Path, changes: dict[str, Callable[[int], Any]], message: str) -> None:
    check_trainable(stored(tmp_path, rows(12)))
    with pytest.raises(ValueError, match=message):
        check_trainable(stored(tmp_path, rows(12, **changes)))


def test_description_counts_by_hand(tmp_path: Path) -> None:
    clips = rows(12, audio=lambda i: {"bytes": encoded(tone(2.0)), "path": None})
    found = describe(stored(tmp_path, clips, synthetic=True))
    split = {"clips": 4, "hours": pytest.approx(8 / 3600), "keywords": 2, "speakers": 2}
    assert found["splits"] == {"train": split, "val": split, "test": split}
    assert found["total"] == {"clips": 12, "hours": pytest.approx(24 / 3600), "keywords": 2, "speakers": 6}
    assert found["synthetic"] is True
    assert found["skipped"] == []
    assert describe(stored(tmp_path, clips))["synthetic"] is False


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    def broken() -> Any:
        yield row(0)
        raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        write_corpus(tmp_path / "c.parquet", broken())
    with pytest.raises(ValueError, match="no rows"):
        write_corpus(tmp_path / "c.parquet", [])
    assert list(tmp_path.iterdir()) == []


def test_written_files_have_the_format(tmp_path: Path) -> None:
    assert write_corpus(tmp_path / "c.parquet", rows(3)) == 3
    schema = pq.read_schema(tmp_path / "c.parquet")
    assert schema.equals(SCHEMA)
    assert pq.read_table(tmp_path / "c.parquet").to_pylist()[1]["audio"]["path"] == "1.wav"


def test_real_files(tmp_path: Path) -> None:
    paths = [REAL / "librispeech_251_speakers.parquet", REAL / "background_noise.parquet"]
    if not all(path.is_file() for path in paths):
        pytest.skip(f"no real speech at {REAL}")
    corpus = load_corpus(paths, tmp_path)
    durations = np.concatenate([pq.read_table(path, columns=["duration_s"])["duration_s"].to_numpy() for path in paths])
    assert len(corpus) == 253
    assert corpus.skipped == ()
    np.testing.assert_allclose(corpus.lengths / 16_000, durations, atol=1e-3)
    assert len(corpus.rows("train", with_speaker=True)) == 251
    assert np.abs(corpus.clip(252)).max() > 0.01
