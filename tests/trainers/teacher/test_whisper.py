"""Whisper's encoder as a teacher: transformers' states, frames where they are said to be, and folders that are none."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from deploy.export import export_onnx, parity
from search_spaces.cost import cost
from trainers.networks.encoder import SpeechEncoder, WhisperFront, sinusoids
from trainers.networks.log_mel import WhisperLogMel
from trainers.networks.student import Student, load_student, save_student
from trainers.teacher.teacher import Teacher, load_teacher

SHARED = Path(__file__).parents[4] / "shared"
WINDOW = 16_080
Change = Callable[[Path], None]


def features(audio_bn: Tensor, bins: int = 80) -> Tensor:
    """(batch, bins, 100 Hz frames): transformers' log-mels of the window as it is."""
    extract = WhisperFeatureExtractor(feature_size=bins)
    return extract(list(audio_bn.numpy()), sampling_rate=16_000, padding="do_not_pad", return_tensors="pt").input_features


def assert_same_states(folder: Path, audio_bn: Tensor, prefix: str) -> None:
    """Ours equal transformers' on the window, for which its positions must be cut: to 1e-5 of the state's largest number; from
    layer 4 on, where the real one has numbers of 350 beside those of 1, to 5e-5. Its log-mel is checked apart: where it is
    quiet, its rounding is 2e-5, and the layers enlarge it."""
    config, teacher = WhisperConfig.from_pretrained(folder), load_teacher(str(folder))
    assert isinstance(teacher.encoder.front, WhisperFront)
    theirs_bft = teacher.encoder.front.mel(audio_bn).transpose(1, 2)
    torch.testing.assert_close(theirs_bft, features(audio_bn, config.num_mel_bins), atol=5e-5, rtol=0)
    config.max_source_positions = theirs_bft.shape[-1] // 2
    weights = {name: value.float() for name, value in load_file(folder / "model.safetensors").items() if name.startswith(prefix)}
    weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    weights["embed_positions.weight"] = weights["embed_positions.weight"][: config.max_source_positions]
    model = WhisperEncoder(config).eval()
    model.load_state_dict({name: value for name, value in weights.items() if not name.startswith("decoder")})
    with torch.no_grad():
        expected = model(theirs_bft, output_hidden_states=True)
        states = teacher.encoder(audio_bn)
    wanted = [*expected.hidden_states[: len(states) - 1], expected.last_hidden_state]
    for number, (state, theirs) in enumerate(zip(states, wanted, strict=True)):
        share = 1e-5 if number < 4 else 5e-5
        torch.testing.assert_close(state, theirs, atol=share * float(theirs.abs().max()), rtol=1e-5)


@pytest.mark.parametrize("samples", [WINDOW, 9_600, 16_000])
def test_every_state_is_that_of_transformers(samples: int, whisper_folder: Path) -> None:
    assert_same_states(whisper_folder, 0.1 * torch.randn(2, samples), "model.encoder.")


@pytest.mark.parametrize(("kind", "prefix"), [(WhisperModel, "encoder."), (WhisperEncoder, "")])
def test_an_encoder_is_found_in_whatever_it_was_saved_with(kind: Any, prefix: str, whisper_folder: Path, tmp_path: Path) -> None:
    kind(WhisperConfig.from_pretrained(whisper_folder)).save_pretrained(tmp_path)
    assert_same_states(tmp_path, 0.1 * torch.randn(1, WINDOW), prefix)


def test_128_mel_bins_as_those_of_large_v3(whisper_folder: Path, tmp_path: Path) -> None:
    config = WhisperConfig.from_pretrained(whisper_folder, num_mel_bins=128)
    WhisperForConditionalGeneration(config).save_pretrained(tmp_path)
    assert_same_states(tmp_path, 0.1 * torch.randn(1, WINDOW), "model.encoder.")


