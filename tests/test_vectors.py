"""Vectors computed elsewhere: accepted files, refused files, and training on vectors."""

import re
import shutil

import numpy as np
import pytest
from conftest import BOTH, encoder_flags, run
from safetensors.numpy import save_file
from test_training import numbers

from transrec.data.vectors import VectorFile
from transrec.errors import TransrecError
from transrec.finished import load_run

VECTOR = ["--modalities", "vector"]


@pytest.fixture
def vectors(domain, tmp_path):
    """Path of a copy of the dataset's own vectors."""
    for name in ("features.npy", "ids.txt"):
        shutil.copy(domain / name, tmp_path / name)
    return tmp_path / "features.npy"


@pytest.fixture
def values(vectors):
    return np.load(vectors)


def test_the_same_vectors_in_every_format(vectors, values):
    folder = vectors.parent
    deep = np.stack([values, 2 * values, values - 1], axis=1).astype(np.float16)
    np.save(folder / "fortran.npy", np.asfortranarray(values))
    np.save(folder / "deep.npy", deep)
    save_file({"features": values, "other": values[:1]}, folder / "named.safetensors")
    save_file({"anything": deep}, folder / "deep.safetensors")
    for name in ("features.npy", "fortran.npy", "named.safetensors"):
        np.testing.assert_array_equal(VectorFile(folder / name).states, values[:, None])
    for name in ("deep.npy", "deep.safetensors"):
        file = VectorFile(folder / name)
        assert isinstance(file.states, np.memmap) and file.states.dtype == np.float16
        np.testing.assert_array_equal(file.states, deep)
        np.testing.assert_array_equal(file.pick(file.rows_of(file.ids[7:3:-1])), deep[7:3:-1])


def test_parquet(vectors, values):
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    ids = (vectors.parent / "ids.txt").read_text().split()
    path = vectors.with_suffix(".parquet")
    pyarrow.parquet.write_table(pyarrow.table({"id": ids, "features": list(values)}), path)
    np.testing.assert_array_equal(VectorFile(path).states, values[:, None])
    pyarrow.parquet.write_table(pyarrow.table({"id": ids, "features": list(values.astype(float))}), path)
    with pytest.raises(TransrecError, match="features are of type double; save them as float16 or float32"):
        VectorFile(path)


