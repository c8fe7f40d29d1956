"""Public corpora in miniature, in the layouts of their archives: what is imported, and what is said of one that is not whole."""

import io
import math
import shutil
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from scipy.signal import correlate
from torchaudio.datasets import librispeech, speechcommands, voxceleb1

from trainers.importing import speech_commands
from trainers.importing.layouts import import_librispeech, import_voxceleb1
from trainers.importing.speech_commands import WORDS, import_speech_commands
from trainers.speech import shards
from trainers.speech.files import lines_of
from trainers.speech.loading import load_corpus
from trainers.speech.trial_lists import load_trials

OTHERS = ("bed", "cat", "marvin")
SPEAKERS = {f"{i}{i}cd08{i}a": split for i, split in enumerate(("train", "train", "train", "train", "val", "test"))}
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> NoReturn:
        raise AssertionError("a test went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for module in (librispeech, speechcommands, voxceleb1):
        monkeypatch.setattr(module, "download_url_to_file", refuse)


def speech(path: Path, samples: int = 3_200, rate: int = 16_000, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, RNG.uniform(-0.5, 0.5, (samples, channels)), rate, subtype="PCM_16")


def speech_commands_tree(folder: Path, others: tuple[str, ...] = OTHERS) -> Path:
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for word in (*WORDS, *others):
        for speaker, split in SPEAKERS.items():
            for take in range(2):
                name = f"{word}/{speaker}_nohash_{take}.wav"
                speech(folder / name)
                lists[split].append(name)
    (folder / "validation_list.txt").write_text("\n".join(lists["val"]) + "\n")
    (folder / "testing_list.txt").write_text("\n".join(lists["test"]) + "\n")
    speech(folder / "_background_noise_/white_noise.wav", 40_000)
    speech(folder / "_background_noise_/doing_the_dishes.wav", 16_001)
    for name in ("README.md", "LICENSE", "_background_noise_/README.md"):
        (folder / name).write_text("about")
    return folder


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root; no test changes it."""
    root = tmp_path_factory.mktemp("commands")
    speech_commands_tree(root / "SpeechCommands" / "speech_commands_v0.02")
    return root


@pytest.fixture
def own(commands: Path, tmp_path: Path) -> Path:
    """A copy of the corpus's folder, to be damaged."""
    shutil.copytree(commands / "SpeechCommands", tmp_path / "root" / "SpeechCommands")
    return tmp_path / "root" / "SpeechCommands" / "speech_commands_v0.02"


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in pq.read_table(path).to_pylist()}


def nothing_is_left(out: Path) -> bool:
    return not [path for path in out.parent.iterdir() if out.name in path.name]


def test_speech_commands_all_words(commands: Path, tmp_path: Path) -> None:
    report = import_speech_commands(commands, tmp_path / "out", classes="all")
    assert report.clips == {"train": 104, "val": 26, "test": 26}
    assert report.keywords == tuple(sorted((*WORDS, *OTHERS)))
    assert (report.speakers, report.skipped, report.duplicates, report.remarks) == (6, (), (), ())
    folder = commands / "SpeechCommands/speech_commands_v0.02"
    for name, row in rows_of(tmp_path / "out").items():
        word, file = name.split("/")
        assert (row["keyword"], row["speaker_id"], row["split"]) == (word, file.split("_")[0], SPEAKERS[file.split("_")[0]])
        assert row["audio"] == {"bytes": (folder / name).read_bytes(), "path": name}
        assert row["duration_s"] == pytest.approx(0.2)
    assert len(load_corpus([tmp_path / "out"], tmp_path / "cache")) == 156


