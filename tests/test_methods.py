"""Every method over every backbone and place: what trains, what insertion changes, what is saved.

The first half runs over all registered methods and over those that the files of docs/adding register. A new method is
tested for everything that a method promises, without being listed here. The second half tests properties of single
methods.
"""

import copy
import dataclasses
import json
import re
import shutil
from pathlib import Path

import loralib
import pytest
import torch
from conftest import (
    BOTH,
    DECODER,
    ENCODERS,
    FEW_STEPS,
    IMAGE_KINDS,
    REPOSITORY,
    TEXT_KINDS,
    encoder_flags,
    run,
    run_flags,
)
from examples import EXAMPLES, PACKAGED, choices, has, plugin_flags, registered, small, small_flags
from test_training import assert_same_run
from torch import nn
from transformers import BertConfig, RobertaConfig, ViTConfig, ViTMAEConfig

from transrec import methods
from transrec.data.batches import TrainingBatches
from transrec.data.catalog import cached_tokens
from transrec.data.dataset import find_images, load_dataset
from transrec.data.features import ImageFeatures, MultimodalFeatures, TextFeatures
from transrec.data.groups import Inputs
from transrec.errors import TransrecError
from transrec.export import merge
from transrec.finished import load_run
from transrec.methods import ROUNDING
from transrec.methods.bottleneck import INIT_STD, ParallelAdapter, SerialAdapter
from transrec.methods.lora import LoRA
from transrec.methods.prompt import PromptMethod
from transrec.modalities.id import IdTower
from transrec.modalities.image import ImageTower
from transrec.modalities.text import TextTower
from transrec.models.backbone import (
    Preprocessing,
    blocks_of,
    build_backbone,
    is_norm,
    layer_norms,
    load_backbone,
    load_preprocessing,
    load_tokenizer,
    pooling,
    set_mask_ratio,
)
from transrec.models.items import FusedItemEncoder
from transrec.models.objectives import OBJECTIVES
from transrec.models.objectives.bce import BCEObjective
from transrec.models.recommender import Recommender
from transrec.models.user_encoders import UserEncoder
from transrec.models.user_encoders.sasrec import SASRec
from transrec.options import EvaluationOptions
from transrec.training import checkpoint
from transrec.training.distributed import World
from transrec.training.evaluation import Evaluator
from transrec.training.trainer import Trainer

RATES = methods.Rates(recommender=1e-3, backbone=1e-4)
WHERE = ["item", "user", "user_first", "user_last", "all"]
# Modules whose classes are defined in these packages were inserted.
OURS = ("transrec.", "transrec_plugin_")


@pytest.fixture(params=[*TEXT_KINDS, *IMAGE_KINDS, BOTH])
def kind(request):
    return request.param


def make_encoder(kind, backbones):
    if kind == BOTH:
        return FusedItemEncoder(*(make_encoder(one, backbones) for one in kind.split("+")))
    if kind in TEXT_KINDS:
        backbone = load_backbone(backbones[kind])
        return TextTower(backbone, 16, pooling(backbone.config, "auto"))
    backbone = load_backbone(backbones[kind], "image")
    set_mask_ratio(backbone, 0.0)
    return ImageTower(backbone, 16, load_preprocessing(backbones[kind], backbone.config))


@pytest.fixture
def recommender(kind, backbones):
    torch.manual_seed(0)
    return Recommender(make_encoder(kind, backbones), SASRec(16, 6, 2, 2, 0.1), BCEObjective())


def make_features(kind, dataset, backbones):
    if kind == BOTH:
        return MultimodalFeatures([make_features(one, dataset, backbones) for one in kind.split("+")])
    if kind in IMAGE_KINDS:
        ids = [dataset.catalog.ids[row] for row in dataset.split.item_rows]
        return ImageFeatures(find_images(dataset.catalog.path.parent), ids)
    tokens = cached_tokens(dataset.catalog, load_tokenizer(backbones[kind]), 10, True)
    return TextFeatures(tokens, dataset.split.item_rows)


@pytest.fixture
def features_and_split(kind, domain, backbones):
    dataset = load_dataset(domain, 6, 5)
    return make_features(kind, dataset, backbones), dataset.split


@pytest.fixture
def batch(features_and_split):
    features, split = features_and_split
    (first,) = next(iter(TrainingBatches(split, 8, True, False, seed=0).epoch(1)))
    return first.to(torch.device("cpu"), features)


