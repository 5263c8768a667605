"""The stages of the pipeline, each a script: `python -m stages.train`."""

import gc

gc.set_threshold(50_000)  # importing torch and timm makes a million objects and no garbage to look for
