"""Images that are augmented where they lie, all at once, are those that the loader augments one by one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from exp_tools.data.inputs.augment import PRESETS, Magnitudes
from exp_tools.data.inputs.dataset import PADDING, EpochOrder, Key, PackedImages
from exp_tools.models.device_images import DeviceImages, upload

CPU = torch.device("cpu")
COUNT, SIZE = 24, 40


@pytest.fixture
def images(tmp_path):
    """Noise, gradients and edges: wherever a rounding differs, one of them shows it."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (COUNT, SIZE, SIZE, 3), dtype=np.uint8)
    pixels[: COUNT // 3] = np.linspace(0, 255, SIZE).astype(np.uint8)[None, None, :, None]
    pixels[COUNT // 3 : COUNT // 2, :, : SIZE // 2] = 0
    path = tmp_path / "images.npy"
    np.save(path, pixels)
    return path


def both(path, limits, keys, **options):
    labels, metadata = np.arange(COUNT) % 5, np.arange(3 * COUNT, dtype=np.float32).reshape(-1, 3)
    order = EpochOrder(np.arange(COUNT), 8, seed=3)
    loader = PackedImages(path, labels, limits, 3, metadata)
    device = DeviceImages(upload(path, CPU), order, labels, limits, 3, metadata)
    return loader.__getitems__(keys), device.fetch(keys).numpy(), device


LIMITS = {
    **{name: Magnitudes(**values) for name, values in PRESETS.items()},
    "erased": Magnitudes(**PRESETS["heavy"] | {"erase": 0.5}),
    "one of all": Magnitudes(**PRESETS["heavy"] | {"one": 1, "erase": 0.5}),
    "tilted": Magnitudes(perspective=0.9),
    "far": Magnitudes(shift=3, scale=0.9, rotation=180),
    "bright": Magnitudes(brightness=3, contrast=0.9, saturation=2, hue=180),
}


@pytest.mark.parametrize("name", LIMITS)
def test_the_same_bytes_as_one_by_one(images, name):
    keys = [Key(epoch, place, (7 * place) % COUNT) for epoch in (1, 2) for place in range(60)]
    alone, together, _ = both(images, LIMITS[name], keys)
    assert np.array_equal(alone.images, together)


def test_padding_is_black_and_moves_no_other_image(images):
    limits = Magnitudes(**PRESETS["heavy"] | {"erase": 0.9})
    keys = [Key(1, 0, 4), Key(1, 0, PADDING), Key(1, 1, 5)]
    alone, together, _ = both(images, limits, keys)
    assert np.array_equal(alone.images, together)
    assert not together[1].any()


def test_an_epoch_is_that_of_the_loader(images):
    limits = Magnitudes(**PRESETS["heavy"])
    _, _, device = both(images, limits, [Key(1, 0, 0)])
    device.order.set_epoch(2, first=1)
    loader = PackedImages(images, device.labels, limits, 3, device.metadata)
    found = list(device)
    assert len(found) == len(device) - 1 == 2
    for batch, keys in zip(found, device.order, strict=True):
        wanted = loader.__getitems__(keys)
        for name, array in wanted._asdict().items():
            assert np.array_equal(getattr(batch, name).numpy(), array), name
            assert getattr(batch, name).numpy().dtype == array.dtype, name


def test_images_of_one_pixel(tmp_path):
    np.save(tmp_path / "images.npy", np.full((2, 1, 1, 3), 7, dtype=np.uint8))
    order = EpochOrder(np.arange(2), 2, seed=0)
    device = DeviceImages(upload(tmp_path / "images.npy", CPU), order, np.zeros(2), Magnitudes(rotation=30), 0)
    assert (device.fetch([Key(1, 0, 1)]).numpy() == 7).all()


def test_limits_without_any_change_give_the_image(images):
    alone, together, _ = both(images, replace(Magnitudes(), flip=0), [Key(1, place, place) for place in range(COUNT)])
    assert np.array_equal(together, np.load(images))
    assert np.array_equal(alone.images, together)
