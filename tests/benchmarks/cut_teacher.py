"""Cuts a Whisper encoder to its first layers: how the bundled teacher `mini` was made.

    python tests/benchmarks/cut_teacher.py WHISPER_FOLDER OUT --layers 3

Weights stay as they are stored. The final layer norm, whose weights belong to the last layer, becomes a plain one.
"""

import argparse
import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from trainers.teacher.checkpoint import WHISPER_LAYER, weight_files
from trainers.teacher.folder import CONFIG, PREPROCESSORS, read_config

LAYER_NORM = "encoder.layer_norm."


def cut(source: Path, out: Path, layers: int) -> None:
    config = read_config(source)
    kept = {}
    for path in weight_files(source):
        for name, value in load_file(path).items():
            layer = re.match(WHISPER_LAYER, name)
            if "decoder." not in name and (layer is None or int(layer[1]) < layers):
                kept[name] = value
    for name, value in kept.items():
        if LAYER_NORM in name:
            kept[name] = torch.ones_like(value) if name.endswith("weight") else torch.zeros_like(value)
    out.mkdir(parents=True)
    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    (out / CONFIG).write_text(json.dumps({**config, "encoder_layers": layers}, indent=1) + "\n")
    for name in (*PREPROCESSORS, "LICENSE"):
        if (source / name).is_file():
            (out / name).write_bytes((source / name).read_bytes())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=3)
    arguments = parser.parse_args()
    cut(arguments.source, arguments.out, arguments.layers)
