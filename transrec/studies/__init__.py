"""Studies: grids of runs from one command, and their tables (`scripts/study_*.py`, `scripts/reproduce/`).

A grid (`grid`) is a list of axes; a point of it is one row of the table. A study (`study`) makes of every point a run
for each seed; `workers` starts them, several at a time and beside other processes of the same study, `cluster` as jobs
of SLURM; `command` is the command line. `grids` holds the papers' grids, `papers` what their tables need.
"""

from transrec.studies.command import main
from transrec.studies.grid import Axis, Grid, encoder_axis
from transrec.studies.study import Job, Study
from transrec.studies.workers import Workers

__all__ = ["Axis", "Grid", "Job", "Study", "Workers", "encoder_axis", "main"]
