"""The index behind HTTP."""
