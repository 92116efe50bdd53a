"""Presets: scripts, methods and studies take the papers' settings from one place, and record who sets a value."""

import json
import runpy
from pathlib import Path

import pytest
from conftest import REPOSITORY, fitting

from transrec import methods, presets, runner, settings
from transrec.errors import TransrecError
from transrec.options import ModelOptions
from transrec.reports import defaults
from transrec.studies import Axis, Grid, Study

RECORDED = json.loads((REPOSITORY / "tests" / "script_options.json").read_text())
FOLDERS = {"text": "Text", "image": "CV", "multimodal": "Multimodal"}
# Flags for where a run stores files, and whether hidden states are computed once, which IISAN's scripts decide.
PLACES = {"output", "state_cache", "cached"}
# Scripts that set more than a method and a modality; only the script decides these settings.
OF_THEIR_OWN = {"run_IISAN_cached.py", "run_IISAN_versa.py", "id_baseline.py"}


@pytest.fixture
def call_of(monkeypatch):
    """Return a function that gives the method and the defaults of a script's one call."""

    def call(script: Path) -> tuple[str, dict]:
        calls = []
        monkeypatch.setattr(runner, "adapt", lambda method, **script_defaults: calls.append((method, script_defaults)))
        monkeypatch.setattr(runner, "pretrain", lambda **script_defaults: calls.append(("full", script_defaults)))
        runpy.run_path(str(script), run_name="__main__")
        return calls.pop()

    return call


def parse(*words: str, method: str = "full", **script_defaults) -> settings.Settings:
    return settings.parse(["--dataset", str(REPOSITORY), *words], method, script_defaults)


@pytest.mark.parametrize("script", [name for name in RECORDED if name.endswith(".py")])
def test_every_script_runs_at_the_settings_on_record(script, call_of):
    method, script_defaults = call_of(REPOSITORY / script)
    options = parse(method=method, **script_defaults).as_dict()
    recorded = RECORDED[""] | RECORDED[script]
    for modality in ModelOptions(item_tower=recorded["item_tower"]).modality_names:
        recorded = RECORDED.get(modality, {}) | recorded
    assert {name: options[name] for name in recorded} == recorded


@pytest.fixture
def encoder_words(backbones) -> list[str]:
    return ["--text_encoder", str(backbones["bert"]), "--image_encoder", str(backbones["vit"]), "--title_tokens", "9"]


@pytest.mark.parametrize("modality", FOLDERS)
def test_a_method_over_a_modality_is_the_same_whoever_runs_it(modality, call_of, domain, encoder_words, tmp_path):
    def options(words, method, script_defaults) -> dict:
        tower = script_defaults.get("item_tower", modality)
        fit = fitting([*encoder_words, "--item_tower", tower])
        every = settings.parse(["--dataset", str(domain), *fit, *words], method, script_defaults).as_dict()
        return {name: value for name, value in every.items() if name not in PLACES}

    folder = REPOSITORY / "Downstream" / FOLDERS[modality] / "script"
    calls = [call_of(script) for script in sorted(folder.glob("*.py")) if script.name not in OF_THEIR_OWN]
    calls.append(("full", {"item_tower": modality}))
    words = fitting([*encoder_words, "--item_tower", modality])[:-2]
    given = dict(zip((word[2:] for word in words[::2]), ([value] for value in words[1::2]), strict=True))
    grid = Grid((Axis("method", tuple(methods.names())),))
    study = Study(None, domain, tmp_path, grid, [0], {("", name): value for name, value in given.items()}, modality)
    # With --method, scripts that set the same values are the same call.
    unlike = {json.dumps(script_says): (method, script_says) for method, script_says in calls}
    for point, (job,) in study.rows:
        name = point["method"]
        words = job.command[2:]
        expected = options(words[: words.index("--output")], "full", {})
        for method, script_says in unlike.values():
            assert options(["--method", name], method, script_says) == expected, (name, method)
        for method, script_says in calls:
            if method == name:
                assert options([], method, script_says) == expected, name


def test_no_method_runs_at_settings_unlike_its_siblings():
    """Each once had the settings of a script or of another modality in a study, for lack of a script of its own."""

    def values_of(method: str, modality: str, *names: str) -> tuple:
        options = parse("--method", method, "--item_tower", modality).as_dict()
        return tuple(options[name] for name in names)

    for method in ("houlsby", "parallel", "pfeiffer", "pfeiffer_attention"):
        assert values_of(method, "image", "adapter_lr", "batch_size") == (4e-4, 8)
    adapters = {name for name in methods.names() if issubclass(methods.get(name).Options, methods.InsertOptions)}
    for method in adapters:
        assert values_of(method, "multimodal", "insert", "adapter_lr", "objective", "max_seq_len") == (
            *("item", 1e-4),
            *("in_batch", 10),
        )
    for modality in FOLDERS:
        assert values_of("iisan", modality, "lr", "adapter_lr", "batch_size") == (2e-4, 1e-4, 64)


