"""Finished runs as one self-contained HTML page: results, curves, costs, slices, tests, settings."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from transrec.errors import TransrecError
from transrec.paths import resolve
from transrec.reports.comparison import SIGNIFICANT, MetricAtCutoff, distinguishing_settings, metrics_at
from transrec.reports.page import as_table, as_text, as_value, data_card, in_words, shell
from transrec.reports.report_plots import Bubble, Curve, bubbles, colour, curves, slices
from transrec.reports.report_rows import ComparableRows, Row, differing_flags, group_by_targets, read_epochs, read_rows
from transrec.reports.tables import METRICS, comma_separated, distinct_baselines, latex, mean_and_spread
from transrec.training import metrics as registered
from transrec.training.state import VALIDATION

SLICED_BY = ("popularity", "history")
COSTS = {
    "seconds per epoch": "seconds_per_epoch",
    "peak memory, MiB": "peak_memory_mib",
    "trainable parameters": "trainable_parameters",
}
CURVES = {"train_loss": "training loss", **{f"validation {name}": f"validation {name}" for name in METRICS}}
# Number of folders in the default title.
NAMED = 3
TEST, CORRECTION = "paired t", "holm"
Group = TypeVar("Group")

STYLE = """.sortable button { font: inherit; font-weight: bold; color: inherit; background: none; border: 0; padding: 0;
  cursor: pointer; text-align: inherit; }
.sortable button::after { content: " \\2195"; color: var(--faint); }
.sortable [aria-sort=ascending] button::after { content: " \\2191"; color: var(--ink); }
.sortable [aria-sort=descending] button::after { content: " \\2193"; color: var(--ink); }
.sortable td:nth-child(2) { text-align: left; white-space: normal; min-width: 10rem; }
.sortable th:nth-child(2) { text-align: left; } .best { font-weight: bold; }
.copy { margin: 0.5rem 0; } .copy button { font: inherit; padding: 0.2rem 0.8rem; cursor: pointer; }
:focus-visible { outline: 2px solid var(--mark); outline-offset: 2px; }
.legend { columns: 20rem; padding: 0; margin: 0.5rem 0; list-style: none; }
.legend li { break-inside: avoid; padding-left: 1.4rem; text-indent: -1.4rem; }
.swatch { display: inline-block; width: 0.9rem; height: 0.9rem; margin-right: 0.5rem; border-radius: 50%;
  vertical-align: -0.1rem; }
