"""Installs `transrec` and what it needs to run; `pip install -e .[test]` adds what its tests need."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
IMPORT = ["duckdb>=2.0", "pyarrow>=16"]
SEARCH = ["optuna>=4.0"]
CLUSTER = ["submitit>=1.5"]
LARGE = ["accelerate>=1.1"]

setup(
    name="transrec",
    version=re.search(r'__version__ = "(.+)"', (HERE / "transrec/__init__.py").read_text()).group(1),
    description="Adapt foundation models to sequential recommendation cheaply",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["transrec", "transrec.*"]),
    package_data={"transrec": ["py.typed", "reports/published.csv"]},
    python_requires=">=3.11",
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    install_requires=(HERE / "requirements.txt").read_text().split(),
    extras_require={
        "test": [
            *IMPORT,
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.8",
            "basedpyright>=1.28",
            "ir-measures>=0.3.7",
            *SEARCH,
            *CLUSTER,
            *LARGE,
        ],
        "cluster": CLUSTER,
        "large": LARGE,
        "docs": ["pdoc>=15"],
        "import": IMPORT,
        "peft": ["peft>=0.15"],
        "search": SEARCH,
        "tensorboard": ["tensorboard>=2.16"],
    },
)
