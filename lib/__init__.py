"""The companion's package: the one-idea table as folders.

    energy  +  where a chain starts  +  how it steps  +  what the loss is  +  how weights are updated

parts/      the table: a file per column, a class per cell          params.py   params.yaml -> a run, its cells checked
data/       splits, batches, images of another kind                  training/   one update, the loop around it
measures/   what is measured of a trained model                      models.py   a trained model: sample, classify, score
papers/     the papers' artefacts and numbers                        plots/      every picture
bench/      how fast an update is

Most files beside these folders are commands: python -m lib.train, evaluate, applications, sources, book, cards, fleet,
pipeline, environment; so is the folder bench. The rest helps them: files, memory, packing, vision.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # every path of the project is anchored here


def __getattr__(name: str):
    """`from lib import load_run, Energy`: loaded when they are asked for."""
    if name == "load_run":
        from lib.models import load_run

        return load_run
    if name == "Energy":
        from lib.parts.energy import Energy

        return Energy
    raise AttributeError(f"module 'lib' has no attribute {name!r}")
