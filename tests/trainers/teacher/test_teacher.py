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
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    HubertConfig,
    HubertForCTC,
    HubertForSequenceClassification,
    HubertModel,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
    Wav2Vec2Model,
    Wav2Vec2Processor,
    WavLMConfig,
    WavLMForCTC,
    WavLMForXVector,
    WavLMModel,
)

from deploy.export import export_onnx, parity
from search_spaces.cost import cost
from trainers.networks.encoder import normalize
from trainers.networks.student import Student, load_student, save_student
from trainers.teacher.teacher import Teacher, load_teacher

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
MODELS: dict[str, tuple[Any, Any]] = {
    "hubert": (HubertConfig, HubertModel),
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model),
    "wavlm": (WavLMConfig, WavLMModel),
}
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


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("front_norm", ["group", "layer"])
@pytest.mark.parametrize("family", [*MODELS])
def test_every_state_is_that_of_transformers(family: str, front_norm: str, pre_norm: bool, bias: bool, tmp_path: Path) -> None:
    """Base is group norm and post-norm, Large layer norm and pre-norm; published models have both kinds of bias."""
    config, kind = MODELS[family]
    model = random_model(config(**SIZES, feat_extract_norm=front_norm, do_stable_layer_norm=pre_norm, conv_bias=bias), kind)
    teacher = load_teacher(saved(model, tmp_path))
    audio = torch.randn(2, 9000)
    assert_same_states(model, teacher, audio, audio)


@pytest.mark.parametrize("family", [*MODELS])
def test_half_a_minute_is_the_same_too(family: str, tmp_path: Path) -> None:
    """WavLM's widening buckets begin at 80 frames and end at 800."""
    config, kind = MODELS[family]
    model = random_model(config(**SIZES), kind)
    audio = torch.randn(1, 480_000)
    assert_same_states(model, load_teacher(saved(model, tmp_path)), audio, audio)


@pytest.mark.parametrize("changes", [{"num_conv_pos_embeddings": 15}, {"conv_dim": (8, 8, 12, 12, 16, 16, 24)}])
def test_other_shapes_load(changes: dict[str, Any], tmp_path: Path) -> None:
    model = random_model(HubertConfig(**{**SIZES, **changes}), HubertModel)
    audio = torch.randn(1, 5000)
    assert_same_states(model, load_teacher(saved(model, tmp_path)), audio, audio)


@pytest.mark.parametrize("config", [HubertConfig, Wav2Vec2Config, WavLMConfig])
@pytest.mark.parametrize("prefix", ["Hubert", "Wav2Vec2", "WavLM"])
def test_a_configuration_of_another_family_never_loads_in_silence(prefix: str, config: Any, tmp_path: Path) -> None:
    """HuBERT's and wav2vec 2.0's weights have the same names and the same meaning; WavLM's gates are seen."""
    own = getattr(transformers, f"{prefix}Config")
    source = saved(random_model(own(**SIZES), getattr(transformers, f"{prefix}Model")), tmp_path)
    config(**SIZES).save_pretrained(tmp_path)
    if (own is WavLMConfig) == (config is WavLMConfig):
        load_teacher(source)
        return
    with pytest.raises(ValueError, match="weights do not fit"):
        load_teacher(source)


@pytest.mark.parametrize(
    "kind",
    [HubertForCTC, HubertForSequenceClassification, Wav2Vec2ForPreTraining, Wav2Vec2ForCTC, WavLMForXVector, WavLMForCTC],
)
def test_the_encoder_of_a_task_model_loads(kind: Any, tmp_path: Path) -> None:
    family, changes = kind.config_class.model_type, {"codevector_dim": 16, "proj_codevector_dim": 16, "tdnn_dim": (16,) * 5}
    sizes = {**SIZES, **{name: value for name, value in changes.items() if hasattr(kind.config_class(), name)}}
    model = random_model(kind.config_class(**sizes), kind)
    source = saved(model, tmp_path)
    assert any(name.startswith(f"{family}.") for name in load_file(tmp_path / "model.safetensors"))
    audio = torch.randn(1, 5000)
    assert_same_states(getattr(model, family), load_teacher(source), audio, audio)


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})


def by_old_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    new = "parametrizations.weight.original"
    return {name.replace(f"{new}0", "weight_g").replace(f"{new}1", "weight_v"): value for name, value in weights.items()}


@pytest.mark.parametrize("kind", [HubertModel, WavLMModel, HubertForCTC])
def test_weight_norm_by_its_old_names_loads(kind: Any, tmp_path: Path) -> None:
    model = random_model(kind.config_class(**SIZES), kind)
    source = saved(model, tmp_path)
    rewrite(tmp_path, by_old_names)
    assert sum("weight_g" in name for name in load_file(tmp_path / "model.safetensors")) == 1
    audio = torch.randn(1, 5000)
    assert_same_states(getattr(model, "hubert", model), load_teacher(source), audio, audio)


