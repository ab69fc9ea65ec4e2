"""bert-serving-benchmark: bert-as-service's experiments."""
