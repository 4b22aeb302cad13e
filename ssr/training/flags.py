"""The flags of training, for train.py and cluster_train.py."""

from __future__ import annotations

import os

from ssr.commands import Parser, data_path, number

from ssr.data_directory import (
    ITEM_TOKENS_FILE,
    ITEM_VECTORS_FILE,
    VOCAB_FILE,
    add_data_dir,
    take_from_data_dir,
)
from ssr.training.settings import CONTENT, HELD_OUT_SHARE, MAX_HELD_OUT, RECIPES, Settings

CE_SEED = 102  # of continuous evaluation, as it always was
FINAL_RATE = 0.01  # of the linear schedule, as a share of --base_lr
VALID_K = 20  # of the recall that decides which epoch is the best


def make_parser(description, model_dir):
    """A Parser of the flags that the retired scripts had, and their like.

    model_dir: the default of --model_dir
    """
    parser = Parser(description)
    add, default = parser.add_argument, Settings()
    positive, switch = number(int, 1), number(int, 0, 1)
    add_data_dir(parser)
    add("--train_dir", default="train_data", help="directory of session files")
    add("--vocab_path", default="vocab.txt", help="file whose first line is the number of items")
    add("--model_dir", default=model_dir, help="where epoch_N is saved")
    add("--overwrite", action="store_true", help="replace the epochs of a run with other data or "
        "other flags in --model_dir; those of the same run are replaced without it")
    add("--epochs", type=positive, default=default.epochs, help="number of epochs")
    add("--batch_size", type=positive, default=default.batch_size,
        help="sessions per step and device")
    add("--base_lr", type=number(float, 0), default=default.base_lr, help="learning rate")
    add("--embedding_dim", type=positive, default=default.embedding_dim,
        help="columns of the embedding table")
    add("--hidden_size", type=positive, default=default.hidden_size,
        help="size of user and item vectors")
    add("--user_encoder", choices=("gru", "bow"), default=default.user_encoder,
        help="a GRU over the clicks, or their sum")
    add("--max_len", type=positive, help="keep only so many of a session's newest clicks "
        "(default: all)")
    add("--seed", type=number(int, 0, 2 ** 32 - 1), default=default.seed,
        help="of the initial values, the order of the sessions and the negatives")
    add("--use_cuda", type=switch, default=0, help="1 for a GPU")
    add("--parallel", type=switch, default=0, help="1 for several devices, a process each")
    add("--num_devices", type=positive, default=1, help="number of devices with --parallel 1; "
        "CPU_NUM where that is set and this is not given")
    add("--print_batch", type=positive, default=10,
        help="log the loss every so many steps; on a terminal a progress bar shows it")
    add("--enable_ce", action="store_true", help="continuous evaluation: a fixed seed, at most "
        "--step_num steps an epoch, kpis lines at the end")
    add("--step_num", type=positive, default=default.step_num,
        help="steps an epoch with --enable_ce")
    return parser


