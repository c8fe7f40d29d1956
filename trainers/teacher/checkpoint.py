"""The weights of a checkpoint in transformers format, by our names.

Only JSON and safetensors are opened. A pickle runs code when it is read, and so would a repository's own Python files: neither is
ever opened, and transformers' model classes have no part in loading.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from search_spaces.kinds import text_of
from trainers.networks.encoder import sinusoids

WEIGHTS, INDEX, SHARDS = "model.safetensors", "model.safetensors.index.json", "model*.safetensors"
PICKLES = ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.pkl")
PRECISIONS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
WAY_OUT = (
    "convert it on a machine that you trust (transformers: AutoModel.from_pretrained(IN).save_pretrained(OUT)) or take the "
    "safetensors that the hub offers for it as a pull request (ORG/NAME@refs/pr/NUMBER)"
)

WRAPPERS = re.compile(r"^(_orig_mod\.|module\.)+")  # of torch.compile and of DistributedDataParallel, saved as they were
# our module names, by regular expression over transformers' (the families share them; a task model's prefix is cut before)
POSITIONS = r"^encoder\.pos_conv_embed\.conv\."
ATTENTION = r"^encoder\.layers\.(\d+)\.attention\."
RENAMES = (
    (r"^feature_extractor\.conv_layers\.(\d+)\.conv\.", r"front.convs.\1."),
    (r"^feature_extractor\.conv_layers\.(\d+)\.layer_norm\.", r"front.norms.\1."),
    (r"^feature_projection\.layer_norm\.", "front_norm."),
    (r"^feature_projection\.projection\.", "projection."),
    (POSITIONS + r"(weight_g|parametrizations\.weight\.original0)$", "positions.gain"),
    (POSITIONS + r"(weight_v|parametrizations\.weight\.original1)$", "positions.direction"),
    (POSITIONS, "positions.conv."),
    (r"^encoder\.layer_norm\.", "norm."),
    (ATTENTION + r"(q|k|v|out)_proj\.", r"layers.\1.attention.\2."),
    (ATTENTION + r"rel_attn_embed\.", "relative.table."),
    (ATTENTION + r"gru_rel_pos_linear\.", r"layers.\1.attention.gate.projection."),
    (ATTENTION + r"gru_rel_pos_const$", r"layers.\1.attention.gate.scale"),
    (r"^encoder\.layers\.(\d+)\.layer_norm\.", r"layers.\1.attention_norm."),
    (r"^encoder\.layers\.(\d+)\.feed_forward\.intermediate_dense\.", r"layers.\1.ffn_in."),
    (r"^encoder\.layers\.(\d+)\.feed_forward\.output_dense\.", r"layers.\1.ffn_out."),
    (r"^encoder\.layers\.(\d+)\.final_layer_norm\.", r"layers.\1.ffn_norm."),
)
WHISPER = r"^(?:model\.)?(?:encoder\.)?"  # of a whole model, or saved alone; a decoder's names begin otherwise
WHISPER_LAYER = WHISPER + r"layers\.(\d+)\."
WHISPER_RENAMES = (
    (WHISPER + r"conv1\.", "front.convs.0."),
    (WHISPER + r"conv2\.", "front.convs.1."),
    (WHISPER + r"embed_positions\.weight$", "positions.table"),
    (WHISPER + r"layer_norm\.", "norm."),
    (WHISPER_LAYER + r"self_attn\.(q|k|v|out)_proj\.", r"layers.\1.attention.\2."),
    (WHISPER_LAYER + r"self_attn_layer_norm\.", r"layers.\1.attention_norm."),
    (WHISPER_LAYER + r"fc1\.", r"layers.\1.ffn_in."),
    (WHISPER_LAYER + r"fc2\.", r"layers.\1.ffn_out."),
    (WHISPER_LAYER + r"final_layer_norm\.", r"layers.\1.ffn_norm."),
)
LARGEST_ROUNDING = 5e-3  # of Whisper's positions, fixed sines and cosines, as they are stored: bfloat16's


def read_json(path: Path) -> dict[str, Any]:
    """Raises ValueError when the file is not a JSON object."""
    try:
        content = json.loads(text_of(path, "utf-8-sig"))
    except ValueError as error:  # not JSON, or not text
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a folder, one or the shards that its index names. Raises ValueError when there are none."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        pickle = next((path.name for pattern in PICKLES for path in sorted(folder.glob(pattern))), None)
        found = f", only a pickle ({pickle}), which could run code and is never opened" if pickle else ""
        raise ValueError(f"{folder} has no {WEIGHTS}{found}; {WAY_OUT}")
    shards = read_json(folder / INDEX).get("weight_map")
    names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{folder}/{INDEX} names {name!r}; allowed are safetensors in the same folder")
        if not (folder / name).is_file():
            raise ValueError(f"{folder} lacks {name}, one of the {len(names)} files that its {INDEX} names")
    if not names:
        raise ValueError(f"{folder}/{INDEX} names no files")
    return [folder / name for name in names]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is damaged or not complete ({' '.join(str(error).split())})") from error


def read_weights(folder: Path, family: str) -> dict[str, Tensor]:
    """The encoder's weights in float32 by our names; what else a task model has is left where it is."""
    weights: dict[str, Tensor] = {}
    for path in weight_files(folder):
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118  (no mapping)
                if ours := our_name(WRAPPERS.sub("", name).removeprefix(f"{family}."), family):
                    precision = file.get_slice(name).get_dtype()
                    if precision not in PRECISIONS:
                        raise ValueError(f"{path}: {name} is {precision}; a teacher's weights are {', '.join(PRECISIONS.values())}")
                    weights[ours] = file.get_tensor(name).to(torch.float32, copy=True)  # else it stays mapped to the file
    if not weights:
        raise ValueError(f"{folder} has no weights of a {family} encoder")
    if "positions.table" in weights:
        _check_positions(folder, weights["positions.table"])
    try:
        return _folded(weights)
    except (RuntimeError, IndexError) as error:
        raise ValueError(f"{folder}: the positional weights do not fit together ({' '.join(str(error).split())})") from error


