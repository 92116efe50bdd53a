"""Untrusted files: no code in them runs, none takes more memory than allowed, none writes to a terminal."""

import ast
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import hostile
import lmdb
import numpy as np
import pytest
import torch
from conftest import REPOSITORY, run
from transformers.utils import logging

from transrec import interop
from transrec.data import tsv
from transrec.data.catalog import cached_tokens, read_catalog
from transrec.data.images import original
from transrec.data.images.build import build_store
from transrec.data.images.pictures import LARGEST_SIZE, Problem, jpeg_size
from transrec.data.images.sources import Zip
from transrec.data.images.store import ImageStore
from transrec.data.states import StateBuilder, StateFile
from transrec.errors import LONGEST_MESSAGE, TransrecError, printable
from transrec.models import backbone
from transrec.reports.tables import comma_separated, latex, markdown
from transrec.untrusted import check_regular, check_torch_file, parse_json, read_regular, safetensors_header


@pytest.fixture(scope="session")
def good(tmp_path_factory) -> hostile.Good:
    return hostile.make_good(tmp_path_factory.mktemp("good"))


@pytest.mark.parametrize("case", hostile.cases(), ids=lambda case: case.name.encode("unicode_escape").decode())
def test_hostile_input_ends_in_one_line(case, good, tmp_path):
    outcome = hostile.run_here(case.script, case.prepare(tmp_path, good))
    assert hostile.complaint(case, outcome) is None, hostile.complaint(case, outcome)
    assert not list(tmp_path.rglob("ran")) and not Path("/tmp/ran").exists(), "code of the input has run"


def test_there_are_many_cases_and_each_has_a_name_of_its_own():
    names = [case.name for case in hostile.cases()]
    assert len(names) == len(set(names)) >= 200


# Model folders with code.

CODE = {
    "AutoConfig": "own.Config",
    "AutoModel": "own.Model",
    "AutoTokenizer": ["own.Slow", "own.Fast"],
    "AutoImageProcessor": "own.Processor",
}


@pytest.fixture(params=["nobody answers", "somebody answers y"])
def standard_input(request, monkeypatch):
    """Standard input that is closed, or that agrees to every question."""
    answers = io.StringIO("y\n" * 9)
    if request.param == "nobody answers":
        answers.close()
    monkeypatch.setattr(sys, "stdin", answers)
    yield
    if not answers.closed:
        assert answers.tell() == 0, "something was asked"


@pytest.fixture
def with_code(backbones, tmp_path):
    """Return a function that copies a backbone, changes its files, and adds code that writes a file if it is run."""

    def make(kind: str, **changes: dict) -> Path:
        folder = shutil.copytree(backbones[kind], tmp_path / "own")
        for name, values in changes.items():
            hostile.edit_json(f"{name}.json", **values)(folder)
        marker = tmp_path / "ran"
        (folder / "own.py").write_text(
            f"from pathlib import Path\nPath({str(marker)!r}).write_text('ran')\n"
            "class Config: pass\nclass Model: pass\nclass Slow: pass\nclass Fast: pass\nclass Processor: pass\n"
        )
        return folder

    yield make
    assert not (tmp_path / "ran").exists(), "code of the folder has run"


UNKNOWN = {"model_type": "own", "auto_map": CODE}


@pytest.mark.parametrize(
    "kind,load,changes,asking",
    [
        ("bert", backbone.load_config, {"config": UNKNOWN}, "config.json asks"),
        ("bert", backbone.load_backbone, {"config": UNKNOWN}, "config.json asks"),
        ("vit", lambda name: backbone.load_backbone(name, "image"), {"config": UNKNOWN}, "config.json asks"),
        (
            "bert",
            backbone.load_tokenizer,
            {"config": {"model_type": "own"}, "tokenizer_config": {"auto_map": CODE, "tokenizer_class": "Own"}},
            "tokenizer_config.json asks",
        ),
        (
            "vit",
            backbone.load_image_processor,
            {"preprocessor_config": {"image_processor_type": "Own", "auto_map": CODE}, "config": UNKNOWN},
            "config.json and preprocessor_config.json asks",
        ),
    ],
    ids=["configuration", "text encoder", "image encoder", "tokenizer", "image processor"],
)
def test_a_folder_that_needs_its_own_code_is_refused(kind, load, changes, asking, with_code, standard_input):
    folder = with_code(kind, **changes)
    with pytest.raises(TransrecError, match=f"own: {asking} for Python code that comes with the model"):
        load(folder)


