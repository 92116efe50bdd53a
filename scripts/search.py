"""Search the hyperparameters of several methods, each with the same budget, by validation metrics only.

    python scripts/search.py --target Dataset/Scientific --method houlsby lora full@id --trials 30 --workers 2

A trial trains one method with settings drawn from its search space, by default learning rates and dropout; --space
adapter_lr=1e-5..1e-3:log houlsby.item_bottleneck=16,32,64 sets another space. The best settings of each method are
written to OUT/best.json, which runs and studies take as --presets OUT/best.json. With --refit_seeds 0 1 2 they are
trained again over these seeds, and only then are test targets ranked, once. Needs Optuna:
pip install 'transrec[search]'.
"""

from transrec.studies.search_command import main

if __name__ == "__main__":
    main(__doc__)
