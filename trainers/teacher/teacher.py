"""The teacher: a HuBERT, wav2vec 2.0, WavLM or Whisper checkpoint in transformers format, turned into our own encoder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from search_spaces.architecture import SAMPLE_RATE, Architecture, Geometry
from trainers.networks.dimensions import FRAME_RATE, dimensions
from trainers.networks.encoder import SpeechEncoder
from trainers.teacher import checkpoint
from trainers.teacher import folder as teacher_folder

__all__ = ["Teacher", "describe_teacher", "dimensions", "load_teacher"]

FEWEST_HEARD = 3  # layers of a supervised teacher that a student predicts
PUBLISHED_SIZES = {  # front width, layers, width, heads, feed-forward units
    (512, 12, 768, 12, 3072): "Base",
    (512, 24, 1024, 16, 4096): "Large",
    (512, 48, 1280, 16, 5120): "X-Large",
    (384, 4, 384, 6, 1536): "Whisper tiny",
    (512, 6, 512, 8, 2048): "Whisper base",
    (768, 12, 768, 12, 3072): "Whisper small",
    (1024, 24, 1024, 16, 4096): "Whisper medium",
    (1280, 32, 1280, 20, 5120): "Whisper large",
}


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """name: as the user gave it. digest: of configuration and weights. encoder: in evaluation mode, float32, not trained. licence:
    as its folder states it."""

    name: str
    digest: str
    encoder: SpeechEncoder
    licence: str = teacher_folder.NOT_STATED

    @property
    def is_supervised(self) -> bool:
        """Trained with transcripts, as Whisper is; the other families learn from speech alone."""
        return self.encoder.geometry.family == "whisper"

    @property
    def architecture(self) -> Architecture:
        return self.encoder.architecture

    @property
    def geometry(self) -> Geometry:
        """Its students' geometry: the teacher's own, `encoder.geometry`, less WavLM's relative position bias."""
        return self.encoder.geometry.of_students

    @property
    def predicted_layers(self) -> tuple[int, ...]:
        """The layers that a student predicts: 4, 8 and 12 of 12 (arXiv 2210.16611), in proportion for another depth. Of a Whisper,
        likewise of its lower half or of three layers: what lies above has thrown the voice away."""
        depth = self.architecture.depth
        if self.is_supervised:
            depth = min(depth, max(FEWEST_HEARD, depth // 2))
        return tuple(sorted({max(1, round(depth * third / 3)) for third in (1, 2, 3)}))


def load_teacher(source: str) -> Teacher:
    """A bundled name, a folder in transformers format, or a hub id. Raises ValueError when it is none of these."""
    return _load(source)[0]


def _load(source: str) -> tuple[Teacher, Path, dict[str, str]]:
    """With the folder, and the hashes of its files."""
    folder = teacher_folder.find_folder(source)
    config = teacher_folder.read_config(folder)
    heard, where = teacher_folder.read_preprocessing(folder, config), f"{folder}/{teacher_folder.CONFIG}"
    architecture, geometry = dimensions(config, heard.normalizes, sample_rate=heard.sample_rate, where=where)
    encoder = _encoder(folder, config["model_type"], architecture, geometry)
    hashes = teacher_folder.file_hashes(folder)
    digest, licence = teacher_folder.digest(hashes), teacher_folder.licence(folder)
    return Teacher(name=source, digest=digest, encoder=encoder, licence=licence), folder, hashes


def _encoder(folder: Path, family: str, architecture: Architecture, geometry: Geometry) -> SpeechEncoder:
    """The weights become the encoder's own: a teacher is held once in memory."""
    with torch.device("meta"):
        encoder = SpeechEncoder(architecture, geometry)
    weights = checkpoint.read_weights(folder, family)
    shapes, wanted = ({name: tuple(value.shape) for name, value in of.items()} for of in (weights, encoder.state_dict()))
    misfits = sorted({name for name, _ in wanted.items() ^ shapes.items()})
    if misfits:
        stored, needed = (of.get(misfits[0], "none") for of in (shapes, wanted))
        raise ValueError(
            f"{folder}: {len(misfits)} weights do not fit the config.json, such as {misfits[0]}: the files have {stored}, "
            f"the model {needed}"
        )
    encoder.load_state_dict(weights, assign=True)
    return encoder.eval().requires_grad_(False)


def size_name(a: Architecture) -> str:
    """The published size that a teacher has, else `custom`."""
    return PUBLISHED_SIZES.get((a.front_width, a.depth, a.width, a.heads[0], a.ffn_dims[0]), "custom")


@torch.no_grad()
def describe_teacher(source: str) -> dict[str, Any]:
    """What a teacher is, as JSON values, after it was loaded and heard a second of noise.

    Raises ValueError when it cannot be loaded, or when one of its hidden states is not finite.
    """
    teacher, folder, hashes = _load(source)
    states = teacher.encoder(torch.randn(1, SAMPLE_RATE, generator=torch.Generator().manual_seed(0)))
    for layer, state in enumerate(states):
        if not state.isfinite().all():
            raise ValueError(f"{folder}: hidden state {layer} of {len(states) - 1} is not finite on a second of noise")
    a, g, config = teacher.architecture, teacher.encoder.geometry, teacher_folder.read_config(folder)
    stored, precisions = checkpoint.stored_weights(folder)
    return {
        "teacher": source,
        "family": config["model_type"],
        "supervised": teacher.is_supervised,
        "size": size_name(a),
        "params": stored,
        "encoder_params": sum(weight.numel() for weight in teacher.encoder.parameters()),
        "layers": a.depth,
        "width": a.width,
        "heads": a.heads[0],
        "ffn_dim": a.ffn_dims[0],
        "frames_per_second": FRAME_RATE,
        "frame_center": "320 t" if g.family == "whisper" else "320 t + 200",
        "conv_dims": list(g.conv_dims),
        "conv_norm": g.front_norm,
        "conv_bias": g.conv_bias,
        "norm_order": g.norm_order,
        "normalize_input": g.normalize_input,
        "normalize_input_assumed": teacher_folder.read_preprocessing(folder, config).assumed,
        "position_table": g.position_table,
        "mel_bins": g.mel_bins if g.family == "whisper" else None,
        "relative_buckets": g.relative_buckets,
        "relative_distance": g.relative_distance,
        "predicted_layers": list(teacher.predicted_layers),
        "precision": precisions,
        "files": {name: {"bytes": (folder / name).stat().st_size, "sha256": value} for name, value in hashes.items()},
        "digest": teacher.digest,
        "licence": teacher.licence,
        "finite": True,
    }
