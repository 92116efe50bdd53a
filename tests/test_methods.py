"""Every method over every backbone and place: what trains, what it changes, what is saved."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import run
from torch import nn
from transformers import BertConfig, RobertaConfig

from transrec import methods
from transrec.data.batches import TrainingBatches
from transrec.data.catalog import TextFeatures, cached_tokens
from transrec.data.dataset import load_dataset
from transrec.errors import TransrecError
from transrec.methods.bottleneck import INIT_STD, SerialAdapter
from transrec.models.backbone import build_backbone, layer_norms, load_backbone, load_tokenizer
from transrec.models.items import IdItemEncoder, TextItemEncoder
from transrec.models.objectives import SASRecObjective
from transrec.models.recommender import Recommender
from transrec.models.sequence import SASRec
from transrec.options import EvaluationOptions
from transrec.runner import load_run
from transrec.training import checkpoint
from transrec.training.distributed import World
from transrec.training.evaluation import Evaluator

RATES = methods.Rates(recommender=1e-3, backbone=1e-4)
WHERE = ["item", "user", "user_first", "user_last", "all"]


@pytest.fixture(params=["bert", "roberta"])
def kind(request):
    return request.param


@pytest.fixture
def recommender(kind, backbones):
    torch.manual_seed(0)
    return Recommender(TextItemEncoder(load_backbone(backbones[kind]), 16), SASRec(16, 6, 2, 2, 0.1), SASRecObjective())


@pytest.fixture
def features_and_split(kind, domain, backbones):
    dataset = load_dataset(domain, 6, 5)
    tokens = cached_tokens(dataset.catalog, load_tokenizer(backbones[kind]), 10, True)
    return TextFeatures(tokens, dataset.split.item_rows), dataset.split


@pytest.fixture
def batch(features_and_split):
    features, split = features_and_split
    (first,) = next(iter(TrainingBatches(split, 8, True, False, seed=0).epoch(1)))
    return first.to(torch.device("cpu"), features)


def apply(recommender, name, train_recommender=False, **options):
    return methods.apply(recommender, name, methods.get(name).Options(**options), RATES, train_recommender)


def trained_names(recommender):
    return {name for name, p in recommender.named_parameters() if p.requires_grad}


def expected_names(recommender, name, where, train_layernorm):
    """What must train, told apart by module type and place alone."""
    every = {name for name, _ in recommender.named_parameters()}
    if name == "full":
        return every
    if name == "frozen":
        return {n for n in every if not n.startswith("item_encoder.backbone.")}
    roots = {
        "item": ["item_encoder.backbone"],
        "user": ["user_encoder"],
        "user_first": ["user_encoder.blocks.0"],
        "user_last": ["user_encoder.blocks.1"],
        "all": ["item_encoder.backbone", "user_encoder"],
    }[where]
    found = set()
    for root in roots:
        for path, module in recommender.get_submodule(root).named_modules(prefix=root):
            if isinstance(module, SerialAdapter):
                found |= {f"{path}.adapter.{n}" for n, _ in module.adapter.named_parameters()}
            if train_layernorm and isinstance(module, nn.LayerNorm):
                found |= {f"{path}.{n}" for n, _ in module.named_parameters()}
    return found


def cases():
    yield "full", {}
    yield "frozen", {}
    for where in WHERE:
        for train_layernorm in (False, True):
            yield "houlsby", {"insert": where, "train_layernorm": train_layernorm}


@pytest.mark.parametrize("name,options", cases(), ids=str)
def test_exactly_what_should_train_trains(recommender, batch, name, options):
    """The groups, `requires_grad`, and what one step moves are the same set of parameters."""
    groups = apply(recommender, name, **options)
    expected = expected_names(recommender, name, options.get("insert"), options.get("train_layernorm"))
    assert trained_names(recommender) == expected
    in_groups = [n for group in groups for n in group.parameters]
    assert sorted(in_groups) == sorted(expected)

    # Nothing may hide behind a zero gradient: adapters start with zero biases, so two steps are taken.
    before = {n: p.detach().clone() for n, p in recommender.named_parameters()}
    optimizer = torch.optim.Adam([p for p in recommender.parameters() if p.requires_grad], lr=1e-2)
    recommender.train()
    for _ in range(2):
        optimizer.zero_grad()
        recommender(batch).backward()
        optimizer.step()
    moved = {n for n, p in recommender.named_parameters() if not torch.equal(p, before[n])}
    never_read = {n for n in expected if before[n].numel() and recommender.get_parameter(n).grad is None}
    assert not never_read
    # RoBERTa's padding row and the unused word rows stay, but no whole tensor does, save one: a key's bias shifts
    # every logit of a query alike, so its gradient is zero up to rounding.
    assert moved <= expected
    assert {n for n in expected - moved if not n.endswith("key.bias")} == set()


@pytest.mark.parametrize("where", WHERE)
def test_houlsby_starts_close_to_the_identity(recommender, batch, where):
    """Both weight matrices are N(0, 0.01), so an adapter adds about 0.01^2 sqrt(D r) of its input's size.

    With D = 32, r = 64 that is 0.005 a sub-layer; over the four of two blocks, and LayerNorms that rescale, 0.05 of an
    embedding's scale bounds it with room. The same adapters with their up-projection zeroed change nothing at all.
    """
    recommender.eval()
    with torch.no_grad():
        items = recommender.item_encoder(*batch.inputs)
        mask = torch.ones(4, 6)
        embeddings = torch.randn(4, 6, 16)
        users = recommender.user_encoder(embeddings, mask)
        apply(recommender, "houlsby", insert=where)
        changed_items = recommender.item_encoder(*batch.inputs)
        changed_users = recommender.user_encoder(embeddings, mask)
        assert (changed_items - items).abs().max() < 0.05 * items.abs().max()
        assert (changed_users - users).abs().max() < 0.05 * users.abs().max()
        assert torch.equal(changed_items, items) == (where not in ("item", "all"))
        assert torch.equal(changed_users, users) == (where == "item")
        for module in recommender.modules():
            if isinstance(module, SerialAdapter):
                assert module.adapter.down.weight.std().item() == pytest.approx(INIT_STD, rel=0.2)
                module.adapter.up.weight.zero_()
        assert torch.equal(recommender.item_encoder(*batch.inputs), items)
        assert torch.equal(recommender.user_encoder(embeddings, mask), users)


# METHODS section 7, counted by the original programs.
COUNTS = {
    ("bert", "full", False): 109_041_728,
    ("bert", "houlsby", False): 2_387_776,
    ("bert", "houlsby", True): 2_387_776 + 39_040,
    ("roberta", "full", False): 124_205_120,
    ("roberta", "houlsby", False): 2_387_776,
    ("bert", "frozen", False): 768 * 64 + 64 + 100_864,
}


@pytest.mark.parametrize("kind,name,train_layernorm", COUNTS, ids=str)
def test_parameters_at_base_size(kind, name, train_layernorm):
    config = (
        BertConfig()
        if kind == "bert"
        else RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
    )
    with torch.device("meta"):
        backbone = build_backbone(config)
        recommender = Recommender(TextItemEncoder(backbone, 64), SASRec(64, 20, 2, 2, 0.1), SASRecObjective())
        options = {"train_layernorm": True} if train_layernorm else {}
        groups = apply(recommender, name, **options)
    counted = sum(p.numel() for group in groups for p in group.parameters.values())
    assert counted == COUNTS[kind, name, train_layernorm]


def test_learning_rates_follow_the_groups(recommender):
    groups = {
        g.name: g.lr
        for g in apply(recommender, "houlsby", train_recommender=True, adapter_lr=0.5, train_layernorm=True)
    }
    assert groups == {"adapter": 0.5, "LayerNorm": 0.5, "recommender": RATES.recommender}
    groups = {g.name: g.lr for g in apply(recommender, "full")}
    assert groups == {"backbone": RATES.backbone, "recommender": RATES.recommender}


@pytest.mark.parametrize("name,active", [("full", True), ("frozen", False), ("houlsby", False)])
def test_backbone_dropout_is_on_where_the_backbone_trains(recommender, name, active):
    apply(recommender, name)
    recommender.train()
    assert recommender.item_encoder.backbone.training == active
    assert recommender.user_encoder.training
    recommender.eval()
    assert not recommender.item_encoder.backbone.training
    methods.apply(recommender, name, methods.get(name).Options(), RATES, backbone_dropout=not active)
    recommender.train()
    assert recommender.item_encoder.backbone.training != active


def test_layer_norms_are_all_found(recommender):
    assert len(layer_norms(recommender.item_encoder.backbone)) == 1 + 2 * 2
    assert len(layer_norms(recommender.user_encoder)) == 1 + 2 * 2


def test_no_backbone_to_insert_into():
    recommender = Recommender(IdItemEncoder(9, 16), SASRec(16, 6, 2, 2, 0.1), SASRecObjective())
    with pytest.raises(TransrecError, match="--insert user or --item_tower text"):
        apply(recommender, "houlsby", insert="all")
    apply(recommender, "houlsby", insert="user")
    assert all(name.startswith("user_encoder.") for name in trained_names(recommender))


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="registered twice"):
        methods.register("houlsby")(methods.Method)
    with pytest.raises(TransrecError, match=r"choose from .*full.*houlsby"):
        methods.get("hulsby")


@pytest.mark.parametrize("name", ["full", "frozen", "houlsby"])
@pytest.mark.parametrize("from_source", [False, True], ids=["alone", "from source"])
def test_save_and_load_give_the_same_output(flags, tmp_path, features_and_split, kind, backbones, name, from_source):
    """A run's checkpoint holds what trained and nothing else, and rebuilds the recommender bit by bit."""
    flags = [*flags, "--text_encoder", str(backbones[kind])]
    if from_source:
        run([*flags, "--output", str(tmp_path / "source"), "--epochs", "1"])
        flags += ["--checkpoint", str(tmp_path / "source")]
    folder = tmp_path / "run"
    result = run([*flags, "--output", str(folder), "--batch_size", "30", "--lr", "1e-2"], name)
    tensors, description = checkpoint.read(folder / "checkpoints" / "best.safetensors")
    assert sum(t.numel() for t in tensors.values()) == result["trainable_parameters"]
    assert description["method"] == name

    loaded = load_run(folder)
    assert set(tensors) == trained_names(loaded)
    for tensor_name, tensor in tensors.items():
        assert torch.equal(loaded.get_parameter(tensor_name), tensor)
    world = World(rank=0, size=1, device=torch.device("cpu"))
    evaluator = Evaluator(features_and_split[1], features_and_split[0], EvaluationOptions(), "seen", world)
    assert evaluator.evaluate(loaded, "test") == result["test"]
    if name == "houlsby" and from_source:
        assert all(".adapter." in tensor_name for tensor_name in tensors)


