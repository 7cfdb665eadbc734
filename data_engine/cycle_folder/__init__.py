"""The run folder of a data-engine loop: its files, its steps, and the history of the promoted model.

folder.py     paths of all files, and the reading and writing of the small JSON files among them
steps.py      the steps that the config lists
promotion.py  which model is promoted, and why

`data_engine.cycle` runs the loop in such a folder, `data_engine.report` describes one.
"""

from data_engine.cycle_folder.folder import CycleFolder, StepFolder
from data_engine.cycle_folder.promotion import PromotionRecord
from data_engine.cycle_folder.steps import START_STEP, Step, parse_steps

__all__ = ["START_STEP", "CycleFolder", "PromotionRecord", "Step", "StepFolder", "parse_steps"]
