"""What only the notebook and the benchmark of UserGPT need: the benchmark side, topics, phrases, peers, its tables."""
