"""What trains a run, with no method's name in it: one update (trainer), the loop around it (loop), checkpoints, several
processes (distributed), provenance."""

from lib.training.loop import DIVERGED, OutOfTime, fit
from lib.training.trainer import Trainer, deterministic