def test_parquet_without_what_reads_it(vectors, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    path = vectors.with_suffix(".parquet")
    path.write_bytes(b"PAR1")
    with pytest.raises(TransrecError, match=r"needs pyarrow; pip install 'transrec\[import\]', or save"):
        VectorFile(path)


def edit_ids(change):
    def edit(path, values):
        ids = path.with_name("ids.txt")
        ids.write_text("\n".join(change(ids.read_text().split())) + "\n")

    return edit


def edit_vectors(change):
    return lambda path, values: np.save(path, change(values))


def not_finite(value):
    def change(values):
        values[:, 3] = value
        return values

    return edit_vectors(change)


BAD = {
    "another item": (edit_ids(lambda ids: ["X", *ids[1:]]), r"holds no vector of \d+ of \d+ items, 'S\d+' for one"),
    "too few ids": (edit_ids(lambda ids: ids[:-1]), "ids.txt: has 149 ids, and features.npy holds 150 items"),
    "an id twice": (edit_ids(lambda ids: [ids[1], *ids[1:]]), "names item 'S00001' more than once"),
    "no ids": (lambda path, values: path.with_name("ids.txt").unlink(), "ids.txt: .*one item id per line"),
    "NaN": (not_finite(np.nan), r"the vector of item 'S\d+' holds NaN or infinity"),
    "infinity": (not_finite(np.inf), r"the vector of item 'S\d+' holds NaN or infinity"),
    "doubles": (
        edit_vectors(lambda values: values.astype(float)),
        "is of dtype float64; save it as float16 or float32",
    ),
    "big-endian": (edit_vectors(lambda values: values.astype(">f4")), "is of dtype >f4; save it as float16 or float32"),
    "four axes": (edit_vectors(lambda values: values[:, None, None]), r"is \[150, 1, 1, 30\]; it must be \[items, D\]"),
    "pickled": (
        edit_vectors(lambda values: values.astype(object)),
        "pickled Python objects, which are never unpickled",
    ),
    "cut off": (
        lambda path, values: path.write_bytes(path.read_bytes()[:-1]),
        "cut off, 18,127 of 18,128 bytes are left",
    ),
    "no npy": (lambda path, values: path.write_bytes(b"vectors"), "features.npy: not a .npy file"),
    "missing": (lambda path, values: path.unlink(), "features.npy: cannot read the vectors"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_vectors_are_told_in_one_line(command, vectors, values, bad, tmp_path):
    edit, expected = BAD[bad]
    edit(vectors, values)
    status, message = command("--vectors", str(vectors), *VECTOR, method="full")
    assert status == 2 and re.search(expected, message), message
    assert len(command.errors.splitlines()) == 1 and not (tmp_path / "run").exists()


def test_a_safetensors_file_that_is_cut_off(vectors, values):
    path = vectors.with_suffix(".safetensors")
    save_file({"features": values}, path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(TransrecError, match="cut off"):
        VectorFile(path)
    save_file({"features": values.astype(np.int32)}, path)
    with pytest.raises(TransrecError, match="is of dtype I32; save it as float16 or float32"):
        VectorFile(path)


def test_methods_over_vectors_alone(flags, tmp_path, vectors):
    """Methods that need a backbone report that there is none; the others train, and load without the file."""
    flags = [*flags, *VECTOR, "--vectors", str(vectors), "--epochs", "1", "--objective", "in_batch"]
    for method, more in (("full", []), ("iisan", []), ("houlsby", ["--insert", "user"])):
        result = run([*flags, *more, "--output", str(tmp_path / method)], method)
        assert (result["item_tower"], result["name"]) == ("vector", f"{method} over vectors")
    with pytest.raises(TransrecError, match="--method lora --insert all: no backbone reads the items"):
        run([*flags, "--output", str(tmp_path / "lora")], "lora")
    loaded = load_run(tmp_path / "full")
    np.save(vectors, 2 * np.load(vectors))
    with pytest.raises(TransrecError, match=f"{vectors}: has changed since the run was trained on it; restore it"):
        loaded.evaluate()
    vectors.unlink()
    loaded = load_run(tmp_path / "iisan")
    assert loaded.item_encoder.side.intra["vector"].end.in_features == 30


def test_three_modalities_cached_and_uncached_give_the_same_losses(flags, backbones, tmp_path):
    flags = [*flags, *encoder_flags(BOTH, backbones), "--modalities", "text", "image", "vector", "--epochs", "3"]
    flags += ["--objective", "in_batch", "--lr", "1e-2", "--adapter_lr", "1e-2", "--side_size", "8", "6", "4"]
    cached = ["--cached", "yes", "--state_dtype", "fp32", "--state_cache", str(tmp_path / "states")]
    for name, more in (("uncached", ["--cached", "no"]), ("cached", cached)):
        run([*flags, *more, "--output", str(tmp_path / name)], "iisan")
    uncached, both = (numbers(tmp_path / name)["epochs"] for name in ("uncached", "cached"))
    for one, other in zip(uncached, both, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
        assert one["validation HR@10"] == other["validation HR@10"]
    side = load_run(tmp_path / "cached").item_encoder.side
    assert side.order == ["image", "text", "vector"] and side.inter.gates.shape == (2, 2)


def test_the_order_of_modalities_changes_nothing(flags, backbones, tmp_path):
    flags = [*flags, *encoder_flags(BOTH, backbones), "--epochs", "1", "--dropout", "0"]
    losses = []
    for name, order in (("one", ["text", "image", "vector"]), ("two", ["vector", "image", "text"])):
        run([*flags, "--modalities", *order, "--output", str(tmp_path / name)], "frozen")
        losses.append(numbers(tmp_path / name)["epochs"][0]["train_loss"])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["text", "sound"], "--modalities sound: unknown; choose from id, image, text, vector"),
        (["text", "text"], "--modalities text text: names one of them twice"),
    ],
)
def test_modalities_that_cannot_be(command, given, expected):
    status, message = command("--modalities", *given)
    assert status == 2 and expected in message