def apply(recommender, name, train_recommender=False, **options):
    """Apply a method, at sizes that suit the tiny models unless given."""
    if recommender.user_encoder.width < 64:
        options = small(name) | options
    return methods.apply(recommender, name, methods.get(name).Options(**options), RATES, train_recommender)


def trained_names(recommender):
    return {name for name, p in recommender.named_parameters() if p.requires_grad}


ROOTS = {
    "item": [],
    "user": ["user_encoder"],
    "user_first": ["user_encoder.blocks.0"],
    "user_last": ["user_encoder.blocks.1"],
    "all": ["user_encoder"],
}
# The values of `Method.trains_existing`, and the parameters of a module that each stands for.
EXISTING = {
    "biases": lambda module: ["bias"] if isinstance(getattr(module, "bias", None), nn.Parameter) else [],
    "LayerNorms": lambda module: [n for n, _ in module.named_parameters(recurse=False)] if is_norm(module) else [],
}


def backbones_of(recommender):
    """Return the towers that run a backbone, by the path of the backbone."""
    path_of = {module: path for path, module in recommender.named_modules()}
    return {f"{path_of[tower]}.backbone": tower for tower in recommender.item_encoder.towers}


def promised_existing(recommender, name, options):
    """Return the existing parameters that the method declares it trains, of a recommender without the method."""
    method, towers = methods.get(name), backbones_of(recommender)
    every = dict(recommender.named_parameters())
    promised = set()
    if method.trains_backbone:
        promised |= {n for n in every if ".backbone." in n}
        promised -= {f"{path}.{n}" for path, tower in towers.items() for n in tower.constants}
    if method.trains_recommender:
        promised |= {n for n in every if ".backbone." not in n and not n.startswith("backbone.")}
    if not has(name, "insert"):
        return {every[n] for n in promised}
    chosen = methods.get(name).Options(**options)
    kinds = ["LayerNorms"] if getattr(chosen, "train_layernorm", False) else []
    kinds += [method.trains_existing] if method.trains_existing else []
    whole = chosen.insert.removesuffix("_last1")
    of_backbones = list(towers) if whole in ("item", "all") else []
    if whole != chosen.insert:
        paths = {module: path for path, module in recommender.named_modules()}
        of_backbones = [paths[blocks_of(tower.backbone)[-1]] for tower in towers.values()]
    for root in [*ROOTS[whole], *of_backbones]:
        for path, module in recommender.get_submodule(root).named_modules(prefix=root):
            promised |= {f"{path}.{n}" for kind in kinds for n in EXISTING[kind](module)}
    return {every[n] for n in promised if n in every}


# Kinds of backbone that represent all kinds if a method is inserted into the user encoder only, or if the kind of
# backbone has no influence.
FIRST = TEXT_KINDS[0]
FEW = (FIRST, IMAGE_KINDS[0])
NAMES = sorted({*PACKAGED, *EXAMPLES})
# One backbone per modality is enough for the examples.
OVER = [(kind, name) for name in NAMES for kind in ((*TEXT_KINDS, *IMAGE_KINDS, BOTH) if name in PACKAGED else FEW)]
OVER_FEW = [(kind, name) for kind, name in OVER if kind in FEW]
# Backbones whose blocks resemble those of another kind: only make test-long runs every test over them.
ALIKE = ("roberta", "mae")


def unless_alike(rows):
    """Return rows that begin with a kind of backbone as parameters of a test, long for the kinds of ALIKE."""
    return [pytest.param(*row, marks=[pytest.mark.long] * (row[0] in ALIKE)) for row in rows]


