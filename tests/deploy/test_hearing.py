"""An export hears speech by its own script; what was chosen stands in manifest and card, and the script decides by it."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from listen import Settings

from deploy.bundle import verify_bundle, write_bundle
from deploy.card import voice_lines
from deploy.hearing import REFRACTORY, UNCHOSEN, Speech, hear, listening
from deploy.target import load_target
from search_spaces.architecture import Architecture
from trainers.networks.student import Student, save_student
from trainers.scoring import thresholds
from trainers.scoring.streams import recorded_streams, speech_streams
from trainers.speech.corpora import Corpus
from trainers.teacher.teacher import Teacher

MANY = 1e5  # an hour: what a few seconds of speech support


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Corpus, tiny_teacher: Teacher) -> Path:
    """With random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("student")
    small = Architecture(front_end="mel", front_width=32, frame_stride=2, width=48, heads=(1,), ffn_dims=(96,), kept_layers=(1,))
    save_student(Student(small, tiny_teacher.geometry, tiny_corpus.keyword_labels), folder)
    return folder


def exported(student: Path, out: Path, speech: Speech | None) -> Path:
    clips = (0.1 * np.random.default_rng(0).standard_normal((2, 16_080))).astype(np.float32)
    choose = functools.partial(listening, speech=speech) if speech else None
    return write_bundle(student, out, target=load_target("host"), clips=clips, synthetic=True, listening=choose).folder


@pytest.fixture(scope="module")
def bundle(student: Path, tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    speech = Speech(corpus=tiny_corpus, noise=None, rates=(MANY, 1.0))
    return exported(student, tmp_path_factory.mktemp("exports") / "listening", speech)


def test_thresholds_stand_in_the_manifest_with_what_they_showed_on_test_speakers(bundle: Path, tiny_corpus: Corpus) -> None:
    manifest = verify_bundle(bundle).manifest
    many, one = manifest["keyword_thresholds"]
    words = {keyword for keyword in tiny_corpus.keyword_labels if not keyword.startswith("_")}
    assert set(many["keywords"]) == words and many["hours_of_negatives"] >= 0
    assert one["unsupported"].endswith("hours of negatives; 3 are needed")
    (shown,) = manifest["stream"]
    spoken = tiny_corpus.keywords[tiny_corpus.rows("test", with_keyword=True)]
    assert shown["chosen_for"] == MANY and shown["words"] == sum(keyword in words for keyword in spoken)
    assert shown["missed"]["low"] <= shown["missed"]["value"] <= shown["missed"]["high"]
    assert set(shown["missed_by_snr_db"]) == {"20", "10", "5", "0"}


def test_thresholds_of_voices_are_chosen_on_what_the_script_tells_in_streams(
    bundle: Path, tiny_corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = verify_bundle(bundle).manifest
    assert all("trials of different speakers" in entry["unsupported"] for entry in manifest["stream_voice_thresholds"])
    assert manifest["stream_voices"] == [] and "in streams of validation speakers" not in (bundle / "README.md").read_text()
    monkeypatch.setattr(thresholds, "ENOUGH", 0.1)  # trials: how many events come of random weights depends on the machine
    found = listening(bundle, Speech(corpus=tiny_corpus, noise=None, rates=(MANY, 1.0)))
    one, five, ten = found["stream_voice_thresholds"]
    is_stated = ["threshold" in entry for entry in (one, five, ten)]
    assert [entry["false_acceptance"] for entry in (one, five)] == [1.0, 5.0] and is_stated == sorted(is_stated)
    assert -1 <= ten["threshold"] <= 1 and 0 <= ten["missed"] <= 100
    shown = found["stream_voices"][-1]
    assert shown["chosen_for"] == 10.0 and shown["voices"] > 1 and shown["events"] > 0
    assert shown["missed"]["low"] <= shown["missed"]["value"] <= shown["missed"]["high"]
    assert "in streams of validation speakers" in "".join(voice_lines({**manifest, **found}))


def test_the_card_tells_both_rates(bundle: Path) -> None:
    card = (bundle / "README.md").read_text()
    assert "- 1 false alarms an hour of each keyword: unsupported" in card and "Missed by signal-to-noise ratio" in card
    assert "was not chosen on other speech" not in card


def test_a_room_s_recording_counts_as_negatives(student: Path, tiny_corpus: Corpus, tmp_path: Path) -> None:
    room = recorded_streams((1000 * np.random.default_rng(0).standard_normal(16_000 * 60)).astype(np.int16))
    plain, more = (Speech(corpus=tiny_corpus, noise=None, negatives=part, rates=(180.0,)) for part in ([], room))
    assert "unsupported" in listening(exported(student, tmp_path / "plain", None), plain)["keyword_thresholds"][0]
    assert listening(exported(student, tmp_path / "more", None), more)["keyword_thresholds"][0]["hours_of_negatives"] >= 0.02


def test_thresholds_are_chosen_with_the_script_s_own_pause_between_two_events() -> None:
    assert Settings.refractory == REFRACTORY and Settings.threshold == UNCHOSEN


def listened(bundle: Path, *words: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-B", str(bundle / "listen.py"), "-", *words], input=data, capture_output=True)


def test_the_script_decides_by_the_manifest_s_thresholds(bundle: Path, tiny_corpus: Corpus) -> None:
    (stream,) = speech_streams(tiny_corpus, tiny_corpus.rows("test"), None, snr_db=(25.0,))
    chosen = {word: own["threshold"] for word, own in verify_bundle(bundle).manifest["keyword_thresholds"][0]["keywords"].items()}
    heard = hear(bundle, stream)
    expected = sorted(
        (time, word) for word, threshold in chosen.items() if threshold is not None for time in heard.events(word, threshold, 1.0)
    )
    told = [json.loads(line) for line in listened(bundle, data=stream.samples.tobytes()).stdout.splitlines()]
    assert [(event["time"], event["keyword"]) for event in told] == expected
    assert listened(bundle, "--false-alarms", f"{MANY:g}", data=stream.samples.tobytes()).stdout.count(b"\n") == len(told)


def test_a_rate_that_is_not_supported_is_refused_with_those_that_are(bundle: Path, student: Path, tmp_path: Path) -> None:
    refused = listened(bundle, "--false-alarms", "1")
    assert refused.returncode == 2 and b"--false-alarms is 1; the manifest has thresholds for: 100000" in refused.stderr
    assert b"give one of them" in listened(bundle, "--false-alarms", "1", "--threshold", "0.5").stderr
    refused = listened(exported(student, tmp_path / "none", None), "--false-alarms", "1")
    assert b"thresholds for: none" in refused.stderr
