"""An epoch, whoever makes its steps: batches in, mean loss and accuracy out."""

from __future__ import annotations

import logging
import os

import numpy as np

from ssr.errors import SetupError
from ssr.progress import progress_bar

logger = logging.getLogger(__name__)


def epoch_batches(run, negatives, epoch, rank=0, world_size=1):
    """The batches of a rank in an epoch, and how many of them there are.

    run: ssr.training.start.Run; negatives: what draws them (ssr.training.building.build_objective)
    """
    settings = run.settings
    batches = run.dataset.train(settings.batch_size, settings.seed, epoch, negatives,
                                settings.targets, settings.max_len, run.content, rank, world_size,
                                run.shown)
    num_steps = run.dataset.num_steps(settings.batch_size, world_size)
    if settings.enable_ce:
        num_steps = min(num_steps, settings.step_num)
    return (batch for _, batch in zip(range(num_steps), batches)), num_steps


def train_epoch(step, batches, num_steps, print_batch, epoch):
    """Makes the steps of an epoch and logs how it goes.

    step: trains on a batch and returns the mean loss of a target and "acc", what the loss says was
        right, as tensors or arrays
    returns (mean loss of a target, mean acc, sessions); raises SetupError where the loss is no
    longer a number
    """
    total_loss = total_correct = targets = sessions = 0
    pending = []  # a tensor is read only when it is printed: a GPU need not wait for it
    bar = progress_bar(batches, total=num_steps, desc=f"epoch {epoch}", unit="step")
    for number, batch in enumerate(bar, 1):
        pending.append((*step(batch), batch.num_targets))
        sessions += len(batch.lengths)
        if number % print_batch and number != num_steps:
            continue
        for loss, correct, weight in pending:
            cost, acc = float(loss), float(correct)
            total_loss += cost * weight
            total_correct += acc * weight
            targets += weight
        pending.clear()
        if not np.isfinite(cost):
            raise SetupError(f"the loss became {cost} in step {number} of epoch {epoch}: train "
                             "anew with a smaller --base_lr")
        if bar.disable:
            if number % print_batch == 0:
                logger.info("Train --> pass: %d batch_id: %d avg_cost: %f, acc: %f",
                            epoch - 1, number - 1, cost, acc)
        else:
            bar.set_postfix(avg_cost=f"{cost:.4f}", acc=f"{acc:.3f}", refresh=False)
    return total_loss / targets, total_correct / targets, sessions


def kpi_lines(seconds, acc, use_cuda, num_devices):
    """The lines that continuous evaluation reads: seconds an epoch, accuracy of the last one."""
    if use_cuda:
        device = f"gpu{num_devices}"
    else:
        device = f"cpu{num_devices}_thread{os.environ.get('NUM_THREADS', 1)}"
    return [f"kpis\teach_pass_duration_{device}\t{seconds}",
            f"kpis\ttrain_acc_{device}\t{acc}"]
