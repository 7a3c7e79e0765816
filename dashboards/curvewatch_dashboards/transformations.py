"""What Grafana makes of the answers before a panel draws them."""

from __future__ import annotations

from collections.abc import Mapping

from curvewatch_dashboards.grafana import models

Transformations = tuple[models.DataTransformerConfig, ...]


def matrix(rows: str, columns: str) -> tuple[Transformations, str]:
    """Turn one table of (row, column, value) into one row for each row label and one field for each column label.

    A Trend panel asks for one frame whose x is a number and strictly ascending; labels are text, in which 10
    comes before 2.

    Args:
        rows: Label whose values are whole numbers, such as the epoch.
        columns: Label whose values name the lines.

    Returns:
        The transformations, and the name of the field with the row labels.
    """
    x = f"{rows}\\{columns}"
    return (
        _step("groupingToMatrix", rowField=rows, columnField=columns, valueField="Value", emptyValue="null"),
        _step("convertFieldType", fields={}, conversions=[{"targetField": x, "destinationType": "number"}]),
        _step("sortBy", fields={}, sort=[{"field": x, "desc": False}]),
    ), x


def joined(by: str, names: Mapping[str, str]) -> Transformations:
    """Join the tables of several queries by a label.

    Args:
        by: The label.
        names: The fields that are shown, in order, each with what a person reads.
    """
    # First of all without the other fields: each table has a time of its own.
    return (*only(tuple(names)), _step("joinByField", byField=by, mode="outer"), *arranged(names))


def only(names: tuple[str, ...]) -> Transformations:
    """Leave out all other fields."""
    return (_step("filterFieldsByName", include={"names": list(names)}),)


def arranged(names: Mapping[str, str]) -> Transformations:
    """Rename and order the fields of a table."""
    order = {name: index for index, name in enumerate(names)}
    return (_step("organize", excludeByName={}, indexByName=order, renameByName=dict(names)),)


def _step(kind: str, **options: object) -> models.DataTransformerConfig:
    return models.DataTransformerConfig(id_val=kind, options=options)
