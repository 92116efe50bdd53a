"""IISAN: the side network, its parity with the original program, and runs."""

import errno
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import preloaded
import pytest
import torch
from conftest import BOTH, REPOSITORY, encoder_flags, read_case, run
from safetensors import safe_open
from safetensors.torch import load_file
from test_training import ENVIRONMENT, best, finish, finished, numbers, start
from tokenizers.processors import TemplateProcessing
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, ViTConfig

from transrec import methods
from transrec.data.batches import Batch
from transrec.data.catalog import tokenise
from transrec.data.dataset import find_images, load_dataset
from transrec.data.demo import make_text_backbone
from transrec.data.features import IdFeatures, TextFeatures
from transrec.data.states import StateBuilder, StateFile
from transrec.errors import FileError, TransrecError
from transrec.finished import load_run
from transrec.interop import load_original, load_side
from transrec.methods.iisan import IISANOptions, SideNetwork
from transrec.modalities.image import ImageTower
from transrec.modalities.text import TextTower
from transrec.models.backbone import Preprocessing, build_backbone, load_backbone, load_config, load_tokenizer, pooling
from transrec.models.items import FusedItemEncoder
from transrec.models.objectives.in_batch import InBatchObjective
from transrec.models.recommender import Recommender
from transrec.models.user_encoders.sasrec import SASRec
from transrec.training.compiling import about_compiler, check_compiler

TOLERANCE = 1e-5
STATES = {"image": "vit_hidden_cls", "text": "bert_hidden_cls"}


@pytest.fixture(scope="module")
def backbones(backbones, tmp_path_factory):
    """The shared backbones, and a decoder that is wider and deeper than the others."""
    wide = tmp_path_factory.mktemp("backbones") / "wide"
    make_text_backbone(wide, hidden_size=48, layers=5, kind="llama")
    return backbones | {"wide": wide}


def states_of(io, device):
    layers = [0, 2, 4, 6, 8, 10, 12]
    every = {"image": io["hs_cv"], "text": io["hs_text"]}
    return {kind: torch.from_numpy(states)[:, layers].to(device) for kind, states in every.items()}


def test_side_network_equals_the_original(golden, device, tolerance):
    folder = golden / "iisan" / "side_uncached" / "default"
    _, io = read_case(folder)
    side = load_side(folder / "weights.safetensors").to(device)
    states = states_of(io, device)
    outputs = side.tower_outputs(states)
    for ours, theirs in (("image", "tower_cv"), ("text", "tower_text"), ("inter", "tower_mm")):
        np.testing.assert_allclose(outputs[ours].detach().cpu(), io[theirs], atol=tolerance, rtol=0)
    fused = side(states)
    np.testing.assert_allclose(fused.detach().cpu(), io["fused"], atol=tolerance, rtol=0)

    (fused * torch.from_numpy(io["grad_R"]).to(device)).sum().backward()
    recorded = load_side_gradients(folder / "grads.safetensors")
    for name, parameter in side.named_parameters():
        # A gradient is a sum over 20 items of products of as many terms: float32 rounding grows with the gradient.
        gradient = recorded[name].detach()
        bound = tolerance * max(1.0, gradient.abs().max().item())
        np.testing.assert_allclose(parameter.grad.cpu(), gradient, atol=bound, rtol=0, err_msg=name)


def load_side_gradients(path):
    """Load gradients, which are stored under the names of the weights and therefore load as weights do."""
    return dict(load_side(path).named_parameters())


@pytest.fixture
def tiny(golden, tmp_path):
    """The recorded complete model over a tiny BERT and ViT, as our recommender."""
    folder = golden / "iisan" / "backbone_tiny" / "IISAN"
    meta, io = read_case(folder)
    sizes = {"hidden_size": meta["D"], "num_hidden_layers": meta["layers"], "num_attention_heads": meta["heads"]}
    sizes |= {"intermediate_size": meta["intermediate"]}
    words = {"vocab_size": meta["vocab"], "max_position_embeddings": meta["max_position_embeddings"]}
    BertConfig(**sizes, **words).save_pretrained(tmp_path / "bert")
    ViTConfig(**sizes, image_size=meta["image_size"], patch_size=meta["patch"]).save_pretrained(tmp_path / "vit")
    recommender = load_original(
        folder / "weights.safetensors",
        text_encoder=tmp_path / "bert",
        image_encoder=tmp_path / "vit",
        method="iisan",
        objective="in_batch",
        heads=2,
    )
    return meta, io, recommender


def test_a_whole_model_equals_the_original(tiny, device, tolerance):
    meta, io, recommender = tiny
    encoder = recommender.to(device).item_encoder
    assert encoder.states == {"text": [0, 2, 4], "image": [0, 2, 4]}
    ids, mask = torch.from_numpy(io["item_text"]).to(device).long().chunk(2, dim=1)
    pixels = torch.from_numpy(io["item_images"]).to(device)
    every = {
        "text": encoder.encoders["text"].reader.read(encoder.encoders["text"].read_out, ids, mask),
        "image": encoder.encoders["image"].reader.read(encoder.encoders["image"].encode, pixels),
    }
    # Item 0 is padding, for which the record holds whatever the original program computed.
    np.testing.assert_allclose(every["text"][1:].cpu(), io["bert_hidden_cls"][1:], atol=tolerance, rtol=0)
    np.testing.assert_allclose(every["image"][1:].cpu(), io["vit_hidden_cls"][1:], atol=tolerance, rtol=0)

    states = {kind: values[1:, encoder.states[kind]] for kind, values in every.items()}
    items = io["sample_items_id"]
    real = items.reshape(-1) > 0
    with torch.no_grad():
        outputs, embeddings = encoder.side.tower_outputs(states), encoder.side(states)
        for ours, theirs in (("image", "tower_cv"), ("text", "tower_text"), ("inter", "tower_mm")):
            of_slots = outputs[ours].cpu()[items.reshape(-1)[real] - 1]
            np.testing.assert_allclose(of_slots, io[theirs][real], atol=tolerance, rtol=0)
        batch = Batch(
            items=torch.arange(1, len(embeddings) + 1),
            sequences=torch.from_numpy(items),
            negatives=torch.zeros_like(torch.from_numpy(items[:, :-1])),
            log_popularity=torch.from_numpy(np.log(io["pop_prob_list"][1:])).float(),
            predictions=int(io["log_mask"].sum()),
        ).to(device, IdFeatures())
        loss = recommender.objective(embeddings, batch, recommender.user_encoder) / batch.predictions
    assert loss.item() == pytest.approx(meta["loss"], abs=tolerance)


