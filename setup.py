"""Maps the top-level folders onto one import package; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

rooms = ["algorithms", "client", "core", "data", "edge", "proto", "reports", "runs", "server", "simulations", "wire"]
inside = [f"farshore.{r}" for r in rooms] + [f"farshore.{r}.{p}" for r in rooms for p in find_packages(r)]
own = ["farshore", *(f"farshore.{p}" for p in find_packages("farshore"))]

setup(
    packages=own + inside,
    package_dir={"farshore": "farshore", **{f"farshore.{r}": r for r in rooms}},
    package_data={
        "farshore": ["py.typed", "template/*.txt"],
        "farshore.reports": ["templates/*"],
        "farshore.server.dashboard": ["assets/*", "templates/*"],
        "farshore.simulations": ["scenarios/*.yaml", "profiles/*.yaml", "flower_vhl/pyproject.toml"],
    },
)
