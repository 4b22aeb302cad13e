"""Trains Sequence Semantic Retrieval on session files.

    python train.py --train_dir train_data --use_cuda 0 --batch_size 50 --model_dir model_output
    CUDA_VISIBLE_DEVICES=0 python train.py --train_dir train_data --use_cuda 1 --batch_size 50 \\
        --model_dir model_output
    CUDA_VISIBLE_DEVICES=0,1 python train.py --train_dir train_data --use_cuda 1 --parallel 1 \\
        --batch_size 50 --model_dir model_output --num_devices 2
    CPU_NUM=10 python train.py --train_dir train_data --use_cuda 0 --parallel 1 --batch_size 50 \\
        --model_dir model_output --num_devices 10
    python train.py --resume --epochs 20    # goes on from the newest complete epoch
    python train.py --recipe strong --valid_dir valid_data --patience 2
    python train.py --init_from model_output --train_dir hour/train_data \\
        --vocab_path hour/vocab.txt --model_dir model_hour --epochs 1    # retrain on what is new
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from typing import NamedTuple, Optional

import numpy as np
from tqdm import tqdm

import reader
import utils
from nets import (
    PairwiseHingeLoss,
    SequenceSemanticRetrieval,
    check_architecture,
)
from ssr import commands
from ssr.errors import SetupError
from ssr.kernels import processes as parallel
from ssr.retrieval import evaluation
from ssr.runtime import paddle
from ssr.training import content as item_content
from ssr.training.losses import SampledSoftmaxLoss
from ssr.training.negatives import PopularityNegatives, SharedNegatives

logger = logging.getLogger("train")

CE_SEED = 102  # of continuous evaluation, as it always was

# What decides the parameters that a run reaches. It is kept in the checkpoint; --resume takes it
# from there.
MODEL_FLAGS = ("embedding_dim", "hidden_size", "user_encoder", "pooling", "item_encoder", "dropout",
               "members")
RUN_FLAGS = ("recipe", "base_lr", "batch_size", "num_devices", "max_len", "seed", "enable_ce",
             "step_num", "targets", "loss", "num_negatives", "neg_alpha", "scale", "optimizer",
             "lr_schedule", "id_dropout")

# What --recipe sets where no flag says otherwise: the training of the retired scripts, and the one
# of the highest recall (benchmarks/README.md has what each part is worth).
RECIPES = {
    "faithful": dict(
        targets="last", loss="hinge", num_negatives=1, neg_alpha=0.0, scale=16.0, pooling="max",
        item_encoder="fc", dropout=0.0, members=1, optimizer="adagrad", lr_schedule="constant",
        id_dropout=0.2, base_lr=0.01, batch_size=50, epochs=10, max_len=None, embedding_dim=128,
        hidden_size=128),
    "strong": dict(
        targets="all", loss="softmax", num_negatives=2000, neg_alpha=0.5, scale=16.0,
        pooling="max_last_clicks", item_encoder="tied", dropout=0.25, members=1, optimizer="adam",
        lr_schedule="linear", id_dropout=0.2, base_lr=0.004, batch_size=128, epochs=5, max_len=20,
        embedding_dim=128, hidden_size=128),
}
FINAL_RATE = 0.01  # of the linear schedule, as a share of --base_lr
VALID_K = 20  # of the recall that decides which epoch is the best
VALID_BATCH = 200  # queries at a time
RANK_SEEDS = 1 << 32  # ranks are so far apart that their dropout has nothing in common


def make_parser(description, model_dir):
    """The flags of training; cluster_train.py adds its own."""
    parser = argparse.ArgumentParser(description=description,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.set_defaults(recipe="faithful", **RECIPES["faithful"])
    add = parser.add_argument
    positive = commands.number(int, 1)
    switch = commands.number(int, 0, 1)
    add("--train_dir", default="train_data", help="directory of session files")
    add("--vocab_path", default="vocab.txt", help="file whose first line is the number of items")
    add("--model_dir", default=model_dir, help="where epoch_N is saved")
    add("--epochs", type=positive, help="number of epochs")
    add("--batch_size", type=positive, help="sessions a step and device")
    add("--base_lr", type=commands.number(float, 0), help="learning rate")
    add("--embedding_dim", type=positive, help="columns of the embedding table")
    add("--hidden_size", type=positive, help="size of user and item vectors")
    add("--user_encoder", choices=("gru", "bow"), default="gru",
        help="a GRU over the clicks or their sum")
    add("--max_len", type=positive, help="newest clicks of a session that are "
        "kept; all when not given")
    add("--seed", type=commands.number(int, 0, 2 ** 32 - 1), default=0,
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


def add_recipe_flags(parser):
    """The flags that go beyond the retired scripts' training."""
    add = parser.add_argument
    add("--recipe", choices=RECIPES, help="sets those of the flags here that "
        "are not given: faithful, as the retired scripts trained; strong, for the highest recall")
    add("--targets", choices=("last", "all"),
        help="predict the last click of a session, or every click but the first")
    add("--loss", choices=("hinge", "softmax"), help="hinge: against negatives of each target's "
        "own; softmax: among the targets of the step and shared negatives, with logQ correction")
    add("--num_negatives", type=commands.number(int, 0),
        help="negatives: of each target (hinge), of a step beside its targets (softmax)")
    add("--neg_alpha", type=commands.number(float, 0),
        help="negatives are drawn with a probability ~ clicks^alpha, 0 for uniform")
    add("--scale", type=commands.number(float, 0), help="logit = scale * cosine (softmax)")
    add("--pooling", choices=("max", "max_last", "max_last_clicks"), help="of the GRU's states: "
        "the maximum; maximum and last; both, and the embeddings of the last click and of all")
    add("--item_encoder", choices=("fc", "tied"),
        help="an item's vector: fc of its bag, or the bag itself")
    add("--dropout", type=commands.number(float, 0, 0.99), help="of the clicks' embeddings")
    add("--item_tokens", metavar="FILE", type=commands.data_path, help="line i: the tokens of item i (preprocess.py); an "
        "item is then the bag of its tokens and, if it was clicked in training, of its own id")
    add("--id_dropout", type=commands.number(float, 0, 1), help="share of the items of a step that "
        "are their tokens alone, without their id")
    add("--members", type=commands.number(int, 1), help="an ensemble of so many models in one: their "
        "vectors side by side; time and memory grow likewise")
    add("--optimizer", choices=("adagrad", "adam"), help="adam updates the rows of a step only")
    add("--lr_schedule", choices=("constant", "linear"),
        help=f"linear: falls to {FINAL_RATE:.0%}% of --base_lr at the last step of --epochs")
    add("--valid_dir", help="session files on which recall and MRR are measured each epoch")
    add("--patience", type=commands.number(int, 1), help="stop after so many epochs without a higher "
        f"recall@{VALID_K} on --valid_dir")
    add("--log_dir", help="also write scalars for VisualDL there")
    add("--resume", action="store_true", help="go on from the newest complete epoch in --model_dir")
    add("--init_from", metavar="DIR", help="begin a new run with the newest epoch in DIR: for new "
        "sessions and a catalogue that has grown, the items of DIR being the first ones of "
        "--vocab_path; flags that are not given are those of that epoch")


