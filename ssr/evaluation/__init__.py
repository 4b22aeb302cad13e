"""How good the answers are: ranks of what was clicked next, metrics with intervals, baselines to
compare with, and a report."""
