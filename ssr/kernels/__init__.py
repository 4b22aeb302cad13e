"""The same functions, only faster."""
