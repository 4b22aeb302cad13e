"""Trains Sequence Semantic Retrieval on session files.

    python train.py --train_dir train_data --use_cuda 0 --batch_size 50 --model_dir model_output
    CUDA_VISIBLE_DEVICES=0 python train.py --train_dir train_data --use_cuda 1 --batch_size 50 \\
        --model_dir model_output
    CUDA_VISIBLE_DEVICES=0,1 python train.py --train_dir train_data --use_cuda 1 --parallel 1 \\
        --batch_size 50 --model_dir model_output --num_devices 2
    CPU_NUM=10 python train.py --train_dir train_data --use_cuda 0 --parallel 1 --batch_size 50 \\
        --model_dir model_output --num_devices 10
    python train.py --resume --epochs 20    # goes on from the newest complete epoch
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time

import utils  # first: it sets the environment for numpy and paddle
import numpy as np
import paddle
from tqdm import tqdm

import parallel
import reader
from nets import PairwiseHingeLoss, SequenceSemanticRetrieval

logger = logging.getLogger("train")

CE_SEED = 102  # of continuous evaluation, as it always was

# What decides the parameters that a run reaches. It is kept in the checkpoint; --resume takes it
# from there.
MODEL_FLAGS = ("embedding_dim", "hidden_size", "user_encoder")
RUN_FLAGS = ("base_lr", "batch_size", "num_devices", "max_len", "seed", "enable_ce", "step_num")


def make_parser(description, model_dir):
    """The flags of training; cluster_train.py adds its own."""
    parser = argparse.ArgumentParser(description=description,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    positive = utils.number(int, 1)
    switch = utils.number(int, 0, 1)
    add("--train_dir", default="train_data", help="directory of session files")
    add("--vocab_path", default="vocab.txt", help="file whose first line is the number of items")
    add("--model_dir", default=model_dir, help="where epoch_N is saved")
    add("--epochs", type=positive, default=10, help="number of epochs")
    add("--batch_size", type=positive, default=50, help="sessions a step and device")
    add("--base_lr", type=utils.number(float, 0), default=0.01, help="learning rate")
    add("--embedding_dim", type=positive, default=128, help="columns of the embedding table")
    add("--hidden_size", type=positive, default=128, help="size of user and item vectors")
    add("--user_encoder", choices=("gru", "bow"), default="gru",
        help="a GRU over the clicks or their sum")
    add("--max_len", type=positive, default=None, help="newest clicks of a session that are "
        "kept; all when not given")
    add("--seed", type=utils.number(int, 0, 2 ** 32 - 1), default=0,
        help="of the initial values, the order of the sessions and the negatives")
    add("--use_cuda", type=switch, default=0, help="1 for a GPU")
    add("--parallel", type=switch, default=0, help="1 for several devices, a process each")
    add("--num_devices", type=positive, default=1, help="number of devices with --parallel 1; "
        "CPU_NUM when not given and that is set")
    add("--print_batch", type=positive, default=10,
        help="log the loss every so many steps; on a terminal a progress bar shows it")
    add("--enable_ce", action="store_true", help="continuous evaluation: a fixed seed, at most "
        "--step_num steps an epoch, kpis lines at the end")
    add("--step_num", type=positive, default=1000, help="steps an epoch with --enable_ce")
    return parser


def parse_given(parser, argv=None):
    """(args, given) as of parse_args, with the seed that --enable_ce fixes."""
    args = parser.parse_args(argv)
    given = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(vars(args))))
    if args.enable_ce:
        if given.seed not in (None, CE_SEED):
            parser.error(f"--enable_ce fixes the seed at {CE_SEED}: leave --seed out")
        args.seed = CE_SEED
    return args, given


def parse_args(argv=None):
    """Returns (args, given): all flags, and None in place of those that were not given."""
    parser = make_parser("Sequence Semantic Retrieval: training", "model_output")
    parser.add_argument("--resume", action="store_true",
                        help="go on from the newest complete epoch in --model_dir")
    args, given = parse_given(parser, argv)
    _, launched = parallel.rank_and_size()
    if max(args.num_devices, launched) > 1 and not args.parallel:
        parser.error("several devices need --parallel 1: --num_devices is "
                     f"{args.num_devices}, and {launched} such processes were started")
    if args.parallel:
        # What else says how many devices there are must not disagree.
        for name, count in (("CPU_NUM", None if args.use_cuda else os.environ.get("CPU_NUM")),
                            ("the launcher", launched if launched > 1 else None)):
            if count is not None and not str(count).isdecimal():
                parser.error(f"{name}={count} is not a number of devices")
            if count is not None and given.num_devices not in (None, int(count)):
                parser.error(f"--num_devices {given.num_devices} and {name} ({count}) disagree")
            if count is not None:
                args.num_devices = given.num_devices = int(count)
    return args, given


def restore_flags(args, given, meta):
    """Overwrites what decides the outcome by what the checkpoint was trained with. Raises
    SetupError where a flag says otherwise."""
    if "trainers" in meta["run"]:
        raise utils.SetupError("the checkpoint is one of cluster_train.py, whose trainers keep the "
                               "optimizer's state to themselves: train anew without --resume")
    devices = meta["run"]["num_devices"]
    if devices != args.num_devices:
        raise utils.SetupError(f"the checkpoint was trained on {devices} devices: add --parallel 1 "
                               f"--num_devices {devices} (now it is {args.num_devices})")
    for name in MODEL_FLAGS + RUN_FLAGS:
        value = {**meta["model"], **meta["run"]}[name]
        if getattr(given, name) not in (None, value):
            raise utils.SetupError(
                f"--{name} {getattr(given, name)} contradicts the checkpoint, which was trained "
                f"with {value}: leave the flag out, or train anew without --resume")
        setattr(args, name, value)


def build(args, dataset):
    """The model and its optimizer, with the initial values that belong to the seed."""
    paddle.seed(args.seed)
    model = SequenceSemanticRetrieval(dataset.vocab_size, args.embedding_dim, args.hidden_size,
                                      args.user_encoder)
    model.item_clicks.set_value(dataset.item_clicks())
    optimizer = paddle.optimizer.Adagrad(args.base_lr, parameters=model.parameters())
    return model, optimizer


def restore(model, optimizer, model_dir, epoch):
    """Loads a checkpoint into model and optimizer. Raises SetupError."""
    model.set_state_dict(utils.load_state(model_dir, epoch, ".pdparams"))
    optimizer.set_state_dict(utils.load_state(model_dir, epoch, ".pdopt"))


def make_step(model, loss, optimizer, exchange=None):
    """The function that trains on one batch and returns the mean loss and how many pairs it ranked
    right, as tensors; with several ranks, the mean of theirs.

    exchange: parallel.GradientExchange where this is one of several ranks
    """
    def forward(cos_pos, cos_neg):
        correct = paddle.sum(paddle.cast(cos_neg < cos_pos, "float32"))
        return paddle.mean(loss(cos_pos, cos_neg)), correct

    def step(batch):
        if exchange is None:
            result = forward(*model(batch.clicks, batch.lengths, batch.positive, batch.negative))
            result[0].backward()
        else:
            rows = exchange.look_up(batch.ids())
            result = forward(*model.score(rows, batch.lengths))
            result[0].backward()
            result = exchange.reduce(rows, batch.ids(), batch.touched, result)
        optimizer.step()
        optimizer.clear_grad()
        return result
    return step


def train_epoch(step, batches, num_steps, print_batch, epoch):
    """Runs step (see make_step) on each batch. Returns (mean loss of a session, share of pairs
    ranked right, sessions of this rank)."""
    total_loss = total_correct = total = 0
    pending = []  # a tensor is read only when it is printed: a GPU need not wait for it
    bar = tqdm(batches, total=num_steps, desc=f"epoch {epoch}", unit="step", leave=False,
               disable=not sys.stderr.isatty())
    for number, batch in enumerate(bar, 1):
        pending.append((*step(batch), len(batch.lengths)))
        if number % print_batch and number != num_steps:
            continue
        for mean_loss, correct, sessions in pending:
            total_loss += float(mean_loss) * sessions
            total_correct += float(correct)
            total += sessions
        cost, acc = float(mean_loss), float(correct) / sessions
        pending.clear()
        if not np.isfinite(cost):
            raise utils.SetupError(f"the loss became {cost} in step {number} of epoch {epoch}: "
                                   "train anew with a smaller --base_lr")
        if bar.disable:
            if number % print_batch == 0:
                logger.info("Train --> pass: %d batch_id: %d avg_cost: %f, acc: %f",
                            epoch - 1, number - 1, cost, acc)
        else:
            bar.set_postfix(avg_cost=f"{cost:.4f}", acc=f"{acc:.3f}", refresh=False)
    return total_loss / total, total_correct / total, total


def epoch_batches(dataset, args, epoch, rank=0, world_size=1):
    """The batches of a rank in an epoch, and how many of them there are."""
    batches = dataset.train(args.batch_size, args.seed, epoch, args.max_len, rank, world_size)
    num_steps = dataset.num_steps(args.batch_size, world_size)
    if args.enable_ce:
        num_steps = min(num_steps, args.step_num)
    return (batch for _, batch in zip(range(num_steps), batches)), num_steps


def prepare(args, given):
    """Reads the data and looks for an epoch to go on from: all that can be wrong is found here.
    Returns (dataset, last epoch done, its metadata or None)."""
    dataset = reader.construct_train_data(args.train_dir, args.vocab_path)
    utils.make_model_dir(args.model_dir)
    done, meta = utils.newest_complete(args.model_dir) if args.resume else (0, None)
    if meta:
        utils.check_vocab_size(meta, dataset.vocab_size)
        restore_flags(args, given, meta)
    elif args.resume:
        logger.warning("%s holds no complete epoch, training starts anew", args.model_dir)
    if not dataset.num_steps(args.batch_size, args.num_devices):
        raise utils.SetupError(f"{len(dataset)} sessions are less than one step of "
                               f"{args.batch_size} on each of {args.num_devices} devices: use "
                               "fewer or a smaller --batch_size")
    return dataset, done, meta


def train(args, given):
    """Trains, saves every epoch and prints what the retired script printed. Returns 0."""
    dataset, done, meta = prepare(args, given)
    _, world_size = parallel.rank_and_size()
    group = parallel.connect(args.use_cuda) if world_size > 1 else None
    model, optimizer = build(args, dataset)
    if meta:
        restore(model, optimizer, args.model_dir, done)
        logger.info("going on from %s/epoch_%d", args.model_dir, done)
    logger.info("%d sessions, %d clicks, %d items", len(dataset), len(dataset.items),
                dataset.vocab_size)
    if world_size > 1:
        logger.info("%d devices, %d sessions a step; each epoch leaves out %d sessions, others "
                    "each time", world_size, args.batch_size * world_size,
                    len(dataset) % (args.batch_size * world_size))
    train_epochs(args, dataset, model, optimizer, done, group)
    return 0


def train_epochs(args, dataset, model, optimizer, done, group=None):
    """Runs the epochs after the first `done` ones. group: of all ranks, if there are several."""
    rank, world_size = parallel.rank_and_size() if group else (0, 1)
    exchange = parallel.GradientExchange(model, group) if group else None
    step = make_step(model, PairwiseHingeLoss(), optimizer, exchange)
    total_time = 0.0
    acc = float("nan")
    for epoch in range(done + 1, args.epochs + 1):
        print(f"epoch_{epoch} start")
        begin = time.time()
        paddle.seed(args.seed + epoch)  # what is drawn in an epoch does not depend on the past
        batches, num_steps = epoch_batches(dataset, args, epoch, rank, world_size)
        cost, acc, sessions = train_epoch(step, batches, num_steps, args.print_batch, epoch)
        seconds = time.time() - begin
        total_time += seconds
        # The mean of the epochs so far, as the retired script had it.
        print("epoch:%d num_steps:%d time_cost(s):%f" % (epoch, num_steps,
                                                         total_time / (epoch - done)))
        print(f"epoch:{epoch} avg_cost:{cost:.6f} acc:{acc:.4f} "
              f"sessions/s:{sessions * world_size / seconds:.0f}"
              + (f" communication:{exchange.seconds / total_time:.0%}" if exchange else ""))
        if rank == 0:
            if epoch == done + 1:
                utils.remove_checkpoints(args.model_dir, after=done)
            metrics = {"avg_cost": cost, "acc": acc, "seconds": seconds}
            path = save(args, model, optimizer.state_dict(), epoch, metrics)
            print(f"model saved in {path}", flush=True)
        if group:
            group.wait_for_first(f"saved epoch {epoch}")
    if args.enable_ce:
        print_kpis(args, total_time / max(1, args.epochs - done), acc)


def save(args, model, optimizer_state, epoch, metrics, **run):
    """Writes the checkpoint of an epoch. run: what else decided the outcome. Returns its path."""
    meta = {"model": {"vocab_size": model.vocab_size,
                      **{name: getattr(args, name) for name in MODEL_FLAGS}},
            "run": {**{name: getattr(args, name) for name in RUN_FLAGS}, **run},
            "metrics": metrics, "paddle": paddle.__version__}
    return utils.save_checkpoint(args.model_dir, epoch, model, optimizer_state, meta)


def print_kpis(args, seconds, acc):
    """The lines that continuous evaluation reads: seconds an epoch, accuracy of the last one."""
    if args.use_cuda:
        device = f"gpu{args.num_devices}"
    else:
        device = f"cpu{args.num_devices}_thread{os.environ.get('NUM_THREADS', 1)}"
    print(f"kpis\teach_pass_duration_{device}\t{seconds}")
    print(f"kpis\ttrain_acc_{device}\t{acc}")


def run(args, given):
    """Trains in this process, or starts one per device. Returns the exit code."""
    utils.check_version()
    rank, world_size = parallel.rank_and_size()
    if args.num_devices == 1 or world_size > 1:
        utils.set_device(args.use_cuda)
        if rank:  # one of them speaks for all
            utils.be_quiet()
        # The names of the optimizer's state do not depend on what ran in this process before.
        with paddle.utils.unique_name.guard():
            return train(args, given)
    utils.check_devices(args.use_cuda, args.num_devices)
    utils.be_quiet()  # what there is to say rank 0 says; errors are told here
    prepare(args, given)
    return parallel.start_workers(args.num_devices, args.use_cuda)


def main(argv=None):
    args, given = parse_args(argv)
    utils.setup_logging()
    return utils.run_script(lambda: run(args, given), reader.DataError)


if __name__ == "__main__":
    sys.exit(main())