@pytest.mark.parametrize("name,more", [("frozen", ["--random_backbone"]), ("houlsby", ["--train_recommender", "no"])])
def test_what_was_drawn_at_random_and_stayed_frozen_is_drawn_again(flags, tmp_path, name, more):
    run([*flags, "--output", str(tmp_path), "--epochs", "1", "--seed", "7", *more], name)
    tensors, _ = checkpoint.read(tmp_path / "checkpoints" / "best.safetensors")
    torch.manual_seed(99)
    # load_run itself compares the hash of all that the checkpoint does not hold.
    assert set(tensors) == trained_names(load_run(tmp_path))


def test_a_frozen_run_brings_its_own_base_along(flags, tmp_path):
    """source -> frozen from it -> full from that: the last start needs both checkpoints, and one flag."""
    source = ["--checkpoint", str(tmp_path / "source")]
    run([*flags, "--output", str(tmp_path / "source"), "--epochs", "1"])
    run([*flags, "--output", str(tmp_path / "frozen"), "--epochs", "1", *source], "frozen")
    still = ["--lr", "0", "--backbone_lr", "0", "--epochs", "1", "--checkpoint", str(tmp_path / "frozen")]
    run([*flags, "--output", str(tmp_path / "full"), *still])
    frozen, full = load_run(tmp_path / "frozen"), load_run(tmp_path / "full")
    for parameter_name, parameter in frozen.named_parameters():
        assert torch.equal(parameter, full.get_parameter(parameter_name))


