"""The papers' tables as commands: planning and running them, and published figures next to ours."""

import csv
import runpy
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from transrec import assembly
from transrec.errors import TransrecError
from transrec.reports.published import COLUMNS, SHIPPED, TO_FILL_IN, read_published, select
from transrec.reports.tpme import tpme, tpme_column
from transrec.studies import Axis, Grid, Study
from transrec.studies.grids import METHODS
from transrec.studies.papers import ADAPTER4REC, IISAN

# By script: numbers of rows and of source runs, over the paper's first modality.
TABLES = {
    "adapter4rec_full": (8, 4),
    "adapter4rec_methods": (12, 2),
    "adapter4rec_place": (5, 1),
    "adapter4rec_design": (12, 1),
    "adapter4rec_scaling": (16, 4),
    "iisan_performance": (6, 0),
    "iisan_ablations": (8, 0),
    "iisan_modalities": (6, 0),
    "iisan_backbones": (8, 0),
    "iisan_versa": (2, 0),
}
# Tables whose grid differs over images.
OVER_IMAGES = ("adapter4rec_full", "adapter4rec_methods")


@pytest.fixture
def reproduce(monkeypatch, capsys):
    """Return a function that runs a table's script in this process; it returns exit status, output and errors."""

    def call(name: str, *words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(REPOSITORY / "scripts" / "reproduce" / f"{name}.py"), run_name="__main__")
        return left.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def own(tmp_path):
    """Return a function that writes a file of figures with the given lines and returns its path."""

    def write(*lines: str, header: str = ",".join(COLUMNS)) -> Path:
        path = tmp_path / "own.csv"
        path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
        return path

    return write


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_quick_form_runs_and_shows_published_figures_beside_ours(reproduce, own, quick_starts, tmp_path):
    figures = own("IISAN,performance,target,,in_batch,iisan_cached,HR@10,0.9,made up for a test")
    words = ["--method", "iisan_cached", "iisan_uncached", "--published", str(figures), "--out", str(tmp_path)]
    status, output, errors = reproduce("iisan_performance", "--quick", *words)
    assert status == 0, errors
    assert output.startswith("table       IISAN, performance, by the authors' settings (") and "quick       " in output
    assert "iisan_cached: peak_memory_gb 3 and seconds_per_epoch 22; hours in all and the GPU: not known" in output
    cached, uncached = _rows(tmp_path)
    assert (cached["published seconds_per_epoch"], cached["published HR@10"]) == ("22", "0.9")
    assert float(cached["HR@10 less published"]) == pytest.approx(float(cached["HR@10"]) - 0.9)
    seconds = float(cached["seconds_per_epoch"])
    assert float(cached["seconds_per_epoch less published"]) == pytest.approx(seconds - 22)
    assert not any(value for name, value in uncached.items() if "published" in name)
    assert cached["trainable_parameters"] == uncached["trainable_parameters"]
    measured = [
        [float(row[name]) for row in (cached, uncached)]
        for name in ("seconds_per_epoch", "trainable_parameters", "peak_memory_mib")
    ]
    assert [float(row["TPME"]) for row in (cached, uncached)] == pytest.approx(tpme(*measured))
    table = (tmp_path / "table.md").read_text()
    assert TO_FILL_IN in table and "IISAN: made up for a test" in table and "TPME: IISAN's composite" in table
    assert "--protocol published" in output and "--cached yes" in output


def test_every_table_has_a_grid_that_its_runs_know(reproduce, tmp_path, monkeypatch):
    """Every flag of each grid exists in its runs. Only running them shows whether sizes fit backbones."""
    monkeypatch.setattr(assembly, "check_fit", lambda plan: None)
    scripts = {path.stem for path in (REPOSITORY / "scripts" / "reproduce").glob("*.py")}
    assert scripts == TABLES.keys()
    asked = [(name, []) for name in TABLES] + [(name, ["--modality", "image"]) for name in OVER_IMAGES]
    for name, words in asked:
        status, output, errors = reproduce(name, "--quick", "--dry_run", "--out", str(tmp_path), *words)
        assert status == 0, errors
        rows, sources = TABLES[name]
        assert f"{rows} rows, {rows + sources} runs of which 0 are done" in output, name
        runs = [line for line in output.splitlines() if line.startswith("$ ")]
        assert len(runs) == rows + sources and all("--protocol published --epochs 1 " in line for line in runs), name
    assert not (tmp_path / "runs").exists()


