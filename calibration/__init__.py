"""What the data says: batches, running a graph with taps, moments, metrics, the solver."""
