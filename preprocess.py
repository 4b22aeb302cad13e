"""A log of clicks, or sessions with raw ids -> what train.py and infer.py read.

    python preprocess.py clicks --input yoochoose-clicks.dat --output_dir data
    python preprocess.py clicks --input clicks.csv --output_dir data
    python preprocess.py sessions --train_files train.txt --test_files test.txt --output_dir data
    python preprocess.py clicks ... --items_path items.tsv     # or, of a table, --text_column Title
    python train.py --data_dir data                            # as all that reads the output

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

and where items have text or fields (ssr/preparation/text.py says what a token is)

    item_tokens.txt  line i is the token ids of item i, with a space between
    tokens.txt       line i, from 0 on, is token i
    tokens.json      how Chinese was cut

and data.json, in the end, which says what there is and holds a digest of each file.

Ids are given in order of first appearance in train, then valid, then test: items that training
does not have come last, and behind them, with --all_items, those that occur in no session. With
--continue_from the items of an earlier output directory keep their ids and all others come behind
them; its tokens.txt stays as it is. For that, the test part may be left out (--test_days 0).
"""

from __future__ import annotations

import argparse
import sys

from ssr.commands import Parser, number, run

from ssr.data_directory import PARTS
from ssr.preparation.click_log import (
    YOOCHOOSE_COLUMNS,
    Columns,
    layout_of,
    open_table,
    open_yoochoose,
)
from ssr.preparation.filtering import Rules
from ssr.preparation.from_clicks import prepare_clicks
from ssr.preparation.from_sessions import prepare_sessions
from ssr.preparation.numbering import NO_EARLIER_RUN, read_earlier_run
from ssr.preparation.text import CUTTERS
from ssr.preparation.writing import TextSettings

TABLE_FLAGS = ("session_column", "item_column", "time_column", "text_column", "field_columns",
               "separator")
TEXT_FLAGS = ("min_token_count", "chinese_cutter", "all_items")


# --- flags ----------------------------------------------------------------------------------------


