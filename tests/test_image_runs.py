"""Runs over images: reading ahead, resuming, several processes, image encoders, invalid input."""

import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import IMAGE_KINDS, encoder_flags, fitting, run
from PIL import Image
from test_training import assert_same_run, best, finish, finished, numbers, start, wait_for_state
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from transrec.data.dataset import find_images, load_dataset
from transrec.data.demo import make_image_backbone
from transrec.data.features import ImageFeatures, read_ahead
from transrec.data.images.build import build_store
from transrec.errors import TransrecError
from transrec.export import export_backbone
from transrec.finished import load_run
from transrec.interop import load_original
from transrec.modalities.image import ImageTower
from transrec.models.backbone import Preprocessing, load_backbone, load_config, load_preprocessing
from transrec.settings import digest


@pytest.fixture(params=IMAGE_KINDS)
def image_flags(request, flags, backbones):
    return [*flags, *encoder_flags(request.param, backbones)]


@pytest.fixture
def vit_flags(flags, backbones):
    return fitting([*flags, *encoder_flags("vit", backbones)], "image")


def test_workers_change_speed_not_numbers(image_flags, tmp_path):
    for workers in ("0", "2"):
        run([*image_flags, "--image_workers", workers, "--output", str(tmp_path / workers)], "houlsby")
    assert_same_run(tmp_path / "0", tmp_path / "2")


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_read_ahead_is_what_was_asked_for_in_order(domain, workers):
    dataset = load_dataset(domain, 6, 5)
    ids = [dataset.catalog.ids[row] for row in dataset.split.item_rows]
    features = ImageFeatures(find_images(domain), ids, workers=workers)

    def items_of(number):
        return torch.arange(1, 4) + number

    made = list(read_ahead(items_of, range(5), lambda items: [items, items[:1]], features))
    assert [items.tolist() for items, _ in made] == [[n + 1, n + 2, n + 3] for n in range(5)]
    for items, (first, second) in made:
        assert torch.equal(first[0], features.store.read([ids[item - 1] for item in items.tolist()]))
        assert torch.equal(second[0], first[0][:1])
    assert torch.equal(features.inputs(torch.tensor([7]))[0], features.store.read([ids[6]]))


def test_pixels_are_scaled_normalised_and_resized(backbones):
    backbone = load_backbone(backbones["vit"], "image")
    encoder = ImageTower(backbone, 8, Preprocessing(32, (0.5, 0.4, 0.3), (0.5, 0.2, 0.1))).eval()
    seen = []
    backbone.register_forward_pre_hook(
        lambda module, arguments, options: seen.append(options["pixel_values"]), with_kwargs=True
    )
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    encoder(pixels)
    for channel, (mean, std) in enumerate(((0.5, 0.5), (0.4, 0.2), (0.3, 0.1))):
        torch.testing.assert_close(seen[0][:, channel], (pixels[:, channel] / 255 - mean) / std)
    encoder(torch.full((1, 3, 64, 64), 51, dtype=torch.uint8))
    torch.testing.assert_close(seen[1][0, 0], torch.full((32, 32), (0.2 - 0.5) / 0.5))


def test_preprocessing_is_the_backbones_own(backbones, tmp_path):
    folder = shutil.copytree(backbones["vit"], tmp_path / "vit")
    config = load_config(folder, "image")
    assert load_preprocessing(folder, config) == Preprocessing(32, (0.5,) * 3, (0.5,) * 3)
    (folder / "preprocessor_config.json").write_text(
        '{"size": {"shortest_edge": 40}, "do_center_crop": true, "crop_size": {"height": 24, "width": 24}, '
        '"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}'
    )
    assert load_preprocessing(folder, config) == Preprocessing(24, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    (folder / "preprocessor_config.json").unlink()
    assert load_preprocessing(folder, config) == Preprocessing(32, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    "stored",
    [
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": [100.0, 110.0, 120.0], "image_std": [50.0, 60.0, 70.0]},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 2.0, 3.0]},
        {"do_rescale": False, "do_normalize": False},
    ],
    ids=lambda stored: " ".join(stored),
)
def test_pixels_are_scaled_as_the_image_processor_does(backbones, tmp_path, stored):
    folder = shutil.copytree(backbones["vit"], tmp_path / "vit")
    processor = ViTImageProcessor(size={"height": 32, "width": 32}, do_resize=False, **stored)
    processor.save_pretrained(folder)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    expected = processor(list(pixels.numpy()), return_tensors="pt")["pixel_values"].float()
    ours = load_preprocessing(folder, load_config(folder, "image"))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (ours.mean, ours.std))
    torch.testing.assert_close((pixels / 255 - mean) / std, expected, atol=1e-4, rtol=1e-5)


