"""Pretraining: masks, what is heard, that it learns, and that an interrupted run ends where a whole one does."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainers.learning.resume import PassedOver
from trainers.networks.encoder import Layer, SpeechEncoder
from trainers.pretraining.masked import Labelled, MaskedPredictor, draw_masks, overlap
from trainers.pretraining.pretrain import Pretraining, PretrainRecipe, UnitSource, Watch, draw_weights, pretrain
from trainers.pretraining.units import assign_units, fit_units, hidden_state, utterances
from trainers.speech.corpora import Corpus
from trainers.teacher.teacher import Teacher, load_teacher
from trainers.teacher.writer import teacher_shape, write_teacher

RECIPE = PretrainRecipe(steps=(6, 4), units=(6, 8), layer=2, batch=4, speeds=(1.0, 0.9), seed=3)


class Interrupted(Exception):
    pass


@given(
    batch=st.integers(1, 5),
    frames=st.integers(1, 60),
    share=st.floats(0, 1),
    span=st.integers(1, 70),
    seed=st.integers(0, 2**32 - 1),
)
def test_masks_are_spans_and_every_row_has_one(batch: int, frames: int, share: float, span: int, seed: int) -> None:
    masked = draw_masks((batch, frames), share, span, np.random.default_rng(seed))
    assert masked.shape == (batch, frames) and masked.any(1).all()
    for row in masked:  # only a span that begins near the end may be cut short
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row, [0]])))
        for begin, end in zip(edges[::2], edges[1::2]):
            assert end - begin >= span or end == frames


def test_masks_have_hubert_s_share() -> None:
    """Each frame is free with (1 - 0.08)^10: 57 % are masked (arXiv 2106.07447), fewer near the beginning."""
    masked = draw_masks((4_000, 50), 0.08, 10, np.random.default_rng(0))
    assert masked[:, 10:].mean() == pytest.approx(1 - 0.92**10, abs=0.02)


def test_overlap_leaves_most_alone_and_mixes_at_most_half() -> None:
    rng = np.random.default_rng(0)
    audio = rng.standard_normal((400, 1_600)).astype(np.float32)
    mixed = overlap(audio, 0.25, rng)
    changed = (mixed != audio).sum(1)
    assert 0.15 < (changed > 0).mean() < 0.35 and changed.max() <= 800
    assert overlap(audio, 0.0, rng) is not audio and (overlap(audio, 0.0, rng) == audio).all()


def test_units_stay_beside_the_sound_that_they_name(tiny_corpus: Corpus) -> None:
    """The unit of a frame is here its own number in the corpus: what is heard at it must be that frame's samples."""
    clips = utterances(tiny_corpus, "train", (1.0,))
    labelled = Labelled(clips=clips, units=np.arange(clips.firsts[-1]).astype(np.int16))
    audio, units = labelled.pick(64, 16_080, np.random.default_rng(0))
    assert units.shape == (64, 50) and (units >= 0).any(1).all() and (units < 0).any()
    for heard, row in zip(audio, units):
        frame = int(np.flatnonzero(row >= 0)[0])
        utterance = int(np.searchsorted(clips.firsts, row[frame], side="right") - 1)
        own = clips.audio(utterance, int(row[frame] - clips.firsts[utterance]), 400)
        assert np.array_equal(heard[frame * 320 : frame * 320 + 400], own)


def test_a_masked_frame_s_sound_is_hidden(tiny_teacher: Teacher) -> None:
    """Where everything is masked, the logits cannot depend on the audio; where one frame is not, they do."""
    torch.manual_seed(0)
    model = MaskedPredictor(SpeechEncoder(tiny_teacher.architecture, tiny_teacher.geometry), 5).eval()
    one, other = torch.randn(2, 1, 16_080)
    everything = torch.ones(1, 50, dtype=torch.bool)
    asked = everything.clone()
    assert torch.equal(model(one, everything, asked), model(other, everything, asked))
    everything[0, 20] = False
    assert not torch.allclose(model(one, everything, asked), model(other, everything, asked), atol=1e-4)
    asked[0, 20] = False
    torch.testing.assert_close(model(one, everything, asked), model(one, everything, ~everything | asked)[torch.arange(50) != 20])


def prepared(
    corpus: Corpus, teacher: Teacher, folder: Path, recipe: PretrainRecipe = RECIPE, watch: Watch | None = None
) -> Pretraining:
    return Pretraining(
        recipe=recipe,
        corpus=corpus,
        architecture=teacher.architecture,
        geometry=teacher.geometry,
        noise=None,
        folder=folder,
        device=torch.device("cpu"),
        watch=watch or Watch(),
    )


