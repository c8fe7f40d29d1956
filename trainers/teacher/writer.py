"""A teacher of one's own as a folder in transformers format: configuration, safetensors in float16, preprocessing, model card."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import parametrizations, parametrize

from trainers.networks.encoder import SpeechEncoder
from trainers.teacher.checkpoint import our_name
from trainers.teacher.folder import BUNDLED, CARD, CONFIG, find_folder, read_config, read_preprocessing

NEVER_MASKED = "masked_spec_embed"  # of fine-tuning in transformers; the encoder has none


@torch.no_grad()
def write_teacher(encoder: SpeechEncoder, config: dict[str, Any], folder: Path, card: str) -> None:
    """Writes a HuBERT that transformers and `load_teacher` read; `config.json` is renamed into place last.

    config: HubertConfig's fields. Raises ValueError when the folder holds a teacher already.
    """
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor
    from transformers.utils import logging

    if (folder / CONFIG).exists():
        raise ValueError(f"{folder} holds a teacher: choose another folder, or remove it")
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model = HubertModel(HubertConfig(**config))
    weights = encoder.state_dict()
    positions = model.encoder.pos_conv_embed.conv
    parametrize.remove_parametrizations(positions, "weight")
    for name, value in model.state_dict().items():
        if name != NEVER_MASKED:
            ours = our_name(name)
            assert ours is not None, name
            value.copy_(weights[ours])
    parametrizations.weight_norm(positions, name="weight", dim=2)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".", ignore_cleanup_errors=True) as temporary:
        part = Path(temporary)
        model.half().save_pretrained(part)  # type: ignore[no-untyped-call]
        preprocessing = Wav2Vec2FeatureExtractor(do_normalize=encoder.geometry.normalize_input)  # type: ignore[no-untyped-call]
        preprocessing.save_pretrained(part)
        (part / CARD).write_text(card)
        for path in sorted(part.iterdir(), key=lambda path: path.name == CONFIG):
            path.replace(folder / path.name)


def teacher_shape(shape: str) -> tuple[dict[str, Any], bool]:
    """HubertConfig's fields, and whether input is normalised, of `base`, `large`, `mini-hubert`, or a folder with a HuBERT's
    config.json.

    Raises ValueError for anything else.
    """
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    norms = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    if shape in ("base", "large"):
        return {"model_type": "hubert", **(large | norms if shape == "large" else {})}, True
    if shape not in BUNDLED and not Path(shape).is_dir():
        raise ValueError(f"shape {shape!r} is neither mini-hubert, base, large nor a folder with a config.json")
    folder = find_folder(shape)
    config = read_config(folder)
    if config["model_type"] != "hubert":
        raise ValueError(f"{folder} is a {config['model_type']!r} model; only a HuBERT can be pretrained")
    return config, read_preprocessing(folder, config).normalizes