def parse_given(parser, argv=None):
    """(args, given) as of parse_args, with the seed that --enable_ce fixes."""
    args = parser.parse_args(argv)
    # The same command once more, with nothing for what it leaves out.
    given = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(vars(args))))
    if given.enable_ce:
        if given.seed not in (None, CE_SEED):
            parser.error(f"--enable_ce fixes the seed at {CE_SEED}: leave --seed out")
        args.seed = CE_SEED
    return args, given


def parse_args(argv=None):
    """Returns (args, given): all flags, and None in place of those that were not given."""
    parser = make_parser("Sequence Semantic Retrieval: training", "model_output")
    add_recipe_flags(parser)
    parser.set_defaults(**RECIPES[parser.parse_args(argv).recipe])
    args, given = parse_given(parser, argv)
    check_recipe(parser, args, given)
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


def check_recipe(parser, args, given):
    """Ends with an error where flags do not go together."""
    if args.loss == "hinge" and not args.num_negatives:
        parser.error("--loss hinge needs --num_negatives 1 or more")
    if given.id_dropout is not None and not args.item_tokens:
        parser.error("--id_dropout needs --item_tokens")
    if args.loss == "hinge" and given.scale is not None:
        parser.error("--scale is one of --loss softmax")
    if args.init_from and args.resume:
        parser.error("--init_from begins a run, --resume goes on with one: give one of them")
    if args.init_from and os.path.realpath(args.init_from) == os.path.realpath(args.model_dir):
        parser.error("--init_from and --model_dir are the same: a new run replaces the epochs of "
                     "an older one, give it another --model_dir")
    if args.patience is not None and not args.valid_dir:
        parser.error("--patience needs --valid_dir")
    try:
        check_architecture(**{name: getattr(args, name) for name in
                              ("embedding_dim", "hidden_size", "user_encoder", "pooling",
                               "item_encoder")})
    except ValueError as error:
        parser.error(str(error))


