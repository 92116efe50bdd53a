"""Backbones split over processes (--shard)."""

import shutil

import pytest
import torch
from conftest import run
from test_training import assert_same_run, best, finish, launch_worker, numbers, start

from transrec.errors import TransrecError
from transrec.options import TrainingOptions
from transrec.training.distributed import World
from transrec.training.precision import Precision
from transrec.training.sharding import check_sharding


def test_one_process_has_nobody_to_share_with(flags, tmp_path):
    with pytest.raises(TransrecError, match=r"--shard: splits backbones over several processes.*give --nproc 2"):
        run([*flags, "--shard", "--output", str(tmp_path)])
    assert not (tmp_path / "options.json").exists()


@pytest.mark.parametrize("given, precision", [({"compile": True}, "fp32"), ({}, "fp16")])
def test_what_does_not_go_with_it(given, precision):
    world = World(0, 2, torch.device("cpu"))
    with pytest.raises(TransrecError, match=f"--shard: not with --({'|'.join(given) or 'precision fp16'})"):
        check_sharding(TrainingOptions(shard=True, **given), world, Precision(precision, world.device))
    check_sharding(TrainingOptions(**given), world, Precision(precision, world.device))


@pytest.mark.long
@pytest.mark.usefixtures("quick_starts")
def test_every_method_can_be_split(domain, backbones):
    launch_worker(2, [domain, backbones["bert"]])


@pytest.mark.long
def test_a_split_run_equals_a_whole_one_and_resumes(flags, tmp_path):
    flags = [*flags, "--epochs", "2", "--clip_grad_norm", "0.1", "--keep_state", "--nproc", "2"]
    for folder, more in {"whole": [], "split": ["--shard"], "begun": ["--shard", "--epochs", "1"]}.items():
        finish(start("finetune.py", [*flags, *more, "--output", str(tmp_path / folder)]))
    shutil.copytree(tmp_path / "begun", tmp_path / "alike")
    whole, split = (numbers(tmp_path / folder) for folder in ("whole", "split"))
    for one, two in zip(whole["epochs"], split["epochs"], strict=True):
        assert one["train_loss"] == pytest.approx(two["train_loss"], rel=1e-5)
    assert whole["test"] == pytest.approx(split["test"], rel=1e-5)
    tensors, parts = best(tmp_path / "whole"), best(tmp_path / "split")
    assert tensors.keys() == parts.keys()
    for name in tensors:
        torch.testing.assert_close(parts[name], tensors[name], atol=1e-5, rtol=1e-5, msg=name)
    # A run that was started split continues split, and also unsplit.
    finish(start("finetune.py", ["--resume", str(tmp_path / "begun"), "--epochs", "2", "--nproc", "2"]))
    assert_same_run(tmp_path / "split", tmp_path / "begun")
    words = ["--resume", str(tmp_path / "alike"), "--epochs", "2", "--shard", "false", "--nproc", "2"]
    finish(start("finetune.py", words))
    assert numbers(tmp_path / "alike")["test"] == pytest.approx(split["test"], rel=1e-5)
