"""Command lines: the meaning of flags, their help, and mistakes reported in one line."""

import dataclasses
import re
import runpy
import sys
from dataclasses import dataclass

import pytest
from conftest import REPOSITORY

from transrec import settings
from transrec.arguments import Parser
from transrec.errors import TransrecError
from transrec.models.objectives.in_batch import InBatchObjective
from transrec.options import Options
from transrec.options import flag as new_flag

TEXT = "Downstream/Text/script"
STUDIES = [f"scripts/study_{name}.py" for name in ("adapters", "insertion", "scaling", "iisan")]


def parse(*words: str, method: str = "houlsby", **defaults) -> dict:
    return settings.parse(["--dataset", str(REPOSITORY), *words], method, defaults).as_dict()


@pytest.fixture
def run_script(monkeypatch, capsys):
    """Return a function that runs a script in this process; it returns exit status, output and errors."""

    def call(script: str, *words: str) -> tuple[int | str | None, str, str]:
        monkeypatch.setattr(sys, "argv", [script, *words])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(REPOSITORY / script), run_name="__main__")
        return left.value.code, *capsys.readouterr()

    return call


@pytest.mark.parametrize(
    "words,changed",
    [
        (["--no_lower_case"], {"lower_case": False}),
        (["--no-lower-case"], {"lower_case": False}),
        (["--lower_case", "false"], {"lower_case": False}),
        (["--lower-case=No"], {"lower_case": False}),
        (["--no_lower_case", "--lower_case"], {}),
        (["--compile"], {"compile": True}),
        (["--compile", "1", "--no_compile"], {}),
        (["--cutoffs", "3", "1"], {"cutoffs": [1, 3, 10]}),
        (["--cutoffs=3"], {"cutoffs": [3, 10]}),
        (["--mask-history=none"], {"mask_history": "none"}),
        (["--epochs", "7", "--lr", "1e-2"], {"epochs": 7, "lr": 0.01}),
        (["--resume", "--output", "somewhere-new"], {"resume": "somewhere-new"}),
    ],
)
def test_ways_to_give_a_flag(words, changed):
    defaults, values = parse(), parse(*words)
    assert {k: v for k, v in values.items() if v != defaults[k] and k != "output"} == changed


def test_scripts_defaults_are_turned_off_too():
    assert parse()["cached"] == "auto" and parse(cached="yes")["cached"] == "yes"
    for words, cached in (
        ("--cached", "yes"),
        ("--cached true", "yes"),
        ("--cached=false", "no"),
        ("--no_cached", "no"),
    ):
        assert parse(*words.split(), cached="auto")["cached"] == cached, "as command lines of earlier releases say it"
    assert parse("--dtype", "fp32", method="iisan")["state_dtype"] == "fp32", "by its other name"


def test_every_flag_has_a_help_that_stands_alone():
    owned = [kind.get(name).Options for kind in settings.KINDS for name in kind.names()]
    for options in (*settings.GROUPS, *owned):
        for field in dataclasses.fields(options):
            help = field.metadata["help"]
            assert help.endswith((".", ")", "...")), field.name
            first, second, *_ = help.split()
            assert first not in ("Their", "They", "It", "Its", "That", "This") and second != "same", field.name


def test_flags_of_an_entry_are_there_where_it_is_chosen():
    assert "gather_items" not in parse()
    assert parse("--objective", "in_batch", "--no_gather_items")["gather_items"] is False
    assert parse(objective="in_batch", gather_items=False)["gather_items"] is False
    assert "gather_items" not in parse("--objective", "cpc", objective="in_batch", gather_items=False)
    with pytest.raises(TypeError, match="gather_items"):
        parse("--objective", "in_batch", gather_items=False)


def test_entries_may_not_share_a_flag(monkeypatch):
    @dataclass(frozen=True)
    class Clash(Options):
        heads: int = new_flag(1, "Whatever.")

    monkeypatch.setattr(InBatchObjective, "Options", Clash)
    parse()
    places = r"objective in_batch \(.*in_batch\.py:\d+\) and of user encoder sasrec \(.*sasrec\.py:\d+\)"
    with pytest.raises(TransrecError, match=f"^--heads: is a flag of {places}; give one of them another name$"):
        parse("--objective", "in_batch")


