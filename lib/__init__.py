"""The companion's package: one room per part of an energy-based model.

    energy  +  where a chain starts  +  how it steps  +  what the loss is  +  how weights are updated
    energy.py        inits.py, buffer.py   samplers.py      losses.py              sam.py, train.py

Imports point one way: params, data, networks -> energy -> inits, samplers, buffer, losses -> train
-> metrics, plots -> book (the notebooks' side).
"""
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent       # every path of the project is anchored here
