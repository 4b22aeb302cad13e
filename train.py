"""Trains Sequence Semantic Retrieval on session files.

    python train.py --train_dir train_data --use_cuda 0 --batch_size 50 --model_dir model_output
    CUDA_VISIBLE_DEVICES=0 python train.py --train_dir train_data --use_cuda 1 --batch_size 50 \\
        --model_dir model_output
    CUDA_VISIBLE_DEVICES=0,1 python train.py --train_dir train_data --use_cuda 1 --parallel 1 \\
        --batch_size 50 --model_dir model_output --num_devices 2
    CPU_NUM=10 python train.py --train_dir train_data --use_cuda 0 --parallel 1 --batch_size 50 \\
        --model_dir model_output --num_devices 10
    python train.py --resume --epochs 20    # goes on from the newest complete epoch
    python train.py --recipe strong --valid_dir valid_data --patience 2 --model_dir model_strong
    python train.py --init_from model_output --train_dir hour/train_data \\
        --vocab_path hour/vocab.txt --model_dir model_hour --epochs 1    # retrain on what is new

What the flags beyond those of the retired scripts stand for is in ssr/training.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import time

from ssr.commands import be_quiet, raise_if_interrupted, run, setup_logging

import numpy as np

import utils
from ssr.architecture import check_architecture
from ssr.errors import SetupError
from ssr.evaluation.queries import make_queries
from ssr.kernels.exchange import GradientExchange, connect
from ssr.kernels.processes import rank_and_size, start_workers, was_started
from ssr.retrieval.encoder import IdEncoder
from ssr.retrieval.repeats import RepeatScore
from ssr.runtime import paddle
from ssr.training import flags
from ssr.training.building import build, build_objective
from ssr.training.checkpoints import restore
from ssr.training.loop import epoch_batches, kpi_lines, train_epoch
from ssr.training.record import Record, open_visualdl
from ssr.training.settings import merge
from ssr.training.start import prepare

logger = logging.getLogger("train")

VALID_BATCH = 200  # queries at a time

say = functools.partial(print, flush=True)  # what the retired script printed, and its like


# --- a step, an epoch, a run ----------------------------------------------------------------------


def make_step(model, loss, optimizer, exchange=None):
    """The function that trains on one batch and returns the mean over the targets of all ranks of
    the loss and of "acc", what the loss says was right, as tensors.

    exchange: GradientExchange where this is one of several ranks
    """
    def forward(emb, batch):
        losses, correct = loss(model.towers(emb, batch), batch)
        share = 1 / batch.num_targets  # of all ranks, whose sum it will be
        return paddle.sum(losses) * share, paddle.sum(correct) * share

    def step(batch):
        if exchange is None:
            result = forward(model.look_up(batch.rows), batch)
            result[0].backward()
        else:
            result = forward(exchange.look_up(batch.rows), batch)
            result[0].backward()
            result = exchange.reduce(result)
        optimizer.step()
        optimizer.clear_grad()
        return result
    return step


def with_linear_rate(batches, num_steps, epoch, settings, optimizer):
    """Passes batches on and sets the learning rate before each."""
    for step, batch in enumerate(batches):
        done = (epoch - 1 + step / num_steps) / settings.epochs
        optimizer.set_lr(settings.base_lr * max(flags.FINAL_RATE,
                                                1 - (1 - flags.FINAL_RATE) * done))
        yield batch


def train_epochs(args, run, model, optimizer, group=None, record=None, say=say):
    """Runs the epochs after those that are done and says what the retired script printed.

    group: of all ranks, if there are several
    record: ssr.training.record.Record, of rank 0
    say: called with each line
    """
    settings = run.settings
    rank, world_size = rank_and_size() if group else (0, 1)
    exchange = GradientExchange(model, group) if group else None
    loss, negatives = build_objective(settings, run.dataset, run.content)
    step = make_step(model, loss, optimizer, exchange)
    total_time = mean_time = 0.0
    acc = float("nan")
    for epoch in range(run.done + 1, settings.epochs + 1):
        raise_if_interrupted()
        say(f"epoch_{epoch} start")
        begin = time.time()
        paddle.seed(dropout_seed(settings.seed, epoch, rank))
        batches, num_steps = epoch_batches(run, negatives, epoch, rank, world_size)
        if settings.lr_schedule == "linear":
            batches = with_linear_rate(batches, num_steps, epoch, settings, optimizer)
        cost, acc, sessions = train_epoch(step, batches, num_steps, args.print_batch, epoch)
        seconds = time.time() - begin
        total_time += seconds
        # The mean of the epochs so far, as the retired script had it.
        mean_time = total_time / (epoch - run.done)
        say("epoch:%d num_steps:%d time_cost(s):%f" % (epoch, num_steps, mean_time))
        say(f"epoch:{epoch} avg_cost:{cost:.6f} acc:{acc:.4f} "
            f"sessions/s:{sessions * world_size / seconds:.0f}"
            + (f" communication:{exchange.seconds / total_time:.0%}" if exchange else ""))
        if record:
            save(record, epoch, model, optimizer,
                 {"avg_cost": cost, "acc": acc, "seconds": seconds}, say)
        if all_agree(record and record.best_is_older(epoch, args.patience), f"saved epoch {epoch}",
                     group):
            say(f"no higher recall@{flags.VALID_K} for {args.patience} epochs: training ends")
            break
    if settings.enable_ce:
        say("\n".join(kpi_lines(mean_time, acc, args.use_cuda, args.num_devices)))


def dropout_seed(seed, epoch, rank):
    """The seed of what is drawn in an epoch on a rank: it does not depend on the past, and no two
    of these have anything in common."""
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1, np.uint64)[0] >> 1)


def all_agree(stop, event, group):
    """Whether rank 0 says that it is over. All others wait until it has done what it does alone.

    stop: what rank 0 says, None on the others; group: of all ranks, None where there is one
    """
    if group is None:
        return stop
    group.wait_for_first(event)
    said, = group.sum([paddle.to_tensor(float(bool(stop)))])
    return float(said) > 0


def save(record, epoch, model, optimizer, metrics, say):
    """Validates and saves an epoch and says what came out."""
    path, measured = record.add(epoch, model, optimizer, metrics)
    if measured:
        values = " ".join(f"{name}:{value:.4f}" for name, value in measured.items())
        say(f"  {values} best_epoch:{record.best['epoch']}")
    say(f"model saved in {path}")


def make_examination(run):
    """What Record asks after each epoch, as a function of the model: fits its RepeatScore to the
    sessions held out, beginning with that of the epoch before, and predicts the last clicks of the
    validation sessions, or all but the first."""
    from ssr.evaluation import ranking  # here: help and wrong flags need no Paddle
    from ssr.evaluation.repeats import fit_repeats

    repeats = RepeatScore.of_meta(run.source.meta) if run.source else None

    def examine(model):
        nonlocal repeats
        encoder = IdEncoder(model, run.content, max_len=run.settings.max_len)
        model.eval()
        fitted, measured = {}, {}
        if run.held_out:
            queries = make_queries(run.held_out, encoder.has_vector, run.settings.targets)
            repeats = fit_repeats(encoder, queries, repeats)
        if repeats:
            encoder.repeats, fitted["repeats"] = repeats, repeats._asdict()
        if run.valid:
            queries = make_queries(run.valid, encoder.has_vector, run.settings.targets)
            ranks = ranking.evaluate(encoder, queries, encoder.has_vector, VALID_BATCH)
            recall, mrr = utils.recall_mrr(ranks, flags.VALID_K)
            measured = {f"valid_recall@{flags.VALID_K}": recall, f"valid_mrr@{flags.VALID_K}": mrr}
        model.train()
        return fitted, measured
    return examine


# --- the command ----------------------------------------------------------------------------------


def train(args, run, say=say):
    """Trains on what a run starts from (ssr.training.start.Run), in this process."""
    settings = run.settings
    rank, world_size = rank_and_size()
    group = connect(args.use_cuda) if world_size > 1 else None
    model, optimizer = build(settings, run.clicks, run.content)
    if run.source:
        restore(model, optimizer, run.source)
        logger.info("going on from %s/epoch_%d", run.source.model_dir, run.source.epoch)
    logger.info("%d sessions, %d clicks, %d items", len(run.dataset), len(run.dataset.items),
                run.dataset.vocab_size)
    if world_size > 1:
        logger.info("%d devices, %d sessions a step; each epoch leaves out %d sessions, others "
                    "each time", world_size, settings.batch_size * world_size,
                    len(run.dataset) % (settings.batch_size * world_size))
    record = None
    if rank == 0:
        scalars = open_visualdl(args.log_dir) if args.log_dir else None
        record = Record(args.model_dir, run, make_examination(run), scalars)
    train_epochs(args, run, model, optimizer, group, record, say)


def start(args, say=say):
    """Trains in this process, or starts one per device. Returns the exit code.

    say: called with each line that the command prints
    """
    utils.check_version()
    rank, world_size = rank_and_size()
    # Where there are several processes one holds the directory for all.
    with_directory = (contextlib.nullcontext() if rank or was_started() else
                      utils.model_directory(args.model_dir))
    with with_directory:
        if args.num_devices > 1 and world_size == 1:
            utils.check_devices(args.use_cuda, args.num_devices)
            be_quiet()  # what there is to say rank 0 says; errors are told here
            prepare(args)
            return start_workers(args.num_devices, args.use_cuda)
        utils.set_device(args.use_cuda)
        if rank:  # one of them speaks for all
            be_quiet()
        prepared = prepare(args)
        if prepared.done >= prepared.settings.epochs:
            say(f"{args.model_dir} holds all {prepared.settings.epochs} epochs of this run: give "
                "more --epochs to go on")
            return 0
        # The names of the optimizer's state do not depend on what ran in this process before.
        with paddle.utils.unique_name.guard():
            train(args, prepared, say)
    return 0


def parse_args(argv=None):
    """The flags; ends with a usage error where they do not go together."""
    parser = flags.make_parser("Sequence Semantic Retrieval: training", "model_output")
    flags.add_recipe_flags(parser)
    args = flags.parse(parser, argv)
    _, launched = rank_and_size()
    flags.check_run_flags(parser, args, launched)
    if not (args.resume or args.init_from):  # with these a checkpoint has a say, see prepare
        try:
            settings = merge({**args.from_data_dir, **args.given}, args.num_devices)
            check_architecture(settings.architecture())
        except (SetupError, ValueError) as error:
            parser.error(str(error))
    return args


def main(argv=None):
    setup_logging()
    return run(lambda: start(parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