def test_a_model_built_from_a_configuration_runs_no_code(with_code, backbones, standard_input):
    from transformers import PreTrainedConfig

    config = PreTrainedConfig.from_pretrained(with_code("bert", config=UNKNOWN))
    with pytest.raises(ValueError, match="trust_remote_code"):
        backbone.build_backbone(config)


def test_a_folder_that_transformers_knows_without_its_code_is_loaded_without_it(with_code, backbones, standard_input):
    """Many published models keep their own code although transformers has included it since."""
    changes = {"config": {"auto_map": CODE}, "tokenizer_config": {"auto_map": CODE}}
    folder = with_code("bert", **changes)
    expected = backbone.load_backbone(backbones["bert"]).state_dict()
    loaded = backbone.load_backbone(folder)
    assert type(loaded).__name__ == "BertModel"
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    assert backbone.load_tokenizer(folder)("red lamp") == backbone.load_tokenizer(backbones["bert"])("red lamp")


def test_an_image_folder_that_transformers_knows_without_its_code_is_loaded_without_it(
    with_code, backbones, standard_input
):
    folder = with_code("vit", config={"auto_map": CODE}, preprocessor_config={"auto_map": CODE})
    assert type(backbone.load_backbone(folder, "image")).__name__ == "ViTModel"
    assert type(backbone.load_image_processor(folder)).__name__.startswith("ViTImageProcessor")
    config = backbone.load_config(folder, "image")
    assert backbone.load_preprocessing(folder, config) == backbone.load_preprocessing(backbones["vit"], config)


def test_a_hub_model_that_needs_its_own_code_is_refused(with_code, standard_input, tmp_path, monkeypatch):
    """The model is read from the hub's cache, where downloads are stored."""
    folder = with_code("bert", config=UNKNOWN)
    cached = tmp_path / "hub" / "models--some--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, cached / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for load in (backbone.load_config, backbone.load_backbone):
        with pytest.raises(TransrecError, match="some/model: its configuration asks for Python code that comes with"):
            load("some/model")


def test_code_named_for_a_part_of_a_configuration_is_refused(tmp_path):
    from transformers import CLIPConfig

    CLIPConfig(attn_implementation={"vision_config": "a/b"}).save_pretrained(tmp_path)
    hostile.edit_json("config.json", attn_implementation={"vision_config": "a/b"})(tmp_path)
    with pytest.raises(TransrecError, match=r"asks for code from a hub \(attn_implementation a/b\)"):
        backbone.load_config(tmp_path, "image")


@pytest.mark.usefixtures("quick_starts")
def test_a_program_over_a_folder_with_code_asks_nothing(with_code, flags, tmp_path):
    """Through the shell, with a user who types y."""
    folder = with_code("bert", config=UNKNOWN)
    script = REPOSITORY / "Downstream" / "Text" / "script" / "finetune.py"
    command = [sys.executable, script, *flags, "--text_encoder", folder, "--output", tmp_path / "run"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, input="y\ny\ny\n", timeout=120)
    assert done.returncode == 2 and "[y/N]" not in done.stdout + done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "config.json asks for Python code" in error and done.stderr.endswith(f"{error}\n")


@pytest.mark.parametrize("new_format", [True, False])
def test_weights_that_are_a_pickle_are_loaded_without_running_it(backbones, tmp_path, new_format):
    folder = shutil.copytree(backbones["bert"], tmp_path / "bert")
    (folder / "model.safetensors").unlink()
    expected = backbone.load_backbone(backbones["bert"]).state_dict()
    torch.save(expected, folder / "pytorch_model.bin", _use_new_zipfile_serialization=new_format)
    loaded = backbone.load_backbone(folder).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.items())

    marker = tmp_path / "ran"
    torch.save(
        expected | {"code": hostile.WritesWhenUnpickled(str(marker))},
        folder / "pytorch_model.bin",
        _use_new_zipfile_serialization=new_format,
    )
    with pytest.raises(TransrecError, match="bert"):
        backbone.load_backbone(folder)
    assert not marker.exists()
    # The code would have run without this protection.
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert marker.exists()


def test_transformers_speaks_again_when_a_folder_is_loaded(backbones):
    before = logging.get_verbosity()
    backbone.load_backbone(backbones["bert"])
    assert logging.get_verbosity() == before


