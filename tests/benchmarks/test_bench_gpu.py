"""The GPU benchmark in miniature, as on a machine that has torch and little else."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parent / "bench_gpu.py"
MISSING = ("ray", "pyarrow", "mlflow", "optuna", "soundfile", "typer", "nas", "deploy")
BLOCKER = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {MISSING!r}:
            raise ModuleNotFoundError(f"{{name}} is not on a machine that has torch alone")

sys.meta_path.insert(0, Blocker())
"""


def test_it_runs_where_torch_is(tmp_path: Path) -> None:
    """Its processes and the tests that it starts import nothing else either."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    places = os.pathsep.join([str(tmp_path), str(BENCH.parents[2])])
    done = subprocess.run(
        [sys.executable, str(BENCH), "--out", str(tmp_path / "gpu.json")],
        env={**os.environ, "PYTHONPATH": places, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["device"] == "cpu"
    for part in ("teacher_forward", "distillation", "joint_tuning"):
        assert all(measured["clips_per_second"] > 0 and measured["utilisation"] is None for measured in found[part].values())
    assert all(speed > 0 for speed in found["together"]["clips_per_second"].values())
    assert all(found["losses"][task]["largest_difference"] <= 0.03 for task in ("distillation", "joint tuning"))
    assert found["gpu_tests"]["exit"] == 0 and re.fullmatch(r"\d+ skipped in .*", found["gpu_tests"]["said"]), found["gpu_tests"]