def _check_positions(folder: Path, table: Tensor) -> None:
    """Raises ValueError where they are not the fixed ones, which are no weights."""
    fixed = sinusoids(len(table), table.shape[-1] + table.shape[-1] % 2)[:, : table.shape[-1]] if table.ndim == 2 else table
    if table.ndim != 2 or not torch.allclose(table, fixed, rtol=0, atol=LARGEST_ROUNDING):
        raise ValueError(f"{folder}: the encoder's positions are not Whisper's fixed sines and cosines: it cannot be a teacher")


def our_name(name: str, family: str = "hubert") -> str | None:
    """None for what the encoder has no use for (a mask's embedding, an adapter, a task's head, a decoder)."""
    for pattern, replacement in WHISPER_RENAMES if family == "whisper" else RENAMES:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    return None


def _folded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weight norm of the positions multiplied out, tap by tap, and WavLM's gates summed by fours: the same function."""
    if {"positions.gain", "positions.direction"} <= set(weights):
        direction = weights.pop("positions.direction")
        weights["positions.conv.weight"] = direction * (weights.pop("positions.gain") / direction.norm(dim=(0, 1), keepdim=True))
    for name, value in weights.items():
        if ".gate.projection." in name:
            weights[name] = torch.unflatten(value, 0, (2, 4)).sum(1)
        if name.endswith(".gate.scale"):
            weights[name] = value.flatten()
    return weights


def stored_weights(folder: Path) -> tuple[int, list[str]]:
    """How many numbers the files hold, a task's head included, and in which precisions."""
    count, precisions = 0, set[str]()
    for path in weight_files(folder):
        with _opened(path) as file:
            slices = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118
            count += sum(torch.Size(part.get_shape()).numel() for part in slices)
            precisions |= {part.get_dtype() for part in slices}
    return count, sorted(PRECISIONS.get(name, name) for name in precisions)