def test_speech_commands_twelve_classes(commands: Path, tmp_path: Path) -> None:
    import_speech_commands(commands, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    counts = Counter((row["split"], row["keyword"]) for row in rows.values())
    for split, wanted in (("train", 8), ("val", 2), ("test", 2)):
        assert {counts[split, word] for word in WORDS} == {wanted}
        extra = math.ceil(10 * wanted / 10)  # a tenth of ten words
        assert counts[split, "_unknown_"] == counts[split, "_silence_"] == extra
    assert len(counts) == 3 * 12
    for name, row in rows.items():
        if row["keyword"] == "_unknown_":
            assert name.split("/")[0] in OTHERS
            assert row["speaker_id"] in name
    corpus = load_corpus([tmp_path / "out"], tmp_path / "cache")
    assert len(corpus) == 144
    assert corpus.keyword_labels == tuple(sorted((*WORDS, "_silence_", "_unknown_")))


def test_silence_is_a_second_of_noise_at_a_volume(commands: Path, tmp_path: Path) -> None:
    import_speech_commands(commands, tmp_path / "out")
    folder = commands / "SpeechCommands/speech_commands_v0.02/_background_noise_"
    recordings = [soundfile.read(path, dtype="int16")[0].astype(float) for path in sorted(folder.glob("*.wav"))]
    silences = [row for row in rows_of(tmp_path / "out").values() if row["keyword"] == "_silence_"]
    volumes, found = [], Counter[int]()
    for row in silences:
        assert row["speaker_id"] is None
        x, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="int16")
        assert (len(x), rate) == (16_000, 16_000)
        matches = [correlate(recording, x.astype(float), "valid") for recording in recordings]
        which = int(np.argmax([match.max() for match in matches]))
        piece = recordings[which][matches[which].argmax() :][:16_000]
        volume = (x @ piece) / (piece @ piece)
        assert np.abs(x - volume * piece).max() < 0.6  # rounded
        volumes.append(volume)
        found[which] += 1
    assert 0 < min(volumes) < max(volumes) < 1
    assert len(set(volumes)) == len(silences) == 12
    assert len(found) == 2


def test_the_seed_decides_what_is_drawn(commands: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        import_speech_commands(commands, tmp_path / name, seed=seed)
    a, b, c = (rows_of(tmp_path / name) for name in "abc")
    assert a == b
    assert {name for name in a if name.startswith(WORDS)} == {name for name in c if name.startswith(WORDS)}
    assert set(a) != set(c)
    assert a["_silence_/test/0000.wav"]["audio"] != c["_silence_/test/0000.wav"]["audio"]


def test_both_versions_and_every_way_to_name_the_folder(tmp_path: Path) -> None:
    old = speech_commands_tree(tmp_path / "data" / "speech_commands_v0.01", others=("bed",))
    reports = [import_speech_commands(root, tmp_path / f"{i}") for i, root in enumerate((old, tmp_path / "data"))]
    assert reports[0] == reports[1]
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()
    (tmp_path / "data/SpeechCommands/speech_commands_v0.02").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"has .*v0\.01 and .*v0\.02: name one of them"):
        import_speech_commands(tmp_path / "data", tmp_path / "out")


def damaged_commands() -> Iterator[Any]:
    def case(name: str, message: str, classes: str = "12") -> Any:
        return pytest.param(globals()[name], message, classes, id=name)

    yield case("no_list", r"testing_list\.txt is missing: it is in http.*v0\.02\.tar\.gz")
    yield case("half_of_a_word", r"looks half downloaded: 2 of 26 clips of testing_list\.txt are missing, as yes/55cd085a_nohash_0")
    yield case("no_noise", r"looks half downloaded: _background_noise_/\*\.wav is missing")
    yield case("short_noise", r"white_noise\.wav has 16000 Hz, 1 channels, 0\.5 s; the corpus has 16000 Hz mono, 1 s or more")
    yield case("torn_noise", r"white_noise\.wav cannot be read")
    yield case("no_training_clips", "it has no training clip of go, off$")
    yield case("no_training_clips", "it has no training clip of go, off$", "all")
    yield case("no_other_words", "it has no training clip of _unknown_")
    yield case("a_clip_in_both_lists", r"yes/44cd084a_nohash_0\.wav is in both validation_list\.txt and testing_list\.txt")
    yield case("a_speaker_in_two_splits", "1 of 6 speakers, as 44cd084a, are in two splits")
    yield case("an_odd_name", r"is not as in the corpus: .*'first'")
    yield case("an_odd_line", r"testing_list\.txt is not as in the corpus")
    yield case("a_line_that_leaves", r"testing_list\.txt is not as in the corpus: .*out_nohash_0\.wav")


