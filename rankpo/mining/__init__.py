"""Mining of hard negatives: candidates of a search are filtered, sampled and written to a training file."""