@pytest.fixture
def help_of(run_script):
    def call(script: str, flag: str = "--help") -> str:
        status, text, _ = run_script(script, flag)
        assert status == 0
        return " ".join(text.split())

    return call


def test_help_says_what_turns_a_flag_off(help_of):
    text = help_of(f"{TEXT}/adapter_houlsby.py", "--help-all")
    assert "Lower-case titles before they are tokenised. (default: true; --no_lower_case turns it off)" in text
    assert "--no_lower_case " not in text.replace("--no_lower_case turns", ""), "no entry that says the opposite"
    assert "instead of loading its pretrained ones. (default: false)" in text
    assert "10 is always among them. (default: 5 10 20)" in text
    assert "--text-encoder" not in text
    assert "Houlsby" in text, "what the script is, as its first lines say"


def test_help_shows_the_common_flags_and_where_all_are(help_of):
    text = help_of("Downstream/CV/script/sm_vit_adapter.py")
    shown = re.findall(r" --([a-z_]+) (?=[A-Z{\[])", text.partition("what most runs set:")[2])
    assert shown == [name for name in settings.COMMON if name != "text_encoder"], "a flag of another modality"
    assert "Houlsby" in text and "show all flags, in groups, and exit" in text
    assert "(default: 0.0004)" in text and "(default: 8)" in text, "the presets of images"
    every = help_of("Downstream/CV/script/sm_vit_adapter.py", "--help-all")
    known = settings.flags(method="houlsby", item_tower="image") | {"method"}
    assert all(f"--{name} " in every for name in known), "data, model, training, evaluation, run and method"
    assert "--adapter_lr" not in help_of(f"{TEXT}/finetune.py")


@pytest.mark.parametrize(
    "words,expected",
    [
        (["--vectors", "x.npy"], "--vectors: no flag of modality text, but of vector"),
        (["--item_tower", "image", "--title_tokens", "9"], "--title_tokens: no flag of modality image, but of text"),
        (["--modalities", "id", "--no_lower_case"], "--no_lower_case: no flag of modality id, but of text"),
        (["--item_tower", "multimodal", "--vectors", "x"], "--vectors: no flag of modality text, image, but of vector"),
    ],
)
def test_a_flag_of_a_modality_that_is_not_chosen(words, expected):
    with pytest.raises(TransrecError) as caught:
        parse(*words)
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    "script,flags",
    [
        (f"{TEXT}/finetune.py", ["--dataset DATASET Dataset folder (required)"]),
        (
            "scripts/export_backbone.py",
            ["--run RUN folder of a finished run (required)", "--out OUT folder to write (required)"],
        ),
        ("scripts/split_users.py", ["dataset folder to split (required)"]),
        ("scripts/study_adapters.py", ["dataset folder to adapt to (required)"]),
        ("Dataset/build_lmdb.py", ["--items ITEMS items file with item_id<TAB>title per line (required)"]),
    ],
)
def test_required_flags_say_so(help_of, script, flags):
    text = help_of(script)
    for flag in flags:
        assert flag in text


def test_quickstart_prints_help_instead_of_running(run_script, monkeypatch):
    monkeypatch.setattr("transrec.data.demo.make_demo", lambda *_: pytest.fail("it ran"))
    status, text, _ = run_script("scripts/quickstart.py", "--help")
    assert status == 0 and text.startswith("usage: quickstart.py")