def restore_flags(args, given, meta):
    """Overwrites what decides the outcome by what the checkpoint was trained with. Raises
    SetupError where a flag says otherwise."""
    if "trainers" in meta["run"]:
        raise SetupError("the checkpoint is one of cluster_train.py, whose trainers keep the "
                               "optimizer's state to themselves: train anew without --resume")
    devices = meta["run"]["num_devices"]
    if devices != args.num_devices:
        raise SetupError(f"the checkpoint was trained on {devices} devices: add --parallel 1 "
                               f"--num_devices {devices} (now it is {args.num_devices})")
    inherit_flags(args, given, meta, MODEL_FLAGS + RUN_FLAGS)
    if given.epochs is None:
        args.epochs = meta["run"]["epochs"]
    elif args.lr_schedule == "linear" and args.epochs != meta["run"]["epochs"]:
        logger.warning("the learning rate falls as in a run of %d epochs from here on, it was one "
                       "of %d", args.epochs, meta["run"]["epochs"])


def inherit_flags(args, given, meta, fixed):
    """Sets the flags that are not given to those of the checkpoint.

    fixed: names of flags that must not differ; raises SetupError
    """
    for name, value in {**meta["model"], **meta["run"]}.items():
        if name not in MODEL_FLAGS + RUN_FLAGS:
            continue
        if getattr(given, name) is None:
            setattr(args, name, value)
        elif name in fixed and getattr(given, name) != value:
            raise SetupError(
                f"--{name} {getattr(given, name)} contradicts the checkpoint, which was trained "
                f"with {value}: leave the flag out, or train anew without --resume or --init_from")


def build(args, clicks, content=None):
    """The model and its optimizer, with the initial values that belong to the seed.

    clicks: <int32>[V], how often each item was clicked in training
    """
    paddle.seed(args.seed)
    model = SequenceSemanticRetrieval(len(clicks),
                                      **{name: getattr(args, name) for name in MODEL_FLAGS},
                                      num_tokens=content.num_tokens if content else 0)
    # As a tensor: from an array Paddle 3 takes the type of the IR in use, which may have changed.
    model.item_clicks.set_value(paddle.to_tensor(clicks))
    if args.optimizer == "adam":
        optimizer = paddle.optimizer.Adam(args.base_lr, parameters=model.parameters(),
                                          lazy_mode=True)
    else:
        optimizer = paddle.optimizer.Adagrad(args.base_lr, parameters=model.parameters())
    return model, optimizer


