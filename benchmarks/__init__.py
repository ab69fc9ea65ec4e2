"""Speed, measured side by side. Each file is a program: python -m benchmarks.NAME."""
