"""Students of large models: bert-serving-compare and bert-serving-distill. No other part imports this one.

Needs the extra `train`.
"""
