"""Export a run's text or image encoder as a plain folder in Hugging Face format, LoRA merged into the weights.

    python scripts/export_backbone.py --run runs/20260101-120000-adapter_lora-Target --out pretrained_models/mine

transformers loads the folder by itself, and --text_encoder or --image_encoder takes it. Of a multimodal recommender
both encoders are written, to OUT/text and OUT/image.
"""

from pathlib import Path

from transrec.arguments import Parser
from transrec.command import reporting
from transrec.errors import TransrecError
from transrec.export import export_backbone
from transrec.models.backbone import load_image_processor, load_tokenizer
from transrec.paths import resolve
from transrec.runner import load_run
from transrec.training.run import read_options

if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("--run", type=Path, required=True, help="run folder")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    with reporting():
        arguments = parser.parse_args()
        folder = resolve(arguments.run)
        options = read_options(folder)
        towers = load_run(folder).item_encoder.towers
        if not towers:
            raise TransrecError(f"{folder}: represents items by learned vectors; there is no backbone to export")
        for tower in towers:
            load = {"text": load_tokenizer, "image": load_image_processor}[tower.content]
            out = arguments.out / tower.content if len(towers) > 1 else arguments.out
            export_backbone(tower, out, load(options[f"{tower.content}_encoder"]))
            print(out)
