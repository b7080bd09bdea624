"""Makes one HTML page of tables, curves, masks and records: no server, no connection, everything in the file.

    drconv report                                             # all records of results/runs
    drconv report outputs/small output=report.html            # the finished runs below a folder
    drconv report outputs/.../seed0 data.root=/data/pictures  # with the data: masks, accuracy and confusion of classes

RUNS are run folders, folders of such, or files of results/runs; tables are made from results/runs always. Where the
data of a run folder are not there, its masks and classes are left out and the page says so.
"""

import argparse
import platform
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from drconv.commands.curves import PANELS, make_panel
from drconv.commands.tradeoff import draw_tradeoff
from drconv.errors import ConfigError, UserError
from drconv.figures.charts import COLOURS, Line, Panel, draw_chart
from drconv.files import read_json, replace_file
from drconv.messages import exit_with
from drconv.migrations import migrate_record
from drconv.paths import CHECKOUT
from drconv.report import sections
from drconv.report.html import details, figure, page, text
from drconv.results.collect import find_results
from drconv.results.lines import line_tables, table_lines, title_of
from drconv.results.read_records import Record, read_curve, read_record
from drconv.results.sources import Sources, load_sources

SHOWN_PANELS = ("loss", "top1", "usage", "spread")
NUM_PICTURES = 4  # of which masks are shown


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="RUN | KEY=VALUE", help="runs; output=, overrides")
    parser.add_argument("--root", type=Path, default=CHECKOUT or Path(), help="folder of results/")
    options = parser.parse_args()
    try:
        runs, output, overrides = split_words(options.words)
        write_report(options.root, runs, output, overrides)
    except Exception as error:
        exit_with(error)


def split_words(words: list[str]) -> tuple[list[Path], Path, list[str]]:
    """Runs, the file to write, and overrides. A path may hold ``=`` itself, so what exists is a run.

    Raises:
        ConfigError: a run does not exist, or the file's name does not end in .html.
    """
    runs = [Path(word) for word in words if Path(word).exists() or "=" not in word]
    settings = [word for word in words if not Path(word).exists() and "=" in word]
    given = dict(setting.partition("=")[::2] for setting in settings)
    output = Path(given.get("output", "report.html"))
    if output.suffix != ".html":
        raise ConfigError(f"output={output} must end in .html")
    if missing := [path for path in runs if not path.exists()]:
        raise ConfigError(f"{missing[0]} is not there; give run folders or files of results/runs")
    return runs, output, [setting for setting in settings if not setting.startswith("output=")]


def write_report(root: Path, runs: list[Path], output: Path, overrides: list[str]) -> None:
    """Writes the page."""
    sources = load_sources(root)
    folders = [result.parent for result in find_results([path for path in runs if path.is_dir()])]
    records = [read_record(path) for path in runs if path.is_file()] + [read_folder(folder) for folder in folders]
    if runs and not records:
        raise ConfigError(f"no finished run below {', '.join(map(str, runs))}")
    records = records or sources.records
    count = f"{len(records)} run{'' if len(records) == 1 else 's'}"
    parts = {
        "What was measured": sections.measured_section(sources),
        "Tables": sections.tables_section(sources, tradeoffs(sources)),
        "Runs and their curves": sections.runs_section(records, curves_of(records)),
        "Masks and classes": "\n".join(look_at(folder, overrides) for folder in folders),
        "Where it differs from the paper": sections.differences_section(records),
        "Environment": sections.environment_section(records, made_with()),
    }
    note = f'<p class="note">{text(count)}; every number comes from a record. Percent where no unit is given.</p>'
    output.parent.mkdir(parents=True, exist_ok=True)
    replace_file(output, page("DRConv: tables, runs and masks", note, parts))
    print(f"written {output}: {count}, {output.stat().st_size / 1e6:.1f} MB")


def read_folder(folder: Path) -> Record:
    """The record of a run folder; a run of no experiment is named by its folder."""
    stored = read_json(folder / "result.json")
    content = migrate_record(stored)
    content["experiment"] = content["experiment"] | {"id": content["experiment"].get("id") or folder.parent.name}
    return Record(folder / "metrics.json", content, stored)  # beside which the curve is metrics.jsonl


def tradeoffs(sources: Sources) -> dict[str, str]:
    """Charts of accuracy against cost by table."""
    drawn = {name: draw_tradeoff(title_of(name, sources), table_lines(name, sources)) for name in line_tables(sources)}
    return {name: figure(svg, "Accuracy against cost") for name, svg in drawn.items() if svg}


