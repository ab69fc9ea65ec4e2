"""The processes that serve HTTP."""
