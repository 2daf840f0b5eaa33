"""Settings that contradict each other or are unknown end in one line."""

from __future__ import annotations

from typing import Any

import pytest

from farshore.algorithms.dp_kfac.config import DPKFACConfig
from farshore.algorithms.dp_kfac.settings import KFACSettings
from farshore.cli.settings import build
from farshore.core.errors import ConfigError
from farshore.engines.data_parallel.image_config import DataParallelConfig


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        (["early_stop=2"], "set eval_every"),
        (["preconditioner=dp_kfac", "compression=fp16"], "does not support compression"),
        (["preconditioning.damping=1"], "preconditioner is none"),
        (["preconditioner=dp_kfac", "preconditioning.damping=-1"], "preconditioning.damping: .* greater than 0"),
        (["preconditioner=dp_kfac", "preconditioning.dampign=1"], "settings are assignment, damping, "),
        (["preconditioner=dp_kfac", "preconditioning.strategy=hybrid"], "needs all gradients on all ranks"),
        (["betas=[0.9, 1.0]"], "less than 1"),
        (["lr_drops=[2]"], "between 0 and 1"),
    ],
)
def test_contradictions_are_refused(pairs: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        build(DataParallelConfig, pairs)
    assert "\n" not in str(caught.value)


def test_dp_kfac_has_the_preconditioners_settings_at_the_top() -> None:
    nested: Any = build(DataParallelConfig, ["preconditioner=dp_kfac", "preconditioning.damping=0.5"])
    flat: Any = build(DPKFACConfig, ["damping=0.5"])
    assert nested.preconditioner_settings() == flat.preconditioner_settings() == KFACSettings(damping=0.5)
    for pairs in (["preconditioner=none"], ["preconditioning.damping=0.5"]):
        with pytest.raises(ConfigError):
            build(DPKFACConfig, pairs)


def test_settings_survive_json() -> None:
    config = DataParallelConfig(preconditioner="dp_kfac", preconditioning={"damping": 0.5}, lr_drops=(0.25,))
    assert DataParallelConfig.model_validate_json(config.model_dump_json()) == config
