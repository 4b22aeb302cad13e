"""A log of clicks, or sessions with raw ids -> what train.py and infer.py read.

    python preprocess.py clicks --input yoochoose-clicks.dat --layout yoochoose --output_dir data
    python preprocess.py clicks --input clicks.csv --layout table --output_dir data
    python preprocess.py sessions --train_files train.txt --test_files test.txt --output_dir data
    python preprocess.py clicks ... --items_path items.tsv     # or, of a table, --text_column Title

`clicks` filters and splits as the preprocessing of RSC15 in GRU4Rec's code does
(examples/rsc15/preprocess.py; Hidasi et al., ICLR 2016, arXiv:1511.06939):

1. drop sessions of one click, items with fewer than 5 clicks, then sessions of one click again;
2. test is the sessions whose last click is at most a day older than the newest click of all;
   with --valid_days the same rule then cuts the validation set off what is left;
3. drop validation and test clicks on items that training does not have (--keep_unknown keeps
   them: news needs that), then validation and test sessions of one click.

Clicks are in order of time within a session, sessions in order of their first clicks, ties in
file order. `sessions` changes nothing but the ids: every line stays, where it was.

Either command writes to the output directory

    train_data/sessions.txt, test_data/sessions.txt and, when asked for, valid_data/sessions.txt:
                 a session a line, item ids 0..V-1 with a space between
    train_times/sessions.txt and so on, with --keep_times or --train_times, --test_times: of the
                 same shape, the time of each click in place of its item, in whole seconds
    vocab.txt    V
    items.txt    line i, from 0 on, is the raw id of item i, then a tab and its text if it has one

and where items have text or fields (text.py says what is a token)

    item_tokens.txt  line i is the token ids of item i, with a space between
    tokens.txt       line i, from 0 on, is token i
    tokens.json      how Chinese was cut

Ids are given in order of first appearance in train, then valid, then test: items that training
does not have come last, and behind them, with --all_items, those that occur in no session. With
--continue_from the items of an earlier output directory keep their ids and all others come behind
them; its tokens.txt stays as it is. For that, the test part may be left out (--test_days 0).
"""

from __future__ import annotations

import argparse
import math
import sys

from ssr.errors import DataError
from ssr.preparation import text
from ssr.preparation.click_log import YOOCHOOSE_COLUMNS
from ssr.preparation.preprocess import PARTS, run_clicks, run_sessions

TABLE_COLUMNS = {"session_column": "SessionId", "item_column": "ItemId", "time_column": "Time"}
TABLE_FLAGS = (*TABLE_COLUMNS, "text_column", "field_columns", "separator")
TEXT_FLAGS = ("min_token_count", "chinese_cutter", "all_items")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        prog="preprocess.py", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    clicks = commands.add_parser("clicks", help="from a log of clicks")
    add = clicks.add_argument
    add("--input", required=True, help="the log of clicks")
    add("--layout", required=True, choices=["yoochoose", "table"],
        help="yoochoose: session,timestamp,item,category without a header; table: CSV, TSV or "
             "Parquet with named columns")
    add("--output_dir", required=True)
    # No defaults here: the other layout refuses these flags.
    add("--session_column", help="of a table (default: SessionId)")
    add("--item_column", help="of a table (default: ItemId)")
    add("--time_column",
        help="of a table: seconds since 1970, or ISO 8601, in UTC unless it has an offset "
             "(default: Time)")
    add("--separator", type=_separator,
        help="between the fields of a table; default: comma in .csv, tab in .tsv and .txt")
    add("--min_session_length", type=_at_least(int, 1), default=2, metavar="CLICKS",
        help="shorter sessions are dropped (default: %(default)s)")
    add("--min_item_support", type=_at_least(int, 1), default=5, metavar="CLICKS",
        help="items with fewer clicks are dropped (default: %(default)s)")
    add("--test_days", type=_at_least(float, 0), default=1.0, metavar="DAYS",
        help="length of the test period, may be a fraction (default: %(default)s); 0 for none")
    add("--valid_days", type=_at_least(float, 0), default=0.0, metavar="DAYS",
        help="length of the validation period before it (default: %(default)s, none)")
    add("--keep_unknown", action="store_true",
        help="keep validation and test items that training does not have")
    add("--keep_times", action="store_true",
        help="also write the times of the clicks, which evaluate_stream.py reads")
    add = _add_text_flags(clicks)
    add("--text_column", help="of a table: the text of the click's item; the newest counts")
    add("--field_columns", nargs="+", metavar="COLUMN",
        help="of a table: fields of the click's item, which become tokens; the newest count")

    sessions = commands.add_parser("sessions", help="from files that hold a session a line")
    add = sessions.add_argument
    add("--train_files", required=True, nargs="+", metavar="FILE",
        help="a session a line, raw ids of any kind with white space between")
    add("--valid_files", nargs="+", metavar="FILE", default=[])
    add("--test_files", nargs="+", metavar="FILE", default=[])
    for part in PARTS:
        add(f"--{part}_times", nargs="+", metavar="FILE", default=[],
            help=f"the times of the clicks of --{part}_files: as many files of the same shape")
    add("--output_dir", required=True)
    _add_text_flags(sessions)
    args = parser.parse_args(argv)
    if args.command == "sessions" and not args.test_files and not args.continue_from:
        sessions.error("--test_files is needed, but with --continue_from")
    _check_flags(args, {"clicks": clicks, "sessions": sessions}[args.command].error)
    return args