def test_who_decides_a_value_and_in_which_order(tmp_path, domain, backbones):
    def decided(*words: str, method: str = "iisan", **script_defaults) -> tuple:
        parsed = parse(*words, method=method, **script_defaults)
        return parsed.training.batch_size, parsed.set_by.get("batch_size")

    assert decided(method="houlsby", item_tower="text") == (32, None)
    assert decided(method="houlsby", item_tower="image") == (8, "preset of images")
    assert decided(item_tower="image") == (64, "preset of iisan")
    assert decided(item_tower="image", batch_size=5) == (5, "script")
    assert decided("--batch_size", "6", item_tower="image", batch_size=5) == (6, "command line")
    assert parse(method="kadapter", item_tower="image").set_by == {
        "dataset": "command line",
        "item_tower": "script",
        "adapter_lr": "preset of kadapter over images",
        "item_size": "preset of kadapter over images",
        "batch_size": "preset of images",
    }
    several = parse("--modalities", "image", "text", "id", method="houlsby", item_tower="text")
    assert several.set_by["adapter_lr"] == "preset of several modalities" and several.model.objective == "in_batch"
    assert several.set_by["item_tower"] == "command line"
    # A preset for a flag that the run does not have is ignored; the method chosen on the command line counts.
    assert "insert" not in parse("--item_tower", "multimodal", method="full").as_dict()
    assert parse("--method", "lora", method="houlsby", item_tower="multimodal").as_dict()["item_rank"] == 8

    run = tmp_path / "run"
    run.mkdir()
    stored = parse("--text_encoder", str(backbones["bert"]), method="houlsby", batch_size=5)
    options = stored.as_dict() | {"set_by": stored.set_by, "output": str(run)}
    (run / "options.json").write_text(json.dumps(options | {"digest": settings.digest(options)}))
    resumed = settings.parse(["--resume", str(run), "--epochs", "7"], "iisan", {"item_tower": "image"})
    assert (resumed.method, resumed.training.batch_size, resumed.training.epochs) == ("houlsby", 5, 7)
    assert resumed.set_by["batch_size"] == "script", "as the run was begun"
    assert resumed.set_by["epochs"] == "command line"


def test_who_decided_is_stored_and_told_and_decides_nothing(domain, flags, tmp_path, capsys):
    parsed = settings.parse(
        [*flags, "--epochs", "1", "--output", str(tmp_path)], "pfeiffer", {"train_recommender": "yes"}
    )
    runner.execute(parsed)
    stored = json.loads((tmp_path / "options.json").read_text())
    assert stored["set_by"]["train_recommender"] == "script" and stored["set_by"]["epochs"] == "command line"
    output = capsys.readouterr().out
    assert "script: train_recommender yes" in output and "command line: " in output
    assert "set_by" not in settings.result_options(stored)
    assert settings.digest(stored) == stored["digest"] == settings.digest(stored | {"set_by": {}})