def test_weight_norm_that_is_folded_already_loads(tmp_path: Path) -> None:
    model = random_model(HubertConfig(**SIZES), HubertModel)
    torch.nn.utils.parametrize.remove_parametrizations(model.encoder.pos_conv_embed.conv, "weight")
    audio = torch.randn(1, 5000)
    assert_same_states(model, load_teacher(saved(model, tmp_path)), audio, audio)


def sharded(folder: Path) -> HubertModel:
    model = random_model(HubertConfig(**SIZES), HubertModel)
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len([*folder.glob("model-*-of-*.safetensors")]) > 2
    return model


def test_shards_load_and_all_of_them_are_in_the_digest(tmp_path: Path) -> None:
    model, audio = sharded(tmp_path), torch.randn(1, 5000)
    teacher = load_teacher(str(tmp_path))
    assert_same_states(model, teacher, audio, normalize(audio))
    digests = {teacher.digest}
    for shard in sorted(tmp_path.glob("*.safetensors")):
        weights = load_file(shard)
        save_file({name: value + 0.001 for name, value in weights.items()}, shard)
        digests.add(load_teacher(str(tmp_path)).digest)
        save_file(weights, shard)
    assert len(digests) == 1 + len([*tmp_path.glob("*.safetensors")])


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "weights.bin", "sub/x.safetensors", ""])
def test_an_index_cannot_name_files_elsewhere(name: str, tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match="allowed are safetensors in the same folder"):
        load_teacher(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f: min(f.glob("model-*")).unlink(), "lacks model-00001-of-"),
        (lambda f: min(f.glob("model-*")).write_bytes(b"x" * 50), "model-00001-of-.* is damaged or not complete"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{"), "not JSON"),
        (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": 3}'), "names no files"),
    ],
)
def test_damaged_shards_are_refused(change: Change, reason: str, tmp_path: Path) -> None:
    sharded(tmp_path)
    change(tmp_path)
    with pytest.raises(ValueError, match=reason) as caught:
        load_teacher(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_load_as_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    model = random_model(WavLMConfig(**SIZES), WavLMModel).to(dtype)
    teacher, audio = load_teacher(saved(model, tmp_path)), torch.randn(1, 5000)
    assert {weight.dtype for weight in teacher.encoder.parameters()} == {torch.float32}
    assert_same_states(model.float(), teacher, audio, audio)


def test_students_and_the_fine_tuned_teacher_of_wavlm(tmp_path: Path) -> None:
    """Students drop the relative position bias; the teacher keeps it to the exported file, and its cost is counted."""
    wavlm = {**SIZES, "num_buckets": 32, "max_bucket_distance": 40}
    teacher = load_teacher(saved(random_model(WavLMConfig(**wavlm), WavLMModel), tmp_path))
    assert (teacher.encoder.geometry.relative_buckets, teacher.encoder.geometry.relative_distance) == (32, 40)
    assert teacher.geometry == teacher.encoder.geometry.of_students
    own = Student(teacher.architecture, teacher.encoder.geometry, ("yes", "no"), is_folded=False)
    own.encoder.load_state_dict(teacher.encoder.state_dict())
    save_student(own.eval().folded(), tmp_path / "student")
    again = load_student(tmp_path / "student")
    told = cost(teacher.architecture, teacher.encoder.geometry, 2, 16_080)
    assert told.params == sum(weight.numel() for weight in again.parameters())
    audio = 0.1 * torch.randn(3, 16_080)
    with torch.no_grad():
        torch.testing.assert_close(again(audio), own(audio), atol=1e-5, rtol=1e-5)
        changed = again(audio)[0]
        own.encoder.relative.table.weight.zero_()
        assert (own(audio)[0] - changed).abs().max() > 1e-3
    export_onnx(again, tmp_path / "model.onnx", 16_080)
    result = parity(again, tmp_path / "model.onnx", audio.numpy())
    assert max(result.max_abs_logits, result.max_abs_embedding) <= 1e-5


@pytest.mark.parametrize("normalizes", [False, True])
def test_the_preprocessor_says_whether_input_is_normalised(normalizes: bool, tmp_path: Path) -> None:
    model = random_model(HubertConfig(**SIZES), HubertModel)
    teacher = load_teacher(saved(model, tmp_path, normalizes=normalizes))
    assert teacher.geometry.normalize_input is normalizes
    audio = np.random.default_rng(0).normal(0.2, 0.05, (2, 5000)).astype(np.float32)
    prepared = Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)(list(audio), sampling_rate=16_000, return_tensors="pt")
    assert_same_states(model, teacher, torch.from_numpy(audio), prepared["input_values"])


def test_the_preprocessor_beside_a_tokenizer_is_read(teacher_folder: Path, tmp_path: Path) -> None:
    """transformers 5 saves a CTC model's processor as one file; the older file is asked first."""
    folder = Path(shutil.copytree(teacher_folder, tmp_path / "teacher"))
    vocabulary = tmp_path / "vocab.json"
    vocabulary.write_text(json.dumps({"<pad>": 0, "<unk>": 1, "|": 2, "<s>": 3, "</s>": 4}))
    tokenizer = Wav2Vec2CTCTokenizer(str(vocabulary))
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(do_normalize=False), tokenizer).save_pretrained(folder)
    assert not (folder / "preprocessor_config.json").exists()
    silent, told = load_teacher(str(teacher_folder)), load_teacher(str(folder))
    assert (silent.geometry.normalize_input, told.geometry.normalize_input) == (True, False)
    assert silent.digest != told.digest
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    assert load_teacher(str(folder)).geometry.normalize_input