def _add_text_flags(command):
    command.add_argument(
        "--continue_from", metavar="DIR", help="an earlier output directory, whose items keep "
        "their ids and texts: for train.py --init_from")
    add = command.add_argument_group("text of the items").add_argument
    add("--items_path", metavar="FILE",
        help="a line an item: raw id, tab, text, then columns of field:value if there are any")
    add("--min_token_count", type=_at_least(int, 1), metavar="ITEMS",
        help="tokens of fewer items of the training sessions are dropped (default: 2)")
    add("--chinese_cutter", choices=text.CUTTERS,
        help="how Chinese is cut (default: jieba if it is installed)")
    add("--all_items", action="store_true",
        help="also give ids to items with text that occur in no session")
    return add


def _check_flags(args, error):
    """Refuses flags that would have no effect, then sets the defaults of the others."""
    def given(names):
        return [f"--{name}" for name in names if getattr(args, name, None)]

    if args.command == "clicks" and args.layout == "yoochoose" and given(TABLE_FLAGS):
        error(f"{', '.join(given(TABLE_FLAGS))}: only for --layout table; the columns of yoochoose "
              f"are always {','.join(YOOCHOOSE_COLUMNS)}")
    columns = given(["text_column", "field_columns"])
    if args.items_path and columns:
        error(f"--items_path and {' '.join(columns)}: the text of the items comes from one place")
    if not args.items_path and not columns and given(TEXT_FLAGS):
        source = "--items_path" + ", --text_column or --field_columns" * (args.command == "clicks")
        error(f"{', '.join(given(TEXT_FLAGS))}: only for items with text: give {source}")
    if args.command == "sessions":
        for part in PARTS:
            files, times = (getattr(args, f"{part}_{kind}") for kind in ("files", "times"))
            if times and len(files) != len(times):
                error(f"--{part}_files are {len(files)} and --{part}_times {len(times)}: the first "
                      "belongs to the first, and so on")
    args.min_token_count = args.min_token_count or 2
    if args.command == "clicks":
        for name, default in TABLE_COLUMNS.items():
            setattr(args, name, getattr(args, name) or default)


def _at_least(kind, low):
    def parse(given):
        value = kind(given)
        if not low <= value < math.inf:
            raise ValueError
        return value
    parse.__name__ = f"{kind.__name__} (it must be {low} or more)"
    return parse


def _separator(given):
    given = {"\\t": "\t", "tab": "\t"}.get(given, given)
    if len(given) != 1 or not given.isascii() or given in '\r\n"':
        raise argparse.ArgumentTypeError(f"{given!r}: one character is needed, or 'tab'")
    return given


def main(argv=None) -> int:
    args = parse_args(argv)
    try:
        {"clicks": run_clicks, "sessions": run_sessions}[args.command](args)
    except DataError as error:
        print(f"preprocess.py: error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"preprocess.py: error: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("preprocess.py: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
