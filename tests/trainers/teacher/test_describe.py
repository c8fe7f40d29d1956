"""`srlnas teacher check`: what it says is what the folder holds, and a folder that is none is refused."""

import dataclasses
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import HubertConfig, HubertForCTC, HubertModel, Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel

from nas.cli.main import main
from trainers.teacher.folder import BUNDLED, absolute_source
from trainers.teacher.teacher import Teacher, describe_teacher, load_teacher, size_name

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


@pytest.fixture
def srlnas(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["srlnas", "teacher", "check", *arguments])
        try:
            main()
            code = 0
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        return code, *capsys.readouterr()

    return run


def test_the_bundled_teacher(srlnas: Any) -> None:
    code, text, errors = srlnas()
    assert (code, errors) == (0, "")
    for words in (
        "mini: whisper, size custom, digest ",
        "licence mit",
        "trained: with transcripts: supervised, not self-supervised",
        "11,134,976 on disk in float16; 10,366,976 in the encoder",
        "3 layers of width 512, 8 heads, 2048 feed-forward units",
        "512-512 channels, no norm, with bias, 50 frames a second, frame t centred on sample 320 t\n",
        "layer norm: before attention",
        "positions: a fixed table of 1500 frames",
        "input: as it is\n",
        "students learn: layers 1, 2, 3",
        "finite",
    ):
        assert words in text
    assert sum(path.stat().st_size for folder in BUNDLED.values() for path in folder.iterdir()) <= 40e6


def test_the_bundled_hubert(srlnas: Any) -> None:
    code, text, errors = srlnas("mini-hubert")
    assert (code, errors) == (0, "")
    for words in (
        "mini-hubert: hubert, size custom, digest ",
        "4,444,192 on disk in float16; 4,443,872 in the encoder",
        "6 layers of width 256, 4 heads, 768 feed-forward units",
        "32-64-128-128-128-128-128 channels, layer norm, with bias, 50 frames a second, frame t centred on sample 320 t + 200\n",
        "trained: on speech alone: self-supervised",
        "layer norm: after attention",
        "input: zero mean, unit variance\n",
        "position bias: none",
        "students learn: layers 2, 4, 6",
        "model.safetensors, 8,903,016 bytes, SHA-256 ",
        "finite",
    ):
        assert words in text


def test_json_is_the_description(srlnas: Any) -> None:
    code, text, _ = srlnas("mini", "--json")
    assert code == 0
    assert json.loads(text) == describe_teacher("mini")


def test_digests_are_those_of_the_files(teacher_folder: Path) -> None:
    told = describe_teacher(str(teacher_folder))
    for name in ("config.json", "model.safetensors"):
        data = (teacher_folder / name).read_bytes()
        assert told["files"].pop(name) == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert told["files"] == {}
    assert told["digest"] == load_teacher(str(teacher_folder)).digest


def test_a_large_wavlm_in_small(tmp_path: Path, srlnas: Any) -> None:
    config = WavLMConfig(**SIZES, feat_extract_norm="layer", do_stable_layer_norm=True, num_buckets=32, max_bucket_distance=90)
    WavLMModel(config).half().save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path)
    told = describe_teacher(str(tmp_path))
    wanted = {
        "family": "wavlm",
        "layers": 3,
        "width": 48,
        "heads": 4,
        "ffn_dim": 64,
        "conv_norm": "layer",
        "conv_bias": False,
        "norm_order": "pre",
        "normalize_input": False,
        "normalize_input_assumed": False,
        "relative_buckets": 32,
        "relative_distance": 90,
        "predicted_layers": [1, 2, 3],
        "precision": ["float16"],
        "params": WavLMModel(config).num_parameters(),
    }
    assert {name: told[name] for name in wanted} == wanted
    text = srlnas(str(tmp_path))[1]
    for words in ("32 buckets up to 90 frames; students drop it", "before attention", "without bias", "input: as it is\n"):
        assert words in text


def test_a_task_model_in_shards_without_a_preprocessor(tmp_path: Path, srlnas: Any) -> None:
    model = HubertForCTC(HubertConfig(**SIZES))
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    told, encoder = describe_teacher(str(tmp_path)), load_teacher(str(tmp_path)).encoder
    assert told["params"] == model.num_parameters()
    assert told["encoder_params"] == sum(weight.numel() for weight in encoder.parameters()) < told["params"]
    assert (told["normalize_input"], told["normalize_input_assumed"]) == (True, True)
    assert "assumed: no preprocessor_config.json says so" in srlnas(str(tmp_path))[1]
    names = {path.name for path in tmp_path.glob("model*")}
    assert len(names) > 3  # the index and its shards
    assert set(told["files"]) == names | {"config.json"}


