"""Panels: the few kinds that the dashboards draw, each complete, and their places on the grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from curvewatch_dashboards.grafana import (
    Builder,
    Dataquery,
    PromQueryFormat,
    bargauge,
    builders,
    common,
    common_builders,
    models,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
    trend,
    units,
)
from curvewatch_dashboards.transformations import Transformations, matrix
from curvewatch_dashboards.words import Word

DATASOURCE = common.DataSourceRef(type_val="prometheus", uid="${datasource}")
"""The datasource that the person has chosen on the dashboard."""

GRID_WIDTH = 24

PanelBuilder = (
    timeseries.Panel | stat.Panel | statetimeline.Panel | trend.Panel | table.Panel | bargauge.Panel
)

Lines = TypeVar("Lines", timeseries.Panel, trend.Panel, bargauge.Panel)


@dataclass(frozen=True, kw_only=True)
class Query:
    """One query and the name that its series get."""

    expr: str
    legend: str
    """Template of labels; empty where the values of now are asked for as a table, which has them as columns."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """How a column of a table is shown, where it is not shown as it is."""

    title: str
    unit: str = ""
    words: Mapping[int, Word] | None = None
    link: str = ""
    """Address that a click on a value opens."""
    link_title: str = ""


def curves(title: str, description: str, *queries: Query, unit: str = units.NoUnit) -> timeseries.Panel:
    """Return a panel of lines over time. Points stay apart where no epoch was seen."""
    panel = timeseries.Panel().title(title).description(description).unit(unit).datasource(DATASOURCE)
    return (
        panel.targets(_targets(queries))
        .legend(_legend())
        .tooltip(_tooltip())
        .line_width(2)
        .fill_opacity(0)
        .show_points(common.VisibilityMode.AUTO)
    )


def by_epoch(title: str, description: str, expr: str, line: str, *, unit: str = units.NoUnit) -> trend.Panel:
    """Return a panel of lines over epochs.

    Args:
        title: Of the panel.
        description: Of the panel.
        expr: Query on the curves by epoch; it leaves the labels `epoch` and `line`.
        line: Label whose values name the lines.
        unit: Of the values.
    """
    steps, x = matrix("epoch", line)
    panel = trend.Panel().title(title).description(description).unit(unit).datasource(DATASOURCE)
    return (
        panel.targets(_targets([Query(expr=expr, legend="")]))
        .transformations(list(steps))
        .x_field(x)
        .legend(_legend())
        .tooltip(_tooltip())
        .line_width(2)
        .fill_opacity(0)
        # Of a long curve not every epoch is there, and lines go on between two of them.
        .span_nulls(True)
        .show_points(common.VisibilityMode.AUTO)
        .no_value("No such curve in the chosen time, or Prometheus does not scrape /metrics/curves")
    )


def stacked(panel: timeseries.Panel) -> timeseries.Panel:
    """Lay the lines of a panel on one another."""
    stacking = common_builders.StackingConfig().mode(common.StackingMode.NORMAL).group("A")
    return panel.stacking(stacking).fill_opacity(40)


def worded(panel: Lines, words: Mapping[str, Word]) -> Lines:
    """Give lines or bars their words and colors, by the names that the legends of their queries leave."""
    for name, word in words.items():
        color = {"mode": "fixed", "fixedColor": word.color}
        shown = [
            models.DynamicConfigValue(id_val="displayName", value=word.text),
            models.DynamicConfigValue(id_val="color", value=color),
        ]
        panel = panel.override_by_name(name, shown)
    return panel


def rows(
    title: str,
    description: str,
    columns: Mapping[str, Column],
    steps: Transformations,
    *queries: Query,
) -> table.Panel:
    """Return a table.

    Args:
        title: Of the panel.
        description: Of the panel.
        columns: How columns are shown, by the name that `steps` leaves.
        steps: What makes one table of the answers.
        queries: Asked for their latest values.
    """
    panel = table.Panel().title(title).description(description).unit(units.NoUnit).datasource(DATASOURCE)
    panel = panel.targets(_targets(queries))
    for name, column in columns.items():
        panel = panel.override_by_name(name, _column(column))
    return panel.transformations(list(steps))


def bars(title: str, description: str, *queries: Query, unit: str = units.Short) -> bargauge.Panel:
    """Return a panel of one bar for each value of now: what is no more has none."""
    reduce = common_builders.ReduceDataOptions().calcs(["lastNotNull"])
    panel = bargauge.Panel().title(title).description(description).unit(unit).datasource(DATASOURCE)
    return (
        panel.targets(_targets(queries, instant=True))
        .reduce_options(reduce)
        .orientation(common.VizOrientation.HORIZONTAL)
        .display_mode(common.BarGaugeDisplayMode.BASIC)
        .min(0)
        .color_scheme(builders.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC))
    )


def steps(title: str, description: str, *queries: Query, unit: str = units.Short) -> timeseries.Panel:
    """Return a panel of counts over time, which jump and do not slope."""
    panel = curves(title, description, *queries, unit=unit)
    return panel.line_interpolation(common.LineInterpolation.STEP_AFTER).decimals(0).min(0)


def zero_line(panel: timeseries.Panel) -> timeseries.Panel:
    """Draw a line at zero."""
    style = common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.LINE)
    limits = [models.Threshold(color="transparent"), models.Threshold(value=0, color="text")]
    return panel.thresholds_style(style).thresholds(
        builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(limits)
    )


def number(
    title: str,
    description: str,
    *queries: Query,
    unit: str = units.Short,
    words: Mapping[int, Word] | None = None,
    names_only: bool = False,
) -> stat.Panel:
    """Return a panel of the latest values, as numbers, as the words that they stand for, or as their legends."""
    reduce = common_builders.ReduceDataOptions().calcs(["lastNotNull"])
    colored = common.BigValueColorMode.BACKGROUND if words else common.BigValueColorMode.NONE
    text = (
        common.BigValueTextMode.VALUE_AND_NAME if len(queries) > 1 or words else common.BigValueTextMode.VALUE
    )
    if names_only:
        text = common.BigValueTextMode.NAME
    panel = stat.Panel().title(title).description(description).unit(unit).datasource(DATASOURCE)
    return (
        panel.targets(_targets(queries))
        .mappings(_mappings(words or {}))
        .reduce_options(reduce)
        .graph_mode(common.BigValueGraphMode.NONE)
        .color_mode(colored)
        .text_mode(text)
    )


def timeline(title: str, description: str, query: Query, words: Mapping[int, Word]) -> statetimeline.Panel:
    """Return bands that change their color and their word, which stands for the value."""
    panel = (
        statetimeline.Panel().title(title).description(description).unit(units.NoUnit).datasource(DATASOURCE)
    )
    return (
        panel.targets(_targets([query]))
        .mappings(_mappings(words))
        .show_value(common.VisibilityMode.AUTO)
        .merge_values(True)
        .row_height(0.9)
        .fill_opacity(80)
        .legend(common_builders.VizLegendOptions().show_legend(False))
    )


class Grid:
    """Places panels on a dashboard row by row, so that none overlaps another, and numbers them."""

    def __init__(self, dashboard: builders.Dashboard) -> None:
        self._dashboard = dashboard
        self._top = 0
        self._next_id = 1

    def heading(self, title: str) -> None:
        """Begin a group of panels."""
        row = builders.Row(title).id(self._take_id())
        self._dashboard.with_row(row.grid_pos(models.GridPos(h=1, w=GRID_WIDTH, x=0, y=self._top)))
        self._top += 1

    def row(self, height: int, *panels: PanelBuilder) -> None:
        """Place panels of equal width beside each other.

        Raises:
            ValueError: The width of the grid is no multiple of their number.
        """
        width, rest = divmod(GRID_WIDTH, len(panels))
        if rest:
            raise ValueError(
                f"{len(panels)} panels do not share {GRID_WIDTH} columns evenly; take a divisor of it"
            )
        for index, panel in enumerate(panels):
            place = models.GridPos(h=height, w=width, x=index * width, y=self._top)
            self._dashboard.with_panel(panel.id(self._take_id()).grid_pos(place))
        self._top += height

    def _take_id(self) -> int:
        taken, self._next_id = self._next_id, self._next_id + 1
        return taken


def _targets(queries: Sequence[Query], *, instant: bool = False) -> list[Builder[Dataquery]]:
    return [_target(query, chr(ord("A") + index), instant) for index, query in enumerate(queries)]


def _target(query: Query, reference: str, instant: bool) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expr).ref_id(reference).datasource(DATASOURCE)
    if not query.legend:
        return target.instant().format(PromQueryFormat.TABLE)
    if instant:
        return target.legend_format(query.legend).instant()
    # Range queries also where one number is shown: a run that has left /metrics still has its last value.
    return target.legend_format(query.legend).range()


def _legend() -> common_builders.VizLegendOptions:
    return (
        common_builders.VizLegendOptions()
        .display_mode(common.LegendDisplayMode.TABLE)
        .placement(common.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["lastNotNull", "min", "max"])
    )


def _tooltip() -> common_builders.VizTooltipOptions:
    tooltip = common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI)
    return tooltip.sort(common.SortOrder.NONE)


def _column(column: Column) -> list[models.DynamicConfigValue]:
    found = [models.DynamicConfigValue(id_val="displayName", value=column.title)]
    if column.unit:
        found.append(models.DynamicConfigValue(id_val="unit", value=column.unit))
    if column.words:
        found.append(models.DynamicConfigValue(id_val="mappings", value=_mappings(column.words)))
        cell = {"type": "color-text"}
        found.append(models.DynamicConfigValue(id_val="custom.cellOptions", value=cell))
    if column.link:
        link = {"title": column.link_title, "url": column.link, "targetBlank": False}
        found.append(models.DynamicConfigValue(id_val="links", value=[link]))
    return found


def _mappings(words: Mapping[int, Word]) -> list[models.ValueMapping]:
    if not words:
        return []
    options = {
        str(value): models.ValueMappingResult(text=word.text, color=word.color, index=index)
        for index, (value, word) in enumerate(words.items())
    }
    return [models.ValueMap(options=options)]