def test_new_weights_are_hubert_s(tiny_teacher: Teacher, teacher_folder: Path) -> None:
    """As transformers draws a HuBERT of this shape. (It means to draw the positions' as fairseq does, and draws them without effect
    beneath their weight norm: there the formula is the oracle.)"""
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(0)
    encoder = SpeechEncoder(tiny_teacher.architecture, tiny_teacher.geometry)
    draw_weights(encoder)
    model = HubertModel(HubertConfig.from_pretrained(teacher_folder))
    layer, theirs = encoder.layers[1], model.encoder.layers[1]
    assert isinstance(layer, Layer)
    pairs = [
        (encoder.front.convs[3].weight, model.feature_extractor.conv_layers[3].conv.weight),
        (encoder.projection.weight, model.feature_projection.projection.weight),
        (layer.attention.q.weight, theirs.attention.q_proj.weight),
        (layer.ffn_out.weight, theirs.feed_forward.output_dense.weight),
    ]
    for ours, expected in pairs:
        assert float(ours.detach().std()) == pytest.approx(float(expected.detach().std()), rel=0.15)
    assert float(encoder.positions.conv.weight.detach().std()) == pytest.approx((4 / (16 * 48)) ** 0.5, rel=0.05)
    assert not layer.ffn_in.bias.any() and not encoder.positions.conv.bias.any() and (encoder.norm.weight == 1).all()


def stop_at(step: int) -> Watch:
    def progress(done: int, total: int) -> None:
        if done == step:
            raise Interrupted

    return Watch(progress=progress)


@pytest.fixture(scope="module")
def whole(tiny_corpus: Corpus, tiny_teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Weights of a run that nothing interrupts."""
    return pretrain(prepared(tiny_corpus, tiny_teacher, tmp_path_factory.mktemp("whole"))).state_dict()


@pytest.mark.parametrize("stops", [pytest.param((5,), marks=pytest.mark.slow), pytest.param((6,), marks=pytest.mark.slow), (7, 9)])
def test_an_interrupted_run_ends_where_a_whole_one_does(
    stops: tuple[int, ...],
    whole: dict[str, Tensor],
    tiny_corpus: Corpus,
    tiny_teacher: Teacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SRLNAS_CHECKPOINT_SECONDS", "0")
    for stop in stops:
        with pytest.raises(Interrupted):
            pretrain(prepared(tiny_corpus, tiny_teacher, tmp_path / "parts", watch=stop_at(stop)))
    parts = pretrain(prepared(tiny_corpus, tiny_teacher, tmp_path / "parts")).state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_run_of_another_recipe_is_not_continued(tiny_corpus: Corpus, tiny_teacher: Teacher, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        pretrain(prepared(tiny_corpus, tiny_teacher, tmp_path, watch=stop_at(1)))
    with pytest.raises(ValueError, match="another recipe"):
        pretrain(prepared(tiny_corpus, tiny_teacher, tmp_path, recipe=replace(RECIPE, rate=1e-4)))


def test_units_of_another_teacher_are_those_of_its_states(
    tiny_corpus: Corpus, tiny_teacher: Teacher, tiny_whisper: Teacher, tmp_path: Path
) -> None:
    """With those of another layer the run is another one."""
    run = replace(prepared(tiny_corpus, tiny_teacher, tmp_path), units_from=UnitSource(teacher=tiny_whisper, layer=2))
    with pytest.raises(Interrupted):
        pretrain(replace(run, watch=stop_at(1)))
    clips = utterances(tiny_corpus, "train", RECIPE.speeds)
    features = hidden_state(tiny_whisper.encoder, 2)
    fitted = fit_units(clips, features, RECIPE.units[0], window=RECIPE.window, seed=RECIPE.seed, device=run.device)
    assign_units(clips, features, fitted, tmp_path / "again.npy", window=RECIPE.window, device=run.device)
    assert np.array_equal(np.load(tmp_path / "again.npy"), np.load(tmp_path / "units-1-train.npy"))
    with pytest.raises(ValueError, match="another source of units"):
        pretrain(replace(run, units_from=UnitSource(teacher=tiny_whisper, layer=1)))
    with pytest.raises(ValueError, match="has no layer 4; units may come from 0 to 3"):
        UnitSource(teacher=tiny_whisper, layer=4)


def test_frames_that_are_not_masked_weigh_as_the_recipe_says(tiny_corpus: Corpus, tiny_teacher: Teacher, tmp_path: Path) -> None:
    losses = []
    for weight in (0.0, 1.0, 3.0):
        found = list[float]()
        recipe = PretrainRecipe(steps=(1,), units=(8,), layer=2, batch=4, unmasked_weight=weight, speeds=(1.0,))
        watch = Watch(values=lambda step, values, found=found: found.append(values["loss"]))  # type: ignore[misc]
        pretrain(prepared(tiny_corpus, tiny_teacher, tmp_path / str(weight), recipe, watch))
        losses.append(found[0])
    assert losses[2] - losses[0] == pytest.approx(3 * (losses[1] - losses[0]), rel=1e-2) and losses[1] > losses[0]


def test_a_torn_checkpoint_is_passed_over_with_a_word(tiny_corpus: Corpus, tiny_teacher: Teacher, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(b"torn")
    with pytest.warns(PassedOver, match="damaged"):
        pretrain(prepared(tiny_corpus, tiny_teacher, tmp_path))


@pytest.mark.slow
def test_it_learns_to_tell_units(tiny_corpus: Corpus, tiny_teacher: Teacher, tmp_path: Path) -> None:
    """What is around a mask tells more than how often a unit occurs: the loss falls below the units' entropy."""
    found: dict[str, float] = {}
    recipe = PretrainRecipe(steps=(250,), units=(8,), layer=2, batch=16, rate=2e-3, speeds=(1.0,))
    pretrain(prepared(tiny_corpus, tiny_teacher, tmp_path, recipe, Watch(values=lambda step, values: found.update(values))))
    shares = np.bincount(np.load(tmp_path / "units-1-train.npy")) / len(np.load(tmp_path / "units-1-train.npy"))
    assert found["loss"] < 0.8 * -(shares[shares > 0] * np.log(shares[shares > 0])).sum()


@pytest.mark.parametrize("changes", [{"mask_share": 1.1}, {"mix_share": -0.1}, {"noise_share": 2}, {"speeds": (1.0, 0.3)}])
def test_shares_and_speeds_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes)).replace("_", " ")):
        replace(RECIPE, **changes)


