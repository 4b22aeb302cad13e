"""Settings -> model, optimizer, loss and negatives."""

from __future__ import annotations

import os

from reader import UniformNegatives
from ssr.errors import SetupError
from ssr.runtime import paddle
from ssr.training.negatives import PopularityNegatives, SharedNegatives


def build(settings, clicks, content=None):
    """The model and its optimizer, with the initial values that belong to the seed.

    clicks: <int32>[V], how often each item was clicked in training
    content: ssr.training.content.ItemContent, None where an item is its own id
    Raises SetupError where the machine has no room for them.
    """
    from nets import SequenceSemanticRetrieval  # here: help and wrong flags need no Paddle

    num_tokens, vector_dim = (content.num_tokens, content.vector_dim) if content else (0, 0)
    check_memory(settings, len(clicks) + num_tokens)
    paddle.seed(settings.seed)
    model = SequenceSemanticRetrieval(len(clicks), num_tokens=num_tokens,
                                      item_vector_dim=vector_dim, **settings.architecture())
    if vector_dim:
        model.item_projection.standardise_by(*content.vectors.mean_and_std(clicks > 0))
    # As a tensor: from an array Paddle 3 takes the type of the IR in use, which may have changed.
    model.item_clicks.set_value(paddle.to_tensor(clicks))
    if settings.optimizer == "adam":
        from ssr.kernels.adam import LazyAdam  # here: flags need no Paddle

        optimizer = LazyAdam(settings.base_lr, model.parameters())
    else:
        optimizer = paddle.optimizer.Adagrad(settings.base_lr, parameters=model.parameters())
    return model, optimizer


def check_memory(settings, rows):
    """Raises SetupError where the table and the optimizer's state of so many rows do not fit into
    this machine's memory, before Paddle ends the process for it."""
    copies = 3 if settings.optimizer == "adam" else 2  # the table, and a moment or two of each
    needed = 4 * copies * rows * settings.members * settings.embedding_dim
    present = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > present:
        raise SetupError(
            f"the table of {rows:,} rows and the optimizer's state of it take "
            f"{needed / 2 ** 30:,.0f} GiB, and this machine has {present / 2 ** 30:,.0f}: is "
            "--vocab_path that of this data? A smaller --embedding_dim takes less")


def build_objective(settings, dataset, content=None):
    """(loss, negatives) for the sessions to train on, a reader.YoochooseDataset."""
    from nets import PairwiseHingeLoss
    from ssr.training.losses import SampledSoftmaxLoss

    if settings.loss == "softmax":
        return SampledSoftmaxLoss(settings.scale, settings.sampled_weight), SharedNegatives(
            dataset, settings.num_negatives, settings.neg_alpha)
    if content is not None or settings.neg_alpha:
        # Being a negative teaches an item's content: one without a click is never drawn.
        negatives = PopularityNegatives(dataset, settings.num_negatives, settings.neg_alpha)
    else:
        negatives = UniformNegatives(dataset.vocab_size, settings.num_negatives)
    return PairwiseHingeLoss(), negatives