def no_list(folder: Path) -> None:
    (folder / "testing_list.txt").unlink()


def half_of_a_word(folder: Path) -> None:
    for path in sorted((folder / "yes").iterdir())[10:]:
        path.unlink()


def no_noise(folder: Path) -> None:
    shutil.rmtree(folder / "_background_noise_")


def short_noise(folder: Path) -> None:
    speech(folder / "_background_noise_/white_noise.wav", 8_000)


def torn_noise(folder: Path) -> None:
    (folder / "_background_noise_/white_noise.wav").write_bytes(b"RIFF")


def no_training_clips(folder: Path) -> None:
    for path in folder.glob("off/[0-3]*.wav"):
        path.unlink()
    for path in folder.glob("go/[0-3]*.wav"):
        path.unlink()


def no_other_words(folder: Path) -> None:
    for name in OTHERS:
        shutil.rmtree(folder / name)
    for path in folder.glob("*_list.txt"):
        path.write_text("".join(line for line in path.open() if not line.startswith(OTHERS)))


def a_clip_in_both_lists(folder: Path) -> None:
    with (folder / "testing_list.txt").open("a") as file:
        file.write("yes/44cd084a_nohash_0.wav\n")


def a_speaker_in_two_splits(folder: Path) -> None:
    path = folder / "validation_list.txt"
    path.write_text("\n".join(path.read_text().splitlines()[1:]))


def an_odd_name(folder: Path) -> None:
    speech(folder / "yes/00cd080a_nohash_first.wav")


def an_odd_line(folder: Path) -> None:
    with (folder / "testing_list.txt").open("a") as file:
        file.write("yes\n")


def a_line_that_leaves(folder: Path) -> None:
    speech(folder / "../../../out_nohash_0.wav")
    with (folder / "testing_list.txt").open("a") as file:
        file.write("../../../out_nohash_0.wav\n")


@pytest.mark.parametrize(("damage", "message", "classes"), damaged_commands())
def test_damaged_speech_commands(own: Path, tmp_path: Path, damage: Any, message: str, classes: str) -> None:
    damage(own)
    with pytest.raises(ValueError, match=message) as refused:
        import_speech_commands(own, tmp_path / "out.parquet", classes=classes)
    assert "\n" not in str(refused.value)
    assert nothing_is_left(tmp_path / "out.parquet")