.plot { max-width: 40rem; }
.pointed { min-height: 3em; color: var(--faint); font-size: 0.9rem; }
@media print { .copy, .sortable button::after, .pointed { display: none; } }
"""
SCRIPT = """
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const rows = [...table.tBodies[0].rows];
    const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const numeric = rows.every(row => value(row) === "" || !Number.isNaN(Number(value(row))));
    const now = head.getAttribute("aria-sort");
    const rising = now ? now === "descending" : !numeric;
    const order = (one, two) => numeric ? one - two : one.localeCompare(two);
    rows.sort((one, two) => {
      const [first, second] = [value(one), value(two)];
      if (first === "" || second === "") return (first === "") - (second === "");
      return rising ? order(first, second) : order(second, first);
    });
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    table.tBodies[0].append(...rows);
  }));
}
for (const button of document.querySelectorAll("button[data-copies]")) {
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copies);
    const said = document.getElementById("copied");
    try {
      await navigator.clipboard.writeText(source.value);
    } catch {
      source.hidden = false;
      source.select();
      document.execCommand("copy");
      source.hidden = true;
    }
    said.textContent = `${button.textContent}: done`;
    button.focus();
  });
}
for (const plot of document.querySelectorAll(".plot")) {
  const pointed = plot.querySelector(".pointed");
  const tell = event => {
    const title = event.target.closest(".said")?.querySelector("title");
    if (title) pointed.textContent = title.textContent;
  };
  plot.addEventListener("pointerover", tell);
  plot.addEventListener("focusin", tell);
}
"""


def report(folders: Sequence[str | Path], plugins: Sequence[str | Path] = (), title: str = "") -> str:
    """Return the page about runs and studies. Whatever it shows of them is escaped text.

    Args:
        folders: folders as for `transrec.results`.
        plugins: files that may be executed, including all plugins that the runs were started with.
        title: the page's title; by default the names of the folders.

    Raises TransrecError for folders without finished runs, and for a damaged result.json or options.json. The page
    reports anything else that is missing or damaged.
    """
    rows = read_rows(folders, plugins)
    datasets = [(group[0].dataset, group) for group in _group_by_dataset(rows)]
    groups, notes = group_by_targets(rows, plugins)
    comparable = [(group.heading, group) for group in groups]
    sections = [
        _summary(rows),
        _results(rows),
        "<h2>Learning curves</h2>",
        *_under_headings(datasets, _curves),
        "<h2>Accuracy against cost</h2>",
        *_under_headings(datasets, _costs),
        "<h2>Slices</h2>",
        *_under_headings(comparable, _slices),
        "" if comparable else _note("No run here keeps the ranks of its test targets, of which slices are made."),
        "<h2>Significance</h2>",
        *_under_headings(comparable, _significance),
        "" if comparable else _note("Tests need runs that keep the ranks of their test targets."),
        *map(_note, notes),
        _settings(rows),
        _environment(rows),
        "<h2>Data card</h2>",
        *_under_headings(datasets, _data),
    ]
    names = list(dict.fromkeys(resolve(folder).name for folder in folders))
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return shell(title or ", ".join(names[:NAMED]) + more, sections, STYLE, SCRIPT)


def _note(text: str) -> str:
    return f'<p class="faint">{as_text(text)}</p>'


def _under_headings(groups: Sequence[tuple[str, Group]], section: Callable[[Group, int], str]) -> Iterable[str]:
    """Yield `section` of each group, under the group's heading if there are several groups."""
    for number, (heading, group) in enumerate(groups):
        yield (f"<h3>{as_text(heading)}</h3>\n" if len(groups) > 1 else "") + section(group, number)


