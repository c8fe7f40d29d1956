"""A bundle that listens: windows of a stream, events, the gate, and voices that are enrolled. Scripts run as a user runs them."""

import argparse
import io
import json
import shutil
import signal
import subprocess
import sys
import tracemalloc
import wave
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sources
import torch
from enrol import enrolment_threshold, read_voices, two_groups, voice_threshold
from hypothesis import given
from hypothesis import strategies as st
from listen import Settings, Spent, checked, events, whose
from sources import hops_of, hops_of_file, hops_of_microphone, hops_of_stream

from deploy.bundle import write_bundle
from deploy.export import REFERENCE_GEOMETRY
from deploy.target import load_target
from search_spaces.architecture import EMBEDDING_DIM, Architecture
from trainers.networks.student import Student, save_student
from trainers.scoring.alarms import Heard
from trainers.scoring.streams import recorded_streams

RATE, WINDOW = 16_000, 16_080
LABELS = ["_unknown_", "low", "high"]
MANIFEST: dict[str, Any] = {"sample_rate": RATE, "window": WINDOW}


class Pitches:
    """In place of a model: `low` is a tone of 300 Hz, `high` one of 2 kHz, surely where it fills half the window's second."""

    def run(self, _: object, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        power = np.abs(np.fft.rfft(inputs["audio"][0])) ** 2
        hertz = np.fft.rfftfreq(WINDOW, 1 / RATE)
        tones = [power[np.abs(hertz - tone) < 20].sum() / WINDOW**2 for tone in (300, 2000)]
        embedding = np.array([[1.0, 0.0] if tones[0] > tones[1] else [0.0, 1.0]])
        return [np.array([[4.0, *(1000 * tone for tone in tones)]]), embedding]


def stream(*parts: tuple[float, float], noise: float = 1e-3) -> np.ndarray:
    """Seconds of each pitch, 0 for silence."""
    rng = np.random.default_rng(0)
    tones = [0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE) for seconds, hertz in parts]
    joined = np.concatenate(tones)
    return (joined + noise * rng.standard_normal(len(joined))).astype(np.float32)


def heard(samples: np.ndarray, voices: Any = None, **settings: Any) -> tuple[list[dict[str, Any]], Spent]:
    spent, chosen = Spent(), Settings(**settings)
    hops = hops_of(samples, round(chosen.hop * RATE))
    model: Any = Pitches()
    return list(events(hops, model, MANIFEST, LABELS, voices or {}, chosen, spent)), spent


def test_each_keyword_is_one_event_at_its_time() -> None:
    found, spent = heard(stream((2, 0), (1, 300), (3, 0), (1, 2000), (2, 0)))
    assert [event["keyword"] for event in found] == ["low", "high"]
    assert 2 < found[0]["time"] < 3.5 and 6 < found[1]["time"] < 7.5
    assert all(event["probability"] > 0.9 and event["speaker"] == "unknown" for event in found)
    assert spent.heard == pytest.approx(9.0)


def test_a_keyword_that_goes_on_is_one_event_and_one_said_again_is_another() -> None:
    assert len(heard(stream((1, 0), (5, 300), (1, 0)))[0]) == 1
    assert len(heard(stream((1, 0), (1, 300), (3, 0), (1, 300), (1, 0)))[0]) == 2


@given(st.integers(2000, 9900), st.sampled_from([0.3, 1.0, 2.5]))
def test_thresholds_are_chosen_by_the_rule_that_tells_events(drawn: int, refractory: float) -> None:
    """What was heard without a threshold, and then cut at one, is what the script tells at that one."""
    threshold = (drawn + 0.5) / 10_000  # between two probabilities as they are written
    samples = stream((1, 300), (2, 0), (0.4, 2000), (1, 300), (3, 2000), (0.6, 0), (0.5, 300), (2, 0), noise=0.3)
    told = heard(samples, threshold=threshold, refractory=refractory)[0]
    every = heard(samples, threshold=0.0, refractory=0.0)[0]
    times, words, shares = (np.array([event[name] for event in every]) for name in ("time", "keyword", "probability"))
    found = Heard(stream=recorded_streams(np.zeros(1, np.int16))[0], times=times, keywords=words, probabilities=shares)
    for word in ("low", "high"):
        expected = [event["time"] for event in told if event["keyword"] == word]
        assert found.events(word, threshold, refractory).tolist() == expected


def test_a_keyword_has_a_threshold_of_its_own() -> None:
    samples = stream((2, 0), (1, 300), (3, 0), (1, 2000), (2, 0))
    found, _ = heard(samples, thresholds={"low": np.inf})
    assert [event["keyword"] for event in found] == ["high"]


