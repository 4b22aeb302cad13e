"""Trains Sequence Semantic Retrieval through Paddle's parameter server, on CPUs.

    sh cluster_train.sh             # 2 servers and 2 trainers on this machine
    python cluster_train.py --role pserver --endpoints HOST0:6000,HOST1:6000 \\
        --current_endpoint HOST0:6000 --trainers 2 --coordinator HOST0:6002
    python cluster_train.py --role trainer --endpoints HOST0:6000,HOST1:6000 \\
        --trainer_id 0 --trainers 2 --coordinator HOST0:6002

Every trainer holds all parameters, updates them with Adagrad on its share of the sessions and
exchanges the differences with the servers every few steps (Paddle's GEO mode). At the end of an
epoch all of them wait until everything has arrived; then trainer 0 saves what the servers hold.
Whichever process ends too early, all others end within seconds.
"""

from __future__ import annotations

import os

from ssr.commands import number, run, setup_logging

from ssr.cluster.ending import end_with, leave
from ssr.cluster.job import Job
from ssr.training import flags
from ssr.training.loop import kpi_lines
from ssr.training.settings import merge


def parse_args(argv=None):
    """The flags; ends with a usage error where they do not go together."""
    parser = flags.make_parser("Sequence Semantic Retrieval: training with parameter servers",
                               "cluster_model")
    add = parser.add_argument
    add("--role", choices=("pserver", "trainer"), default="pserver", help="what this process is")
    add("--endpoints", default="127.0.0.1:6000", help="host:port of each server, with commas")
    add("--current_endpoint", default="127.0.0.1:6000",
        help="of a server: which of them it is")
    add("--trainer_id", type=number(int, 0, 10 ** 6), default=0,
        help="of a trainer: which one it is, from 0 on")
    add("--trainers", type=number(int, 1, 10 ** 6), default=1, help="number of trainers")
    add("--coordinator", default="127.0.0.1:6002",
        help="host:port on trainer 0's machine, where all processes meet")
    add("--wait", type=number(int, 1, 10 ** 6), default=40,
        help="seconds that a trainer waits for the others at the start; servers wait on")
    args = flags.parse(parser, argv)
    args.endpoints = args.endpoints.split(",")
    check_flags(args, parser.error)
    return args


def check_flags(args, error):
    """Calls error with a message where flags do not go together."""
    if args.use_cuda or args.parallel or args.num_devices > 1:
        error("the parameter server runs on CPUs, one process a trainer: leave out --use_cuda, "
              "--parallel and --num_devices")
    for endpoint in [*args.endpoints, args.current_endpoint, args.coordinator]:
        host, _, port = endpoint.rpartition(":")
        if not (host and port.isascii() and port.isdigit() and 0 < int(port[:9]) < 65536):
            error(f"{endpoint!r} is not host:port")
    if len({*args.endpoints, args.coordinator}) != len(args.endpoints) + 1:
        error("--endpoints and --coordinator must all be different")
    if args.role == "pserver" and args.current_endpoint not in args.endpoints:
        error(f"--current_endpoint {args.current_endpoint} is not one of --endpoints "
              f"{','.join(args.endpoints)}")
    if args.trainer_id >= args.trainers:
        error(f"--trainer_id {args.trainer_id} is not below --trainers {args.trainers}")


class Progress:
    """Prints what train.py prints."""

    def __init__(self, settings):
        self.settings = settings
        self.seconds = []  # of each epoch

    def start(self, epoch):
        print(f"epoch_{epoch} start")

    def end(self, result):
        self.seconds.append(result.seconds)
        mean = sum(self.seconds) / len(self.seconds)
        print("epoch:%d num_steps:%d time_cost(s):%f" % (result.epoch, result.num_steps, mean))
        print(f"epoch:{result.epoch} avg_cost:{result.cost:.6f} acc:{result.acc:.4f} "
              f"sessions/s:{result.sessions / result.seconds:.0f}", flush=True)
        if not result.path:
            return
        print(f"model saved in {result.path}", flush=True)
        if self.settings.enable_ce and result.epoch == self.settings.epochs:
            print(*kpi_lines(mean, result.acc, use_cuda=0, num_devices=1), sep="\n", flush=True)


def serve_or_train(args):
    """Serves or trains in this process. Returns the exit code."""
    # Here: help and wrong flags need no Paddle.
    from ssr.cluster.program import parameter_server
    from ssr.cluster.server import run_server
    from ssr.cluster.trainer import Files, run_trainer

    settings = merge(args.given)
    job = Job(args.endpoints, args.coordinator, args.trainers, wait=args.wait)
    with parameter_server():
        if args.role == "pserver":
            server = args.endpoints.index(args.current_endpoint)
            run_server(job._replace(server=server), settings, args.vocab_path)
        else:
            files = Files(args.train_dir, args.vocab_path, args.model_dir, args.overwrite)
            progress = Progress(settings)
            run_trainer(job._replace(trainer=args.trainer_id), settings, files, args.print_batch,
                        progress.start, progress.end)
    return 0


def main(argv=None):
    setup_logging()
    # Only cluster_train.sh asks for it: a process that a terminal started may outlive that.
    if os.environ.get("CLUSTER_TRAIN_PARENT"):
        end_with(int(os.environ["CLUSTER_TRAIN_PARENT"]))
    return run(lambda: serve_or_train(parse_args(argv)))


if __name__ == "__main__":
    leave(main())
