"""Lines of the metrics files, as read back."""

from __future__ import annotations

from pathlib import Path

from farshore.runs import jsonl
from farshore.runs.metrics import MetricsWriter


def test_a_metric_named_like_a_field_cannot_replace_the_node_or_the_step(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    writer.write_node("edge-1", 3, {"node": 5.0, "step": 9.0, "time": 0.0, "loss": 1.0})
    writer.close()
    (line,) = jsonl.read(tmp_path / "node_metrics.jsonl")
    assert (line["node"], line["step"], line["loss"]) == ("edge-1", 3, 1.0)
    assert line["time"] > 0.0
