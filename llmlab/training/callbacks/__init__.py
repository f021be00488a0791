"""What looks on while a run trains: metrics, best model, stop, non-finite guard, samples, keys,
TensorBoard.
"""
