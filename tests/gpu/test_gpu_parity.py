"""The records of the original programs, computed on a GPU in float32: within 1e-4 of the recorded numbers."""

from inspect import signature

import accelerator
import pytest
import test_iisan
import test_parity
import torch

from transrec.training.precision import Precision

DEVICE = accelerator.chosen()
text_case, image_case, tiny = test_parity.text_case, test_parity.image_case, test_iisan.tiny

# Every test of a record that computes something on a device is also a test of this module.
for module in (test_parity, test_iisan):
    for name, value in vars(module).items():
        if name.startswith("test_") and {"device", "tolerance"} & set(signature(value).parameters):
            globals()[name] = value


@pytest.fixture
def device() -> torch.device:
    Precision("fp32", DEVICE)
    return DEVICE
