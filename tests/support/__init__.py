"""What tests and benchmarks share: running servers, small models, texts, references."""
