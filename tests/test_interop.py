"""Original checkpoints: `epoch-N.pt` as the original programs save it."""

import os
import pickle

import pytest
import torch
from conftest import run

from transrec.errors import TransrecError
from transrec.interop import load_original, read_original
from transrec.models.backbone import build_backbone, load_config
from transrec.models.items import TextItemEncoder
from transrec.models.objectives import SASRecObjective
from transrec.models.recommender import Recommender
from transrec.models.sequence import SASRec

PREFIX = "bert_encoder.text_encoders.title."
USER = "user_encoder.transformer_encoder."
BLOCK_NAMES = {
    "attention.query": "multi_head_attention.w_Q",
    "attention.key": "multi_head_attention.w_K",
    "attention.value": "multi_head_attention.w_V",
    "attention_output.dense": "multi_head_attention.fc",
    "attention_output.layer_norm": "multi_head_attention.layer_norm",
    "up": "feed_forward.w_1",
    "feed_forward_output.dense": "feed_forward.w_2",
    "feed_forward_output.layer_norm": "feed_forward.layer_norm",
}


def original_name(name: str) -> str:
    """The original program's key for one of our parameters, written down apart from the rules under test."""
    if name.startswith("item_encoder.backbone."):
        return PREFIX + "bert_model." + name.removeprefix("item_encoder.backbone.")
    if name.startswith("item_encoder.projection."):
        return PREFIX + "fc." + name.removeprefix("item_encoder.projection.")
    rest = name.removeprefix("user_encoder.")
    if not rest.startswith("blocks."):
        return USER + rest
    _, number, inner = rest.split(".", 2)
    inner, _, kind = inner.rpartition(".")
    return f"{USER}transformer_blocks.{number}.{BLOCK_NAMES[inner]}.{kind}"


@pytest.fixture
def recommender(backbones):
    torch.manual_seed(0)
    backbone = build_backbone(load_config(backbones["bert"]))
    return Recommender(TextItemEncoder(backbone, 16), SASRec(16, 6, 2, 2, 0.1), SASRecObjective()).eval()


@pytest.fixture
def state(recommender):
    """model_state_dict as the original program would hold it, pooler included."""
    state = {original_name(name): p.detach().clone() for name, p in recommender.named_parameters()}
    state[PREFIX + "bert_model.pooler.dense.weight"] = torch.randn(32, 32)
    state[PREFIX + "bert_model.pooler.dense.bias"] = torch.randn(32)
    state[PREFIX + "bert_model.embeddings.position_ids"] = torch.arange(40)[None]
    return state


@pytest.fixture
def path(recommender, state, tmp_path):
    optimizer = torch.optim.Adam(recommender.parameters())
    content = {
        "model_state_dict": state,
        "optimizer": optimizer.state_dict(),
        "rng_state": torch.get_rng_state(),
        "cuda_rng_state": torch.get_rng_state(),
    }
    torch.save(content, tmp_path / "epoch-53.pt")
    return tmp_path / "epoch-53.pt"


def test_every_tensor_finds_its_place(path, recommender, backbones):
    loaded = load_original(path, text_encoder=backbones["bert"])
    assert loaded.user_encoder.position_embedding.num_embeddings == 6
    for name, parameter in recommender.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name


def test_the_checkpoint_flag_takes_it(path, flags, tmp_path, recommender):
    still = ["--lr", "0", "--backbone_lr", "0", "--epochs", "1"]
    run([*flags, *still, "--checkpoint", str(path), "--output", str(tmp_path / "run")])
    from safetensors.torch import load_file

    trained = load_file(tmp_path / "run" / "checkpoints" / "best.safetensors")
    for name, parameter in recommender.named_parameters():
        assert torch.equal(trained[name], parameter), name


def test_the_checkpoint_flag_tells_the_sizes_to_give(path, flags, tmp_path):
    with pytest.raises(TransrecError, match="give --max_seq_len 6"):
        run([*flags, "--checkpoint", str(path), "--output", str(tmp_path / "run"), "--max_seq_len", "8"])


def test_an_unknown_key_and_a_missing_one_are_refused(state, backbones, tmp_path):
    torch.save({"model_state_dict": state | {"user_encoder.extra": torch.zeros(1)}}, tmp_path / "more.pt")
    with pytest.raises(TransrecError, match=r"no place for, user_encoder\.extra"):
        load_original(tmp_path / "more.pt", backbones["bert"])
    del state[PREFIX + "fc.bias"]
    torch.save({"model_state_dict": state}, tmp_path / "less.pt")
    with pytest.raises(TransrecError, match=r"lacks 1 tensors .*item_encoder\.projection\.bias"):
        load_original(tmp_path / "less.pt", backbones["bert"])


def test_a_checkpoint_of_another_backbone_is_refused(path, tmp_path):
    from transrec.data.demo import make_text_backbone

    make_text_backbone(tmp_path / "wider", hidden_size=48)
    with pytest.raises(TransrecError, match="another text encoder"):
        load_original(path, tmp_path / "wider")


def test_the_method_must_be_the_checkpoints(path, state, backbones, tmp_path):
    with pytest.raises(TransrecError, match="holds no adapters"):
        load_original(path, backbones["bert"], method="houlsby")
    key = f"{USER}transformer_blocks.0.adapter1.fc_down.weight"
    torch.save({"model_state_dict": state | {key: torch.zeros(4, 16)}}, tmp_path / "adapted.pt")
    with pytest.raises(TransrecError, match="holds adapters"):
        load_original(tmp_path / "adapted.pt", backbones["bert"])


@pytest.mark.parametrize("keep", [0, 10, 1000, -10])
def test_a_truncated_file_is_refused(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TransrecError, match=r"epoch-53\.pt"):
        read_original(path)


class Malice:
    """Unpickling this writes a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_but_tensors_is_unpickled(state, tmp_path, zipped):
    target = tmp_path / "owned"
    content = {"model_state_dict": state, "rng_state": Malice(target)}
    path = tmp_path / "epoch-1.pt"
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(TransrecError, match=r"never unpickled|damaged"):
        read_original(path)
    assert not target.exists()


def test_something_else_is_refused(tmp_path):
    for content in ({"weights": torch.zeros(2)}, [1, 2], {"model_state_dict": {"a": 3}}):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(TransrecError, match=r"other\.pt"):
            read_original(tmp_path / "other.pt")
