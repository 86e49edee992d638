"""GRIN's experiments: corpus, estimators on an enumerable problem, probes of models, parallel runs, benchmarks."""
