"""Runs on a GPU: every tower and method in every precision, determinism, resuming, ranks, compiling, memory.

`make test-gpu` runs all of them; a failure does not stop the others. Without CUDA they are skipped.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import accelerator
import numpy as np
import pytest
import torch
from conftest import BOTH, REPOSITORY, encoder_flags, fitting, run
from examples import small_flags
from safetensors.torch import load_file
from test_training import ENVIRONMENT, SCRIPTS, assert_same_run, best, finish, numbers, wait_for_state
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

from transrec import methods, runner
from transrec.data.catalog import cached_tokens
from transrec.data.dataset import load_dataset
from transrec.data.demo import Domain, make_domain_with_store, make_image_backbone, make_text_backbone
from transrec.data.features import TextFeatures
from transrec.errors import TransrecError
from transrec.finished import load_run
from transrec.models.backbone import load_tokenizer
from transrec.options import EvaluationOptions
from transrec.training import evaluation
from transrec.training.compiling import check_compiler
from transrec.training.distributed import World
from transrec.training.evaluation import Ranker
from transrec.training.precision import Precision

DEVICE = accelerator.chosen()
ON_CUDA = DEVICE.type == "cuda"
needs_cuda = pytest.mark.skipif(not ON_CUDA, reason="means nothing without CUDA")
PRECISIONS = ("fp32", "bf16", "fp16")
# Accepted difference between a first epoch's mean loss and that of float32 on the CPU. Sums are taken in another order
# and with fewer bits, which Adam's steps amplify; fp16 skips its first steps, until its loss scale fits.
NEAR = {"fp32": 5e-4, "bf16": 0.02, "fp16": 0.1}
STILL = ["--dropout", "0", "--backbone_dropout", "off"]
# Width, depth, pixels and patches of the papers' backbones; tiny if the device is not a GPU.
BASE = (
    {"hidden_size": 768, "layers": 12, "heads": 12, "inner_size": 3072} if ON_CUDA else {"hidden_size": 32, "layers": 2}
)
PIXELS, PATCH = (224, 16) if ON_CUDA else (32, 8)
RUN_ENVIRONMENT = ENVIRONMENT | {
    "PYTHONPATH": os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
}


@pytest.fixture(scope="module")
def report(request):
    device_report = accelerator.Report(DEVICE)
    yield device_report
    folder = device_report.write()
    terminal = request.config.pluginmanager.get_plugin("terminalreporter")
    for line in (
        "",
        json.dumps(accelerator.facts(DEVICE)),
        device_report.table(),
        json.dumps(device_report.findings),
        f"in {folder}",
    ):
        terminal.write_line(line)


@pytest.fixture
def flags(flags):
    return [*flags, "--device", DEVICE.type, "--precision", "fp32"]


@pytest.fixture(autouse=True)
def fresh_peak():
    if ON_CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


TOWERS = {
    "text": ("bert", "houlsby", []),
    "text, decoder": ("llama", "lora", []),
    "image": ("vit", "houlsby", ["--objective", "cpc", "--image_workers", "2"]),
    "multimodal": (BOTH, "houlsby", ["--objective", "in_batch", "--image_workers", "2"]),
    "iisan": (BOTH, "iisan", ["--objective", "in_batch", "--cached", "no"]),
    "iisan cached, gpu": (BOTH, "iisan", ["--objective", "in_batch", "--cached", "--cache_device", "gpu"]),
    "iisan cached, cpu": (BOTH, "iisan", ["--objective", "in_batch", "--cached", "--cache_device", "cpu"]),
    "iisan cached, disk": (BOTH, "iisan", ["--objective", "in_batch", "--cached", "--cache_device", "disk"]),
}


def first_loss(folder: Path) -> float:
    return numbers(folder)["epochs"][0]["train_loss"]


@pytest.fixture(scope="module")
def on_the_cpu(tmp_path_factory):
    """Return a function that gives the first epoch's loss of a named run on the CPU in float32, run only once."""
    losses: dict[str, float] = {}

    def of(name: str, arguments: list[str], method: str) -> float:
        if name not in losses:
            folder = tmp_path_factory.mktemp("cpu") / "run"
            run(
                [*arguments, "--device", "cpu", "--precision", "fp32", "--epochs", "1", "--output", str(folder)], method
            )
            losses[name] = first_loss(folder)
        return losses[name]

    return of


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tower", TOWERS)
def test_a_short_run(flags, backbones, tmp_path, on_the_cpu, report, tower, precision):
    kind, method, more = TOWERS[tower]
    arguments = [*flags, *encoder_flags(kind, backbones), *STILL, *more]
    states = ["--state_cache", str(tmp_path / "states")] if "--cached" in more else []
    result = run([*arguments, *states, "--precision", precision, "--output", str(tmp_path / "run")], method)
    report.add(tower, result, first_loss(tmp_path / "run"))
    assert np.isfinite([*result["test"].values(), *result["validation"].values()]).all()
    assert all(tensor.dtype == torch.float32 for tensor in best(tmp_path / "run").values())
    assert result["peak_memory_mib"] > 0
    reference = [*states[:1], str(tmp_path / "reference")] if states else []
    expected = on_the_cpu(tower, [*arguments, *reference], method)
    assert first_loss(tmp_path / "run") == pytest.approx(expected, rel=NEAR[precision])


