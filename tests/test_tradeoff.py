"""Figure 4: every printed and measured number is a point at its cost; widths join to lines."""

import re
from pathlib import Path

import pytest

from drconv.commands.tradeoff import draw_tradeoff, kind_of
from drconv.figures.charts import Axis
from drconv.results.lines import table_lines
from drconv.results.sources import load_sources
from tests.project import make_project, make_run, record_all

CIRCLE = re.compile(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="3.5" fill="(\S+)" stroke="(\S+)"/>')


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("fig4/drconv_shufflenetv2_1.5x", ("shufflenetv2", "DRConv")),
        ("table1/drconv_lite_mobilenetv1_1.0x", ("mobilenetv1", "DRConv, lite")),
        ("small/imagenette/shufflenetv2_0.5x_same_madds", ("shufflenetv2", "plain, widened")),
        ("table2/local_mobilefacenet", ("mobilefacenet", "local convolution")),
        ("small/inside/guide_frozen", None),
    ],
)
def test_a_rows_name_says_network_and_kind(row: str, expected: tuple[str, str] | None) -> None:
    assert kind_of(row) == expected


def test_points_lie_where_records_and_paper_put_them(tmp_path: Path) -> None:
    root = make_project(tmp_path)
    for id, values in {"fig4/shufflenetv2_1.5x": [70.0, 72.0], "table1/shufflenetv2_1x": [69.0]}.items():
        for seed, value in enumerate(values):
            make_run(root, id, seed, value)
    record_all(root)
    lines = table_lines("figure4", load_sources(root))
    svg = draw_tradeoff("Figure 4", lines)
    assert svg is not None
    circles = [(float(x), float(y), fill) for x, y, fill, _ in CIRCLE.findall(svg)]
    assert sum(fill == "none" for *_, fill in circles) == sum(line.paper is not None for line in lines) == 6
    assert sum(fill != "none" for *_, fill in circles) == 2
    printed = {line.row: line for line in lines}["fig4/drconv_shufflenetv2_1x"]
    costs = [13.2] * 2 + [line.printed_multiply_adds / 1e6 for line in lines if line.printed_multiply_adds]
    x_axis = Axis(min(costs) / 1.15, max(costs) * 1.15, 52, 348, True)
    found = min(circles, key=lambda circle: abs(circle[0] - x_axis.place(157)))
    assert found[0] == pytest.approx(x_axis.place(157), abs=0.1)
    assert printed.paper == 73.1
    values = [69.0, 71 - 2**0.5, 71 + 2**0.5] + [line.paper for line in lines if line.paper is not None]
    room = 0.04 * (max(values) - min(values))
    y_axis = Axis(min(values) - room, max(values) + room, 206, 30)
    assert found[1] == pytest.approx(y_axis.place(73.1), abs=0.1)


def test_nothing_to_draw_is_said() -> None:
    assert draw_tradeoff("nothing", []) is None
