"""Writes a report or a comparison as one self-contained HTML page with tables and Plotly charts."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import MissingExtraError
from ..core.json_text import to_json
from ..core.version import installed
from ..runs import files
from .charts import charts
from .compare import Comparison, score_over_bytes
from .links import NETWORK_JOULE_PER_BYTE, NETWORK_SOURCE
from .run_report import RunReport
from .units import ARROWS, energy, ratio, share, size, span

if TYPE_CHECKING:
    from jinja2 import Environment

#: Maximum number of nodes in the table of top talkers.
_MAX_TALKERS = 20


def write_page(report: RunReport, path: Path) -> None:
    """Write the page of a report.

    Raises
    ------
    MissingExtraError
        plotly or Jinja2 is not installed.
    StorageError
        The file cannot be written.
    """
    drawn = charts(report)
    text = _render("report.html", **template_values(report), charts=drawn, data=[chart.as_dict() for chart in drawn])
    files.replace(path.expanduser(), lambda temporary: _write(temporary, text))


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write the page of a comparison; raises the errors of :func:`write_page`."""
    drawn = [chart] if (chart := score_over_bytes(comparison)) else []
    data = [chart.as_dict() for chart in drawn]
    text = _render("comparison.html", comparison=comparison, charts=drawn, data=data)
    files.replace(path.expanduser(), lambda temporary: _write(temporary, text))


def template_values(report: RunReport) -> dict[str, Any]:
    """Variables of the report templates, except the charts."""
    return {"report": report, "talkers": _top_talkers(report), "network": _network_energy(report)}


def _render(template: str, **values: Any) -> str:
    templates = environment("farshore.reports")
    return str(templates.get_template(template).render(plotly=plotly_script, asset=asset, **values))


def environment(*packages: str) -> Environment:
    """Create a Jinja2 environment over the ``templates`` folders of packages, searched in this order.

    All values are escaped; undefined variables raise an error.

    Raises
    ------
    MissingExtraError
        Jinja2 is not installed.
    """
    try:
        from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape
    except ModuleNotFoundError as error:
        raise MissingExtraError("jinja2", "reports") from error
    made = Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in packages]),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "arrow": ARROWS.get,
        "size": size,
        "ratio": ratio,
        "share": share,
        "span": span,
        "energy": energy,
    }
    made.filters["pretty"] = _pretty_json
    made.globals["version"] = installed("farshore")
    return made


def plotly_script() -> str:
    """Source text of plotly.js, which draws the charts.

    Raises
    ------
    MissingExtraError
        plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        raise MissingExtraError("plotly", "reports") from error
    return str(get_plotlyjs())


def asset(name: str, package: str = "farshore.reports", folder: str = "templates") -> str:
    """Text of a file that is shipped with a package."""
    return (resources.files(package) / folder / name).read_text(encoding="utf-8")


def _top_talkers(report: RunReport) -> list[Any]:
    return sorted(report.communication.by_node, key=lambda line: -line.volume.frame_bytes)[:_MAX_TALKERS]


def _network_energy(report: RunReport) -> Mapping[str, Any]:
    joule = report.communication.total.frame_bytes * NETWORK_JOULE_PER_BYTE
    return {"joule": joule, "source": NETWORK_SOURCE}


def _pretty_json(value: Any) -> str:
    return to_json(value, indent=2, ensure_ascii=False, default=str)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