@pytest.fixture
def presets_file(tmp_path):
    """Return a function that writes a file of presets."""

    def write(content) -> str:
        (tmp_path / "best.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return str(tmp_path / "best.json")

    return write


def test_a_file_of_presets_goes_before_scripts_and_papers(presets_file, domain, backbones, tmp_path):
    best = {"iisan": {"image": {"batch_size": 3, "objective": "cpc"}, presets.EVERY: {"batch_size": 4, "lr": 1}}}
    words = ("--presets", presets_file(best | {"lora": {"text": {"item_rank": 5, "adapter_lr": 0.5}}}))
    parsed = parse(*words, method="iisan", item_tower="image", batch_size=5, protocol="published")
    assert (parsed.training.batch_size, parsed.training.lr, parsed.model.objective) == (3, 1, "cpc")
    assert parsed.set_by["batch_size"] == "--presets for iisan over images"
    assert parse(*words, "--batch_size", "6", method="iisan", item_tower="image").training.batch_size == 6
    assert parse(*words, method="iisan", item_tower="text").training.batch_size == 4
    assert parse(*words, method="houlsby", item_tower="image").training.batch_size == 8

    given = {("", "presets"): [words[1]], ("", "text_encoder"): [str(backbones["bert"])]}
    grid = Grid((Axis("method", ("lora", "houlsby")),))
    with_file = Study(None, domain, tmp_path, grid, [0], given)
    without = Study(None, domain, tmp_path, grid, [0], {("", "text_encoder"): [str(backbones["bert"])]})
    (lora, houlsby), (other_lora, same_houlsby) = with_file.jobs, without.jobs
    assert lora.folder != other_lora.folder and houlsby.folder == same_houlsby.folder
    # The options.json of a run holds the values that it used, so the run is resumed without the file.
    run = tmp_path / "run"
    run.mkdir()
    parsed = parse(*words, "--text_encoder", str(backbones["bert"]), method="lora")
    options = parsed.as_dict() | {"set_by": parsed.set_by, "output": str(run)}
    (run / "options.json").write_text(json.dumps(options | {"digest": settings.digest(options)}))
    Path(words[1]).unlink()
    resumed = settings.parse(["--resume", str(run)], "full", {})
    assert resumed.method_options.as_dict()["item_rank"] == 5


@pytest.mark.parametrize(
    "content,message",
    [
        ("{", "is not JSON"),
        ([], "must hold an object with names, not list"),
        ({"lora": 3}, "presets of lora: must be a dict by modality, not 3"),
        ({"lora": {"text": 3}}, "--presets for lora over titles: must be a dict of values by flag, not 3"),
        ({"hulsby": {"text": {}}}, "over titles: method hulsby: unknown; did you mean houlsby? choose from"),
        ({"lora": {"txt": {}}}, "--presets for lora over txt: modality txt: unknown; did you mean text? choose from"),
        ({"lora": {"text": {"objective": "bpt"}}}, "over titles: --objective bpt: unknown; did you mean bpr? choose"),
        ({"lora": {"text": {"metrics": ["mmr"]}}}, "over titles: --metrics mmr: unknown; did you mean mrr? choose"),
        ({"lora": {"text": {"user_encoder": 3}}}, "over titles: --user_encoder 3: must be text"),
        ({"lora": {"text": {"item_rnak": 3}}}, "--presets for lora over titles: --item_rnak: no run of it has such"),
        ({"lora": {"text": {"item_rank": 0}}}, "--presets for lora over titles: --item_rank 0: must be at least 1"),
        ({"lora": {"text": {"output": "x"}}}, "--output: a preset cannot set it"),
    ],
)
def test_a_damaged_file_of_presets_is_told(presets_file, content, message):
    path = presets_file(content)
    with pytest.raises(TransrecError) as error:
        parse("--presets", path, method="lora")
    assert message in str(error.value) and str(error.value).startswith(path)
    with pytest.raises(TransrecError, match=r"nowhere\.json: cannot be read .*--presets"):
        parse("--presets", "nowhere.json")


@pytest.mark.parametrize(
    "table,method,entry,message",
    [
        (
            "METHODS",
            "hulsby",
            {"text": {"lr": 1.0}},
            "over titles: method hulsby: unknown; did you mean",
        ),
        (
            "METHODS",
            "houlsby",
            {"txt": {"lr": 1.0}},
            "over txt: modality txt: unknown; did you mean text",
        ),
        ("METHODS", "houlsby", {"text": {"adapter_rl": 1.0}}, "--adapter_rl: no run of it has such a flag"),
        ("METHODS", "full", {"text": {"adapter_lr": 1.0}}, "--adapter_lr: no run of it has such a flag"),
        ("METHODS", "houlsby", {"text": {"adapter_lr": "fast"}}, "--adapter_lr 'fast': must be a number"),
        ("MODALITIES", "image", {"batch_size": 0}, "--batch_size 0: must be at least 1"),
        ("METHODS", "houlsby", {"text": {"dataset": "/x"}}, "--dataset: a preset cannot set it"),
    ],
)
def test_a_preset_that_means_nothing_is_told_at_once(monkeypatch, table, method, entry, message):
    monkeypatch.setitem(getattr(presets, table), method, entry)
    with pytest.raises(TransrecError) as error:
        parse(method="lora")
    assert message in str(error.value) and str(error.value).startswith(presets.__file__)


def test_a_method_from_outside_brings_its_presets(monkeypatch):
    bitfit = methods.get("bitfit")
    monkeypatch.setattr(bitfit, "presets", {"image": {"adapter_lr": 3e-3}, presets.EVERY: {"lr": 7e-4}})
    over_images, over_titles = (parse(method="bitfit", item_tower=modality) for modality in ("image", "text"))
    assert over_images.set_by["adapter_lr"] == "preset of bitfit over images"
    assert over_images.method_options.adapter_lr == 3e-3 and over_titles.method_options.adapter_lr == 4e-4
    assert over_titles.training.lr == over_images.training.lr == 7e-4
    monkeypatch.setattr(bitfit, "presets", {"image": {"adapter_rl": 3e-3}})
    with pytest.raises(TransrecError, match=r"methods/parts\.py:\d+: preset of bitfit over images: --adapter_rl"):
        parse(method="lora")
    monkeypatch.setattr(bitfit, "presets", {"image": 3})
    with pytest.raises(TransrecError, match=r"methods/parts\.py:\d+: preset of bitfit over images: must be a dict"):
        parse(method="lora")


def test_the_table_of_defaults_is_true():
    path = REPOSITORY / "docs" / "defaults.md"
    assert path.read_text() == defaults.page(), "python -m transrec.reports.defaults > docs/defaults.md"
