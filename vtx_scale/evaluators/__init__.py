"""What a model has learned, in numbers that are the same on every rank;
in the loop and on a finished run alike.

A file NAME.py with a function NAME is an evaluator. Most are (probes, batches, classes, ranks) ->
numbers: `zero_shot`, `retrieval`, `attention`, `samples`. Those marked `features.on_features` are
(train, val, classes, ranks) -> numbers and share one pass over the samples: `knn`, `linear`,
`linear_sgd`, `few_shot`. A number may also be a picture, uint8 (H, W, 3).

`HIGHER` and `LOWER` in an evaluator's module are patterns of its numbers, by which of two models is
the better one: what `checkpoint.best` may name.

`CONSTANTS` there are those of its numbers that say something of the samples and not of the model,
beside `samples`: they are written, and drawn as no curve.

`batches` is a rank's share: every rank gets as many, and calls the probes as often, as any other (a
sharded model needs all ranks for a forward pass), masked slots included.
"""

import pkgutil

# every file here but what they share: a file NAME.py is the evaluator NAME
SHARED = ("features", "mistakes", "sheets")
NAMES = tuple(
    sorted(file.name for file in pkgutil.iter_modules(__path__) if file.name not in SHARED)
)