def build_objective(args, dataset, content=None):
    """(the loss, the negatives that it needs)."""
    if args.loss == "softmax":
        return (SampledSoftmaxLoss(args.scale),
                SharedNegatives(dataset, args.targets, args.num_negatives, args.neg_alpha))
    if content is not None or args.neg_alpha:
        # Being a negative teaches an item's content: one without a click is never drawn.
        negatives = PopularityNegatives(dataset, args.num_negatives, args.neg_alpha)
    else:
        negatives = reader.UniformNegatives(dataset.vocab_size, args.num_negatives)
    return PairwiseHingeLoss(), negatives


def restore(model, optimizer, source):
    """Loads a checkpoint into model and optimizer, all but item_clicks. Items that it does not have
    keep their initial values. Raises SetupError."""
    sizes = source.meta["model"]
    old_rows = sizes["vocab_size"] + sizes["num_tokens"]
    # Tokens stand behind the items, so they move when the catalogue grows.
    rows = np.concatenate([np.arange(sizes["vocab_size"]),
                           model.vocab_size + np.arange(sizes["num_tokens"])])

    def grow(saved, initial):
        full = initial.numpy().copy()
        full[rows] = saved.numpy()
        return paddle.to_tensor(full)

    parameters = source.load(".pdparams")
    parameters["item_clicks"] = model.item_clicks
    table = model.embedding.weight
    parameters["embedding.weight"] = grow(parameters["embedding.weight"], table)
    model.set_state_dict(parameters)
    state = source.load(".pdopt")
    for name, saved in state.items():
        if name.startswith(table.name) and saved.shape == [old_rows, table.shape[1]]:
            state[name] = grow(saved, paddle.zeros_like(table))
    optimizer.set_state_dict(state)


def make_step(model, loss, optimizer, exchange=None):
    """The function that trains on one batch and returns the mean over the targets of all ranks of
    the loss and of "acc", what the loss says was right, as tensors.

    exchange: parallel.GradientExchange where this is one of several ranks
    """
    def forward(emb, batch):
        losses, correct = loss(model.towers(emb, batch), batch)
        # A mean over ranks follows: what counts is each target, not each rank.
        share = (1 if exchange is None else exchange.size) / batch.num_targets
        return paddle.sum(losses) * share, paddle.sum(correct) * share

    def step(batch):
        if exchange is None:
            result = forward(model.embed(batch.rows()), batch)
            result[0].backward()
        else:
            emb = exchange.look_up(batch.rows())
            result = forward(emb, batch)
            result[0].backward()
            result = exchange.reduce(emb, batch.rows(), batch.touched, result)
        optimizer.step()
        optimizer.clear_grad()
        return result
    return step


def train_epoch(step, batches, num_steps, print_batch, epoch):
    """Runs step (see make_step) on each batch. Returns (mean loss and mean acc of a target,
    sessions of this rank)."""
    total_loss = total_correct = targets = sessions = 0
    pending = []  # a tensor is read only when it is printed: a GPU need not wait for it
    bar = tqdm(batches, total=num_steps, desc=f"epoch {epoch}", unit="step", leave=False,
               disable=not sys.stderr.isatty())
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
            raise SetupError(f"the loss became {cost} in step {number} of epoch {epoch}: "
                                   "train anew with a smaller --base_lr")
        if bar.disable:
            if number % print_batch == 0:
                logger.info("Train --> pass: %d batch_id: %d avg_cost: %f, acc: %f",
                            epoch - 1, number - 1, cost, acc)
        else:
            bar.set_postfix(avg_cost=f"{cost:.4f}", acc=f"{acc:.3f}", refresh=False)
    return total_loss / targets, total_correct / targets, sessions


