"""Export a run's text or image encoder as a folder in Hugging Face format, with LoRA and similar updates merged.

    python scripts/export_backbone.py --run runs/20260101-120000-adapter_lora-Target --out pretrained_models/mine

transformers can load the folder, and so can --text_encoder or --image_encoder. For a multimodal recommender, both
encoders are written, to OUT/text and OUT/image.
"""

from pathlib import Path

from transrec.arguments import Parser
from transrec.assembly import stored_states
from transrec.command import reporting
from transrec.errors import TransrecError, printable
from transrec.export import export_backbone
from transrec.finished import load_run
from transrec.models.backbone import load_image_processor, load_tokenizer
from transrec.paths import resolve
from transrec.settings import Settings, read_settings


def without_backbone(settings: Settings) -> str:
    """Return why a run has no backbone to export and what to use instead; "" if it has one."""
    encoders = {name: modality.encoder for name, modality in settings.modalities.items() if modality.encoder}
    if not encoders:
        return "no backbone reads its items; there is none to export"
    if not stored_states(settings.plan):
        return ""
    reason = "trained no backbone, it read hidden states computed before"
    if settings.run.checkpoint:
        return f"{reason}; its backbones are those of {settings.run.checkpoint}, export that"
    if settings.model.random_backbone:
        return f"{reason} by backbones of random weights; there is nothing worth exporting"
    names = ", ".join(f"{modality}: {name}" for modality, name in encoders.items())
    return f"{reason}; its encoders are the pretrained ones unchanged, use those ({names})"


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--plugin", nargs="+", action="extend", default=[], help="plugins that the run was started with"
    )
    with reporting():
        arguments = parser.parse_args()
        folder = resolve(arguments.run)
        settings = read_settings(folder, arguments.plugin)
        if reason := without_backbone(settings):
            raise TransrecError(f"{folder}: {reason}")
        every = load_run(folder, arguments.plugin).item_encoder.towers
        towers = [tower for tower in every if tower.backbone is not None]
        for tower in towers:
            load = {"text": load_tokenizer, "image": load_image_processor}.get(tower.modality, lambda encoder: None)
            out = arguments.out / tower.modality if len(towers) > 1 else arguments.out
            export_backbone(tower, out, load(settings.modalities[tower.modality].encoder))
            print(printable(str(out)))
