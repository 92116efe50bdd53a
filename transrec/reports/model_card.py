"""The model card of a released run: a README.md with metadata for the Hugging Face hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transrec.data.dataset import description
from transrec.errors import printable
from transrec.finished import FinishedRun
from transrec.reports.tables import TESTED, markdown

FILE_DESCRIPTIONS = {
    "README.md": "this card",
    "checkpoints": "all weights, which `load_run` reads",
    "encoders": "configuration and tokenizer or image processor of each backbone",
    "example.py": "recommends by torch and numpy alone",
    "items": "`embeddings.npy`, float32, a row per item, and `ids.txt`: for FAISS, or as vectors of another run",
    "options.json": "every option of the run",
    "peft": "LoRA's updates, for `PeftModel.from_pretrained`",
    "result.json": "metrics, parameters, time, memory, versions",
    "user_encoder.pt2": "the user encoder, by `torch.export`",
}
TEMPLATE = """---
{metadata}---

# {title}

A sequential recommender of transrec: `{method}` over {read}. It was trained on {dataset} with the objective
`{objective}` and the user encoder `{user_encoder}`; {trained:,} of its {total:,} parameters trained.

## Results

{results}

Every item is ranked for every user. Popularity ranks by the number of training interactions.

## Data

{data}

## Use

```python
from transrec import load_run

run = load_run("FOLDER", dataset="DATASET")
run.recommend(["ITEM", "ITEM"], k=10)
```

Without transrec, `python example.py ITEM ITEM` recommends by torch and numpy alone.

## Files

{files}

## Settings

{settings}
"""


def model_card(run: FinishedRun, result: dict[str, Any], files: Sequence[str]) -> str:
    """Return the card, built from result.json, the dataset and its data card.

    Args:
        files: names of the files and folders next to the card.
    """
    import yaml

    settings, dataset = run.settings, run.dataset.name
    metadata = {
        "library_name": "transrec",
        "tags": ["sequential-recommendation", "recommender-system", settings.method, *settings.modalities],
        "model-index": [{"name": settings.name, "results": [_model_index_entry(dataset, result)]}],
    }
    # Only encoders named as on the hub: a folder on this computer means nothing to others.
    encoders = [modality.encoder for modality in settings.modalities.values() if modality.encoder]
    if public := [encoder for encoder in encoders if not Path(encoder).is_absolute()]:
        metadata["base_model"] = public
    places = {"dataset", "output", "checkpoint", "state_cache", "cache_dir", "images", "vectors", "plugin", "presets"}
    shown = {name: value for name, value in settings.non_defaults.items() if name not in places}
    return TEMPLATE.format(
        metadata=yaml.safe_dump(metadata, sort_keys=False, allow_unicode=False),
        title=_plain(f"{settings.name}, {dataset}"),
        method=settings.method,
        read=", ".join(modality.reads for modality in settings.modalities.values()),
        dataset=_plain(dataset),
        objective=settings.model.objective,
        user_encoder=settings.model.user_encoder,
        trained=result["trainable_parameters"],
        total=result["total_parameters"],
        results=_results(result),
        data=_data(run),
        files=markdown(
            ["file", "what it is"],
            [[f"{name}", FILE_DESCRIPTIONS.get(name, "")] for name in sorted({*files, "README.md"})],
        ),
        settings=markdown(["flag", "value"], [[f"--{name}", _flag_text(value)] for name, value in shown.items()]),
    )


def _model_index_entry(dataset: str, result: dict[str, Any]) -> dict[str, Any]:
    part = "test" if "test" in result else "validation"
    return {
        "task": {"type": "sequential-recommendation", "name": "Sequential recommendation"},
        "dataset": {"name": printable(dataset), "type": printable(dataset), "split": part},
        "metrics": [{"type": name, "value": round(value, 6)} for name, value in result[part].items()],
    }


def _results(result: dict[str, Any]) -> str:
    parts = [part for part in ("validation", *TESTED) if part in result]
    names = list(result[parts[0]])
    cells = [[name, *(f"{result[part][name]:.4f}" if name in result[part] else "" for part in parts)] for name in names]
    return markdown(["metric", *parts], cells)


def _data(run: FinishedRun) -> str:
    """Return a description of the dataset and of its import."""
    text = f"{_plain(run.dataset.summary)}."
    card = description(run.dataset.folder).get("import")
    if not isinstance(card, dict):
        return text
    counts = {name: card.get(name) for name in ("format", "first", "last", "duplicates", "order") if card.get(name)}
    rows = [[name, str(value)] for name, value in counts.items()]
    if isinstance(dropped := card.get("dropped"), dict):
        rows += [[f"interactions dropped: {reason}", str(count)] for reason, count in dropped.items()]
    return f"{text}\n\n{markdown(['imported', 'what'], rows)}"


def _plain(text: str) -> str:
    """Return text from outside with its Markdown and HTML disabled."""
    return printable(text).replace("&", "&amp;").replace("<", "&lt;").replace("`", "'")


def _flag_text(value: Any) -> str:
    """Return a flag's value as text; an absolute path becomes its last part."""
    values = value if isinstance(value, list) else [value]
    return " ".join(
        Path(entry).name if isinstance(entry, str) and Path(entry).is_absolute() else str(entry) for entry in values
    )