def test_a_cached_checkpoint_of_the_original_program(golden, tiny, tmp_path):
    """A cached checkpoint has the same tensors except the backbones, but other names for the last projections."""
    _, io, whole = tiny
    state = load_file(golden / "iisan" / "backbone_tiny" / "IISAN" / "weights.safetensors")
    projections = {
        "mm_encoder.cv_encoder.image_net.classifier.": "mm_encoder.cv_pre_fc.",
        "mm_encoder.bert_encoder.text_encoders.title.fc.": "mm_encoder.bert_pre_fc.",
    }
    for old, new in projections.items():
        state |= {key.replace(old, new): tensor for key, tensor in state.items() if key.startswith(old)}
    state = {key: tensor for key, tensor in state.items() if not re.search("(cv|bert)_encoder", key)}
    torch.save({"model_state_dict": state}, tmp_path / "epoch-1.pt")
    encoders = {"text_encoder": tmp_path / "bert", "image_encoder": tmp_path / "vit"}
    cached = load_original(tmp_path / "epoch-1.pt", **encoders, method="iisan", objective="in_batch")
    states = {"text": torch.from_numpy(io["bert_hidden_cls"]), "image": torch.from_numpy(io["vit_hidden_cls"])}
    chosen = {kind: values[:, whole.item_encoder.states[kind]] for kind, values in states.items()}
    with torch.no_grad():
        assert torch.equal(cached.item_encoder(*chosen.values()), whole.item_encoder.side(chosen))
    with pytest.raises(TransrecError, match="load_side reads a side network alone"):
        load_original(golden / "iisan" / "side_uncached" / "default" / "weights.safetensors", method="iisan")


def by_hand(state, image, text):
    """Return an original checkpoint's item embeddings by the paper's formulas, from states [N, K, D] of equal width."""

    def linear(name, x):
        return F.linear(x, state[f"mm_encoder.{name}.weight"].float(), state[f"mm_encoder.{name}.bias"].float())

    def sanb(part, step, x):
        adapter = f"{part}_adapter_list.{step}"
        return x + linear(f"{adapter}.fc_up", torch.relu(linear(f"{adapter}.fc_down", x)))

    def gate(part, step):
        return torch.sigmoid(state[f"mm_encoder.side_gate_params_{part}.{step}"].float() / 0.1)

    towers = {}
    for part, of_gate, states in (("cv", "cv", image), ("bert", "text", text)):
        s = torch.zeros_like(states[:, 0])
        for step, h in enumerate(states.unbind(1)):
            s = sanb(part, step, gate(of_gate, step) * h + (1 - gate(of_gate, step)) * s)
        towers[part] = linear(f"fc_{part}", s)
    s = torch.zeros_like(image[:, 0])
    for step in range(image.shape[1]):
        g = gate("mm", step)
        s = sanb("mm", step, s + g * image[:, step] + (1 - g) * text[:, step])
    ends = [
        linear("cv_encoder.image_net.classifier", towers["cv"]),
        linear("bert_encoder.text_encoders.title.fc", towers["bert"]),
        linear("fc_mm_down", linear("fc_mm", s)),
    ]
    return F.linear(torch.cat(ends, dim=1), state["com_dense.weight"].float(), state["com_dense.bias"].float())


def test_a_checkpoint_with_adapter_sizes_of_each_modalitys_own(golden, tiny, tmp_path):
    meta, io, whole = tiny
    torch.manual_seed(0)
    state = load_file(golden / "iisan" / "backbone_tiny" / "IISAN" / "weights.safetensors")
    chosen = {kind: torch.from_numpy(io[name])[1:, [0, 2, 4]] for kind, name in STATES.items()}
    with torch.no_grad():
        torch.testing.assert_close(whole.item_encoder.side(chosen), by_hand(state, **chosen), atol=TOLERANCE, rtol=0)
    for part, size in (("cv", 24), ("bert", 8), ("mm", 12)):
        for step in range(3):
            adapter = f"mm_encoder.{part}_adapter_list.{step}"
            state[f"{adapter}.fc_down.weight"] = torch.randn(size, meta["D"]) * 0.3
            state[f"{adapter}.fc_down.bias"] = torch.randn(size)
            state[f"{adapter}.fc_up.weight"] = torch.randn(meta["D"], size) * 0.3
    # As saved by a program that creates inter-modal parts for the longer of two layer lists, and reads only the first.
    for name in [name for name in state if re.search(r"mm_adapter_list\.0\.|side_gate_params_mm\.0", name)]:
        state[name.replace(".0", ".3", 1)] = state[name].clone()
    path = tmp_path / "epoch-1.pt"
    torch.save({"model_state_dict": state}, path)
    encoders = {"text_encoder": tmp_path / "bert", "image_encoder": tmp_path / "vit"}
    loaded = load_original(path, **encoders, method="iisan", objective="in_batch")
    with torch.no_grad():
        expected = by_hand(state, **chosen)
        torch.testing.assert_close(loaded.item_encoder.side(chosen), expected, atol=1e-4, rtol=1e-5)
        assert torch.equal(load_side(path)(chosen), loaded.item_encoder.side(chosen))


