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

from ssr import commands
from ssr.cluster.training import (check_parameter_server, end_with, leave, run_server, run_trainer,
                                  train, utils)
from ssr.runtime import paddle

# --- flags ----------------------------------------------------------------------------------------


def parse_args(argv=None):
    parser = train.make_parser("Sequence Semantic Retrieval: training with parameter servers",
                               "cluster_model")
    add = parser.add_argument
    add("--role", choices=("pserver", "trainer"), default="pserver", help="what this process is")
    add("--endpoints", default="127.0.0.1:6000", help="host:port of all servers, with commas")
    add("--current_endpoint", default="127.0.0.1:6000", help="which of them a server is")
    add("--trainer_id", type=commands.number(int, 0), default=0, help="which trainer, from 0 on")
    add("--trainers", type=commands.number(int, 1), default=1, help="number of trainers")
    add("--coordinator", default="127.0.0.1:6002",
        help="host:port on trainer 0's machine, where all processes meet")
    add("--wait", type=commands.number(int, 1), default=40,
        help="seconds that a trainer waits for the others at the start; servers wait on")
    args, _ = train.parse_given(parser, argv)
    if args.use_cuda or args.parallel or args.num_devices > 1:
        parser.error("the parameter server runs on CPUs, one process a trainer: leave out "
                     "--use_cuda, --parallel and --num_devices")
    args.endpoints = args.endpoints.split(",")
    for endpoint in [*args.endpoints, args.current_endpoint, args.coordinator]:
        host, _, port = endpoint.rpartition(":")
        if not (host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            parser.error(f"{endpoint!r} is not host:port")
    if len({*args.endpoints, args.coordinator}) != len(args.endpoints) + 1:
        parser.error("--endpoints and --coordinator must all be different")
    if args.role == "pserver" and args.current_endpoint not in args.endpoints:
        parser.error(f"--current_endpoint {args.current_endpoint} is not one of --endpoints "
                     f"{','.join(args.endpoints)}")
    if args.trainer_id >= args.trainers:
        parser.error(f"--trainer_id {args.trainer_id} is not below --trainers {args.trainers}")
    return args


def main(argv=None):
    args = parse_args(argv)
    commands.setup_logging()
    # Only cluster_train.sh asks for it: a process that a terminal started may outlive that.
    if os.environ.get("CLUSTER_TRAIN_PARENT"):
        end_with(int(os.environ["CLUSTER_TRAIN_PARENT"]))

    def run():
        utils.check_version()
        check_parameter_server()
        utils.set_device(0)
        paddle.enable_static()
        try:
            return run_server(args) if args.role == "pserver" else run_trainer(args)
        finally:
            paddle.disable_static()
    return commands.run(run)


if __name__ == "__main__":
    leave(main())
