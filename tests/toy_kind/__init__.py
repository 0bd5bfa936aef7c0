"""A sixth kind of model, written outside of rankpo: one folder and one yaml, as CONTRIBUTING describes it."""