@pytest.mark.parametrize(("method", "tensors"), [("full", 172), ("houlsby", 97), ("lora", 81), ("bitfit", 100)])
def test_checkpoints_of_the_baselines(golden, tiny, tmp_path, method, tensors):
    """The same backbones without a side network load under the names of the original program's adapters."""
    meta, io, _ = tiny
    state = load_file(golden / "iisan" / "backbone_tiny" / "IISAN" / "weights.safetensors")
    state = {k: t for k, t in state.items() if not re.search(r"adapter_list|mm_encoder\.fc_|side_gate", k)}
    state["com_dense.weight"] = state["com_dense.weight"][:, : 2 * meta["embedding_dim"]]
    width, more = meta["D"], {}
    if method == "houlsby":
        wraps = re.compile(r"(encoder\.layer\.\d+(?:\.attention)?\.output)\.(dense|LayerNorm)\.")
        state = {wraps.sub(r"\1.self_output.\2.", key): tensor for key, tensor in state.items()}
        for place in {key.partition("self_output")[0] for key in state if "self_output" in key}:
            more |= {f"{place}adapter.fc_down.weight": torch.randn(16, width)}
            more |= {f"{place}adapter.fc_up.weight": torch.randn(width, 16)}
            more |= {f"{place}adapter.fc_{part}.bias": torch.zeros(n) for part, n in (("down", 16), ("up", width))}
    if method == "lora":
        for key in state:
            if re.search(r"\.attention\.(self|attention)\.(query|value)\.weight$", key):
                more |= {key.replace("weight", "lora_A"): torch.zeros(8, width)}
                more |= {key.replace("weight", "lora_B"): torch.zeros(width, 8)}
    torch.save({"model_state_dict": state | more}, tmp_path / "epoch-1.pt")
    encoders = {"text_encoder": tmp_path / "bert", "image_encoder": tmp_path / "vit"}
    loaded = load_original(tmp_path / "epoch-1.pt", **encoders, method=method, objective="in_batch")
    trained = {name for name, p in loaded.named_parameters() if p.requires_grad}
    # As recorded at 12 layers (428, 225, 177, 229 with BERT's pooler, which is not used), here at 4.
    assert len(trained) == tensors
    assert {"item_encoder.fusion.weight", "item_encoder.text.projection.bias"} <= trained
    if method == "houlsby":
        return
    ids, mask = torch.from_numpy(io["item_text"]).long().chunk(2, dim=1)
    title = "mm_encoder.bert_encoder.text_encoders.title.fc"
    cls = torch.from_numpy(io["bert_hidden_cls"][1:, -1])
    expected = F.gelu(F.linear(cls, state[f"{title}.weight"].float(), state[f"{title}.bias"].float()))
    with torch.no_grad():
        torch.testing.assert_close(loaded.item_encoder.text(ids, mask)[1:], expected, atol=TOLERANCE, rtol=0)


def original_names(side):
    """Return a side network's state under the names of the original programs."""
    modality = {"image": "cv", "text": "bert"}
    state = {}
    for name, tensor in side.state_dict().items():
        first, *rest = name.split(".")
        if first == "fusion":
            state[f"com_dense.{rest[-1]}"] = tensor
        elif first == "projections":
            state[f"mm_encoder.{modality[rest[0]]}_pre_fc.{rest[-1]}"] = tensor
        else:
            part = modality[rest[0]] if first == "intra" else "mm"
            if rest[-1] == "gates":
                gate = "text" if part == "bert" else part
                state |= {f"mm_encoder.side_gate_params_{gate}.{n}": g.reshape(1) for n, g in enumerate(tensor)}
            elif "adapters" in rest:
                number, layer, kind = rest[-3:]
                state[f"mm_encoder.{part}_adapter_list.{number}.fc_{layer}.{kind}"] = tensor
            elif "align" in rest:
                state[f"mm_encoder.down_project_list.{rest[-2]}.{rest[-1]}"] = tensor
            elif rest[-2] == "projection":
                state[f"mm_encoder.fc_mm_down.{rest[-1]}"] = tensor
            else:
                state[f"mm_encoder.fc_{part}.{rest[-1]}"] = tensor
    return state