def add_recipe_flags(parser):
    """The flags that go beyond the retired scripts' training."""
    add, default = parser.add_argument, Settings()
    add("--recipe", choices=RECIPES, default=default.recipe, help="sets those of the flags below "
        "that are not given: faithful trains as the retired scripts did, strong for the highest "
        "recall; the defaults shown here are those of faithful")
    add("--targets", choices=("last", "all"), default=default.targets,
        help="predict the last click of a session, or every click but the first")
    add("--loss", choices=("hinge", "softmax"), default=default.loss, help="hinge: pairwise, each "
        "target against its own negatives; softmax: sampled softmax with logQ correction, among "
        "the targets of the step and negatives shared by all of them")
    add("--negatives", choices=("sampled", "impressions"), default=default.negatives,
        help="impressions: items that a user was shown beside a click and did not click, with "
        "hinge in place of those drawn, with softmax in a loss of their own beside the other")
    add("--train_impressions", metavar="PATH", type=data_path, help="what was shown, for "
        "--negatives impressions: a file or directory of impressions, as preprocess.py mind writes "
        "them")
    add("--sampled_weight", type=number(float, 0), default=default.sampled_weight, help="of the "
        "loss among all items, beside the one that --negatives impressions adds; 0 trains to tell "
        "what was clicked from what was shown, and nothing else")
    add("--num_negatives", type=number(int, 0), default=default.num_negatives,
        help="per target (hinge), or per step beside its targets (softmax)")
    add("--neg_alpha", type=number(float, 0), default=default.neg_alpha,
        help="negatives are drawn with a probability ~ clicks^alpha; 0 is uniform")
    add("--scale", type=number(float, 0), default=default.scale,
        help="logit = scale * cosine (softmax)")
    add("--pooling", default=default.pooling,
        choices=("max", "max_last_clicks", "max_recent_clicks", "max_unit_clicks"),
        help="of the GRU's states: the maximum; or the maximum and the last, beside the embeddings "
        "of the last click, or of each of the last five as they are or of length 1, and of the "
        "mean of all")
    add("--item_encoder", choices=("fc", "tied"), default=default.item_encoder,
        help="an item's vector is an fc of its embedding, or the embedding itself")
    add("--dropout", type=number(float, 0, 0.99), default=default.dropout,
        help="of the clicks' embeddings")
    add("--item_tokens", metavar="FILE", type=data_path, help="line i holds the tokens of item i "
        "(preprocess.py writes it); an item is then the sum of its tokens and, if it was clicked "
        "in training, its own id; none leaves out those of --data_dir")
    add("--item_vectors", metavar="FILE", type=data_path, help="row i of an array that numpy.save "
        "wrote is the pretrained vector of item i, of its text or picture; or Parquet with the "
        "columns id and vector. A learned projection of it is added to the item; zeros, or null in "
        "Parquet, for an item without one; none leaves out those of --data_dir")
    add("--id_dropout", type=number(float, 0, 1), default=default.id_dropout,
        help="share of the items of a step that are their content alone, without their id")
    add("--members", type=number(int, 1), default=default.members, help="an ensemble of so many "
        "models in one: their vectors lie side by side; time and memory grow likewise")
    add("--repeats", choices=("cosine", "fitted"), default=default.repeats, help="what an item "
        "scores that the session has clicked: its cosine, as all others; or a score of seven "
        f"weights, fitted after each epoch to {HELD_OUT_SHARE * 100:g}%% of the sessions, at most "
        f"{MAX_HELD_OUT:,}, on which the model is not trained; the cosine where they are too few")
    add("--optimizer", choices=("adagrad", "adam"), default=default.optimizer,
        help="both update the rows of a step only")
    add("--lr_schedule", choices=("constant", "linear"), default=default.lr_schedule,
        help=f"linear: falls to {FINAL_RATE * 100:.0f}%% of --base_lr at the last step of --epochs")
    add("--valid_dir", type=data_path,
        help="session files on which recall and MRR are measured after each epoch")
    add("--patience", type=number(int, 1), help="stop after so many epochs without a higher "
        f"recall@{VALID_K} on --valid_dir")
    add("--log_dir", help="also write scalars for VisualDL there")
    add("--resume", action="store_true",
        help="go on from the newest complete epoch in --model_dir")
    add("--init_from", metavar="DIR", help="begin a new run with the newest epoch in DIR: for new "
        "sessions and a catalogue that has grown, the items of DIR being the first ones of "
        "--vocab_path; flags that are not given are those of that epoch")


def parse(parser, argv=None):
    """The flags (Parser.parse), with the paths of --data_dir and the seed that --enable_ce fixes.
    Raises DataError where that directory cannot be used."""
    args = parser.parse(argv)
    for name in CONTENT:
        if args.given.get(name) == "none":
            args.given[name] = None
            setattr(args, name, None)
    names = {"train_dir": "train_data", "valid_dir": "valid_data", "vocab_path": VOCAB_FILE,
             "item_tokens": ITEM_TOKENS_FILE, "item_vectors": ITEM_VECTORS_FILE,
             "train_impressions": "train_impressions"}
    take_from_data_dir(args, **{flag: name for flag, name in names.items() if flag in args})
    if args.enable_ce:
        if args.given.get("seed", CE_SEED) != CE_SEED:
            parser.error(f"--enable_ce fixes the seed at {CE_SEED}: leave --seed out")
        args.seed = args.given["seed"] = CE_SEED
    return args


def check_run_flags(parser, args, launched):
    """Ends with a usage error where flags of train.py do not go together; sets args.num_devices.

    launched: how many processes a launcher has started, 1 for none
    """
    if args.init_from and args.resume:
        parser.error("--init_from begins a run, --resume goes on with one: give one of them")
    if args.init_from and os.path.realpath(args.init_from) == os.path.realpath(args.model_dir):
        parser.error("--init_from and --model_dir are the same: a new run replaces the epochs of "
                     "an older one, give it another --model_dir")
    if args.patience is not None and not args.valid_dir:
        parser.error("--patience needs --valid_dir, or a --data_dir with valid_data")
    if not args.parallel:
        if max(args.num_devices, launched) > 1:
            parser.error("several devices need --parallel 1: --num_devices is "
                         f"{args.num_devices}, and {launched} such processes were started")
        return
    # What else says how many devices there are must not disagree.
    for name, count in (("CPU_NUM", None if args.use_cuda else os.environ.get("CPU_NUM")),
                        ("the launcher", str(launched) if launched > 1 else None)):
        if count is None:
            continue
        if not count.isdecimal() or not 1 <= int(count[:9]) < 10 ** 6:
            parser.error(f"{name}={count:.40} is not a number of devices")
        if args.given.get("num_devices", int(count)) != int(count):
            parser.error(f"--num_devices {args.given['num_devices']} and {name} ({count}) disagree")
        args.num_devices = args.given["num_devices"] = int(count)
