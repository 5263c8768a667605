"""The loader: right rows, balanced draws, the same batches whatever the workers."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from exp_tools.data.inputs.dataset import PADDING, EpochOrder, FixedOrder, Key, PackedImages
from exp_tools.training.loader import Setup, TrainingData, make_loader, start_worker


def test_fetched_images_and_labels_are_those_of_the_rows(packed):
    path, labels = packed
    batch = PackedImages(path, labels).__getitems__([Key(0, 0, 6), Key(0, 1, 1)])
    assert (batch.images == np.load(path)[[6, 1]]).all()
    assert batch.labels.tolist() == [2, 1]
    assert batch.index.tolist() == [6, 1]


def test_an_epoch_draws_every_row_once_in_an_order_of_its_own():
    order = EpochOrder(np.arange(10, 17), 3, seed=0)
    order.set_epoch(1)
    first = list(order)
    assert [len(batch) for batch in first] == [2, 2, 3]
    assert len(order) == 3
    assert sorted(key.index for batch in first for key in batch) == list(range(10, 17))
    assert [key.position for batch in first for key in batch] == list(range(7))
    assert list(order) == first
    order.set_epoch(2)
    assert [key.index for batch in order for key in batch] != [key.index for batch in first for key in batch]


def test_weights_balance_the_draw():
    labels = np.array([0] * 900 + [1] * 100)
    order = EpochOrder(np.arange(1000), 50, seed=0, weights=np.where(labels == 0, 1 / 900, 1 / 100))
    drawn = np.concatenate([[labels[key.index] for batch in order for key in batch] for order.epoch in range(10)])
    assert abs(drawn.mean() - 0.5) < 0.02  # ten thousand draws: standard deviation 0.005


def test_fixed_order_keeps_the_order():
    assert [[key.index for key in batch] for batch in FixedOrder(np.array([5, 3, 4]), 2)] == [[5, 3], [4]]


@pytest.mark.parametrize("sampler", ["none", "balanced"])
def test_batches_are_the_same_with_any_number_of_workers(packed, params, sampler):
    path, labels = packed
    data = TrainingData(path, labels, np.arange(8), np.arange(8), ["a", "b", "c", "d"], [])
    settings = params.train.model_copy(update={"batch_size": 3, "sampler": sampler})
    seen = []
    for workers in (0, 1, 2):
        loader, order = make_loader(data, settings, Setup(torch.device("cpu"), workers=workers))
        batches = []
        for epoch in (1, 2):
            order.set_epoch(epoch)
            batches += list(loader)
        seen.append(batches)
    for other in seen[1:]:
        assert len(other) == len(seen[0]) == 6
        for left, right in zip(seen[0], other, strict=True):
            assert torch.equal(left.images, right.images)
            assert torch.equal(left.labels, right.labels)
    assert not torch.equal(seen[0][0].images, seen[0][3].images)


def test_no_batch_is_a_lone_image():
    for images in range(2, 60):
        sizes = [len(keys) for keys in EpochOrder(np.arange(images), 8, seed=0)]
        assert sum(sizes) == images
        assert max(sizes) <= 8
        assert max(sizes) - min(sizes) <= 1
        assert len(sizes) == -(-images // 8)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no posix_fadvise")
def test_a_batch_is_announced_image_by_image(packed, monkeypatch):
    path, labels = packed
    told = []
    monkeypatch.setattr(os, "posix_fadvise", lambda number, start, size, advice: told.append((start, size, advice)))
    rows = [2, PADDING, 5]
    fetched = PackedImages(path, labels).__getitems__([Key(1, place, row) for place, row in enumerate(rows)])
    content = path.read_bytes()
    assert [content[start : start + size] for start, size, _ in told] == [
        image.tobytes() for image, row in zip(fetched.images, rows, strict=True) if row != PADDING
    ]
    assert {advice for *_, advice in told} == {os.POSIX_FADV_WILLNEED}


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="no sigwaitinfo")
def test_a_loader_process_ends_when_its_parent_says_so_and_only_then():
    started = multiprocessing.get_context("fork").Process(target=wait_as_a_loader, daemon=True)
    started.start()
    stranger = f"import os, signal; os.kill({started.pid}, signal.SIGTERM)"
    time.sleep(0.5)
    subprocess.run([sys.executable, "-c", stranger], check=True)
    started.join(1)
    assert started.is_alive()
    started.terminate()
    started.join(20)
    assert started.exitcode == 0


def wait_as_a_loader() -> None:
    start_worker(0)
    time.sleep(60)