@pytest.mark.parametrize("parts", ["intra_inter", "intra", "inter"])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "add"])
@pytest.mark.parametrize("keeps_first", [True, False])
@pytest.mark.parametrize(
    ("widths", "steps", "narrow", "sizes"),
    [
        ((12, 12), (4, 4), False, 5),
        ((20, 12), (4, 4), False, [4, 7]),
        ((12, 20), (4, 4), True, [4, 7, 5]),
        ((12, 12), (3, 5), False, [7, 4]),
        ((20, 12), (5, 3), True, 5),
        ((12, 20), (5, 3), False, [6, 6, 3]),
    ],
    ids=str,
)
def test_side_networks_of_every_kind(tmp_path, parts, gated, keeps_first, widths, steps, narrow, sizes):
    """Each equals a plain implementation of the papers, and loads from a checkpoint with the original names."""
    torch.manual_seed(0)
    kinds = dict(zip(("image", "text"), widths, strict=True))
    counts = dict(zip(("image", "text"), steps, strict=True))
    options = IISANOptions(
        side_size=sizes, side_towers=parts, side_gates=gated, keep_embedding=keeps_first, narrow_end=narrow
    )
    side = SideNetwork({kind: nn.Linear(width, 8) for kind, width in kinds.items()}, counts, options)
    with torch.no_grad():
        for parameter in side.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    states = {kind: torch.randn(6, counts[kind], width) for kind, width in kinds.items()}

    def sanb(adapter, x):
        return x + adapter.up(torch.relu(adapter.down(x)))

    def gate(tower, number):
        return torch.sigmoid(tower.gates[number] / 0.1) if gated else None

    ends = []
    first = 0 if keeps_first else 1
    for kind in ("image", "text") if "intra" in parts else ():
        tower, h = side.intra[kind], states[kind]
        s = torch.zeros(6, kinds[kind]) if keeps_first else h[:, 0]
        assert tower.end.weight.shape == (8 if narrow else kinds[kind], kinds[kind])
        for number, k in enumerate(range(first, counts[kind])):
            g = gate(tower, number)
            s = sanb(tower.adapters[number], g * h[:, k] + (1 - g) * s if gated else h[:, k] + s)
        ends.append(side.projections[kind](tower.end(s)))
    if "inter" in parts:
        tower, s = side.inter, torch.zeros(6, min(widths))
        fewest = min(steps) - first
        for number, k in enumerate(range(-fewest, 0)):
            image, text = states["image"][:, k], states["text"][:, k]
            if widths[0] > widths[1]:
                image = tower.align[number](image)
            if widths[1] > widths[0]:
                text = tower.align[number](text)
            g = gate(tower, number)
            s = sanb(tower.adapters[number], s + g * image + (1 - g) * text if gated else s + image + text)
        ends.append(tower.projection(tower.end(s)))
    torch.testing.assert_close(side(states), side.fusion(torch.cat(ends, dim=1)))

    if parts == "inter" and (steps[0] != steps[1] or (narrow and widths[0] != widths[1])):
        return
    state = original_names(side)
    if parts == "intra_inter" and steps[0] != steps[1]:
        # The original programs create one part for each step of the deeper tower, and leave the last ones unused.
        more = {key.replace(".0.", ".9."): t for key, t in state.items() if key.startswith("mm_encoder.mm_adapter")}
        state |= {key: tensor for key, tensor in more.items() if ".9." in key}
    if parts == "inter":
        state |= {
            f"mm_encoder.{m}_pre_fc.weight": torch.ones(8, w) for m, w in zip(("cv", "bert"), widths, strict=True)
        }
    torch.save({"model_state_dict": state}, tmp_path / "epoch-1.pt")
    loaded = load_side(tmp_path / "epoch-1.pt", keep_embedding=keeps_first)
    assert torch.equal(loaded(states), side(states))


@pytest.mark.parametrize(("towers", "expected"), [("intra_inter", 4_113_877), ("inter", 1_438_151)])
def test_parameters_at_base_size(towers, expected):
    """Parameter counts equal those of the original programs.

    The sizes are BERT-base and ViT-base with a 64-wide user encoder of 10 positions.
    """
    options = IISANOptions(side_towers=towers)
    with torch.device("meta"):
        encoder = FusedItemEncoder(
            TextTower(build_backbone(BertConfig()), 64),
            ImageTower(build_backbone(ViTConfig(), "image"), 64, Preprocessing(224, (0.5,) * 3, (0.5,) * 3)),
        )
        recommender = Recommender(encoder, SASRec(64, 10, 2, 2, 0.1), InBatchObjective())
        groups = methods.apply(recommender, "iisan", options, methods.Rates(2e-4, 0.0), train_recommender=True)
    counted = sum(p.numel() for group in groups for p in group.parameters.values())
    assert recommender.item_encoder.states["text"] == [0, 2, 4, 6, 8, 10, 12]
    assert counted == expected


def test_adapter_sizes():
    def sizes(side_size, **widths):
        return IISANOptions(side_size=side_size).adapter_sizes(widths)

    assert IISANOptions().as_dict()["side_size"] == IISANOptions(side_size=[64]).side_size == 64
    assert sizes(8, text=4, image=4) == {"text": 8, "image": 8, "inter": 8}
    assert sizes([8, 6, 3], text=4, image=4) == {"text": 8, "image": 6, "inter": 3}
    # Without a size of its own, the inter-modal tower takes that of the narrower modality; if both are equally wide,
    # that of text.
    assert sizes([6, 8], image=4, text=4)["inter"] == 8
    assert sizes([6, 8], image=3, text=4)["inter"] == 6
    assert sizes([6, 8, 9], image=3, text=4, vector=2)["inter"] == 9
    with pytest.raises(TransrecError, match="--side_size 1 2: give one size for all, or 3, one for each of a, b, c"):
        sizes([1, 2], a=1, b=1, c=1)
    with pytest.raises(TransrecError, match="--side_size 4 0: must be at least 1"):
        IISANOptions(side_size=[4, 0])


