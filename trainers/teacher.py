"""The teacher: a HuBERT or wav2vec 2.0 checkpoint in transformers format, turned into our own encoder."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from search_spaces.architecture import FRONT_KERNELS, FRONT_STRIDES, Architecture, Geometry
from trainers.encoder import SpeechEncoder

BUNDLED = "mini"
BUNDLED_FOLDER = Path(__file__).parent / "mini_teacher"
FAMILIES = ("hubert", "wav2vec2")
LAYER_NORM_EPS = 1e-5  # torch's default, and of every published checkpoint
FILES = ("config.json", "model.safetensors", "preprocessor_config.json")

# our module names, by regular expression over transformers' (HubertModel and Wav2Vec2Model share them)
RENAMES = (
    (r"^feature_extractor\.conv_layers\.(\d+)\.conv\.", r"front.convs.\1."),
    (r"^feature_extractor\.conv_layers\.(\d+)\.layer_norm\.", r"front.norms.\1."),
    (r"^feature_projection\.layer_norm\.", "front_norm."),
    (r"^feature_projection\.projection\.", "projection."),
    (r"^encoder\.pos_conv_embed\.conv\.", "positions.conv."),
    (r"^encoder\.layer_norm\.", "norm."),
    (r"^encoder\.layers\.(\d+)\.attention\.(q|k|v|out)_proj\.", r"layers.\1.attention.\2."),
    (r"^encoder\.layers\.(\d+)\.layer_norm\.", r"layers.\1.attention_norm."),
    (r"^encoder\.layers\.(\d+)\.feed_forward\.intermediate_dense\.", r"layers.\1.ffn_in."),
    (r"^encoder\.layers\.(\d+)\.feed_forward\.output_dense\.", r"layers.\1.ffn_out."),
    (r"^encoder\.layers\.(\d+)\.final_layer_norm\.", r"layers.\1.ffn_norm."),
)


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """name: as the user gave it. digest: of configuration and weights. encoder: in evaluation mode, float32, not trained."""

    name: str
    digest: str
    encoder: SpeechEncoder

    @property
    def architecture(self) -> Architecture:
        return self.encoder.architecture

    @property
    def geometry(self) -> Geometry:
        return self.encoder.geometry

    @property
    def predicted_layers(self) -> tuple[int, ...]:
        """The layers that a student predicts: 4, 8 and 12 of 12 (arXiv 2210.16611), in proportion for another depth."""
        depth = self.architecture.depth
        return tuple(sorted({max(1, round(depth * third / 3)) for third in (1, 2, 3)}))


def load_teacher(source: str) -> Teacher:
    """`mini` (bundled), a folder in transformers format, or a hub id. Raises ValueError when it is none of these."""
    folder = BUNDLED_FOLDER if source == BUNDLED else Path(source) if Path(source).is_dir() else _download(source)
    config = _read_config(folder)
    architecture, geometry = _dimensions(config, _normalizes(folder))
    encoder = SpeechEncoder(architecture, geometry)
    encoder.load_state_dict(_weights(folder))
    encoder.eval().requires_grad_(False)
    return Teacher(name=source, digest=_digest(folder), encoder=encoder)


def _download(hub_id: str) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id) or hub_id.startswith((".", "/")):
        raise ValueError(
            f"teacher {hub_id!r} is neither `{BUNDLED}`, nor an existing folder, nor a hub id such as facebook/hubert-base-ls960"
        )
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=list(FILES)))
    except Exception as error:  # the hub client raises many kinds: offline, unknown, gated
        raise ValueError(
            f"teacher {hub_id!r} is no folder here and could not be fetched from the hub ({type(error).__name__}); "
            "download it elsewhere and give the folder"
        ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    for name in FILES[:2]:
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder} is not a teacher: it has no {name} (a folder in transformers format, weights as safetensors)"
            )
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except ValueError as error:  # not JSON, or not text
        raise ValueError(f"{folder}/config.json is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{folder}/config.json is not a JSON object")
    if config.get("model_type") not in FAMILIES:
        raise ValueError(f"{folder} is a {config.get('model_type')!r} model; a teacher is one of {', '.join(FAMILIES)}")
    return config


def _normalizes(folder: Path) -> bool:
    """Whether the teacher was trained on zero-mean unit-variance input, as its preprocessor says (yes where it is silent)."""
    path = folder / "preprocessor_config.json"
    return bool(json.loads(path.read_text()).get("do_normalize", True)) if path.is_file() else True


def _dimensions(raw: dict[str, Any], normalizes: bool) -> tuple[Architecture, Geometry]:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config = AutoConfig.for_model(**raw)  # fills in what the file leaves to defaults
    except (StrictDataclassError, TypeError) as error:
        raise ValueError(f"the teacher's config.json is not valid: {' '.join(str(error).split())}") from None
    if tuple(config.conv_kernel) != FRONT_KERNELS or tuple(config.conv_stride) != FRONT_STRIDES:
        raise ValueError("the teacher's convolutions are not those of HuBERT and wav2vec 2.0 (50 frames a second)")
    if getattr(config, "conv_pos_batch_norm", False) or not getattr(config, "feat_proj_layer_norm", True):
        raise ValueError("a teacher with batch norm in its positions or without layer norm before its projection is not supported")
    if {config.hidden_act, config.feat_extract_activation} != {"gelu"} or config.layer_norm_eps != LAYER_NORM_EPS:
        raise ValueError(
            f"a teacher with another activation than gelu or another layer_norm_eps than {LAYER_NORM_EPS} is not supported"
        )
    depth = config.num_hidden_layers
    architecture = Architecture(
        front_end="wave",
        front_width=config.conv_dim[-1],
        frame_stride=1,
        width=config.hidden_size,
        heads=(config.num_attention_heads,) * depth,
        ffn_dims=(config.intermediate_size,) * depth,
        kept_layers=tuple(range(1, depth + 1)),
    )
    geometry = Geometry(
        head_dim=config.hidden_size // config.num_attention_heads,
        conv_dims=tuple(config.conv_dim),
        conv_bias=config.conv_bias,
        front_norm=config.feat_extract_norm,
        norm_order="pre" if config.do_stable_layer_norm else "post",
        position_kernel=config.num_conv_pos_embeddings,
        position_groups=config.num_conv_pos_embedding_groups,
        normalize_input=normalizes,
    )
    return architecture, geometry


def _weights(folder: Path) -> dict[str, Tensor]:
    """transformers reads the checkpoint (old and new names of weight norm, a task's prefix); we fold the norm and rename."""
    from safetensors import SafetensorError
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    options = {"use_safetensors": True, "dtype": torch.float32, "local_files_only": True, "output_loading_info": True}
    try:
        model, report = AutoModel.from_pretrained(folder, **options)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{folder}/model.safetensors is damaged or does not fit its config.json ({type(error).__name__})"
        ) from error
    lost = sorted(name for name in report["missing_keys"] if _our_name(name))  # transformers would draw them at random
    if lost:
        raise ValueError(f"{folder}/model.safetensors lacks {len(lost)} weights of the model in its config.json, as {lost[0]}")
    torch.nn.utils.parametrize.remove_parametrizations(model.encoder.pos_conv_embed.conv, "weight", leave_parametrized=True)
    named = {_our_name(name): value.detach().clone() for name, value in model.state_dict().items()}
    return {name: value for name, value in named.items() if name}


def _our_name(name: str) -> str | None:
    """None for what the encoder has no use for (a mask's embedding, an adapter)."""
    for pattern, replacement in RENAMES:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    return None


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in FILES:
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
