"""Other kinds of backbone: each is loaded, read, adapted and its hidden states taken, or refused in one line."""

import copy
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import run
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel

from transrec import methods
from transrec.caching import constant_blocks, structure
from transrec.errors import TransrecError
from transrec.finished import load_run
from transrec.modalities.image import ImageTower
from transrec.modalities.text import TextTower
from transrec.models.backbone import (
    Preprocessing,
    blocks_of,
    build_backbone,
    check_text_length,
    declared_pooling,
    image_pooling,
    load_backbone,
    load_config,
    pooling,
    view,
)
from transrec.models.objectives.bce import BCEObjective
from transrec.models.recommender import Recommender
from transrec.models.user_encoders.sasrec import SASRec
from transrec.settings import parse
from transrec.training import checkpoint
from transrec.training.run import read_options

VOCABULARY = 99
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
WORDS = SIZES | {"vocab_size": VOCABULARY, "max_position_embeddings": 40}
PATCHES = SIZES | {"image_size": 32, "patch_size": 8}
TEXT = {
    "bert": WORDS,
    "roberta": WORDS,
    "xlm-roberta": WORDS,
    "distilbert": {"vocab_size": VOCABULARY, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "mpnet": WORDS,
    "deberta": WORDS,
    "deberta-v2": WORDS
    | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "position_buckets": 8},
    "electra": WORDS | {"embedding_size": 16},
    "albert": WORDS | {"embedding_size": 16, "num_hidden_layers": 3},
    "qwen2": WORDS | {"num_key_value_heads": 1},
    "llama": WORDS,
}
IMAGE = {
    "vit": PATCHES,
    "vit_mae": PATCHES | {"mask_ratio": 0.0},
    "deit": PATCHES,
    "beit": PATCHES | {"layer_scale_init_value": 0.1},
    "clip_vision_model": PATCHES,
    "siglip_vision_model": PATCHES,
    "dinov2": PATCHES | {"mlp_ratio": 2},
}
KINDS = [*TEXT, *IMAGE]
# Query, key and value are one projection in these models, so nothing can be inserted there.
FUSED = {"deberta"}
WITHOUT_CLS = {"siglip_vision_model"}
# Read at the last token.
DECODERS = {"llama", "qwen2"}
# What has no sites, layers that share a block, and what is not read at its first token alone.
WHOLE = {*FUSED, "albert", *WITHOUT_CLS, *DECODERS}


def modality(kind):
    return "text" if kind in TEXT else "image"


def save(folder, kind, sizes):
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(kind, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("kinds")
    return {kind: save(root / kind, kind, (TEXT | IMAGE)[kind]) for kind in KINDS}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def recommender(kind, folders):
    torch.manual_seed(0)
    backbone = load_backbone(folders[kind], modality(kind))
    if kind in TEXT:
        encoder = TextTower(backbone, 16, pooling(backbone.config, "auto"))
    else:
        encoder = ImageTower(backbone, 16, Preprocessing(32, (0.5,) * 3, (0.5,) * 3))
    return Recommender(encoder, SASRec(16, 6, 2, 2, 0.1), BCEObjective()).eval()


@pytest.fixture
def inputs(kind):
    """Inputs of four items; the texts have different lengths."""
    torch.manual_seed(1)
    if kind in IMAGE:
        return (torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8),)
    mask = (torch.arange(7) < torch.tensor([7, 3, 5, 7])[:, None]).long()
    return torch.randint(5, VOCABULARY, (4, 7)) * mask, mask


def apply(recommender, method, **options):
    options = methods.get(method).Options(**options)
    return methods.apply(recommender, method, options, methods.Rates(recommender=1e-3, backbone=1e-4))


def encode(recommender, inputs):
    with torch.no_grad():
        return recommender.eval().item_encoder(*inputs)


def test_it_is_read(recommender, inputs, kind):
    """Embeddings are finite, differ between items, and do not depend on padding."""
    read = encode(recommender, inputs)
    assert read.shape == (4, 16) and torch.isfinite(read).all()
    assert torch.pdist(read).min() > 1e-4
    if kind in TEXT:
        assert_padding_leaves_no_trace(recommender, inputs)


