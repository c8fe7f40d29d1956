"""Teachers of 94 M weights go the whole way: checked, heard, distilled from, fine-tuned, exported. Slow."""

import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.export import export_onnx, parity
from search_spaces.catalog import paper_student
from trainers.learning.batches import Augmentation
from trainers.learning.distill import distill
from trainers.learning.finetune import finetune
from trainers.learning.recipe import Recipe
from trainers.learning.targets import prepare_targets
from trainers.networks.inherit import inherit
from trainers.networks.student import Student
from trainers.speech.corpora import Corpus
from trainers.teacher.teacher import describe_teacher, load_teacher

WINDOW = 16_080
CPU = torch.device("cpu")

pytestmark = pytest.mark.slow


def base(family: str, folder: Path) -> None:
    """A checkpoint with the published Base sizes, which are transformers' defaults, and random weights."""
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(family)).save_pretrained(folder)


@pytest.mark.parametrize("family", ["hubert", "wav2vec2", "wavlm"])
def test_a_base_teacher_goes_the_whole_way(family: str, tiny_corpus: Corpus, tmp_path: Path) -> None:
    base(family, tmp_path / "base")
    described = describe_teacher(str(tmp_path / "base"))
    assert (described["family"], described["size"]) == (family, "Base")
    assert 94e6 < described["encoder_params"] < 95e6
    teacher = load_teacher(str(tmp_path / "base"))
    assert teacher.predicted_layers == (4, 8, 12)
    targets = prepare_targets(teacher, tiny_corpus, tmp_path, window=WINDOW, limit=8, seed=0, mode="cached")
    assert targets.states is not None and targets.states.shape == (8, 3, 50, 768)
    student = Student(
        paper_student(teacher.architecture),
        teacher.geometry,
        tiny_corpus.keyword_labels,
        predicted_layers=teacher.predicted_layers,
        target_width=768,
        is_folded=False,
    )
    inherit(student.encoder, teacher.encoder)
    losses = distill(student, targets, Recipe(batch=4, distill_rate=2e-4), steps=3, augment=Augmentation(), seed=0, device=CPU)
    assert losses[-1] < losses[0]
    tuned = finetune(student, tiny_corpus, Recipe(batch=4), steps=2, window=WINDOW, augment=Augmentation(), seed=0, device=CPU)
    assert np.isfinite(tuned).all()
    folded = student.folded()
    assert 23e6 < sum(weight.numel() for weight in folded.parameters()) < 24e6
    export_onnx(folded, tmp_path / "student.onnx", WINDOW)
    windows = 0.1 * np.random.default_rng(0).standard_normal((2, WINDOW)).astype(np.float32)
    assert parity(folded, tmp_path / "student.onnx", windows).ok
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 6e6  # kB: a workstation's memory suffices
