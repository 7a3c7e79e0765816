"""Panels: the few kinds that the dashboards draw, each complete, and their places on the grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from curvewatch_dashboards.grafana import (
    Builder,
    Dataquery,
    builders,
    common,
    common_builders,
    models,
    prometheus,
    stat,
    statetimeline,
    timeseries,
    units,
)

DATASOURCE = common.DataSourceRef(type_val="prometheus", uid="${datasource}")
"""The datasource that the person has chosen on the dashboard."""

GRID_WIDTH = 24

PanelBuilder = timeseries.Panel | stat.Panel | statetimeline.Panel


@dataclass(frozen=True, kw_only=True)
class Query:
    """One query and the name that its series get."""

    expr: str
    legend: str


@dataclass(frozen=True, kw_only=True)
class Word:
    """What a number stands for on a panel that shows words."""

    text: str
    color: str


def curves(title: str, description: str, *queries: Query, unit: str = units.NoUnit) -> timeseries.Panel:
    """Return a panel of lines over time. Points stay apart where no epoch was seen."""
    legend = (
        common_builders.VizLegendOptions()
        .display_mode(common.LegendDisplayMode.TABLE)
        .placement(common.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["lastNotNull", "min", "max"])
    )
    tooltip = common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI)
    panel = timeseries.Panel().title(title).description(description).unit(unit).datasource(DATASOURCE)
    return (
        panel.targets(_targets(queries))
        .legend(legend)
        .tooltip(tooltip.sort(common.SortOrder.NONE))
        .line_width(2)
        .fill_opacity(0)
        .show_points(common.VisibilityMode.AUTO)
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
) -> stat.Panel:
    """Return a panel of the latest values, as numbers or as the words that they stand for."""
    reduce = common_builders.ReduceDataOptions().calcs(["lastNotNull"])
    colored = common.BigValueColorMode.BACKGROUND if words else common.BigValueColorMode.NONE
    text = (
        common.BigValueTextMode.VALUE_AND_NAME if len(queries) > 1 or words else common.BigValueTextMode.VALUE
    )
    panel = stat.Panel().title(title).description(description).unit(unit).datasource(DATASOURCE)
    return (
        panel.targets(_targets(queries))
        .mappings(_mappings(words or {}))
        .reduce_options(reduce)
        .graph_mode(common.BigValueGraphMode.NONE)
        .color_mode(colored)
        .text_mode(text)
    )


def timeline(title: str, description: str, query: Query, words: Sequence[Word]) -> statetimeline.Panel:
    """Return a band that changes its colour and its word; value i of the query stands for word i."""
    panel = (
        statetimeline.Panel().title(title).description(description).unit(units.NoUnit).datasource(DATASOURCE)
    )
    return (
        panel.targets(_targets([query]))
        .mappings(_mappings(dict(enumerate(words))))
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


def _targets(queries: Sequence[Query]) -> list[Builder[Dataquery]]:
    # Range queries also where one number is shown: a run that has left /metrics still has its last value.
    return [
        prometheus.Dataquery()
        .expr(query.expr)
        .legend_format(query.legend)
        .ref_id(chr(ord("A") + index))
        .datasource(DATASOURCE)
        .range()
        for index, query in enumerate(queries)
    ]


def _mappings(words: Mapping[int, Word]) -> list[models.ValueMapping]:
    if not words:
        return []
    options = {
        str(value): models.ValueMappingResult(text=word.text, color=word.color, index=index)
        for index, (value, word) in enumerate(words.items())
    }
    return [models.ValueMap(options=options)]