def _group_by_dataset(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows grouped by dataset."""
    return _grouped(rows, lambda row: row.data)


def _group_by_ranking(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows grouped by dataset and by what is ranked: metrics within a group can be compared."""

    def ranked(row: Row) -> Hashable:
        if row.settings is None:
            return row.data
        data, evaluation = row.settings.data, row.settings.evaluation
        sample = data.eval_users and (data.eval_users, data.subset_seed)
        return row.data, data.splitting, data.min_seq_len, sample, evaluation.mask_history

    return _grouped(rows, ranked)


def _grouped(rows: Sequence[Row], key: Callable[[Row], Hashable]) -> list[list[Row]]:
    groups: dict[Hashable, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.values())


def _summary(rows: Sequence[Row]) -> str:
    runs, data = sum(len(row.results) for row in rows), dict.fromkeys(row.data for row in rows if row.settings)
    parts = [
        f"<p>{len(rows)} row{'s' * (len(rows) > 1)} of {runs} finished run{'s' * (runs > 1)}. Runs that differ in "
    ]
    parts.append("their seed alone are one row: mean ± sample standard deviation.</p>")
    if len(data) > 1:
        parts.append(
            f"<p><strong>The runs are over {len(data)} datasets</strong>; compare metrics within one dataset only.</p>"
        )
    if unknown := [row.label for row in rows if row.settings is None]:
        parts.append(_note(f"Without options.json, so their settings are not known: {', '.join(unknown)}"))
    if untested := [row.label for row in rows if not row.is_tested]:
        parts.append(_note(f"Without test metrics, for they ran with --no_test: {', '.join(untested)}"))
    items = "\n".join(
        f'<li><span class="swatch" style="background: {colour(row.number)}"></span>{as_text(row.label)}'
        + (f" ({as_text(row.dataset)})" if len(data) > 1 else "")
        + "</li>"
        for row in rows
    )
    return "\n".join([*parts, f'<ol class="legend">\n{items}\n</ol>'])


def _metrics(rows: Sequence[Row]) -> list[str]:
    """Return the metrics of the results table: test metrics, and validation metrics if some rows have no test."""
    names = dict.fromkeys(METRICS)
    for row in rows:
        for result in row.results.values():
            names |= dict.fromkeys(result.get("test", {}))
    return [*names, *(() if all(row.is_tested for row in rows) else (f"validation {name}" for name in METRICS))]


def _results(rows: Sequence[Row]) -> str:
    metrics = _metrics(rows)
    header = ["#", "method", "dataset", "seeds", *metrics, *COSTS, *(["TPME"] if len(rows) > 1 else [])]
    header = list(dict.fromkeys(header))
    lines, plain, records = [], [], []
    groups = _group_by_ranking(rows)
    for group in groups:
        is_alone = [other.data for other, *_ in groups].count(group[0].data) == 1
        cells = [*(_cells(row, metrics) for row in group), *_baselines(group, is_alone)]
        best = {name: _best(cells, name) for name in metrics}
        for line in cells:
            shown = [line.get(name, ("", "")) for name in header]
            plain.append([text for text, _ in shown])
            records.append({name: value for name, (_, value) in zip(header, shown, strict=True)})
            lines.append(
                _line(shown, [name in best and cell[1] == best[name] for name, cell in zip(header, shown, strict=True)])
            )
    heads = "".join(f'<th scope="col"><button type="button">{as_text(name)}</button></th>' for name in header)
    body = "\n".join(lines)
    return f"""<h2>Results</h2>
<div class="wide" role="region" aria-label="Results" tabindex="0"><table class="sortable numbers">
<thead><tr>{heads}</tr></thead>
<tbody>
{body}
</tbody>
</table></div>
<p class="copy"><button type="button" data-copies="latex">Copy as LaTeX</button>
<button type="button" data-copies="csv">Copy as CSV</button> <span id="copied" role="status"></span></p>
<textarea id="latex" aria-label="LaTeX" readonly hidden>{_lines(latex(header, plain))}</textarea>
<textarea id="csv" aria-label="CSV" readonly hidden>{_lines(comma_separated(records))}</textarea>"""


def _baselines(rows: Sequence[Row], is_alone: bool) -> list[dict[str, tuple[str, Any]]]:
    """Return cells like those of `_cells` for the baselines that were evaluated with comparable rows.

    Args:
        is_alone: whether these are all rows over their dataset; if not, the baselines name their rows.
    """
    tested = [result for row in rows for result in row.results.values() if "test" in result]
    numbers = "" if is_alone else f" (as for {', '.join(str(row.number) for row in rows)})"
    return [
        {name: (text, text) for name, text in (("method", baseline.label + numbers), ("dataset", rows[0].dataset))}
        | {name: (mean_and_spread([value]), value) for name, value in baseline.scores.items()}
        for baseline in distinct_baselines(tested)
    ]


def _best(lines: Sequence[dict[str, tuple[str, Any]]], metric: str) -> Any:
    """Return the best value of a metric in these lines of the results table; "" if no line has the metric."""
    label = metric.removeprefix(VALIDATION).partition("@")[0]
    entries = (registered.METRICS.get(name) for name in registered.METRICS.names())
    lower = {entry.label for entry in entries if not entry.higher_is_better}
    values = (line[metric][1] for line in lines if line.get(metric, ("", ""))[0])
    return (min if label in lower else max)(values, default="")


def _lines(text: str) -> str:
    """Return multi-line text for use between two tags. HTML drops a newline right after the opening tag, so add one."""
    return "\n" + "\n".join(as_value(line) for line in text.splitlines())


def _cells(row: Row, metrics: Sequence[str]) -> dict[str, tuple[str, Any]]:
    """Return the text of each cell in a row of the results table and the value to sort it by, by column."""
    seeds = [str(seed) for seed in row.runs["seed"].dropna().tolist()]
    cells: dict[str, tuple[str, Any]] = {
        "#": (str(row.number), row.number),
        "method": (row.name, row.name),
        "dataset": (row.dataset, row.dataset),
        "seeds": (", ".join(seeds), len(row.results)),
        "TPME": (f"{row.numbers.get('TPME', 0):.3f}", row.numbers.get("TPME", 0)),
    }
    for name in metrics:
        values = row.runs[name].dropna().tolist() if name in row.runs else []
        cells[name] = (mean_and_spread(values), row.numbers[name]) if values else ("", "")
    for label, name in COSTS.items():
        value = row.numbers[name]
        cells[label] = (f"{value:,.2f}" if name == "seconds_per_epoch" else f"{value:,.0f}", value)
    return cells


def _line(cells: Sequence[tuple[str, Any]], best: Sequence[bool]) -> str:
    """Return a row of the results table as HTML.

    Args:
        cells: the text of each cell and the value to sort it by.
        best: whether each cell is the best of its column.
    """
    parts = (
        f'<td data-value="{as_value(value)}"{" class=best" * is_best}>{as_text(text)}</td>'
        for (text, value), is_best in zip(cells, best, strict=True)
    )
    return f"<tr>{''.join(parts)}</tr>"


def _figure(drawn: str) -> str:
    return f'<figure class="plot">{drawn}<figcaption class="pointed" aria-live="polite"></figcaption></figure>'


def _figures(drawn: Iterable[str]) -> str:
    return f'<div class="plots">{"".join(map(_figure, drawn))}</div>'


def _curves(rows: Sequence[Row], data: int) -> str:
    curves_of: dict[str, list[Curve]] = {name: [] for name in CURVES}
    notes = []
    for row in rows:
        for folder, result in row.results.items():
            try:
                epochs = read_epochs(folder)
            except TransrecError as error:
                notes.append(f"{row.label}: no curve, {error}")
                continue
            run = f"{row.label}, seed {result['seed']}" if "seed" in result else row.label
            for name, of_name in curves_of.items():
                points = [(int(epoch["epoch"]), epoch[name]) for epoch in epochs if name in epoch]
                if points:
                    of_name.append(Curve(row.number, run, [at for at, _ in points], [value for _, value in points]))
    drawn = [
        curves(lines, CURVES[name], "loss" in name, f"curves {data} {name}")
        for name, lines in curves_of.items()
        if lines
    ]
    return "\n".join([_figures(drawn), *map(_note, notes)])


def _costs(rows: Sequence[Row], data: int) -> str:
    prefix = "" if all(row.is_tested for row in rows) else "validation "
    metric = f"{prefix}NDCG@10"
    drawn = []
    for row in rows:
        costs = {label: float(row.numbers[name]) for label, name in COSTS.items()}
        text = ", ".join(f"{label} {value:,.5g}" for label, value in costs.items())
        score = float(row.numbers[metric])
        drawn.append(
            Bubble(
                row.number, score, costs, costs["trainable parameters"], f"{row.label}: {metric} {score:.4f}, {text}"
            )
        )
    note = (
        "" if len(rows) > 1 else _note("There is one row over this dataset, and so nothing to compare its cost with.")
    )
    return _figures(bubbles(drawn, cost, metric, f"cost {data} {cost}") for cost in COSTS) + note


def _ndcg() -> MetricAtCutoff:
    (metric,) = metrics_at(["ndcg"], [10])
    return metric


def _slices(group: ComparableRows, number: int) -> str:
    metric = _ndcg()
    names = [row.label for row in group.rows]
    try:
        rows = group.comparison.rows([metric], SLICED_BY)
    except TransrecError as error:
        return _note(f"{', '.join(names)}: no slices, {error}")
    table: dict[str, list[str]] = {}
    for row in rows:
        table.setdefault(row["slice"], [row["slice"], f"{row['targets']:,}"]).append(f"{row[metric.name]:.4f}")
    labels = dict(zip((method.name for method in group.comparison.methods), names, strict=True))
    numbers = {row.label: row.number for row in group.rows}
    drawn = [row | {"method": labels[row["method"]]} for row in rows if row["method"] in labels]
    plot = slices(drawn, numbers, metric.name, f"slices {number}")
    note = f"The table has the baselines, too: {', '.join(group.baselines)}." if group.baselines else ""
    return f"""<p>{metric.name} of each row by how popular the target is, and by how many interactions
stand before it. {as_text(note)}</p>
{_figures([plot])}
{as_table(["slice", "targets", *group.heads], table.values(), "numbers")}"""


def _significance(group: ComparableRows, _number: int) -> str:
    names = [row.label for row in group.rows]
    if len(names) + len(group.baselines) < 2:
        return _note(
            f"{names[0]}: the only row with ranks over its test targets, so there is nothing to test it against."
        )
    metric = _ndcg()
    tests = group.comparison.pairwise_tests(metric, TEST, CORRECTION)
    rows = []
    for place, name in enumerate(names):
        cells = []
        for other in range(len(group.heads)):
            if place == other:
                cells.append("")
                continue
            difference, p = tests[min(place, other), max(place, other)]
            sign = 1 if place < other else -1
            cells.append(f"{sign * difference:+.4f}{' *' if p < SIGNIFICANT else ''} (p {_p_value_text(p)})")
        rows.append([name, *cells])
    targets, with_baselines = group.comparison.methods[0].ranks.shape[1], len(names) * len(group.baselines)
    families = [_pairs(len(tests) - with_baselines, "of rows")] if len(names) > 1 else []
    families += [_pairs(with_baselines, "of a row and a baseline")] if with_baselines else []
    untested = "" if with_baselines else _note("No baseline is tested: none of these runs keeps the ranks of one.")
    return f"""<p>{metric.name} of the row less that of the column, over the same {targets:,} test targets, and the
{TEST} test's p-value, by Holm's correction over {" and, by itself, over ".join(families)}; a star where p is below \
{SIGNIFICANT:g}.</p>
{as_table(["", *group.heads], rows, "numbers")}{untested}"""


def _pairs(count: int, members: str) -> str:
    return f"{count} pair{'s' * (count > 1)} {members}"


def _p_value_text(value: float) -> str:
    return "below 0.0001" if value < 0.0001 else f"{value:.4f}"


def _settings(rows: Sequence[Row]) -> str:
    flags = sorted(differing_flags([row.settings for row in rows]))
    known = [row for row in rows if row.settings]
    if not flags:
        what = "one row whose settings are known" if len(known) == 1 else "no setting that differs between rows"
        return f"<h2>Settings that differ</h2>\n{_note(f'There is {what}.')}"
    values = [distinguishing_settings(row.settings) for row in known if row.settings]
    lines = [[f"--{flag}", *(in_words(flags_of_row.get(flag, "")) for flags_of_row in values)] for flag in flags]
    return f"<h2>Settings that differ</h2>\n{as_table(['', *(row.label for row in known)], lines)}"


def _environment(rows: Sequence[Row]) -> str:
    distinct: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for row in rows:
        for result in row.results.values():
            stored = result.get("environment")
            environment = stored if isinstance(stored, dict) else {}
            distinct.setdefault(repr(sorted(environment.items())), (environment, []))[1].append(str(row.number))
    heads = [f"rows {', '.join(dict.fromkeys(numbers))}" for _, numbers in distinct.values()]
    names = dict.fromkeys(name for environment, _ in distinct.values() for name in environment)
    lines = [[name, *(in_words(values.get(name, "")) for values, _ in distinct.values())] for name in names]
    table = as_table(["", *heads], lines) if lines else _note("No run says which device it ran on.")
    return f"<h2>Environment</h2>\n{table}"


def _data(rows: Sequence[Row], data: int) -> str:
    try:
        card = data_card(Path(rows[0].data))
    except TransrecError as error:
        return _note(str(error))
    return card or _note(f"{rows[0].dataset}: no data card, which imported datasets have (dataset.json).")