def test_without_a_preprocessor_input_is_normalised_as_in_transformers(teacher_folder: Path) -> None:
    assert not (teacher_folder / "preprocessor_config.json").exists()
    assert load_teacher(str(teacher_folder)).geometry.normalize_input is Wav2Vec2FeatureExtractor().do_normalize


def test_the_bundled_teacher_loads_with_a_stable_digest() -> None:
    teacher, again = load_teacher("mini-hubert"), load_teacher("mini-hubert")
    assert (teacher.name, teacher.digest) == ("mini-hubert", again.digest)
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
    return lambda folder: rewrite(folder, lambda weights: {name: value for name, value in weights.items() if part not in name})


def stored_as(dtype: torch.dtype) -> Change:
    return lambda folder: rewrite(folder, lambda weights: {name: value.to(dtype) for name, value in weights.items()})


def cut_short(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (removed("config.json"), "has no config.json"),
        (removed("model.safetensors"), "has no model.safetensors"),
        (written("config.json", b"{'single': 'quotes'}"), "not JSON"),
        (written("config.json", b"\xff\xfe\x00"), "not JSON"),
        (written("config.json", b"[]"), "not a JSON object"),
        (configured(model_type="wav2vec2-bert"), "'wav2vec2-bert' model; a teacher is one of hubert, wav2vec2, wavlm"),
        (configured(model_type=["hubert"]), "a teacher is one of"),
        (configured(auto_map={"AutoModel": "model.Model"}), "Python code of its own .auto_map., which is never run"),
        (configured(conv_stride=[5, 2, 2, 2, 2, 2, 1]), r"gives 100 frames a second .* a teacher gives 50, by HuBERT's"),
        (configured(conv_stride=[5, 2, 2, 2, 2, 2, 4]), "gives 25 frames a second"),
        (configured(conv_kernel=[10, 3, 3, 3, 3, 3, 2]), r"gives 50 .*kernels \(10, 3, 3, 3, 3, 3, 2\)"),
        (configured(conv_stride=[5, 2], conv_kernel=[10, 3], conv_dim=[16, 16]), "gives 1600 frames"),
        (configured(conv_stride=[5, 2]), "not valid"),
        (written("preprocessor_config.json", b'{"sampling_rate": 8000}'), "gives 25 frames .* 8000 Hz"),
        (written("preprocessor_config.json", b'{"sampling_rate": "high"}'), "sampling_rate 'high'"),
        (written("preprocessor_config.json", b'{"do_normalize": "yes"}'), "do_normalize is 'yes'"),
        (written("preprocessor_config.json", b'{"feature_extractor": 5}'), "preprocessor_config.json"),
        (written("preprocessor_config.json", b"{"), "preprocessor_config.json is not JSON"),
        (configured(conv_pos_batch_norm=True), "batch norm"),
        (configured(hidden_act="relu"), "gelu"),
        (configured(layer_norm_eps=1e-3), "layer_norm_eps"),
        (configured(feat_extract_norm="batch"), "CNN norm"),
        (configured(adapter_attn_dim=8), "adapters"),
        (configured(num_attention_heads=5), "heads or position groups do not divide"),
        (configured(num_attention_heads=0), "a size below 1 or above 65,536"),
        (configured(num_hidden_layers=0), "a size below 1"),
        (configured(num_hidden_layers=10**9), "more than 1000 layers"),
        (configured(intermediate_size=10**9), "a size below 1 or above 65,536"),
        (configured(num_conv_pos_embedding_groups=7), "heads or position groups do not divide"),
        (configured(hidden_size="wide"), "not valid"),
        (configured(hidden_size=96), r"do not fit .*: the files have \(.*\), the model \(.*\)"),
        (configured(num_hidden_layers=4), "16 weights do not fit .* such as layers.3.*: the files have none"),
        (configured(num_hidden_layers=2), "16 weights do not fit .* such as layers.2.*the model none"),
        (configured(model_type="wavlm", num_buckets=2), "too few buckets"),
        (lost("layers.1.feed_forward"), "4 weights do not fit"),
        (lost("pos_conv_embed"), "2 weights do not fit"),
        (lost("original0"), "2 weights do not fit .* positions.conv.weight"),
        (lost(""), "has no weights of a hubert encoder"),
        (stored_as(torch.int8), "is I8; a teacher's weights are float64, float32, float16, bfloat16"),
        (written("model.safetensors", b"version https://git-lfs.github.com/spec/v1"), "damaged or not complete"),
        (written("model.safetensors", b""), "damaged or not complete"),
        (cut_short, "damaged or not complete"),
    ],
)
def test_a_folder_that_is_no_teacher_is_refused(change: Change, reason: str, teacher_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(teacher_folder, tmp_path / "teacher"))
    change(folder)
    with pytest.raises(ValueError, match=reason) as caught:
        load_teacher(str(folder))
    assert "\n" not in str(caught.value)