def curves_of(records: list[Record]) -> dict[str, str]:
    """Charts by experiment, a line for each run."""
    by_id: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_id[record.id].append(record)
    return {id: _charts(members) for id, members in by_id.items()}


def _charts(records: list[Record]) -> str:
    curves = [read_curve(record.curve) for record in records]
    panels = [_headline_panel(records[0].metric, curves), *(make_panel(name, curves) for name in SHOWN_PANELS)]
    drawn = [draw_chart([panel], []) for panel in panels if any(line.points for line in panel.lines)]
    if not drawn:
        return ""
    names = [f"seed {record.seed}, {record.content['config_hash'][:8]}" for record in records]
    legend = "".join(
        f'<li><svg width="28" height="8" viewBox="0 0 28 8"><path d="M0 4h28" stroke="{COLOURS[i % len(COLOURS)]}" '
        f'stroke-width="3"/></svg> {text(name)}</li>'
        for i, name in enumerate(names)
    )
    return f'<div class="charts">{"".join(map(figure, drawn))}</div><ul class="legend">{legend}</ul>'


def _headline_panel(metric: str, curves: list[list[dict[str, Any]]]) -> Panel:
    dataset, _, name = metric.partition("/")
    lines = []
    for number, entries in enumerate(curves):
        shown = [entry for entry in entries if entry["split"] == dataset and name in entry]
        lines.append(Line(number, [(entry["step"], entry[name]) for entry in shown], "full"))
    return Panel(metric, lines)


assert set(SHOWN_PANELS) <= PANELS.keys()


def look_at(folder: Path, overrides: list[str]) -> str:
    """Masks of some pictures, and the accuracy of each class, of a run whose data are there."""
    from drconv.commands.run_pictures import choose_pictures, load_network, masks_of
    from drconv.compose import config_of_run
    from drconv.figures.canvas import as_svg
    from drconv.figures.mask_figure import draw_figure
    from drconv.figures.masks import choose_masks

    def masks(network: Any, config: Any) -> str:
        pictures = choose_pictures(config, NUM_PICTURES)
        chosen = choose_masks(masks_of(network, pictures, config), [])
        return figure(as_svg(*draw_figure(pictures, chosen, 120)), "The region of every position", "masks")

    def classes(network: Any, config: Any) -> str:
        if config.task.name != "classification":
            return ""
        return count_classes(network, config)

    title = "/".join(folder.parts[-3:])
    try:
        config = config_of_run([f"run={folder}", *overrides])
        assert config is not None
        network = load_network(config)
    except (UserError, OSError) as error:
        return details(title, f'<p class="note">{text(error)}</p>')
    steps: list[Callable[[Any, Any], str]] = [classes]
    if config.model.conv == "drconv":
        steps.insert(0, masks)
    parts = []
    for step in steps:
        try:
            parts.append(step(network, config))
        except (UserError, OSError) as error:
            parts.append(f'<p class="note">{text(error)}</p>')
    return details(title, "".join(parts), is_open=True)


def count_classes(network: Any, config: Any) -> str:
    """The whole evaluation set through the network, class by class."""
    import torch

    from drconv.data import normalise
    from drconv.report.confusion import confusion_html, count_confusion
    from drconv.tasks import find_task

    dataset = find_task(config.task).evaluation_sets(config)["val"]
    names = dataset.facts.output_names
    if network.output_names and names != network.output_names:
        raise ConfigError("the classes of the data are not those of the training; give data.root= of the same classes")
    num_classes = len(names) or int(dataset.facts.num_outputs or 0)
    counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    size = config.recipe.eval_batch_size
    with torch.inference_mode():
        for start in range(0, len(dataset), size):
            chunk = range(start, min(start + size, len(dataset)))
            batch = dataset.collate([dataset[index, 0] for index in chunk])
            images = normalise(batch["image"], config.data, config.runtime.channels_last)
            counts += count_confusion(network(images), batch["label"], num_classes)
    share = 100 * int(counts.diag().sum()) / max(1, int(counts.sum()))
    return f"<p>{int(counts.sum()):,} pictures, top-1 {share:.2f}</p>{confusion_html(counts, names)}"


def made_with() -> dict[str, str]:
    """Versions and time of the page."""
    found = {"made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "Python": platform.python_version()}
    for package in ("drconv", "torch", "torchvision", "timm"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