def test_a_run_that_trained_everything_needs_nothing_else(flags, tmp_path, backbones):
    encoder = shutil.copytree(backbones["bert"], tmp_path / "bert")
    run([*flags, "--text_encoder", str(encoder), "--output", str(tmp_path / "run"), "--epochs", "1"])
    (encoder / "model.safetensors").unlink()
    load_run(tmp_path / "run")


def test_adapters_without_a_source_train_the_recommender_too(flags, tmp_path):
    run([*flags, "--output", str(tmp_path / "auto"), "--epochs", "1"], "houlsby")
    run([*flags, "--output", str(tmp_path / "no"), "--epochs", "1", "--train_recommender", "no"], "houlsby")

    def groups(folder: Path):
        return {row["what"] for row in json.loads((folder / "result.json").read_text())["parameters"]}

    assert groups(tmp_path / "auto") == {"frozen", "adapter", "recommender"}
    assert groups(tmp_path / "no") == {"frozen", "adapter"}


def test_an_adapter_checkpoint_refuses_another_base(flags, tmp_path):
    for name, seed in (("source", "0"), ("other", "1")):
        run([*flags, "--output", str(tmp_path / name), "--epochs", "1", "--seed", seed])
    run(
        [*flags, "--output", str(tmp_path / "run"), "--checkpoint", str(tmp_path / "source"), "--epochs", "1"],
        "houlsby",
    )
    best = Path("checkpoints") / "best.safetensors"
    (tmp_path / "source" / best).write_bytes((tmp_path / "other" / best).read_bytes())
    with pytest.raises(TransrecError, match="other base weights"):
        load_run(tmp_path / "run")