def test_silence_costs_nothing() -> None:
    _, spent = heard(stream((20, 0), noise=0.01))
    assert spent.windows == 0 and spent.skipped == 200
    _, spent = heard(stream((10, 0), (1, 300), (10, 0), noise=0.01))
    assert 10 <= spent.windows <= 25


def test_what_is_unknown_is_no_event() -> None:
    assert heard(stream((1, 0), (1, 900), (1, 0)))[0] == []


def test_an_event_names_the_nearest_voice() -> None:
    voices = {"ada": np.array([0.9, 0.1]), "bob": np.array([0.1, 0.9])}
    found, _ = heard(stream((2, 0), (1, 300), (3, 0), (1, 2000), (2, 0)), voices, voice=0.5)
    assert [(event["speaker"], event["similarity"]) for event in found] == [("ada", 0.9), ("bob", 0.9)]
    assert whose(np.array([3.0, 3.0]), voices, 0.8) == ("unknown", pytest.approx(0.707, abs=1e-3))
    assert whose(np.array([1.0, 0.0]), {}, 0.5) == ("unknown", None)


@given(st.integers(0, 5000), st.integers(2, 700))
def test_a_stream_is_heard_as_the_recording_is(length: int, size: int) -> None:
    pcm = np.random.default_rng(length).integers(-32768, 32767, length).astype("<i2")
    whole = list(hops_of(pcm.astype(np.float32) / 32768, size))
    for data in (pcm.tobytes(), wav_bytes(pcm)):
        hops = list(hops_of_stream(io.BytesIO(data), RATE, size))
        assert len(hops) == len(whole) and all(np.array_equal(a, b) for a, b in zip(hops, whole))


@pytest.mark.parametrize("frames", [0, 2**31 - 1, 2**30 - 1])
def test_a_header_that_does_not_know_the_length_is_no_end(frames: int) -> None:
    """As of ffmpeg and of recorders that write to a pipe."""
    pcm = np.arange(-400, 400, dtype="<i2")
    data = wav_bytes(pcm)
    endless = data[:40] + (2 * frames).to_bytes(4, "little") + data[44:]
    assert np.array_equal(np.concatenate(list(hops_of_stream(io.BytesIO(endless), RATE, 100))) * 32768, pcm)


def test_a_recording_is_read_as_it_is_heard(tmp_path: Path) -> None:
    """An hour of the model's own rate is not in memory; another rate is resampled first."""
    samples = 0.5 * np.sin(np.arange(60 * RATE) * 0.05)
    path = wav(tmp_path / "minute.wav", samples)
    tracemalloc.start()
    heard = sum(len(hop) for hop in hops_of_file(path, RATE, 1600))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert heard == len(samples) and most < 200_000
    path.write_bytes(wav_bytes(np.ones(8000, "<i2"), rate=8000))
    assert sum(len(hop) for hop in hops_of_file(path, RATE, 1600)) == RATE


class Microphone:
    """In place of PortAudio: sound that comes at once, a gap that it tells of, and then nothing more."""

    PortAudioError = RuntimeError

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks

    def RawInputStream(self, rate: int, size: int, *, channels: int, dtype: str, callback: Callable[..., None]) -> Any:
        for block in range(self.blocks):
            callback(np.full(size, block, "<i2").tobytes(), size, None, "input overflow" if block == 1 else "")
        return nullcontext()