def test_images_that_are_not_square_are_refused(backbones, tmp_path):
    folder = shutil.copytree(backbones["vit"], tmp_path / "vit")
    (folder / "preprocessor_config.json").write_text('{"size": {"height": 32, "width": 24}}')
    with pytest.raises(TransrecError, match="only square images are read"):
        load_preprocessing(folder, load_config(folder, "image"))


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}


def save_vision_transformer(kind: str, folder: Path) -> None:
    """Save a tiny CLIP, whose image encoder is to be extracted, or a tiny DINOv2."""
    torch.manual_seed(0)
    if kind == "clip":
        text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=SMALL | {"intermediate_size": 64}))
    else:
        model = Dinov2Model(Dinov2Config(**SMALL, mlp_ratio=2))
    model.save_pretrained(folder)


@pytest.mark.parametrize("kind", ["clip", "dinov2"])
@pytest.mark.parametrize("method", ["full", "houlsby", "parallel", "lora", "kadapter", "prompt", "bitfit"])
def test_other_vision_transformers(vit_flags, tmp_path, kind, method):
    save_vision_transformer(kind, tmp_path / kind)
    sizes = {"kadapter": ["--item_size", "8", "--item_heads", "2", "--user_size", "8"], "prompt": ["--n_tokens", "3"]}
    flags = [*vit_flags, "--image_encoder", str(tmp_path / kind), "--epochs", "1", *sizes.get(method, [])]
    result = run([*flags, "--output", str(tmp_path / "run")], method)
    loaded = load_run(tmp_path / "run")
    for name, tensor in best(tmp_path / "run").items():
        assert torch.equal(loaded.get_parameter(name), tensor)
    assert np.isfinite(result["test"]["MRR"]) and result["trainable_parameters"] > 0


def test_clip_is_read_out_behind_its_own_norm(tmp_path):
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    CLIPModel(CLIPConfig(text_config=text, vision_config=SMALL | {"intermediate_size": 64})).save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path, "image").eval()
    with torch.no_grad():
        backbone.get_submodule(
            next(path for path, _ in backbone.named_modules() if path.endswith("post_layernorm"))
        ).bias.add_(1.0)
        pixels = torch.randn(2, 3, 32, 32)
        encoder = ImageTower(backbone, 8, load_preprocessing(tmp_path, backbone.config)).eval()
        torch.testing.assert_close(encoder.encode(pixels), backbone(pixel_values=pixels).pooler_output)


@pytest.mark.long
def test_resuming_with_workers_equals_the_unbroken_run(vit_flags, tmp_path):
    flags = [*vit_flags, "--image_workers", "2", "--batch_size", "2", "--epochs", "3", "--save_steps", "3"]
    script = "../../CV/script/sm_vit_adapter.py"
    finished(script, [*flags, "--output", str(tmp_path / "whole")])
    for number in (signal.SIGKILL, signal.SIGTERM):
        folder = tmp_path / number.name
        process = start(script, [*flags, "--output", str(folder)])
        wait_for_state(folder, lambda epoch, step: epoch == 2)
        time.sleep(0.05)
        process.send_signal(number)
        finish(process, -number if number == signal.SIGKILL else 128 + number)
        finished(script, ["--resume", str(folder)])
        assert_same_run(tmp_path / "whole", folder)


@pytest.mark.long
def test_two_processes_over_images(vit_flags, tmp_path):
    flags = [*vit_flags, "--dropout", "0", "--backbone_dropout", "off", "--image_workers", "1"]
    script = "../../CV/script/sm_vit.py"
    finished(script, [*flags, "--output", str(tmp_path / "1")])
    finish(start(script, [*flags, "--nproc", "2", "--output", str(tmp_path / "2")]))
    one, two = (numbers(tmp_path / processes)["epochs"] for processes in "12")
    for a, b in zip(one, two, strict=True):
        # Gradients agree to 1e-6 per step; sixteen steps of Adam amplify the difference.
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)