def epoch_batches(dataset, args, epoch, negatives, content=None, rank=0, world_size=1):
    """The batches of a rank in an epoch, and how many of them there are."""
    batches = dataset.train(args.batch_size, args.seed, epoch, negatives, args.targets,
                            args.max_len, content, rank, world_size)
    num_steps = dataset.num_steps(args.batch_size, world_size)
    if args.enable_ce:
        num_steps = min(num_steps, args.step_num)
    return (batch for _, batch in zip(range(num_steps), batches)), num_steps


def with_linear_rate(batches, num_steps, epoch, args, optimizer):
    """Passes batches on and sets the learning rate before each."""
    for step, batch in enumerate(batches):
        done = (epoch - 1 + step / num_steps) / args.epochs
        optimizer.set_lr(args.base_lr * max(FINAL_RATE, 1 - (1 - FINAL_RATE) * done))
        yield batch


class Checkpoint(NamedTuple):
    """A complete epoch. meta: its metadata"""

    model_dir: str
    epoch: int
    meta: dict

    def load(self, suffix):
        """The state dict in the file of a suffix. Raises SetupError."""
        return utils.load_state(self.model_dir, self.epoch, suffix)


class Run(NamedTuple):
    """What a run starts from.

    dataset, valid: YoochooseDataset, valid may be None
    clicks: <int32>[V], how often each item was clicked, here and in what source has seen
    content: item_content.ItemContent, None where items have none
    done: the last epoch that is there already, 0 for none
    source: Checkpoint to begin with, or None
    """

    dataset: reader.YoochooseDataset
    valid: Optional[reader.YoochooseDataset]
    clicks: np.ndarray
    content: Optional[item_content.ItemContent]
    done: int
    source: Optional[Checkpoint]


def prepare(args, given):
    """Reads the data and looks for an epoch to go on from: all that can be wrong is found here."""
    dataset = reader.construct_train_data(args.train_dir, args.vocab_path)
    valid = args.valid_dir and reader.construct_test_data(args.valid_dir, args.vocab_path)
    utils.make_model_dir(args.model_dir)
    source = find_source(args, given, dataset.vocab_size)
    if not dataset.num_steps(args.batch_size, args.num_devices):
        raise SetupError(f"{len(dataset)} sessions are less than one step of "
                               f"{args.batch_size} on each of {args.num_devices} devices: use "
                               "fewer or a smaller --batch_size")
    clicks = dataset.item_clicks()
    if source:
        earlier = source.load(".pdparams")["item_clicks"].numpy()
        clicks = earlier if args.resume else clicks + np.pad(
            earlier, (0, len(clicks) - len(earlier)))
    content = load_content(args, clicks > 0, source and source.meta)
    return Run(dataset, valid, clicks, content, source.epoch if source and args.resume else 0,
               source)


def find_source(args, given, vocab_size):
    """The Checkpoint that --resume or --init_from names, None for a run from nothing; sets the
    flags that it decides. Raises SetupError."""
    if not (args.resume or args.init_from):
        return None
    model_dir = args.model_dir if args.resume else args.init_from
    epoch, meta = utils.newest_complete(model_dir)
    if meta is None and args.resume:
        logger.warning("%s holds no complete epoch, training starts anew", args.model_dir)
        return None
    if meta is None:
        raise SetupError(f"--init_from: {model_dir} holds no complete epoch")
    if args.resume:
        utils.check_vocab_size(meta, vocab_size)
        restore_flags(args, given, meta)
        return Checkpoint(model_dir, epoch, meta)
    if meta["model"]["vocab_size"] > vocab_size:
        raise SetupError(f"--init_from: {model_dir} has {meta['model']['vocab_size']} items "
                               f"and {args.vocab_path} says {vocab_size}: a catalogue grows, the "
                               "items of the checkpoint are its first ones")
    devices = args.num_devices
    inherit_flags(args, given, meta, (*MODEL_FLAGS, "recipe"))
    args.num_devices = devices
    args.epochs = given.epochs or meta["run"]["epochs"]
    return Checkpoint(model_dir, epoch, meta)