def test_a_root_without_the_corpus(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"SpeechCommands/speech_commands_v0\.02 is missing: unpack http.*\.tar\.gz there"):
        import_speech_commands(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        import_speech_commands(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ValueError, match="classes is '35'"):
        import_speech_commands(tmp_path, tmp_path / "out", classes="35")


def test_few_speakers_of_two_splits_lose_their_name(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech_commands, "LARGEST_SHARED", 0.2)
    a_speaker_in_two_splits(own)
    report = import_speech_commands(own, tmp_path / "out", classes="all")
    assert report.remarks == ("1 speakers, as 44cd084a, are in two splits: their clips have no speaker",)
    rows = rows_of(tmp_path / "out")
    assert Counter(row["split"] for row in rows.values() if row["speaker_id"] is None) == {"train": 1, "val": 25}
    assert all((row["speaker_id"] is None) == ("44cd084a" in name) for name, row in rows.items())
    load_corpus([tmp_path / "out"], tmp_path / "cache")


def test_a_clip_of_another_form_is_a_bad_one(own: Path, tmp_path: Path) -> None:
    speech(own / "yes/00cd080a_nohash_0.wav", rate=44_100, channels=2)
    report = import_speech_commands(own, tmp_path / "out", classes="all")
    assert report.skipped == (("yes/00cd080a_nohash_0.wav", "44100 Hz, 2 channels; the corpus has 16000 Hz mono"),)
    assert "yes/00cd080a_nohash_0.wav" not in rows_of(tmp_path / "out")
    speech(own / "yes/00cd080a_nohash_1.wav", rate=22_050)
    with pytest.raises(ValueError, match=r"2 of 156 clips cannot be used, more than 1%.*22050 Hz mono; the corpus has 16000"):
        import_speech_commands(own, tmp_path / "refused", classes="all")
    assert nothing_is_left(tmp_path / "refused")


def test_a_duplicate_and_a_corrupt_clip(own: Path, tmp_path: Path) -> None:
    shutil.copy(own / "no/55cd085a_nohash_1.wav", own / "no/00cd080a_nohash_0.wav")
    shutil.copy(own / "up/11cd081a_nohash_0.wav", own / "up/11cd081a_nohash_1.wav")
    (own / "go/55cd085a_nohash_0.wav").write_bytes(b"RIFF....")
    report = import_speech_commands(own, tmp_path / "out", classes="all")
    assert report.duplicates == (
        ("no/00cd080a_nohash_0.wav", "the same file as no/55cd085a_nohash_1.wav, which is in test"),
        ("up/11cd081a_nohash_1.wav", "the same file as up/11cd081a_nohash_0.wav"),
    )
    assert [clip for clip, _ in report.skipped] == ["go/55cd085a_nohash_0.wav"]
    assert report.clips == {"train": 102, "val": 26, "test": 25}


def test_an_interrupted_import_of_a_layout_goes_on(commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_CLIPS", 40)

    def stop(done: int, total: int) -> None:
        if done == 90:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_speech_commands(commands, tmp_path / "out", progress=stop)
    assert not (tmp_path / "out").exists()
    calls: list[int] = []
    report = import_speech_commands(commands, tmp_path / "out", progress=lambda done, total: calls.append(done))
    assert calls == [40, 80, *range(81, 145)]
    assert import_speech_commands(commands, tmp_path / "whole") == report
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


def voxceleb_tree(root: Path, developers: int = 8) -> Path:
    speakers = [f"id1{i:04}" for i in range(1, developers + 1)] + ["id10270", "id10271"]
    for speaker in speakers:
        for video in ("5r0dWxy17C8", "x6uYqmx31kE"):
            for take in (1, 2, 3):
                speech(root / "wav" / speaker / video / f"{take:05}.wav")
    a, b = (f"{speaker}/{{}}/00001.wav" for speaker in speakers[-2:])
    pairs = [(1, a, a), (0, a, b), (1, b, b), (0, b, a)]
    lines = [f"{label} {enrol.format('5r0dWxy17C8')} {test.format('x6uYqmx31kE')}" for label, enrol, test in pairs]
    (root / "veri_test.txt").write_text("\n".join(lines) + "\n")
    return root


def test_voxceleb1(tmp_path: Path) -> None:
    root, out, trials = voxceleb_tree(tmp_path / "vox"), tmp_path / "out", tmp_path / "trials"
    report = import_voxceleb1(root, out, trials=trials)
    assert report.clips == {"train": 36, "val": 12, "test": 12}
    assert (report.speakers, report.keywords) == (10, ())
    assert report.remarks == (f"4 trials in {trials}, 0 of clips that were left out are not",)
    rows = rows_of(out)
    assert rows["id10270/x6uYqmx31kE/00003.wav"]["split"] == "test"  # no trial names it
    assert all(row["speaker_id"] == name.split("/")[0] and row["keyword"] is None for name, row in rows.items())
    assert {row["speaker_id"] for row in rows.values() if row["split"] == "test"} == {"id10270", "id10271"}
    name = "id10001/5r0dWxy17C8/00002.wav"
    assert rows[name]["audio"]["bytes"] == (root / "wav" / name).read_bytes()
    corpus = load_corpus([out], tmp_path / "cache")
    found = load_trials(trials, corpus)
    assert sorted(found) == ["test"]
    assert found["test"].same.tolist() == [True, False, True, False]
    assert corpus.ids[found["test"].enrol[0]] == "id10270/5r0dWxy17C8/00001.wav"
    assert corpus.ids[found["test"].test[1]] == "id10271/x6uYqmx31kE/00001.wav"


def test_voxceleb1_draws_validation_speakers_by_the_seed(tmp_path: Path) -> None:
    root = voxceleb_tree(tmp_path / "vox")
    drawn = set()
    for seed in range(5):
        import_voxceleb1(root, out := tmp_path / f"{seed}", seed=seed)
        drawn.add(frozenset(row["speaker_id"] for row in rows_of(out).values() if row["split"] == "val"))
    assert len(drawn) > 1
    assert {len(speakers) for speakers in drawn} == {2}


def test_voxceleb1_trials_of_clips_left_out_are_left_out(tmp_path: Path) -> None:
    root = voxceleb_tree(tmp_path / "vox", developers=18)
    listed, other = root / "wav/id10270/5r0dWxy17C8/00001.wav", root / "wav/id10001/5r0dWxy17C8/00001.wav"
    shutil.copy(listed, other)
    shutil.copy(listed, listed.with_name("00000.wav"))  # sorts before its twin, but has no trials
    (root / "wav/id10271/x6uYqmx31kE/00001.wav").write_bytes(b"")
    report = import_voxceleb1(root, tmp_path / "out", trials=tmp_path / "trials")
    assert report.skipped == (("id10271/x6uYqmx31kE/00001.wav", "empty"),)
    assert dict(report.duplicates)["id10270/5r0dWxy17C8/00000.wav"] == "the same file as id10270/5r0dWxy17C8/00001.wav"
    assert "which is in test" in dict(report.duplicates)["id10001/5r0dWxy17C8/00001.wav"]
    assert report.remarks[0].startswith("2 trials") and "2 of clips that were left out" in report.remarks[0]
    found = load_trials(tmp_path / "trials", load_corpus([tmp_path / "out"], tmp_path / "cache"))
    assert found["test"].same.tolist() == [True, False]


LIST = "veri_test.txt"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"veri_test\.txt is missing: get it from https://www\.robots"),
        ("", "is empty: get it from"),
        ("1 id10270/5r0dWxy17C8/00001.wav\n", "veri_test.txt is not as in the corpus"),
        ("same id10270/5r0dWxy17C8/00001.wav id10270/x6uYqmx31kE/00001.wav\n", "veri_test.txt is not as in the corpus"),
        ("2 id10270/5r0dWxy17C8/00001.wav id10270/x6uYqmx31kE/00001.wav\n", "is not as in the corpus: 2 id10270"),
        ("1 id10270/5r0dWxy17C8/00001.wav id10271/x6uYqmx31kE/00001.wav\n", "is not as in the corpus: 1 id10270"),
        (
            "1 id10270/5r0dWxy17C8/00001.wav id10270/x6uYqmx31kE/00009.wav\n",
            "half downloaded: 1 of 2 clips of veri_test.txt are missing, as id10270/x6uYqmx31kE/00009.wav",
        ),
    ],
)
def test_voxceleb1_lists_that_do_not_fit(tmp_path: Path, text: str | None, message: str) -> None:
    root, out = voxceleb_tree(tmp_path / "vox"), tmp_path / "out"
    (root / LIST).unlink()
    if text is not None:
        (root / LIST).write_text(text)
    with pytest.raises(ValueError, match=message) as refused:
        import_voxceleb1(root, out, trials=tmp_path / "out-trials")
    assert "\n" not in str(refused.value)
    assert nothing_is_left(out)