def test_an_exported_image_backbone_is_plain(vit_flags, tmp_path, domain):
    run([*vit_flags, "--output", str(tmp_path / "run"), "--epochs", "1"], "lora")
    recommender = load_run(tmp_path / "run")
    export_backbone(recommender.item_encoder, tmp_path / "plain")
    plain = AutoModel.from_pretrained(tmp_path / "plain").eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            plain(pixel_values=pixels).last_hidden_state[:, 0],
            recommender.item_encoder.encode(pixels),
            atol=1e-5,
            rtol=0,
        )


def test_an_original_image_checkpoint_starts_a_run(golden, vit_flags, tmp_path):
    weights = golden / "image" / "base_sasrec" / "weights.safetensors"
    config = ViTConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256)
    config.image_size, config.patch_size = 32, 8
    ViTModel(config).save_pretrained(tmp_path / "vit")
    from safetensors.torch import load_file

    torch.save({"model_state_dict": load_file(weights)}, tmp_path / "epoch-9.pt")
    still = ["--lr", "0", "--backbone_lr", "0", "--epochs", "1", "--embedding_dim", "64", "--max_seq_len", "4"]
    flags = [*vit_flags, "--image_encoder", str(tmp_path / "vit"), *still, "--output", str(tmp_path / "run")]
    run([*flags, "--checkpoint", str(tmp_path / "epoch-9.pt")])
    original = load_original(weights, image_encoder=tmp_path / "vit")
    trained = best(tmp_path / "run")
    for name, parameter in original.named_parameters():
        assert torch.equal(trained[name], parameter), name
    with pytest.raises(TransrecError, match="over image; say which backbone with image_encoder="):
        load_original(weights, text_encoder=tmp_path / "vit")


@pytest.fixture
def fails(vit_flags, tmp_path):
    def fails(*more, method="houlsby"):
        with pytest.raises(TransrecError) as error:
            run([*vit_flags, "--output", str(tmp_path / "run"), *more], method)
        assert not (tmp_path / "run").exists()
        return str(error.value)

    return fails


def test_bad_input(fails, domain, backbones, tmp_path):
    bare = shutil.copytree(domain, tmp_path / "bare", ignore=shutil.ignore_patterns("*.lmdb"))
    assert "bare: no image store (*.lmdb); name one with --images" in fails("--dataset", str(bare))
    for name in ("a.lmdb", "b.lmdb"):
        shutil.copy(domain / "images.lmdb", bare / name)
    assert "several image stores: a.lmdb, b.lmdb; name one with --images" in fails("--dataset", str(bare))
    few = tmp_path / "few.tsv"
    few.write_text("".join((domain / "items.tsv").read_text().splitlines(keepends=True)[:9]))
    build_store(few, domain / "images", tmp_path / "few.lmdb", 32)
    assert "few.lmdb: no image of" in fails("--images", str(tmp_path / "few.lmdb"))
    assert "reads text, not image" in fails("--image_encoder", str(backbones["bert"]))
    with pytest.raises(TransrecError, match="a ViTModel reads images, not text"):
        load_backbone(backbones["vit"], "text")
    assert "--mask_ratio 0.5: only MAE masks patches" in fails("--mask_ratio", "0.5")
    large = shutil.copytree(backbones["vit"], tmp_path / "large")
    stored = json.loads((large / "preprocessor_config.json").read_text())
    (large / "preprocessor_config.json").write_text(json.dumps(stored | {"size": {"height": 48, "width": 48}}))
    message = fails("--image_encoder", str(large))
    assert "large: images are made 48 x 48 pixels, as preprocessor_config.json says, and the weights cannot" in message
    assert "--mask_ratio 1.0: must be below 1" in fails("--image_encoder", str(backbones["mae"]), "--mask_ratio", "1")
    assert "image_workers -1: must be at least 0" in fails("--image_workers", "-1")


