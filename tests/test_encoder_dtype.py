"""--encoder_dtype: weights of frozen backbones in fewer bytes, with the numbers of the same weights in float32."""

import copy
import json
import shutil

import pytest
import torch
from conftest import run
from test_gradient_checkpointing import inputs_of
from test_methods import apply, make_encoder
from transformers import AutoConfig, AutoModel

from transrec import load_run, methods
from transrec.errors import TransrecError
from transrec.models.backbone import load_backbone
from transrec.models.held import check_trainable_dtypes, compute_in_float32, store_in_dtype, stored_dtype
from transrec.models.objectives.bce import BCEObjective
from transrec.models.recommender import Recommender
from transrec.models.user_encoders.sasrec import SASRec
from transrec.training.checkpoint import frozen_fingerprint

KINDS = ("bert", "roberta", "llama", "vit", "mae")
NARROW = {"bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(scope="module")
def stored(backbones, tmp_path_factory):
    """Backbones whose files are in bfloat16, by kind."""
    root = tmp_path_factory.mktemp("bf16")
    for kind in KINDS:
        shutil.copytree(backbones[kind], root / kind)
        AutoModel.from_pretrained(root / kind).to(torch.bfloat16).save_pretrained(root / kind)
    return {kind: root / kind for kind in KINDS}


def outputs(encoder, inputs, dtype=None):
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        return encoder(*inputs), encoder.read(*inputs)


def test_weights_that_a_model_reads_by_itself_are_held_in_float32(tmp_path):
    """DeBERTa reads its embeddings of relative positions without running their layer."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    relative = {"relative_attention": True, "position_buckets": 8, "share_att_key": True, "vocab_size": 99}
    config = AutoConfig.for_model("deberta-v2", **sizes, **relative, pos_att_type=["p2c", "c2p"])
    wide = AutoModel.from_config(config).eval()
    for parameter in wide.parameters():
        parameter.data = parameter.data.half().float()
    narrow = copy.deepcopy(wide)
    store_in_dtype(narrow, torch.float16)
    ids = torch.randint(5, 99, (2, 7))
    with torch.no_grad():
        assert torch.equal(narrow(input_ids=ids).last_hidden_state, wide(input_ids=ids).last_hidden_state)
    assert narrow.embeddings.word_embeddings.weight.dtype == torch.float16


@pytest.mark.parametrize("dtype", NARROW.values(), ids=NARROW)
@pytest.mark.parametrize("kind", ["bert", "llama", "vit", "mae"])
def test_numbers_are_those_of_the_same_weights_in_float32(kind, dtype, backbones):
    torch.manual_seed(0)
    wide = make_encoder(kind, backbones).eval()
    for parameter in wide.backbone.parameters():
        parameter.data = parameter.data.to(dtype).float()
    narrow = copy.deepcopy(wide)
    store_in_dtype(narrow.backbone, dtype)
    bytes_of = {tower: sum(p.nbytes for p in tower.backbone.parameters()) for tower in (wide, narrow)}
    assert bytes_of[narrow] < 0.7 * bytes_of[wide]
    assert frozen_fingerprint(narrow, set()) == frozen_fingerprint(wide, set())
    for tower in (narrow, copy.deepcopy(narrow)):
        for computed_in in (None, torch.bfloat16):
            actual, expected = (
                outputs(one, inputs_of("vit" if kind == "mae" else kind), computed_in) for one in (tower, wide)
            )
            assert all(
                torch.equal(*pair) and pair[0].dtype == pair[1].dtype for pair in zip(actual, expected, strict=True)
            )


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_loaded_in_its_own_format(kind, stored, backbones):
    modality = "text" if kind in ("bert", "roberta", "llama") else "image"
    assert stored_dtype(backbones[kind]) == torch.float32 and stored_dtype(stored[kind]) == torch.bfloat16
    wide, narrow = (load_backbone(stored[kind], modality, dtype=one) for one in (torch.float32, torch.bfloat16))
    store_in_dtype(narrow, torch.bfloat16)
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16, torch.float32}
    for name, tensor in (dict(wide.named_parameters()) | dict(wide.named_buffers())).items():
        other = (dict(narrow.named_parameters()) | dict(narrow.named_buffers()))[name]
        assert torch.equal(tensor.float(), other.float()), name
        assert tensor.requires_grad == other.requires_grad


INSERTED = [name for name in methods.names() if issubclass(methods.get(name).Options, methods.InsertOptions)]


@pytest.mark.parametrize(("method", "kind"), [*((name, "bert") for name in INSERTED), ("lora", "llama")])
def test_a_method_over_held_weights_learns_as_over_the_same_in_float32(method, kind, backbones):
    found = []
    for narrow in (True, False):
        torch.manual_seed(0)
        recommender = Recommender(make_encoder(kind, backbones), SASRec(16, 6, 2, 2, 0.1), BCEObjective())
        backbone = recommender.item_encoder.backbone
        for parameter in backbone.parameters():
            parameter.data = parameter.data.to(torch.bfloat16).float()
        if narrow:
            store_in_dtype(backbone, torch.bfloat16)
        apply(recommender, method, insert="item")
        encoder = recommender.item_encoder.eval()
        check_trainable_dtypes(encoder.backbone, "text")
        compute_in_float32(encoder.backbone)
        output = encoder(*inputs_of(kind))
        output.square().sum().backward()
        found.append([output, *(p.grad for p in encoder.parameters() if p.requires_grad)])
    assert all(one.dtype == torch.float32 for one in found[0] if one is not None)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_weights_that_fp16_cannot_hold(backbones):
    encoder = make_encoder("bert", backbones).backbone
    encoder.embeddings.LayerNorm.weight.data[0] = 7e4
    with pytest.raises(TransrecError, match=r"embeddings.LayerNorm.weight are larger than fp16 .*--encoder_dtype bf16"):
        store_in_dtype(encoder, torch.float16)


def result_of(flags, folder, *more, method="frozen"):
    run([*flags, *more, "--output", str(folder)], method)
    result = json.loads((folder / "result.json").read_text())
    return [*(json.loads(line)["train_loss"] for line in (folder / "metrics.jsonl").open()), result["test"]]


def test_auto_changes_no_number_and_another_format_is_another_file(flags, stored, tmp_path):
    flags = [*flags, "--text_encoder", str(stored["bert"]), "--state_cache", str(tmp_path / "states")]
    expected = result_of(flags, tmp_path / "wide", "--encoder_dtype", "fp32")
    for dtype in ("auto", "bf16"):
        assert result_of(flags, tmp_path / dtype, "--encoder_dtype", dtype) == expected
    assert len(list((tmp_path / "states").glob("*.safetensors"))) == 1
    *losses, test = result_of(flags, tmp_path / "steps", "--cached", "no")
    assert losses == pytest.approx(expected[:-1]) and test == pytest.approx(expected[-1])
    result_of(flags, tmp_path / "fp16", "--encoder_dtype", "fp16")
    assert len(list((tmp_path / "states").glob("*.safetensors"))) == 2
    loaded = load_run(tmp_path / "auto")
    assert torch.bfloat16 in {p.dtype for p in loaded.item_encoder.backbone.parameters()}


def test_a_run_over_held_weights_is_resumed_and_given_away(flags, tmp_path):
    flags = [*flags, "--encoder_dtype", "bf16", "--insert", "item"]
    whole = result_of(flags, tmp_path / "whole", method="lora")
    result_of(flags, tmp_path / "part", "--epochs", "1", "--keep_state", method="lora")
    run(["--resume", str(tmp_path / "part"), "--epochs", "2"], "lora")
    assert json.loads((tmp_path / "part" / "result.json").read_text())["test"] == whole[-1]
    loaded = load_run(tmp_path / "whole")
    assert torch.bfloat16 in {p.dtype for p in loaded.item_encoder.backbone.parameters()}
    assert loaded.embeddings.any()


def test_what_trains_is_refused(command):
    status, message = command("--encoder_dtype", "fp16", method="full")
    assert status == 2 and "--encoder_dtype fp16" in message and "--precision fp16 to compute" in message
