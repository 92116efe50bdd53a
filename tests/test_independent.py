"""Methods against independent implementations; tests whose implementation is not installed are skipped.

AdapterHub's `adapters` needs its own version of transformers, so it runs under another interpreter:

    python -m venv /tmp/adapterhub && /tmp/adapterhub/bin/pip install 'adapters[torch]'
    TRANSREC_ADAPTERHUB_PYTHON=/tmp/adapterhub/bin/python python -m pytest tests/test_independent.py
"""

import json
import os
import re
import shutil
import subprocess

import pytest
import torch
from conftest import ENCODERS, REPOSITORY
from safetensors.torch import load_file, save_file
from test_export import ia3  # noqa: F401

from transrec import methods
from transrec.modalities.text import TextTower
from transrec.models.backbone import load_backbone
from transrec.models.objectives.bce import BCEObjective
from transrec.models.recommender import Recommender
from transrec.models.user_encoders.sasrec import SASRec

INTERPRETER = "TRANSREC_ADAPTERHUB_PYTHON"
# Our method and the equivalent configuration of AdapterHub: relu, bottlenecks of 8 at a width of 32, no scaling unless
# set.
RELU = {"reduction_factor": 4, "non_linearity": "relu"}
CASES = {
    "houlsby": ("houlsby", {}, "DoubleSeqBnConfig", RELU),
    "pfeiffer adapterhub": ("pfeiffer", {"variant": "adapterhub"}, "SeqBnConfig", RELU),
    "pfeiffer": ("pfeiffer", {}, "SeqBnConfig", RELU | {"original_ln_before": False}),
    "pfeiffer_attention": ("pfeiffer_attention", {}, "DoubleSeqBnConfig", RELU | {"output_adapter": False}),
    "parallel": ("parallel", {}, "ParBnConfig", RELU | {"mh_adapter": True, "scaling": 1.0}),
    "compacter": ("compacter", {}, "CompacterConfig", RELU | {"non_linearity": "gelu_new"}),
    "lora": ("lora", {"item_rank": 3, "lora_scaling": 2.0}, "LoRAConfig", {"r": 3, "alpha": 6}),
}
# Our names of tensors, and AdapterHub's.
RENAMED = [
    (r"\.(?:dropout|LayerNorm)\.adapter\.", ".adapters.ours."),
    (r"\.ours\.(down|up)\.(?=left|right)", r".ours.\1.W_"),
    (r"\.ours\.down\.", ".ours.adapter_down.0."),
    (r"\.ours\.up\.", ".ours.adapter_up."),
    (r"^.*\.rule$", "shared_parameters.ours.phm_rule"),
    (r"\.(lora_[AB])$", r".loras.ours.\1"),
]


def their_name(name, method):
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return re.sub(r"\.bias$", ".b", name) if method == "compacter" else name


def adapted(folder, method, options):
    """Return our recommender over a backbone, and the parameters that the method trains, by name, randomly changed."""
    torch.manual_seed(0)
    recommender = Recommender(TextTower(load_backbone(folder), 16), SASRec(16, 6, 2, 2, 0.1), BCEObjective())
    sizes = {"item_bottleneck": 8} if "item_bottleneck" in methods.get(method).Options.__dataclass_fields__ else {}
    plain = {"train_layernorm": False} if "train_layernorm" in methods.get(method).Options.__dataclass_fields__ else {}
    chosen = methods.get(method).Options(insert="item", **sizes, **plain, **options)
    (group,) = (g for g in methods.apply(recommender, method, chosen, methods.Rates(1e-3, 1e-4)) if g.name == "adapter")
    with torch.no_grad():
        for parameter in group.parameters.values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return recommender.eval(), {name.removeprefix("item_encoder.backbone."): p for name, p in group.parameters.items()}


@pytest.fixture
def tokens():
    torch.manual_seed(1)
    mask = (torch.arange(9) < torch.tensor([9, 4, 6])[:, None]).long()
    return torch.randint(5, 60, (3, 9)), mask


def hidden(recommender, input_ids, mask):
    recommender.item_encoder.backbone.set_attn_implementation("eager")
    with torch.no_grad():
        return recommender.item_encoder.backbone(input_ids=input_ids, attention_mask=mask).last_hidden_state


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("case", CASES)
def test_equal_to_adapterhub(case, kind, backbones, tokens, tmp_path):
    interpreter = os.environ.get(INTERPRETER)
    if not interpreter:
        pytest.skip(f"{INTERPRETER} names no interpreter that has AdapterHub's adapters")
    method, options, configuration, theirs = CASES[case]
    recommender, parameters = adapted(backbones[kind], method, options)
    shutil.copytree(backbones[kind], tmp_path / "backbone")
    numbered = {name: str(number) for number, name in enumerate(parameters)}
    tensors = {numbered[name]: parameter.detach().clone() for name, parameter in parameters.items()}
    save_file(tensors | {"input_ids": tokens[0], "attention_mask": tokens[1]}, tmp_path / "tensors.safetensors")
    places = {their_name(name, method): number for name, number in numbered.items()}
    (tmp_path / "case.json").write_text(json.dumps({"config": configuration, "options": theirs, "places": places}))
    command = [interpreter, str(REPOSITORY / "tests" / "adapterhub_worker.py"), str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    expected = load_file(tmp_path / "output.safetensors")["output"]
    real = tokens[1].bool()
    ours = hidden(recommender, *tokens)
    difference = (ours - expected)[real].abs().max().item()
    print(f"{case} {kind}: {difference:.1e}")
    assert difference <= (1e-6 if case == "pfeiffer adapterhub" else 2e-6)
    # The output differs from that of a model without the adapters.
    assert (hidden_without(backbones[kind], *tokens) - expected)[real].abs().max() > 1e-2


def hidden_without(folder, input_ids, mask):
    with torch.no_grad():
        return load_backbone(folder).eval()(input_ids=input_ids, attention_mask=mask).last_hidden_state


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_documented_ia3_equals_peft(kind, ia3, backbones, tokens):  # noqa: F811
    peft = pytest.importorskip("peft", reason="peft is not installed")
    recommender, parameters = adapted(backbones[kind], ia3, {})
    modules = [r".*\.(key|value)", r".*layer\.\d+\.output\.dense"]
    config = peft.IA3Config(target_modules="|".join(modules), feedforward_modules=modules[1])
    theirs = peft.get_peft_model(load_backbone(backbones[kind]), config).eval()
    copied = 0
    for path, module in theirs.named_modules():
        if len(getattr(module, "ia3_l", ())):
            with torch.no_grad():
                scale = parameters[f"{path.removeprefix('base_model.model.')}.scale"]
                module.ia3_l["default"].copy_(scale.view_as(module.ia3_l["default"]))
            copied += 1
    assert copied == len(parameters) == 6
    theirs.set_attn_implementation("eager")
    with torch.no_grad():
        expected = theirs(input_ids=tokens[0], attention_mask=tokens[1]).last_hidden_state
    real = tokens[1].bool()
    torch.testing.assert_close(hidden(recommender, *tokens)[real], expected[real], atol=2e-6, rtol=0)
