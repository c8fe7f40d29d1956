"""Teachers: the states are those of transformers, and a folder that is none is refused in one line."""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    HubertConfig,
    HubertForCTC,
    HubertModel,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from trainers.teacher import Teacher, load_teacher

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
MODELS: dict[str, tuple[Any, Any]] = {"hubert": (HubertConfig, HubertModel), "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model)}
Change = Callable[[Path], None]


def random_model(config: Any, kind: Any) -> PreTrainedModel:
    torch.manual_seed(1)
    model = kind(config).eval()
    for weight in model.parameters():  # transformers starts norms at one and biases at zero: they could be mixed up unseen
        weight.data += 0.1 * torch.randn_like(weight)
    return model


def saved(model: PreTrainedModel, folder: Path, *, normalizes: bool = False) -> str:
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=normalizes).save_pretrained(folder)
    return str(folder)


def assert_same_states(model: PreTrainedModel, teacher: Teacher, ours_bn: Tensor, theirs_bn: Tensor) -> None:
    with torch.no_grad():
        expected = model(theirs_bn, output_hidden_states=True)
        states = teacher.encoder(ours_bn)
    assert len(states) == len(expected.hidden_states)
    for state, wanted in zip(states[:-1], expected.hidden_states):  # transformers 5 lists the last one before a Large model's norm
        torch.testing.assert_close(state, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(states[-1], expected.last_hidden_state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("front_norm", ["group", "layer"])
@pytest.mark.parametrize("family", [*MODELS])
def test_every_state_is_that_of_transformers(family: str, front_norm: str, pre_norm: bool, tmp_path: Path) -> None:
    config, kind = MODELS[family]
    bias = front_norm == "layer"
    model = random_model(config(**SIZES, feat_extract_norm=front_norm, do_stable_layer_norm=pre_norm, conv_bias=bias), kind)
    teacher = load_teacher(saved(model, tmp_path))
    audio = torch.randn(2, 9000)
    assert_same_states(model, teacher, audio, audio)


@pytest.mark.parametrize("changes", [{"num_conv_pos_embeddings": 15}, {"conv_dim": (8, 8, 12, 12, 16, 16, 24)}])
def test_other_shapes_load(changes: dict[str, Any], tmp_path: Path) -> None:
    model = random_model(HubertConfig(**{**SIZES, **changes}), HubertModel)
    audio = torch.randn(1, 5000)
    assert_same_states(model, load_teacher(saved(model, tmp_path)), audio, audio)


def test_the_encoder_of_a_task_model_loads(tmp_path: Path) -> None:
    model = random_model(HubertConfig(**SIZES), HubertForCTC)
    audio = torch.randn(1, 5000)
    assert_same_states(model.hubert, load_teacher(saved(model, tmp_path)), audio, audio)


def test_weight_norm_by_its_old_names_loads(tmp_path: Path) -> None:
    model = random_model(HubertConfig(**SIZES), HubertModel)
    source = saved(model, tmp_path)
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    weights = {}
    for name, value in load_file(tmp_path / "model.safetensors").items():
        new, old = next(((new, old) for new, old in names.items() if new in name), ("", ""))
        weights[name.replace(new, old)] = value
    assert sum("weight_g" in name for name in weights) == 1
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    audio = torch.randn(1, 5000)
    assert_same_states(model, load_teacher(source), audio, audio)


@pytest.mark.parametrize("normalizes", [False, True])
def test_the_preprocessor_says_whether_input_is_normalised(normalizes: bool, tmp_path: Path) -> None:
    model = random_model(HubertConfig(**SIZES), HubertModel)
    teacher = load_teacher(saved(model, tmp_path, normalizes=normalizes))
    assert teacher.geometry.normalize_input is normalizes
    audio = np.random.default_rng(0).normal(0.2, 0.05, (2, 5000)).astype(np.float32)
    prepared = Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)(list(audio), sampling_rate=16_000, return_tensors="pt")
    assert_same_states(model, teacher, torch.from_numpy(audio), prepared["input_values"])


def test_without_a_preprocessor_input_is_normalised_as_in_transformers(teacher_folder: Path) -> None:
    assert not (teacher_folder / "preprocessor_config.json").exists()
    assert load_teacher(str(teacher_folder)).geometry.normalize_input is Wav2Vec2FeatureExtractor().do_normalize


def test_the_bundled_teacher_loads_with_a_stable_digest() -> None:
    teacher, again = load_teacher("mini"), load_teacher("mini")
    assert (teacher.name, teacher.digest) == ("mini", again.digest)
    assert not teacher.encoder.training
    assert not any(weight.requires_grad for weight in teacher.encoder.parameters())
    assert {weight.dtype for weight in teacher.encoder.parameters()} == {torch.float32}
    states = teacher.encoder(torch.randn(1, 16_080))
    assert [tuple(state.shape) for state in states] == [(1, 50, 256)] * 7


def test_the_digest_follows_weights_and_configuration(teacher_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(teacher_folder, tmp_path / "copy"))
    digest = load_teacher(str(teacher_folder)).digest
    assert load_teacher(str(copy)).digest == digest
    weights = load_file(copy / "model.safetensors")
    weights["encoder.layer_norm.bias"] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    changed = load_teacher(str(copy)).digest
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(copy)
    assert len({digest, changed, load_teacher(str(copy)).digest}) == 3


@pytest.mark.parametrize(("depth", "layers"), [(12, (4, 8, 12)), (6, (2, 4, 6)), (24, (8, 16, 24)), (3, (1, 2, 3)), (1, (1,))])
def test_predicted_layers_are_the_papers_in_proportion(depth: int, layers: tuple[int, ...], tiny_teacher: Teacher) -> None:
    one: dict[str, Any] = {"heads": (4,), "ffn_dims": (64,)}
    deep = dataclasses.replace(
        tiny_teacher.architecture, **{k: v * depth for k, v in one.items()}, kept_layers=tuple(range(1, depth + 1))
    )
    teacher = Teacher(name="", digest="", encoder=type(tiny_teacher.encoder)(deep, tiny_teacher.geometry))
    assert teacher.predicted_layers == layers


def removed(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def configured(**fields: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return change


def written(name: str, data: bytes) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return change


def lost(part: str) -> Change:
    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        kept = {name: value for name, value in weights.items() if part not in name}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (removed("config.json"), "has no config.json"),
        (removed("model.safetensors"), "has no model.safetensors"),
        (written("config.json", b"{'single': 'quotes'}"), "not JSON"),
        (written("config.json", b"\xff\xfe\x00"), "not JSON"),
        (written("config.json", b"[]"), "not a JSON object"),
        (configured(model_type="wav2vec2-bert"), "'wav2vec2-bert' model; a teacher is one of hubert, wav2vec2"),
        (configured(conv_stride=[5, 2, 2, 2, 2, 2, 1]), "convolutions are not those"),
        (configured(conv_kernel=[10, 3, 3, 3, 3, 3, 2]), "convolutions are not those"),
        (configured(conv_pos_batch_norm=True), "batch norm"),
        (configured(hidden_act="relu"), "gelu"),
        (configured(layer_norm_eps=1e-3), "layer_norm_eps"),
        (configured(hidden_size="wide"), "not valid"),
        (configured(hidden_size=96), "does not fit"),
        (configured(num_hidden_layers=4), "lacks 16 weights"),
        (lost("layers.1.feed_forward"), "lacks 4 weights"),
        (lost("pos_conv_embed"), "lacks 3 weights"),
        (written("model.safetensors", b"version https://git-lfs.github.com/spec/v1"), "damaged"),
        (written("preprocessor_config.json", b"{"), "line 1"),
    ],
)
def test_a_folder_that_is_no_teacher_is_refused(change: Change, reason: str, teacher_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(teacher_folder, tmp_path / "teacher"))
    change(folder)
    with pytest.raises(ValueError, match=reason) as caught:
        load_teacher(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["hubert", "/no/such/folder", "../x/y", "a/b/c", "x y/z"])
def test_what_is_neither_a_folder_nor_an_id_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match="neither `mini`, nor an existing folder, nor a hub id"):
        load_teacher(source)


def test_an_id_without_a_network_is_one_error_soon() -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match="'nobody/nothing' is no folder here and could not be fetched") as caught:
        load_teacher("nobody/nothing")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 20
