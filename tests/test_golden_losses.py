"""No refactoring changes a number: short runs of everything against their record (golden_losses.py)."""

import golden_losses
import pytest
from golden_losses import MODALITIES, cases, differs, environment, names, recorded

# Images alone, and variants of a method over several modalities, are long: the other cases run their parts, too.
CASES = [
    pytest.param(
        modality,
        name,
        id=f"{modality}: {name}",
        marks=[pytest.mark.long] * (modality == "image" or (modality == "multimodal" and ", " in name)),
    )
    for modality in MODALITIES
    for name in names(modality)
]


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> list[str]:
    return golden_losses.prepare(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize(("modality", "name"), CASES)
def test_losses_and_metrics_are_those_recorded(modality, name, given, tmp_path):
    of, before = recorded(modality)
    for line in cases(modality, name, given, tmp_path):
        was = before[tuple(line.split(" | ")[:2])]
        assert not differs(line, was, exact=of == environment()), f"was {was}\nnow {line}"


@pytest.mark.parametrize("modality", MODALITIES)
def test_every_record_is_of_a_case(modality):
    _, before = recorded(modality)
    assert [*dict.fromkeys(name for name, _ in before)] == names(modality)


def test_what_differs_is_told():
    assert differs("a | 1.0", "a | 1.0000000000000002", exact=True)
    assert not differs("a | 1.0", "a | 1.0000000000000002", exact=False)
    assert differs("a | 1.0", "a | 1.001", exact=False)
    assert not differs("a | b | 1.0 2.0 | HR@5 0.05", "a | b | 1.0 2.0 | HR@5 0.0", exact=False)
    assert differs("a | b | 1.0 2.0 | HR@5 0.1", "a | b | 1.0 2.0 | HR@5 0.0", exact=False)
    assert differs("a | b | 1.05 2.0 | HR@5 0.1", "a | b | 1.0 2.0 | HR@5 0.1", exact=False)
