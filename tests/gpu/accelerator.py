"""The device under test, and the report that the tests write about it.

With TRANSREC_TEST_DEVICE=cpu, all tests that make sense on a CPU run there, to try the tests themselves.
"""

import json
import os
import platform
from pathlib import Path

# To be set before CUDA starts: only with such a workspace are its matrix products deterministic.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch
import transformers

from transrec.paths import default_runs_folder
from transrec.reports.tables import markdown

COLUMNS = ("run", "precision", "loss", "HR@10", "seconds per epoch", "peak memory, MiB", "host, MiB")


def chosen() -> torch.device:
    """Return the device to test. Skips the calling module if the device is not available."""
    name = os.environ.get("TRANSREC_TEST_DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device", allow_module_level=True)
    return torch.device(name)


def facts(device: torch.device) -> dict:
    """Return the facts about the device and its software."""
    values = {"device": str(device), "python": platform.python_version(), "torch": torch.__version__}
    values |= {"transformers": transformers.__version__, "cpu_count": os.cpu_count()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        values |= {
            "name": properties.name,
            "cards": torch.cuda.device_count(),
            "capability": f"{properties.major}.{properties.minor}",
            "memory_mib": properties.total_memory / 2**20,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
            "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
        }
    return values


class Report:
    """Rows of what runs cost, printed and written after the tests, even if some failed.

    The file is report.json in the folder that TRANSREC_GPU_REPORT names, runs/gpu by default.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.results: list[dict] = []
        self.findings: dict[str, object] = {}

    def add(self, name: str, result: dict, first_loss: float) -> None:
        """Add a run's result, and the training loss of its first epoch."""
        self.results.append({"run": name, "train_loss": first_loss} | result)

    def find(self, name: str, value: object) -> None:
        """Record an observation that no assertion checks."""
        self.findings[name] = value

    def table(self) -> str:
        rows = [
            [
                result["run"],
                result["precision"],
                f"{result['train_loss']:.5f}",
                f"{result['test']['HR@10']:.4f}",
                f"{result['seconds_per_epoch']:.3f}",
                f"{result['peak_memory_mib']:,.0f}",
                f"{result['peak_host_memory_mib']:,.0f}",
            ]
            for result in self.results
        ]
        return markdown(list(COLUMNS), rows)

    def write(self) -> Path:
        folder = Path(os.environ.get("TRANSREC_GPU_REPORT") or default_runs_folder() / "gpu")
        folder.mkdir(parents=True, exist_ok=True)
        content = {"facts": facts(self.device), "findings": self.findings, "runs": self.results}
        (folder / "report.json").write_text(json.dumps(content, indent=2) + "\n")
        (folder / "report.md").write_text(self.table() + "\n")
        return folder