@pytest.mark.parametrize(
    "script,words,message",
    [
        (f"{TEXT}/finetune.py", ["--epcohs", "3"], "--epcohs: no such flag; did you mean --epochs? --help-all lists"),
        (f"{TEXT}/finetune.py", ["-epochs", "3"], "-epochs: no such flag; did you mean --epochs?"),
        (f"{TEXT}/finetune.py", ["--no_lowercase"], "did you mean --no_lower_case or --lower_case?"),
        (
            f"{TEXT}/finetune.py",
            ["--adapter_lr", "1"],
            "--adapter_lr: no flag of method full, but of bitfit,",
        ),
        (
            f"{TEXT}/finetune.py",
            ["--no-gather-items"],
            "--no-gather-items: no flag of objective bce, but of in_batch",
        ),
        (
            f"{TEXT}/finetune.py",
            ["--objective", "cp"],
            "--objective cp: unknown; did you mean cpc? choose from bce, bpr, cpc, ",
        ),
        (f"{TEXT}/finetune.py", ["--user_encoder", "gru"], "--user_encoder gru: unknown; did you mean gru4rec?"),
        (f"{TEXT}/finetune.py", ["--epochs"], "--epochs: expected one argument"),
        (f"{TEXT}/finetune.py", ["--epochs", "many"], "--epochs: 'many' is not a whole number"),
        (f"{TEXT}/finetune.py", ["--lr", "1e-"], "--lr: '1e-' is not a number"),
        (f"{TEXT}/finetune.py", ["--compile", "maybe"], "--compile: 'maybe' is neither true nor false"),
        (f"{TEXT}/finetune.py", ["--precision", "fp8"], "--precision: 'fp8' is none of auto, fp32, bf16, fp16"),
        (f"{TEXT}/finetune.py", ["--cutoffs"], "--cutoffs: expected at least one argument"),
        (f"{TEXT}/finetune.py", ["stray"], "unknown: stray; --help shows how to call this"),
        ("Downstream/Multimodal/script/run_IISAN.py", ["--dtype", "x"], "--state_dtype: 'x' is none of fp16, fp32"),
        ("scripts/cache_features.py", ["--datset", "x"], "--datset: no such flag; did you mean --dataset?"),
        ("scripts/quickstart.py", ["--hepl"], "--hepl: no such flag; did you mean --help?"),
        ("scripts/check_dataset.py", ["--max_seq_lne", "3", "x"], "did you mean --max_seq_len"),
        ("scripts/check_dataset.py", [], "PATH: missing; --help says what to give"),
        ("scripts/split_users.py", ["--out", "x"], "--dataset: missing; --help says what to give"),
        ("scripts/split_users.py", ["--out", "x", "--dataset", "x", "--share", "2"], "--share 2.0: must be above 0"),
        ("scripts/export_backbone.py", [], "--run, --out: missing; --help says what to give"),
        ("scripts/report.py", ["--out", "x"], "RUN_OR_STUDY: missing; --help says what to give"),
        ("scripts/report.py", ["nowhere", "--out", "x.html"], "nowhere"),
        ("scripts/efficiency.py", ["--weigths", "1"], "--weigths: no such flag; did you mean --weights?"),
        ("scripts/efficiency.py", ["--epcohs", "1"], "--epcohs: no such flag; did you mean --epochs?"),
        ("scripts/efficiency.py", ["--methods", "run_ftf"], "--methods: 'run_ftf' is none of run_fft, run_adapter"),
        ("Dataset/build_lmdb.py", ["--item", "x"], "--item: no such flag; did you mean --items?"),
        ("Dataset/fetch_images.py", ["--link", "x"], "--link: no such flag; did you mean --links?"),
        ("Dataset/build_lmdb.py", ["--items", "x", "--out", "x"], "one of the arguments --images --import_original"),
        *((study, ["--target", "x", "--epcohs", "3"], "did you mean --epochs") for study in STUDIES),
        *((study, [], "--target: missing; --help says what to give") for study in STUDIES),
        (STUDIES[0], ["--traget", "x"], "--traget: no such flag; did you mean --target"),
        (STUDIES[0], ["--target", "x", "--workrs", "3"], "--workrs: no such flag; did you mean --workers?"),
        (STUDIES[0], ["--target", "x", "--source.epcohs", "3"], "--epcohs: no such flag; did you mean --epochs?"),
        (STUDIES[0], ["--target", "x", "--modality", "txt"], "--modality: 'txt' is none of text, image, multimodal"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_told_in_one_line(run_script, monkeypatch, script, words, message):
    monkeypatch.setattr("transrec.data.demo.make_demo", lambda *_: pytest.fail("it ran"))
    status, output, errors = run_script(script, *words)
    assert status == 2 and not output
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert message in errors


def test_a_parser_leaves_values_alone():
    parser = Parser()
    parser.add_argument("--size_of", type=float)
    parser.add_argument("--name")
    assert vars(parser.parse_args(["--size-of", "-1.5", "--name=--a-b"])) == {"size_of": -1.5, "name": "--a-b"}
    with pytest.raises(TransrecError, match="--name: expected one argument"):
        parser.parse_args(["--name", "--size_of", "3"])
