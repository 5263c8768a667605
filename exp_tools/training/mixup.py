"""Mixup and CutMix: each image of a batch is mixed with another, and so are their targets and metadata.

As timm's Mixup in its mode "batch", which draws from NumPy's global generator and takes batches of even length only.
Here a draw depends on (seed, epoch, step, process) and on nothing else, so that a resumed run draws the same.

References
----------
Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018.
Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, ICCV 2019.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def mix(
    inputs: Sequence[Tensor],
    targets: Tensor,
    *,
    mixup: float,
    cutmix: float,
    seed: int,
    epoch: int,
    step: int,
    rank: int,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Mix a batch with itself in reverse order, by one proportion λ ~ Beta(α, α) for all its images.

    An image whose partner is padding stays as it is. Partners exchange as much as they get, so that the targets of the
    batch add up to what they did before, class by class.

    Parameters
    ----------
    inputs : images, float [B, 3, S, S]; and metadata [B, 3] for a network that takes it
    targets : float32 [B, C], zeros for padding
    mixup, cutmix : α of each; 0 means never. With both, a fair coin chooses for the batch
    seed, epoch, step, rank : what the draw depends on

    Returns
    -------
    The network's inputs and targets [B, C]; the given ones are left as they are. Metadata is followed by that of each
    image's partner, [B, 3], and by the share that is the image's own, float32 [B, 1]: categories have no mean, so the
    network mixes them where they are vectors
    """
    if not mixup and not cutmix:
        return tuple(inputs), targets
    images, *metadata = inputs
    generator = _generator_for(seed, epoch, step, rank)
    paste = not mixup or (cutmix > 0 and generator.random() < 0.5)
    alpha = cutmix if paste else mixup
    kept = generator.beta(alpha, alpha)
    real = targets.sum(1) > 0
    both = (real & real.flip(0)).view(-1, 1, 1, 1)
    partners = images.flip(0)
    if paste:
        size = images.shape[-1]
        rows, columns = cut_box(size, kept, generator)
        kept = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / size**2
        mixed = images.clone()
        box = (..., rows, columns)
        mixed[box] = torch.where(both, partners[box], images[box])
    else:
        mixed = partners.lerp(images, torch.where(both, kept, 1.0).to(images.dtype))
    own = torch.where(both, kept, 1.0).to(targets.dtype).view(-1, 1)
    more = [part for rows in metadata for part in (rows, rows.flip(0), own)]
    return (mixed, *more), targets.flip(0).lerp(targets, own)


def cut_box(size: int, kept: float, generator: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns of a square anywhere in the picture, 1 - kept of its area where the border cuts off none."""
    side = int(size * np.sqrt(1 - kept))
    starts = generator.integers(0, size, 2) - side // 2
    rows, columns = (slice(max(0, int(start)), min(size, int(start) + side)) for start in starts)
    return rows, columns


def _generator_for(seed: int, epoch: int, step: int, rank: int) -> np.random.Generator:
    """As augment.generator_for, under keys that it does not use."""
    return np.random.Generator(np.random.Philox(key=1 << 64 | seed << 32 | epoch, counter=rank << 128 | step << 64))