def load_content(args, clicked, meta=None):
    """The item_content.ItemContent that --item_tokens names, None without it.

    clicked: <bool>[V], which items were clicked in training
    meta: of the checkpoint to begin with, if there is one
    Raises DataError, SetupError.
    """
    num_tokens = meta and meta["model"]["num_tokens"]
    if meta and bool(num_tokens) != bool(args.item_tokens):
        raise SetupError("the checkpoint was trained "
                               + ("with --item_tokens: give it too" if num_tokens else
                                  "without --item_tokens: leave it out"))
    if not args.item_tokens:
        return None
    tokens = item_content.load_item_tokens(args.item_tokens, len(clicked), num_tokens)
    return item_content.ItemContent(clicked, tokens, args.id_dropout)


def train(args, given):
    """Trains, saves every epoch and prints what the retired script printed. Returns 0."""
    run = prepare(args, given)
    _, world_size = parallel.rank_and_size()
    group = parallel.connect(args.use_cuda) if world_size > 1 else None
    model, optimizer = build(args, run.clicks, run.content)
    if run.source:
        restore(model, optimizer, run.source)
        logger.info("going on from %s/epoch_%d", run.source.model_dir, run.source.epoch)
    logger.info("%d sessions, %d clicks, %d items", len(run.dataset), len(run.dataset.items),
                run.dataset.vocab_size)
    if world_size > 1:
        logger.info("%d devices, %d sessions a step; each epoch leaves out %d sessions, others "
                    "each time", world_size, args.batch_size * world_size,
                    len(run.dataset) % (args.batch_size * world_size))
    train_epochs(args, run, model, optimizer, group)
    return 0


def train_epochs(args, run, model, optimizer, group=None):
    """Runs the epochs after those that are done. group: of all ranks, if there are several."""
    rank, world_size = parallel.rank_and_size() if group else (0, 1)
    exchange = parallel.GradientExchange(model, group) if group else None
    loss, negatives = build_objective(args, run.dataset, run.content)
    step = make_step(model, loss, optimizer, exchange)
    record = Record(args, run) if rank == 0 else None
    total_time = mean_time = 0.0
    acc = float("nan")
    for epoch in range(run.done + 1, args.epochs + 1):
        print(f"epoch_{epoch} start")
        begin = time.time()
        # What is drawn in an epoch does not depend on the past.
        paddle.seed(args.seed + epoch + rank * RANK_SEEDS)
        batches, num_steps = epoch_batches(run.dataset, args, epoch, negatives, run.content, rank,
                                           world_size)
        if args.lr_schedule == "linear":
            batches = with_linear_rate(batches, num_steps, epoch, args, optimizer)
        cost, acc, sessions = train_epoch(step, batches, num_steps, args.print_batch, epoch)
        seconds = time.time() - begin
        total_time += seconds
        # The mean of the epochs so far, as the retired script had it.
        mean_time = total_time / (epoch - run.done)
        print("epoch:%d num_steps:%d time_cost(s):%f" % (epoch, num_steps, mean_time))
        print(f"epoch:{epoch} avg_cost:{cost:.6f} acc:{acc:.4f} "
              f"sessions/s:{sessions * world_size / seconds:.0f}"
              + (f" communication:{exchange.seconds / total_time:.0%}" if exchange else ""))
        if record:
            record.add(epoch, model, optimizer, {"avg_cost": cost, "acc": acc, "seconds": seconds})
        if all_agree(record and record.patience_is_over(epoch), f"saved epoch {epoch}", group):
            print(f"no higher recall@{VALID_K} for {args.patience} epochs: training ends")
            break
    if args.enable_ce:
        print_kpis(args, mean_time, acc)


