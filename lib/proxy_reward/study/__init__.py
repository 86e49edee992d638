"""What only the notebook and the benchmark of proxy reward need."""
