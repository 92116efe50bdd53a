"""Export a run's text or image encoder as a plain folder in Hugging Face format, LoRA merged into the weights.

    python scripts/export_backbone.py --run runs/20260101-120000-adapter_lora-Target --out pretrained_models/mine

transformers loads the folder by itself, and --text_encoder or --image_encoder takes it.
"""

import argparse
import sys
from pathlib import Path

from transrec.errors import TransrecError
from transrec.export import export_backbone
from transrec.models.backbone import load_image_processor, load_tokenizer
from transrec.paths import resolve
from transrec.runner import load_run
from transrec.training.run import read_options

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run folder")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    arguments = parser.parse_args()
    try:
        folder = resolve(arguments.run)
        options = read_options(folder)
        if options["item_tower"] == "image":
            processor = load_image_processor(options["image_encoder"])
        else:
            processor = load_tokenizer(options["text_encoder"])
        export_backbone(load_run(folder), arguments.out, processor)
        print(arguments.out)
    except TransrecError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
