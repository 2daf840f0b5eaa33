"""A run's report as one page that needs no network: tables, and charts by Plotly's script, which it holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import MissingExtraError
from ..core.version import installed
from ..runs import files
from .charts import charts
from .compare import Comparison, score_over_bytes
from .links import NETWORK_JOULE_PER_BYTE, NETWORK_SOURCE
from .run_report import RunReport
from .units import ARROWS, energy, ratio, share, size, span

if TYPE_CHECKING:
    from jinja2 import Environment

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
    text = _render("report.html", **told(report), charts=drawn, data=[chart.as_dict() for chart in drawn])
    files.replace(path.expanduser(), lambda temporary: _write(temporary, text))


def write_comparison(found: Comparison, path: Path) -> None:
    """Write the page of a comparison; errors as :func:`write_page`."""
    drawn = [chart] if (chart := score_over_bytes(found)) else []
    text = _render("comparison.html", found=found, charts=drawn, data=[chart.as_dict() for chart in drawn])
    files.replace(path.expanduser(), lambda temporary: _write(temporary, text))


def told(report: RunReport) -> dict[str, Any]:
    """What the templates of a report take, beside its charts."""
    return {"report": report, "talkers": _talkers(report), "network": _network(report)}


def _render(template: str, **values: Any) -> str:
    made = environment("farshore.reports")
    return str(made.get_template(template).render(plotly=plotly_script, asset=asset, **values))


def environment(*packages: str) -> Environment:
    """Templates of these packages, the first that has one; every value is escaped, and one that is missing an error.

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
    made.filters |= {"arrow": ARROWS.get, "size": size, "ratio": ratio, "share": share, "span": span, "energy": energy}
    made.filters["pretty"] = _pretty
    made.globals["version"] = installed("farshore")
    return made


def plotly_script() -> str:
    """What draws the charts.

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
    """A text file that comes with a package."""
    return (resources.files(package) / folder / name).read_text(encoding="utf-8")


def _talkers(report: RunReport) -> list[Any]:
    return sorted(report.communication.by_node, key=lambda line: -line.volume.frame_bytes)[:_TALKERS]


def _network(report: RunReport) -> Mapping[str, Any]:
    joule = report.communication.total.frame_bytes * NETWORK_JOULE_PER_BYTE
    return {"joule": joule, "source": NETWORK_SOURCE}


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