def test_sound_that_a_microphone_loses_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It neither waits for a microphone that is gone nor keeps more than a few seconds of sound."""
    monkeypatch.setattr(sources, "LONGEST_SILENCE", 0.1)
    monkeypatch.setitem(sys.modules, "sounddevice", Microphone(40))
    heard = list[int]()
    with pytest.raises(ValueError, match="has sent nothing"):
        heard.extend(round(hop[0] * 32768) for hop in hops_of_microphone(RATE, 1600))
    said = capsys.readouterr().err
    assert "input overflow" in said and said.count("more slowly than it is spoken to") == 10
    assert heard == list(range(30))


def wav_bytes(pcm: np.ndarray, rate: int = RATE, channels: int = 1, width: int = 2) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as clip:
        clip.setparams((channels, width, rate, 0, "NONE", ""))
        clip.writeframes(pcm.tobytes())
    return file.getvalue()


@pytest.mark.parametrize(
    ("form", "reason"),
    [({"rate": 44_100}, "has 44100 Hz, the model hears 16000"), ({"channels": 2}, "2 channels"), ({"width": 1}, "8 bits a sample")],
)
def test_a_stream_of_another_form_is_refused(form: dict[str, int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        next(hops_of_stream(io.BytesIO(wav_bytes(np.zeros(800, "<i2"), **form)), RATE, 100))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a student with random weights, whose manifest supports two rates of false acceptance."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("student")
    small = Architecture(front_end="mel", front_width=32, frame_stride=2, width=64, heads=(1,), ffn_dims=(96,), kept_layers=(1,))
    save_student(Student(small, REFERENCE_GEOMETRY, tuple(LABELS)), folder)
    clips = (0.1 * np.random.default_rng(0).standard_normal((2, WINDOW))).astype(np.float32)
    thresholds = [
        {"false_acceptance": 1.0, "unsupported": "60 trials of different speakers; 300 are needed"},
        {"false_acceptance": 5.0, "threshold": 0.5, "missed": 9.0},
        {"false_acceptance": 10.0, "threshold": -1.0, "missed": 4.0},
    ]
    out = folder.parent / "exports" / "demo"
    return write_bundle(folder, out, target=load_target("host"), clips=clips, synthetic=True, voice_thresholds=thresholds).folder


def run(script: str, bundle: Path, *words: object, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, str(bundle / f"{script}.py"), *map(str, words)]
    return subprocess.run(command, cwd=bundle.parent, capture_output=True, input=data)


def wav(path: Path, samples: np.ndarray) -> Path:
    path.write_bytes(wav_bytes((samples * 32_767).round().clip(-32_768, 32_767).astype("<i2")))
    return path


@pytest.fixture
def spoken(tmp_path: Path) -> Callable[[int], Path]:
    """A clip with loud and quiet moments."""

    def make(number: int) -> Path:
        rng = np.random.default_rng(number)
        loudness = np.repeat(rng.random(20) ** 3, RATE // 20)
        return wav(tmp_path / f"{number}.wav", 0.4 * loudness * np.sin(np.arange(RATE) * (0.05 + 0.01 * number)))

    return make


def test_the_script_listens_to_a_file_and_to_a_pipe_alike(bundle: Path, tmp_path: Path) -> None:
    samples = stream((1, 0), (1, 300), (2, 0))
    file = wav(tmp_path / "a.wav", samples)
    by_file = run("listen", bundle, file, "--threshold", 0, "--cost")
    assert by_file.returncode == 0, by_file.stderr
    told = [json.loads(line) for line in by_file.stdout.splitlines()]
    assert all(set(event) == {"time", "keyword", "probability", "speaker", "similarity"} for event in told)
    assert b"heard 4.0 s" in by_file.stderr and b"% of one core" in by_file.stderr
    assert run("listen", bundle, "-", "--threshold", 0, data=file.read_bytes()).stdout == by_file.stdout


@pytest.mark.parametrize(
    ("words", "data", "said"),
    [
        (["-", "--hop", "3"], b"", "--hop is 3; it is from 0.02 to the model's window"),
        (["-", "--smooth", "0"], b"", "--smooth is at least 1"),
        (["nothing.wav"], None, "cannot read nothing.wav"),
        (["-", "--voices", "nobody.json"], b"", "there is no file nobody.json"),
        (["-"], wav_bytes(np.zeros(90, "<i2"), rate=8000), "has 8000 Hz, the model hears 16000"),
        (["-"], bytes(64_000), "nothing but silence was heard"),
        (["-"], b"", "the stream ended before anything was heard"),
        (["-"], b"RIFF12", "is cut off"),
        (["-", "--margin", "nan"], b"", "--margin at least 0"),
        (["-"], b"\xff\x7f" * 32_000, "are clipped"),
    ],
)
def test_what_cannot_be_heard_is_told_in_a_line(bundle: Path, words: list[str], data: bytes | None, said: str) -> None:
    done = run("listen", bundle, *words, data=data)
    assert said in done.stderr.decode() and done.stderr.count(b"\n") == 1 and not done.stdout


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"rate": 8000}, "has 8000 Hz: above 4000 Hz the model hears nothing"),
        ({"channels": 2}, "2 channels: their mean is heard"),
    ],
)
def test_what_is_heard_in_part_is_said(bundle: Path, tmp_path: Path, form: dict[str, int], said: str) -> None:
    (tmp_path / "a.wav").write_bytes(wav_bytes((3000 * np.sin(np.arange(16_000) / 20)).astype("<i2"), **form))
    for script in ("listen", "classify"):
        done = run(script, bundle, tmp_path / "a.wav")
        assert done.returncode == 0 and said in done.stderr.decode() and done.stderr.count(b"\n") == 1


def test_a_voice_is_enrolled_listed_and_removed(bundle: Path, tmp_path: Path, spoken: Callable[[int], Path]) -> None:
    voices, clips = tmp_path / "voices.json", [spoken(number) for number in range(3)]
    done = run("enrol", bundle, "Zoë", *clips, "--voices", voices)
    assert "128 numbers that describe the voice in 3 clips, no sound" in done.stdout.decode(), done.stderr
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert np.linalg.norm(read_voices(voices, manifest)["Zoë"]) == pytest.approx(1, abs=1e-4)
    assert list(read_voices(voices, manifest)) == ["Zoë"] and len(voices.read_bytes()) < 4000
    assert run("enrol", bundle, "--list", "--voices", voices).stdout.decode().strip() == "Zoë"
    listened = run("listen", bundle, clips[0], "--voices", voices, "--threshold", 0, "--voice-threshold", -1)
    assert {json.loads(line)["speaker"] for line in listened.stdout.splitlines()} == {"Zoë"}
    assert run("enrol", bundle, "--remove", "Zoë", "--voices", voices).returncode == 0
    assert run("enrol", bundle, "--list", "--voices", voices).stdout.decode().strip() == "nobody is enrolled"
    assert not (bundle / "voices.json").exists()


def test_a_voice_s_threshold_is_that_of_streams_where_it_was_chosen(bundle: Path) -> None:
    """Enrolment goes on comparing clips."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    asked = argparse.Namespace(threshold=None, false_alarms=None, hop=0.1, margin=6.0, smooth=4, refractory=1.0, embedding=False)
    known = {"ada": np.ones(EMBEDDING_DIM, np.float32)}
    for streams, asked.voice_threshold, expected in (
        ([], None, 0.5),
        ([{"false_acceptance": 5.0, "threshold": 0.3, "missed": 9.0}], None, 0.3),
        ([{"false_acceptance": 5.0, "threshold": 0.3, "missed": 9.0}], 0.7, 0.7),
        ([{"false_acceptance": 5.0, "unsupported": "9 trials of different speakers; 60 are needed"}], None, 0.5),
    ):
        assert checked(asked, {**manifest, "stream_voice_thresholds": streams}, known).voice == expected
    assert enrolment_threshold(manifest) == -1.0  # the lowest that is stated
    assert enrolment_threshold({}) is None


