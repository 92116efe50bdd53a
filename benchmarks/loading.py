"""Compare the peak host memory of loading a text encoder with the bytes of its stored weights.

    python benchmarks/loading.py --layers 18 --width 1024 --stored bf16 fp32

Writes a random Llama of that size, then loads it as a frozen backbone, in a process of its own for each
--encoder_dtype, and runs it on one short sequence. Memory is the process's peak growth, given in two ways: including
pages of the mapped file, which the system frees when memory is needed, and the process's own memory alone. Linux only.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from measured import report

sys.path[1:1] = [str(Path(__file__).resolve().parents[1])]

from transrec.models.backbone import load_backbone  # noqa: E402
from transrec.models.held import DTYPES, store_in_dtype, stored_dtype  # noqa: E402

MOMENTS = 0.002


def make(folder: Path, layers: int, width: int, stored: str) -> None:
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=11 * width // 4,
        vocab_size=32_000,
        dtype=DTYPES[stored],
    )
    torch.manual_seed(0)
    LlamaModel(config).to(DTYPES[stored]).save_pretrained(folder)


def resident() -> tuple[int, int]:
    """Return the resident bytes of this process, and the part of them that is not file pages."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return tuple(1024 * int(re.search(rf"{name}:\s*(\d+)", status)[1]) for name in ("VmRSS", "RssAnon"))


def load(folder: Path, dtype: str) -> None:
    """Load and run the encoder; print the peak growth in bytes, the peak growth of own memory, and the seconds."""
    import transformers.models.llama.modeling_llama  # noqa: F401

    before, most, done = resident(), [0, 0], threading.Event()

    def watch() -> None:
        while not done.wait(MOMENTS):
            most[:] = map(max, most, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    held = stored_dtype(folder) if dtype == "auto" else DTYPES[dtype]
    model = load_backbone(folder, dtype=held)
    store_in_dtype(model, held)
    with torch.no_grad():
        model.eval()(input_ids=torch.ones(1, 8, dtype=torch.long))
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    print(json.dumps([*(m - b for m, b in zip(most, before, strict=True)), seconds]))


def main(given: argparse.Namespace) -> None:
    rows, figures = [], {}
    for stored in given.stored:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            make(Path(folder), given.layers, given.width, stored)
            size = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
            for dtype in given.held:
                command = [sys.executable, __file__, "--load", folder, "--held", dtype]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
                total, own, seconds = json.loads(output.splitlines()[-1])
                rows.append(
                    [
                        stored,
                        f"{size / 2**20:,.0f}",
                        dtype,
                        f"{total / size:.2f}",
                        f"{own / size:.2f}",
                        f"{seconds:.1f}",
                    ]
                )
                figures[f"{stored} held {dtype}, peak against stored bytes"] = total / size
    report(["stored", "MiB", "--encoder_dtype", "peak / stored", "of it its own / stored", "seconds"], rows, figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--stored", nargs="+", default=["bf16", "fp32"], choices=list(DTYPES))
    parser.add_argument("--held", nargs="+", default=["fp32", "auto", "bf16"], choices=["auto", *DTYPES])
    parser.add_argument(
        "--folder", type=Path, help="folder for the temporary encoder (default: the system's, see TMPDIR)"
    )
    parser.add_argument("--load", type=Path, help="only load the encoder in this folder, in this process")
    given = parser.parse_args()
    if given.load:
        load(given.load, given.held[0])
    else:
        main(given)