def assert_padding_leaves_no_trace(recommender, inputs):
    """Check that each text has the same embedding as without padding."""
    read, (ids, mask) = encode(recommender, inputs), inputs
    for number, length in enumerate(mask.sum(1).tolist()):
        alone = encode(recommender, (ids[number : number + 1, :length], mask[number : number + 1, :length]))
        torch.testing.assert_close(read[number], alone[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "method,options",
    [
        ("houlsby", {"insert": "item"}),
        ("lora", {"insert": "item", "item_rank": 4}),
        ("pfeiffer", {"insert": "item", "variant": "adapterhub"}),
        ("parallel", {"insert": "item", "variant": "published"}),
    ],
    ids=["houlsby", "lora", "pfeiffer adapterhub", "parallel published"],
)
def test_all_that_is_inserted_is_used_or_it_is_refused(recommender, inputs, kind, method, options):
    if kind in FUSED:
        with pytest.raises(TransrecError, match=r"projections \[\] and 4 other .* use --method full, frozen or iisan"):
            apply(recommender, method, **options)
        return
    if method == "pfeiffer" and (kind in IMAGE or kind in ("llama", "qwen2")):
        with pytest.raises(TransrecError, match="--variant adapterhub of pfeiffer needs a LayerNorm behind each block"):
            apply(recommender, method, **options)
        return
    before = encode(recommender, inputs)
    (group,) = [g for g in apply(recommender, method, **options) if g.name == "adapter"]
    with torch.no_grad():
        for parameter in group.parameters.values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert (encode(recommender, inputs) - before).abs().max() > 1e-4
    recommender.item_encoder(*inputs).square().sum().backward()
    unused = [name for name, parameter in group.parameters.items() if parameter.grad is None]
    assert not unused
    blocks = {"albert": 1}.get(kind, 2)
    modules = {"houlsby": 2, "lora": 2, "pfeiffer": 1, "parallel": 1 if kind in (*IMAGE, "llama", "qwen2") else 2}
    tensors = 2 if method == "lora" else 4
    assert len(group.parameters) == tensors * blocks * modules[method]


def test_sites_are_where_the_residual_is_added(recommender, inputs, kind):
    """The input of the LayerNorm of a post-LN sub-layer is the sub-layer's input plus its output."""
    if kind in FUSED:
        pytest.skip("it has no sites")
    sublayers = [sublayer for block in view(recommender.item_encoder.backbone).blocks for sublayer in block.sublayers]
    seen = {}

    def note(module, arguments, output):
        seen.setdefault(module, (arguments[0], output))

    for sublayer in sublayers:
        for site in (sublayer.stream, sublayer.output, sublayer.norm):
            if site is not None:
                site.module.register_forward_hook(note)
    encode(recommender, inputs)
    for sublayer in sublayers:
        if sublayer.norm is None:
            continue
        received, output = seen[sublayer.stream.module][0], seen[sublayer.output.module][1]
        torch.testing.assert_close(seen[sublayer.norm.module][0], received + output)


def test_hidden_states_are_read(recommender, inputs, kind):
    """States equal those of transformers, pooled like items; those of images are from before the final LayerNorm."""
    tower = recommender.item_encoder
    states = tower.reader.read(tower.read_out, *inputs)
    layers = tower.backbone.config.num_hidden_layers
    assert states.shape == (4, 1 + layers, 32) and torch.isfinite(states).all()
    given = {"input_ids": inputs[0], "attention_mask": inputs[1]} if kind in TEXT else {}
    if not given:
        given = {"pixel_values": (inputs[0].float() / 255 - 0.5) / 0.5}
        if kind == "vit_mae":
            given["noise"] = torch.arange(16).expand(4, -1)
    with torch.no_grad():
        expected = tower.backbone(**given, output_hidden_states=True).hidden_states
    pooled = [tower.pool(hidden, *inputs) for hidden in expected]
    for number in range(layers + (kind in TEXT)):
        torch.testing.assert_close(states[:, number], pooled[number], atol=1e-5, rtol=1e-4)
    apply(recommender, "iisan")
    assert torch.isfinite(encode(recommender, inputs)).all()


def test_it_goes_on_from_the_states_of_all_tokens(recommender, inputs, kind):
    """Resumed above the frozen blocks, item embeddings and gradients equal those of the full backbone."""
    tower = recommender.item_encoder
    before = structure(tower.backbone)
    trained = apply(recommender, "full", train_last=1)[0].parameters.values()
    first = SimpleNamespace(inputs=lambda items: [one[:1] for one in inputs], host_lengths=None, digest="")
    constant = constant_blocks(tower.eval(), before, first)
    if kind == "albert":
        assert constant is None
        return
    assert constant.count == 1 and constant.tokens == tower.token_states(1, *inputs).shape[1]

    def gradients(*tensors):
        tower(*tensors).square().sum().backward()
        gradients_of_trained = [parameter.grad for parameter in trained if parameter.grad is not None]
        recommender.zero_grad()
        return gradients_of_trained

    whole, expected = encode(recommender, inputs), gradients(*inputs)
    states = tower.token_states(1, *inputs)
    tower.resume_at(constant.count, constant.extra_outputs)
    # Images have no masks: the part before the blocks runs only for the first image.
    resumed = (states, *(inputs if kind in TEXT else constant.remaining_inputs(torch.ones(1))))
    assert tower.input_count == len(resumed) and not list(blocks_of(tower.backbone)[0].parameters())
    torch.testing.assert_close(encode(recommender, resumed), whole, atol=1e-6, rtol=0)
    for gradient, other in zip(gradients(*resumed), expected, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-6, rtol=1e-4)


def test_no_cls(folders):
    """An image encoder without [CLS] is pooled by its head; its layers, and encoders without a head, by the mean."""
    backbone = load_backbone(folders["siglip_vision_model"], "image").eval()
    tower = ImageTower(backbone, 16, Preprocessing(32, (0.5,) * 3, (0.5,) * 3))
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        output = backbone(pixel_values=(pixels.float() / 255 - 0.5) / 0.5)
        torch.testing.assert_close(tower.read_out(pixels), output.pooler_output)
        torch.testing.assert_close(tower.pool(output.last_hidden_state), output.last_hidden_state.mean(1))
        config = copy.deepcopy(backbone.config)
        config.vision_use_head = False
        headless = build_backbone(config, "image").eval()
        hidden = headless(pixel_values=(pixels.float() / 255 - 0.5) / 0.5).last_hidden_state
        tower = ImageTower(headless, 16, Preprocessing(32, (0.5,) * 3, (0.5,) * 3))
        torch.testing.assert_close(tower.read_out(pixels), hidden.mean(1))


@pytest.mark.parametrize("kind", IMAGE, indirect=True)
def test_where_states_of_images_are_read(kind, folders):
    """The pooling of an image encoder is part of what its state files depend on."""
    expected = "mean" if kind in WITHOUT_CLS else "cls"
    assert image_pooling(load_config(folders[kind], "image")) == expected


REFUSED = {
    "swin": {
        "image_size": 32,
        "patch_size": 4,
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
    },
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "siglip2_vision_model": SIZES | {"patch_size": 8, "num_patches": 16},
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_plain_transformer_is_refused(kind, tmp_path):
    save(tmp_path, kind, REFUSED[kind])
    plain = f"a model of type {kind} is not a plain stack of transformer blocks of one width"
    more = "needs pixel_attention_mask and spatial_shapes beside pixel_values"
    with pytest.raises(TransrecError, match=more if "siglip2" in kind else plain) as caught:
        load_backbone(tmp_path, "image")
    assert "\n" not in str(caught.value)


def test_layers_that_share_a_block_are_not_told_apart(folders):
    backbone = load_backbone(folders["albert"])
    recommender = Recommender(TextTower(backbone, 16), SASRec(16, 6, 2, 2, 0.1), BCEObjective())
    with pytest.raises(TransrecError, match="--method kadapter: the layers of this backbone share their blocks"):
        apply(recommender, "kadapter", item_size=8, item_heads=2, user_size=8)


@pytest.mark.parametrize("kind", [kind for kind in TEXT if kind not in {*FUSED, "albert"}], indirect=True)
def test_kadapters_see_no_padding(recommender, inputs):
    """Padding is masked in whatever form the blocks receive their mask."""
    apply(recommender, "kadapter", item_size=8, item_heads=2, user_size=8, insert="item")
    with torch.no_grad():
        for parameter in recommender.item_encoder.backbone.k_adapter.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    assert_padding_leaves_no_trace(recommender, inputs)


def test_kadapters_over_clip_are_causal_with_and_without_padding(tmp_path):
    """Its blocks are told by a flag that they are causal, and receive a mask only if a text is padded."""
    backbone = load_backbone(save(tmp_path, "clip_text_model", WORDS))
    recommender = Recommender(TextTower(backbone, 16, "last"), SASRec(16, 6, 2, 2, 0.1), BCEObjective())
    apply(recommender, "kadapter", item_size=8, item_heads=2, user_size=8, insert="item")
    with torch.no_grad():
        for parameter in recommender.item_encoder.backbone.k_adapter.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    mask = (torch.arange(7) < torch.tensor([7, 3, 5, 7])[:, None]).long()
    assert_padding_leaves_no_trace(recommender, (torch.randint(5, VOCABULARY, (4, 7)) * mask, mask))


@pytest.mark.parametrize(
    "kind,sizes", [("clip_text_model", WORDS), ("beit", IMAGE["beit"] | {"use_relative_position_bias": True})]
)
def test_prompts_have_no_place_in_some_backbones(kind, sizes, tmp_path):
    backbone = load_backbone(save(tmp_path, kind, sizes), "text" if sizes is WORDS else "image")
    if sizes is WORDS:
        tower = TextTower(backbone, 16, "last")
    else:
        tower = ImageTower(backbone, 16, Preprocessing(32, (0.5,) * 3, (0.5,) * 3))
    with pytest.raises(TransrecError, match="vectors of --method prompt; use another method or"):
        apply(Recommender(tower, SASRec(16, 6, 2, 2, 0.1), BCEObjective()), "prompt", n_tokens=2)


def test_an_output_narrower_than_the_blocks_is_refused(tmp_path):
    save(tmp_path, "opt", WORDS | {"ffn_dim": 64, "word_embed_proj_dim": 16})
    with pytest.raises(TransrecError, match="blocks have width 32, but its output has width 16"):
        load_backbone(tmp_path)


def test_sublayers_that_end_in_other_widths_are_refused():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key, self.value, self.out = (nn.Linear(4, 4) for _ in range(4))
            # As in a gated layer whose modules are not defined in the order of the data's flow.
            self.down, self.up = nn.Linear(8, 4), nn.Linear(4, 8)

    with pytest.raises(TransrecError, match="seem to end in widths of 4 and 8, so nothing can be inserted"):
        view(nn.ModuleDict({"layer": nn.ModuleList([Block(), Block()])}))


def test_the_published_parallel_adapter_needs_a_norm_for_each_sublayer(tmp_path):
    sizes = SIZES | {"vocab_size": VOCABULARY, "head_dim": 16, "num_key_value_heads": 1}
    recommender = Recommender(
        TextTower(load_backbone(save(tmp_path, "gemma2", sizes)), 16, "last"), SASRec(16, 6, 2, 2, 0.1), BCEObjective()
    )
    with pytest.raises(TransrecError, match="--variant published of parallel needs one norm for each sub-layer"):
        apply(recommender, "parallel", insert="item", variant="published")
    apply(recommender, "parallel", insert="item")


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_full_trains_has_a_gradient(recommender, inputs):
    """Otherwise several processes could not train it."""
    groups = apply(recommender, "full")
    recommender.item_encoder(*inputs).square().sum().backward()
    trained = {name: p for group in groups if group.name == "backbone" for name, p in group.parameters.items()}
    assert trained and not [name for name, parameter in trained.items() if parameter.grad is None]


def test_two_attentions_in_a_block_are_refused():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            for part in ("own", "cross"):
                attention = {name: nn.Linear(4, 4) for name in ("query", "key", "value", "out")}
                setattr(self, part, nn.ModuleDict(attention))
            self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    with pytest.raises(TransrecError, match=r"found the projections several times \['k', 'q', 'v'\]"):
        view(nn.ModuleDict({"layer": nn.ModuleList([Block(), Block()])}))


@pytest.mark.parametrize("kind,longest", [("bert", 40), ("roberta", 38), ("xlm-roberta", 38), ("mpnet", 38)])
def test_the_longest_text(kind, longest, folders):
    """The longest accepted text is what the model can take, and the model runs on it."""
    config, backbone = load_config(folders[kind]), load_backbone(folders[kind]).eval()
    ids = torch.full((1, longest), 7)
    with torch.no_grad():
        assert torch.isfinite(backbone(input_ids=ids, attention_mask=ids.clamp(max=1)).last_hidden_state).all()
    check_text_length(config, longest)
    with pytest.raises(TransrecError, match=f"the text encoder takes {longest}"):
        check_text_length(config, longest + 1)


def declare(folder: Path, stored, modules=None) -> Path:
    """Make a folder a sentence-transformers folder with a pooling module of that configuration."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(listed if modules is None else modules))
    (folder / "1_Pooling" / "config.json").write_text(stored if isinstance(stored, str) else json.dumps(stored))
    return folder


@pytest.mark.parametrize(
    "stored,declared",
    [
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False, "include_prompt": True}, "last"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls, mean"),
        ({"word_embedding_dimension": 32}, "mean"),
        ({"pooling_mode": "lasttoken", "embedding_dimension": 32}, "last"),
        ({"pooling_mode": ["mean", "max"]}, "mean, max"),
    ],
)
def test_declared_pooling(tmp_path, stored, declared):
    (tmp_path / "config.json").write_text("{}")
    assert declared_pooling(tmp_path) is None
    assert declared_pooling(declare(tmp_path, stored)) == declared
    assert declared_pooling(declare(tmp_path, stored, modules=[])) is None


@pytest.mark.parametrize("stored,modules", [("{", None), ("[]", None), ("{}", {"a": 1}), ("{}", [{"path": 3}])])
def test_malformed_declarations(tmp_path, stored, modules):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TransrecError, match=r"json: malformed .* choose --text_pooling"):
        declared_pooling(declare(tmp_path, stored, modules))


@pytest.fixture
def sentence_encoder(backbones, tmp_path) -> Path:
    """A folder that declares mean pooling."""
    return declare(shutil.copytree(backbones["bert"], tmp_path / "sentences"), {"pooling_mode_mean_tokens": True})


def embeddings(folder) -> torch.Tensor:
    tower = load_run(folder).item_encoder
    ids = torch.arange(10, 16).expand(2, -1)
    with torch.no_grad():
        return tower(ids, torch.ones_like(ids))


def test_a_run_reads_as_its_encoder_declares(flags, sentence_encoder, tmp_path, capsys):
    encoder = ["--text_encoder", str(sentence_encoder), "--epochs", "1"]
    run([*flags, *encoder, "--output", str(tmp_path / "auto")])
    assert (
        f"titles      read by --text_pooling mean, as {sentence_encoder} (modules.json) declares"
        in capsys.readouterr().out
    )
    assert read_options(tmp_path / "auto")["text_pooling"] == "mean"
    _, description = checkpoint.read(tmp_path / "auto" / "checkpoints" / "best.safetensors")
    assert description.sizes["text_pooling"] == "mean"
    run([*flags, *encoder, "--text_pooling", "mean", "--output", str(tmp_path / "mean")])
    run([*flags, *encoder, "--text_pooling", "cls", "--output", str(tmp_path / "cls")])
    assert f"read by --text_pooling cls, as this run's options say; {sentence_encoder}" in capsys.readouterr().out
    auto, mean, cls = (embeddings(tmp_path / name) for name in ("auto", "mean", "cls"))
    assert torch.equal(auto, mean) and not torch.allclose(auto, cls)
    # The same command line may give auto again.
    again = parse(
        [*flags, *encoder, "--text_pooling", "auto", "--output", str(tmp_path / "auto"), "--resume"], "full", {}
    )
    assert again.modalities["text"].options.text_pooling == "mean"


def test_runs_begun_before_declarations_were_read_stay_what_they_were(flags, sentence_encoder, tmp_path, capsys):
    """Their options say auto, which meant [CLS]: they keep it, and a run that starts from them is asked to set it."""
    declaration = (sentence_encoder / "modules.json").rename(tmp_path / "modules.json")
    encoder = ["--text_encoder", str(sentence_encoder), "--keep_state"]
    run([*flags, *encoder, "--output", str(tmp_path / "whole")])
    run([*flags, *encoder, "--output", str(tmp_path / "old"), "--epochs", "1"])
    for file in (tmp_path / "old" / "checkpoints").glob("*.safetensors"):
        tensors, description = checkpoint.read(file)
        description.sizes["text_pooling"] = "auto"
        checkpoint.save(file, tensors, description)
    assert read_options(tmp_path / "old")["text_pooling"] == "auto"
    declaration.rename(sentence_encoder / "modules.json")
    start = [
        *flags,
        *encoder,
        "--checkpoint",
        str(tmp_path / "old"),
        "--epochs",
        "1",
        "--output",
        str(tmp_path / "new"),
    ]
    message = "was trained with --text_pooling cls, this run has text_pooling mean; give --text_pooling cls"
    with pytest.raises(TransrecError, match=re.escape(message)):
        run(start, "houlsby")
    run([*start, "--text_pooling", "cls"], "houlsby")
    capsys.readouterr()
    run(["--resume", str(tmp_path / "old"), "--epochs", "2"])
    assert "read by --text_pooling cls, as this run's options say" in capsys.readouterr().out
    old, whole = (checkpoint.read(tmp_path / name / "checkpoints" / "last.safetensors")[0] for name in ("old", "whole"))
    assert old.keys() == whole.keys() and all(torch.equal(old[name], whole[name]) for name in old)


def test_a_pooling_that_we_lack(flags, sentence_encoder, tmp_path, capsys):
    declare(sentence_encoder, {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True})
    encoder = ["--text_encoder", str(sentence_encoder), "--epochs", "1"]
    run([*flags, *encoder, "--output", str(tmp_path / "run")], "frozen")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert "declares the pooling max, mean, and only cls, last, mean are known here: titles are read by" in line
    assert read_options(tmp_path / "run")["text_pooling"] == "auto"


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_image_encoder_of_a_model_of_images_and_texts(kind, tmp_path):
    """The folder of the full model is accepted; SigLIP's text encoder has no model class of its own in transformers."""
    texts = WORDS | {"projection_size": 32, "bos_token_id": 1, "eos_token_id": 2}
    save(tmp_path, kind, {"text_config": texts, "vision_config": PATCHES, "projection_dim": 32})
    whole, part = AutoModel.from_pretrained(tmp_path).eval(), load_backbone(tmp_path, "image").eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = whole.vision_model(pixel_values=pixels).last_hidden_state
        torch.testing.assert_close(part(pixel_values=pixels).last_hidden_state, expected)
    if kind == "clip":
        text = load_backbone(tmp_path, "text")
        assert (text.config.hidden_size, pooling(text.config, "auto")) == (32, "last")
    else:
        with pytest.raises(TransrecError, match="holds no text encoder that can be loaded"):
            load_backbone(tmp_path, "text")


def flops(recommender, inputs):
    # The counter cannot follow weights of DeBERTa that train.
    recommender = copy.deepcopy(recommender).requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        encode(recommender, inputs)
    return counter.get_total_flops()


def test_tokens_at_which_no_item_is_read_are_left_out(recommender, inputs, kind):
    """The same items and gradients for less, of copies too."""
    tower = recommender.item_encoder
    tower.skip_unread_tokens()
    assert bool(tower._skips) == (kind not in WHOLE)
    apply(recommender, "full" if kind in FUSED else "houlsby", **({} if kind in FUSED else {"insert": "item"}))

    def values_and_gradients():
        recommender.zero_grad()
        output = tower.eval()(*inputs)
        output.square().sum().backward()
        return [output, *(parameter.grad for parameter in tower.parameters() if parameter.requires_grad)]

    copied = copy.deepcopy(recommender)
    less, skipping = flops(recommender, inputs), values_and_gradients()
    tower.read_all_tokens()
    more, whole = flops(recommender, inputs), values_and_gradients()
    assert less < 0.8 * more if kind not in WHOLE else less == more
    for value, expected in zip(skipping, whole, strict=True):
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-4)
    assert flops(copied, inputs) == less
    copied.item_encoder.read_all_tokens()
    assert flops(copied, inputs) == more


class Mixing(nn.Module):
    """Passes on the mean of all tokens, as no known backbone does after its attention."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, *more):
        return self.inner(x.mean(1, keepdim=True) + x, *more)


class Counting(Mixing):
    """Accepts no single token."""

    def forward(self, x, *more):
        if x.shape[1] == 1:
            raise ValueError("one token is not enough")
        return self.inner(x, *more)


@pytest.mark.parametrize("mixing", [Mixing, Counting])
def test_a_backbone_of_another_kind_runs_whole(folders, mixing):
    backbone = load_backbone(folders["bert"], "text").train()
    layer = backbone.encoder.layer[-1]
    layer.output = mixing(layer.output)
    tower = TextTower(backbone, 16, "cls")
    before = torch.random.get_rng_state()
    tower.skip_unread_tokens()
    assert not tower._skips and not layer.intermediate.dense._forward_pre_hooks
    assert backbone.training and torch.equal(torch.random.get_rng_state(), before)


def test_pooling_over_all_tokens_needs_them(folders):
    for several in ("mean", "last"):
        tower = TextTower(load_backbone(folders["bert"], "text"), 16, several)
        tower.skip_unread_tokens()
        assert not tower._skips
