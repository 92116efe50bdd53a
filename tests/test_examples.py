"""The methods of docs/adding, against their papers' formulas and, if it is installed, against peft."""

import pytest
import torch
from conftest import run
from examples import plugin_flags, registered
from torch import nn

from transrec import methods
from transrec.errors import TransrecError
from transrec.modalities.text import TextTower
from transrec.models.backbone import load_backbone
from transrec.models.objectives.bce import BCEObjective
from transrec.models.recommender import Recommender
from transrec.models.user_encoders.sasrec import SASRec
from transrec.training import checkpoint

TOKENS = torch.arange(5, 32).view(3, 9), (torch.arange(9) < torch.tensor([9, 4, 6])[:, None]).long()


@pytest.fixture(autouse=True)
def examples():
    with registered(["adalora", "dora", "lora_plus"]):
        yield


def adapted(folder, name, **options):
    """Return a recommender over a backbone, and the layers that the method inserted into it, by path."""
    torch.manual_seed(0)
    recommender = Recommender(TextTower(load_backbone(folder), 16), SASRec(16, 6, 2, 2, 0.1), BCEObjective())
    chosen = methods.get(name).Options(insert="item", **options)
    methods.apply(recommender, name, chosen, methods.Rates(1e-3, 1e-4))
    modules = recommender.item_encoder.backbone.named_modules()
    return recommender.eval(), {path: module for path, module in modules if hasattr(module, "merge")}


def hidden(backbone):
    with torch.no_grad():
        return backbone(input_ids=TOKENS[0], attention_mask=TOKENS[1]).last_hidden_state[TOKENS[1].bool()]


def draw(layers):
    """Change everything that the layers train at random."""
    with torch.no_grad():
        for parameter in (p for layer in layers.values() for p in layer.parameters() if p.requires_grad):
            parameter.add_(0.1 * torch.randn_like(parameter))


def test_lora_plus_trains_b_at_a_rate_of_its_own(flags, tmp_path):
    result = run(
        [*flags, "--epochs", "1", "--adapter_lr", "0.01", "--output", str(tmp_path), *plugin_flags("lora_plus")],
        "lora_plus",
    )
    rates = {row["what"]: row["lr"] for row in result["parameters"]}
    assert rates["adapter"] == 0.01 and rates["B"] == pytest.approx(0.16)
    counts = {row["what"]: 0 for row in result["parameters"]}
    for row in result["parameters"]:
        counts[row["what"]] += row["parameters"]
    # Query and value of two blocks: rank 12 at width 32, rank 4 at width 16.
    assert counts["adapter"] == counts["B"] == 4 * (12 * 32 + 4 * 16)


def test_dora_is_magnitude_times_direction(backbones):
    """Equation 5 on one layer, by hand: the norm of every row of the merged weight is the magnitude."""
    _, layers = adapted(backbones["bert"], "dora", item_rank=3, scaling=2.0)
    draw(layers)
    layer = next(iter(layers.values()))
    with torch.no_grad():
        direction = layer.inner.weight + 2.0 * layer.up @ layer.down
        weight = layer.magnitude[:, None] * direction / direction.square().sum(1, keepdim=True).sqrt()
        x = torch.randn(5, layer.inner.in_features)
        torch.testing.assert_close(layer(x), nn.functional.linear(x, weight, layer.inner.bias), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(layer.merge().weight.norm(dim=1), layer.magnitude.abs())


def test_dora_equals_peft(backbones):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    recommender, layers = adapted(backbones["bert"], "dora", item_rank=3, scaling=2.0)
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["query", "value"], use_dora=True)
    theirs = peft.get_peft_model(load_backbone(backbones["bert"]), config).eval()
    draw(layers)
    with torch.no_grad():
        for path, layer in layers.items():
            module = theirs.base_model.model.get_submodule(path)
            module.lora_A["default"].weight.copy_(layer.down)
            module.lora_B["default"].weight.copy_(layer.up)
            module.lora_magnitude_vector["default"].weight.copy_(layer.magnitude)
    assert len(layers) == 4
    ours = hidden(recommender.item_encoder.backbone)
    torch.testing.assert_close(ours, hidden(theirs), atol=2e-6, rtol=1e-5)
    assert (ours - hidden(load_backbone(backbones["bert"]).eval())).abs().max() > 1e-2


