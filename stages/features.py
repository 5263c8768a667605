"""Compute the pooled features of all images by the frozen encoders of a probe, by each encoder once.

Reads   data/prepared/images.npy
Writes  data/features/: float32 [N, D] for each encoder, features.json

What is there already of the same encoder, weights, images and code stays. For any other model than `probe` the folder
holds an empty list; neither splits, labels nor the head have a part in it.
"""

import time

from exp_tools.errors import run_main
from exp_tools.io import write_json
from exp_tools.params import load_params
from exp_tools.project import FEATURES, IMAGES


def main() -> None:
    params = load_params()
    if params.model.name != "probe":
        for file in FEATURES.glob("*"):
            file.unlink()
        write_json(FEATURES / "features.json", {"encoders": []})
        print(f"{FEATURES}: nothing, as {params.model.name} computes its own")
        return

    import numpy as np  # here, and torch with what follows: for other models the stage is done before they are loaded

    from exp_tools.devices import prepare_machine
    from exp_tools.probing.encoders import check_encoders, compute_features

    device = prepare_machine(params.machine)
    encoders = params.model.probe.encoders
    images = np.load(IMAGES, mmap_mode="r")
    check_encoders(encoders, images.shape[1])
    start = time.monotonic()
    for row in compute_features(encoders, IMAGES, FEATURES, device=device):
        done = "kept" if row["kept"] else f"{time.monotonic() - start:.0f} s so far"
        print(f"{FEATURES / row['file']}: {row['images']:,} images, {row['features']:,} features, {done}")


if __name__ == "__main__":
    run_main(main)
