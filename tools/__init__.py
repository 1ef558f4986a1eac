"""How people use it: the command line, reports, benchmarks, the demo."""
