"""--device_map: a frozen backbone spread over host memory and disk gives the same states as in one place."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from test_state_cache import cache_ahead
from transformers import AutoModel

from transrec.errors import TransrecError
from transrec.models import spread
from transrec.models.backbone import load_backbone
from transrec.models.spread import is_spread, memory_limits


@pytest.fixture(scope="module")
def encoder(backbones, tmp_path_factory):
    """Folder of a Llama whose file is in bfloat16."""
    folder = tmp_path_factory.mktemp("spread") / "llama"
    shutil.copytree(backbones["llama"], folder)
    AutoModel.from_pretrained(folder).to(torch.bfloat16).save_pretrained(folder)
    return folder


def test_spread_over_memory_and_disk(flags, encoder, tmp_path, monkeypatch, capsys):
    pytest.importorskip("accelerate", reason="needs accelerate, of the extra large")
    size = sum(path.stat().st_size for path in encoder.glob("*.safetensors"))
    most = {"cpu": 3 * size // 4}
    backbone = load_backbone(encoder, dtype=torch.bfloat16, spread={"device_map": "auto", "max_memory": most})
    held = sum(p.nbytes for p in backbone.parameters() if not p.is_meta)
    assert is_spread(backbone) and "disk" in backbone.hf_device_map.values() and 0 < held <= most["cpu"]
    ways = {"whole": [], "spread": ["--device_map", "auto", "--max_memory", f"cpu={size / 2**21:.4f}MiB"]}
    for dtype in ("auto", "fp32", "fp16"):
        found = []
        for name, more in ways.items():
            folder = tmp_path / name / dtype
            given = ["--text_encoder", str(encoder), "--encoder_dtype", dtype, "--state_cache", str(folder)]
            (path,), _ = cache_ahead(monkeypatch, capsys, *flags, *given, *more)
            found.append((path.name, load_file(path)["states"]))
        assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1]), dtype


def test_weights_that_stay_on_disk_are_checked(encoder, tmp_path):
    pytest.importorskip("accelerate", reason="needs accelerate, of the extra large")
    folder = tmp_path / "damaged"
    shutil.copytree(encoder, folder)
    model = AutoModel.from_pretrained(folder)
    model.layers[-1].mlp.down_proj.weight.data[0, 0] = torch.nan
    model.save_pretrained(folder)
    with pytest.raises(TransrecError, match=r"down_proj.weight holds NaN"):
        load_backbone(folder, spread={"device_map": "auto", "max_memory": {"cpu": 1}})


@pytest.mark.parametrize(
    ("method", "more", "expected"),
    [
        ("lora", [], "--method lora with --cached auto runs or trains them itself"),
        ("full", [], "--method full"),
        ("iisan", ["--cached", "yes", "--random_backbone"], "leave out --random_backbone"),
    ],
)
def test_what_trains_or_runs_in_steps_is_refused(command, method, more, expected):
    status, message = command("--device_map", "auto", *more, method=method)
    assert status == 2 and "--device_map auto: spreads" in message and expected in message


def test_accelerate_is_named_where_it_is_missing(command, monkeypatch):
    monkeypatch.setattr(spread, "find_spec", lambda name: None)
    status, message = command("--device_map", "auto", "--cached", "yes", method="iisan")
    assert status == 2 and "pip install 'transrec[large]'" in message


def test_bounds_of_devices(command):
    assert memory_limits(["0=20GiB", "cpu=0.5MiB"]) == {0: 20 * 2**30, "cpu": 2**19}
    for wrong in (["20GiB"], ["cpu=1GiB", "cpu=2GiB"], ["cpu=-1GiB"], ["0=1GB"]):
        with pytest.raises(TransrecError, match="give each device once"):
            memory_limits(wrong)
    assert command("--max_memory", "cpu=1GiB")[1].endswith("only with --device_map")