class Bomb:
    """What a pickle may hold: it writes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "checkpoint.pt", "model.ckpt"])
def test_a_pickle_is_refused_unopened_with_the_way_out(name: str, teacher_folder: Path, tmp_path: Path) -> None:
    folder, mark = Path(shutil.copytree(teacher_folder, tmp_path / "teacher")), tmp_path / "opened"
    (folder / "model.safetensors").unlink()
    torch.save(Bomb(mark), folder / name)
    with pytest.raises(ValueError, match=rf"only a pickle \({name}\).*never opened; convert it .*save_pretrained") as caught:
        load_teacher(str(folder))
    assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_code_in_a_folder_is_never_run(teacher_folder: Path, tmp_path: Path) -> None:
    folder, mark = Path(shutil.copytree(teacher_folder, tmp_path / "teacher")), tmp_path / "ran"
    for name in ("modeling_own", "configuration_own"):
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'w')\nclass Own: pass\n")
    configured(auto_map={"AutoConfig": "configuration_own.Own", "AutoModel": "modeling_own.Own"})(folder)
    with pytest.raises(ValueError, match="never run"):
        load_teacher(str(folder))
    configured(auto_map=None)(folder)
    with pytest.raises(ValueError, match="delete that entry"):
        load_teacher(str(folder))
    assert not mark.exists()


@pytest.mark.parametrize("source", ["", " ", "hubert", "/no/such/folder", "../x/y", "a/b/c", "x y/z", "a/b@x y", "@main", "a@b/c"])
def test_what_is_neither_a_folder_nor_an_id_is_refused(source: str, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(teacher_folder)  # nothing is not the working folder
    with pytest.raises(ValueError, match="neither `mini` nor `mini-hubert`, nor an existing folder, nor a hub id"):
        load_teacher(source)
    assert load_teacher(".").digest


def test_a_file_is_refused(teacher_folder: Path) -> None:
    with pytest.raises(ValueError, match="is a file; give the folder"):
        load_teacher(str(teacher_folder / "model.safetensors"))


@pytest.mark.parametrize("source", ["nobody/nothing", "nobody/nothing@refs/pr/3"])
def test_an_id_without_a_network_is_one_error_soon(source: str) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match=f"'{source}' is no folder here and could not be fetched") as caught:
        load_teacher(source)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("revision", ["", "@v2", "@refs/pr/3"])
def test_an_id_in_the_hubs_cache_loads_without_a_network(
    revision: str, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, commit = tmp_path / "models--some--hubert", "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(teacher_folder, repository / "snapshots" / commit)
    reference = repository / "refs" / (revision[1:] or "main")
    reference.parent.mkdir(parents=True)
    reference.write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    teacher = load_teacher(f"some/hubert{revision}")
    assert teacher.name == f"some/hubert{revision}"
    assert teacher.digest == load_teacher(str(teacher_folder)).digest


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "module._orig_mod."])
def test_weights_of_a_wrapped_model_are_read(teacher_folder: Path, tmp_path: Path, wrapper: str) -> None:
    """As torch.compile and DistributedDataParallel name them; the configuration may begin with a byte order mark."""
    folder = tmp_path / "wrapped"
    shutil.copytree(teacher_folder, folder)
    weights = load_file(folder / "model.safetensors")
    save_file({wrapper + name: value for name, value in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_bytes(b"\xef\xbb\xbf" + (folder / "config.json").read_bytes())
    expected, read = load_teacher(str(teacher_folder)).encoder.state_dict(), load_teacher(str(folder)).encoder.state_dict()
    assert all(torch.equal(value, read[name]) for name, value in expected.items())