@pytest.fixture(autouse=True)
def examples(request):
    """Register the example that a test is about while the test runs."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    with registered([parameters["name"]] if parameters.get("name") in EXAMPLES else []):
        yield


def cases():
    for name in NAMES:
        with registered([name]):
            kinds = [kind for kind, over in OVER if over == name]
            where, variants = choices(name, "insert"), choices(name, "variant")
            for kind in kinds:
                yield kind, name, {}
                yield from ((kind, name, {"variant": variant}) for variant in variants[1:])
                if has(name, "train_layernorm"):
                    other = not methods.get(name).Options().train_layernorm
                    yield kind, name, {"train_layernorm": other}
                for place in where if len(where) > 1 else []:
                    if place != "all" and (place == "item" or kind == FIRST):
                        yield kind, name, {"insert": place}
            if has(name, "train_layernorm") and len(where) > 1:
                yield FIRST, name, {"insert": "user_last", "train_layernorm": True}


@pytest.mark.parametrize("kind,name,options", unless_alike(cases()), ids=str)
def test_exactly_what_should_train_trains(kind, recommender, batch, name, options):
    """Exactly the new parameters and the declared existing ones are in the groups and change in two steps."""
    if name == "bitfit" and options.get("insert") == "item" and kind == DECODER:
        with pytest.raises(TransrecError, match="--method bitfit --insert item: nothing there trains"):
            apply(recommender, name, **options)
        return
    if name == "pfeiffer" and "variant" in options and kind not in ENCODERS:
        with pytest.raises(TransrecError, match="needs a LayerNorm behind each block; use --variant paper"):
            apply(recommender, name, **options)
        options = options | {"insert": "user"}
    # The [CLS] of an untrained MAE is zero, and a layer that reads only zeros does not learn.
    for tower_name, parameter in recommender.item_encoder.named_parameters():
        if tower_name.endswith("cls_token"):
            nn.init.normal_(parameter)
    before = set(recommender.parameters())
    existing = promised_existing(recommender, name, options)
    groups = apply(recommender, name, **options)
    every = dict(recommender.named_parameters())
    if options.get("variant") == "published" and issubclass(methods.get(name), (LoRA, PromptMethod)):
        expected = published_names(recommender, name)
    else:
        expected = {n for n, p in every.items() if p not in before or p in existing}
    assert expected and trained_names(recommender) == expected
    in_groups = [n for group in groups for n in group.parameters]
    assert sorted(in_groups) == sorted(expected)

    # Adapters start with zero biases, so a single step could leave parameters behind a zero gradient: take two steps.
    before = {n: p.detach().clone() for n, p in recommender.named_parameters()}
    optimizer = torch.optim.Adam([p for p in recommender.parameters() if p.requires_grad], lr=1e-2)
    recommender.train()
    for _ in range(2):
        optimizer.zero_grad()
        (recommender(batch) + (recommender.method.penalty() or 0)).backward()
        optimizer.step()
    moved = {n for n, p in recommender.named_parameters() if not torch.equal(p, before[n])}
    never_read = {n for n in expected if before[n].numel() and recommender.get_parameter(n).grad is None}
    assert not never_read
    # Single rows may stay (RoBERTa's padding row, unused words), but every tensor moves, with one exception: a key's
    # bias shifts all logits of a query equally, so its gradient is zero up to rounding.
    assert moved <= expected
    assert {n for n in expected - moved if not n.endswith(("key.bias", "k_proj.bias"))} == set()


def published_names(recommender, name):
    """Return the names that must train in variants whose programs freeze new weights or train existing ones."""
    every = {name for name, _ in recommender.named_parameters()}
    if issubclass(methods.get(name), PromptMethod):
        images = [path for path, tower in backbones_of(recommender).items() if tower.modality == "image"]
        projections = tuple(path.replace("backbone", "projection.") for path in images)
        return {n for n in every if n.endswith("prompt.vectors") or (images and n.startswith(projections))}
    expected = set()
    for path, module in recommender.named_modules():
        if isinstance(module, loralib.Linear):
            expected |= {f"{path}.lora_A", f"{path}.lora_B", f"{path}.bias"}
    if recommender.item_encoder.modality == "image":
        expected |= {n for n in every if re.fullmatch(r"user_encoder\.blocks\.\d\.attention\.value\.(weight|bias)", n)}
    return expected


def encode(recommender, batch):
    """Return item embeddings [U, d] of the batch and user vectors of random padded sequences [4, 6, d]."""
    recommender.eval()
    torch.manual_seed(1)
    mask = torch.arange(6) >= torch.tensor([0, 1, 3, 5])[:, None]
    with torch.no_grad():
        return batch.inputs.encoded(recommender.item_encoder), recommender.user_encoder(torch.randn(4, 6, 16), mask)[
            mask
        ]


@pytest.mark.parametrize("kind,name", unless_alike(OVER))
def test_what_insertion_changes_is_what_the_method_says(kind, recommender, batch, name):
    before = encode(recommender, batch)
    apply(recommender, name)
    after, changes = encode(recommender, batch), methods.get(name).changes_at_insertion
    assert all(torch.isfinite(new).all() for new in after)
    if changes in ("", ROUNDING):
        for old, new in zip(before, after, strict=True):
            torch.testing.assert_close(new, old, atol=1e-6 if changes else 0, rtol=1e-6 if changes else 0)
    else:
        assert not all(map(torch.equal, before, after)), f"{name} says that it changes something: {changes}"


@pytest.mark.parametrize(
    "kind,name,options", [row for row in cases() if row[0] in FEW and row[2].keys() <= {"variant"}]
)
def test_tokens_at_which_no_item_is_read_are_left_out_unless_the_method_needs_them(
    kind, recommender, batch, name, options
):
    (tower,) = recommender.item_encoder.towers
    tower.skip_unread_tokens()
    assert tower._skips
    if name == "pfeiffer" and options and kind not in ENCODERS:
        options = options | {"insert": "user"}
    apply(recommender, name, **options)
    assert bool(tower._skips) == methods.get(name).tokenwise
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in recommender.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))

    def values_and_gradients():
        recommender.eval().zero_grad()
        loss = recommender(batch)
        loss.backward()
        return [loss, *(parameter.grad for parameter in recommender.parameters() if parameter.requires_grad)]

    skipping = values_and_gradients()
    tower.read_all_tokens()
    for value, expected in zip(skipping, values_and_gradients(), strict=True):
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind,name", OVER_FEW)
def test_what_can_be_merged_computes_the_same_and_the_rest_says_why_not(kind, recommender, batch, name):
    groups = apply(recommender, name)
    with torch.no_grad():
        for parameter in (p for group in groups for p in group.parameters.values()):
            parameter.add_(0.05 * torch.randn_like(parameter))
    (tower,) = recommender.item_encoder.towers
    inside = [module for module in tower.backbone.modules() if type(module).__module__.startswith(OURS)]
    if any(hasattr(module, "cannot_merge") for module in inside):
        with pytest.raises(TransrecError) as error:
            merge(tower.backbone)
        assert any(f": {getattr(module, 'cannot_merge', None)}, so" in str(error.value) for module in inside)
        return
    assert all(hasattr(module, "merge") for module in inside), "neither `merge` nor `cannot_merge`"
    recommender.eval()
    with torch.no_grad():
        before, adapted = batch.inputs.encoded(tower.read_out), tower.backbone
        tower.backbone = merge(adapted)
        assert not [module for module in tower.backbone.modules() if type(module).__module__.startswith(OURS)]
        torch.testing.assert_close(batch.inputs.encoded(tower.read_out), before, atol=1e-5, rtol=1e-4)
        tower.backbone = adapted
        assert torch.equal(batch.inputs.encoded(tower.read_out), before), "the original stays as it was"


def test_lora_keeps_the_pretrained_weights(recommender, batch):
    """A LoRA layer that redraws the query and value weights would fail this test."""
    before = {n: p.detach().clone() for n, p in recommender.named_parameters()}
    apply(recommender, "lora")
    layers = [m for m in recommender.modules() if isinstance(m, loralib.Linear)]
    assert len(layers) == 2 * (2 * len(recommender.item_encoder.towers) + 2)
    for parameter_name, parameter in before.items():
        assert torch.equal(parameter, recommender.get_parameter(parameter_name)), parameter_name
    # W x + b + scaling B A x, by hand.
    layer = layers[0]
    with torch.no_grad():
        layer.lora_B.normal_()
        x = torch.randn(5, layer.in_features)
        expected = nn.functional.linear(x, layer.weight, layer.bias) + x @ layer.lora_A.T @ layer.lora_B.T
        torch.testing.assert_close(layer(x), expected)


def test_lora_equals_peft(kind, backbones, batch):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    if kind not in TEXT_KINDS:
        pytest.skip("compared over text, where both name their target modules alike")
    ours = Recommender(make_encoder(kind, backbones), SASRec(16, 6, 2, 2, 0.1), BCEObjective())
    apply(ours, "lora", insert="item", item_rank=3, lora_scaling=2.0)
    targets = ["q_proj", "v_proj"] if kind == DECODER else ["query", "value"]
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=targets, lora_dropout=0.0)
    theirs = peft.get_peft_model(load_backbone(backbones[kind]), config).eval()
    copied = 0
    for path, module in theirs.named_modules():
        if hasattr(module, "lora_A") and "default" in getattr(module, "lora_A", {}):
            layer = ours.item_encoder.backbone.get_submodule(path.removeprefix("base_model.model."))
            with torch.no_grad():
                layer.lora_B.normal_()
                module.lora_A["default"].weight.copy_(layer.lora_A)
                module.lora_B["default"].weight.copy_(layer.lora_B)
            copied += 1
    assert copied == 4
    ours.eval()
    ((ids, mask),) = batch.inputs.groups
    with torch.no_grad():
        hidden = ours.item_encoder.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        expected = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(hidden[mask.bool()], expected[mask.bool()], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["houlsby", "parallel", "pfeiffer", "pfeiffer_attention", "compacter"])
def test_adapters_of_zero_output_change_nothing(recommender, batch, name):
    """With its last layer zeroed, an adapter adds nothing: the residual connection around it is complete."""
    before = encode(recommender, batch)
    apply(recommender, name)
    with torch.no_grad():
        for module in recommender.modules():
            if isinstance(module, SerialAdapter | ParallelAdapter):
                for parameter in module.adapter.up.parameters():
                    if parameter.shape != (4, 4, 4):
                        parameter.zero_()
    assert all(map(torch.equal, before, encode(recommender, batch)))


@pytest.mark.parametrize(
    "kind,name,objective",
    unless_alike(
        (kind, name, objective)
        for kind, name in OVER
        for objective in ("bce", "cpc", "in_batch")
        if kind == FIRST or objective == "bce"
    ),
)
def test_user_vectors_are_causal_and_ignore_padding(recommender, features_and_split, kind, name, objective):
    """A change of an item affects no user vector before that item; the content of padding affects none at all."""
    features, split = features_and_split
    recommender.objective = OBJECTIVES.get(objective)()
    apply(recommender, name)
    recommender.eval()
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in recommender.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    seen = {}

    def keep(module, arguments, output):
        seen["vectors"] = output.detach()

    recommender.user_encoder.register_forward_hook(keep)
    batches = TrainingBatches(split, 8, recommender.objective.negatives, recommender.objective.last_only, seed=0)
    (batch,) = next(iter(batches.epoch(1)))
    batch = batch.to(torch.device("cpu"), features)
    assert not batch.mask.all(), "some sequences are padded"
    with torch.no_grad():
        recommender(batch)
        before = seen["vectors"]
        (encoder_inputs,) = batch.inputs.groups

        def encoded(items):
            """Return item embeddings after changing the items: one word of a text, or all of an image."""
            changed = [encoder_inputs[0].clone(), *encoder_inputs[1:]]
            here = items - 1 if kind in IMAGE_KINDS else (items - 1, 1)
            changed[0][here] = (changed[0][here] + 1) % 20 + 10
            return Inputs((tuple(changed),)).encoded(recommender.item_encoder)

        items = batch.sequences[:, :-1].unique()[1:]
        as_they_are, all_changed, one_changed = map(encoded, (items[:0], items, items[:1]))
        for item in items.tolist():
            embeddings = as_they_are.clone()
            embeddings[item - 1] = all_changed[item - 1]
            if item == items[0]:
                torch.testing.assert_close(embeddings, one_changed, atol=1e-5, rtol=0)
            recommender.objective(embeddings, batch, recommender.user_encoder)
            reached = (batch.sequences[:, :-1] == item).cumsum(1) > 0
            earlier = batch.mask & ~reached
            torch.testing.assert_close(seen["vectors"][earlier], before[earlier], atol=1e-5, rtol=0)
            assert (seen["vectors"][reached] - before[reached]).abs().max() > 1e-4, "the change is seen where it may be"

        # Padding: the user encoder may receive arbitrary values there.
        x = torch.randn(*batch.mask.shape, 16)
        other = torch.where(batch.mask[..., None], x, torch.randn_like(x))
        first, second = (recommender.user_encoder(given, batch.mask) for given in (x, other))
        torch.testing.assert_close(first[batch.mask], second[batch.mask], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind,name", OVER_FEW)
def test_a_copied_model_stands_alone(kind, recommender, batch, name):
    apply(recommender, name)
    copied, other = copy.deepcopy(recommender), copy.deepcopy(recommender)
    before = encode(recommender, batch)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert all(map(torch.equal, before, encode(recommender, batch)))
    with torch.no_grad():
        for parameter in recommender.parameters():
            parameter.zero_()
    assert all(map(torch.equal, before, encode(other, batch)))


@pytest.mark.parametrize("kind,name", unless_alike(OVER))
def test_a_step_in_bf16(kind, recommender, batch, name):
    apply(recommender, name)
    recommender.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = recommender(batch)
    loss.backward()
    gradients = [p.grad for p in recommender.parameters() if p.requires_grad]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)


def test_sizes_that_compacter_cannot_divide(recommender):
    with pytest.raises(TransrecError, match="--kronecker 5: must divide both sizes of every adapter, here 32 and 8"):
        apply(recommender, "compacter", kronecker=5)


def test_a_rank_that_is_no_low_rank(recommender):
    with pytest.raises(TransrecError, match="a LoRA rank of 33 is not a low rank: the matrices here have only 32"):
        apply(recommender, "lora", item_rank=33)
    apply(recommender, "lora", item_rank=32, user_rank=16)


@pytest.mark.parametrize("name", NAMES)
def test_values_below_the_least(name):
    """Sizes of zero and negative rates are refused."""
    options = methods.get(name).Options
    for owner in options.__mro__:
        for flag, least in vars(owner).get("_minimum", {}).items():
            with pytest.raises(TransrecError, match=rf"--{flag} {least - 1}: must be at least {least}"):
                options(**{flag: least - 1})
    sizes = [f.name for f in dataclasses.fields(options) if type(f.default) is int and f.default > 1]
    unchecked = set(sizes) - {flag for owner in options.__mro__ for flag in vars(owner).get("_minimum", {})}
    assert not unchecked, "_minimum says nothing of these"


def test_a_layer_outside_the_backbone(recommender):
    for layers in ([0, 2], [-3]):
        with pytest.raises(TransrecError, match=r"--item_layers .*: --insert .* has layers 0 to 1"):
            apply(recommender, "kadapter", item_layers=layers)


@pytest.mark.parametrize("where", WHERE)
def test_houlsby_starts_close_to_the_identity(recommender, batch, where):
    """Both weight matrices are N(0, 0.01), so an adapter adds about 0.01^2 sqrt(D r) times the size of its input.

    With D = 32 and r = 64, this is 0.005 per sub-layer. Two blocks have four sub-layers and LayerNorms that rescale, so
    0.05 of an embedding's scale is a safe bound. The same adapters with a zeroed up-projection change nothing at all.
    """
    recommender.eval()
    with torch.no_grad():
        items = batch.inputs.encoded(recommender.item_encoder)
        mask = torch.ones(4, 6)
        embeddings = torch.randn(4, 6, 16)
        users = recommender.user_encoder(embeddings, mask)
        apply(recommender, "houlsby", insert=where)
        changed_items = batch.inputs.encoded(recommender.item_encoder)
        changed_users = recommender.user_encoder(embeddings, mask)
        assert (changed_items - items).abs().max() < 0.05 * items.abs().max()
        assert (changed_users - users).abs().max() < 0.05 * users.abs().max()
        assert torch.equal(changed_items, items) == (where not in ("item", "all"))
        assert torch.equal(changed_users, users) == (where == "item")
        for module in recommender.modules():
            if isinstance(module, SerialAdapter):
                assert module.adapter.down.weight.std().item() == pytest.approx(INIT_STD, rel=0.2)
                module.adapter.up.weight.zero_()
        assert torch.equal(batch.inputs.encoded(recommender.item_encoder), items)
        assert torch.equal(recommender.user_encoder(embeddings, mask), users)


# As counted by the original programs.
COUNTS = {
    ("bert", "full", False): 109_041_728,
    ("bert", "houlsby", False): 2_387_776,
    ("bert", "houlsby", True): 2_387_776 + 39_040,
    ("roberta", "full", False): 124_205_120,
    ("roberta", "houlsby", False): 2_387_776,
    ("bert", "frozen", False): 768 * 64 + 64 + 100_864,
    ("bert", "parallel", False): 2_387_776,
    ("bert", "pfeiffer_attention", False): 1_193_888,
    ("bert", "pfeiffer_attention", True): 1_232_928,
    # The original count also includes, for each of 56 linear maps, a copy of the 64 numbers that all of them share.
    ("bert", "compacter", False): 64_512 - 56 * 64,
    ("bert", "compacter", True): 103_552 - 56 * 64,
    ("bert", "lora published", False): 463_104,
    ("bert", "kadapter", False): 3_573_920,
    ("bert", "prompt", False): 23_040,
    ("vit", "full", False): 85_948_096,
    ("mae", "full", False): 85_796_800,
    ("vit", "houlsby", False): 2_387_776,
    ("mae", "houlsby", False): 2_387_776,
    ("vit", "houlsby", True): 2_426_816,
    ("vit", "parallel", False): 2_387_776,
    ("vit", "parallel published", False): 1_198_144,
    ("vit", "pfeiffer_attention", False): 1_193_888,
    ("vit", "kadapter", False): 9_479_456,
    ("vit", "lora published", False): 470_272,
    ("vit", "compacter", False): 64_512 - 56 * 64,
    ("vit", "prompt published", False): 56_896,
    ("vit", "prompt", False): 7_680,
    (BOTH, "full", False): 194_897_216,
    (BOTH, "houlsby", False): 4_965_440,
    (BOTH, "lora published", False): 833_600,
    # The original count also includes the bias of BERT's pooler, which is not used.
    (BOTH, "bitfit", False): 412_736 - 768,
}
# Sizes of the original image scripts if they differ from the defaults.
IMAGE_SIZES = {"kadapter": {"item_size": 384}, "prompt": {"n_tokens": 10}}
BASE = {
    "bert": BertConfig(),
    "roberta": RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1),
    "vit": ViTConfig(),
    "mae": ViTMAEConfig(),
}


@pytest.mark.parametrize("kind,name,train_layernorm", COUNTS, ids=str)
def test_parameters_at_base_size(kind, name, train_layernorm):
    method, _, variant = name.partition(" ")
    flags = {field.name for field in dataclasses.fields(methods.get(method).Options)}
    options = {"train_layernorm": train_layernorm} if "train_layernorm" in flags else {}
    options |= {"variant": variant} if variant else {}
    if kind not in TEXT_KINDS:
        options |= IMAGE_SIZES.get(method, {})
    if kind == BOTH and method != "full":
        # IISAN's baselines adapt the backbones and train everything else in full.
        options |= {"insert": "item"} | ({"item_rank": 8} if method == "lora" else {})

    def build(kind):
        if kind in TEXT_KINDS:
            return TextTower(build_backbone(BASE[kind]), 64)
        return ImageTower(build_backbone(BASE[kind], "image"), 64, Preprocessing(224, (0.5,) * 3, (0.5,) * 3))

    with torch.device("meta"):
        encoder = FusedItemEncoder(*map(build, kind.split("+"))) if kind == BOTH else build(kind)
        length = 20 if kind in TEXT_KINDS else 10
        recommender = Recommender(encoder, SASRec(64, length, 2, 2, 0.1), BCEObjective())
        groups = apply(recommender, method, train_recommender=kind == BOTH, **options)
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


@pytest.mark.parametrize(
    "name,options,active",
    [
        ("full", {}, True),
        ("frozen", {}, False),
        ("houlsby", {}, False),
        ("lora", {"variant": "paper"}, False),
        ("lora", {"variant": "published"}, True),
    ],
)
def test_backbone_dropout_is_on_where_the_backbone_trains(recommender, name, options, active):
    apply(recommender, name, **options)
    recommender.train()
    towers = recommender.item_encoder.towers
    assert all(tower.backbone.training == active for tower in towers)
    assert recommender.user_encoder.training
    recommender.eval()
    assert not any(tower.backbone.training for tower in towers)
    methods.apply(recommender, name, methods.get(name).Options(), RATES, backbone_dropout=not active)
    recommender.train()
    assert all(tower.backbone.training != active for tower in towers)


def test_layer_norms_are_all_found(recommender):
    for tower in recommender.item_encoder.towers:
        assert len(layer_norms(tower.backbone)) == 1 + 2 * 2
    assert len(layer_norms(recommender.user_encoder)) == 1 + 2 * 2


def test_no_backbone_to_insert_into():
    recommender = Recommender(IdTower(9, 16), SASRec(16, 6, 2, 2, 0.1), BCEObjective())
    with pytest.raises(TransrecError, match="--insert user, or --modalities text"):
        apply(recommender, "houlsby", insert="all")
    apply(recommender, "houlsby", insert="user")
    assert all(name.startswith("user_encoder.") for name in trained_names(recommender))


def test_no_blocks_to_insert_into():
    class LastItem(UserEncoder):
        pass

    recommender = Recommender(IdTower(9, 16), LastItem(16), BCEObjective())
    with pytest.raises(
        TransrecError, match="--method lora --insert user: the user encoder LastItem has no transformer"
    ):
        apply(recommender, "lora", insert="user")


def test_a_name_is_registered_once():
    with pytest.raises(TransrecError, match=r"test_methods.py:\d+: method 'houlsby' is registered twice, first in"):
        methods.register("houlsby")(methods.Method)
    with pytest.raises(TransrecError, match=r"did you mean houlsby\? choose from .*full.*houlsby"):
        methods.get("hulsby")


@pytest.fixture(scope="module")
def source(domain, backbones, tmp_path_factory):
    """Folder of a run over FIRST, as a source to start from."""
    folder = tmp_path_factory.mktemp("source")
    run([*run_flags(domain, backbones), *encoder_flags(FIRST, backbones), "--output", str(folder), "--epochs", "1"])
    return folder


@pytest.mark.parametrize(
    "kind,name,from_source",
    [
        *unless_alike((kind, name, kind == FIRST) for kind, name in OVER),
        *(pytest.param(FIRST, name, False, marks=pytest.mark.long) for name in NAMES),
    ],
)
def test_save_and_load_give_the_same_output(
    flags, tmp_path, features_and_split, kind, backbones, name, from_source, source
):
    """A run's checkpoint holds exactly what trained and the saved buffers, and rebuilds the recommender bit by bit."""
    flags = [*flags, *encoder_flags(kind, backbones), *(["--checkpoint", str(source)] if from_source else [])]
    folder = tmp_path / "run"
    result = run(
        [*flags, "--output", str(folder), "--batch_size", "30", "--epochs", "1", "--lr", "1e-2", *small_flags(name)],
        name,
    )
    tensors, description = checkpoint.read(folder / "checkpoints" / "best.safetensors")
    assert description.method == name

    loaded = load_run(folder, plugins=plugin_flags(name)[1:])
    buffers = {n: t for n, t in tensors.items() if n in loaded.saved_buffers}
    assert set(tensors) == trained_names(loaded) | set(loaded.saved_buffers)
    assert sum(t.numel() for n, t in tensors.items() if n not in buffers) == result["trainable_parameters"]
    for tensor_name, tensor in tensors.items():
        loaded_one = (loaded.get_buffer if tensor_name in buffers else loaded.get_parameter)(tensor_name)
        assert torch.equal(loaded_one, tensor)
    world = World(rank=0, size=1, device=torch.device("cpu"))
    evaluator = Evaluator(features_and_split[1], features_and_split[0], EvaluationOptions(), world)
    assert evaluator.evaluate(loaded, "test") == result["test"]
    if name == "houlsby" and from_source:
        assert all(".adapter." in tensor_name for tensor_name in tensors)


