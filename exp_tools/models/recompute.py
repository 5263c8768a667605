"""Gradient checkpointing: activations inside a backbone are computed again in the backward pass, not kept in memory.

Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016, arXiv:1604.06174.
"""

import contextlib
from collections.abc import Iterator

from torch import nn

from exp_tools.errors import UserError
from exp_tools.models.backbone import Backbone, batch_norms


def recompute_activations(model: nn.Module) -> None:
    """Switch checkpointing on in every backbone of a model.

    Raises
    ------
    UserError
        timm cannot for this backbone, or the architecture runs the backbone's layers by itself.
    """
    for backbone in (part for part in model.modules() if isinstance(part, Backbone)):
        if type(backbone).features is not Backbone.features:
            raise UserError(
                f"train.checkpointing: {backbone.name} cannot compute its activations twice (with place inner); set it "
                "to false or take place last"
            )
        try:
            backbone.network.set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as error:
            raise UserError(
                f"train.checkpointing: {backbone.name} cannot compute its activations twice ({error}); set it to false "
                "or take another backbone"
            ) from error


@contextlib.contextmanager
def statistics_at_rest(model: nn.Module) -> Iterator[None]:
    """Let BatchNorm gather no statistics: what the backward pass computes again has been counted already."""
    norms = batch_norms(model)
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = None, None  # without either, torch averages with a share of 0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