def test_weights_of_two_precisions(tmp_path: Path) -> None:
    model = HubertModel(HubertConfig(**SIZES))
    model.encoder.layers[0].half()
    model.save_pretrained(tmp_path)
    assert describe_teacher(str(tmp_path))["precision"] == ["float16", "float32"]


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0\ntags:\n- speech\n---\n# HuBERT\n", "apache-2.0"),
        ('---\nlicense: "mit"\n---\n', "mit"),
        ("---\r\nlicense: mit\r\n---\r\n", "mit"),
        ("---\nlicense:\n- cc-by-4.0\n---\n", "cc-by-4.0"),
        ("---\nlicense: [mit]\n---\n", "mit"),
        ("---\ntags: x\n---\nlicense: mit\n", "not stated"),
        ("---\nlicense:\n---\n", "not stated"),
        ("---\nlicense:\ntags: x\n---\n", "not stated"),
        ("# Model\nlicense: mit\n", "not stated"),
        ("", "not stated"),
        (None, "not stated"),
    ],
)
def test_the_licence_is_the_cards(card: str | None, licence: str, teacher_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(teacher_folder, tmp_path / "teacher"))
    if card is not None:
        (folder / "README.md").write_bytes(card.encode())
    assert describe_teacher(str(folder))["licence"] == licence


def test_the_card_is_not_part_of_the_digest(teacher_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(teacher_folder, tmp_path / "teacher"))
    (folder / "README.md").write_bytes(b"\xff\xfe")
    assert describe_teacher(str(folder))["digest"] == load_teacher(str(teacher_folder)).digest


@pytest.mark.parametrize(
    ("depth", "width", "heads", "units", "name"),
    [(12, 768, 12, 3072, "Base"), (24, 1024, 16, 4096, "Large"), (48, 1280, 16, 5120, "X-Large"), (12, 768, 12, 3000, "custom")],
)
def test_published_sizes_are_recognised(depth: int, width: int, heads: int, units: int, name: str, tiny_teacher: Teacher) -> None:
    a = dataclasses.replace(
        tiny_teacher.architecture,
        front_width=512,
        width=width,
        heads=(heads,) * depth,
        ffn_dims=(units,) * depth,
        kept_layers=tuple(range(1, depth + 1)),
    )
    assert size_name(a) == name
    assert size_name(dataclasses.replace(a, front_width=511)) == "custom"


@pytest.mark.parametrize(("value", "layer"), [(float("nan"), 2), (float("inf"), 2)])
def test_states_that_are_not_finite_are_refused(
    value: float, layer: int, teacher_folder: Path, tmp_path: Path, srlnas: Any
) -> None:
    folder = Path(shutil.copytree(teacher_folder, tmp_path / "teacher"))
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layers.1.feed_forward.output_dense.bias"][3] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    code, text, errors = srlnas(str(folder))
    assert (code, text) == (2, "")
    assert f"hidden state {layer} of 3 is not finite" in errors
    assert len(errors.splitlines()) == 1


def test_a_bad_folder_is_one_line(tmp_path: Path, srlnas: Any) -> None:
    torch.save({}, tmp_path / "pytorch_model.bin")
    shutil.copy(BUNDLED["mini-hubert"] / "config.json", tmp_path)
    for source, reason in (
        (tmp_path, "only a pickle (pytorch_model.bin)"),
        (tmp_path / "none", "neither `mini` nor `mini-hubert`, nor an existing folder"),
        ("", "neither `mini` nor `mini-hubert`, nor an existing folder"),
        ("nobody/nothing", "could not be fetched"),
    ):
        code, text, errors = srlnas(str(source), "--json")
        assert (code, text) == (2, "")
        assert reason in errors
        assert len(errors.splitlines()) == 1


def test_a_source_holds_in_every_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mini", "own"):
        (tmp_path / name).mkdir()
    assert absolute_source("own") == str(tmp_path / "own")
    assert [absolute_source(source) for source in ("mini", "", "org/name", "nothing")] == ["mini", "", "org/name", "nothing"]