def test_voxceleb1_half_unpacked(tmp_path: Path) -> None:
    root, out = voxceleb_tree(tmp_path / "vox", developers=3), tmp_path / "out"
    with pytest.raises(ValueError, match=r"half downloaded: 3 speakers beside those of veri_test\.txt; at least 4"):
        import_voxceleb1(root, out)
    shutil.rmtree(root / "wav")
    with pytest.raises(ValueError, match=r"wav is missing: unpack vox1_dev_wav\.zip and vox1_test_wav\.zip"):
        import_voxceleb1(root, out)
    (tmp_path / "trials").write_text("precious")
    with pytest.raises(ValueError, match="trials exists"):
        import_voxceleb1(root, out, trials=tmp_path / "trials")
    with pytest.raises(ValueError, match="out is given twice"):
        import_voxceleb1(root, out, trials=out)
    assert nothing_is_left(out)


def librispeech_tree(root: Path) -> Path:
    chapters = {"train-clean-100": ("103/1240", "26/495"), "dev-clean": ("84/121123", "174/50561"), "test-other": ("367/130732",)}
    for subset, names in chapters.items():
        for name in names:
            ids = [f"{name.replace('/', '-')}-{take:04}" for take in range(3)]
            for clip in ids:
                speech(root / "LibriSpeech" / subset / name / f"{clip}.flac")
            text = "".join(f"{clip} CHAPTER ONE\n" for clip in ids)
            (root / "LibriSpeech" / subset / name / f"{name.replace('/', '-')}.trans.txt").write_text(text)
    (root / "LibriSpeech" / "SPEAKERS.TXT").write_text(";ID")
    return root