def test_an_inter_modal_tower_of_three_modalities():
    """The gates are a softmax over modalities with the last logit fixed; a single state is used in every step."""
    torch.manual_seed(0)
    widths, steps = {"vector": 6, "text": 12, "image": 9}, {"vector": 1, "text": 4, "image": 3}
    options = IISANOptions(side_size=5, side_towers="inter")
    side = SideNetwork({m: nn.Linear(width, 8) for m, width in widths.items()}, steps, options)
    with torch.no_grad():
        for parameter in side.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    states = {m: torch.randn(7, steps[m], widths[m]) for m in widths}
    tower, s = side.inter, torch.zeros(7, 6)
    assert tower.gates.shape == (3, 2) and len(tower.align) == 6
    for step in range(3):
        # In the order of fusion: image, text, then others.
        image = tower.align[step](states["image"][:, step])
        text = tower.align[3 + step](states["text"][:, step + 1])
        one, other = (torch.exp(p / 0.1) for p in tower.gates[step])
        joined = (one * image + other * text + states["vector"][:, 0]) / (one + other + 1)
        x = s + joined
        s = x + tower.adapters[step].up(torch.relu(tower.adapters[step].down(x)))
    expected = side.fusion(tower.projection(tower.end(s)))
    torch.testing.assert_close(side(states), expected)


def test_which_states_are_read():
    def states(text, image, **options):
        chosen = IISANOptions(**options).states({"text": text, "image": image})
        return chosen["text"], chosen["image"]

    every_second = [0, 2, 4, 6, 8, 10, 12]
    assert states(12, 12) == (every_second, every_second)
    # The lists that the papers' scripts use for 24, 32, 28 and 80 layers next to 12.
    assert states(24, 12) == ([0, 4, 8, 12, 16, 20, 24], every_second)
    assert states(32, 12) == ([0, 2, 8, 14, 20, 26, 32], every_second)
    assert states(28, 12) == ([0, 3, 8, 13, 18, 23, 28], every_second)
    assert states(80, 12) == ([0, 5, 20, 35, 50, 65, 80], every_second)
    assert states(5, 3) == ([0, 1, 5], [0, 1, 3])
    assert states(12, 4, side_layers=3) == ([0, 2, 7, 12], [0, 2, 3, 4])
    assert states(12, 4, text_layers=[-1, 0]) == ([0, 1, 12], [0, 2, 4])
    assert states(12, 1) == ([0, 12], [0, 1])


