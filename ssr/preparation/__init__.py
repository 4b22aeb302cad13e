"""A click log, or sessions with raw ids -> what training reads; text -> tokens."""