@pytest.mark.long
@pytest.mark.parametrize("name", TABLES)
def test_the_quick_form_of_every_table(name, reproduce, quick_starts, tmp_path):
    for modality in ("text", "image") if name.startswith("adapter4rec") else ("multimodal",):
        out = tmp_path / modality
        status, output, errors = reproduce(name, "--quick", "--modality", modality, "--out", str(out))
        assert status == 0, output + errors
        assert len([row for row in _rows(out) if row["stage"] == "target"]) == TABLES[name][0]


@pytest.mark.parametrize(
    "words,message",
    [
        (["--modality", "multimodal"], "--modality: 'multimodal' is none of text, image"),
        (["--target", "/nowhere", "--source", "/nowhere"], "/nowhere: no such dataset folder"),
        (["--published", "/nowhere"], "/nowhere: cannot be read"),
        (["--qiuck"], "--qiuck: no such flag; did you mean --quick?"),
    ],
)
def test_mistakes_are_told(reproduce, words, message):
    status, _, errors = reproduce("adapter4rec_full", *words)
    assert status == 2 and message in errors


def test_the_papers_sets_are_where_the_page_of_datasets_puts_them(reproduce, monkeypatch, tmp_path):
    monkeypatch.setattr("transrec.paths.REPOSITORY", tmp_path)
    monkeypatch.chdir(tmp_path)
    status, output, errors = reproduce("adapter4rec_full", "--modality", "image")
    assert status == 2 and "Dataset/HM: no such dataset folder" in errors
    assert "datasets    Dataset/HM to pretrain on, Dataset/Amazon;" in output
    assert "backbones   google/vit-base-patch16-224, facebook/vit-mae-base\n" in output
    page = (REPOSITORY / "Dataset" / "README.md").read_text(encoding="utf-8")
    papers = (ADAPTER4REC, IISAN)
    folders = {name for paper in papers for pair in paper.domains.values() for name in pair if name}
    assert len(folders) == 5 and all(f"mkdir -p {folder}" in page for folder in folders)


def test_values_that_set_flags_by_name(domain, backbones, tmp_path):
    """Flags set by a value of the method axis apply only to the runs of that value."""
    bert = str(backbones["bert"])
    named = {"twice": {"method": "lora:published", "adapter_lr": "1e-2", "cached": "no"}}
    grid = Grid((Axis("method", ("houlsby", "twice"), named=named), Axis("text_encoder", (bert,))))
    given = {("", "max_seq_len"): ["6"], ("", "adapter_lr"): ["1e-3"]}
    study = Study(domain, domain, tmp_path, grid, [0], given)
    (source,) = [job for _, job in study.sources.values()]
    houlsby, twice = [job for _, (job,) in study.rows]
    assert not source.flags.keys() & {"adapter_lr", "cached", "variant"}
    assert (houlsby.flags["adapter_lr"], "cached" in houlsby.flags) == (["1e-3"], False)
    wanted = {"method": ["lora"], "variant": ["published"], "adapter_lr": ["1e-2"], "cached": ["no"]}
    assert wanted.items() <= twice.flags.items()
    with pytest.raises(KeyError):
        METHODS.with_values(mehtod=("full",))


def test_the_figures_that_are_shipped():
    figures = read_published(SHIPPED)
    assert len(figures) == 12 and len({figure.paper for figure in figures}) == 3
    assert {figure.paper for figure in select(None, "iisan", "Performance").figures} == {"IISAN"}
    assert not select(None, "IISAN", "ablations").figures and not select(None, "Adapter4Rec", "full").figures
    row = {"dataset": "ml-1m", "encoder": "id", "objective": "sampled_softmax", "method": "full"}
    assert {metric: figure.value for metric, figure in select(None).matching(row).items()} == {
        "HR@10": "0.2853",
        "NDCG@10": "0.1603",
    }
    assert not select(None).matching(row | {"objective": "bce"})
    assert '"reports/published.csv"' in (REPOSITORY / "setup.py").read_text(encoding="utf-8")