def copied(clip: Path) -> Path:
    copy = clip.with_name(f"copy-of-{clip.name}")
    copy.write_bytes(clip.read_bytes())
    return copy


def test_a_clip_that_is_clipped_is_told(bundle: Path, tmp_path: Path) -> None:
    loud = wav(tmp_path / "loud.wav", np.clip(3 * np.sin(np.arange(RATE) / 20), -1, 1))
    assert b"is clipped" in run("classify", bundle, loud).stderr
    assert b"is clipped" not in run("classify", bundle, wav(tmp_path / "soft.wav", 0.5 * np.sin(np.arange(RATE) / 20))).stderr


@pytest.mark.parametrize("key", ["target", "window", "sample_rate", "outputs"])
def test_a_manifest_that_lacks_what_the_scripts_need_is_said_in_a_line(bundle: Path, tmp_path: Path, key: str) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest[key]
    own = tmp_path / "own"
    shutil.copytree(bundle, own)
    (own / "manifest.json").write_text(json.dumps(manifest))
    clip = wav(tmp_path / "clip.wav", 0.5 * np.sin(np.arange(RATE) / 20))
    for script, words in (("classify", [clip]), ("listen", [clip]), ("enrol", ["ada", clip, clip, clip])):
        done = run(script, own, *words)
        assert done.returncode == 2 and b"is damaged: export the model again" in done.stderr
        assert done.stderr.count(b"\n") == 1


