"""Items that training never saw, found by their content: recall@20 beside chance, TF-IDF and ids.

    python benchmarks/bench_content.py --train_files train.txt --test_files test.txt \\
        --items_path items.tsv --seeds 3 -- --recipe strong
    python examples/encode_titles.py --items_path items.tsv --output vectors.npy
    python benchmarks/bench_content.py --train_files train.txt --test_files test.txt \\
        --items_path items.tsv --item_vectors vectors.npy --seeds 3 -- --recipe strong

A share of the items is held out: their clicks are taken out of the training sessions, the test
sessions stay as they are. Every line of the test files is scored on its last id, apart for labels
that training knows and for the held-out ones, these among all items and among the held-out ones.
With --item_vectors, row i of which is the vector of line i of --items_path, there are also models
of the vectors and of words and vectors. --validation holds other items out, of the training
sessions alone, which are then scored on their last ids: to choose settings without the test files.
Whatever follows -- goes to train.py. Needs scikit-learn, for TF-IDF.
"""

from __future__ import annotations

import re
import tempfile

import common
import numpy as np

import reader
from ssr.files import numbered_lines
from ssr.preparation import text

MODELS = ("ids", "words", "vectors", "words and vectors")
COLUMNS = ("known, all", "held out, all", "held out, held out")
TIE = 1e-6  # scores closer than this are equal, and ties count against, as in infer.py


def main(argv=None):
    parser, own_flags, train_flags = common.recall_parser_and_flags(__doc__, argv)
    parser.add_argument("--items_path", required=True, help="a line an item: raw id, tab, title")
    parser.add_argument("--hold_out", type=float, default=0.1, help="share of the items")
    parser.add_argument("--item_vectors", help="a .npy: row i is the vector of line i")
    parser.add_argument("--models", nargs="+", choices=MODELS, help="which of them; all that the "
                        "files allow when not given")
    parser.add_argument("--validation", action="store_true", help="hold other items out")
    parser.add_argument("--seeds", type=int, default=1, help="0, 1, ...: how many")
    args = parser.parse(own_flags)
    with tempfile.TemporaryDirectory() as work:
        prepare(args, work)
        print("| | recall@20, mrr@20: " + " | ".join(COLUMNS) + " |")
        print("|---|" + "---|" * len(COLUMNS))
        for name, metrics in baselines(work, args.items_path).items():
            print_row(name, metrics)
        for name in args.models or MODELS[:None if args.item_vectors else 2]:
            flags = flags_of(name, work)
            runs = [run_model(work, seed, [*flags, *train_flags]) for seed in range(args.seeds)]
            print_row(f"{name}, mean of {args.seeds}", np.mean(runs, axis=0))


def flags_of(model, work):
    """The flags of train.py for one of MODELS."""
    words = ["--item_tokens", f"{work}/item_tokens.txt"]
    vectors = ["--item_vectors", f"{work}/item_vectors.npy"]
    return words * ("words" in model) + vectors * ("vectors" in model)


def print_row(name, metrics):
    print(f"| {name} | " + " | ".join("%.4f / %.4f" % tuple(pair) for pair in metrics) + " |",
          flush=True)


def prepare(args, work):
    """The files of preprocess.py, from training sessions without the items held out."""
    ids = list(text.read_items(args.items_path))
    items_path, tests = args.items_path, args.test_files
    held_out = _share(ids, args.hold_out, 0)
    sessions = [line.split() for path in args.train_files for _, line in
                numbered_lines(path, "a session is a line of raw ids")]
    if args.validation:  # as if there were nothing of what the test is about
        items_path = write_items(f"{work}/items.tsv", items_path, held_out)
        sessions = [without(session, held_out) for session in sessions]
        held_out = _share([id for id in ids if id not in held_out], args.hold_out, 1)
        tests = [write_sessions(f"{work}/test.txt", sessions)]
        sessions = [session[:-1] for session in sessions]
    train = write_sessions(f"{work}/train.txt",
                           [without(session, held_out) for session in sessions])
    common.run_script("preprocess.py", "sessions", "--train_files", train, "--test_files", *tests,
                      "--items_path", items_path, "--all_items", "--output_dir", work)
    if args.item_vectors:
        place = {id: row for row, id in enumerate(ids)}
        rows = [place[id] for id in text.read_items(f"{work}/items.txt")]
        np.save(f"{work}/item_vectors.npy", np.load(args.item_vectors)[rows])


def _share(ids, share, seed):
    return set(np.random.default_rng(seed).permutation(ids)[:round(share * len(ids))].tolist())


