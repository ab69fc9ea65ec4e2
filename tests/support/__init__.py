"""What tests and benchmarks share: a started server, small models, texts, references."""
