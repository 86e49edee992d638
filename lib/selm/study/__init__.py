"""What only the notebook and the benchmark of SELM need."""
