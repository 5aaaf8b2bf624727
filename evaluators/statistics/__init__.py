"""Statistics of models that data gives: Gram matrices for RegMean, Fisher diagonals."""
