"""Train and align ranking models: bi-encoders, rerankers and causal language models, from one config tree.

Importing this package does nothing; heavy libraries are imported by the modules that need them.
"""

__version__ = "0.1.0"