def test_half_precision_in_shards(whisper_folder: Path, tmp_path: Path) -> None:
    model = WhisperModel.from_pretrained(whisper_folder).half()
    model.save_pretrained(tmp_path, max_shard_size="60kB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    audio = 0.1 * torch.randn(1, WINDOW)
    with torch.no_grad():
        ours, theirs = load_teacher(str(tmp_path)).encoder(audio), load_teacher(str(whisper_folder)).encoder(audio)
    torch.testing.assert_close(ours[-1], theirs[-1], atol=2e-2, rtol=0)


@pytest.mark.skipif(not (SHARED / "whisper_base_encoder").is_dir(), reason="the real Whisper encoder is not here")
def test_the_real_one_on_speech() -> None:
    rng = np.random.default_rng(0)
    envelope = np.repeat(rng.uniform(0, 0.3, (2, 10)), WINDOW // 10, axis=1)
    audio = torch.from_numpy((envelope * rng.standard_normal((2, WINDOW))).astype(np.float32))
    assert_same_states(SHARED / "whisper_base_encoder", audio, "model.encoder.")


def test_frame_t_is_centred_on_sample_320_t(tiny_whisper: Teacher) -> None:
    """A click there is nowhere louder than in log-mel frame 2 t, and in the convolutions before it spreads alike to both sides."""
    mel = WhisperLogMel()
    for frame in (3, 20, 49):
        audio = torch.zeros(1, WINDOW)
        audio[0, 320 * frame] = 1.0
        energies = mel(audio)[0].mean(-1)
        assert int(energies.argmax()) == 2 * frame
    clicked, silent = torch.zeros(1, WINDOW), torch.zeros(1, WINDOW)
    clicked[0, 320 * 20] = 1e-3
    silent[0, 0] = clicked[0, 0] = 1.0  # one loudest place in both
    with torch.no_grad():
        changed = (tiny_whisper.encoder.front(clicked) - tiny_whisper.encoder.front(silent)).abs().sum(-1)[0]  # type: ignore[call-arg]
    assert torch.equal(changed.nonzero().flatten(), torch.arange(19, 22))


@pytest.mark.parametrize("samples", [400, 16_000, WINDOW, 16_159, 16_160, 21_120])
def test_frames_are_counted_as_they_come(samples: int, tiny_whisper: Teacher) -> None:
    with torch.no_grad():
        assert tiny_whisper.encoder(torch.randn(1, samples))[0].shape[1] == tiny_whisper.geometry.frames(samples)


def test_a_window_longer_than_the_positions_is_refused(tiny_whisper: Teacher) -> None:
    with pytest.raises(ValueError, match="a window of 21280 samples is longer than the teacher's positions, which end at 21120"):
        tiny_whisper.encoder(torch.randn(1, 21_280))


def test_it_is_supervised_and_its_positions_are_no_params(tiny_whisper: Teacher, tiny_teacher: Teacher) -> None:
    assert tiny_whisper.is_supervised and not tiny_teacher.is_supervised
    names = {name for name, _ in tiny_whisper.encoder.named_parameters()}
    assert "positions.table" not in names and "layers.0.attention.k.bias" not in names
    a, g = tiny_whisper.architecture, tiny_whisper.encoder.geometry
    student = Student(a, g, ("yes", "no"))
    assert cost(a, g, 2, WINDOW).params == sum(weight.numel() for weight in student.parameters())


def test_a_student_is_saved_and_exported_as_it_is(tiny_whisper: Teacher, tmp_path: Path) -> None:
    """The file holds the weights that count, and the window's positions instead of the whole table."""
    student = Student(tiny_whisper.architecture, tiny_whisper.geometry, ("yes", "no"), heads="every state").eval()
    student.encoder.load_state_dict(tiny_whisper.encoder.state_dict())
    save_student(student, tmp_path / "student")
    read, audio = load_student(tmp_path / "student"), 0.1 * torch.randn(3, WINDOW)
    with torch.no_grad():
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(read(audio), student(audio)))
    export_onnx(read, tmp_path / "model.onnx", WINDOW)
    assert parity(read, tmp_path / "model.onnx", audio.numpy()).ok
    shapes = {tuple(weight.dims) for weight in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert (50, 48) in shapes and (66, 48) not in shapes


def config_with(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return change


def preprocessor_with(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        (folder / "preprocessor_config.json").write_text(json.dumps(changes))

    return change


def weights_with(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Change:
    def rewrite(folder: Path) -> None:
        weights = change(load_file(folder / "model.safetensors"))
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return rewrite


def pickled(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def decoder_alone(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if "decoder" in name}


def learned_positions(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**weights, "model.encoder.embed_positions.weight": sinusoids(66, 48) + 0.1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (weights_with(decoder_alone), "has no weights of a whisper encoder"),
        (weights_with(learned_positions), "positions are not Whisper's fixed sines and cosines"),
        (config_with(num_mel_bins=128), r"front.convs.0.weight: the files have \(48, 80, 3\), the model \(48, 128, 3\)"),
        (config_with(max_source_positions=65), r"positions.table: the files have \(66, 48\), the model \(65, 48\)"),
        (preprocessor_with(feature_size=128), "feature_size is 128; a Whisper encoder of 80 mel bins hears log-mels with 80"),
        (preprocessor_with(hop_length=200), "hop_length is 200"),
        (preprocessor_with(sampling_rate=8_000), "sampling_rate is 8000"),
        (config_with(activation_function="relu"), "another activation than gelu"),
        (config_with(encoder_attention_heads=5), "heads do not divide"),
        (config_with(d_model=0), "size below 1"),
        (config_with(encoder_layers="many"), "is not valid"),
        (pickled, r"only a pickle \(pytorch_model.bin\), which could run code"),
    ],
)
def test_a_folder_that_is_no_teacher_is_refused_in_one_line(
    change: Change, reason: str, whisper_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whisper_folder, tmp_path / "teacher"))
    change(folder)
    with pytest.raises(ValueError, match=reason) as refused:
        load_teacher(str(folder))
    assert len(str(refused.value).splitlines()) == 1


def test_an_input_that_the_preprocessor_normalises_is_normalised(whisper_folder: Path, tmp_path: Path) -> None:
    assert not load_teacher(str(whisper_folder)).geometry.normalize_input
    folder = Path(shutil.copytree(whisper_folder, tmp_path / "teacher"))
    preprocessor_with(do_normalize=True)(folder)
    assert load_teacher(str(folder)).geometry.normalize_input


@pytest.mark.parametrize(("depth", "layers"), [(3, (1, 2, 3)), (4, (1, 2, 3)), (6, (1, 2, 3)), (12, (2, 4, 6)), (32, (5, 11, 16))])
def test_students_predict_layers_that_have_the_voice(depth: int, layers: tuple[int, ...], tiny_whisper: Teacher) -> None:
    own = tiny_whisper.architecture
    deep = dataclasses.replace(
        own, heads=own.heads[:1] * depth, ffn_dims=own.ffn_dims[:1] * depth, kept_layers=tuple(range(1, depth + 1))
    )
    assert Teacher(name="", digest="", encoder=SpeechEncoder(deep, tiny_whisper.geometry)).predicted_layers == layers