def test_what_is_no_voice_is_not_enrolled(bundle: Path, tmp_path: Path, spoken: Callable[[int], Path]) -> None:
    clips = [spoken(number) for number in range(3)]
    noise = [wav(tmp_path / f"noise-{n}.wav", 0.1 * np.random.default_rng(n).standard_normal(RATE)) for n in range(3)]
    in_bursts = np.repeat(np.arange(20) % 4 == 0, RATE // 20)
    bursts = [wav(tmp_path / f"b-{n}.wav", in_bursts * 0.2 * np.random.default_rng(n).standard_normal(RATE)) for n in range(3)]
    silence = wav(tmp_path / "silence.wav", np.zeros(RATE))
    for words, said in (
        (["ada", *clips[:2]], "needs 3 different clips or more, these are 2"),
        (["ada", *clips[:2], clips[0]], "these are 2"),
        (["ada", *clips[:2], copied(clips[0])], "these are 2"),
        (["ada", *clips[:2], tmp_path / "no.wav"], "no.wav: No such file"),
        (["ada", *noise], "sounds like noise or hum"),
        (["ada", *bursts], "sounds like noise or hum"),
        (["ada", *clips, silence], "is silent"),
        (["unknown", *clips], "is no name"),
        (["--remove", "ada"], "ada is not enrolled; known are: nobody"),
        (["bob", "--remove", "ada"], "--remove takes one name; bob was given as well"),
        (["ada", *clips[:2], clips[0].parent / "." / clips[0].name], "these are 2"),
        (["ada", *clips, wav(tmp_path / "short.wav", np.ones(100) / 9)], "too short to tell a voice"),
    ):
        done = run("enrol", bundle, *words, "--voices", tmp_path / "voices.json")
        assert done.returncode == 2 and said in done.stderr.decode() and done.stderr.count(b"\n") == 1
    assert not (tmp_path / "voices.json").exists()


def test_two_voices_are_not_enrolled_as_one(bundle: Path, tmp_path: Path, spoken: Callable[[int], Path]) -> None:
    strict = json.loads((bundle / "manifest.json").read_text())
    strict["voice_thresholds"] = [{"false_acceptance": 10.0, "threshold": 1.0, "missed": 99.0}]
    own = tmp_path / "strict"
    own.mkdir()
    for file in bundle.iterdir():
        (own / file.name).write_bytes(file.read_bytes())
    (own / "manifest.json").write_text(json.dumps(strict))
    clips = [spoken(number) for number in range(3)]
    refused = run("enrol", own, "ada", *clips)
    assert refused.returncode == 2 and b"sound like another voice than the other clips" in refused.stderr
    assert run("enrol", own, "ada", *clips, "--accept").returncode == 0


def test_clips_fall_into_the_voices_that_they_are_of() -> None:
    rng = np.random.default_rng(0)
    for sizes in ((3, 1), (2, 2), (1, 4)):
        voices = np.repeat(np.eye(8)[:2], sizes, 0) + 0.05 * rng.standard_normal((sum(sizes), 8))
        one, similarity = two_groups(voices / np.linalg.norm(voices, axis=1, keepdims=True))
        of_first = np.arange(sum(sizes)) < sizes[0]
        assert np.array_equal(one, of_first) or np.array_equal(one, ~of_first)
        assert similarity < 0.3 and one.sum() <= sum(sizes) / 2
    alike = np.eye(8)[:1] + 0.05 * rng.standard_normal((4, 8))
    assert two_groups(alike / np.linalg.norm(alike, axis=1, keepdims=True))[1] > 0.9


def test_a_reader_that_has_heard_enough_ends_it_quietly(bundle: Path, tmp_path: Path) -> None:
    file = wav(tmp_path / "a.wav", np.concatenate([stream((1, 300), (1, 0)) for _ in range(40)]))
    command = f"{sys.executable} {bundle}/listen.py {file} --threshold 0 --refractory 0 | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.count("\n") == 1


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_a_service_that_is_stopped_says_what_it_heard(bundle: Path, end: signal.Signals) -> None:
    command = [sys.executable, str(bundle / "listen.py"), "-", "--threshold", "0", "--cost"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as service:
        assert service.stdin and service.stdout and service.stderr
        service.stdin.write((stream((1, 0), (2, 300)) * 32_767).astype("<i2").tobytes())
        service.stdin.flush()
        assert b"keyword" in service.stdout.readline()  # it listens
        service.send_signal(end)
        assert service.wait(60) == 0 and b"% of one core" in service.stderr.read()


def test_voices_of_another_model_and_damaged_ones_are_refused(bundle: Path, tmp_path: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    path = tmp_path / "voices.json"
    assert read_voices(path, manifest) == {}
    for content, said in (
        ('{"model": "x", "voices": {}}', "made with another model"),
        ('{"model": "x", "voices": {"ada": {"embedding": [1, 2]}}}', "damaged"),
        ("[]", "damaged"),
        ("{", "damaged"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=said):
            read_voices(path, manifest)


def test_the_next_rate_that_the_manifest_supports_is_taken(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert [voice_threshold(manifest, rate) for rate in (1.0, 5.0, 10.0, 20.0)] == [0.5, 0.5, -1.0, None]
    assert voice_threshold({}, 5.0) is None
