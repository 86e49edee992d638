"""The study of SciAgent: questions, corpora and measures that its notebook and its benchmarks need."""