def test_adalora_penalty_and_importance(backbones):
    """Equations 4 and 7 to 10 on one layer, entry by entry."""
    recommender, layers = adapted(backbones["bert"], "adalora", item_rank=2, orthogonality=0.3)
    draw(layers)
    penalty, by_hand = recommender.method.penalty(), 0.0
    for layer in layers.values():
        for gram in (layer.left.T @ layer.left, layer.right @ layer.right.T):
            by_hand += sum((gram[i, j].item() - (i == j)) ** 2 for i in range(3) for j in range(3))
    assert penalty.item() == pytest.approx(0.3 * by_hand, rel=1e-5)

    layer = next(iter(layers.values()))
    means = {name: torch.zeros_like(getattr(layer, name)) for name in ("left", "values", "right")}
    spreads = {name: torch.zeros_like(mean) for name, mean in means.items()}
    for _ in range(3):
        with torch.no_grad():
            for name in means:
                weight = getattr(layer, name)
                weight.grad = torch.randn_like(weight)
                now = (weight * weight.grad).abs()
                means[name] = 0.6 * means[name] + 0.4 * now
                spreads[name] = 0.8 * spreads[name] + 0.2 * (now - means[name]).abs()
            layer.observe(0.6, 0.8)
    left, values, right = (means[name] * spreads[name] for name in ("left", "values", "right"))
    triplets = [values[i] + left[:, i].mean() + right[i].mean() for i in range(3)]
    torch.testing.assert_close(layer.importance(), torch.stack(triplets))


def test_adalora_allocates_as_peft(backbones):
    """With equal weights and gradients over a run of twenty steps, output, scores and kept triplets are equal."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    shares = {"warm_up_share": 0.1, "final_share": 0.3, "surplus": 2.0}
    recommender, layers = adapted(backbones["bert"], "adalora", item_rank=2, **shares)
    targets = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
    config = peft.AdaLoraConfig(
        init_r=4, target_r=2, tinit=2, tfinal=6, deltaT=1, total_step=20, lora_alpha=4, target_modules=targets
    )
    theirs = peft.get_peft_model(load_backbone(backbones["bert"]), config).eval()
    draw(layers)
    pairs = []
    for path, layer in layers.items():
        module = theirs.base_model.model.get_submodule(path)
        parts = module.lora_B["default"], module.lora_E["default"], module.lora_A["default"]
        pairs.append((layer, parts))
        with torch.no_grad():
            for weight, part in zip((layer.left, layer.values[:, None], layer.right), parts, strict=True):
                part.copy_(weight)
            # peft divides by the rank, which is 4 at first, plus a small constant.
            module.scaling["default"] = 4 + 1e-5
    assert len(pairs) == 12
    torch.testing.assert_close(hidden(recommender.item_encoder.backbone), hidden(theirs), atol=2e-6, rtol=1e-5)

    allocator = theirs.base_model.rankallocator
    allocator.set_total_step(20)
    for step in range(1, 15):
        for layer, parts in pairs:
            for weight, part in zip((layer.left, layer.values, layer.right), parts, strict=True):
                weight.grad = torch.randn_like(weight)
                part.grad = weight.grad.view_as(part).clone()
        with torch.no_grad():
            recommender.method.after_step(step, 20)
            allocator.update_and_allocate(theirs.base_model, step)
        ours = torch.cat([layer.values for layer, _ in pairs])
        assert torch.equal(ours, torch.cat([parts[1].flatten() for _, parts in pairs])), f"step {step}"
        with torch.no_grad():
            # Simulate a step of the optimiser: dropped triplets come back with a gradient.
            for layer, parts in pairs:
                layer.values += 0.1
                parts[1].add_(0.1)
    kept = torch.cat([layer.kept for layer, _ in pairs])
    assert kept.sum() == 12 * 2


def test_adalora_keeps_its_choice_at_the_end(flags, tmp_path):
    flags = [*flags, "--item_rank", "2", "--user_rank", "2", "--adapter_lr", "1e-2", "--epochs", "4"]
    run([*flags, "--output", str(tmp_path), *plugin_flags("adalora")], "adalora")
    tensors, _ = checkpoint.read(tmp_path / "checkpoints" / "last.safetensors", "model.")
    kept = {name: tensor for name, tensor in tensors.items() if name.endswith(".kept")}
    assert len(kept) == 24 and sum(int(tensor.sum()) for tensor in kept.values()) == 24 * 2
    assert len({int(tensor.sum()) for tensor in kept.values()}) > 1, "the ranks are shared out unevenly"
    for name, tensor in kept.items():
        assert not tensors[name.replace(".kept", ".values")][~tensor].any()


def test_shares_of_more_than_the_run():
    with pytest.raises(TransrecError, match=r"--warm_up_share and --final_share: are 1\.1 together"):
        methods.get("adalora").Options(warm_up_share=0.6, final_share=0.5)
