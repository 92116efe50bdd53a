"""Original checkpoints: `epoch-N.pt` as the original programs save it."""

import os
import pickle
import re

import pytest
import torch
from conftest import run
from transformers import ViTConfig

from transrec.errors import TransrecError
from transrec.interop import load_original, read_original
from transrec.modalities.text import TextTower
from transrec.models.backbone import build_backbone, load_config
from transrec.models.objectives.bce import BCEObjective
from transrec.models.recommender import Recommender
from transrec.models.user_encoders.sasrec import SASRec

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
    """Return the original program's key for one of our parameters, written independently of the rules under test."""
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
    return Recommender(TextTower(backbone, 16), SASRec(16, 6, 2, 2, 0.1), BCEObjective()).eval()


@pytest.fixture
def state(recommender):
    """model_state_dict as the original program would hold it, including the pooler."""
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
    """An object that writes a file when it is unpickled."""

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


LAYER = re.compile(r"(cv_encoder\.image_net\.vit\.encoder\.)layer\.(\d)\.(.*)")
BLOCK = re.compile(r"(user_encoder\.transformer_encoder\.transformer_blocks\.)(\d)\.(.*)")


def linear(name, inputs, outputs):
    return {f"{name}.weight": torch.randn(outputs, inputs), f"{name}.bias": torch.randn(outputs)}


def bottleneck(name, width, size):
    return linear(f"{name}.fc_down", width, size) | linear(f"{name}.fc_up", size, width)


def compacter(name, width, size):
    parts = {}
    for part, inputs, outputs in (("down_sampler", width, size), ("up_sampler", size, width)):
        parts[f"{name}.{part}.W_left"] = torch.randn(4, inputs // 4, 1)
        parts[f"{name}.{part}.W_right"] = torch.randn(4, 1, outputs // 4)
        parts[f"{name}.{part}.b"] = torch.randn(outputs)
        parts[f"{name}.{part}.phm_rule"] = torch.full((4, 4, 4), 0.5)
    return parts


def wrapped(state, wraps_output, wraps_attention=True):
    """Return original names of an image recommender in which adapters wrap the blocks of ViT and SASRec."""
    names = {}
    for key, tensor in state.items():
        key = BLOCK.sub(r"\1\2.transformer_block.\3", key)
        if wraps_attention:
            key = key.replace("attention.output.dense", "attention.output.self_output.dense")
        if wraps_output:
            key = re.sub(r"(layer\.\d\.output)\.dense", r"\1.self_output.dense", key)
        names[key] = tensor
    return names


def with_adapters(state, method):
    """Return the state dict that the original image program saves for that method, with its own names."""
    layer = "cv_encoder.image_net.vit.encoder.layer"
    user = "user_encoder.transformer_encoder.transformer_blocks"
    state = dict(state)
    if method == "parallel":
        state = wrapped(state, True, wraps_attention=False)
        for n in range(2):
            state |= bottleneck(f"{layer}.{n}.output.adapter", 128, 64)
            state |= bottleneck(f"{user}.{n}.adapter1", 64, 16) | bottleneck(f"{user}.{n}.adapter2", 64, 16)
    elif method == "pfeiffer_attention":
        state = wrapped(state, False)
        for n in range(2):
            state |= bottleneck(f"{layer}.{n}.attention.output.adapter", 128, 64)
            state |= bottleneck(f"{user}.{n}.adapter1", 64, 16)
    elif method == "lora":
        for n in range(2):
            for part in ("query", "value"):
                site = f"{layer}.{n}.attention.attention.{part}"
                state |= {f"{site}.lora_A": torch.randn(12, 128), f"{site}.lora_B": torch.randn(128, 12)}
            site = f"{user}.{n}.multi_head_attention"
            state |= {f"{site}.w_Q.lora_A": torch.randn(4, 64), f"{site}.w_Q.lora_B": torch.randn(64, 4)}
            state |= {f"{site}.w_{part}.bias": torch.randn(64) for part in "QV"}
    elif method == "compacter":
        state = wrapped(state, True)
        for n in range(2):
            for place in ("attention.output", "output"):
                state |= compacter(f"{layer}.{n}.{place}.adapter", 128, 64)
            for number in "12":
                state |= compacter(f"{user}.{n}.adapter{number}", 64, 16)
        state = {f"model.{key}": tensor for key, tensor in state.items()} | {"phm_rule": torch.full((4, 4, 4), 0.5)}
    elif method == "kadapter":
        inside = {}
        for key, tensor in state.items():
            inside[BLOCK.sub(r"\1transformer_blocks.\2.\3", LAYER.sub(r"\1vit_encoder.layer.\2.\3", key))] = tensor
        state = inside
        for place, width, size in ((f"{layer[:-6]}.bert_adapter_list", 128, 96), (f"{user}.adapter_list", 64, 16)):
            for n in range(2):
                state |= linear(f"{place}.{n}.down_project", width, size)
                state |= linear(f"{place}.{n}.up_project", size, width)
                for block in range(2):
                    attention = f"{place}.{n}.transformer_blocks.{block}.multi_head_attention"
                    state |= {
                        f"{attention}.{part}.weight": torch.randn(size, size) for part in ("w_Q", "w_K", "w_V", "fc")
                    }
                    forward = f"{place}.{n}.transformer_blocks.{block}.feed_forward"
                    state |= linear(f"{forward}.w_1", size, 4 * size) | linear(f"{forward}.w_2", 4 * size, size)
                    for norm in (attention, forward):
                        state |= {f"{norm}.layer_norm.{part}": torch.randn(size) for part in ("weight", "bias")}
        state |= linear(f"{layer[:-6]}.com_dense", 256, 128) | linear(f"{user}.com_dense2", 128, 64)
    elif method == "prompt":
        place = "cv_encoder.image_net.vit.embeddings"
        state = {key.replace(f"{place}.", f"{place}.wte."): tensor for key, tensor in state.items()}
        again = [key for key in state if ".wte.patch_embeddings." in key]
        state |= {key.replace(".wte.", "."): state[key] for key in again}
        state[f"{place}.Prompt_Tokens"] = torch.randn(1, 4, 128)
    return state


@pytest.mark.parametrize("method", ["parallel", "pfeiffer_attention", "lora", "compacter", "kadapter", "prompt"])
def test_original_image_checkpoints_of_every_method(golden, tmp_path, method):
    """Every tensor is loaded, every parameter is set, and the values are those of the checkpoint."""
    from safetensors.torch import load_file

    torch.manual_seed(0)
    base = {key: t.float() for key, t in load_file(golden / "image" / "base_sasrec" / "weights.safetensors").items()}
    state = with_adapters(base, method)
    torch.save({"model_state_dict": state}, tmp_path / "epoch-1.pt")
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
    ViTConfig(**sizes, image_size=32, patch_size=8).save_pretrained(tmp_path / "vit")
    recommender = load_original(tmp_path / "epoch-1.pt", image_encoder=tmp_path / "vit", method=method)
    tensors = [tensor.squeeze() for tensor in state.values()]
    for name, parameter in recommender.named_parameters():
        assert any(torch.equal(parameter.squeeze(), t) for t in tensors if t.shape == parameter.squeeze().shape), name
    with torch.no_grad():
        assert torch.isfinite(recommender.item_encoder.encode(torch.randn(2, 3, 32, 32))).all()
    counted = {"parallel": 24, "pfeiffer_attention": 16, "lora": 22, "compacter": 49, "kadapter": 116, "prompt": 3}
    assert sum(p.requires_grad for p in recommender.parameters()) == counted[method]
