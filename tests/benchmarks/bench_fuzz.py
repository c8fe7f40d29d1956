"""Files that others write, changed at random: each is read, or refused with a `ValueError` of one line. Nothing else may happen.

A mutation changes bytes, or, of JSON and TOML, a value for one of another kind. Formats and what reads them are in `FORMATS`.
`make bench-fuzz` runs ten thousand; the suite runs a few of each.
"""

import argparse
import json
import multiprocessing
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import tomllib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import chdir, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Read = Callable[[Path], object]
ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "build/bench/fuzz.json"
SECONDS = 60  # for one file; an endless loop is a crash
KIT = "0123456789abcdef"  # hash of a kit
MEMORY = 12 << 30  # bytes of address space: what asks for more is a crash
STRANGE: list[Any] = [
    None,
    True,
    -1,
    0,
    10**30,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../../etc/passwd",
    [],
    {},
    [1, "a"],
    "\x00",
]


@dataclass(frozen=True)
class Format:
    """files: below the seed's folder, one of which is changed. parse: its first parse; where it succeeds, a mutation is past it.
    read: the folder, as a command does."""

    files: tuple[str, ...]
    parse: Read
    read: Read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seeds = Path(folder) / "seeds"
        make_seeds(seeds)
        found = [fuzz(name, seeds, range(asked.mutations // len(FORMATS)), asked.seed) for name in FORMATS]
    table = {name: dict(counts) for name, (counts, _) in zip(FORMATS, found)}
    total = sum((counts for counts, _ in found), Counter[str]())
    result = {
        "fuzzed": total["read"] + total["refused"] + total["crashes"],
        "past_first_parse": total["past"],
        "crashes": total["crashes"],
        "seed": asked.seed,
        "by_format": table,
    }
    for _, crashes in found:
        for line in crashes[:20]:
            print(line)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def fuzz(name: str, seeds: Path, numbers: range, seed: int) -> tuple[Counter[str], list[str]]:
    """What became of the mutations of a format, and its crashes. Each runs in a process that may die."""
    record = seeds.parent / f"{name}.jsonl"
    record.unlink(missing_ok=True)
    first, context = numbers.start, multiprocessing.get_context("spawn")
    while first < numbers.stop:
        child = context.Process(target=_run, args=(name, seeds, range(first, numbers.stop), seed, record))
        child.start()
        child.join()
        done = _lines(record)
        first = numbers.start + len(done)
        if first < numbers.stop:  # it died in this one
            with record.open("a") as file:
                file.write(json.dumps({"past": False, "crash": f"{name} {first}: the process died ({child.exitcode})"}) + "\n")
            first += 1
    lines = _lines(record)
    counts = Counter({"past": sum(line["past"] for line in lines)})
    counts.update("crashes" if line.get("crash") else "refused" if line.get("refused") else "read" for line in lines)
    return counts, [line["crash"] for line in lines if line.get("crash")]


def _lines(record: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in record.read_text().splitlines()] if record.is_file() else []


def _run(name: str, seeds: Path, numbers: range, seed: int, record: Path) -> None:
    """In a process of its own."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, _too_long)
    for number in numbers:
        line = one(name, seeds, number, seed)
        with record.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"took more than {SECONDS} s")


def one(name: str, seeds: Path, number: int, seed: int) -> dict[str, Any]:
    """The mutation of that number: whether it is past the first parse, and whether it was read, refused or crashed."""
    form, rng = FORMATS[name], random.Random(f"{seed} {name} {number}")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / name
        shutil.copytree(seeds / name, place)
        file = place / rng.choice(form.files)
        file.write_bytes(mutated(file.read_bytes(), file.suffix, rng))
        line: dict[str, Any] = {"past": False}
        with suppress(Exception):
            form.parse(file)
            line["past"] = True
        signal.alarm(SECONDS)
        try:
            form.read(place)
        except Exception as error:
            if isinstance(error, ValueError) and len(str(error).strip().splitlines()) == 1:
                line["refused"] = str(error)[:200]
            else:
                where = " < ".join(
                    f"{Path(f.filename).name}:{f.lineno}" for f in reversed(traceback.extract_tb(error.__traceback__))
                )
                line["crash"] = f"{name} {number}: {type(error).__name__}: {str(error)[:200]!r} at {where[:300]}"
        finally:
            signal.alarm(0)
    return line


def mutated(data: bytes, suffix: str, rng: random.Random) -> bytes:
    if suffix == ".json" and rng.random() < 0.7:
        return json.dumps(_with_another_value(json.loads(data), rng)).encode()
    if suffix == ".toml" and rng.random() < 0.7:
        return _with_another_line(data.decode(), rng).encode()
    if suffix == ".jsonl" and rng.random() < 0.7:
        lines = data.decode().splitlines()
        at = rng.randrange(len(lines))
        lines[at] = json.dumps(_with_another_value(json.loads(lines[at]), rng))
        return "\n".join(lines).encode()
    return _with_other_bytes(bytearray(data), rng)


def _with_another_value(tree: Any, rng: random.Random) -> Any:
    """One value, of any depth, of another kind, or left out."""
    places = list(_places(tree))
    if not places or rng.random() < 0.05:
        return rng.choice(STRANGE)
    holder, key = rng.choice(places)
    if isinstance(holder, dict) and rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = rng.choice([*STRANGE, -holder[key]] if isinstance(holder[key], int | float) else STRANGE)
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(pairs):
        yield tree, key
        yield from _places(value)


def _with_another_line(text: str, rng: random.Random) -> str:
    lines = [line for line in text.splitlines() if line]
    at = rng.randrange(len(lines))
    if "=" in lines[at] and rng.random() < 0.8:
        value = rng.choice(
            ["-1", "0", "1e400", "nan", "inf", '""', '"x"', "[]", "{}", "true", "[1, 'a']", str(10**30), "1979-05-27"]
        )
        lines[at] = re.sub("=.*", f"= {value}", lines[at], count=1)
    elif rng.random() < 0.5:
        del lines[at]
    else:
        lines.insert(at, rng.choice(["x = 1", "[x]", "[[x]]", "[recipe]", 'a."b" = 2']))
    return "\n".join(lines)


def _with_other_bytes(data: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, count = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 16, 256))
        kind = rng.randrange(5)
        if kind == 0 and len(data):
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + count] = rng.randbytes(count)
        elif kind == 2:
            del data[at : at + count]
        elif kind == 3:
            data[at:at] = data[at : at + count] or b"\0"
        elif rng.random() < 0.3:
            del data[at:]
        else:
            data[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\x80"))
    return bytes(data)


def make_seeds(folder: Path) -> None:
    """A valid folder of each format, by the project's own writers."""
    import soundfile
    import torch
    from transformers import HubertConfig, HubertModel

    from nas.device.profile import write_profile
    from nas.stages.finals import Final, record_final
    from nas.study.candidates import Candidate
    from nas.study.config import StudyConfig
    from nas.study.folder import create_study
    from search_spaces.architecture import Architecture
    from trainers.networks.student import Student, save_student
    from trainers.speech.parquet import write_corpus
    from trainers.speech.trial_lists import write_trials
    from trainers.teacher.teacher import load_teacher

    for name in FORMATS:
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    sound = 0.1 * rng.standard_normal(1600)
    soundfile.write(folder / "audio/clip.wav", sound, 16_000, subtype="PCM_16")
    soundfile.write(folder / "audio/clip.flac", sound, 16_000)
    wav = (folder / "audio/clip.wav").read_bytes()
    rows = [
        {
            "id": f"clip{split}{speaker}{word}{i}",
            "split": split,
            "keyword": word,
            "speaker_id": f"{split}{speaker}",
            "duration_s": 0.1,
            "audio": {"bytes": wav, "path": None},
        }
        for split in ("train", "val", "test")
        for speaker in range(2)
        for word in ("yes", "no")
        for i in range(2)
    ]
    write_corpus(folder / "corpus/corpus.parquet", rows)
    write_corpus(folder / "trials/corpus.parquet", rows)
    pairs = [
        (split, f"clip{split}0yes0", f"clip{split}{speaker}no{number}", speaker == 0)
        for split in ("val", "test")
        for speaker in range(2)
        for number in range(2)
    ]
    write_trials(folder / "trials/trials.parquet", pairs)
    shutil.copyfile(ROOT / "deploy/targets/raspberry-pi-4.toml", folder / "target/board.toml")
    (folder / "recipe/recipe.toml").write_text('margin = "angular"\nspeeds = [0.9, 1.0]\nrate = 1e-4\nfrozen = false\nbatch = 8\n')
    small = Architecture(front_end="mel", front_width=32, frame_stride=2, width=48, heads=(1,), ffn_dims=(64,), kept_layers=(1,))
    study = create_study(StudyConfig(name="study"), folder / "made")
    study.record(Candidate(number=0, architecture=small, state="complete", scores={"eer": 1.0, "latency_ms": 2.0}))
    final = Final(
        name="final-0", role="finalist", architecture=small, start="kept layers", distill_steps=0, finetune_steps=2, candidate=0
    )
    record_final(study, final)
    study.ledger.charge("candidates", 2.0)
    shutil.copytree(study.folder, folder / "study", dirs_exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        convolutions: dict[str, Any] = {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
        HubertModel(HubertConfig(**sizes, **convolutions)).save_pretrained(folder / "teacher")
        geometry = load_teacher(str(folder / "teacher")).geometry
        save_student(Student(small, geometry, ("no", "yes"), heads="every state").folded(), folder / "student")
    profile = _make_profile(geometry, small)
    write_profile(profile, folder / "profile/profile.json")
    _make_kit_result(folder / "kit result", profile)
    _make_bundle(folder, geometry)


def _make_profile(geometry: Any, small: Any) -> Any:
    import dataclasses

    from deploy.measure import Measurement, device_facts
    from nas.device.profile import Profile, Taken

    taken = tuple(
        Taken(
            network=dataclasses.replace(small, width=width),
            precision="fp32",
            measurement=Measurement(
                ratio=1.0,
                ratio_low=0.9,
                ratio_high=1.1,
                reference_ms=3.0,
                median_ms=width / 10,
                passes=6,
                seconds=1.0,
                threads=1,
                window=16_080,
                peak_memory=60_000_000 + width,
            ),
        )
        for width in range(48, 144, 8)
    )
    return Profile(
        target="host", threads=1, window=16_080, geometry=geometry, heads="every state", device=device_facts(), taken=taken
    )


def _make_kit_result(folder: Path, profile: Any) -> None:
    """What a device brings back, beside what was remembered of the kit."""
    import dataclasses

    from deploy.measure import FORMAT
    from nas.device.profile import PROFILES

    networks = {f"student-{number}": taken.network for number, taken in enumerate(profile.taken)}
    kept = {"target": profile.target, "geometry": json.loads(profile.geometry.to_json()), "heads": profile.heads}
    kept["networks"] = {name: json.loads(network.to_json()) for name, network in networks.items()}
    kits = folder / PROFILES / "kits"
    kits.mkdir(parents=True)
    (kits / f"{KIT}.json").write_text(json.dumps(kept))
    measured = [{"name": f"{name}/fp32", **dataclasses.asdict(taken.measurement)} for name, taken in zip(networks, profile.taken)]
    (folder / "result.json").write_text(
        json.dumps({"format": FORMAT, "kit": KIT, "device": dict(profile.device), "seconds": 1.0, "measurements": measured})
    )


def _make_bundle(folder: Path, geometry: Any) -> None:
    """With thresholds and a voice, as the device has them."""
    from deploy.bundle import write_bundle
    from deploy.target import load_target

    thresholds = {
        "voice_thresholds": [{"false_acceptance": 5.0, "threshold": 0.3}],
        "stream_voice_thresholds": [{"false_acceptance": 5.0, "threshold": 0.4}],
        "keyword_thresholds": [{"false_alarms_an_hour": 10.0, "keywords": {"no": {"threshold": 0.5}, "yes": {"threshold": 0.6}}}],
    }
    target = load_target("host")
    clips = np.random.default_rng(0).normal(0, 0.1, (2, target.window)).astype(np.float32)
    (folder / "bundle").rmdir()
    made = write_bundle(
        folder / "student",
        folder / "bundle",
        target=target,
        clips=clips,
        synthetic=True,
        latency={"milliseconds": 0.5, "low": 0.4, "high": 0.6, "how": "measured"},
    ).manifest
    (folder / "bundle/manifest.json").write_text(json.dumps({**made, **thresholds}))
    voice = {"embedding": [1.0] + [0.0] * (made["outputs"]["embedding"][1] - 1), "clips": 3}
    content = {"model": made["files"]["model.onnx"]["sha256"], "voices": {"anna": voice}}
    (folder / "bundle/voices.json").write_text(json.dumps(content))


def _audio(place: Path) -> None:
    from trainers.speech.decoding import BadAudio, decode

    for name in ("clip.wav", "clip.flac"):
        try:
            decode(place / name)
        except BadAudio as error:
            raise ValueError(str(error)) from None


def _corpus(place: Path) -> None:
    from trainers.speech.corpora import check_trainable
    from trainers.speech.loading import load_corpus

    corpus = load_corpus([place / "corpus.parquet"], place / "cache")
    check_trainable(corpus)
    for row in range(len(corpus)):
        corpus.length(row)


def _trials(place: Path) -> None:
    from trainers.speech.loading import load_corpus
    from trainers.speech.trial_lists import study_trials

    study_trials([place / "trials.parquet"], load_corpus([place / "corpus.parquet"], place.parents[1] / "fuzz-cache"), 0)


def _target(place: Path) -> None:
    from deploy.target import load_target

    load_target(str(place / "board.toml"))


def _recipe(place: Path) -> None:
    from nas.cli.options import read_recipe

    read_recipe(place / "recipe.toml", None)


def _study(place: Path) -> None:
    from nas.stages.finals import read_finals
    from nas.study.folder import open_folder

    study = open_folder(place)
    study.candidates()
    for final in read_finals(study):
        study.weights_folder(final.name)
    study.ledger.by_purpose()


def _teacher(place: Path) -> None:
    from trainers.teacher.teacher import load_teacher

    load_teacher(str(place))


def _student(place: Path) -> None:
    from trainers.networks.student import load_student

    load_student(place)


def _profile(place: Path) -> None:
    from nas.device.profile import device_of, read_profile

    device_of(read_profile(place / "profile.json"))


def _kit_result(place: Path) -> None:
    from nas.cli.profile import profile_of

    with chdir(place):
        profile_of(Path("result.json"))


def _bundle(place: Path) -> None:
    """Where it was exported, and then on a device."""
    from deploy.bundle import check_answers, verify_bundle

    runtime = str(ROOT / "deploy/runtime")
    if runtime not in sys.path:
        sys.path.insert(0, runtime)
    import classify
    import enrol
    import listen

    check_answers(verify_bundle(place))
    _, manifest, _ = classify.load_model(place)
    enrol.read_voices(place / "voices.json", manifest)
    enrol.enrolment_threshold(manifest)
    enrol.voice_threshold(manifest, 5.0, "stream_voice_thresholds")
    listen.keyword_thresholds(manifest, None)


def _first_parse(file: Path) -> object:
    """As a library alone sees it."""
    import pyarrow.parquet as pq
    import soundfile
    from safetensors import safe_open

    if file.suffix == ".json":
        return json.loads(file.read_text())
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text().splitlines()]
    if file.suffix == ".toml":
        return tomllib.loads(file.read_text())
    if file.suffix == ".parquet":
        return pq.read_schema(file)
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as opened:
            return list(opened.keys())
    return soundfile.info(file)


FORMATS: dict[str, Format] = {
    "audio": Format(("clip.wav", "clip.flac"), _first_parse, _audio),
    "corpus": Format(("corpus.parquet",), _first_parse, _corpus),
    "trials": Format(("trials.parquet",), _first_parse, _trials),
    "target": Format(("board.toml",), _first_parse, _target),
    "recipe": Format(("recipe.toml",), _first_parse, _recipe),
    "study": Format(("study.toml", "candidates.jsonl", "finals.jsonl", "ledger.jsonl"), _first_parse, _study),
    "teacher": Format(("config.json", "model.safetensors"), _first_parse, _teacher),
    "student": Format(("architecture.json", "weights.safetensors"), _first_parse, _student),
    "profile": Format(("profile.json",), _first_parse, _profile),
    "kit result": Format(("result.json",), _first_parse, _kit_result),
    "bundle": Format(("manifest.json", "voices.json"), _first_parse, _bundle),
}


if __name__ == "__main__":
    main()