@pytest.mark.parametrize("pooling", ["cls", "last", "mean"])
@pytest.mark.parametrize("kind", ["bert", "wide"])
def test_where_texts_are_read(backbones, kind, pooling):
    """States equal the hidden states of transformers, whatever padding follows a text."""
    tower = TextTower(load_backbone(backbones[kind]), 8, pooling).eval()
    ids = torch.randint(5, 40, (3, 7))
    mask = (torch.arange(7) < torch.tensor([[7], [3], [1]])).long()
    states = tower.read(ids, mask)
    with torch.no_grad():
        for row, length in enumerate((7, 3, 1)):
            alone = tower.backbone(ids[row : row + 1, :length], output_hidden_states=True).hidden_states
            for layer, hidden in enumerate(alone):
                expected = {"cls": hidden[0, 0], "last": hidden[0, -1], "mean": hidden[0].mean(0)}[pooling]
                # Padding changes the order of float sums.
                torch.testing.assert_close(states[row, layer], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(states[:, -1], tower.read_out(ids, mask).detach())
    assert tower.depth + 1 == len(alone) == states.shape[1]


def test_where_texts_are_read_by_default(backbones):
    pooled = {kind: pooling(load_config(backbones[kind]), "auto") for kind in ("bert", "roberta", "llama")}
    assert pooled == {"bert": "cls", "roberta": "cls", "llama": "last"}
    assert pooling(load_config(backbones["llama"]), "mean") == "mean"


def test_a_text_without_tokens(backbones):
    """A tokenizer that adds no special tokens gives no tokens for an empty title."""
    tokenizer = load_tokenizer(backbones["wide"])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    tokens = tokenise(["red lamp", ""], tokenizer, 6)
    assert tokens.lengths.tolist() == [2, 1]
    tower = TextTower(load_backbone(backbones["wide"]), 8, "last").eval()
    assert torch.isfinite(tower(*TextFeatures(tokens, np.arange(2)).inputs(torch.tensor([1, 2])))).all()


@pytest.mark.parametrize("kind", ["bert", "vit", BOTH])
@pytest.mark.parametrize("more", [[], ["--side_towers", "intra", "--no_side_gates", "--no_keep_embedding"]], ids=str)
def test_a_run_trains_the_side_network_and_not_the_backbones(flags, backbones, tmp_path, kind, more):
    flags = [*flags, *encoder_flags(kind, backbones), "--objective", "in_batch", *more]
    result = run([*flags, "--output", str(tmp_path / "run"), "--lr", "1e-2", "--adapter_lr", "1e-2"], "iisan")
    tensors = best(tmp_path / "run")
    assert not any(".backbone." in name for name in tensors)
    assert any(".side.intra." in name for name in tensors)
    assert any(".side.inter." in name for name in tensors) == (kind == BOTH and not more)
    loaded = load_run(tmp_path / "run")
    assert {name for name, p in loaded.named_parameters() if p.requires_grad} == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(loaded.get_parameter(name), tensor)
    assert result["trainable_parameters"] == sum(tensor.numel() for tensor in tensors.values())


def test_nothing_flows_back_into_a_backbone(tiny):
    _, io, recommender = tiny
    recommender.train()
    ids, mask = torch.from_numpy(io["item_text"]).long().chunk(2, dim=1)
    pixels = torch.randint(0, 256, (len(ids), 3, 32, 32), dtype=torch.uint8)
    recommender.item_encoder(ids, mask, pixels).sum().backward()
    assert not any(tower.backbone.training for tower in recommender.item_encoder.towers)
    for name, parameter in recommender.item_encoder.named_parameters():
        assert (parameter.grad is not None) == name.startswith("side."), name


def test_what_cannot_be_is_refused(flags, backbones, tmp_path):
    def fails(kind, *more):
        with pytest.raises(TransrecError) as error:
            run([*flags, *encoder_flags(kind, backbones), "--output", str(tmp_path / "run"), *more], "iisan")
        return str(error.value)

    assert "joins several modalities" in fails("bert", "--side_towers", "inter")
    assert "--text_layers [0, 2]: the text encoder has layers 0 to 1" in fails("bert", "--text_layers", "0", "2")
    assert "--side_layers 3: the text encoder has 2 layers" in fails("bert", "--side_layers", "3")
    assert "--side_size 0: must be at least 1" in fails("bert", "--side_size", "0")
    assert "learned vectors" in fails("bert", "--item_tower", "id")
    with pytest.raises(TransrecError, match="holds no side network"):
        torch.save({"model_state_dict": {"a": torch.zeros(1)}}, tmp_path / "epoch-1.pt")
        load_side(tmp_path / "epoch-1.pt")


def state_file(folder: Path, modality: str) -> Path:
    """Return the only file of hidden states of that modality in folder/states."""
    (path,) = (folder / "states").glob(f"states-{modality}-*")
    return path


@pytest.fixture
def both_flags(flags, backbones):
    return [*flags, *encoder_flags(BOTH, backbones), "--objective", "in_batch", "--lr", "1e-3", "--adapter_lr", "1e-3"]


@pytest.fixture
def cached_flags(both_flags, tmp_path):
    return [*both_flags, "--cached", "--state_dtype", "fp32", "--state_cache", str(tmp_path / "states")]


@pytest.mark.parametrize("kind", ["bert", "vit", BOTH, "wide+vit"])
def test_cached_and_uncached_training_give_the_same_losses(flags, backbones, tmp_path, kind):
    flags = [*flags, *encoder_flags(kind, backbones), "--objective", "in_batch", "--lr", "1e-2", "--epochs", "3"]
    flags += ["--narrow_end", "--text_pooling", "mean"] if "wide" in kind else []
    run([*flags, "--cached", "no", "--output", str(tmp_path / "uncached")], "iisan")
    cached = ["--cached", "--state_dtype", "fp32", "--state_cache", str(tmp_path / "states")]
    for place in ("cpu", "disk"):
        run([*flags, *cached, "--cache_device", place, "--output", str(tmp_path / place)], "iisan")
    one, other, disk = (numbers(tmp_path / name) for name in ("uncached", "cpu", "disk"))
    for a, b in zip(one["epochs"], other["epochs"], strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
    assert other["epochs"] == disk["epochs"]
    assert other["total_parameters"] == one["total_parameters"], "backbones count, in memory or not"
    assert other["trainable_parameters"] == one["trainable_parameters"] < one["total_parameters"]
    tensors, others = best(tmp_path / "uncached"), best(tmp_path / "cpu")
    assert tensors.keys() == others.keys(), "a cached run's checkpoint holds what an uncached one's does"


@pytest.mark.long
def test_a_compiled_run_gives_the_same_losses(flags, tmp_path):
    """Also with dropout: a compiled model draws the same numbers."""
    try:
        check_compiler(torch.device("cpu"))
    except TransrecError as error:
        pytest.skip(str(error))
    cached = ["--objective", "in_batch", "--lr", "1e-3", "--cached", "--state_cache", str(tmp_path / "states")]
    for name, more in (("eager", []), ("compiled", ["--compile"])):
        run([*flags, *cached, *more, "--output", str(tmp_path / name)], "iisan")
    one, other = (numbers(tmp_path / name) for name in ("eager", "compiled"))
    for a, b in zip(one["epochs"], other["epochs"], strict=True):
        # Adam divides by the root of tiny second moments: rounding of the sums grows by a few steps' updates.
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-4)
    assert best(tmp_path / "eager").keys() == best(tmp_path / "compiled").keys()


def test_no_compiler(cached_flags, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(TransrecError, match=r"--compile: needs a C\+\+ compiler \(no-such-compiler\)"):
        run([*cached_flags, "--compile", "--output", str(tmp_path / "run")], "iisan")
    assert not (tmp_path / "run").exists()


def test_a_failure_of_the_compiler_is_told_in_one_line(monkeypatch, tmp_path):
    """A run that was killed while compiling leaves a partial file in torch's cache."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    reasons = [f"{tmp_path}/aq/caq.main.so: file too short", "CppCompileError: C++ compile error"]

    def broken(graph, inputs):
        raise ImportError(reasons[0])

    module = torch.nn.Linear(2, 2)
    module.compile(backend=broken)
    message = (
        rf"--compile: failed \({reasons[0]}\); remove the folder {tmp_path}, in which a killed run left it damaged$"
    )
    with pytest.raises(FileError, match=message), about_compiler():
        module(torch.ones(1, 2))
    del reasons[0]
    message = r"failed \(CppCompileError: C\+\+ compile error\); leave --compile out$"
    with pytest.raises(TransrecError, match=message), about_compiler():
        module(torch.ones(1, 2))
    with pytest.raises(ImportError, match="of another kind"), about_compiler():
        raise ImportError("of another kind")


def test_fp16_states_are_near(both_flags, tmp_path):
    for dtype in ("fp16", "fp32"):
        more = ["--cached", "--state_dtype", dtype, "--state_cache", str(tmp_path / dtype)]
        run([*both_flags, *more, "--output", str(tmp_path / f"run-{dtype}")], "iisan")
    half, full = (numbers(tmp_path / f"run-{dtype}")["epochs"] for dtype in ("fp16", "fp32"))
    # float16 has 11 bits of mantissa.
    assert half[-1]["train_loss"] == pytest.approx(full[-1]["train_loss"], rel=5e-3)
    sizes = [sum(file.stat().st_size for file in (tmp_path / dtype).iterdir()) for dtype in ("fp16", "fp32")]
    assert sizes[1] > 1.8 * sizes[0] - 8192


def test_a_cached_run_is_saved_loaded_and_resumed(cached_flags, tmp_path):
    run([*cached_flags, "--output", str(tmp_path / "whole"), "--epochs", "3"], "iisan")
    run([*cached_flags, "--output", str(tmp_path / "parts"), "--epochs", "1", "--keep_state"], "iisan")
    run(["--resume", str(tmp_path / "parts"), "--epochs", "3"])
    assert numbers(tmp_path / "whole")["epochs"] == numbers(tmp_path / "parts")["epochs"]
    loaded = load_run(tmp_path / "whole")
    for name, tensor in best(tmp_path / "whole").items():
        assert torch.equal(loaded.get_parameter(name), tensor)


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_states_that_are_not_finite(cached_flags, domain, tmp_path, place):
    """NaN is found before training if the states are held in memory, and otherwise before it is used."""
    run([*cached_flags, "--output", str(tmp_path / "run"), "--epochs", "1"], "iisan")
    path = state_file(tmp_path, "text")
    row = int(load_dataset(domain, 6, 5).split.item_rows[50])
    content = bytearray(path.read_bytes())
    item = (len(content) - int.from_bytes(content[:8], "little") - 8) // 150
    start = len(content) - (150 - row) * item
    content[start : start + 4] = np.float32(np.nan).tobytes()
    path.write_bytes(content)
    expected = f"{path.name}: the hidden states of item {row + 1} of the items file hold NaN"
    with pytest.raises(TransrecError, match=expected):
        run([*cached_flags, "--cache_device", place, "--output", str(tmp_path / "bad")], "iisan")
    assert (tmp_path / "bad").exists() == (place == "disk"), "training has begun"
    assert not (tmp_path / "bad" / "result.json").exists()


@pytest.mark.parametrize("kind", ["bert", BOTH])
def test_cached_states_of_a_pretrained_recommender(flags, backbones, tmp_path, kind):
    """The pretrained backbones compute the states; projections and user encoder train on, as without a cache."""
    flags = [*flags, *encoder_flags(kind, backbones), "--objective", "in_batch", "--lr", "1e-2"]
    run([*flags, "--backbone_lr", "1e-2", "--output", str(tmp_path / "source"), "--epochs", "1"])
    cached = ["--cached", "--state_dtype", "fp32", "--state_cache", str(tmp_path / "states")]
    start = ["--checkpoint", str(tmp_path / "source")]
    for name, more in (("plain", cached), ("uncached", [*start, "--cached", "no"]), ("cached", [*start, *cached])):
        run([*flags, *more, "--output", str(tmp_path / name)], "iisan")
    plain, uncached, both = (numbers(tmp_path / name)["epochs"] for name in ("plain", "uncached", "cached"))
    for a, b in zip(uncached, both, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
    assert plain[0]["train_loss"] != pytest.approx(both[0]["train_loss"], rel=1e-3)
    assert len(list((tmp_path / "states").glob("states-text-*"))) == 2, "beside the plain backbone's own"
    for name, tensor in best(tmp_path / "cached").items():
        assert torch.equal(load_run(tmp_path / "cached").get_parameter(name), tensor)


def test_states_are_what_the_backbones_give(cached_flags, domain, tmp_path):
    run([*cached_flags, "--output", str(tmp_path / "run"), "--epochs", "1"], "iisan")
    run([*cached_flags, "--cached", "false", "--output", str(tmp_path / "uncached"), "--epochs", "1"], "iisan")
    encoder = load_run(tmp_path / "uncached").item_encoder
    store = find_images(domain)
    ids = load_dataset(domain, 6, 5).catalog.ids
    with safe_open(state_file(tmp_path, "image"), "pt") as file:
        states = file.get_tensor("states")
    assert states.shape == (150, 2, 32)
    every = encoder.encoders["image"].reader.read(encoder.encoders["image"].read_out, store.read(ids))
    torch.testing.assert_close(states, every[:, [0, 2]], atol=1e-5, rtol=0)


def test_filling_goes_on_after_a_kill(tmp_path):
    """A block has a digest once it is on disk: blocks with a digest are kept, and the others are computed again."""
    made_of, values = {"a": 1}, torch.randn(600, 2, 4)

    def builder():
        return StateBuilder(tmp_path / "s.safetensors", (600, 2, 4), "fp32", made_of)

    first = builder()
    assert first.begin() == 0 and first.pending_blocks(0, 1) == [0, 256, 512]
    assert first.pending_blocks(0, 2) == [0, 512] and first.pending_blocks(1, 2) == [256]
    first.write_block(256, values[256:512])
    again = builder()
    assert again.begin() == 1 and again.pending_blocks(0, 1) == [0, 512]
    assert again.pending_blocks(0, 2) == [0, 512] and again.pending_blocks(1, 2) == []
    for row in again.pending_blocks(0, 1):
        again.write_block(row, values[row : row + 256])
    again.finish()
    assert torch.equal(torch.from_numpy(StateFile(tmp_path / "s.safetensors", made_of).states.copy()), values)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.safetensors"]
    with safe_open(tmp_path / "s.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("states"), values)
    # A file with other settings, or half a file, is started again from the beginning.
    builder().begin()
    assert StateBuilder(tmp_path / "s.safetensors", (600, 2, 4), "fp16", made_of).begin() == 0
    (tmp_path / ".s.safetensors.partial").write_bytes(b"half")
    assert builder().begin() == 0
    with pytest.raises(TransrecError, match="use --state_dtype fp32"):
        StateBuilder(tmp_path / "s.safetensors", (600, 2, 4), "fp16", made_of).write_block(
            0, torch.full((1, 2, 4), 1e6)
        )
    with pytest.raises(TransrecError, match="not finite"):
        builder().write_block(0, torch.full((1, 2, 4), torch.nan))


def test_a_kill_while_caching_loses_nothing(cached_flags, backbones, tmp_path):
    script = "../../Multimodal/script/run_IISAN_cached.py"
    flags = [*cached_flags, "--output", str(tmp_path / "run"), "--epochs", "1"]
    process = start(script, flags)
    deadline = time.monotonic() + 60
    while not [*(tmp_path / "states").glob("*states-text-*")]:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    finish(process, -signal.SIGKILL)
    finished(script, flags)
    finished(script, [*cached_flags, "--output", str(tmp_path / "again"), "--epochs", "1"])
    assert numbers(tmp_path / "run")["epochs"] == numbers(tmp_path / "again")["epochs"]
    assert not list((tmp_path / "states").glob(".*"))


def test_states_made_ahead(cached_flags, tmp_path):
    output = finished("../../../scripts/cache_features.py", [*cached_flags, "--dtype", "fp16"])
    files = [state_file(tmp_path, kind) for kind in ("image", "text")]
    assert sorted((tmp_path / "states").iterdir()) == sorted(files)
    assert (
        all(f"cached      {path}" in output for path in files) and "caching     text: 2 states of 150 items" in output
    )
    before = [path.stat() for path in files]
    run([*cached_flags, "--state_dtype", "fp16", "--output", str(tmp_path / "run")], "iisan")
    for path, was in zip(files, before, strict=True):
        assert path.stat().st_ino == was.st_ino and path.stat().st_mtime_ns > was.st_mtime_ns, "used, not made"
    assert "caching" not in (tmp_path / "run" / "log.txt").read_text()


def test_three_runs_that_need_the_same_states(cached_flags, tmp_path):
    script = "../../Multimodal/script/run_IISAN_cached.py"
    flags, python = [*cached_flags, "--epochs", "1"], preloaded.python()
    runs = [start(script, [*flags, "--output", str(tmp_path / name)], python=python) for name in "abc"]
    assert sum("caching     text" in finish(process) for process in runs) == 1, "one makes them, the others wait"
    one, *others = (numbers(tmp_path / name)["epochs"] for name in "abc")
    assert others == [one, one]
    assert not list((tmp_path / "states").glob(".*")), "nothing is left behind"


@pytest.mark.long
def test_two_processes_train_on_cached_states(cached_flags, tmp_path):
    script = "../../Multimodal/script/run_IISAN_cached.py"
    flags = [*cached_flags, "--dropout", "0"]
    finish(start(script, [*flags, "--nproc", "2", "--output", str(tmp_path / "two")]))
    states = {path.name: path.read_bytes() for path in (tmp_path / "states").iterdir()}
    shutil.rmtree(tmp_path / "states")
    finished(script, [*flags, "--output", str(tmp_path / "one")])
    assert {path.name for path in (tmp_path / "states").iterdir()} == set(states)
    one, two = (numbers(tmp_path / name)["epochs"] for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)


def on_a_small_disk(folder, command):
    """Run a command while `folder` is a disk of 48 KiB; return its output and the names of the files left there."""
    inside = f'mount -t tmpfs -o size=48k tmpfs "{folder}" && echo keep > "{folder}/other"; {command}; ls -A "{folder}"'
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", inside], capture_output=True, text=True, env=ENVIRONMENT
    )
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no disk can be mounted here: {done.stderr.splitlines()[0]}")
    return done.stderr + done.stdout


def test_a_full_disk_is_told_before_anything_is_computed(cached_flags, tmp_path):
    if not shutil.which("unshare"):
        pytest.skip("needs unshare")
    (tmp_path / "states").mkdir()
    script = REPOSITORY / "Downstream/Multimodal/script/run_IISAN_cached.py"
    command = [sys.executable, str(script), *cached_flags, "--text_layers", "0", "1", "--image_layers", "0", "1"]
    command += ["--output", str(tmp_path / "run")]
    output = on_a_small_disk(tmp_path / "states", shlex.join(command))
    assert re.search(
        r"states-text-bert-\w{16}.safetensors: no room for 0.1 MiB of hidden states \(No space left", output
    )
    assert "Traceback" not in output and output.endswith("\nother\n"), "what was there stays, nothing is left behind"
    assert not (tmp_path / "run").exists()


def test_a_disk_that_fills_up_while_states_are_written(tmp_path, monkeypatch):
    """Some file systems promise space that they do not have: written blocks count, the others are computed later."""
    values = torch.randn(600, 2, 4)
    builder = StateBuilder(tmp_path / "s.safetensors", (600, 2, 4), "fp32", {})
    builder.begin()
    builder.write_block(0, values[:256])
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        with pytest.raises(TransrecError, match=r"no room for .* MiB of hidden states \(No space left\)"):
            builder.write_block(256, values[256:512])
    assert builder.begin() == 1 and builder.pending_blocks(0, 1) == [256, 512]