# Files.


def test_a_link_to_a_regular_file_is_read(tmp_path):
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "link").symlink_to("file")
    check_regular(tmp_path / "link")
    assert read_regular(tmp_path / "link", 4) == b"text"
    with pytest.raises(TransrecError, match="has more than 3 bytes"):
        read_regular(tmp_path / "link", 3)
    with pytest.raises(FileNotFoundError):
        check_regular(tmp_path / "nothing")


def test_json_nested_deeply_is_a_value_error():
    assert parse_json('{"a": [1]}') == {"a": [1]}
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 10**6)


def test_lines_as_long_as_may_be_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tsv, "LONGEST_LINE", 10)
    (tmp_path / "a.tsv").write_bytes(b"12345678\t\n\n\xef\xbb\xbf345\n123456789")
    assert [number for number, _ in tsv.lines(tmp_path / "a.tsv", "users")] == [1, 3, 4]
    (tmp_path / "a.tsv").write_bytes(b"1\n12345678901\n1\n")
    with pytest.raises(TransrecError, match="line 2: has more than 10 bytes"):
        list(tsv.lines(tmp_path / "a.tsv", "users"))


def test_what_torch_saves_is_what_it_declares(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content = {
        "model_state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng_state": torch.get_rng_state(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "half": torch.ones(3).half(),
        "bfloat": torch.ones(3).bfloat16(),
        "empty": torch.empty(0),
        "view": torch.arange(100)[3:5],
        "complex": torch.ones(2, dtype=torch.complex64),
        "flags": torch.ones(2, dtype=torch.bool),
    }
    for name, new_format in (("new.pt", True), ("old.pt", False)):
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=new_format)
        check_torch_file(tmp_path / name)
        assert interop._load_state(tmp_path / name).keys() == model.state_dict().keys()


@pytest.mark.parametrize("count,fits", [(96, True), (97, False), (2**31 - 1, False)])
def test_a_storage_larger_than_its_record_is_refused_before_torch_reads_it(tmp_path, count, fits):
    """Some versions of torch read the memory behind the record."""
    (tmp_path / "a.pt").write_bytes(hostile.storage_that_claims(count))
    if fits:
        check_torch_file(tmp_path / "a.pt")
    else:
        with pytest.raises(TransrecError, match="tensor storage 0 would be larger"):
            check_torch_file(tmp_path / "a.pt")


def test_a_safetensors_header_is_read(backbones, tmp_path):
    header, start = safetensors_header(backbones["bert"] / "model.safetensors")
    end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    assert start + end == (backbones["bert"] / "model.safetensors").stat().st_size


@pytest.mark.parametrize("make", hostile.ENDLESS.values(), ids=hostile.ENDLESS)
def test_a_token_cache_that_is_no_file_is_made_anew(domain, backbones, tmp_path, make):
    catalog, tokenizer = read_catalog(domain / "items.tsv"), backbone.load_tokenizer(backbones["bert"])
    expected = cached_tokens(catalog, tokenizer, 10, True, tmp_path).input_ids
    (cache,) = tmp_path.iterdir()
    cache.unlink()
    make(cache)
    assert np.array_equal(cached_tokens(catalog, tokenizer, 10, True, tmp_path).input_ids, expected)
    assert cache.is_file() and not cache.is_symlink()


@pytest.mark.parametrize("make", hostile.ENDLESS.values(), ids=hostile.ENDLESS)
def test_hidden_states_in_the_making_that_are_no_files_are_begun_anew(tmp_path, make):
    builder = StateBuilder(tmp_path / "states", (3, 2, 4), "fp32", {"a": 1})
    make(builder.partial)
    assert builder.begin() == 0
    states = torch.arange(24.0).reshape(3, 2, 4)
    builder.write_block(0, states)
    builder.finish()
    assert np.array_equal(StateFile(tmp_path / "states", {"a": 1}).states, states)


@pytest.mark.parametrize("shape", [[2**32, 2**32, 1], [-1, 2, 3], ["a", 2, 3], [1.5, 2, 2], 7, None])
def test_hidden_states_of_an_absurd_shape(tmp_path, shape):
    metadata = {"transrec": json.dumps({"format": 1, "a": 1})}
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
    header = json.dumps({"__metadata__": metadata, "states": entry}).encode()
    (tmp_path / "states").write_bytes(hostile.tensors(header))
    with pytest.raises(TransrecError, match="states: "):
        StateFile(tmp_path / "states", {"a": 1})


# Images.


def test_the_size_of_a_jpeg_is_read_from_its_header(domain, tmp_path):
    for size, quality in ((7, 95), (224, 30)):
        build_store(domain / "items.tsv", domain / "images", tmp_path / f"{size}.lmdb", size, quality=quality)
        with lmdb.open(str(tmp_path / f"{size}.lmdb"), subdir=False, readonly=True, lock=False) as environment:
            value = environment.begin().get(b"S00001")
        assert jpeg_size(value) == (size, size)
        for end in range(len(value) - 1):
            if value[end] == 0xFF and value[end + 1] == 0xC0:
                break
            with pytest.raises(ValueError, match="not a JPEG"):
                jpeg_size(value[:end])


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_is_unpacked_by_what_can_be_stopped(domain, tmp_path, method):
    image = next((domain / "images").iterdir()).read_bytes()
    (tmp_path / "a.zip").write_bytes(hostile.zipped({"A.png": image}, method))
    source = Zip(tmp_path / "a.zip")
    (found,) = source.find({"A"})["A"]
    if method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        assert source.load(found, False)[0].size == (32, 32)
    else:
        with pytest.raises(Problem, match="compressed by something other than deflate"):
            source.load(found, False)


def test_the_largest_size(domain, tmp_path):
    with pytest.raises(TransrecError, match=f"--size {LARGEST_SIZE + 1}: must be from 1 to {LARGEST_SIZE} pixels"):
        build_store(domain / "items.tsv", domain / "images", tmp_path / "a.lmdb", LARGEST_SIZE + 1)


def test_no_spoilt_page_of_a_store_ends_in_anything_but_one_line(domain, tmp_path):
    whole = (domain / "images.lmdb").read_bytes()
    ids = [line.partition("\t")[0] for line in (domain / "items.tsv").read_text().splitlines()]
    random = np.random.default_rng(0)
    failed = 0
    for number in range(25):
        spoilt = bytearray(whole)
        for page in random.integers(0, len(whole) // 4096, random.choice([1, 3, 20])):
            spoilt[page * 4096 + random.integers(0, 80)] = random.integers(0, 256)
        path = tmp_path / f"{number}.lmdb"
        path.write_bytes(spoilt)
        # LMDB may crash on damaged pages, so it is read in a child process.
        if not (child := os.fork()):
            try:
                ImageStore(path).read(ids)
                os._exit(0)
            except TransrecError as error:
                os._exit(2 if str(path) in str(error) else 3)
            finally:
                os._exit(4)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, 2)
        failed += status == 2
        path.unlink()
    assert failed > 2


def test_a_record_of_the_original_programs_needs_no_more_than_it_has():
    for record in (
        b"\x80\x02Nr\xff\xff\xff\x7f.",
        b"\x80\x05\x96" + (2**34).to_bytes(8, "little") + b".",
        b"\x80\x04\x8e" + (2**60).to_bytes(8, "little") + b".",
        pickle.dumps(hostile.WritesWhenUnpickled("/tmp/ran")),
    ):
        with pytest.raises(TransrecError, match="not an image record"):
            original.read_original(record)


def test_a_spoilt_store_in_the_making_is_begun_anew(domain, tmp_path):
    partial = tmp_path / ".a.lmdb.partial"
    hostile.make_lmdb(partial, {b"x": b"y"})
    partial.write_bytes(partial.read_bytes()[:5000])
    assert build_store(domain / "items.tsv", domain / "images", tmp_path / "a.lmdb", 32).count == 150


# What is shown.

SIGNS = "\x1b[2J\x07\r\n\t\x9b\x85\u202e\u2066\u2028\ud800"


def test_text_is_made_printable():
    shown = printable(f"a {SIGNS} é 灯 😀 \\")
    assert shown.isprintable() and "\\x1b[2J\\x07\\r\\n\\t\\x9b\\x85\\u202e\\u2066\\u2028\\ud800 é 灯 😀 \\" in shown
    assert printable(shown) == shown


def test_an_error_is_one_printable_line_that_keeps_its_end():
    error = TransrecError(f"file{SIGNS}: {'x' * 10**6}; do this")
    assert str(error).isprintable() and len(str(error)) < LONGEST_MESSAGE + 10
    assert str(error).startswith("file\\x1b") and str(error).endswith("; do this")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_table_shows_what_would_be_markdown_html_or_control():
    cell = "<script>&|`a`[b](c)\\" + SIGNS
    table = markdown(["a", cell], [[cell, "1"]])
    assert len(table.splitlines()) == 3 and all(letter.isprintable() or letter == "\n" for letter in table)
    assert "&lt;script&gt;&amp;\\|\\`a\\`\\[b\\](c)\\\\" in table and "<" not in table
    # The only unescaped bars are the table's three own.
    assert all(line.replace("\\|", "").count("|") == 3 for line in table.splitlines())
    assert latex(["a", cell], [[cell, "1"]]).count("\n") == 6
    assert comma_separated([{"a": cell, "b": 1.5}]).count("\n") == 2


def test_a_run_over_a_folder_named_with_signs_writes_none(flags, domain, tmp_path, capsys):
    name = "set\x1b[31m\n\u202e"
    dataset = shutil.copytree(domain, tmp_path / name, ignore=shutil.ignore_patterns("images"))
    run([*flags, "--dataset", str(dataset), "--output", str(tmp_path / f"run{name}"), "--epochs", "1"])
    captured = capsys.readouterr()
    log = (tmp_path / f"run{name}" / "log.txt").read_text()
    for text in (captured.out, log):
        assert "set\\x1b[31m\\n\\u202e" in text and "\x1b" not in text and "\u202e" not in text


def test_a_dataset_is_checked_whatever_its_name(domain, tmp_path):
    name = "a$\\frac{<b>|\x1b[31m"
    dataset = shutil.copytree(domain, tmp_path / name)
    outcome = hostile.run_here(hostile.CHECK, [str(dataset), "--out", str(tmp_path)])
    assert outcome.status == 0, outcome.err
    assert "\x1b" not in outcome.out and "a$\\\\frac{&lt;b&gt;\\|\\\\x1b\\[31m" in outcome.out


def test_a_report_of_images_holds_no_signs(tmp_path):
    (tmp_path / "images").mkdir()
    for item, folder in (("A", "x\x1b[31m"), ("A", "y\u202e\n")):
        (tmp_path / "images" / folder).mkdir()
        (tmp_path / "images" / folder / f"{item}.png").write_bytes(b"")
    (tmp_path / "items.tsv").write_text("A\ttitle\n\x1b[31mB\u202e\ttitle\n")
    with pytest.raises(TransrecError, match="2 of 2 items"):
        build_store(tmp_path / "items.tsv", tmp_path / "images", tmp_path / "out.lmdb", 32)
    report = (tmp_path / "out.lmdb.report.tsv").read_text()
    assert report.count("\n") == 3 and all(letter.isprintable() or letter in "\t\n" for letter in report)
    assert "\\x1b[31mB\\u202e" in report


def test_a_study_shows_no_signs(domain, backbones, tmp_path):
    encoder = shutil.copytree(backbones["bert"], tmp_path / "b\x1b[31m|<i>")
    target = shutil.copytree(domain, tmp_path / "t\u202e", ignore=shutil.ignore_patterns("images"))
    where = ["--target", str(target), "--encoder", str(encoder), "--out", str(tmp_path / "out"), "--dry_run"]
    outcome = hostile.run_here("scripts/study_adapters.py", [*where, "--method", "full"])
    assert outcome.status == 0, outcome.err
    assert "b\\x1b[31m" in outcome.out and not hostile.CONTROL.search(outcome.out)


def test_a_hostile_file_is_told_of_by_the_name_it_was_given(tmp_path):
    os.mkfifo(tmp_path / "users.tsv")
    with pytest.raises(TransrecError, match=r"users\.tsv: is a pipe, and only regular files are read"):
        list(tsv.lines(tmp_path / "users.tsv", "users"))


def test_every_loader_of_transformers_is_told_to_run_no_code():
    calls = []
    for path in [path for folder in ("transrec", "scripts", "Dataset") for path in (REPOSITORY / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            # `partial(AutoConfig.from_pretrained, ...)` counts as a call, too.
            for function in [node.func, *node.args] if isinstance(node, ast.Call) else []:
                if re.fullmatch(r"Auto\w+\.(from_pretrained|from_config)", ast.unparse(function)):
                    calls.append(f"{path.name}: {ast.unparse(node)}")
    assert len(calls) >= 6
    assert [call for call in calls if "trust_remote_code=False" not in call] == []
