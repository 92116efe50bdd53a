"""docs/defaults.md: what runs of each method over each modality are set to where no flag says otherwise.

python -m transrec.reports.defaults > docs/defaults.md
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

from transrec import methods, presets
from transrec.paths import REPOSITORY
from transrec.reports.tables import markdown
from transrec.settings import Settings, parse

# Those of all methods' flags that a paper or a preset sets; a method's further ones stand in a table of their own.
COLUMNS = ("objective", "max_seq_len", "batch_size", "lr", "backbone_lr", "insert", "adapter_lr")
MODALITIES = ("text", "image", "multimodal", "id")
HEAD = """# Defaults

What a run is set to where neither its command line nor its script says otherwise. **Bold**: set by a preset of the
method or of the modality (`transrec/presets.py`), as the papers have it; the others are the defaults of the flags, a
method's own in its file in `transrec/methods`. Flags that are not named here are set alike in all runs; `--help-all`
lists them. A run prints who set each of its values that is not a flag's default, and keeps it under `set_by` in its
`options.json`.

Of several rules for one flag the first of these decides: the command line; the run that is resumed; a file that
`--presets` names; the script; what `--protocol published` sets; the preset of the method over the modality; the preset
of the method; the preset of the modality; the flag's default.
Scripts decide a method and a modality, and beside these only:

| script | sets |
| :----- | :--- |
| `Pretraining/*/script/*_sasrec.py`, `*_cpc.py` | `--objective` |
| `Pretraining/CV/script/sm_mae_*.py` | `--image_encoder facebook/vit-mae-base` |
| `Downstream/Multimodal/script/run_IISAN*.py` | `--objective in_batch`, `--max_seq_len 10`, over one modality too |
| `…/run_IISAN.py` | `--cached no` |
| `…/run_IISAN_cached.py`, `run_IISAN_versa.py` | `--cached yes`, `--state_dtype fp16` |
| `…/run_IISAN_versa.py` | `--side_layers 6`, `--narrow_end` |

This page is made by `python -m transrec.reports.defaults > docs/defaults.md`.
"""


def page() -> str:
    """The text of docs/defaults.md."""
    parts = [HEAD]
    for modality in MODALITIES:
        rows = [
            [name, *(_cell(made, column) for column in COLUMNS)]
            for name in methods.names()
            # Without a backbone most methods have nowhere to go.
            if modality != "id" or modality in presets.METHODS.get(name, {})
            for made in [_settings(name, modality)]
        ]
        table = markdown(["--method", *(f"--{name}" for name in COLUMNS)], rows)
        parts.append(f"## Over {_items(modality)} (`--item_tower {modality}`)\n\n{table}\n")
    parts.append(f"## A method's own flags\n\n{markdown(['--method', 'its own flags'], [*_own_flags()])}\n")
    return "\n".join(parts)


def _own_flags() -> Iterator[list[str]]:
    for method in methods.names():
        defaults = methods.get(method).Options.defaults()
        told = []
        for name in [name for name, value in defaults.items() if name not in COLUMNS and value not in (None, [])]:
            by_modality = {_items(modality): _settings(method, modality) for modality in MODALITIES}
            others = {items: made for items, made in by_modality.items() if made.as_dict()[name] != defaults[name]}
            others = "".join(f", over {items} {_cell(made, name)}" for items, made in others.items())
            told.append(f"{name} {_told(defaults[name])}{others}")
        if told:
            yield [method, "; ".join(told)]


def _items(modality: str) -> str:
    return _settings("full", modality).name.partition(" over ")[2]


@cache
def _settings(method: str, modality: str) -> Settings:
    return parse(["--dataset", str(REPOSITORY), "--method", method, "--item_tower", modality], method, {})


def _cell(made: Settings, name: str) -> str:
    values = made.as_dict()
    if name not in values or (name == "backbone_lr" and not methods.get(made.method).trains_backbone):
        return "-"
    return f"**{_told(values[name])}**" if made.set_by.get(name, "").startswith("preset") else _told(values[name])


def _told(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    print(page(), end="")
