"""A score for news as they happen, and its replay."""