@pytest.mark.parametrize("objective", ["bce", "in_batch"])
@pytest.mark.parametrize("method", methods.names())
def test_every_method_over_titles_and_images(flags, backbones, tmp_path, on_the_cpu, method, objective):
    """Without dropout, the loss equals that on the CPU, with deterministic algorithms only."""
    arguments = [*flags, *encoder_flags(BOTH, backbones), *STILL, *small_flags(method), "--objective", objective]
    run([*arguments, "--epochs", "1", "--output", str(tmp_path / "run")], method)
    expected = on_the_cpu(f"{method} {objective}", arguments, method)
    assert first_loss(tmp_path / "run") == pytest.approx(expected, rel=NEAR["fp32"])


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory):
    """The small dataset with images of 48 x 48, which every backbone here resizes."""
    folder = tmp_path_factory.mktemp("data") / "jpegs"
    make_domain_with_store(folder, Domain("small", users=60, items=150, longest=9, seed=3), size=48)
    return folder


VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}


@pytest.mark.parametrize(
    "kind", ["roberta", "llama, mean", "vit", "mae", "mae, masked", "clip", "dinov2", "dinov2, 48"]
)
def test_every_backbone_trained_in_full(flags, backbones, jpegs, tmp_path, report, kind):
    """An operation without a deterministic kernel must fail in one line that says what to do."""
    name, _, special = kind.partition(", ")
    more = {"mean": ["--text_pooling", "mean"], "masked": ["--mask_ratio", "0.75"]}.get(special, [])
    if name in backbones:
        arguments = [*flags, *encoder_flags(name, backbones)]
    else:
        arguments = [*flags, *encoder_flags("vit", backbones), "--image_encoder", str(tmp_path / name)]
        # Position embeddings are interpolated for sizes that differ from the configuration's.
        size = int(special or 32)
        if name == "clip":
            text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
            vision = VISION | {"intermediate_size": 64, "image_size": size}
            CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).save_pretrained(tmp_path / name)
        else:
            Dinov2Model(Dinov2Config(**VISION, mlp_ratio=2, image_size=size)).save_pretrained(tmp_path / name)
        (tmp_path / name / "preprocessor_config.json").write_text('{"size": {"height": 32, "width": 32}}')
    if "image" in arguments:
        arguments += ["--dataset", str(jpegs)]
    try:
        result = run([*arguments, *more, "--epochs", "1", "--output", str(tmp_path / "run")], "full")
    except TransrecError as error:
        report.find(f"full over {kind}", str(error))
        assert "deterministic" in str(error)
        return
    assert np.isfinite(result["test"]["MRR"])


def test_places_of_cached_states_change_no_number(flags, backbones, tmp_path):
    arguments = [*flags, *encoder_flags(BOTH, backbones), "--objective", "in_batch", "--cached"]
    for place in ("gpu", "cpu", "disk"):
        states = ["--state_cache", str(tmp_path / "states"), "--cache_device", place]
        run([*arguments, *states, "--output", str(tmp_path / place)], "iisan")
    for place in ("cpu", "disk"):
        assert numbers(tmp_path / "gpu")["epochs"] == numbers(tmp_path / place)["epochs"]