# Every example, and one method of each way to train.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long] * (name not in {*EXAMPLES, "full", "lora", "iisan"}))
        for name in NAMES
    ],
)
def test_a_run_that_fell_resumes_to_the_same_numbers(flags, tmp_path, name, monkeypatch):
    """All state that a method keeps between steps is saved: an interruption at any step does not change the result."""
    flags = [*flags, *FEW_STEPS, "--save_steps", "1", "--lr", "1e-2", *small_flags(name)]
    run([*flags, "--output", str(tmp_path / "whole")], name)
    step = Trainer._step

    def fall(self, *arguments):
        if (self.state.epoch, self.state.step) == (2, 1):
            raise RuntimeError("fell")
        return step(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="fell"):
        patch.setattr(Trainer, "_step", fall)
        run([*flags, "--output", str(tmp_path / "parts")], name)
    run(["--resume", str(tmp_path / "parts"), *plugin_flags(name)], name)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("name,more", [("frozen", ["--random_backbone"]), ("houlsby", ["--train_recommender", "no"])])
def test_what_was_drawn_at_random_and_stayed_frozen_is_drawn_again(flags, tmp_path, name, more):
    run([*flags, "--output", str(tmp_path), "--epochs", "1", "--seed", "7", *more], name)
    tensors, _ = checkpoint.read(tmp_path / "checkpoints" / "best.safetensors")
    torch.manual_seed(99)
    # load_run itself compares the hash of everything that the checkpoint does not hold.
    assert set(tensors) == trained_names(load_run(tmp_path))


def test_a_frozen_run_brings_its_own_base_along(flags, tmp_path):
    """source -> frozen from source -> full from frozen: the last run needs both checkpoints, but only one flag."""
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


def test_the_documented_parameter_counts():
    """Compare the parameter counts in the table of docs/methods.md with every method at its defaults."""
    text = (REPOSITORY / "docs" / "methods.md").read_text()
    documented = dict(re.findall(r"^\| `(\w+)` \| .*? \| ([\d,]+) \|", text, flags=re.MULTILINE))
    assert set(documented) == set(PACKAGED)
    for name, count in documented.items():
        with torch.device("meta"):
            backbone = build_backbone(BertConfig())
            recommender = Recommender(TextTower(backbone, 64), SASRec(64, 20, 2, 2, 0.1), BCEObjective())
            groups = apply(recommender, name)
        assert sum(p.numel() for group in groups for p in group.parameters.values()) == int(count.replace(",", "")), (
            name
        )
