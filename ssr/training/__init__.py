"""Training beyond the pairwise hinge: recipes, losses, items by content, resuming."""