def all_agree(stop, event, group):
    """Whether rank 0 says that it is over. All others wait until it has done what it does alone.

    stop: what rank 0 says, None on the others; group: of all ranks, None where there is one
    """
    if group is None:
        return stop
    group.wait_for_first(event)
    said, = group.mean([paddle.to_tensor(float(bool(stop)))])
    return float(said) > 0


class Record:
    """What rank 0 keeps of a run: checkpoints, metrics, and which epoch was the best."""

    def __init__(self, args, run):
        self.args = args
        self.valid = run.valid
        self.content = run.content
        self.done = run.done
        self.best = run.source.meta["best"] if run.done else None
        self.scalars = open_visualdl(args.log_dir) if args.log_dir else None

    def add(self, epoch, model, optimizer, metrics):
        """Validates and saves an epoch. metrics: {name: number}"""
        if self.valid:
            found = validate(model, self.valid, self.content, self.args.targets)
            metrics = {**metrics, **found}
            if self.best is None or found[f"valid_recall@{VALID_K}"] > self.best["recall"]:
                self.best = {"epoch": epoch, "recall": found[f"valid_recall@{VALID_K}"]}
            print(" ", *(f"{name}:{value:.4f}" for name, value in found.items()),
                  f"best_epoch:{self.best['epoch']}")
        if epoch == self.done + 1:
            utils.remove_checkpoints(self.args.model_dir, after=self.done)
        path = save(self.args, model, optimizer.state_dict(), epoch, metrics, self.best)
        print(f"model saved in {path}", flush=True)
        utils.append_metrics(self.args.model_dir, epoch, metrics)
        if self.scalars:
            for name, value in metrics.items():
                self.scalars.add_scalar(tag=name, step=epoch, value=value)

    def patience_is_over(self, epoch):
        """Whether the last --patience epochs brought nothing."""
        return bool(self.args.patience) and epoch - self.best["epoch"] >= self.args.patience


def open_visualdl(log_dir):
    """A writer of scalars. Raises SetupError where VisualDL is not installed."""
    try:
        from visualdl import LogWriter
    except ImportError as error:
        raise SetupError("--log_dir needs VisualDL: pip install visualdl; without it the "
                               "same figures are in metrics.jsonl of --model_dir") from error
    return LogWriter(logdir=log_dir)


def validate(model, valid, content, positions):
    """{name: recall or MRR} of predicting the last clicks of sessions, or all but the first."""
    items = evaluation.Items(model, content)
    queries = evaluation.make_queries(valid, items.has_vector, positions)
    model.eval()
    ranks = evaluation.evaluate(items, queries, items.has_vector, VALID_BATCH)
    model.train()
    recall, mrr = utils.recall_mrr(ranks, VALID_K)
    return {f"valid_recall@{VALID_K}": recall, f"valid_mrr@{VALID_K}": mrr}


def save(args, model, optimizer_state, epoch, metrics, best=None, **run):
    """Writes the checkpoint of an epoch.

    best: {"epoch", "recall"} of the best epoch so far, None without validation
    run: what else decided the outcome
    returns its path
    """
    meta = {"model": {"vocab_size": model.vocab_size, "num_tokens": model.num_tokens,
                      **{name: getattr(args, name) for name in MODEL_FLAGS}},
            "run": {**{name: getattr(args, name) for name in (*RUN_FLAGS, "epochs")}, **run},
            "metrics": metrics, "best": best, "paddle": paddle.__version__}
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
            commands.be_quiet()
        # The names of the optimizer's state do not depend on what ran in this process before.
        with paddle.utils.unique_name.guard():
            return train(args, given)
    utils.check_devices(args.use_cuda, args.num_devices)
    commands.be_quiet()  # what there is to say rank 0 says; errors are told here
    prepare(args, given)
    return parallel.start_workers(args.num_devices, args.use_cuda)


def main(argv=None):
    args, given = parse_args(argv)
    commands.setup_logging()
    return commands.run(lambda: run(args, given))


if __name__ == "__main__":
    sys.exit(main())