def test_which_rows_a_figure_is_of(own):
    path = own(
        "P,t,D,google/vit-base,bce,lora:published,HR@10,0.2,s",
        "P,t,D,,bce,lora,HR@10,0.1,s",
        'P,,,"bert,vit-base",,,seconds_per_epoch,10-20,"s, p. 3"',
    )
    row = {"dataset": "d", "encoder": "vit-base", "objective": "bce", "method": "lora:published"}

    def matching_values(**other: str) -> dict[str, str]:
        return {metric: one.value for metric, one in select(str(path), "p", "T").matching(row | other).items()}

    assert matching_values() == {"HR@10": "0.2"}
    assert matching_values(method="lora") == matching_values(encoder="bert") == {"HR@10": "0.1"}
    assert matching_values(method="lora_") == matching_values(dataset="other") == {}
    assert matching_values(encoder="bert,vit-base", objective="cpc") == {"seconds_per_epoch": "10-20"}
    *_, span = read_published(path)
    assert [span.difference(ours) for ours in (8, 10, 15, 20, 23)] == [-2, 0, 0, 0, 3]


@pytest.mark.parametrize(
    "lines,message",
    [
        (["P,t,d,e,o,m,HR@10,0.1"], "line 2: has 8 cells; give 9, paper,table,"),
        (["", "P,t,d,e,o,m,HR@10,9.09,s"], "line 3, column value: '9.09' must be a share of 1"),
        (["P,t,d,e,o,m,HR@10,nan,s"], "line 2, column value: 'nan' must be a number, or LOW-HIGH"),
        (["P,t,d,e,o,m,seconds_per_epoch,9-8,s"], "line 2, column value: '9-8' must be a number, or LOW-HIGH"),
        (["P,t,d,e,o,m,seconds,9,s"], "line 2, column metric: 'seconds' is neither a metric like HR@10 nor one of"),
        (["P,t,d,e,o,m,HR@10,0.1, "], "line 2, column source: is empty"),
        (["P,t,d,e,o,m,HR@10,0.1,s", "p,T,d,e,o,m,HR@10,0.2,s"], "line 3: gives HR@10 of the same row as line 2"),
        (['P,t,d,e,o,m,HR@10,0.1,"s'], "line 2: is not CSV"),
    ],
)
def test_a_file_of_figures_that_is_wrong(own, lines, message):
    with pytest.raises(TransrecError) as error:
        read_published(own(*lines))
    assert str(error.value).startswith(str(own(*lines))) and message in str(error.value)


def test_a_file_that_holds_no_figures(own, tmp_path):
    with pytest.raises(TransrecError, match=r"line 1: must name the columns paper,table,"):
        read_published(own(header="paper,value"))
    (tmp_path / "own.csv").write_bytes(b"paper\xff")
    with pytest.raises(TransrecError, match="is not UTF-8"):
        read_published(tmp_path / "own.csv")
    (tmp_path / "own.csv").write_bytes(b"")
    with pytest.raises(TransrecError, match="line 1: must name the columns"):
        read_published(tmp_path / "own.csv")


def test_tpme_of_rows_of_which_some_have_no_run():
    def result(seconds: float, parameters: int, memory: float) -> dict[str, float]:
        return {"seconds_per_epoch": seconds, "trainable_parameters": parameters, "peak_memory_mib": memory}

    rows = [[result(1, 10, 5), result(3, 10, 7)], [], [result(9, 20, 6)]]
    column = tpme_column(rows)
    first, last = tpme([2, 9], [10, 20], [7, 6])
    assert column.cells == [f"{first:.3f}", "-", f"{last:.3f}"]
    assert column.numbers == [{"TPME": first}, {}, {"TPME": last}]
    assert tpme_column(rows[:2]).cells == ["-", "-"]