def test_an_unfinished_run_of_an_older_version_goes_on(tiny_corpus: Corpus, tiny_teacher: Teacher, tmp_path: Path) -> None:
    """Its plan does not name what there was not then."""
    with pytest.raises(Interrupted):
        pretrain(prepared(tiny_corpus, tiny_teacher, tmp_path, watch=stop_at(1)))
    plan = json.loads((tmp_path / "plan.json").read_text())
    for name in ("family", "position_table", "mel_bins"):
        geometry = json.loads(plan["geometry"])
        del geometry[name]
        plan["geometry"] = json.dumps(geometry)
    del plan["recipe"]["unmasked_weight"], plan["source of units"]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(Interrupted):
        pretrain(prepared(tiny_corpus, tiny_teacher, tmp_path, watch=stop_at(2)))


@pytest.mark.parametrize("window", [32_000, 16_000, 720])
def test_any_window_of_two_frames_or_more_will_do(window: int, tiny_corpus: Corpus, tiny_teacher: Teacher, tmp_path: Path) -> None:
    recipe = PretrainRecipe(steps=(1,), units=(6,), layer=2, batch=2, window=window, speeds=(1.0,))
    pretrain(prepared(tiny_corpus, tiny_teacher, tmp_path, recipe))
    with pytest.raises(ValueError, match="719 samples has not two frames; 720 have"):
        replace(recipe, window=719)


@pytest.mark.parametrize(("steps", "units"), [((), ()), ((5,), (4, 4)), ((0,), (4,))])
def test_a_recipe_that_makes_no_sense_is_refused(steps: tuple[int, ...], units: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="steps"):
        PretrainRecipe(steps=steps, units=units, layer=1)


def test_a_written_teacher_is_read_back(tiny_teacher: Teacher, teacher_folder: Path, tmp_path: Path) -> None:
    """By us and by transformers, to what float16 keeps."""
    from transformers import AutoModel

    config, normalizes = teacher_shape(str(teacher_folder))
    write_teacher(tiny_teacher.encoder, config, tmp_path / "own", "# own\n")
    audio = torch.randn(2, 16_080)
    read = load_teacher(str(tmp_path / "own"))
    assert read.geometry.normalize_input == normalizes
    states = read.encoder(audio)
    for ours, before in zip(states, tiny_teacher.encoder(audio)):
        assert torch.allclose(ours, before, atol=0.02)
    model = AutoModel.from_pretrained(tmp_path / "own", dtype=torch.float32).eval()
    heard = (audio - audio.mean(-1, keepdim=True)) / audio.std(-1, keepdim=True, unbiased=False)
    assert torch.allclose(model(heard).last_hidden_state, states[-1], atol=1e-4)
    with pytest.raises(ValueError, match="holds a teacher"):
        write_teacher(tiny_teacher.encoder, config, tmp_path / "own", "")


def test_shapes_are_known_by_name(tmp_path: Path) -> None:
    assert teacher_shape("large")[0]["num_hidden_layers"] == 24
    with pytest.raises(ValueError, match="neither mini-hubert, base, large nor a folder"):
        teacher_shape("huge")
