"""Studies: grids of runs from one command, and their tables (`scripts/study_*.py`, `scripts/reproduce/`).

A grid (`grid`) is a list of axes; each of its points is one row of the table. A study (`study`) has one run per point
and seed. `workers` runs several of them at the same time, next to other processes of the same study; `cluster` runs
them as SLURM jobs. `command` is the command line, `grids` holds the papers' grids, and `papers` holds the datasets and
backbones of the papers' tables.
"""

from transrec.studies.command import main
from transrec.studies.grid import Axis, Grid, encoder_axis
from transrec.studies.study import Job, Study
from transrec.studies.workers import Workers

__all__ = ["Axis", "Grid", "Job", "Study", "Workers", "encoder_axis", "main"]
