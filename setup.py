"""Maps the top-level folders onto one import package; everything else is in pyproject.toml."""

import tomllib
from pathlib import Path

from setuptools import find_packages, setup

listed = tomllib.loads((Path(__file__).parent / "packages.toml").read_text(encoding="utf-8"))["packages"]
folders = [name for name in listed if name != "farshore"]
inside = [f"farshore.{f}" for f in folders] + [f"farshore.{f}.{p}" for f in folders for p in find_packages(f)]
own = ["farshore", *(f"farshore.{p}" for p in find_packages("farshore"))]

setup(
    packages=own + inside,
    package_dir={"farshore": "farshore", **{f"farshore.{f}": f for f in folders}},
    package_data={
        "farshore": ["py.typed", "template/*/*"],
        "farshore.reports": ["templates/*"],
        "farshore.server.dashboard": ["assets/*", "templates/*"],
        "farshore.simulations": ["scenarios/*.yaml", "profiles/*.yaml", "flower_vhl/pyproject.toml"],
    },
)
