"""Run by another interpreter: the output of the `adapters` package for the weights and inputs of a folder.

    python tests/adapterhub_worker.py FOLDER

FOLDER holds `backbone/`, `case.json` (a configuration by name, its options, and the place of each tensor) and
`tensors.safetensors` (adapter tensors by number, `input_ids`, `attention_mask`). The script writes
`output.safetensors`.
"""

import json
import sys
from pathlib import Path

import adapters
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

folder = Path(sys.argv[1])
case = json.loads((folder / "case.json").read_text())
given = load_file(folder / "tensors.safetensors")
model = AutoModel.from_pretrained(folder / "backbone", attn_implementation="eager")
adapters.init(model)
model.add_adapter("ours", config=getattr(adapters, case["config"])(**case["options"]))
model.set_active_adapters("ours")
parameters = dict(model.named_parameters())
# A parameter that layers share is not in any layer.
added = {name for name in parameters if ".ours." in name or "shared_parameters" in name}
filled = set()
with torch.no_grad():
    for name, number in case["places"].items():
        parameters[name].copy_(given[number])
        filled.add(name)
    assert filled == added, f"not alike: {sorted(filled ^ added)}"
    output = model.eval()(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).last_hidden_state
save_file({"output": output.contiguous()}, folder / "output.safetensors")
