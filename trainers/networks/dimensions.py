"""A configuration of transformers as our architecture and geometry; what our encoder cannot compute is refused."""

import math
from collections.abc import Mapping
from typing import Any

from search_spaces.architecture import FRAME_SAMPLES, FRONT_KERNELS, FRONT_STRIDES, SAMPLE_RATE, Architecture, Geometry

LAYER_NORM_EPS = 1e-5  # torch's default, and of every published checkpoint
FRAME_RATE = SAMPLE_RATE // FRAME_SAMPLES
LARGEST_SIZE, MOST_LAYERS = 65_536, 1_000  # a damaged configuration must not fill the memory
SIZES = f"a size below 1 or above {LARGEST_SIZE:,}, or more than {MOST_LAYERS} layers"
ENCODER_FIELDS = (  # of a config.json; the others are a task's, a training's or a decoder's
    "activation_function",
    "adapter_attn_dim",
    "conv_bias",
    "conv_dim",
    "conv_kernel",
    "conv_pos_batch_norm",
    "conv_stride",
    "d_model",
    "do_stable_layer_norm",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "encoder_layers",
    "feat_extract_activation",
    "feat_extract_norm",
    "feat_proj_layer_norm",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_norm_eps",
    "max_bucket_distance",
    "max_source_positions",
    "num_attention_heads",
    "num_buckets",
    "num_conv_pos_embedding_groups",
    "num_conv_pos_embeddings",
    "num_hidden_layers",
    "num_mel_bins",
)


def dimensions(
    raw: dict[str, Any], normalizes: bool, *, sample_rate: int = SAMPLE_RATE, where: str = "config.json"
) -> tuple[Architecture, Geometry]:
    """Of the teacher that a configuration describes, its relative position bias included; `normalizes`: its input is normalised.

    Raises ValueError, naming `where` it stands, when it is not valid, gives other than 50 frames a second, or has parts that
    our encoder lacks.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        # a built-in class, which fills in what the file leaves to defaults
        config = AutoConfig.for_model(raw["model_type"], **{name: raw[name] for name in ENCODER_FIELDS if name in raw})
    except (StrictDataclassError, TypeError) as error:
        raise ValueError(f"{where} is not valid: {' '.join(str(error).split())}") from None
    if raw["model_type"] == "whisper":
        return _whisper(where, config, normalizes)
    _check_frames(where, config, sample_rate)
    _check_supported(where, config)
    depth, relative = config.num_hidden_layers, raw["model_type"] == "wavlm"
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
        relative_buckets=config.num_buckets if relative else 0,
        relative_distance=config.max_bucket_distance if relative else 0,
    )
    return architecture, geometry


def _whisper(where: str, config: Any, normalizes: bool) -> tuple[Architecture, Geometry]:
    width, heads, depth, units = config.d_model, config.encoder_attention_heads, config.encoder_layers, config.encoder_ffn_dim
    sizes = (width, heads, depth, units, config.num_mel_bins, config.max_source_positions)
    _refuse(
        where,
        {
            SIZES: not all(1 <= size <= LARGEST_SIZE for size in sizes) or depth > MOST_LAYERS,
            "a d_model that its heads do not divide, or that is odd": bool(width % max(1, heads) or width % 2),
            "another activation than gelu": config.activation_function != "gelu",
        },
    )
    architecture = Architecture(
        front_end="mel",
        front_width=width,
        frame_stride=1,
        width=width,
        heads=(heads,) * depth,
        ffn_dims=(units,) * depth,
        kept_layers=tuple(range(1, depth + 1)),
    )
    geometry = Geometry(
        family="whisper",
        head_dim=width // heads,
        conv_dims=(width, width),
        conv_bias=True,
        front_norm="none",
        norm_order="pre",
        position_kernel=0,
        position_groups=1,
        position_table=config.max_source_positions,
        mel_bins=config.num_mel_bins,
        normalize_input=normalizes,
    )
    return architecture, geometry


def _check_frames(where: str, config: Any, sample_rate: int) -> None:
    strides, kernels = tuple(config.conv_stride), tuple(config.conv_kernel)
    if (strides, kernels, sample_rate) != (FRONT_STRIDES, FRONT_KERNELS, SAMPLE_RATE):
        rate = sample_rate / max(1, math.prod(strides))
        raise ValueError(
            f"{where} gives {rate:g} frames a second (strides {strides}, kernels {kernels}, {sample_rate} Hz); a teacher gives "
            f"{FRAME_RATE}, by HuBERT's convolutions: strides {FRONT_STRIDES}, kernels {FRONT_KERNELS}, {SAMPLE_RATE} Hz"
        )


def _check_supported(where: str, config: Any) -> None:
    width, heads, layers, groups = (
        getattr(config, name)
        for name in ("hidden_size", "num_attention_heads", "num_hidden_layers", "num_conv_pos_embedding_groups")
    )
    sizes = (width, heads, layers, groups, config.intermediate_size, config.num_conv_pos_embeddings, *config.conv_dim)
    buckets, distance = getattr(config, "num_buckets", 4), getattr(config, "max_bucket_distance", 2)
    checks = {
        SIZES: not all(1 <= size <= LARGEST_SIZE for size in sizes) or layers > MOST_LAYERS,
        "a hidden_size that its heads or position groups do not divide": any(width % max(1, part) for part in (heads, groups)),
        "batch norm in its positions": getattr(config, "conv_pos_batch_norm", False),
        "no layer norm before its projection": not getattr(config, "feat_proj_layer_norm", True),
        "adapters in its attention": getattr(config, "adapter_attn_dim", None) is not None,
        "another CNN norm than group or layer": config.feat_extract_norm not in ("group", "layer"),
        "another activation than gelu": {config.hidden_act, config.feat_extract_activation} != {"gelu"},
        f"another layer_norm_eps than {LAYER_NORM_EPS}": config.layer_norm_eps != LAYER_NORM_EPS,
        "too few buckets or too short a max_bucket_distance": buckets < 4 or distance <= buckets // 4,
    }
    _refuse(where, checks)


def _refuse(where: str, checks: Mapping[str, bool]) -> None:
    for reason, found in checks.items():
        if found:
            raise ValueError(f"{where} describes a model with {reason}: it cannot be a teacher")
