"""A run's report as one page that needs no network: tables, and charts by Plotly's script, which it holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from ..core.errors import MissingExtraError
from ..core.version import installed
from ..runs import files
from .charts import charts
from .links import NETWORK_JOULE_PER_BYTE, NETWORK_SOURCE
from .run_report import RunReport
from .side_by_side import SideBySide, score_over_bytes
from .units import energy, ratio, share, size, span

_TALKERS = 20


def write_page(report: RunReport, path: Path) -> None:
    """Write the page.

    Raises
    ------
    MissingExtraError
        plotly or Jinja2 is not installed.
    StorageError
        The file cannot be written.
    """
    drawn = charts(report)
    told = {"talkers": _talkers(report), "network": _network(report)}
    data = [chart.as_dict() for chart in drawn]
    text = render("report.html", report=report, charts=drawn, data=data, **told)
    files.replace(path.expanduser(), lambda temporary: _write(temporary, text))


def write_comparison(found: SideBySide, path: Path) -> None:
    """Write the page of a comparison; errors as :func:`write_page`."""
    chart = score_over_bytes(found)
    data = [chart.as_dict()] if chart else []
    text = render("comparison.html", found=found, chart=chart, data=data)
    files.replace(path.expanduser(), lambda temporary: _write(temporary, text))


def render(template: str, **values: Any) -> str:
    """Fill in one of the templates; every value is escaped.

    Raises
    ------
    MissingExtraError
        plotly or Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        raise MissingExtraError((error.name or "").split(".")[0], "reports") from error
    environment = Environment(
        loader=PackageLoader("farshore.reports"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"size": size, "ratio": ratio, "share": share, "span": span, "energy": energy}
    environment.filters["pretty"] = _pretty
    assets = {"plotly": get_plotlyjs, "asset": _asset}
    return environment.get_template(template).render(version=installed("farshore"), **assets, **values)


def _talkers(report: RunReport) -> list[Any]:
    return sorted(report.communication.by_node, key=lambda line: -line.volume.frame_bytes)[:_TALKERS]


def _network(report: RunReport) -> Mapping[str, Any]:
    joule = report.communication.total.frame_bytes * NETWORK_JOULE_PER_BYTE
    return {"joule": joule, "source": NETWORK_SOURCE}


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def _asset(name: str) -> str:
    return (resources.files("farshore.reports") / "templates" / name).read_text(encoding="utf-8")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
