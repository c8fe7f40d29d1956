"""Students: folding changes nothing, a folder gives back what was saved, predictions have the teacher's frames."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from search_spaces.architecture import EMBEDDING_DIM, Architecture, Geometry, frame_count
from trainers.networks.student import Student, continued, load_student, save_student, with_keywords

GEOMETRY = Geometry(
    head_dim=8,
    conv_dims=(16,) * 7,
    conv_bias=False,
    front_norm="group",
    norm_order="post",
    position_kernel=16,
    position_groups=4,
    normalize_input=True,
)
KEYWORDS = ("no", "yes", "élan")
PREDICTING: dict[str, Any] = {"predicted_layers": (2, 4, 6), "target_width": 10}


def student(stride: int = 1, front_end: Any = "wave", **options: Any) -> Student:
    architecture = Architecture(
        front_end=front_end, front_width=12, frame_stride=stride, width=16, heads=(2, 1), ffn_dims=(24, 8), kept_layers=(1, 4)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = Student(architecture, GEOMETRY, KEYWORDS, **{"is_folded": False, **options}).eval()
        for weight in built.encoder.parameters():  # else the last norm's output sums to zero, which hides a lost bias
            weight.data += 0.1 * torch.randn_like(weight)
        return built


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def with_statistics(built: Student) -> Student:
    """As after a training: batch norm has seen something."""
    assert isinstance(built.norm, nn.BatchNorm1d)
    assert built.norm.running_mean is not None
    assert built.norm.running_var is not None
    generator = torch.Generator().manual_seed(3)
    built.norm.running_mean.normal_(generator=generator)
    built.norm.running_var.uniform_(0.2, 4.0, generator=generator)
    return built


@pytest.mark.parametrize("front_end", ["wave", "mel"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("options", [PREDICTING, {}, *({**PREDICTING, "heads": heads} for heads in ("mean", "every state"))])
def test_a_folded_student_is_the_same_function_with_fewer_weights(options: dict[str, Any], stride: int, front_end: str) -> None:
    built = with_statistics(student(stride, front_end, **options))
    folded, audio = built.folded(), noise(3, 5300)
    with torch.no_grad():
        for ours, expected in zip(folded(audio), built(audio), strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    count = sum(weight.numel() for weight in folded.parameters())
    of_words, of_voices = {"every state": (32, 96)}.get(options.get("heads", ""), (16, 16))
    heads = (of_words + 1) * len(KEYWORDS) + (of_voices + 1) * EMBEDDING_DIM
    assert count == sum(weight.numel() for weight in built.encoder.parameters()) + heads
    assert not any("norm.running" in name for name in folded.state_dict())


def test_folding_leaves_the_student_as_it_was() -> None:
    built = with_statistics(student(**PREDICTING)).train()
    before = {name: value.clone() for name, value in built.state_dict().items()}
    folded = built.folded()
    assert built.training
    assert not folded.training
    for name, value in built.state_dict().items():
        assert torch.equal(value, before[name]), name
    with torch.no_grad():
        folded.encoder.projection.weight += 1  # it shares no memory with its origin
    assert torch.equal(built.encoder.projection.weight, before["encoder.projection.weight"])


@pytest.mark.parametrize("stride", [1, 2])
def test_outputs_are_logits_and_unit_embeddings(stride: int) -> None:
    logits, embedding = student(stride, **PREDICTING)(noise(5, 4000))
    assert logits.shape == (5, len(KEYWORDS))
    assert embedding.shape == (5, EMBEDDING_DIM)
    torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(5))


def test_fresh_embeddings_point_apart_in_training() -> None:
    built, audio = student(**PREDICTING), noise(16, 3000)
    with torch.no_grad():
        raw = built(audio)[1]  # running statistics of a fresh batch norm: as if there were none
        normed = built.train()(audio)[1]
    apart = [float((e @ e.T)[~torch.eye(16, dtype=torch.bool)].mean()) for e in (raw, normed)]
    assert apart[0] > 0.5 > apart[1]


@pytest.mark.parametrize("samples", [16_080, 4880, 4560, 400, 720])
@pytest.mark.parametrize("stride", [1, 2])
def test_predictions_have_the_teachers_frames(stride: int, samples: int) -> None:
    frames = frame_count(samples)
    predicted = student(stride, **PREDICTING).predict_teacher(noise(2, samples), frames)
    assert [tuple(p.shape) for p in predicted] == [(2, frames, 10)] * 3


def test_with_stride_2_a_step_predicts_its_two_frames_in_order() -> None:
    built, audio = student(2, **PREDICTING), noise(2, 4880)  # 15 frames, 8 steps
    with torch.no_grad():
        steps = built.encoder(audio)[-1]
        wide = built.predictions[1](steps)
        predicted = built.predict_teacher(audio, 15)[1]
    torch.testing.assert_close(predicted[:, 0::2], wide[..., :10])
    torch.testing.assert_close(predicted[:, 1::2], wide[:, :7, 10:])


@pytest.mark.parametrize("stride", [1, 2])
def test_the_heads_read_the_mean_prediction(stride: int) -> None:
    """Prediction layers are applied after the mean over time: the same as the mean of what they predict."""
    built, audio = student(stride, **PREDICTING), noise(2, 5200)
    with torch.no_grad():
        features = torch.cat([p.mean(1) for p in built.predict_teacher(audio, 16)], -1)
        expected = built.keyword_head(built.norm(features))
        torch.testing.assert_close(built(audio)[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("front_end", ["wave", "mel"])
def test_a_saved_student_comes_back_exactly(front_end: str, tmp_path: Path) -> None:
    folded, audio = with_statistics(student(2, front_end, **PREDICTING)).folded(), noise(2, 5000)
    save_student(folded, tmp_path / "new" / "student")
    loaded = load_student(tmp_path / "new" / "student")
    assert loaded.keywords == KEYWORDS
    assert loaded.architecture == folded.architecture
    assert loaded.encoder.geometry == GEOMETRY
    assert not loaded.training
    with torch.no_grad():
        assert all(torch.equal(ours, saved) for ours, saved in zip(loaded(audio), folded(audio), strict=True))


def removed(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def written(name: str, data: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return change


def described(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        fields = json.loads((folder / "architecture.json").read_text())
        (folder / "architecture.json").write_text(json.dumps({**fields, **changes}))

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (removed("architecture.json"), "is not a student: architecture.json is missing"),
        (removed("weights.safetensors"), "is not a student: weights.safetensors is missing"),
        (written("architecture.json", b"{"), "is damaged"),
        (written("architecture.json", b"{}"), "is damaged"),
        (written("architecture.json", b"[]"), "is damaged"),
        (written("weights.safetensors", b"no weights"), "is damaged"),
        (described(keywords=["one"]), "is damaged"),
        (described(architecture={}), "Architecture has the fields"),
    ],
)
def test_a_folder_that_is_no_student_is_refused(change: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    save_student(student().folded(), tmp_path)
    change(tmp_path)
    with pytest.raises(ValueError, match=reason) as caught:
        load_student(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "nothing", tmp_path / "file"):
        with pytest.raises(ValueError, match=r"is not a student: architecture\.json is missing"):
            load_student(path)


def test_layer_to_layer_each_layer_is_predicted_from_the_state_as_far_up() -> None:
    built = student(**PREDICTING, heads="mean", matching="layer to layer")
    for layer in built.predictions:
        assert isinstance(layer, nn.Linear)
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    audio = noise(2, 4880)
    states, predicted = built.encoder(audio), built.predict_teacher(audio, 15)  # two layers for the teacher's six
    for at, prediction in zip((1, 2, 2), predicted, strict=True):
        torch.testing.assert_close(prediction, states[at][..., :10])


@pytest.mark.parametrize(("layer", "trained"), [(0, 0), (1, 1), (3, 1), (4, 2), (None, 2)])
def test_the_speaker_s_loss_trains_the_layers_up_to_the_one_that_is_named(layer: int | None, trained: int) -> None:
    """Of layers that began as the teacher's 1 and 4. The words' loss trains all of them, and what is computed stays the same."""
    whole, built = (with_statistics(student(heads="every state", speaker_layer=of)) for of in (None, layer))
    for ours, expected in zip(built(noise(2, 5300)), whole(noise(2, 5300)), strict=True):
        assert torch.equal(ours, expected)
    for place, reached in ((1, trained), (0, 2)):
        built.zero_grad()
        built(noise(2, 5300))[place].square().cumsum(-1).sum().backward()
        has = [any(weight.grad is not None and weight.grad.any() for weight in each.parameters()) for each in built.encoder.layers]  # type: ignore[union-attr]
        assert has == [i < reached for i in range(2)]
        assert all(weight.grad is not None for weight in built.encoder.front.parameters())  # type: ignore[union-attr]


def test_a_student_that_knows_of_more_keywords_says_what_it_said() -> None:
    before, heard = with_statistics(student()).folded(), noise(5, 4000)
    after = with_keywords(before, ("abc", *KEYWORDS[1:], "zebra", KEYWORDS[0]))
    logits, embedding = before(heard)
    wider, same = after(heard)
    torch.testing.assert_close(wider[:, [4, 1, 2]], logits)
    torch.testing.assert_close(same, embedding)
    assert (wider.argmax(1)[:, None] == torch.tensor([4, 1, 2])).any(1).all()


def test_what_is_trained_on_begins_with_the_encoder_and_a_norm_before_its_heads() -> None:
    before = with_statistics(student(heads="every state")).folded()
    after = continued(before)
    assert isinstance(after.norm, nn.BatchNorm1d) and after.keywords == before.keywords
    assert torch.equal(after.hear(noise(3, 4000)), before.hear(noise(3, 4000)))