def test_states_are_those_of_the_cpu(flags, backbones, tmp_path):
    arguments = [*flags, *encoder_flags(BOTH, backbones), "--objective", "in_batch", "--cached", "--epochs", "1"]
    arguments += ["--state_dtype", "fp32", "--precision", "fp32"]
    places = {"ours": DEVICE.type, "theirs": "cpu"}
    for name, device in places.items():
        more = ["--device", device, "--state_cache", str(tmp_path / name), "--output", str(tmp_path / f"run-{name}")]
        run([*arguments, *more], "iisan")
    files = sorted(path.name for path in (tmp_path / "ours").glob("*.safetensors"))
    assert len(files) == 2
    for file in files:
        ours, theirs = (load_file(tmp_path / name / file)["states"] for name in places)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def start(script: str, arguments: list[str]) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPTS / script), *fitting(arguments)]
    return subprocess.Popen(command, env=RUN_ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tower", ["text", "multimodal", "iisan cached, gpu"])
def test_the_same_numbers_twice(flags, backbones, tmp_path, tower, precision):
    """Two runs are equal bit for bit, also with dropout."""
    kind, method, more = TOWERS[tower]
    states = ["--state_cache", str(tmp_path / "states")] if "--cached" in more else []
    arguments = [*flags, *encoder_flags(kind, backbones), *more, *states, "--precision", precision, "--lr", "1e-2"]
    for name in "ab":
        run([*arguments, "--output", str(tmp_path / name)], method)
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_the_same_numbers_in_two_processes_of_their_own(flags, backbones, tmp_path):
    """Equal across processes: full fine-tuning of both backbones, images read by workers, `auto` precision."""
    arguments = [*flags, *encoder_flags(BOTH, backbones), "--image_workers", "2", "--objective", "in_batch"]
    arguments += ["--precision", "auto", "--backbone_lr", "1e-3"]
    both = [start("../../Multimodal/script/run_fft.py", [*arguments, "--output", str(tmp_path / n)]) for n in "ab"]
    for process in both:
        finish(process)
    assert_same_run(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_resuming_after_sigkill(flags, backbones, tmp_path, precision):
    """The resumed state includes fp16's loss scale."""
    arguments = [*flags, "--precision", precision, "--batch_size", "2", "--epochs", "4", "--save_steps", "3"]
    arguments += ["--lr", "1e-2"]
    finish(start("finetune.py", [*arguments, "--output", str(tmp_path / "whole")]))
    process = start("finetune.py", [*arguments, "--output", str(tmp_path / "parts")])
    wait_for_state(tmp_path / "parts", lambda epoch, step: epoch == 2 and step >= 3)
    process.send_signal(signal.SIGKILL)
    finish(process, -signal.SIGKILL)
    output = finish(start("finetune.py", ["--resume", str(tmp_path / "parts")]))
    assert re.search(r"resumed +epoch [23]", output)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def torchrun(processes: int, script: Path, arguments: list[str]) -> str:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", str(script)]
    command = [sys.executable, *launcher, *fitting(arguments)]
    done = subprocess.run(command, env=RUN_ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


WORKER = Path(__file__).with_name("nccl_worker.py")
needs_two_cards = pytest.mark.skipif(
    ON_CUDA and torch.cuda.device_count() < 2, reason="needs two cards: NCCL takes one process on each"
)


def test_what_ranks_tell_each_other_in_a_world_of_one():
    """Over NCCL on a GPU."""
    assert "rank 0 of 1" in torchrun(1, WORKER, [DEVICE.type])


@needs_two_cards
def test_what_two_ranks_tell_each_other():
    output = torchrun(2, WORKER, [DEVICE.type])
    assert "rank 0 of 2" in output and "rank 1 of 2" in output


def test_a_run_in_a_world_of_one(flags, tmp_path):
    torchrun(1, SCRIPTS / "finetune.py", [*flags, "--output", str(tmp_path / "torchrun")])
    finish(start("finetune.py", [*flags, "--output", str(tmp_path / "plain")]))
    assert_same_run(tmp_path / "torchrun", tmp_path / "plain")


@needs_two_cards
@pytest.mark.parametrize("objective", ["bce", "in_batch"])
def test_two_ranks_train_to_the_numbers_of_one(flags, tmp_path, report, objective):
    arguments = [*flags, *STILL, "--objective", objective]
    for processes in ("1", "2"):
        more = ["--nproc", processes, "--output", str(tmp_path / processes)]
        finish(start("adapter_houlsby.py", [*arguments, *more]))
    one, two = (numbers(tmp_path / processes) for processes in "12")
    report.find(f"two ranks, {objective}", two)
    for a, b in zip(one["epochs"], two["epochs"], strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)


@needs_cuda
def test_more_processes_than_cards(flags, tmp_path):
    cards = torch.cuda.device_count()
    output = finish(start("finetune.py", [*flags, "--nproc", str(cards + 1), "--output", str(tmp_path / "run")]), 2)
    assert output.count("error: ") == 1 and f"this machine has {cards} GPUs" in output and "Traceback" not in output


@needs_cuda
def test_too_little_memory_is_told_in_a_line(flags, tmp_path, monkeypatch, capsys):
    """As on a card whose memory other programs have filled."""
    torch.cuda.empty_cache()
    most = torch.cuda.memory_reserved() + 4 * 2**20
    torch.cuda.set_per_process_memory_fraction(most / torch.cuda.get_device_properties(0).total_memory)
    monkeypatch.setattr(sys, "argv", ["finetune.py", *flags, "--batch_size", "64", "--output", str(tmp_path / "run")])
    try:
        with pytest.raises(SystemExit) as stop:
            runner.adapt("full")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    errors = capsys.readouterr().err
    assert stop.value.code == 2 and errors.count("error: out of memory") == 1, errors


def on_device(*arrays: torch.Tensor) -> list[torch.Tensor]:
    return [array.to(DEVICE) for array in arrays]


def ranking(integers: bool) -> tuple[torch.Tensor, ...]:
    """Return items [2000, 64], users [600, 64], targets, history and the user of each history item."""
    torch.manual_seed(0)
    items, users = torch.randn(2000, 64), torch.randn(600, 64)
    if integers:
        # Exact products, and many ties.
        items, users = items.round(), users.round()
    history, owner = torch.randint(1, 2001, (4000,)), torch.randint(0, 600, (4000,)).sort().values
    return items, users, torch.randint(1, 2001, (600,)), history, owner


@pytest.mark.parametrize("mask_history", ["seen", "none", "seen_but_target"])
def test_ranks_of_exact_scores_are_the_cpus(mask_history):
    items, *rest = ranking(integers=True)
    expected = Ranker(items, 2**20, mask_history).ranks(*rest)
    Precision("fp32", DEVICE)
    ranks = Ranker(items.to(DEVICE), 2**20, mask_history).ranks(*on_device(*rest))
    assert torch.equal(ranks.cpu(), expected)


def test_ranks_of_rounded_scores_are_the_cpus_but_for_near_ties(report):
    """A rank may differ only by items whose exact score is within a float32 sum's rounding of the target's."""
    items, users, targets, history, owner = ranking(integers=False)
    Precision("fp32", DEVICE)
    ranks = Ranker(items.to(DEVICE), 2**20, "none").ranks(*on_device(users, targets, history, owner)).cpu()
    scores = users.double() @ items.double().T
    target = scores.gather(1, (targets - 1).unsqueeze(1))
    # 64 products, each rounded once and summed in any order.
    rounding = 64 * torch.finfo(torch.float32).eps * (users.abs().double() @ items.abs().double().T).max()
    least, most = 1 + (scores > target + rounding).sum(1), (scores > target - rounding).sum(1)
    assert (ranks >= least).all() and (ranks <= most).all()
    moved = (ranks != 1 + (scores > target).sum(1)).double().mean().item()
    report.find("share of ranks that rounding moved", moved)
    assert moved < 0.01


def test_evaluation_is_the_cpus(flags, backbones, tmp_path, monkeypatch, domain, report):
    """With equal weights in float32, embeddings agree to 1e-4, and ranks agree except for close scores."""
    run([*flags, *encoder_flags("bert", backbones), "--lr", "1e-2", "--output", str(tmp_path / "run")], "full")
    dataset = load_dataset(domain, 6, 5)
    tokens = cached_tokens(dataset.catalog, load_tokenizer(backbones["bert"]), 10, lower_case=True)
    ranks, items = [], []
    # Make `summarise` return the ranks.
    monkeypatch.setattr(evaluation, "summarise", lambda ranking, *_: ranking.ranks)
    for device in (DEVICE, torch.device("cpu")):
        features = TextFeatures(tokens, dataset.split.item_rows, device)
        world = World(rank=0, size=1, device=device)
        evaluator = evaluation.Evaluator(dataset.split, features, EvaluationOptions(), world)
        recommender = load_run(tmp_path / "run").to(device)
        items.append(evaluator.encode_items(recommender).cpu())
        ranks.append(evaluator.evaluate(recommender, "test"))
    torch.testing.assert_close(*items, atol=1e-4, rtol=0)
    ours, theirs = ranks
    assert len(ours) == dataset.split.user_count and np.array_equal(np.isinf(ours), np.isinf(theirs))
    reachable = np.isfinite(theirs)
    moved = np.abs(ours[reachable] - theirs[reachable])
    report.find("ranks that evaluation on the device moved", {"share": float((moved > 0).mean()), "by": moved.max()})
    # A perturbation of 1e-4 in 16 coordinates moves a target past few of 150 scores.
    assert moved.max(initial=0) <= 2 and (moved > 0).mean() <= 0.05


AT_BASE_SIZE = ("full", "houlsby", "frozen", "iisan", "iisan cached")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> list[str]:
    """Flags of runs over backbones of the papers' sizes, with random weights."""
    folder = tmp_path_factory.mktemp("base")
    make_domain_with_store(folder / "set", Domain("base", users=128, items=300, longest=12, seed=5), PIXELS)
    make_text_backbone(folder / "bert", **BASE)
    make_image_backbone(folder / "vit", **BASE, image_size=PIXELS, patch_size=PATCH)
    encoders = ["--text_encoder", str(folder / "bert"), "--image_encoder", str(folder / "vit")]
    data = ["--dataset", str(folder / "set"), "--item_tower", "multimodal", "--image_workers", "4"]
    sizes = ["--max_seq_len", "10", "--batch_size", "32", "--objective", "in_batch", "--epochs", "2", "--profile"]
    return [*data, *encoders, *sizes, "--device", DEVICE.type]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_memory_and_time_at_the_papers_sizes(base, tmp_path, report, precision):
    """BERT-base and ViT-B/16 over 128 users: the report states the GPU memory that each method takes."""
    peaks = {}
    for name in AT_BASE_SIZE:
        if ON_CUDA:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        method, _, cached = name.partition(" ")
        more = ["--cached", "--state_cache", str(tmp_path / "states")] if cached else ["--cached", "no"]
        result = run([*base, *more, "--precision", precision, "--output", str(tmp_path / name)], method)
        report.add(f"base size, {name}", result, first_loss(tmp_path / name))
        peaks[name] = result["peak_memory_mib"]
    if ON_CUDA:
        assert peaks["iisan cached"] < peaks["iisan"] < peaks["full"] and peaks["frozen"] < peaks["full"]


def test_cards_are_told_apart(flags, tmp_path):
    with pytest.raises(TransrecError, match=r"--device cuda:99: .*use --device cpu or fewer processes"):
        run([*flags, "--device", "cuda:99", "--output", str(tmp_path / "run")])


@pytest.mark.parametrize("tower", ["text", "iisan cached, gpu"])
def test_compiling_changes_no_loss(flags, backbones, tmp_path, report, tower):
    try:
        check_compiler(DEVICE)
    except TransrecError as error:
        pytest.skip(str(error))
    kind, method, more = TOWERS[tower]
    states = ["--state_cache", str(tmp_path / "states")] if "--cached" in more else []
    arguments = [*flags, *encoder_flags(kind, backbones), *more, *states]
    losses = {}
    for name, flag in (("eager", []), ("compiled", ["--compile"])):
        began = time.monotonic()
        run([*arguments, *flag, "--output", str(tmp_path / name)], method)
        losses[name] = [epoch["train_loss"] for epoch in numbers(tmp_path / name)["epochs"]]
        report.find(f"seconds of a run, {tower}, {name}", time.monotonic() - began)
    assert losses["compiled"] == pytest.approx(losses["eager"], rel=1e-3)
