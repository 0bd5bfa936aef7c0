"""Hard negatives: candidates of a search, filtered, sampled, and written as the next stage's training file."""
