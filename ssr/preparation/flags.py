"""The flags of preprocess.py: adds those of each of its commands to a parser, and refuses what does
not go together."""

from __future__ import annotations

import argparse

from ssr.commands import number

from ssr.data_directory import PARTS
from ssr.preparation.click_log import YOOCHOOSE_COLUMNS, layout_of
from ssr.preparation.text import CUTTERS

TABLE_FLAGS = ("session_column", "item_column", "time_column", "text_column", "field_columns",
               "separator")
TEXT_FLAGS = ("min_token_count", "chinese_cutter", "all_items")


def add_click_flags(add):
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
    _add_rules(add)
    add("--keep_times", action="store_true",
        help="also write the times of the clicks, which evaluate_stream.py reads")
    add("--text_column", help="of a table: the text of the click's item; the newest counts")
    add("--field_columns", nargs="+", metavar="COLUMN", default=[],
        help="of a table: fields of the click's item, which become tokens; the newest count")
    _add_items_path(add)
    _add_tokens(add)


def add_session_flags(add):
    for part in PARTS:
        add(f"--{part}_files", nargs="+", metavar="FILE", default=[], required=part == "train",
            help="a session a line, raw ids of any kind with white space between")
        add(f"--{part}_times", nargs="+", metavar="FILE", default=[],
            help=f"the times of the clicks of --{part}_files, in whole seconds: as many files of "
                 "the same shape")
    add("--output_dir", required=True, help="where the files are written")
    _add_items_path(add)
    _add_tokens(add)


def add_mind_flags(add):
    add("--behaviors", nargs="+", metavar="FILE", required=True, help="behaviors.tsv to train on")
    add("--valid_behaviors", nargs="+", metavar="FILE", default=[],
        help="those of validation; when not given the newest --valid_days of --behaviors")
    add("--test_behaviors", nargs="+", metavar="FILE", default=[],
        help="those of the test; when not given the newest --test_days of --behaviors")
    add("--news", nargs="+", metavar="FILE", required=True,
        help="news.tsv, of which title and abstract become text, category and subcategory fields")
    add("--output_dir", required=True, help="where the files are written")
    _add_periods(add)
    _add_tokens(add)


def add_adressa_flags(add):
    add("--input", nargs="+", metavar="PATH", required=True,
        help="files of page views, a JSON object in each line, or directories of them; gzip is "
             "read as well")
    add("--output_dir", required=True, help="where the files are written")
    add("--session_gap", type=number(float, 0, 10 ** 6), default=30.0, metavar="MINUTES",
        help="a longer silence ends a session")
    _add_rules(add)
    _add_tokens(add)


def add_g1_flags(add):
    add("--input", nargs="+", metavar="PATH", required=True,
        help="clicks_hour_*.csv, or directories of them")
    add("--articles", metavar="FILE",
        help="articles_metadata.csv, of which category and publisher become fields")
    add("--embeddings", metavar="FILE",
        help="articles_embeddings.pickle, of which item_vectors.npy is made")
    add("--output_dir", required=True, help="where the files are written")
    _add_rules(add)
    _add_tokens(add)


def _add_rules(add):
    count = number(int, 1, 10 ** 9)
    add("--min_session_length", type=count, default=2, metavar="CLICKS",
        help="shorter sessions are dropped")
    add("--min_item_support", type=count, default=5, metavar="CLICKS",
        help="items with fewer clicks are dropped")
    _add_periods(add)
    add("--keep_unknown", action="store_true",
        help="keep validation and test items that training does not have")


def _add_periods(add):
    days = number(float, 0, 10 ** 6)
    add("--test_days", type=days, default=1.0, metavar="DAYS",
        help="length of the test period, may be a fraction; 0 for none")
    add("--valid_days", type=days, default=0.0, metavar="DAYS",
        help="length of the validation period before it; 0 for none")


def _add_items_path(add):
    add("--items_path", metavar="FILE",
        help="the text of the items, a line each: raw id, tab, text, then columns of field:value "
             "if there are any")


def _add_tokens(add):
    add("--continue_from", metavar="DIR", help="an earlier output directory, whose items keep "
        "their ids and texts: for train.py --init_from")
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


# --- checks ---------------------------------------------------------------------------------------


def check_click_flags(args, error):
    """Refuses flags that would have no effect, and takes the layout from the name of the log where
    it is not given."""
    args.layout = args.layout or layout_of(args.input)
    if not args.layout:
        error(f"{args.input}: its name does not tell the layout: give --layout")
    of_table = _given(args, TABLE_FLAGS)
    if args.layout == "yoochoose" and of_table:
        error(f"{', '.join(of_table)}: only for --layout table; the columns of yoochoose are "
              f"always {','.join(YOOCHOOSE_COLUMNS)}")
    columns = _given(args, ["text_column", "field_columns"])
    if args.items_path and columns:
        error(f"--items_path and {' '.join(columns)}: the text of the items comes from one place")
    if not args.items_path and not columns and _given(args, TEXT_FLAGS):
        error(f"{', '.join(_given(args, TEXT_FLAGS))}: only for items with text: give "
              "--items_path, --text_column or --field_columns")


def check_session_flags(args, error):
    """Refuses flags that do not go together or would have no effect."""
    if not args.test_files and not args.continue_from:
        error("--test_files is needed; only with --continue_from it may be left out")
    for part in PARTS:
        files, times = (getattr(args, f"{part}_{kind}") for kind in ("files", "times"))
        if times and len(files) != len(times):
            error(f"--{part}_files are {len(files)} and --{part}_times {len(times)}: the first "
                  "belongs to the first, and so on")
    if not args.items_path and _given(args, TEXT_FLAGS):
        error(f"{', '.join(_given(args, TEXT_FLAGS))}: only for items with text: give --items_path")


def check_mind_flags(args, error):
    """Refuses lengths of periods that come from files of their own."""
    for part in ("valid", "test"):
        if getattr(args, f"{part}_behaviors") and f"{part}_days" in args.given:
            error(f"--{part}_behaviors and --{part}_days: the {part} part comes from one of them")


def check_g1_flags(args, error):
    """Refuses flags that would have no effect."""
    if not args.articles and _given(args, TEXT_FLAGS):
        error(f"{', '.join(_given(args, TEXT_FLAGS))}: only for items with fields: give "
              "--articles")


def _given(args, names):
    """Those of the flags that were given."""
    return [f"--{name}" for name in names if name in args.given]