@pytest.mark.parametrize(
    ("method", "changed"),
    [("lora", "image"), ("lora", "size"), ("iisan", "image"), ("iisan", "size"), ("iisan", "weights")],
)
def test_a_run_refuses_other_images_and_other_weights(vit_flags, backbones, domain, tmp_path, method, changed):
    dataset = shutil.copytree(domain, tmp_path / "set", ignore=shutil.ignore_patterns(".transrec"))
    encoder = shutil.copytree(backbones["vit"], tmp_path / "vit")
    own = ["--dataset", str(dataset), "--image_encoder", str(encoder), "--output", str(tmp_path / "run")]
    run([*vit_flags, *own, *["--cached", "yes"] * (method == "iisan"), "--epochs", "1", "--keep_state"], method)
    if changed == "weights":
        make_image_backbone(encoder, hidden_size=32, seed=9)
    else:
        if changed == "image":
            Image.new("RGB", (40, 40), "red").save(sorted((dataset / "images").iterdir())[0])
        (dataset / "images.lmdb").unlink()
        build_store(dataset / "items.tsv", dataset / "images", dataset / "images.lmdb", 16 if changed == "size" else 32)
    states = {*(dataset / ".transrec").glob("states-*")}
    assert bool(states) == (method == "iisan")
    place = r"vit \(image encoder\)" if changed == "weights" else r"images\.lmdb"
    with pytest.raises(TransrecError, match=f"{place}: has changed since"):
        run(["--resume", str(tmp_path / "run"), "--epochs", "2"], method)
    with pytest.raises(TransrecError, match=f"{place}: has changed since"):
        load_run(tmp_path / "run").evaluate("test")
    assert {*(dataset / ".transrec").glob("states-*")} == states, "refused before states are computed"


def test_runs_of_earlier_releases_know_less_of_their_images(vit_flags, domain, tmp_path):
    """They recorded what a store was built from alone, and of cached states nothing."""
    for method, more in (("lora", []), ("iisan", ["--cached", "yes"])):
        folder = tmp_path / method
        run([*vit_flags, *more, "--output", str(folder), "--epochs", "1", "--keep_state"], method)
        stored = json.loads((folder / "options.json").read_text())
        for key in [key for key in stored["files"] if key.endswith(("images.lmdb", "(image encoder)"))]:
            former = stored["files"].pop(key).partition("-")[0]
            if method == "lora":
                stored["files"][key] = former
        (folder / "options.json").write_text(json.dumps(stored | {"digest": digest(stored)}))
        assert load_run(folder).evaluate("test") == json.loads((folder / "result.json").read_text())["test"]
        run(["--resume", str(folder), "--epochs", "2"], method)


def test_a_checkpoint_over_another_encoder_is_told(vit_flags, backbones, tmp_path, capsys):
    run([*vit_flags, "--output", str(tmp_path / "source"), "--epochs", "1"], "full")
    for name in ("vit", "other"):
        encoder = shutil.copytree(backbones["vit"], tmp_path / name / name)
        given = ["--image_encoder", str(encoder), "--checkpoint", str(tmp_path / "source")]
        capsys.readouterr()
        run([*vit_flags, *given, "--output", str(tmp_path / f"from-{name}"), "--epochs", "1"], "lora")
        told = f"was trained over the image encoder {backbones['vit']}; its weights are used" in capsys.readouterr().err
        assert told == (name == "other")


def test_mae_masks_nothing_unless_it_is_told_to(vit_flags, backbones, tmp_path):
    flags = [*vit_flags, "--image_encoder", str(backbones["mae"]), "--epochs", "1"]
    plain, again, masked = (
        run([*flags, "--output", str(tmp_path / name), *more])
        for name, more in (("a", []), ("b", []), ("c", ["--mask_ratio", "0.75"]))
    )
    assert plain["test"] == again["test"] != masked["test"] == load_run(tmp_path / "c").evaluate("test")
    encoder = load_run(tmp_path / "a").item_encoder
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(encoder(pixels), encoder(pixels))
        masking = load_run(tmp_path / "c").item_encoder
        assert not torch.equal(masking(pixels), masking(pixels))


def test_backbones_of_the_demo_are_made_alike(tmp_path):
    for name in "ab":
        make_image_backbone(tmp_path / name, hidden_size=16, layers=1)
    first, second = (load_backbone(tmp_path / name, "image").state_dict() for name in "ab")
    assert all(torch.equal(first[key], second[key]) for key in first)