def write_items(path, items_path, left_out):
    """Copies the lines of a file of items but for some, and returns the path."""
    with open(items_path, encoding="utf-8") as lines, open(path, "w", encoding="utf-8") as out:
        out.writelines(line for line in lines if line.rstrip("\n").split("\t")[0] not in left_out)
    return path


def without(session, items):
    return [id for id in session if id not in items]


def write_sessions(path, sessions):
    """Writes those that have two items or more, and returns the path."""
    with open(path, "w") as out:
        out.writelines(" ".join(session) + "\n" for session in sessions if len(session) > 1)
    return path


def baselines(work, items_path):
    """{name: metrics} of chance and of TF-IDF: the cosine of a title with the sum of the titles of
    the session."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    test = reader.construct_test_data(f"{work}/test_data", f"{work}/vocab.txt")
    train = reader.construct_train_data(f"{work}/train_data", f"{work}/vocab.txt")
    clicked = train.item_clicks() > 0
    titles = text.read_items(items_path)
    with open(f"{work}/items.txt", encoding="utf-8") as lines:
        texts = [titles[line.rstrip("\n").split("\t")[0]].text for line in lines]
    items = TfidfVectorizer(dtype=np.float32).fit_transform(texts)
    last = test.offsets[1:] - 1
    labels = test.items[last]
    metrics = {"chance": [], "TF-IDF": []}
    for queries, among in ((clicked[labels], np.ones_like(clicked)),
                           (~clicked[labels], np.ones_like(clicked)),
                           (~clicked[labels], ~clicked)):
        candidates = np.flatnonzero(among)
        share = min(1, 20 / len(candidates))
        metrics["chance"].append((share, share * np.mean(1 / np.arange(1, 21))))
        ranks = tf_idf_ranks(test, np.flatnonzero(queries), items, candidates)
        hit = ranks <= 20
        metrics["TF-IDF"].append((hit.mean(), np.sum(1 / ranks[hit]) / len(ranks)))
    return metrics


def tf_idf_ranks(test, sessions, items, candidates):
    """The ranks of the last clicks of sessions: <int64>[sessions].

    sessions: their numbers in test; items: <float32>[V, words], sparse, its rows of length 1 or 0
    candidates: <int64>[n], ascending
    """
    from scipy.sparse import csr_matrix
    from sklearn.preprocessing import normalize

    ranks = []
    for chosen in np.array_split(sessions, -(-len(sessions) // 500)):
        starts, lengths = test.offsets[chosen], test.offsets[chosen + 1] - 1 - test.offsets[chosen]
        clicks = test.items[reader.ragged_arange(starts, lengths)]
        picks = csr_matrix((np.ones(len(clicks), np.float32), clicks,
                            np.concatenate([[0], np.cumsum(lengths)])),
                           shape=(len(chosen), items.shape[0]))
        users = normalize(picks @ items)
        scores = (users @ items[candidates].T).toarray()
        own = scores[np.arange(len(chosen)), np.searchsorted(
            candidates, test.items[test.offsets[chosen + 1] - 1])]
        ranks.append((scores > own[:, None] - TIE).sum(1))
    return np.concatenate(ranks)


def run_model(work, seed, train_flags):
    """[(recall, mrr)] of a model, as COLUMNS."""
    paths = ["--vocab_path", f"{work}/vocab.txt", "--model_dir", f"{work}/model"]
    out, _, _ = common.run_script(*common.TRAIN, *paths, "--train_dir", f"{work}/train_data",
                                  "--seed", seed, *train_flags)
    epoch = re.findall(r"epoch:(\d+) num_steps", out)[-1]
    metrics = {}
    has_content = {"--item_tokens", "--item_vectors"} & {*map(str, train_flags)}
    for among in ("all", *["unknown"] * bool(has_content)):
        out, _, _ = common.run_script("infer.py", *paths, "--test_dir", f"{work}/test_data",
                                      "--start_index", epoch, "--last_index", epoch,
                                      "--candidates", among)
        for name in ("known", "unknown"):
            match = re.search(rf"  {name} labels:\d+ recall@20:([\d.]+) mrr@20:([\d.]+)", out)
            metrics[name, among] = [float(number) for number in match.groups()] if match else [0, 0]
    metrics.setdefault(("unknown", "unknown"), [0, 0])  # no item held out has a vector
    return [metrics["known", "all"], metrics["unknown", "all"], metrics["unknown", "unknown"]]


if __name__ == "__main__":
    main()