def parse_args(argv=None):
    parser = Parser(__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_subparsers(dest="command", required=True)
    clicks = parser.add_command("clicks", run_clicks, "from a log of clicks")
    add_click_flags(clicks.add_argument)
    sessions = parser.add_command("sessions", run_sessions, "from files of a session a line")
    add_session_flags(sessions.add_argument)
    for command in (clicks, sessions):
        add_text_flags(command.add_argument)
    args = parser.parse(argv)
    if args.command == "clicks":
        check_click_flags(args, clicks.error)
    else:
        check_session_flags(args, sessions.error)
    return args


def add_click_flags(add):
    count, days = number(int, 1, 10 ** 9), number(float, 0, 10 ** 6)
    add("--input", required=True, help="the log of clicks")
    add("--layout", choices=("yoochoose", "table"),
        help="yoochoose: session,timestamp,item,category without a header; table: CSV, TSV or "
             "Parquet with named columns; gzip is read as well; when not given yoochoose for .dat, "
             "table for .csv, .tsv and .parquet")
    add("--output_dir", required=True, help="where the files are written")
    add("--session_column", default="SessionId", help="of a table")
    add("--item_column", default="ItemId", help="of a table")
    add("--time_column", default="Time", help="of a table: seconds since 1970, or ISO 8601, in UTC "
        "unless it has an offset")
    add("--separator", type=separator, help="between the fields of a table; when not given a "
        "comma in .csv, a tab in .tsv and .txt, also with .gz behind it")
    add("--min_session_length", type=count, default=2, metavar="CLICKS",
        help="shorter sessions are dropped")
    add("--min_item_support", type=count, default=5, metavar="CLICKS",
        help="items with fewer clicks are dropped")
    add("--test_days", type=days, default=1.0, metavar="DAYS",
        help="length of the test period, may be a fraction; 0 for none")
    add("--valid_days", type=days, default=0.0, metavar="DAYS",
        help="length of the validation period before it; 0 for none")
    add("--keep_unknown", action="store_true",
        help="keep validation and test items that training does not have")
    add("--keep_times", action="store_true",
        help="also write the times of the clicks, which evaluate_stream.py reads")
    add("--text_column", help="of a table: the text of the click's item; the newest counts")
    add("--field_columns", nargs="+", metavar="COLUMN", default=[],
        help="of a table: fields of the click's item, which become tokens; the newest count")


def add_session_flags(add):
    for part in PARTS:
        add(f"--{part}_files", nargs="+", metavar="FILE", default=[], required=part == "train",
            help="a session a line, raw ids of any kind with white space between")
        add(f"--{part}_times", nargs="+", metavar="FILE", default=[],
            help=f"the times of the clicks of --{part}_files, in whole seconds: as many files of "
                 "the same shape")
    add("--output_dir", required=True, help="where the files are written")


def add_text_flags(add):
    add("--continue_from", metavar="DIR", help="an earlier output directory, whose items keep "
        "their ids and texts: for train.py --init_from")
    add("--items_path", metavar="FILE",
        help="the text of the items, a line each: raw id, tab, text, then columns of field:value "
             "if there are any")
    add("--min_token_count", type=number(int, 1, 10 ** 9), metavar="ITEMS", default=2,
        help="tokens of fewer items of the training sessions are dropped")
    add("--chinese_cutter", choices=CUTTERS,
        help="how Chinese is cut; when not given jieba if it is installed, bigrams if not")
    add("--all_items", action="store_true",
        help="also give ids to items with text that occur in no session")


def separator(text):
    """An argparse type: one character, or how people write a tab."""
    text = {"\\t": "\t", "tab": "\t"}.get(text, text)
    if len(text) != 1 or not text.isascii() or text in '\r\n"':
        raise argparse.ArgumentTypeError(f"{text!r}: one character is needed, or 'tab'")
    return text


def check_click_flags(args, error):
    """Refuses flags that would have no effect, and takes the layout from the name of the log where
    it is not given."""
    args.layout = args.layout or layout_of(args.input)
    if not args.layout:
        error(f"{args.input}: its name does not tell the layout: give --layout")
    of_table = flags(args, TABLE_FLAGS)
    if args.layout == "yoochoose" and of_table:
        error(f"{', '.join(of_table)}: only for --layout table; the columns of yoochoose are "
              f"always {','.join(YOOCHOOSE_COLUMNS)}")
    columns = flags(args, ["text_column", "field_columns"])
    if args.items_path and columns:
        error(f"--items_path and {' '.join(columns)}: the text of the items comes from one place")
    if not args.items_path and not columns and flags(args, TEXT_FLAGS):
        error(f"{', '.join(flags(args, TEXT_FLAGS))}: only for items with text: give --items_path, "
              "--text_column or --field_columns")


def check_session_flags(args, error):
    """Refuses flags that do not go together or would have no effect."""
    if not args.test_files and not args.continue_from:
        error("--test_files is needed; only with --continue_from it may be left out")
    for part in PARTS:
        files, times = (getattr(args, f"{part}_{kind}") for kind in ("files", "times"))
        if times and len(files) != len(times):
            error(f"--{part}_files are {len(files)} and --{part}_times {len(times)}: the first "
                  "belongs to the first, and so on")
    if not args.items_path and flags(args, TEXT_FLAGS):
        error(f"{', '.join(flags(args, TEXT_FLAGS))}: only for items with text: give --items_path")


def flags(args, names):
    """Those of the flags that were given."""
    return [f"--{name}" for name in names if name in args.given]


# --- the commands ---------------------------------------------------------------------------------


def run_clicks(args):
    written = prepare(args, open_log(args, args.input), on_stage=print_stage)
    print_written(args.output_dir, written)
    return 0


def open_log(args, path):
    """The log of clicks in a file."""
    if args.layout == "yoochoose":
        return open_yoochoose(path)
    return open_table(path, columns_of(args), args.separator)


def columns_of(args):
    return Columns(args.session_column, args.item_column, args.time_column)


def prepare(args, log, valid=None, on_stage=lambda stage: None):
    """Writes --output_dir as the flags say, from a log. valid: a log of its own for validation, or
    None. Returns what prepare_clicks does."""
    rules = Rules(args.min_session_length, args.min_item_support, args.test_days, args.valid_days,
                  args.keep_unknown)
    return prepare_clicks(
        log, args.output_dir, rules, text_settings(args, args.text_column, args.field_columns),
        valid=valid, keep_times=args.keep_times, earlier=earlier_run(args), on_stage=on_stage)


def run_sessions(args):
    files, times = ({part: getattr(args, f"{part}_{kind}") for part in PARTS
                     if getattr(args, f"{part}_{kind}")} for kind in ("files", "times"))
    written = prepare_sessions(files, times, args.output_dir, text_settings(args),
                               earlier=earlier_run(args), on_stage=print_stage)
    print_written(args.output_dir, written)
    return 0


def earlier_run(args):
    return read_earlier_run(args.continue_from) if args.continue_from else NO_EARLIER_RUN


def text_settings(args, text_column=None, field_columns=()):
    return TextSettings(args.items_path, text_column, field_columns, args.min_token_count,
                        args.chinese_cutter, args.all_items)


def print_stage(stage):
    print(f"{stage.name:32}{stage.clicks:>14,} clicks {stage.sessions:>13,} sessions "
          f"{stage.items:>11,} items", flush=True)


def print_written(output_dir, written):
    coverage, tokens = written.coverage, written.tokens
    if coverage:
        print(f"text: {coverage.with_text:,} of {coverage.items:,} items of the sessions have "
              f"some; {coverage.outside:,} items with text occur in no session, they "
              + ("come last" if coverage.outside_kept else
                 "are left out (--all_items takes them)"))
    if tokens:
        print(f"tokens: {tokens.tokens:,} in tokens.txt, {tokens.per_item:.1f} an item; "
              f"{tokens.without:,} items without any; Chinese is cut by {tokens.chinese_cutter}")
    print(f"{output_dir}: {written.items:,} items in vocab.txt and items.txt")


def main(argv=None):
    args = parse_args(argv)
    return run(lambda: args.run(args))


if __name__ == "__main__":
    sys.exit(main())
