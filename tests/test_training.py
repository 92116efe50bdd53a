"""Runs from the command line: determinism, resuming, stopping, several processes, precision, divergence."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import preloaded
import pytest
import torch
from conftest import FEW_STEPS, REPOSITORY, run
from safetensors.torch import load_file

from transrec import runner
from transrec.data.demo import Domain, make_domain
from transrec.errors import TransrecError
from transrec.finished import load_run
from transrec.reports.tables import read_result
from transrec.training import checkpoint
from transrec.training.evaluation import Evaluator
from transrec.training.precision import Precision
from transrec.training.ranks import read_ranks
from transrec.training.trainer import Trainer

SCRIPTS = REPOSITORY / "Downstream" / "Text" / "script"
# One thread each: sums over several threads may round differently, and these tests compare bit by bit.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
TIMES = ("seconds", "memory", "environment", "wall")


def start(script: str, arguments: list[str], cwd: Path | None = None, python: str = "") -> subprocess.Popen:
    command = [python or sys.executable, str(SCRIPTS / script), *arguments]
    return subprocess.Popen(
        command, cwd=cwd, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen, status: int = 0) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == status, output
    return output


def finished(script: str, arguments: list[str]) -> str:
    """Return what an undisturbed run of one process prints; the script starts at once."""
    return finish(start(script, arguments, python=preloaded.python()))


def numbers(folder: Path) -> dict:
    """Return everything of a run that must not depend on when and where it ran."""

    def timeless(entry):
        return {k: v for k, v in entry.items() if not any(word in k for word in TIMES)}

    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {"epochs": [timeless(json.loads(line)) for line in lines]} | timeless(
        json.loads((folder / "result.json").read_text())
    )


def best(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / "best.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    assert numbers(one) == numbers(other)
    tensors, others = best(one), best(other)
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)


def run_to_the_first_save(monkeypatch, arguments: list[str], method: str = "full") -> None:
    """Run until the first save, and stop right after it."""

    class Stopped(Exception):
        pass

    original = Trainer._save_state

    def save(trainer):
        original(trainer)
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_state", save)
        with pytest.raises(Stopped):
            run(arguments, method)


def test_a_run_learns_and_leaves_its_folder(flags, tmp_path):
    result = run([*flags, "--output", str(tmp_path), "--epochs", "3", "--lr", "1e-2", "--backbone_lr", "1e-3"])
    losses = [json.loads(line)["train_loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 3 and losses[-1] < losses[0]
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {
        *("options.json", "log.txt", "metrics.jsonl", "result.json", "ranks-validation.npy", "ranks-test.npy"),
        *("ranks-test-popularity.npy", "ranks-test-item_knn.npy"),
        *("checkpoints/best.safetensors", "checkpoints/last.safetensors"),
    }
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    for key in ("test", "popularity", "trainable_parameters", "peak_memory_mib", "environment", "seed"):
        assert key in result
    log = (tmp_path / "log.txt").read_text()
    for text in ("60 users", "cpu", "fp32", "item_encoder.projection", "0.01", str(tmp_path)):
        assert text in log


def test_a_run_that_evaluates_a_sample_tells_intervals(flags, tmp_path):
    flags = [*flags, "--epochs", "1"]
    run([*flags, "--output", str(tmp_path / "all")])
    result = run([*flags, "--eval_users", "25", "--output", str(tmp_path / "some")])
    ranks = {name: read_ranks(tmp_path / name, "test") for name in ("all", "some")}
    assert len(ranks["some"]) == 25
    of_these = np.isin(ranks["all"]["user"], ranks["some"]["user"])
    np.testing.assert_array_equal(ranks["some"]["rank"], ranks["all"]["rank"][of_these])
    assert list(result["test_intervals"]) == list(result["test"])
    for name, (low, high) in result["test_intervals"].items():
        assert 0 <= low <= result["test"][name] <= high <= 1
    whole, sampled = load_run(tmp_path / "all"), load_run(tmp_path / "some")
    histories = [whole.ids[start : start + 4] for start in range(0, 40, 4)]
    assert sampled.evaluate(histories=histories) == whole.evaluate(histories=histories)
    log = (tmp_path / "some" / "log.txt").read_text()
    assert "25 users, drawn at random, are evaluated" in log and "of all      95 % intervals: HR@5 " in log
    assert "test_intervals" not in json.loads((tmp_path / "all" / "result.json").read_text())
    with pytest.raises(TransrecError, match="--eval_users 1: one user says nothing about the others"):
        run([*flags, "--eval_users", "1", "--output", str(tmp_path / "one")])


def test_the_reported_test_result_is_of_the_best_validation_epoch(flags, tmp_path):
    result = run([*flags, "--output", str(tmp_path), "--epochs", "4", "--lr", "3e-2"])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scores = [line["validation HR@10"] for line in lines]
    assert result["best_epoch"] == 1 + scores.index(max(scores))
    _, description = checkpoint.read(tmp_path / "checkpoints" / "best.safetensors")
    assert description.epoch == result["best_epoch"]
    assert description.validation == result["validation"]


def test_a_run_that_ranks_below_popularity_says_so(flags, tmp_path, monkeypatch):
    untrained = run([*flags, "--output", str(tmp_path / "below"), "--epochs", "1", "--lr", "0", "--backbone_lr", "0"])
    assert untrained["test"]["HR@10"] < untrained["popularity"]["HR@10"], "not what is tested"
    assert "warning     ranks below popularity" in (tmp_path / "below" / "log.txt").read_text()
    worst = {"popularity": untrained["test"], "baselines": {}}
    monkeypatch.setattr("transrec.runner._baselines", lambda *arguments: worst)
    run([*flags, "--output", str(tmp_path / "above"), "--epochs", "1", "--lr", "0", "--backbone_lr", "0"])
    assert "below popularity" not in (tmp_path / "above" / "log.txt").read_text()


def test_early_stopping(flags, tmp_path):
    standing = ["--epochs", "50", "--patience", "1", "--patience_steps", "0", "--lr", "0", "--backbone_lr", "0"]
    result = run([*flags, "--output", str(tmp_path), *standing])
    # Nothing changes, so the second epoch is not better than the first.
    assert result["epochs_trained"] == 2 and result["best_epoch"] == 1


def test_same_options_same_numbers_other_seed_others(flags, tmp_path):
    for name, seed in (("one", "5"), ("two", "5"), ("other", "6")):
        run([*flags, "--output", str(tmp_path / name), "--seed", seed], "houlsby")
    assert_same_run(tmp_path / "one", tmp_path / "two")
    assert numbers(tmp_path / "one")["epochs"] != numbers(tmp_path / "other")["epochs"]


@pytest.mark.parametrize("objective", ["bce", "cpc"])
def test_accumulation_changes_memory_not_numbers(flags, tmp_path, objective):
    flags = [*flags, "--objective", objective, "--dropout", "0", "--backbone_dropout", "off"]
    for pieces in ("1", "3"):
        run([*flags, "--output", str(tmp_path / pieces), "--accumulate", pieces])
    one, three = (numbers(tmp_path / pieces)["epochs"] for pieces in ("1", "3"))
    for a, b in zip(one, three, strict=True):
        # The order of float sums differs, and Adam's first steps amplify the difference.
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_follows_fp32(flags, tmp_path, precision):
    standing = [*flags, "--epochs", "1", "--lr", "0", "--backbone_lr", "0"]
    results = {}
    for name in ("fp32", precision):
        run([*standing, "--output", str(tmp_path / name), "--precision", name])
        results[name] = numbers(tmp_path / name)["epochs"][-1]["train_loss"]
    # bf16 keeps 8 bits of mantissa: a relative error of 0.4 % per product, and less for a mean over hundreds.
    assert results[precision] == pytest.approx(results["fp32"], rel=0.02)
    assert results[precision] != results["fp32"]

    run([*flags, "--output", str(tmp_path / "moving"), "--precision", precision, "--epochs", "4"])
    losses = [epoch["train_loss"] for epoch in numbers(tmp_path / "moving")["epochs"]]
    assert losses[-1] < losses[0]
    assert all(tensor.dtype == torch.float32 for tensor in best(tmp_path / "moving").values())


def test_float32_on_a_gpu_is_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        Precision("fp32", torch.device("cuda"))
        assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)


def test_an_operation_without_a_deterministic_algorithm_is_named(flags, tmp_path, monkeypatch):

    original = Trainer._step

    def step(self, *arguments):
        torch.zeros(2).put_(torch.tensor([0, 0]), torch.ones(2))
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", step)
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(TransrecError, match=r"^put_: this device cannot .*; add --deterministic false"):
            run([*flags, "--output", str(tmp_path / "run")])
    finally:
        torch.use_deterministic_algorithms(False)
    assert run([*flags, "--deterministic", "false", "--output", str(tmp_path / "other")])["epochs_trained"] == 2


def test_tensorboard(flags, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    run([*flags, "--output", str(tmp_path), "--tensorboard"])
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_gradient_clipping(flags, tmp_path):
    result = run([*flags, "--output", str(tmp_path), "--clip_grad_norm", "0.1"])
    assert result["epochs_trained"] == 2


def test_the_id_baseline(flags, tmp_path):
    result = run([*flags, "--output", str(tmp_path), "--item_tower", "id", "--lr", "1e-2"])
    assert {row["module"] for row in result["parameters"]} == {"item_encoder.embedding", "user_encoder"}
    assert (result["method"], result["item_tower"], result["name"]) == ("full", "id", "full over item IDs")
    assert "full over item IDs, on " in (tmp_path / "log.txt").read_text()
    assert load_run(tmp_path).item_encoder.embedding.num_embeddings <= 1 + 150


def test_divergence_stops_with_the_step_and_keeps_the_last_good_checkpoint(flags, tmp_path, monkeypatch):
    from transrec.models.objectives.bce import BCEObjective

    calls = {"count": 0}
    original = BCEObjective.__call__

    def poisoned(self, *arguments):
        calls["count"] += 1
        # 60 users in batches of 8 make 8 steps per epoch: this is step 3 of epoch 2.
        return original(self, *arguments) * (float("nan") if calls["count"] == 11 else 1.0)

    monkeypatch.setattr(BCEObjective, "__call__", poisoned)
    with pytest.raises(TransrecError, match=r"epoch 2, step 3 of 8: the loss is nan .*recommender 0\.0001") as caught:
        run([*flags, "--output", str(tmp_path)])
    kept = tmp_path / "checkpoints" / "best.safetensors"
    assert str(kept) in str(caught.value)
    assert all(torch.isfinite(tensor).all() for tensor in load_file(kept).values())
    assert all(torch.isfinite(tensor).all() for tensor in load_file(kept.with_name("last.safetensors")).values())


def test_a_gradient_that_spoils_the_weights_never_reaches_a_checkpoint(flags, tmp_path, monkeypatch):
    """The loss of the last step before a save is finite, but the weights after this step are not."""
    from transrec.training.trainer import Trainer

    original = Trainer._step

    def spoilt(self, *arguments):
        loss = original(self, *arguments)
        if (self.state.epoch, self.state.step) == (2, 3):
            next(iter(self.trained.values())).data.view(-1)[0] = torch.nan
        return loss

    monkeypatch.setattr(Trainer, "_step", spoilt)
    with pytest.raises(TransrecError, match=r"epoch 2, step 4 of 8: the weights are no longer finite"):
        run([*flags, "--output", str(tmp_path), "--save_steps", "2"])
    state, description = checkpoint.read(tmp_path / "checkpoints" / "last.safetensors")
    assert description.state["step"] == 2
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


def test_any_script_resumes_any_run(flags, tmp_path):
    run([*flags, "--output", str(tmp_path), "--keep_state"], "full")
    runner.execute(runner.parse(["--resume", str(tmp_path), "--epochs", "3"], "houlsby", {"item_bottleneck": 8}))
    assert len(numbers(tmp_path)["epochs"]) == 3


@pytest.fixture(scope="module")
def long_flags(tmp_path_factory, backbones):
    """Flags of a run with epochs long enough to be killed in."""
    folder = tmp_path_factory.mktemp("data") / "long"
    make_domain(folder, Domain("long", users=300, items=150, longest=9, seed=3))
    sizes = ["--embedding_dim", "16", "--max_seq_len", "6", "--title_tokens", "10", "--batch_size", "4"]
    return ["--dataset", str(folder), "--text_encoder", str(backbones["bert"]), *sizes, "--epochs", "3", "--lr", "1e-2"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, long_flags):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    finished("adapter_houlsby.py", [*long_flags, "--output", str(folder)])
    return folder


def wait_for_state(folder: Path, reached) -> None:
    """Wait until last.safetensors holds a state for which `reached(epoch, step)` is true."""
    path = folder / "checkpoints" / "last.safetensors"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if path.exists():
            # Read through one open file: the path may be replaced between two reads.
            with open(path, "rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            state = json.loads(header["__metadata__"]["transrec"])["state"]
            if reached(state["epoch"], state["step"]):
                return
        time.sleep(0.005)
    pytest.fail("the run never got that far")


@pytest.mark.parametrize(
    "save_steps",
    [pytest.param(0, marks=pytest.mark.long, id="saved after epochs"), pytest.param(7, id="saved in epochs")],
)
def test_resume_after_sigkill_equals_the_unbroken_run(long_flags, unbroken, tmp_path, save_steps):
    folder = tmp_path / "run"
    process = start("adapter_houlsby.py", [*long_flags, "--output", str(folder), "--save_steps", str(save_steps)])
    wait_for_state(folder, lambda epoch, step: epoch == 2 and (step >= 14 or not save_steps))
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    finish(process, -signal.SIGKILL)
    assert not (folder / "result.json").exists()
    # Temporary files that a kill during writing leaves: ours and that of safetensors.
    for name in (".last.safetensors.1.tmp", ".tmpAbCdEf"):
        (folder / "checkpoints" / name).write_bytes(b"half")

    output = finished("adapter_houlsby.py", ["--resume", str(folder)])
    step = int(re.search(r"resumed +epoch 2, step (\d+)", output)[1])
    assert step >= 14 if save_steps else step == 0
    assert_same_run(unbroken, folder)
    assert not list(folder.rglob(".*tmp*"))


def test_sigterm_finishes_the_step_saves_and_leaves(long_flags, unbroken, tmp_path):
    folder = tmp_path / "run"
    process = start("adapter_houlsby.py", [*long_flags, "--output", str(folder)])
    wait_for_state(folder, lambda epoch, step: epoch == 2)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output = finish(process, 128 + signal.SIGTERM)
    assert f"adapter_houlsby.py --resume {folder}" in output.splitlines()[-1]
    finished("adapter_houlsby.py", [*long_flags, "--output", str(folder), "--resume"])
    assert_same_run(unbroken, folder)


@pytest.mark.long
def test_two_processes_stop_together_and_resume_to_the_same_numbers(long_flags, tmp_path):
    two = [*long_flags, "--nproc", "2"]
    finish(start("adapter_houlsby.py", [*two, "--output", str(tmp_path / "whole")]))
    folder = tmp_path / "parts"
    process = start("adapter_houlsby.py", [*two, "--output", str(folder)])
    wait_for_state(folder, lambda epoch, step: epoch == 2)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert f"is saved; continue with: {sys.executable} " in finish(process, 128 + signal.SIGTERM)
    finish(start("adapter_houlsby.py", ["--resume", str(folder), "--nproc", "2"]))
    assert_same_run(tmp_path / "whole", folder)


def test_resuming_a_finished_run_with_more_epochs(flags, tmp_path):
    longer = [*flags, "--epochs", "4"]
    run([*longer, "--output", str(tmp_path / "whole")])
    run([*flags, "--output", str(tmp_path / "parts"), "--keep_state"])
    run(["--resume", str(tmp_path / "parts"), "--epochs", "4"])
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_finished_run_keeps_no_optimiser_state_unless_told(flags, tmp_path):
    """A finished run resumes to the same result, but cannot train on; an unfinished run can."""
    run([*flags, "--output", str(tmp_path / "kept"), "--keep_state"])
    run([*flags, "--output", str(tmp_path / "dropped")])
    kept, dropped = (tmp_path / name / "checkpoints" / "last.safetensors" for name in ("kept", "dropped"))
    tensors, description = checkpoint.read(kept)
    weights, same = checkpoint.read(dropped)
    assert {name for name in tensors if not name.startswith("optimizer.")} == weights.keys() != tensors.keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in weights.items()), "of the last epoch"
    assert description.base == same.base and same.state["finished"]
    assert 2 * dropped.stat().st_size < kept.stat().st_size
    before = numbers(tmp_path / "dropped"), dropped.read_bytes()
    run(["--resume", str(tmp_path / "dropped")])
    assert (numbers(tmp_path / "dropped"), dropped.read_bytes()) == before
    for more in (["--epochs", "4"], ["--epochs", "4", "--keep_state"]):
        with pytest.raises(TransrecError, match=r"last\.safetensors: .* without --keep_state.* start a new run"):
            run(["--resume", str(tmp_path / "dropped"), *more])
    assert (numbers(tmp_path / "dropped"), dropped.read_bytes()) == before, "a refusal changes nothing"


def test_a_run_stopped_early_trains_on_only_with_its_state(flags, tmp_path):
    standing = [*flags, "--lr", "0", "--backbone_lr", "0", "--epochs", "4", "--patience", "1", "--patience_steps", "0"]
    for name, more in (("kept", ["--keep_state"]), ("dropped", [])):
        assert run([*standing, *more, "--output", str(tmp_path / name)])["epochs_trained"] == 2
    assert run(["--resume", str(tmp_path / "kept"), "--patience", "2"])["epochs_trained"] == 3
    with pytest.raises(TransrecError, match="finished without --keep_state"):
        run(["--resume", str(tmp_path / "dropped"), "--patience", "2"])


def test_a_finished_run_resumes_to_the_same_result(flags, tmp_path):
    run([*flags, "--output", str(tmp_path)])
    before = numbers(tmp_path)
    run(["--resume", str(tmp_path)])
    assert numbers(tmp_path) == before


def test_a_run_may_leave_the_test_targets_alone(flags, unbroken_run, tmp_path, monkeypatch):
    """Files and output say nothing of the test targets; tested later with --test, the run equals one tested at once."""
    ranked = []
    rank = Evaluator.rank
    monkeypatch.setattr(Evaluator, "rank", lambda *of: ranked.append(of[-1]) or rank(*of))
    result = run([*flags, *FEW_STEPS, "--output", str(tmp_path / "run"), "--no_test"], "houlsby")
    assert {*ranked} == {"validation"} and not (tmp_path / "run" / "ranks-test.npy").exists()
    assert result.keys().isdisjoint({"test", "popularity"})
    assert "  test  " not in (tmp_path / "run" / "log.txt").read_text()
    assert read_result(tmp_path / "run", tested=False)["validation"] == result["validation"]
    with pytest.raises(TransrecError, match=r"the run has --no_test; --resume .* --test ranks the test targets"):
        read_result(tmp_path / "run")
    run(["--resume", str(tmp_path / "run"), "--test"])
    assert_same_run(unbroken_run, tmp_path / "run")


def launch_worker(processes: int, arguments: list) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    worker = [str(REPOSITORY / "tests" / "rank_worker.py"), *map(str, arguments)]
    done = subprocess.run(
        [sys.executable, *launcher, *worker], env=ENVIRONMENT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("quick_starts")
def test_two_processes_give_the_gradients_and_the_evaluation_of_one(domain, backbones, tmp_path):
    for processes in (1, 2):
        (tmp_path / str(processes)).mkdir()
        launch_worker(processes, [domain, backbones["bert"], tmp_path / str(processes)])
    one, two = (load_file(tmp_path / n / "gradients.safetensors") for n in "12")
    assert one.keys() == two.keys()
    scale = max(tensor.abs().max() for name, tensor in one.items() if name.endswith(" gradient"))
    assert scale > 0.1
    for name in one:
        # 1e-6 of the largest gradient: eight times the rounding of a float32 sum, which two ranks order differently.
        torch.testing.assert_close(one[name], two[name], atol=1e-6 * max(1.0, scale), rtol=0, msg=name)
    assert json.loads((tmp_path / "1/metrics.json").read_text()) == json.loads(
        (tmp_path / "2/metrics.json").read_text()
    )


def test_nproc_starts_itself_and_trains_to_the_same_numbers(flags, tmp_path):
    flags = [*flags, "--dropout", "0", "--backbone_dropout", "off"]
    finished("finetune.py", [*flags, "--output", str(tmp_path / "1")])
    output = finish(start("finetune.py", [*flags, "--output", str(tmp_path / "2"), "--nproc", "2"]))
    assert output.count("epoch   1") == 1, "only the main rank may report"
    one, two = (numbers(tmp_path / n) for n in "12")
    for a, b in zip(one["epochs"], two["epochs"], strict=True):
        # Gradients agree to 1e-6 per step; sixteen steps of Adam amplify the difference.
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
    assert one["trainable_parameters"] == two["trainable_parameters"]


@pytest.mark.usefixtures("quick_starts")
def test_torchrun_works_too(flags, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(SCRIPTS / "frozen.py")]
    command = [sys.executable, *launcher, *flags, "--output", str(tmp_path), "--objective", "in_batch"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "result.json").read_text())["environment"]["processes"] == 2


@pytest.mark.usefixtures("quick_starts")
def test_a_script_runs_from_its_own_folder_with_relative_paths(flags, tmp_path):
    dataset, backbone = (Path(os.path.relpath(flags[i], SCRIPTS)) for i in (1, 3))
    arguments = [
        "--dataset",
        str(dataset),
        "--text_encoder",
        str(backbone),
        *flags[4:],
        "--output",
        str(tmp_path / "r"),
    ]
    finish(start("frozen.py", [*arguments, "--keep_state"], cwd=SCRIPTS))
    # Paths are stored as absolute paths: the run can be resumed from any other folder.
    finish(start("frozen.py", ["--resume", str(tmp_path / "r"), "--epochs", "3"], cwd=tmp_path))
    assert len(numbers(tmp_path / "r")["epochs"]) == 3