def test_librispeech(tmp_path: Path) -> None:
    root, out = librispeech_tree(tmp_path / "in"), tmp_path / "out"
    report = import_librispeech(root, out, ["train-clean-100", "dev-clean", "test-other", "dev-clean"])
    assert report.clips == {"train": 6, "val": 6, "test": 3}
    assert (report.speakers, report.keywords) == (5, ())
    row = rows_of(out)[name := "train-clean-100/103/1240/103-1240-0000.flac"]
    assert (row["split"], row["speaker_id"], row["keyword"]) == ("train", "103", None)
    assert row["audio"] == {"bytes": (root / "LibriSpeech" / name).read_bytes(), "path": name}
    assert len(load_corpus([out], tmp_path / "cache")) == 15
    assert import_librispeech(root / "LibriSpeech", tmp_path / "one", ["dev-clean"]).clips == {"val": 6}


def test_damaged_librispeech(tmp_path: Path) -> None:
    root, out = librispeech_tree(tmp_path / "in"), tmp_path / "out"
    chapter = root / "LibriSpeech/dev-clean/84/121123"

    def refused(message: str, *subsets: str) -> None:
        with pytest.raises(ValueError, match=message) as error:
            import_librispeech(root, out, subsets)
        assert "\n" not in str(error.value)
        assert nothing_is_left(out)

    refused(r"train-clean-360 is missing: unpack https://www\.openslr\.org/.*train-clean-360\.tar\.gz in", "train-clean-360")
    refused("subset is 'train'; LibriSpeech has train-clean-100", "dev-clean", "train")
    refused("subset is 'not given'")
    (chapter / "84-121123-0001.flac").unlink()
    lost = r"half downloaded: 1 of 6 clips of the transcripts are missing, as dev-clean/84/121123/84-121123-0001\.flac"
    refused(lost, "train-clean-100", "dev-clean")
    (chapter / "84-121123.trans.txt").write_text("84-121123-0000 ONE\n")
    refused("half downloaded: Translation not found for 84-121123-0002", "dev-clean")
    (chapter / "84-121123.trans.txt").unlink()
    refused("half downloaded: .*84-121123.trans.txt", "dev-clean")
    shutil.rmtree(root / "LibriSpeech/dev-clean")
    (root / "LibriSpeech/dev-clean").mkdir()
    refused("dev-clean looks half downloaded: it has no clips", "dev-clean")


def test_lists_that_an_editor_has_changed_are_read_as_they_were(tmp_path: Path) -> None:
    """A byte order mark, the line ends of Windows, blank lines."""
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa b\r\n\r\nc\r\n\r\n")
    assert lines_of(tmp_path / "list.txt") == ["a b", "c"]
